"""The pure functions of every method: no randomness, no state, all draws are arguments."""

from mixaug.policies.cutmix import cutmix, cutmix_boxes
from mixaug.policies.mixup import mixup

__all__ = ["cutmix", "cutmix_boxes", "mixup"]
