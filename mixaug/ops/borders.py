"""How much the pixels differ that meet at the borders of blocks."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mixaug.ops.cells import largest_divisor
from mixaug.ops.layout import single_precision


def per_channel_column(values: Sequence[float], images: Tensor) -> Tensor:
    """(C, 1, 1) float32 of one number per channel or one for all, without a copy from the host."""
    many = list(values) * images.shape[1] if len(values) == 1 else list(values)
    ones = torch.ones(1, 1, 1, device=images.device)
    return torch.cat([value * ones for value in many])


def _pixel_scales(images: Tensor, std: float | Sequence[float] | None) -> Tensor:
    """(C, 1, 1) or (1, 1, 1) factors that bring differences of images to those of pixels in [0, 1]."""
    if images.dtype == torch.uint8:
        return torch.full((1, 1, 1), 1 / 255, device=images.device)
    if std is not None:
        return per_channel_column((std,) if isinstance(std, (int, float)) else std, images)
    low, high = images.detach().aminmax()
    extent = single_precision(high) - single_precision(low)
    # A range that is not finite measures nothing: there are no border terms then.
    return torch.where(extent.isfinite() & (extent > 0), 1 / extent, 0.0).float().reshape(1, 1, 1)


def cell_scales(images: Tensor, cell: Sequence[int], std: float | Sequence[float] | None) -> Tensor:
    """(C, 1, 1) or (1, 1, 1) factors of the sums over a cell's pixels that give their mean in units of [0, 1]."""
    return _pixel_scales(images, std) / math.prod(cell)


def border_cells(
    images: Tensor, blocks: int, neigh_size: int, std: float | Sequence[float] | None
) -> list[tuple[Tensor, Tensor]]:
    """Means of cells at both sides of every border, in units of pixels in [0, 1].

    For borders between a block and the one below, then to the right: the cells before and after, (B, C, n - 1, n, k)
    each, k cells along a block's side.
    """
    sides = [side // blocks for side in images.shape[2:]]
    cell = [largest_divisor(side, neigh_size) for side in sides]
    scales = cell_scales(images, cell, std)
    along = [side // pixels for side, pixels in zip(sides, cell, strict=True)]
    if all(count <= 2 for count in along):
        # Every cell lies at a border, so all cells are made once.
        means = _cell_sums(images, 2, cell[0])
        means = _cell_sums(means, 3, cell[1]) * scales
        rows, columns = means.unflatten(2, (blocks, along[0])), means.unflatten(3, (blocks, along[1]))
        down = rows[:, :, :-1, -1], rows[:, :, 1:, 0]
        right = columns[:, :, :, :-1, -1].mT, columns[:, :, :, 1:, 0].mT
    else:
        rows, columns = images.unflatten(2, (blocks, sides[0])), images.unflatten(3, (blocks, sides[1]))
        strips = rows[:, :, :-1, -cell[0] :], rows[:, :, 1:, : cell[0]]
        down = _pair(_cell_sums(_sum_over(strip, 3), 3, cell[1]) * scales for strip in strips)
        strips = columns[:, :, :, :-1, -cell[1] :], columns[:, :, :, 1:, : cell[1]]
        right = _pair((_cell_sums(_sum_over(strip, 4), 2, cell[0]) * scales).mT for strip in strips)
    return [
        (before.unflatten(3, (blocks, count)), after.unflatten(3, (blocks, count)))
        for (before, after), count in ((down, along[1]), (right, along[0]))
    ]


def _pair(tensors: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    first, second = tensors
    return first, second


def _cell_sums(images: Tensor, axis: int, pixels: int) -> Tensor:
    """Sums over cells of some pixels along an axis."""
    return _sum_over(images.unflatten(axis, (-1, pixels)), axis + 1)


def _sum_over(values: Tensor, axis: int) -> Tensor:
    """Sum over a short axis in float32: as a few additions of large tensors, since short reductions are slow."""
    return functools.reduce(torch.add, [part.float() for part in values.unbind(axis)])


def border_difference(before: Tensor, after: Tensor) -> Tensor:
    """(B, n - 1, n) mean difference over channels and cells."""
    total = _sum_over((before - after).abs_(), 1) / before.shape[1]
    return total.squeeze(3) if total.shape[3] == 1 else total.mean(3)
