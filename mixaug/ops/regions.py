"""Features of rectangles of an image, read off its feature map."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def pooled_regions(features: Tensor, boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Mean feature of a box of each image: RoIAlign (arXiv:1703.06870) with one bin.

    Features are read by bilinear interpolation on a regular grid inside the box, with as many points along an axis as
    the box has cells of the map, rounded up; the scale from pixels to cells is that of the width. As
    ``torchvision.ops.roi_align(..., output_size=1, aligned=True)``, for all boxes at once.

    Args:
        features: (B, C, h, w) floating.
        boxes: (B, 4), or (1, 4) for all, int64 y0, x0, y1, x1 in pixels, half open, clipped.
        size: (H, W) of the images.

    Returns:
        (B, C) in the dtype of ``features``; 0 for an empty box.
    """
    scale = features.shape[3] / size[1]
    rows = _axis_weights(boxes[:, 0], boxes[:, 2], features.shape[2], scale, size[0])
    columns = _axis_weights(boxes[:, 1], boxes[:, 3], features.shape[3], scale, size[1])
    weights = rows[:, :, None] * columns[:, None, :]
    return (features * weights[:, None].to(features.dtype)).sum((2, 3))


def _axis_weights(low: Tensor, high: Tensor, cells: int, scale: float, side: int) -> Tensor:
    """(R, cells) float32 share of each cell of an axis in the mean over the points of a box."""
    most = max(math.ceil(side * scale), 1)
    length = (high - low) * scale
    count = length.ceil().clamp(min=1)[:, None]
    number = torch.arange(most, device=low.device)
    # The centre of the first cell is at 0.
    point = (low * scale - 0.5)[:, None] + (number + 0.5) * length[:, None] / count
    counts = (number < count) & (point >= -1) & (point <= cells) & (length[:, None] > 0)
    distance = point.clamp(0, cells - 1)[:, :, None] - torch.arange(cells, device=low.device)
    return ((1 - distance.abs()).clamp(min=0) * counts[:, :, None]).sum(1) / count
