"""Fine-grained saliency on a CPU: maps, and the places of their maxima, which take less time than the maps.

As many images are worked on at once as the cache holds, in NumPy, whose calls cost little. Whole numbers have the
narrowest type that holds them, since such passes wait for memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["GREY_WEIGHTS", "SCALES", "Statistics", "eight_bits", "saliency_maps", "salient_places"]

# Means and standard deviations of the normalisation of float images, one for each channel.
Statistics = tuple[tuple[float, ...], tuple[float, ...]]

# Weights of red, green and blue in units of 1 / 2**15.
GREY_WEIGHTS = (9798, 19235, 3735)
SCALES = (12, 24, 48, 28, 56, 112)
# Pixels of the images that are worked on at once: planes of so many stay in the cache, and small images in one call
# each would cost more in calls than in work.
PIXELS_AT_ONCE = 2**17
# Shares of a maximum are bounded in units of 1 / UNITS: two shares, and the two maxima, fit into 16 bits.
UNITS = 29_000


def eight_bits(images: Tensor, statistics: Statistics | None) -> Tensor:
    """Float images as 8-bit pixels.

    Args:
        images: (B, C, H, W) float32 or float64.
        statistics: of the normalisation; None stretches each image over its own range.

    Returns:
        (B, C, H, W) uint8.
    """
    batch, _, height, width = images.shape
    pixels, found = images.numpy(), torch.empty(images.shape, dtype=torch.uint8)
    size = _at_once(images)
    room = np.empty((size, height, width), dtype=pixels.dtype)
    for first in range(0, batch, size):
        block = pixels[first : first + size]
        target = found[first : first + size].numpy()
        # What is not a number is no pixel. NumPy converts to bytes in a quarter of torch's time.
        with np.errstate(invalid="ignore", over="ignore"):
            for channel, values in enumerate(_channels(block, statistics, room[: len(block)])):
                np.copyto(target[:, channel], values, casting="unsafe")
    return found


def saliency_maps(images: Tensor, is_rgb: bool) -> Tensor:
    """:func:`mixaug.functional.fine_grained_saliency`.

    Args:
        images: (B, C, H, W) uint8.
        is_rgb: order of three channels.

    Returns:
        (B, H, W) uint8.
    """
    saliency = np.empty((len(images), *images.shape[2:]), dtype=np.uint8)
    for rows, brighter, darker in _differences(images, None, is_rgb):
        np.add(_full_range(brighter), _full_range(darker), out=saliency[rows])
    return torch.from_numpy(saliency)


def salient_places(images: Tensor, statistics: Statistics | None, is_rgb: bool) -> Tensor:
    """First maximum of each image's saliency map, which is made for few images only.

    A byte of a map is floor(255 b) + floor(255 d) modulo 256, where b and d are the shares that the pixel's brighter
    and darker differences have of their maxima. The sum is 510 at most, so that a byte of 255, the largest there is,
    needs a b + d of at least 1. Places below that need no byte, and the first with 255 is the answer. Images without
    one, such as constant ones, get their map.

    Args:
        images: (B, C, H, W) uint8, float32 or float64.
        statistics: of the normalisation of float images; None stretches each image over its own range.
        is_rgb: order of three channels.

    Returns:
        (B,) int64, row-major places.
    """
    pixels = images.shape[2] * images.shape[3]
    candidates = []
    for rows, *differences in _differences(images, statistics, is_rgb):
        sums = [total.reshape(-1, pixels).view(np.uint16) for total in differences]
        largest = [np.maximum(total.max(axis=1), 1) for total in sums]
        # Shares in whole units, rounded up, are never below the true ones. A quotient rounded to float32 may be, by
        # less than 1 / UNITS, which brings no whole number of units up to UNITS.
        units = [-(-UNITS // most.astype(np.int64)).astype(np.uint16)[:, None] for most in largest]
        bound = sums[0] * units[0]
        bound += sums[1] * units[1]
        places = np.flatnonzero(bound >= UNITS)
        image = places // pixels
        there = [total.ravel()[places] for total in sums]
        candidates.append((rows.start + image, places % pixels, *there, *(most[image] for most in largest)))
    image, places, bright, dark, *most = (np.concatenate(column) for column in zip(*candidates, strict=True))
    is_largest = _scaled(bright, most[0]) + _scaled(dark, most[1]) == 255
    found = np.full(len(images), pixels)
    np.minimum.at(found, image[is_largest], places[is_largest])
    left = np.flatnonzero(found == pixels)
    if len(left) > 0:
        images = images[torch.from_numpy(left)]
        images = images if images.dtype == torch.uint8 else eight_bits(images, statistics)
        found[left] = saliency_maps(images, is_rgb).flatten(1).numpy().argmax(1)
    return torch.from_numpy(found)


def _at_once(images: Tensor) -> int:
    return max(1, min(len(images), PIXELS_AT_ONCE // max(1, images.shape[2] * images.shape[3])))


def _channels(block: Any, statistics: Statistics | None, room: Any) -> Iterator[Any]:
    """Each channel of (R, C, H, W) images as whole numbers from 0 to 255, one after the other in ``room`` (R, H, W)."""
    count = block.shape[1]
    if block.dtype == np.uint8:
        for channel in range(count):
            np.copyto(room, block[:, channel])
            yield room
    elif statistics is None:
        low, high = (reduce(axis=(1, 2, 3))[:, None, None] for reduce in (block.min, block.max))
        extent = np.maximum(high - low, np.finfo(room.dtype).tiny)
        for channel in range(count):
            # No quotient is above 1, so that nothing is to be clipped.
            np.subtract(block[:, channel], low, out=room)
            room /= extent
            room *= 255
            yield np.rint(room, out=room)
    else:
        for channel, (mean, std) in enumerate(zip(*statistics, strict=True)):
            np.multiply(block[:, channel], std, out=room)
            room += mean
            room *= 255
            np.rint(room, out=room)
            # NumPy's limits take three times as long as torch's.
            torch.from_numpy(room).clamp_(0, 255)
            yield room


def _differences(images: Tensor, statistics: Statistics | None, is_rgb: bool) -> Iterator[tuple[slice, Any, Any]]:
    """Rows, and twice their brighter and darker differences: (R, H, W) int16, which the next step overwrites."""
    pixels, size = images.numpy(), _at_once(images)
    detector = None
    for first in range(0, len(images), size):
        block = pixels[first : first + size]
        if detector is None or len(block) != detector.count:
            detector = _Detector(len(block), images.shape[2], images.shape[3], pixels.dtype)
        detector.see(block, statistics, is_rgb)
        yield slice(first, first + len(block)), *detector.differences()


class _Detector:
    """The detector of a number of images of one size, with the memory that its steps take."""

    def __init__(self, count: int, height: int, width: int, dtype: Any) -> None:
        self.count, self.height, self.width = count, height, width
        plane = (count, height, width)
        # Images with a border of one pixel.
        self.bordered, self.spare = np.zeros((2, count, height + 2, width + 2), dtype=np.int16)
        # Sums of a column of bytes fit into 16 bits up to 257 rows; rows fill whole numbers of 64 bits.
        self.columns = np.zeros(
            (count, height, -(-width // 4) * 4), dtype=np.uint16 if height * 255 < 2**16 else np.uint32
        )
        # Sums of bytes are exact in float32 below 2**24, which spares a conversion of each.
        exact = np.float32 if height * width * 255 < 2**24 else np.float64
        self.whole = np.int32 if height * width * 255 < 2**31 else np.int64
        # Sums of all pixels before a place, with zeros before the first place of a row, and its last sum repeated
        # behind the last one: no window along a row leaves them.
        self.margin = min(max(SCALES), width)
        self.integral = np.zeros((count, height + 1, self.margin + width + 1 + self.margin), dtype=exact)
        self.lines = np.empty((count, height + 1, width), dtype=exact)
        self.along_rows = torch.from_numpy(self.lines)
        # Steps that follow one another share their memory where they share its type, so that less is to be cached.
        self.centre, self.apart = np.empty((2, *plane), dtype=np.float32)
        self.around = self.apart if exact == np.float32 else np.empty(plane, dtype=exact)
        shares: Any = (self.centre, self.apart)
        self.grey, self.channel = np.empty((2, *plane), dtype=dtype) if dtype == np.float64 else shares
        self.signed, self.unsigned, self.steps = np.empty((3, *plane), dtype=np.int16)
        self.scales = [self._scale(reach) for reach in SCALES]

    def _scale(self, reach: int) -> tuple[Any, list[tuple[Any, Any, Any]], Any]:
        """What a scale reads: ends and beginnings of windows along rows, three subtractions, and counts of pixels.

        Windows have reach - 1 places before their pixel, the pixel itself, and reach places after it, if there are.
        The subtractions make sums along rows to those over windows without the pixel in their middle.
        """
        height, beside, first = self.height, min(reach, self.width), self.margin + 1
        ends, beginnings = (
            torch.from_numpy(self.integral[:, :, start : start + self.width])
            for start in (first + beside, first - beside)
        )
        # Lines of all images at once. Below some windows end where the image ends, and some begin where it begins.
        lines, sums, centre = (array.swapaxes(0, 1) for array in (self.lines, self.around, self.centre))
        inside = max(height - reach, 0)
        subtractions = [
            (lines[height - inside + 1 :], centre[:inside], sums[:inside]),
            (lines[height], centre[inside:], sums[inside:]),
            (sums[height - inside :], lines[1 : inside + 1], sums[height - inside :]),
        ]
        counts = np.outer(_window_sides(height, reach), _window_sides(self.width, reach)) - 1
        # A window of the pixel alone, in an image of one pixel, has no surroundings: 0 / 1.
        return (ends, beginnings), subtractions, np.maximum(counts, 1).astype(np.float32)

    def see(self, block: Any, statistics: Statistics | None, is_rgb: bool) -> None:
        """Grey images, blurred twice, and their integral."""
        with np.errstate(invalid="ignore", over="ignore"):
            self._to_grey(block, statistics, is_rgb)
        for _ in range(2):
            self._blur()
        inner, columns, right = self.bordered[:, 1:-1, 1:-1], self.columns, self.margin + self.width
        np.copyto(self.centre, inner)
        np.copyto(columns[:, :, : self.width], inner, casting="unsafe")
        # Neighbouring columns are added up as one number of 64 bits, since none carries into the next.
        torch.from_numpy(columns.view(np.int64)).cumsum_(1)
        sums = columns[:, :, : self.width].astype(self.whole)
        torch.from_numpy(sums).cumsum_(2)
        self.integral[:, 1:, self.margin + 1 : right + 1] = sums
        self.integral[:, 1:, right + 1 :] = self.integral[:, 1:, right : right + 1]

    def _to_grey(self, block: Any, statistics: Statistics | None, is_rgb: bool) -> None:
        count = block.shape[1]
        weights = [1.0] * count
        if count == 3:
            # Multiples of 1 / 2**15 below 256 are exact in float32.
            weights = [weight / 2**15 for weight in (GREY_WEIGHTS if is_rgb else GREY_WEIGHTS[::-1])]
        grey = self.grey
        grey.fill(0.5 if count == 3 else 0)
        for weight, values in zip(weights, _channels(block, statistics, self.channel), strict=True):
            values *= weight
            grey += values
        if count not in (1, 3):
            grey = (2 * grey.astype(np.int32) + count) // (2 * count)
        np.copyto(self.bordered[:, 1:-1, 1:-1], grey, casting="unsafe")

    def _blur(self) -> None:
        """Binomial 3 x 3 blur, rounded half up; the border is mirrored about the last pixel."""
        image, height, width = self.bordered, self.height, self.width
        image[:, 0], image[:, -1] = image[:, 1 + min(1, height - 1)], image[:, 1 + max(height - 2, 0)]
        image[:, :, 0], image[:, :, -1] = image[:, :, 1 + min(1, width - 1)], image[:, :, 1 + max(width - 2, 0)]
        # The weights 1, 2, 1 are two sums of neighbours. All rows of all images are one line here, whose sums over
        # two rows land in borders. Four steps end where they began.
        source, target = self.bordered.reshape(-1), self.spare.reshape(-1)
        length = source.size
        for apart in (width + 2, width + 2, 1, 1):
            length -= apart
            np.add(source[:length], source[apart : apart + length], out=target[:length])
            source, target = target, source
        source[:length] += 8
        # The first sum belongs to the first pixel, behind a border of a row and a pixel.
        np.right_shift(source[:length], 4, out=target[width + 3 : width + 3 + length])
        self.bordered, self.spare = self.spare, self.bordered

    def differences(self) -> tuple[Any, Any]:
        """Twice how much each pixel is brighter, and darker, than its surroundings, summed over the scales."""
        centre, apart, steps = self.centre, self.apart, self.steps
        self.signed.fill(0)
        self.unsigned.fill(0)
        for along_rows, subtractions, counts in self.scales:
            # Short rows take torch three quarters of NumPy's time.
            torch.sub(*along_rows, out=self.along_rows)
            for sums, less, rest in subtractions:
                np.subtract(sums, less, out=rest)
            np.divide(self.around, counts, out=apart, dtype=np.float32, casting="same_kind")
            np.subtract(centre, apart, out=apart)
            # Whole steps towards zero, the fraction of each scale is lost as in 8-bit arithmetic.
            np.copyto(steps, apart, casting="unsafe")
            self.signed += steps
            # The sum of the positive steps alone would need a limit, which takes longer than this.
            self.unsigned += np.abs(steps, out=steps)
        brighter = np.add(self.unsigned, self.signed, out=steps)
        return brighter, np.subtract(self.unsigned, self.signed, out=self.unsigned)


def _window_sides(side: int, reach: int) -> Any:
    """(side,) pixels in the window around each place."""
    place = np.arange(side)
    return np.minimum(place + reach + 1, side) - np.maximum(place - reach + 1, 0)


def _full_range(total: Any) -> Any:
    """(R, H, W) sums as bytes, the maximum of each image 255: of a table each, since there are few different sums."""
    most = np.maximum(total.max(axis=(1, 2)), 1)
    entries = int(most.max()) + 1
    table = _scaled(np.arange(entries), most[:, None]).clip(max=255).astype(np.uint8)
    places = total.astype(np.intp)
    places += np.arange(0, table.size, entries)[:, None, None]
    # Every place is one of the table; checking each again would take longer than reading it.
    return table.ravel().take(places, mode="clip")


def _scaled(total: Any, most: Any) -> Any:
    """255 times the share of ``most`` that the sums have, rounded down, in float64."""
    # One float32 division comes first, then a product that cannot round a value below a whole number up to it.
    return np.floor((total.astype(np.float32) / most.astype(np.float32)).astype(np.float64) * 255)
