"""Boxes of resized pixels: what methods share that paste a part of the partner at another size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mixaug.ops.boxes import box_mask
from mixaug.ops.layout import channels_last_format, each_row, over_channels, pick

__all__ = ["cast_pixels", "paste_patches", "paste_sampled"]

#: Pixels to read along one axis: the lower and upper pixel (R, N) int64 that each pixel is read from, and the weight of
#: the upper one (R, N) floating point; None reads the lower one alone.
Sources = tuple[Tensor, Tensor, Tensor | None]


def paste_sampled(
    images: Tensor, partner: Tensor, boxes: Tensor, size: Sequence[int], sources: Callable[[int], Sources]
) -> Tensor:
    """Partners read at other places, inside the boxes; the own pixels outside. Index arithmetic over the whole batch.

    Args:
        images: (B, ..., *size).
        partner: (B,) int64.
        boxes: (R, 2 * D) int64, half open.
        size: spatial size.
        sources: called with every spatial axis, 0 to D - 1.

    Returns:
        A new tensor like ``images``.
    """
    moved = images.ndim == len(size) + 2 and channels_last_format(images) is not None
    # The axes are in memory order, so that lines of pixels are fetched as they lie.
    values = images.movedim(1, -1) if moved else images.contiguous()
    first = 1 if moved else images.ndim - len(size)
    for d in range(len(size)):
        lower, upper, fraction = sources(d)
        # One axis is resized after the other; the first pass fetches the partners as well.
        rows = partner if d == 0 else None
        near = _take(values, lower, first + d, rows)
        if fraction is None:
            values = near
        else:
            far = _take(values, upper, first + d, rows)
            values = near.to(fraction.dtype).lerp(far.to(fraction.dtype), _along(fraction, first + d, images.ndim))
    values = cast_pixels(values.movedim(-1, 1) if moved else values, images.dtype)
    return pick(over_channels(box_mask(boxes, size), images), values, images)


def paste_patches(
    images: Tensor,
    partner: Tensor,
    windows: Sequence[tuple[Any, ...]],
    patch_of: Callable[[Tensor, int], Tensor | None],
    out: Tensor | None,
    inplace: bool,
) -> Tensor:
    """The same by slices, on a CPU.

    Args:
        images: (B, ..., *size).
        partner: (B,) int64.
        windows: slices of the box, one for the batch or one for each sample.
        patch_of: called with images (..., *size) and the number of their window: what goes there, or None for nothing.
        out, inplace: as everywhere.
    """
    if len(windows) == 1:
        # Every image is resized once; the small results are then handed round.
        patches = patch_of(images, 0)
        if patches is not None:
            patches = patches.index_select(0, partner)
        target = images if inplace else torch.clone(images) if out is None else out.copy_(images)
        if patches is not None:
            target[windows[0]] = patches
        return target

    def write(row: int, own: Tensor, other: Tensor, target: Tensor) -> None:
        if target is not own and target.data_ptr() != own.data_ptr():
            target.copy_(own)
        patch = patch_of(other, row)
        if patch is not None:
            target[windows[row]] = patch

    return each_row(images, partner, write, out, inplace)


def cast_pixels(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Computed pixels in the images' dtype, rounded for uint8."""
    return values if values.dtype == dtype else (values.round() if dtype == torch.uint8 else values).to(dtype)


def _take(values: Tensor, index: Tensor, axis: int, rows: Tensor | None) -> Tensor:
    """``values`` at the places ``index``, (R, N) with N the side of the axis, of the samples ``rows`` (B,)."""
    if rows is not None:
        batch, side = values.shape[0], values.shape[axis]
        between = math.prod(values.shape[1:axis])
        planes = rows[:, None] * between + torch.arange(between, device=rows.device)
        lines = planes[:, :, None] * side + index[:, None, :]
        return values.reshape(batch * between * side, -1).index_select(0, lines.flatten()).reshape(values.shape)
    return values.gather(axis, _along(index, axis, values.ndim).expand(values.shape))


def _along(values: Tensor, axis: int, ndim: int) -> Tensor:
    """(R, N) values shaped (R, 1, ..., N, ..., 1) with N at ``axis``."""
    shape = [values.shape[0]] + [1] * (ndim - 1)
    shape[axis] = values.shape[1]
    return values.reshape(shape)
