"""Class activation maps: what a linear classifier sees where (arXiv:1512.04150)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mixaug.ops.layout import single_precision

__all__ = ["class_activation_map", "normalised_map"]

#: Range of a map, relative to its largest value, below which it says nothing but rounding.
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
