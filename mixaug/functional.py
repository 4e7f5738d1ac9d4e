"""The pure functions of every method: no randomness, no state, all draws are arguments."""

from mixaug.neighbours import label_kernel, nearest_rows
from mixaug.ops.kernels import draw_index
from mixaug.ops.masks import cells_to_pixels, random_cells
from mixaug.policies.cutmix import cutmix, cutmix_boxes
from mixaug.policies.fmix import fmix, fourier_image, fourier_mask, fourier_noise_shape
from mixaug.policies.gridmix import gridmix, gridmix_mask
from mixaug.policies.maskmix import maskmix
from mixaug.policies.mixup import mixup
from mixaug.policies.patchmix import patchmix
from mixaug.policies.resizemix import resizemix, resizemix_boxes
from mixaug.policies.saliencymix import (
    eight_bit_images,
    fine_grained_saliency,
    saliency_peak,
    saliencymix,
    saliencymix_boxes,
)
from mixaug.policies.smoothmix import smoothmix, smoothmix_mask

__all__ = [
    "cells_to_pixels",
    "cutmix",
    "cutmix_boxes",
    "draw_index",
    "eight_bit_images",
    "fine_grained_saliency",
    "fmix",
    "fourier_image",
    "fourier_mask",
    "fourier_noise_shape",
    "gridmix",
    "gridmix_mask",
    "label_kernel",
    "maskmix",
    "mixup",
    "nearest_rows",
    "patchmix",
    "random_cells",
    "resizemix",
    "resizemix_boxes",
    "saliency_peak",
    "saliencymix",
    "saliencymix_boxes",
    "smoothmix",
    "smoothmix_mask",
]
