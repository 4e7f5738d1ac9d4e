"""Random crop and flip of a whole batch, as one gather."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mixaug.axes import check_place_of_channels
from mixaug.near import did_you_mean

__all__ = ["PADDING_MODES", "check_padding", "crop_and_flip"]

PERMUTE = "images.permute(0, 3, 1, 2) brings the channels there"
PADDING_MODES = ("zeros", "reflect")


def crop_and_flip(
    images: Tensor,
    rows: Tensor,
    offsets: Tensor | None = None,
    flips: Tensor | None = None,
    *,
    padding: int = 0,
    padding_mode: str = "zeros",
) -> Tensor:
    """Pad images on all sides, cut a window of the original size out of each, and mirror some of the windows.

    The padded images are never made: the position of each pixel's source is computed, and one gather reads
        it.

    Args:
        images: (N, C, H, W), any dtype.
        rows: (B,) int64, which images.
        offsets: (B, 2) int64, y and x of the window's corner in the padded image, in [0, 2 padding]. None
            keeps the middle.
        flips: (B,) bool, windows to mirror left to right, after the crop. None mirrors none.
        padding: pixels added on each side.
        padding_mode: "zeros", or "reflect" (without repeating the edge, as ``torch.nn.functional.pad`` does).

    Returns:
        (B, C, H, W), contiguous, a copy.

    Raises:
        ValueError: another shape, one that looks like (N, H, W, C), another padding mode, or a reflection longer than
            the image.
    """
    check_windows(images, rows, offsets, flips, padding, padding_mode)
    count, channels, height, width = images.shape
    batch = rows.shape[0]
    picked = images.reshape(count, channels, height * width).index_select(0, rows)
    if offsets is None and flips is None:
        return picked.view(batch, channels, height, width)
    y = torch.arange(height, device=images.device)
    x = torch.arange(width, device=images.device)
    y, x = y.expand(batch, height), x.expand(batch, width)
    if flips is not None:
        x = torch.where(flips[:, None], width - 1 - x, x)
    inside: Tensor | None = None
    if offsets is not None:
        y = y + (offsets[:, :1] - padding)
        x = x + (offsets[:, 1:] - padding)
        if padding_mode == "reflect":
            y, x = _reflect(y, height), _reflect(x, width)
        else:
            own_y, own_x = y.clamp(0, height - 1), x.clamp(0, width - 1)
            inside = (own_y == y)[:, :, None] & (own_x == x)[:, None, :]
            y, x = own_y, own_x
    source = (y * width)[:, :, None] + x[:, None, :]
    source = source.view(batch, 1, height * width).expand(batch, channels, height * width)
    result = picked.gather(2, source).view(batch, channels, height, width)
    if inside is None:
        return result
    if result.is_floating_point():
        return result.masked_fill_(~inside[:, None], 0)  # a product would turn inf at the edge into nan
    return result.mul_(inside[:, None])  # tens of times faster than masked_fill_ on a CPU


def check_windows(
    images: Tensor, rows: Tensor, offsets: Tensor | None, flips: Tensor | None, padding: int, padding_mode: str
) -> None:
    """Raise unless these are arguments of :func:`crop_and_flip`."""
    if images.ndim != 4:
        raise ValueError(f"crop_and_flip expects images (N, C, H, W), got shape {tuple(images.shape)}")
    check_place_of_channels("crop_and_flip", images.shape, "(N, C, H, W)", PERMUTE)
    check_padding("crop_and_flip", images.shape, padding, padding_mode)
    if offsets is not None and offsets.shape != (len(rows), 2):
        raise ValueError(f"crop_and_flip expects offsets ({len(rows)}, 2), got shape {tuple(offsets.shape)}")
    if flips is not None and (flips.shape != (len(rows),) or flips.dtype != torch.bool):
        raise ValueError(f"crop_and_flip expects flips ({len(rows)},) bool, got {tuple(flips.shape)} {flips.dtype}")


def check_padding(what: str, shape: Sequence[int], padding: int, padding_mode: str) -> None:
    """Raise unless images of this shape (N, C, H, W) can be padded so."""
    if padding_mode not in PADDING_MODES:
        raise ValueError(
            f"{what} expects padding_mode one of {PADDING_MODES}, got {padding_mode!r}"
            f"{did_you_mean(padding_mode, PADDING_MODES)}"
        )
    if padding < 0:
        raise ValueError(f"{what} expects padding >= 0, got {padding}")
    if padding_mode == "reflect" and padding >= min(shape[2:]):
        raise ValueError(f"{what} reflects at most min(H, W) - 1 pixels, got {padding} for {tuple(shape[2:])}")


def _reflect(position: Tensor, size: int) -> Tensor:
    """Positions in (-size, 2 size - 1) mirrored at the centres of the first and last pixel."""
    return (size - 1) - ((size - 1) - position.abs()).abs()
