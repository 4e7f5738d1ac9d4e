"""Triton bodies of SaliencyMix's detector, each value a whole number as in the torch body, and bytes at the end."""

import torch
import triton
import triton.language as tl
from torch import Tensor

PIXELS = 512


@triton.jit
def _mirrored(place, side: tl.constexpr):
    """Places one step outside are mirrored about the last pixel."""
    place = tl.abs(place)
    place = tl.where(place >= side, 2 * side - 2 - place, place)
    return tl.maximum(place, 0)


@triton.jit
def blur_kernel(
    source, out, by_sample, by_channel, by_row, by_column, channels: tl.constexpr, first: tl.constexpr,
    second: tl.constexpr, third: tl.constexpr, height: tl.constexpr, width: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Binomial 3 x 3 blur, rounded half up; of the grey values where there are channels of bytes."""
    sample = tl.program_id(0).to(tl.int64)
    pixel = tl.program_id(1) * block + tl.arange(0, block)
    there = pixel < height * width
    y, x = pixel // width, pixel % width
    total = tl.zeros([block], tl.int32)
    for dy in tl.static_range(3):
        for dx in tl.static_range(3):
            at = _mirrored(y + dy - 1, height) * by_row + _mirrored(x + dx - 1, width) * by_column
            place = source + sample * by_sample + at
            value = tl.load(place, there, 0).to(tl.int32)
            if channels == 3:
                value = first * value + second * tl.load(place + by_channel, there, 0).to(tl.int32)
                value = (value + third * tl.load(place + 2 * by_channel, there, 0).to(tl.int32) + 16384) >> 15
            elif channels > 1:
                for channel in range(1, channels):
                    value += tl.load(place + channel * by_channel, there, 0).to(tl.int32)
                value = (2 * value + channels) // (2 * channels)
            total += (2 - (dy - 1) * (dy - 1)) * (2 - (dx - 1) * (dx - 1)) * value
    tl.store(out + sample * height * width + pixel, (total + 8) >> 4, there)


@triton.jit
def surround_kernel(
    grey, integral, out, maps, height: tl.constexpr, width: tl.constexpr, scales: tl.constexpr, block: tl.constexpr
):
    """Sums over the scales of how much brighter, and darker, a pixel is than its surroundings: out (2, B, H, W)."""
    sample = tl.program_id(0).to(tl.int64)
    pixel = tl.program_id(1) * block + tl.arange(0, block)
    there = pixel < height * width
    y, x = pixel // width, pixel % width
    own = tl.load(grey + sample * height * width + pixel, there, 0)
    centre = own.to(tl.float32)
    integral += sample * (height + 1) * (width + 1)
    brighter = tl.zeros([block], tl.float32)
    darker = brighter
    for scale in tl.static_range(6):
        reach = scales[scale]
        top, bottom = tl.maximum(y - reach + 1, 0), tl.minimum(y + reach + 1, height)
        left, right = tl.maximum(x - reach + 1, 0), tl.minimum(x + reach + 1, width)
        total = tl.load(integral + bottom * (width + 1) + right, there, 0)
        total -= tl.load(integral + top * (width + 1) + right, there, 0)
        total -= tl.load(integral + bottom * (width + 1) + left, there, 0) - tl.load(
            integral + top * (width + 1) + left, there, 0
        )
        # A window of the pixel alone, in an image of one pixel, has no surroundings: 0 / 1.
        count = tl.maximum((bottom - top) * (right - left) - 1, 1).to(tl.float32)
        apart = centre - tl.div_rn((total - own).to(tl.float32), count)
        brighter += tl.maximum(tl.floor(apart), 0.0)
        darker += tl.maximum(tl.floor(0.0 - apart), 0.0)
    place = sample * height * width + pixel
    tl.store(out + place, brighter, there)
    tl.store(out + (sample * 0 + maps) * height * width + place, darker, there)


@triton.jit
def bytes_kernel(sums, largest, out, maps, pixels: tl.constexpr, block: tl.constexpr):
    """Both sums scaled to 255 in whole numbers, and added; the sum wraps around at 256."""
    sample = tl.program_id(0).to(tl.int64)
    pixel = tl.program_id(1) * block + tl.arange(0, block)
    there = pixel < pixels
    total = tl.zeros([block], tl.float64)
    for kind in tl.static_range(2):
        row = kind * (sample * 0 + maps) + sample
        value = tl.load(sums + row * pixels + pixel, there, 0.0)
        most = tl.maximum(tl.load(largest + row), 1.0)
        total += tl.floor(tl.div_rn(value, most + value * 0.0).to(tl.float64) * 255)
    tl.store(out + sample * pixels + pixel, (total.to(tl.int32) % 256).to(tl.uint8), there)


def detect(images: Tensor, weights: tuple[int, int, int], scales: tuple[int, ...]) -> Tensor:
    """(B, C, H, W) uint8 to saliency (B, H, W) uint8; ``weights`` of three channels, in units of 1 / 2**15."""
    batch, channels, height, width = images.shape
    grid = (batch, triton.cdiv(height * width, PIXELS))
    made = {"device": images.device}
    once, grey = (torch.empty(batch, height, width, dtype=torch.int32, **made) for _ in range(2))
    blur_kernel[grid](images, once, *images.stride(), channels, *weights, height, width, PIXELS)
    blur_kernel[grid](once, grey, height * width, 0, width, 1, 1, 0, 0, 0, height, width, PIXELS)
    whole = torch.int32 if height * width * 255 < 2**31 else torch.int64
    integral = torch.nn.functional.pad(grey.cumsum(1, dtype=whole).cumsum(2, dtype=whole), (1, 0, 1, 0))
    sums = torch.empty(2, batch, height, width, dtype=torch.float32, **made)
    surround_kernel[grid](grey, integral, sums, batch, height, width, scales, PIXELS)
    saliency = torch.empty(batch, height, width, dtype=torch.uint8, **made)
    bytes_kernel[grid](sums, sums.amax((2, 3)), saliency, batch, height * width, PIXELS)
    return saliency
