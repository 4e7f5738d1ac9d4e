"""Occlusion: how much of an image a model needs, and whether it can leave foreign patches aside.

The image is a grid of square cells; a share of them, drawn for each sample, is covered. Covers:

    mean     the mean colour of the data, zero after normalisation (PatchDrop, arXiv:2105.10497; OpenMixup)
    foreign  the same cells of another image; the label stays the own one (Patch Mixing, arXiv:2306.17848)

A model that is selective about patches loses less from foreign patches than from their number alone. With
`shuffle_patches` nothing is covered, but the cells change their places: how much a model goes by shape.

Differs from OpenMixup's tool, which draws once for a whole batch, so that its results depend on the size of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from mixaug.checks import IMAGE_DTYPES, check_probability, check_whole, shown
from mixaug.engine.evaluation.inputs import check_images

__all__ = ["area_under_curve", "cell_count", "dropped_cells", "occlude", "shuffle_patches"]


def cell_count(size: Sequence[int], cell: int) -> int:
    """Number of cells of an image.

    Args:
        size: (H, W).
        cell: side of a cell in pixels; must divide both.

    Raises:
        ValueError: it does not.
    """
    side = check_whole("occlusion", "cell", cell)
    if any(length % side for length in size):
        raise ValueError(f"occlusion expects cells whose side divides images of {tuple(size)}, got {shown(cell)}")
    return (size[0] // side) * (size[1] // side)


def dropped_cells(order: Tensor, share: float) -> Tensor:
    """The first cells of an order, as a mask.

    Args:
        order: (B, cells) int64, each row an order of 0 ... cells - 1 in which cells are covered.
        share: share of the cells, in [0, 1]; their number is rounded to the nearest whole one, half to even.

    Returns:
        (B, cells) bool, True where a cell is covered.
    """
    part = check_probability("dropped_cells", "share", share)
    if not isinstance(order, Tensor) or order.ndim != 2 or order.dtype != torch.int64:
        raise ValueError("dropped_cells expects order (B, cells) int64")
    count = round(order.shape[1] * part)
    return torch.zeros_like(order, dtype=torch.bool).scatter_(1, order[:, :count], True)


def occlude(images: Tensor, dropped: Tensor, cell: int, fill: Tensor | float = 0.0) -> Tensor:
    """Cover cells.

    Args:
        images: (B, C, H, W); normalised, where the fill is to be the mean colour.
        dropped: (B, cells) or (1, cells) bool, row by row of the grid.
        cell: side of a cell in pixels.
        fill: a number, or a tensor that broadcasts to the images: other images, a colour (C, 1, 1).

    Returns:
        Images like ``images``.

    Raises:
        TypeError, ValueError: other shapes, dtypes or values.
    """
    check_images("occlude", images, IMAGE_DTYPES)
    height, width = images.shape[2:]
    cells = cell_count((height, width), cell)
    if (
        dropped.dtype != torch.bool
        or dropped.ndim != 2
        or dropped.shape[1] != cells
        or len(dropped) not in (1, len(images))
    ):
        raise ValueError(
            f"occlude expects dropped ({len(images)}, {cells}) or (1, {cells}) bool, got "
            f"{tuple(dropped.shape)} {dropped.dtype}"
        )
    grid = dropped.unflatten(1, (1, height // cell, 1, width // cell, 1))
    covered = grid.expand(-1, -1, -1, cell, -1, cell).reshape(len(dropped), 1, height, width)
    value = fill if isinstance(fill, Tensor) else images.new_tensor(fill)
    return torch.where(covered, value, images)


def shuffle_patches(images: Tensor, order: Tensor, cell: int) -> Tensor:
    """Move the cells of each image.

    Args:
        images: (B, C, H, W).
        order: (B, cells) int64, each row an order of 0 ... cells - 1: place i, row by row, gets cell ``order[i]``.
        cell: side of a cell in pixels.

    Returns:
        Images like ``images`` with the same pixels.

    Raises:
        TypeError, ValueError: other shapes, dtypes or values.
    """
    check_images("shuffle_patches", images, IMAGE_DTYPES)
    height, width = images.shape[2:]
    cells = cell_count((height, width), cell)
    if tuple(order.shape) != (len(images), cells) or order.dtype != torch.int64:
        raise ValueError(
            f"shuffle_patches expects order ({len(images)}, {cells}) int64, got {tuple(order.shape)} {order.dtype}"
        )
    rows, columns = height // cell, width // cell
    patches = images.unflatten(3, (columns, cell)).unflatten(2, (rows, cell)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    moved = patches.gather(1, order[:, :, None, None, None].expand_as(patches))
    return moved.unflatten(1, (rows, columns)).permute(0, 3, 1, 4, 2, 5).reshape(images.shape)


def area_under_curve(shares: Sequence[float], values: Sequence[float]) -> float:
    """Mean height of a curve between the first and the last share, by the trapezoidal rule.

    Raises:
        ValueError: fewer than two points, another number of values, or shares that do not ascend.
    """
    if len(shares) < 2 or len(shares) != len(values) or any(a >= b for a, b in pairwise(shares)):
        raise ValueError(
            f"area_under_curve expects ascending shares and as many values, got {list(shares)}, {list(values)}"
        )
    strips = zip(pairwise(shares), pairwise(values), strict=True)
    area = sum((right - left) * (low + high) / 2 for (left, right), (low, high) in strips)
    return area / (shares[-1] - shares[0])
