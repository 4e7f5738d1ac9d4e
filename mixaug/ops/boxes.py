"""Boxes: half open, in pixels, all lower corners first: y0, x0, y1, x1 for images."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mixaug.ops.layout import (
    deliver,
    each_row,
    over_channels,
    pick_rows,
    prefers_slices,
    reads_freely,
    take_rows,
    wide_dtype,
)


def shares_of_sides(share: Tensor, size: Sequence[int]) -> Tensor:
    """(R, D) int64 side lengths, ``share`` (R,) of each of the D spatial sizes, rounded down."""
    if _equal(size):
        return (share * size[0]).long()[:, None].expand(-1, len(size))
    return torch.stack([(share * side).long() for side in size], dim=1)


def centred_boxes(centers: Tensor, sides: Tensor, size: Sequence[int]) -> Tensor:
    """Boxes of half sides ``sides // 2`` around ``centers``, clipped to the image.

    Args:
        centers: (R, D) int64 pixel positions.
        sides: (R, D) int64 side lengths in pixels.
        size: the D spatial sizes of the images.

    Returns:
        (R, 2 * D) int64 boxes.
    """
    half = sides // 2
    corners = torch.cat([centers - half, centers + half], 1)
    if _equal(size):
        return corners.clamp_(0, size[0])
    # The bound of each axis is a plain number: a tensor made of `size` would cross to the device each call.
    return torch.stack([corners[:, d].clamp(0, side) for d, side in enumerate((*size, *size))], 1)


def _equal(size: Sequence[int]) -> bool:
    """Whether all axes can be computed in one operation; of small tensors the number of operations is the cost."""
    # The sizes are compared, not put into a set: a hash would tie a compiled graph to one size.
    return all(side == size[0] for side in size)


def box_mask(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """(R, *size) bool, True inside the boxes."""
    dims = len(size)
    if not size:
        raise ValueError("box_mask needs at least one spatial size")
    if _equal(size):
        place = torch.arange(size[0], device=boxes.device)
        lines = [*((place >= boxes[:, :dims, None]) & (place < boxes[:, dims:, None])).unbind(1)]
    else:
        places = [torch.arange(side, device=boxes.device) for side in size]
        lines = [(p >= boxes[:, d, None]) & (p < boxes[:, dims + d, None]) for d, p in enumerate(places)]
    shaped = [
        line.reshape(line.shape[0], *([1] * d), line.shape[1], *([1] * (dims - 1 - d))) for d, line in enumerate(lines)
    ]
    return functools.reduce(operator.and_, shaped)


def area_kept(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """(R,) float32 share of the pixels outside the boxes, rounded once from the exact count."""
    dims = len(size)
    pasted = (boxes[:, dims:] - boxes[:, :dims]).clamp(min=0).prod(1)
    total = math.prod(size)
    if boxes.device.type == "mps":
        return (total - pasted).float() / total
    return ((total - pasted).double() / total).float()


def paste(
    images: Tensor,
    partner: Tensor,
    boxes: Tensor,
    size: Sequence[int],
    *,
    out: Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    """Copy each partner's box into each sample, at the same place.

    Args:
        images: (B, ..., *size), any dtype.
        partner: (B,) int64.
        boxes: (B, 2 * D) or, one for all, (1, 2 * D) int64, clipped.
        size: the D spatial sizes, the last axes of ``images``.
        out: tensor like ``images`` that receives the result and does not overlap it.
        inplace: write the result into ``images``.
    """
    # Two bodies give one result: on a CPU slices for large images and for one box for all, index arithmetic elsewhere.
    if prefers_slices(images, boxes, partner) or (boxes.shape[0] == 1 and reads_freely(images, boxes, partner)):
        return _paste_slices(images, partner, boxes, len(size), out, inplace)
    mask = over_channels(box_mask(boxes, size), images)
    if reads_freely(images, mask, partner):
        return deliver(pick_rows(mask, images, partner, own=False, out=out), images, None, inplace)
    if out is not None and not inplace:
        take_rows(images, partner, out=out)
        return torch.where(mask, out, images, out=out)
    return deliver(torch.where(mask, take_rows(images, partner), images), images, None, inplace)


def _paste_slices(
    images: Tensor, partner: Tensor, boxes: Tensor, dims: int, out: Tensor | None, inplace: bool
) -> Tensor:
    corners = boxes.tolist()
    windows: list[Any] = [(..., *(slice(c[d], c[dims + d]) for d in range(dims))) for c in corners]
    if len(windows) == 1:
        window = windows[0]
        patches = images[window].index_select(0, partner)  # small: only what is really pasted
        target = images if inplace else (torch.clone(images) if out is None else out.copy_(images))
        target[window] = patches
        return target
    if inplace:

        def write(row: int, own: Tensor, other: Tensor, target: Tensor) -> None:
            target[windows[row]] = other[windows[row]]

        return each_row(images, partner, write, None, True)
    rows = partner.tolist()
    target = torch.clone(images) if out is None else out.copy_(images)
    for i, (j, window) in enumerate(zip(rows, windows, strict=True)):
        target[i][window] = images[j][window]
    return target


def cutmix_boxes(lam: Tensor, centers: Tensor, size: Sequence[int]) -> Tensor:
    """Boxes of area about 1 - lam around given centres, clipped to the image.

    Args:
        lam: (B,) floating point in [0, 1]; float64 gives the authors' integers exactly.
        centers: (B, 2) int64 pixels y, x (one column for each spatial axis).
        size: (H, W), or as many spatial sizes as there are.

    Returns:
        (B, 4) int64 boxes y0, x0, y1, x1, half open. Sides are even before clipping, and a side below
        2 pixels gives an empty box, as in the authors' code.

    Raises:
        ValueError: centers that do not fit lam and size.
    """
    if centers.ndim != 2 or centers.shape != (lam.shape[0], len(size)) or centers.is_floating_point():
        raise ValueError(
            f"cutmix_boxes expects centers ({lam.shape[0]}, {len(size)}) int64 for lam {tuple(lam.shape)} and "
            f"size {tuple(size)}, got {tuple(centers.shape)} {centers.dtype}"
        )
    share = 1 - lam.to(wide_dtype(lam.device))
    root = share.sqrt() if len(size) == 2 else share ** (1 / len(size))
    return centred_boxes(centers, shares_of_sides(root, size), size)


def sum_inside(maps: Tensor, boxes: Tensor) -> Tensor:
    """(B,) sum of each map (B, H, W) inside its box, (B, 4) or (1, 4) for all."""
    if boxes.shape[0] == 1 and reads_freely(maps):
        y0, x0, y1, x1 = boxes[0].tolist()
        return maps[:, y0:y1, x0:x1].sum((1, 2))
    # The sums are plain ones, not from an integral image: a running sum of floats is not reproducible on a GPU.
    return torch.where(box_mask(boxes, maps.shape[1:]), maps, torch.zeros_like(maps)).sum((1, 2))
