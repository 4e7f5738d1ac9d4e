"""Cells of a grid over images: their saliency, where they go, and how two images are put together from them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixaug.checks import check_images, check_out, check_partner, check_whole_numbers, shown
from mixaug.ops import fused
from mixaug.ops.blend import blend_mask
from mixaug.ops.layout import (
    SLICE_BYTES,
    carries_gradient,
    channels_last_format,
    check_blends,
    deliver,
    over_channels,
    reads_freely,
    single_precision,
    take_rows,
)
from mixaug.ops.masks import cells_to_pixels, grid_size, share_of_cells

Moves = tuple[Tensor, Tensor]


#: Share of cells that show both images from which on, on a CPU, blending all cells is faster than blending those alone.
MANY_BLENDED = 0.3


def pooled_saliency(saliency: Tensor, grid: int | Sequence[int]) -> Tensor:
    """Saliency per cell of a grid, each map with the sum 1.

    Args:
        saliency: (B, H, W) floating point; negative and non-finite values count as 0.
        grid: cells along each axis, which must divide H and W.

    Returns:
        (B, *grid) float32; even where a map has no saliency at all.

    Raises:
        ValueError: a shape or grid that does not fit.
    """
    rows, columns = (grid, grid) if isinstance(grid, int) else grid
    if saliency.ndim != 3 or saliency.shape[1] % rows or saliency.shape[2] % columns:
        raise ValueError(
            f"pooled_saliency expects maps (B, H, W) whose sides are multiples of {(rows, columns)}, "
            f"got {tuple(saliency.shape)}"
        )
    height, width = saliency.shape[1] // rows, saliency.shape[2] // columns
    maps = single_precision(saliency.detach()).float()
    cells = maps.unflatten(1, (rows, height)).sum(2).unflatten(2, (columns, width)).sum(3)
    if fused.serves(cells):
        shares: Tensor = torch.ops.mixaug.saliency_shares(cells)
        return shares
    cells = cells.nan_to_num(0.0, 0.0, 0.0).clamp(min=0)
    # The division by the largest comes first: neither tiny nor huge gradients may leave the range of float32.
    cells = cells / cells.amax((1, 2), keepdim=True).clamp(min=torch.finfo(cells.dtype).tiny)
    total = cells.sum((1, 2), keepdim=True)
    return torch.where(total > 0.5, cells / total.clamp(min=0.5), 1 / (rows * columns))


def _shares(sums: Tensor) -> Tensor:
    """Sums of saliency (B, rows, columns) float32 to the shares of :func:`pooled_saliency`, by one kernel."""
    from mixaug.ops.fused import puzzle_kernels

    with fused.current(sums.device):
        return puzzle_kernels.shares(sums.contiguous())


_shares_operator = torch.library.custom_op("mixaug::saliency_shares", _shares, mutates_args=())


@_shares_operator.register_fake
def _(sums: Tensor) -> Tensor:
    return torch.empty_like(sums)


def puzzlemix_blend(
    images: Tensor,
    partner: Tensor,
    blocks: Tensor,
    moves: Moves | None = None,
    *,
    out: Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    """Put the blocks together. Differentiable.

    Args:
        images: (B, ..., H, W); floating point or uint8, for boolean blocks of any dtype.
        partner: (B,) int64.
        blocks: (B, n, n) share of the own image per block, bool or floating point in [0, 1].
        moves: (B, t, u) int64 for the own images and for the partners, from :func:`puzzlemix_moves`; t and u are
            multiples of n. None moves nothing.
        out: tensor like ``images`` that receives the result and does not overlap it.
        inplace: write the result into ``images``.

    Returns:
        Mixed images, dtype and memory format of ``images``.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: a dtype that cannot be blended.
    """
    grid = tuple((blocks if moves is None else moves[0]).shape[1:])
    size = tuple(images.shape[-2:])
    if (
        blocks.ndim != 3
        or images.ndim < 3
        or any(side % count or count % block for side, count, block in zip(size, grid, blocks.shape[1:], strict=True))
    ):
        raise ValueError(
            f"puzzlemix_blend expects blocks and moves whose sides divide those of the images, got blocks "
            f"{tuple(blocks.shape)}, moves {grid}, images {tuple(images.shape)}"
        )
    copies = blocks.dtype == torch.bool
    if not copies:
        check_blends(images)
    # Three bodies give one result: on a CPU whole rows of cells are copied, elsewhere pixels are gathered, on a CUDA
    # device by one kernel where nothing asks for a gradient.
    if reads_freely(images, blocks) and (moves is not None or images[0].numel() >= SLICE_BYTES // 4):
        return deliver(_blend_rows(images, partner, blocks, moves, grid), images, out, inplace)
    if moves is not None and fused.serves(images, blocks) and _is_plain(images, copies):
        mixed = torch.ops.mixaug.puzzlemix_blend(images.detach(), partner, blocks, moves[0], moves[1])
        return deliver(mixed, images, out, inplace)
    share = cells_to_pixels(blocks, [side // n for side, n in zip(size, blocks.shape[1:], strict=True)], size)
    if moves is None:
        return blend_mask(images, partner, share, out=out, inplace=inplace)
    own = _gathered(images, moves[0])
    other = _gathered(take_rows(images, partner), moves[1])
    return deliver(_weighed(own, other, over_channels(share, images)), images, out, inplace)


def _is_plain(images: Tensor, copies: bool) -> bool:
    """Whether a kernel takes these images: a shape and dtype that it knows, and no derivative."""
    known = (torch.float32, torch.float16, torch.bfloat16, torch.uint8)
    takes = images.dtype in (*known, torch.float64, torch.int64, torch.int32) if copies else images.dtype in known
    return images.ndim == 4 and takes and not carries_gradient(images)


def _blend_by_kernel(images: Tensor, partner: Tensor, blocks: Tensor, own: Tensor, other: Tensor) -> Tensor:
    """:func:`puzzlemix_blend` of cells that move, by one kernel."""
    from mixaug.ops.fused import puzzle_kernels

    blocks = blocks if blocks.dtype == torch.bool else blocks.float()
    with fused.current(images.device):
        return puzzle_kernels.blend(images, partner, blocks.contiguous(), own.contiguous(), other.contiguous())


_blend_operator = torch.library.custom_op("mixaug::puzzlemix_blend", _blend_by_kernel, mutates_args=())


@_blend_operator.register_fake
def _(images: Tensor, partner: Tensor, blocks: Tensor, own: Tensor, other: Tensor) -> Tensor:
    return torch.empty_like(images)


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of ``number`` that is not above ``most``."""
    return max(d for d in range(1, min(number, most) + 1) if number % d == 0)


