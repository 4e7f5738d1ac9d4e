"""Rows, memory formats and broadcasting: the plumbing under every mixing primitive."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

# Above this size a sample is copied faster by slices than by index arithmetic over the whole
# batch (measured on CPUs; tools/speed.py shows both sides of it).
SLICE_BYTES = 64 * 1024


def wide_dtype(device: torch.device) -> torch.dtype:
    """float64, in which box sides and counts are exact; float32 where the device has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def prefers_slices(images: Tensor, *others: Tensor) -> bool:
    """Whether one pass per sample beats index arithmetic over the whole batch.

    True only on a CPU, for samples of at least ``SLICE_BYTES``, where reading a partner or a box back
    costs nothing; never while tracing, and never when a gradient is recorded, with respect to ``images``
    or to ``others`` (one graph node per slice).
    """
    if images.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (images, *others)):
        return False
    return math.prod(images.shape[1:]) * images.element_size() >= SLICE_BYTES


def channels_last_format(tensor: Tensor) -> torch.memory_format | None:
    """The channels-last format ``tensor`` lies in, or None when it lies in another one."""
    if tensor.is_contiguous():
        return None
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    if tensor.ndim == 5 and tensor.is_contiguous(memory_format=torch.channels_last_3d):
        return torch.channels_last_3d
    return None


def take_rows(tensor: Tensor, rows: Tensor, *, out: Tensor | None = None) -> Tensor:
    """``tensor[rows]`` along the first axis, in the memory format of ``tensor``.

    Args:
        tensor: (B, ...), any dtype.
        rows: (N,) int64.
        out: (N, ...) like the result and in the same memory format; must not overlap ``tensor``.
    """
    if channels_last_format(tensor) is not None:
        # index_select returns a contiguous result: give it the axes in memory order.
        source = tensor.movedim(1, -1)
        if out is None:
            return source.index_select(0, rows).movedim(-1, 1)
        torch.index_select(source, 0, rows, out=out.movedim(1, -1))
        return out
    if out is not None:
        return torch.index_select(tensor, 0, rows, out=out)
    return tensor.index_select(0, rows)


def column(values: Tensor, like: Tensor) -> Tensor:
    """(R,) per-sample values shaped (R, 1, ..., 1) so that they broadcast over ``like``."""
    return values.reshape(-1, *([1] * (like.ndim - 1)))


def over_channels(mask: Tensor, like: Tensor) -> Tensor:
    """(R, *size) mask with the axes between batch and space that ``like`` has: (R, 1, ..., *size)."""
    spatial = mask.ndim - 1
    return mask.reshape(mask.shape[0], *([1] * (like.ndim - 1 - spatial)), *mask.shape[1:])


def deliver(result: Tensor, images: Tensor, out: Tensor | None, inplace: bool) -> Tensor:
    """Hand ``result`` over in the place the caller asked for."""
    if inplace:
        return images.copy_(result)
    if out is not None:
        return out.copy_(result)
    return result


def choose(mask: Tensor, yes: Tensor, no: Tensor, *, out: Tensor | None = None) -> Tensor:
    """``torch.where(mask, yes, no)`` for values of one dtype, bit for bit.

    On a CPU, where ``torch.where`` takes one value at a time, the same by exclusive-or on the bits, which is
    vectorised and several times faster; NaN and infinities stay where they are.

    Args:
        mask: bool, broadcasts over ``yes``.
        yes, no: tensors of one shape and dtype.
        out: receives the result; may be ``yes`` or ``no`` itself.
    """
    recorded = torch.is_grad_enabled() and (yes.requires_grad or no.requires_grad)
    if yes.device.type != "cpu" or recorded or torch.compiler.is_compiling():
        return torch.where(mask, yes, no) if out is None else torch.where(mask, yes, no, out=out)
    integer = _INTEGERS[yes.element_size()]
    own, other = yes.view(integer), no.view(integer)
    bits = mask.to(integer).neg_()
    if out is no:
        other.bitwise_xor_(torch.bitwise_xor(own, other).bitwise_and_(bits))
        return no
    if out is None:
        return torch.bitwise_xor(own, other).bitwise_and_(bits).bitwise_xor_(other).view(yes.dtype)
    target = out.view(integer)
    torch.bitwise_xor(own, other, out=target)
    target.bitwise_and_(bits).bitwise_xor_(other)
    return out


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def each_row(
    images: Tensor,
    partner: Tensor,
    write: Callable[[int, Tensor, Tensor, Tensor], object],
    out: Tensor | None,
    inplace: bool,
) -> Tensor:
    """Mix sample by sample: the CPU body for large images, without a second tensor of the batch's size.

    Args:
        images: (B, ...) on a CPU.
        partner: (B,) int64.
        write: called with (row, own, other, target); ``target`` is ``own`` itself when ``inplace``.
        out: tensor like ``images`` that receives the result and does not overlap it.
        inplace: write the result into ``images``.
    """
    rows = partner.tolist()
    if inplace:
        for row, other in _undisturbed(images, rows):
            write(row, images[row], other, images[row])
        return images
    target = torch.empty_like(images) if out is None else out
    for row, other_row in enumerate(rows):
        write(row, images[row], images[other_row], target[row])
    return target


def _undisturbed(images: Tensor, rows: list[int]) -> Iterator[tuple[int, Tensor]]:
    """Rows and their partners in an order in which every partner still holds what it held at first."""
    if sorted(rows) != list(range(len(rows))):
        others = take_rows(images, torch.tensor(rows))
        for row in range(len(rows)):
            yield row, others[row]
        return
    # Along a cycle of the permutation a row's partner is overwritten one step later, so that the
    # first row of the cycle is all that has to be kept aside.
    waiting = set(range(len(rows)))
    while waiting:
        first = row = min(waiting)
        kept = images[first].clone()
        while rows[row] != first:
            waiting.remove(row)
            yield row, images[rows[row]]
            row = rows[row]
        waiting.remove(row)
        yield row, kept
