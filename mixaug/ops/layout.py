"""Rows, memory formats and broadcasting: the plumbing under every mixing primitive."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Above this size a sample is copied faster by slices than by index arithmetic over the whole
# batch (measured on CPUs; tools/speed.py shows both sides of it).
SLICE_BYTES = 64 * 1024


def wide_dtype(device: torch.device) -> torch.dtype:
    """float64, in which box sides and counts are exact; float32 where the device has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def prefers_slices(images: Tensor) -> bool:
    """Whether one slice copy per sample beats index arithmetic over the whole batch.

    True only on a CPU, for samples of at least ``SLICE_BYTES``, where reading a box back costs
    nothing; never while tracing, and never when a gradient is recorded (one graph node per slice).
    """
    if images.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    if images.requires_grad and torch.is_grad_enabled():
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
