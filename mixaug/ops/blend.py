"""Weighted means of every sample and its partner: one weight per sample, or one per pixel."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mixaug.ops import fused
from mixaug.ops.layout import (
    carries_gradient,
    channels_last_format,
    check_blends,
    column,
    deliver,
    each_row,
    is_transformed,
    laid_out_as,
    over_channels,
    pick_rows,
    picker,
    prefers_slices,
    reads_freely,
    take_rows,
)


def blend(images: Tensor, partner: Tensor, lam: Tensor, *, out: Tensor | None = None, inplace: bool = False) -> Tensor:
    """``lam * images + (1 - lam) * images[partner]``.

    Half precision and uint8 are computed in float32; uint8 is rounded half to even.

    Args:
        images: (B, ...) floating point or uint8.
        partner: (B,) int64.
        lam: (B,) or (1,) share of the own sample.
        out: tensor like ``images`` that receives the result and does not overlap it.
        inplace: write the result into ``images``.
    """
    return _lerp(images, partner, column(lam, images), out, inplace)


def blend_mask(
    images: Tensor, partner: Tensor, mask: Tensor, *, out: Tensor | None = None, inplace: bool = False
) -> Tensor:
    """``mask * images + (1 - mask) * images[partner]`` with one weight per pixel.

    A boolean mask copies pixels, so any dtype passes and a NaN of a hidden pixel stays hidden.

    Args:
        images: (B, ..., *size), any dtype for a boolean mask, else floating point or uint8.
        partner: (B,) int64.
        mask: (B, *size) or (1, *size) bool or float share of the own image.
        out: tensor like ``images`` that receives the result and does not overlap it.
        inplace: write the result into ``images``.
    """
    if mask.dtype != torch.bool:
        return _lerp(images, partner, over_channels(mask, images), out, inplace)
    keep = over_channels(mask, images)
    if prefers_slices(images, mask, partner):
        return each_row(images, partner, _row_picker(keep, images, inplace), out, inplace)
    if reads_freely(images, mask, partner):
        return deliver(pick_rows(keep, images, partner, own=True, out=out), images, None, inplace)
    if out is None:
        return deliver(torch.where(keep, images, take_rows(images, partner)), images, None, inplace)
    take_rows(images, partner, out=out)
    return torch.where(keep, images, out, out=out)


def _lerp(images: Tensor, partner: Tensor, weight: Tensor, out: Tensor | None, inplace: bool) -> Tensor:
    check_blends(images)
    exact = images.dtype in (torch.float32, torch.float64)
    weight = weight.to(images.dtype if exact else torch.float32)
    if prefers_slices(images, weight, partner):
        if len(weight) == 1 and weight.numel() > 1:
            weight = laid_out_as(weight[0], images[0])[None]
        return each_row(images, partner, _row_writer(weight, exact), out, inplace)
    if not exact and weight.numel() == 1 and images.is_floating_point() and reads_freely(images, weight, partner):
        # torch's kernel for a plain number computes half precision in float32 by itself.
        return deliver(take_rows(images, partner, out=out).lerp_(images, weight.item()), images, None, inplace)
    if exact:
        if inplace:
            return torch.lerp(take_rows(images, partner), images, weight, out=images)
        if out is None and is_transformed(weight):
            return torch.lerp(take_rows(images, partner), images, weight)
        # The gathered partners are the result's own memory: one allocation, no second temporary.
        return take_rows(images, partner, out=out).lerp_(images, weight)
    if _is_plain(images, weight) and fused.serves(images, partner, weight):
        return deliver(torch.ops.mixaug.lerp(images.detach(), partner, weight.detach()), images, out, inplace)
    result = take_rows(images, partner).float().lerp_(images.float(), weight)
    if images.dtype == torch.uint8:
        result.round_()
    return deliver(result.to(images.dtype), images, out, inplace)


def _is_plain(images: Tensor, weight: Tensor) -> bool:
    """Whether the kernel takes these: memory without gaps, weights in its order, and no derivative."""
    last = channels_last_format(images) is not None
    in_order = weight.numel() == len(weight) or (weight.shape[1] == 1 and weight.shape[2:] == images.shape[2:])
    # A compiler makes one kernel of the torch operators as well, and what stands around them.
    free = not (torch.compiler.is_compiling() or carries_gradient(images) or carries_gradient(weight))
    return free and in_order and images.numel() > 0 and (last or images.is_contiguous())


def _lerp_by_kernel(images: Tensor, partner: Tensor, weight: Tensor) -> Tensor:
    """The means of half precision or uint8, by one kernel that reads both samples and writes the mixture."""
    from mixaug.ops.fused import pixels_kernels

    with fused.current(images.device):
        return pixels_kernels.lerp(images, partner.contiguous(), weight.contiguous())


_lerp_operator = torch.library.custom_op("mixaug::lerp", _lerp_by_kernel, mutates_args=())


@_lerp_operator.register_fake
def _(images: Tensor, partner: Tensor, weight: Tensor) -> Tensor:
    return torch.empty_like(images)


def _row_picker(keep: Tensor, images: Tensor, inplace: bool) -> Callable[[int, Tensor, Tensor, Tensor], None]:
    shared = picker(laid_out_as(keep[0], images[0]), images[0]) if len(keep) == 1 else None
    aside = torch.empty_like(images[0]) if inplace else None

    def write(row: int, own: Tensor, other: Tensor, target: Tensor) -> None:
        mask = keep[row % len(keep)]
        choose = picker(mask, own) if shared is None else shared
        result = target if aside is None else aside
        if not choose(own, other, result):
            torch.where(mask, own, other, out=result)
        if aside is not None:
            target.copy_(aside)

    return write


def _row_writer(weight: Tensor, exact: bool) -> Callable[[int, Tensor, Tensor, Tensor], None]:
    # A plain number instead of a one-element tensor takes torch's scalar kernel, as above.
    numbers = weight.flatten().tolist() if weight.numel() == len(weight) else None

    def write(row: int, own: Tensor, other: Tensor, target: Tensor) -> None:
        share = weight[row % len(weight)] if numbers is None else numbers[row % len(numbers)]
        if exact or (numbers is not None and target.is_floating_point()):
            torch.lerp(other, own, share, out=target)
            return
        mixed = other.float().lerp_(own.float(), share)
        target.copy_(mixed.round_() if target.dtype == torch.uint8 else mixed)

    return write