def _blend_rows(images: Tensor, partner: Tensor, blocks: Tensor, moves: Moves | None, grid: tuple[int, ...]) -> Tensor:
    """Copy rows of cells, and blend those that show both images."""
    last = channels_last_format(images)
    source = images.movedim(1, -1) if last is not None else images.contiguous()
    source = source.flatten(3) if last is not None else source.reshape(len(images), -1, *images.shape[-2:])
    # A row of a cell is memory in one piece: (sample, [channels], y, column of cells) of W / columns pixels.
    inner = source.shape[3] if last is not None else 1
    planes = 1 if last is not None else source.shape[1]
    height, width = images.shape[-2:]
    rows, columns = grid
    tall = height // rows
    memory = source.reshape(-1, width // columns * inner)
    share = blocks.numpy().astype(np.float32)
    share = share.repeat(rows // share.shape[1], 1).repeat(columns // share.shape[2], 2)

    def lines(sample: Any, move: Tensor | None) -> Any:
        """Row of ``memory`` for each (sample, cell): (B, rows, columns), of its first plane's first row."""
        cell = np.arange(rows * columns).reshape(rows, columns) if move is None else move.numpy()
        return sample[:, None, None] * (planes * height * columns) + cell // columns * (tall * columns) + cell % columns

    first = lines(np.arange(len(images)), None if moves is None else moves[0])
    second = lines(partner.numpy(), None if moves is None else moves[1])
    within = (np.arange(planes)[:, None] * height + np.arange(tall)) * columns
    values = _as_numpy(memory)

    def all_rows(cells: Any) -> Any:
        # Numbers of cells (B, rows, columns) become numbers of rows (B, planes, rows, tall, columns), in memory order.
        return cells[:, None, :, None, :] + within[:, None, :, None]

    def taken(rows_: Any) -> Tensor:
        return _as_torch(np.take(values, rows_.reshape(-1), axis=0, mode="clip"), images.dtype)

    both = (share > 0) & (share < 1)
    if both.mean() > MANY_BLENDED:
        weight = torch.from_numpy(share)[:, None, :, None, :, None]
        weight = weight.expand(len(images), planes, rows, tall, columns, values.shape[1] if width < 8 * columns else 1)
        pair = [taken(all_rows(cells)) for cells in (first, second)]
        mixed = _weighed(pair[0], pair[1], weight.reshape(len(pair[0]), -1))
    else:
        mixed = taken(all_rows(np.where(share >= 0.5, first, second)))
        if both.any():
            b, r, c = (index[:, None, None] for index in np.nonzero(both))
            where = (((b * planes + np.arange(planes)[:, None]) * rows + r) * tall + np.arange(tall)) * columns + c
            pair = [taken(cells[both][:, None, None] + within) for cells in (first, second)]
            weight = torch.from_numpy(np.broadcast_to(share[both][:, None, None], where.shape).reshape(-1, 1).copy())
            _as_numpy(mixed)[where.reshape(-1)] = _as_numpy(_weighed(pair[0], pair[1], weight))
    mixed = mixed.reshape(source.shape)
    if last is None:
        return mixed.reshape(images.shape)
    return mixed.reshape(images.movedim(1, -1).shape).movedim(-1, 1)


def _as_numpy(tensor: Tensor) -> Any:
    """The same memory; bfloat16, which NumPy lacks, as 16-bit integers."""
    tensor = tensor.detach()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _as_torch(array: Any, dtype: torch.dtype) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if dtype == torch.bfloat16 else tensor


def _gathered(images: Tensor, moves: Tensor) -> Tensor:
    """Images (B, ..., H, W) with cell ``moves[b, r, c]`` at the place r, c."""
    height, width = images.shape[-2:]
    rows, columns = moves.shape[1:]
    tall, wide = height // rows, width // columns
    y, x = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    cell = cells_to_pixels(moves, (tall, wide), (height, width))
    pixel = (cell // columns * tall + (y % tall)[:, None]) * width + cell % columns * wide + x % wide
    flat = images.reshape(images.shape[0], -1, height * width)
    moved = flat.gather(2, pixel.reshape(len(images), 1, -1).expand_as(flat)).reshape(images.shape)
    format_ = channels_last_format(images)
    return moved if format_ is None else moved.contiguous(memory_format=format_)


def _weighed(own: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """``share * own + (1 - share) * other``; half precision and uint8 in float32, uint8 rounded half to even."""
    if share.dtype == torch.bool:
        return torch.where(share, own, other)
    if own.dtype in (torch.float32, torch.float64):
        return torch.lerp(other, own, share.to(own.dtype))
    mixed = torch.lerp(other.float(), own.float(), share.float())
    return (mixed.round() if own.dtype == torch.uint8 else mixed).to(own.dtype)


def mix_cells(
    what: str,
    images: Tensor,
    partner: Tensor,
    cells: Tensor,
    cell_size: int | Sequence[int],
    out: Tensor | None,
    inplace: bool,
) -> tuple[Tensor, Tensor]:
    """:func:`patchmix` under the name of the caller, for all methods that mix in cells."""
    check_images(what, images, (1, 2, 3))
    check_partner(what, partner, images.shape[0])
    check_out(what, images, out, inplace)
    size = tuple(images.shape[2:])
    sides = patch_sides(what, cell_size, size)
    grid = grid_size(sides, size)
    if cells.dtype != torch.bool:
        raise TypeError(
            f"{what} expects patches of dtype torch.bool, True where the own image shows, got {cells.dtype}"
        )
    if cells.shape[:1] not in ((1,), (images.shape[0],)) or tuple(cells.shape[1:]) != (1, *grid):
        raise ValueError(
            f"{what} expects patches {(images.shape[0], 1, *grid)}, or one row for all, for images of size {size} and "
            f"patches of {sides} pixels, got {tuple(cells.shape)}"
        )
    cells = cells.squeeze(1)
    mixed = blend_mask(images, partner, cells_to_pixels(cells, sides, size), out=out, inplace=inplace)
    return mixed, share_of_cells(cells, sides, size).expand(images.shape[0])


def patch_size_option(
    what: str,
    patch_size: int | Sequence[int] | None,
    name: str = "patch_size",
    spatial: Collection[int] | None = None,
) -> int | tuple[int, ...] | None:
    """The option ``patch_size`` as plain numbers, or a ValueError.

    Args:
        what, name: the policy and its option, for messages.
        patch_size: pixels along every axis, or along each.
        spatial: how many spatial axes the policy's images may have; None takes any number.
    """
    if patch_size is None:
        return None
    sides = check_whole_numbers(what, name, patch_size)
    if not isinstance(patch_size, Sequence):
        return sides[0]
    if spatial is not None and len(sides) not in spatial:
        axes = " or ".join(map(str, spatial))
        raise ValueError(f"{what} expects {name} as one number or one for each of {axes} axes, got {shown(patch_size)}")
    return sides


def patch_sides(what: str, patch_size: int | Sequence[int], size: Sequence[int]) -> tuple[int, ...]:
    """Pixels of a patch along each spatial axis, or a ValueError."""
    checked = patch_size_option(what, patch_size)
    sides = (checked,) * len(size) if isinstance(checked, int) else tuple(checked or ())
    if len(sides) != len(size):
        raise ValueError(f"{what} got {len(sides)} patch sizes {patch_size!r} for images of size {tuple(size)}")
    return sides
