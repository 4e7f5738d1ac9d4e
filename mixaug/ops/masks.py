"""Masks with an exact number of own cells, and grids of cells over an image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def ranks(scores: Tensor) -> Tensor:
    """Place of every score in its row when sorted downwards: 0 for the largest. (R, N) -> (R, N) int64."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


def top_mask(scores: Tensor, count: Tensor) -> Tensor:
    """True for the ``count`` largest scores of each row. (R, N), (R,) int64 -> (R, N) bool."""
    return ranks(scores) < count[:, None]


def cells_to_pixels(cells: Tensor, cell_size: Sequence[int], size: Sequence[int]) -> Tensor:
    """Enlarge every cell to ``cell_size`` pixels and cut the result to ``size``.

    Args:
        cells: (R, *grid), any dtype, with ``grid[d] >= ceil(size[d] / cell_size[d])``.
        cell_size: pixels of a cell along each axis.
        size: spatial size of the images.

    Returns:
        (R, *size) of the dtype of ``cells``.
    """
    for d, (side, pixels) in enumerate(zip(cell_size, size, strict=True)):
        cells = cells.index_select(1 + d, torch.arange(pixels, device=cells.device) // side)
    return cells
