"""Where the channels of images lie: layouts by letters, such as "NHWC", and shapes that look like another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mixaug.frozen import ConvertibleFields

#: Letters of a layout: samples, channels, frames, depth, height, width, length.
LETTERS = "NCTDHWL"
#: Images have at most so many channels, and sides longer than that, wherever a shape is looked at.
FEW = 4
#: Signed integers as wide as an unsigned type: copies of values are copies of bits, and a blend refuses them.
SIGNED = {
    torch.uint8: torch.int8,
    torch.uint16: torch.int16,
    torch.uint32: torch.int32,
    torch.uint64: torch.int64,
}


def check_layout(what: str, layout: str | None) -> str | None:
    """The layout, or a ValueError: each axis by one letter, samples first, such as "NCHW", "NHWC" or "NTCHW"."""
    if layout is None:
        return None
    fits = isinstance(layout, str) and layout[:1] == "N" and "C" in layout and set(layout) <= set(LETTERS)
    if not fits or len(set(layout)) != len(layout):
        raise ValueError(
            f"{what} expects layout as the letters of the axes, samples (N) first and channels (C) once, such as "
            f"'NCHW', 'NHWC', 'NTCHW' for clips or 'NLC', got {layout!r}"
        )
    return layout


def channels_first(what: str, tensor: Tensor, layout: str | None, *, is_image: bool = False) -> Tensor:
    """A view (B, C, *size) of a tensor in a layout; a map without channels, (B, *size), is left alone."""
    if layout is None or (tensor.ndim == len(layout) - 1 and not is_image):
        return tensor
    if tensor.ndim != len(layout):
        raise ValueError(f"{what} expects a tensor in layout {layout!r}, got shape {tuple(tensor.shape)}")
    return tensor.movedim(layout.index("C"), 1)


def channels_back(tensor: Tensor, layout: str | None) -> Tensor:
    """The inverse of :func:`channels_first`."""
    if layout is None or tensor.ndim == len(layout) - 1:
        return tensor
    return tensor.movedim(1, layout.index("C"))


def suspected_layout(shape: Sequence[int]) -> str | None:
    """The layout that a shape (B, ...) looks like where that is not (B, C, *size): few channels at another place."""
    sides = shape[1:]
    if not 2 <= len(sides) <= 4:
        return None
    # The first of the axes before a last one of channels may be frames, of which there can be few.
    long_sides = sides[1:-1] if len(sides) == 4 else sides[:-1]
    if sides[-1] <= FEW < min(long_sides):
        return {2: "NLC", 3: "NHWC", 4: "NDHWC"}[len(sides)]
    if len(sides) == 4 and min(sides[2:]) > FEW:
        frames, channels = sides[:2]
        if channels <= FEW < frames or (channels in (1, 3) and frames not in (1, 3)):
            return "NTCHW"
    return None


def check_place_of_channels(
    what: str, shape: Sequence[int], expected: str = "(B, C, *size)", way_out: str = ""
) -> None:
    """Raise where a shape looks as if its channels were not the second axis.

    Args:
        what: name of the caller, for the message.
        shape: of the images.
        expected: the shape that was expected, for the message.
        way_out: what to do about it; by default to say the layout.
    """
    suspected = suspected_layout(shape)
    if suspected is None:
        return
    first = {3: "NCL", 4: "NCHW", 5: "NCDHW"}[len(shape)]
    raise ValueError(
        f"{what} expects images {expected}, got shape {tuple(shape)}, which looks like {suspected}; "
        + (way_out or f"say layout={suspected!r}, or layout={first!r} if the channels do come second")
    )


@dataclass(frozen=True)
class Form(ConvertibleFields):
    """What the images were like that a plan was drawn for.

    Attributes:
        shape: (C, *size) of one sample, channels first.
        dtype: their dtype.
        layout: as the caller named it; None stands for (B, C, *size).
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: str | None = None

    def holds(self, tensor: Tensor) -> bool:
        """Whether a channels-first tensor of bytes can be nothing but another view of these images."""
        return tensor.dtype == self.dtype and tuple(tensor.shape[1:]) == self.shape
