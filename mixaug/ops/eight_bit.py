"""Operations on 8-bit images as Pillow has them, one of nine for every image, without a loop over images.

What changes places is an affine map of each image, what changes values a table of 256 entries for each of its channels;
an image that is to get the other kind has the map, or the table, that changes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixaug.ops.layout import wide_dtype

__all__ = ["OPERATIONS", "changed_places", "operate", "value_tables"]

#: Operations by number, in the order of AugMix's code.
OPERATIONS = (
    "autocontrast",
    "equalize",
    "posterize",
    "rotate",
    "solarize",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)


def operate(images: Tensor, operation: Tensor, level: Tensor, positive: Tensor) -> Tensor:
    """Apply to every image the operation of a number.

    Args:
        images: (R, C, H, W) uint8.
        operation: (R,) int64, an index into :data:`OPERATIONS`; any other number leaves an image as it is.
        level: (R,) floating point in [0, 10], how strong; 10 rotates by 30 degrees, shears by 0.3, moves by a third of
            the side, inverts everything, leaves no bit. The first two operations have no strength.
        positive: (R,) bool, the direction of what changes places.

    Returns:
        (R, C, H, W) uint8.
    """
    size = (images.shape[2], images.shape[3])
    moved = changed_places(images, _affine_maps(operation, level, positive, size))
    tables = value_tables(moved, operation, level)
    return tables.gather(2, moved.flatten(2).long()).reshape(moved.shape)


def _affine_maps(operation: Tensor, level: Tensor, positive: Tensor, size: tuple[int, int]) -> Tensor:
    """(R, 2, 3): where the place (x, y, 1) of the result lies in the image."""
    level = level.to(wide_dtype(level.device))
    sign = torch.where(positive, 1.0, -1.0).to(level.dtype)

    def amount(name: str, value: Tensor) -> Tensor:
        return torch.where(operation == OPERATIONS.index(name), sign * value, torch.zeros_like(value))

    # Pillow turns by whole degrees and moves by whole pixels.
    angle = amount("rotate", (level * 3).floor()) * (torch.pi / 180)
    cosine, sine = angle.cos(), angle.sin()
    shear_x, shear_y = amount("shear_x", level * 0.03), amount("shear_y", level * 0.03)
    height, width = size
    x = amount("translate_x", (level * (width / 30)).floor())
    y = amount("translate_y", (level * (height / 30)).floor())
    centre_x, centre_y = width / 2, height / 2
    # The image turns about its centre, and shears about its corner.
    x = x + centre_x - cosine * centre_x + sine * centre_y
    y = y + centre_y - sine * centre_x - cosine * centre_y
    rows = [cosine, shear_x - sine, x, shear_y + sine, cosine, y]
    return torch.stack(rows, 1).unflatten(1, (2, 3))


def changed_places(images: Tensor, maps: Tensor) -> Tensor:
    """Resample images bilinearly; what comes from outside of an image is black.

    Args:
        images: (R, C, H, W) uint8.
        maps: (R, 2, 3) floating point: the centre of the pixel (x, y) of the result, (x + 1/2, y + 1/2, 1), times the
            matrix is its place in the image.

    Returns:
        (R, C, H, W) uint8, rounded down.
    """
    height, width = images.shape[2:]
    maps = maps.to(wide_dtype(images.device))
    x = torch.arange(width, device=images.device, dtype=maps.dtype) + 0.5
    y = torch.arange(height, device=images.device, dtype=maps.dtype)[:, None] + 0.5
    entry = maps[..., None, None].unbind(1)
    at_x, at_y = (row[:, 0] * x + row[:, 1] * y + row[:, 2] for row in entry)
    inside = (at_x >= 0) & (at_x < width) & (at_y >= 0) & (at_y < height)
    at_x, at_y = at_x - 0.5, at_y - 0.5
    left, top = at_x.floor(), at_y.floor()
    share_x, share_y = (at_x - left)[:, None], (at_y - top)[:, None]
    flat = images.flatten(2)

    def shown(row: Tensor, column: Tensor) -> Tensor:
        place = row.clamp(0, height - 1).long() * width + column.clamp(0, width - 1).long()
        return flat.gather(2, place.flatten(1)[:, None].expand(-1, flat.shape[1], -1)).reshape(images.shape).to(x.dtype)

    upper = torch.lerp(shown(top, left), shown(top, left + 1), share_x)
    lower = torch.lerp(shown(top + 1, left), shown(top + 1, left + 1), share_x)
    # A sum that ought to be whole may lie a rounding below it.
    values = (torch.lerp(upper, lower, share_y) + 1e-6).floor()
    return (values * inside[:, None]).to(torch.uint8)


def value_tables(images: Tensor, operation: Tensor, level: Tensor) -> Tensor:
    """(R, C, 256) uint8: what becomes of each value of every channel.

    Args:
        images: (R, C, H, W) uint8, whose values autocontrast and equalize look at.
        operation, level: see :func:`operate`.
    """
    rows, channels = images.shape[:2]
    value = torch.arange(256, device=images.device)
    counts = torch.zeros(rows, channels, 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(2, images.flatten(2).long(), torch.ones_like(images.flatten(2), dtype=torch.int64))
    number = operation[:, None, None]
    level = level[:, None, None].to(wide_dtype(level.device))
    bits = 4 - (level * 0.4).floor().long()
    below = value < 256 - (level * 25.6).floor()
    table = value.expand(rows, channels, 256)
    table = torch.where(number == OPERATIONS.index("posterize"), value - value % (2 ** (8 - bits)), table)
    table = torch.where((number == OPERATIONS.index("solarize")) & ~below, 255 - value, table)
    table = torch.where(number == OPERATIONS.index("autocontrast"), _stretched(counts, value), table)
    return torch.where(number == OPERATIONS.index("equalize"), _equalized(counts, value), table).to(torch.uint8)


def _stretched(counts: Tensor, value: Tensor) -> Tensor:
    """The darkest value becomes 0, the brightest 255."""
    there = counts > 0
    low = torch.where(there, value, 255).amin(2, keepdim=True)
    high = torch.where(there, value, 0).amax(2, keepdim=True)
    extent = (high - low).clamp(min=1).to(wide_dtype(counts.device))
    # A number divided by a tensor is its product with a reciprocal in torch: rounded twice.
    scale = torch.full_like(extent, 255.0) / extent
    stretched = (value * scale - low * scale).trunc().clamp(0, 255).long()
    return torch.where(high > low, stretched, value)


def _equalized(counts: Tensor, value: Tensor) -> Tensor:
    """As many pixels of each value as there can be."""
    there = counts > 0
    last = torch.where(there, value, 0).amax(2, keepdim=True)
    step = (counts.sum(2, keepdim=True) - counts.gather(2, last)) // 255
    before = counts.cumsum(2) - counts
    equalized = ((step // 2 + before) // step.clamp(min=1)).clamp(max=255)
    return torch.where((there.sum(2, keepdim=True) > 1) & (step > 0), equalized, value)
