"""Rows, memory formats and broadcasting: the plumbing under every mixing primitive."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

# Above this size a sample is copied faster by slices than by index arithmetic over the whole
# batch (measured on CPUs; tools/speed.py shows both sides of it).
SLICE_BYTES = 64 * 1024


def wide_dtype(device: torch.device) -> torch.dtype:
    """float64, in which box sides and counts are exact; float32 where the device has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def single_precision(tensor: Tensor) -> Tensor:
    """The tensor in float32 where it is narrower, for sums and softmaxes that half precision cannot hold."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def check_blends(images: Tensor) -> None:
    """Raise unless a weighted mean of these values has a meaning: floating point, or the uint8 of an image.

    Raises:
        TypeError: integers, as in a label map, bool or complex values.
    """
    if images.is_floating_point() or images.dtype == torch.uint8:
        return
    if images.dtype == torch.bool:
        kind, ways = "True and False", "MixedBatch.extent gives the union of masks of valid positions; "
    elif images.is_complex():
        kind, ways = "complex values", "pass torch.view_as_real(tensor); "
    else:
        kind, ways = "integers", "for a label map pass num_classes to MixedBatch.apply to get per-pixel class shares; "
    raise TypeError(f"a blend of {kind} has no meaning; {ways}for an image pass a float dtype")


def is_transformed(tensor: Tensor) -> bool:
    """Whether ``torch.func`` stands behind a tensor: it may be many, or carry a derivative."""
    return not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def carries_gradient(tensor: Tensor) -> bool:
    """Whether what is computed of a tensor now has to be differentiable, forwards or backwards."""
    return (torch.is_grad_enabled() and tensor.requires_grad) or forward_ad._current_level >= 0


def reads_freely(*tensors: Tensor) -> bool:
    """Whether values may steer the work: on a CPU, neither traced nor transformed, and with no gradient recorded.

    A gradient through one slice per sample would mean one graph node for each.
    """
    if tensors[0].device.type != "cpu" or torch.compiler.is_compiling() or forward_ad._current_level >= 0:
        return False
    if torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack() > 0:
        return False
    if any(isinstance(tensor, FakeTensor) or is_transformed(tensor) for tensor in tensors):
        return False
    return not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))


def prefers_slices(images: Tensor, *others: Tensor) -> bool:
    """Whether one pass per sample beats index arithmetic over the whole batch.

    True only where partners and boxes can be read for free (:func:`reads_freely`, for ``images`` and the
    ``others`` that enter the mix) and samples have at least ``SLICE_BYTES``.
    """
    large = math.prod(images.shape[1:]) * images.element_size() >= SLICE_BYTES
    return large and len(images) > 0 and reads_freely(images, *others)


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


def laid_out_as(mask: Tensor, like: Tensor) -> Tensor:
    """A mask for all samples, (1, *size) with or without channels, written out in the order in which ``like`` lies.

    Where channels lie side by side, a mask without them is read three values at a time.

    Args:
        mask: broadcasts over ``like``; rows of it serve many samples.
        like: (C, *size), a sample.
    """
    if like.stride(-1) == 1:
        return mask
    return torch.empty_like(like, dtype=mask.dtype).copy_(mask)


#: Integers as wide as a value, whose bits are copied where a kernel for the dtype would go value by value.
WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

#: A function of ``yes``, ``no`` and ``out``, which may be one of them; it returns whether ``out`` holds the result.
Picker = Callable[[Tensor, Tensor, Tensor], bool]


def pick(mask: Tensor, yes: Tensor, no: Tensor, out: Tensor | None = None) -> Tensor:
    """``torch.where(mask, yes, no)``, up to the sign of zero; on a CPU by kernels that take many values at a time.

    Differentiable without ``out``.

    Args:
        mask: bool, broadcasts over ``yes``.
        yes, no: tensors of one shape and dtype, any dtype.
        out: tensor like them that receives the result and does not overlap them.
    """
    if not reads_freely(yes, no, mask):
        return torch.where(mask, yes, no) if out is None else torch.where(mask, yes, no, out=out)
    result = torch.empty_like(yes) if out is None else out
    if not picker(mask, yes)(yes, no, result):
        torch.where(mask, yes, no, out=result)
    return result


def pick_rows(mask: Tensor, images: Tensor, partner: Tensor, *, own: bool, out: Tensor | None = None) -> Tensor:
    """:func:`pick` of every sample and its partner, without a second tensor of the batch's size.

    Args:
        mask: bool, broadcasts over ``images``.
        images: (B, ...), any dtype, with values that may be read (:func:`reads_freely`).
        partner: (B,) int64.
        own: True shows the sample itself where the mask is True, False the partner.
        out: tensor like ``images`` that receives the result and does not overlap it.
    """
    others = take_rows(images, partner, out=out)
    yes, no = (images, others) if own else (others, images)
    if not picker(mask, images)(yes, no, others):
        others.copy_(take_rows(images, partner))
        torch.where(mask, yes, no, out=others)
    return others


def picker(mask: Tensor, like: Tensor) -> Picker:
    """The body of :func:`pick` on a CPU, with the mask made ready once.

    Args:
        mask: bool, broadcasts over what is picked from.
        like: that, or a row of it.
    """
    # torch.where goes value by value on a CPU and guesses at each: up to ten times the cost on a ragged mask.
    if like.is_complex() or like.is_neg():
        return lambda yes, no, out: torch.where(mask, yes, no, out=out) is out
    # Bytes are converted several times faster than bool; of a mask made elsewhere a True may be any of 255.
    ones = mask.view(torch.uint8).clamp(max=1)
    if like.dtype in (torch.float32, torch.float64) and (like.stride(-1) == 1 or mask.stride() == like.stride()):
        share = ones.to(like.dtype)

        def blended(yes: Tensor, no: Tensor, out: Tensor) -> bool:
            # Weights of 0 and 1 copy finite values; what is not finite would spoil the pixel that it is hidden at.
            return math.isfinite(torch.lerp(no, yes, share, out=out).sum())

        return blended
    word = WORDS[like.element_size()]
    bits = ones.view(torch.int8).neg().to(word)

    def merged(yes: Tensor, no: Tensor, out: Tensor) -> bool:
        # The tensor that is not overwritten comes twice: at first against the other, at last to give its own bits back.
        kept, use = (yes, ~bits) if out is no else (no, bits)
        target, kept = out.view(word), kept.view(word)
        torch.bitwise_xor(yes.view(word), no.view(word), out=target)
        target.bitwise_and_(use).bitwise_xor_(kept)
        return True

    return merged


def deliver(result: Tensor, images: Tensor, out: Tensor | None, inplace: bool) -> Tensor:
    """Hand ``result`` over in the place the caller asked for."""
    if inplace:
        return images.copy_(result)
    if out is not None:
        return out.copy_(result)
    return result


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
