"""Class activation maps: what a linear classifier sees where (arXiv:1512.04150)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mixaug.checks import check_class_ids
from mixaug.ops.layout import reads_freely, single_precision

__all__ = ["class_activation_map", "given_map", "normalised_map"]

#: Range of a map, relative to its largest value, below which the map says nothing but rounding.
FLAT = 1e-6


def class_activation_map(
    features: Tensor, classifier_weight: Tensor, labels: Tensor, size: Sequence[int], *, rectify: bool = True
) -> Tensor:
    """Maps of the true class, at the size of the images.

    ``sum_c W[y, c] F_c`` per cell, upsampled bilinearly, less its minimum, divided by its sum (SnapMix,
    arXiv:2012.04846). A bias would shift all cells alike and drops out.

    Args:
        features: (B, C, h, w) what the classifier's pooling takes in.
        classifier_weight: (K, C) of the linear classifier.
        labels: (B,) class ids or (B, K) shares of classes.
        size: (H, W) of the images.
        rectify: take ``relu(features)``, as SnapMix's code does; changes nothing behind a ReLU.

    Returns:
        (B, H, W) float32, >= 0, each summing to 1; NaN where the map is constant, so that no cell means more than
        another.

    Raises:
        ValueError: shapes that do not fit.
    """
    if features.ndim != 4 or classifier_weight.ndim != 2 or features.shape[1] != classifier_weight.shape[1]:
        raise ValueError(
            "class_activation_map expects features (B, C, h, w) and classifier_weight (K, C), got "
            f"{tuple(features.shape)} and {tuple(classifier_weight.shape)}"
        )
    if labels.shape[0] != features.shape[0] or labels.ndim not in (1, 2):
        raise ValueError(
            f"class_activation_map got features of {features.shape[0]} samples but labels {tuple(labels.shape)}"
        )
    with torch.autocast(features.device.type, enabled=False):
        maps = single_precision(F.relu(features) if rectify else features)
        weight = single_precision(classifier_weight)
        if labels.ndim == 1 and not labels.is_floating_point():
            check_class_ids("class_activation_map", labels, weight.shape[0])
            chosen = weight[labels.long()]
        elif labels.ndim == 2 and labels.shape[1] == weight.shape[0]:
            chosen = single_precision(labels) @ weight
        else:
            raise ValueError(
                f"class_activation_map expects class ids (B,) or shares (B, {weight.shape[0]}), got "
                f"{tuple(labels.shape)} {labels.dtype}"
            )
        # Terms that cancel leave rounding of their own size, not of the sum's.
        scale = torch.einsum("bc,bchw->bhw", chosen.abs(), maps.abs()).flatten(1).amax(1)
        return normalised_map(torch.einsum("bc,bchw->bhw", chosen, maps), size, scale)


def given_map(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Finished maps at another size: bilinear, each of sum 1; NaN where constant.

    Args:
        maps: (B, h, w) floating point. Maps that are not negative keep their zero; others are raised by their minimum.
        size: (H, W).
    """
    maps = F.interpolate(maps[:, None], tuple(size), mode="bilinear", align_corners=False)[:, 0]
    low, high = maps.flatten(1).aminmax(dim=1)
    raised = maps - low.clamp_max(0)[:, None, None]
    flat = high - low <= FLAT * torch.maximum(high.abs(), low.abs())
    return raised / raised.sum((1, 2)).masked_fill(flat, torch.nan)[:, None, None]


def normalised_map(maps: Tensor, size: Sequence[int], scale: Tensor | None = None) -> Tensor:
    """Maps of any sign at another size: bilinear, less their minimum, each of sum 1; NaN where constant.

    Args:
        maps: (B, h, w).
        size: (H, W).
        scale: (B,) size of the values that the maps were summed from; None takes their own.
    """
    scale = maps.flatten(1).abs().amax(1) if scale is None else scale
    maps = F.interpolate(maps[:, None], tuple(size), mode="bilinear", align_corners=False)[:, 0]
    low, high = maps.flatten(1).aminmax(dim=1)
    raised = maps - low[:, None, None]
    flat = high - low <= FLAT * scale
    total = raised.sum((1, 2)).masked_fill(flat, torch.nan)
    return raised / total[:, None, None]


def content_shares(maps: Tensor, mixed_maps: Tensor, own_mask: Tensor) -> Tensor:
    """How much of what matters in each source can be seen in the mixed image.

    ``w = sum(m a)`` and ``w' = sum((1 - m) a[partner])``, where the mixed map is ``m a + (1 - m) a[partner]``.

    Args:
        maps: (B, h, w) where the class of each sample is, see :func:`content_map`.
        mixed_maps: (B, h, w) the maps, mixed like the images.
        own_mask: (B, h, w) or (1, h, w) bool or float share of the own image.

    Returns:
        (B, 2) float32 in [0, 1], own weight first; rows need not sum to 1.

    Raises:
        ValueError: shapes that do not fit.
    """
    if maps.ndim != 3 or mixed_maps.shape != maps.shape or own_mask.shape[-2:] != maps.shape[-2:]:
        raise ValueError(
            f"content_shares expects maps and mixed_maps (B, h, w) and own_mask of that size, got {tuple(maps.shape)}, "
            f"{tuple(mixed_maps.shape)} and {tuple(own_mask.shape)}"
        )
    own = (maps * own_mask).flatten(1).sum(1)
    return torch.stack([own, mixed_maps.flatten(1).sum(1) - own], dim=1).clamp(0, 1).float()


def content_map(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps at another size, each of sum 1.

    Args:
        maps: (B, h, w) floating point. Negative and non-finite values count as 0; a map without any other says
            nothing and becomes even.
        size: rows and columns of the result; values are averaged over cells that do not match.

    Returns:
        (B, *size) float32.
    """
    values = single_precision(maps.detach())
    values = torch.where(values.isfinite(), values, torch.zeros_like(values)).clamp(min=0)
    largest = values.flatten(1).amax(1)[:, None, None]
    empty = largest <= 0
    values = torch.where(empty, torch.ones_like(values), values / torch.where(empty, torch.ones_like(largest), largest))
    if tuple(maps.shape[1:]) != tuple(size):
        values = F.adaptive_avg_pool2d(values[:, None], (size[0], size[1]))[:, 0]
    return (values / values.sum((1, 2), keepdim=True)).float()


def check_activation_maps(what: str, cam: Tensor, shape: tuple[int, ...] | None) -> None:
    """Raise unless ``cam`` is (B, H, W) floating point, of ``shape`` where one is given."""
    if not isinstance(cam, Tensor) or not cam.is_floating_point():
        came = cam.dtype if isinstance(cam, Tensor) else type(cam).__name__
        raise TypeError(f"{what} expects cam (B, H, W) floating point, got {came}")
    if cam.ndim != 3 or (shape is not None and tuple(cam.shape) != shape):
        expected = "(B, H, W)" if shape is None else f"{shape}, the batch and size of the images"
        raise ValueError(f"{what} expects cam of shape {expected}, got {tuple(cam.shape)}")


def check_not_negative(what: str, cam: Tensor) -> None:
    """Raise for negative values, where they can be read for free."""
    if reads_freely(cam) and bool((cam < 0).any()):
        raise ValueError(f"{what} expects cam >= 0, got values down to {float(cam[cam < 0].min())}")
