"""The pure functions of every method: no randomness, no state, all draws are arguments."""

from mixaug.policies.cutmix import cutmix, cutmix_boxes
from mixaug.policies.fmix import fmix, fourier_image, fourier_mask, fourier_noise_shape
from mixaug.policies.gridmix import gridmix, gridmix_mask
from mixaug.policies.mixup import mixup
from mixaug.policies.resizemix import resizemix, resizemix_boxes
from mixaug.policies.smoothmix import smoothmix, smoothmix_mask

__all__ = [
    "cutmix",
    "cutmix_boxes",
    "fmix",
    "fourier_image",
    "fourier_mask",
    "fourier_noise_shape",
    "gridmix",
    "gridmix_mask",
    "mixup",
    "resizemix",
    "resizemix_boxes",
    "smoothmix",
    "smoothmix_mask",
]
