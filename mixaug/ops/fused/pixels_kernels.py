"""Triton bodies of what is done to every value of a batch once: read it, compute in float32, round it, write it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

VALUES = 1024


@triton.jit
def normalize_kernel(
    images, rows, corners, flips, offset, scale, out, by_sample, by_channel, by_row, by_column, by_offset, by_scale,
    padding, channels, height, width, last: tl.constexpr, picks: tl.constexpr, crops: tl.constexpr,
    reflects: tl.constexpr, mirrors: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """``(image - offset) * scale`` of windows, written in the order in which the result lies."""
    sample = tl.program_id(0).to(tl.int64)
    index = tl.program_id(1) * block + tl.arange(0, block)
    there = index < channels * height * width
    if last:
        channel, pixel = index % channels, index // channels
    else:
        channel, pixel = index // (height * width), index % (height * width)
    y, x = pixel // width, pixel % width
    inside = there
    if mirrors:
        x = tl.where(tl.load(flips + sample) != 0, width - 1 - x, x)
    if crops:
        y += (tl.load(corners + 2 * sample) - padding).to(tl.int32)
        x += (tl.load(corners + 2 * sample + 1) - padding).to(tl.int32)
        if reflects:
            y = (height - 1) - tl.abs((height - 1) - tl.abs(y))
            x = (width - 1) - tl.abs((width - 1) - tl.abs(x))
        else:
            inside = there & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    row = sample
    if picks:
        row = tl.load(rows + sample)
    place = row * by_sample + channel * by_channel + y * by_row + x * by_column
    value = tl.load(images + place, inside, 0).to(tl.float32)
    value = (value - tl.load(offset + channel * by_offset, there, 0)) * tl.load(scale + channel * by_scale, there, 0)
    tl.store(out + sample * channels * height * width + index, value.to(out.dtype.element_ty), there)


@triton.jit
def lerp_kernel(
    images, partners, weights, out, by_weight, count, pixels, inner, whole: tl.constexpr, block: tl.constexpr
):
    """``weight * own + (1 - weight) * partner`` by torch's formula, all in the order in which the images lie."""
    sample = tl.program_id(0).to(tl.int64)
    index = tl.program_id(1) * block + tl.arange(0, block)
    there = index < count
    weight = tl.load(weights + sample * by_weight + index // inner % pixels, there, 0)
    b = tl.load(images + sample * count + index, there, 0)
    a = tl.load(images + tl.load(partners + sample) * count + index, there, 0).to(tl.float32)
    dtype: tl.constexpr = b.dtype
    b = b.to(tl.float32)
    # torch's own kernels round the product and the sum once.
    mixed = tl.where(weight < 0.5, tl.fma(weight, b - a, a), tl.fma(a - b, 1 - weight, b))
    if whole:
        low = tl.floor(mixed)
        up = (mixed - low > 0.5) | ((mixed - low == 0.5) & (low - 2 * tl.floor(low / 2) > 0))
        mixed = tl.where(up, low + 1, low)
    tl.store(out + sample * count + index, mixed.to(dtype), there)


def normalize(
    images: Tensor,
    rows: Tensor | None,
    corners: Tensor | None,
    flips: Tensor | None,
    padding: int,
    reflects: bool,
    offset: Tensor,
    scale: Tensor,
    out: Tensor,
) -> None:
    """Normalise windows of images into ``out``.

    Args:
        images: (N, C, H, W).
        rows: (B,) int64, which images; None takes all.
        corners: (B, 2) int64 corners of the windows in images padded by ``padding``; None takes whole images.
        flips: (B,) bool.
        offset, scale: (1,) or (C,) float32, contiguous.
        out: (B, C, H, W), contiguous or channels_last.
    """
    batch, channels, height, width = out.shape
    absent = scale
    normalize_kernel[(batch, triton.cdiv(channels * height * width, VALUES))](
        images, absent if rows is None else rows, absent if corners is None else corners,
        absent if flips is None else flips.view(torch.int8), offset, scale, out, *images.stride(),
        int(offset.numel() > 1), int(scale.numel() > 1), padding, channels, height, width, not out.is_contiguous(),
        rows is not None, corners is not None, reflects, flips is not None, VALUES, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip


def lerp(images: Tensor, partner: Tensor, weight: Tensor) -> Tensor:
    """Weighted means of samples and partners.

    Args:
        images: (B, ...), contiguous, channels_last or channels_last_3d.
        partner: (B,) int64.
        weight: (R, 1, ..., *size) float32, contiguous, R of 1 or B; sizes are those of the images, or all 1.
    """
    out = torch.empty_like(images)
    count, pixels = images[0].numel(), weight[0].numel()
    inner = 1 if images.is_contiguous() or pixels == 1 else images.shape[1]
    lerp_kernel[(len(images), triton.cdiv(count, VALUES))](
        images, partner, weight, out, pixels if len(weight) > 1 else 0, count, pixels, inner,
        not images.is_floating_point(), VALUES, num_warps=4,
    )  # fmt: skip
    return out
