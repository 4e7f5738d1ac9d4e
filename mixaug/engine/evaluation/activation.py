"""Where a network looks: class activation on an object and off it.

A class activation map (Zhou et al., CVPR 2016, arXiv:1512.04150) is compared with the region where its class is to be
found: the share of its sum that lies there (Wang et al., Score-CAM, arXiv:1910.01279, the "energy-based pointing game")
and whether its largest value does (Zhang et al., arXiv:1608.00507, the "pointing game").

Regions come from object masks where a data set has them. Where it has none, they are made: of two halves of images of
different classes side by side it is known where each class is. That is the grid pointing game of Böhle et al.
(arXiv:2104.00032) with halves in place of whole images, so that the size that a network was trained on stays.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixaug.engine.evaluation.inputs import check_images

__all__ = ["activation_on", "half_regions", "halves"]


def activation_on(maps: Tensor, region: Tensor) -> tuple[Tensor, Tensor]:
    """How much of each map lies in its region.

    Args:
        maps: (B, H, W) floating point, >= 0, as `mixaug.ops.activation.class_activation_map` gives them. A map that is
            constant (NaN there) says nothing and counts as even.
        region: (B, H, W) bool or floating shares in [0, 1].

    Returns:
        (B,) float64 share of the map's sum inside the region, and (B,) float64 share of the region at the map's largest
        value, the mean over all places that have it. Both are the region's area for an even map.

    Raises:
        TypeError, ValueError: other shapes, dtypes or values.
    """
    if maps.ndim != 3 or not maps.is_floating_point() or region.shape != maps.shape:
        raise ValueError(
            f"activation_on expects maps (B, H, W) floating point and region of that shape, got {tuple(maps.shape)} "
            f"{maps.dtype} and {tuple(region.shape)}"
        )
    inside = region.double().flatten(1)
    low, high = inside.aminmax()
    if bool((low < 0) | (high > 1)):
        raise ValueError(f"activation_on expects region in [0, 1], got values from {float(low):g} to {float(high):g}")
    values = maps.double().flatten(1)
    if bool((values < 0).any()):
        raise ValueError(f"activation_on expects maps >= 0, got values down to {float(values.nan_to_num().min()):g}")
    says_nothing = values.isnan().any(1, keepdim=True) | (values.sum(1, keepdim=True) <= 0)
    values = torch.where(says_nothing, 1.0, values)
    share = (values * inside).sum(1) / values.sum(1)
    highest = (values == values.amax(1, keepdim=True)).double()
    return share, (highest * inside).sum(1) / highest.sum(1)


def halves(images: Tensor, others: Tensor, on_left: Tensor) -> Tensor:
    """Images whose one half is another's, each half in its own place.

    Args:
        images: (B, C, H, W), W >= 2.
        others: like ``images``.
        on_left: (B,) bool, whether the left half stays, of width W // 2, or the right one.

    Returns:
        Images like ``images``.

    Raises:
        TypeError, ValueError: other shapes or dtypes.
    """
    check_images("halves", images, (torch.float32, torch.float64, torch.uint8))
    if others.shape != images.shape or others.dtype != images.dtype or images.shape[3] < 2:
        raise ValueError(
            f"halves expects images and others alike, at least two pixels wide, got {tuple(images.shape)} "
            f"{images.dtype} and {tuple(others.shape)} {others.dtype}"
        )
    return torch.where(half_regions(on_left, images.shape[2], images.shape[3])[:, None], images, others)


def half_regions(on_left: Tensor, height: int, width: int) -> Tensor:
    """(B, height, width) bool: the half that stays, by ``on_left`` (B,) bool."""
    left = torch.arange(width, device=on_left.device) < width // 2
    return (left == on_left[:, None])[:, None].expand(-1, height, -1)
