"""Masks with an exact number of own cells, grids of cells over an image, and Gaussian bumps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mixaug.ops.layout import wide_dtype


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


def cells_to_size(cells: Tensor, size: Sequence[int]) -> Tensor:
    """Stretch a grid of cells over an image, whether or not they divide it: pixel y shows row floor(y h / H).

    Args:
        cells: (R, *grid), any dtype.
        size: spatial size of the images.

    Returns:
        (R, *size) of the dtype of ``cells``.
    """
    grid = cells.shape[1:]
    # One copy where cells are of one size; a graph would hold for such sizes alone.
    if not torch.compiler.is_compiling() and all(pixels % side == 0 for pixels, side in zip(size, grid, strict=True)):
        for d, pixels in enumerate(size):
            cells = cells.unsqueeze(2 * d + 2)
            cells = cells.expand([pixels // grid[d] if axis == 2 * d + 2 else -1 for axis in range(cells.ndim)])
        return cells.reshape(-1, *size)
    for d, pixels in enumerate(size):
        lines = torch.arange(pixels, device=cells.device) * cells.shape[1 + d] // pixels
        cells = cells.index_select(1 + d, lines)
    return cells


def own_cells(lam: Tensor, total: int) -> Tensor:
    """Number of cells that are at least a share ``lam`` of ``total``: rounded up. (R,) -> (R,) int64."""
    exact = lam.to(wide_dtype(lam.device)) * total
    # lam = k / total, rounded to its dtype, must give k and not k + 1.
    return (exact - 4 * torch.finfo(lam.dtype).eps * total).ceil().clamp(min=0).long()


def random_cells(scores: Tensor, lam: Tensor) -> Tensor:
    """Choose own cells at random, an exact number of them: the smallest share that is not below ``lam``.

    Args:
        scores: (R, *grid) random numbers; the own cells are those of the largest scores.
        lam: (R,) or (1,) floating point in [0, 1], share of the own sample.

    Returns:
        (R, 1, *grid) bool, True where the own sample shows.

    Raises:
        ValueError: lam that does not fit scores.
    """
    if scores.ndim < 2 or not lam.is_floating_point() or lam.ndim != 1 or lam.shape[0] not in (1, scores.shape[0]):
        raise ValueError(
            f"random_cells expects scores (R, *grid) and lam (R,) or (1,) floating point, got {tuple(scores.shape)} "
            f"and {tuple(lam.shape)} {lam.dtype}"
        )
    flat = scores.flatten(1)
    return top_mask(flat, own_cells(lam, flat.shape[1])).reshape(-1, 1, *scores.shape[1:])


def grid_size(cell_size: Sequence[int], size: Sequence[int]) -> tuple[int, ...]:
    """Number of cells along each axis; the last of them may stick out of the image."""
    return tuple(-(-pixels // side) for side, pixels in zip(cell_size, size, strict=True))


def share_of_cells(cells: Tensor, cell_size: Sequence[int], size: Sequence[int]) -> Tensor:
    """Share of the pixels that the chosen cells cover, what sticks out of the image not counted.

    Args:
        cells: (R, *grid) bool.
        cell_size: pixels of a cell along each axis.
        size: spatial size of the images.

    Returns:
        (R,) float32, rounded once from the exact count.
    """
    pixels = cells.long()
    for d, (side, extent) in enumerate(zip(cell_size, size, strict=True)):
        inside = (extent - torch.arange(cells.shape[1 + d], device=cells.device) * side).clamp(0, side)
        pixels = pixels * inside.reshape([-1 if axis == d else 1 for axis in range(len(size))])
    return (pixels.flatten(1).sum(1).to(wide_dtype(cells.device)) / math.prod(size)).float()


def gaussian_lines(centers: Tensor, sigma: Tensor, size: Sequence[int]) -> tuple[list[Tensor], Tensor]:
    """Gaussian bumps of peak 1 over an image, one factor for each axis: the bump is their product.

    Args:
        centers: (R, D) floating point, in pixels.
        sigma: (R, D) floating point, positive, in pixels, one for each axis.
        size: the D spatial sizes.

    Returns:
        D float32 tensors (R, 1, 1, ..., side, ..., 1), which broadcast to (R, 1, *size), and (R,) means of the bumps,
        found without a reduction over all pixels.
    """
    rows, lines = centers.shape[0], []
    mean = torch.ones(rows, device=centers.device, dtype=centers.dtype)
    for d, side in enumerate(size):
        place = torch.arange(side, device=centers.device)
        line = torch.exp(-0.5 * ((place - centers[:, d, None]) / sigma[:, d, None]) ** 2)
        mean = mean * line.mean(1)
        lines.append(line.float().reshape(rows, *(side if axis == d else 1 for axis in range(-1, len(size)))))
    return lines, mean
