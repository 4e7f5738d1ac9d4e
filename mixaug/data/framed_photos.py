"""`framed_photos`: animals or things, and a frame whose colour goes with the class in training alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mixaug.data.photos import CLASSES, photos
from mixaug.data.reading import CIFAR_MEAN, CIFAR_STD, Transform, in_memory_set, stratified_rows
from mixaug.data.sets import ArrayData, DataSet
from mixaug.streams import stream_key

__all__ = ["ANIMALS", "COLOURS", "framed_photos"]

#: The classes of `photos` that show animals; the others show things.
ANIMALS = ("aquarium_fish", "bear", "beaver", "bee", "beetle")

#: Red, green and blue of the frame of domain 0, usual around animals in training, and of domain 1, usual around things.
COLOURS = ((200, 40, 40), (40, 40, 200))


def framed_photos(
    correlation: float = 0.95,
    frame: int = 2,
    split_seed: int = 0,
    transform: Transform = None,
    test_transform: Transform = None,
    image_size: int | None = None,
) -> DataSet:
    """The photographs of `photos` as animals or things, 500 + 500 + 1,000 images of 3x32x32, with a planted shortcut.

    Every image gets a frame in one of two colours. In training the colour tells the class for ``correlation`` of the
    images of each class; in validation and test each colour surrounds half of the images of each photographed thing, so
    the frame tells nothing there. What a network that went by the frame gets wrong is its worst group: the construction
    of Waterbirds (arXiv:1911.08731), from photographs that are at hand.

    Metadata: "domain", (N,) the frame's colour, 0 or 1; and "group", (N,) 2 * label + domain, by which the worst group
    is scored.

    Args:
        correlation: share of the training images of each class whose frame has the colour of their class, in [0.5, 1);
            0.95 leaves 12 images or 13 in each of the two rare groups.
        frame: width of the frame in pixels, 1..15.
        split_seed: draws which images have which frame, >= 0.
    """
    _check(correlation, frame, split_seed)
    whole = photos()
    is_thing = torch.tensor([name not in ANIMALS for name in CLASSES]).long()
    parts = {}
    for split, share in (("train", correlation), ("valid", 0.5), ("test", 0.5)):
        source: Any = getattr(whole, split)
        label = is_thing[source.labels]
        domain = _domains(source.labels, label, share, stream_key("framed_photos", split, split_seed))
        images = _framed(source.images, torch.tensor(COLOURS, dtype=torch.uint8)[domain], frame)
        parts[split] = ArrayData(images, label, {"domain": domain, "group": 2 * label + domain})
    return in_memory_set(
        "framed_photos",
        parts["train"],
        parts["test"],
        CIFAR_MEAN,
        CIFAR_STD,
        ("animal", "thing"),
        transform,
        test_transform,
        image_size,
        valid=parts["valid"],
    )


def _check(correlation: Any, frame: Any, split_seed: Any) -> None:
    if isinstance(correlation, bool) or not isinstance(correlation, (int, float)):
        raise TypeError(f"data set 'framed_photos' expected correlation to be a number, got {correlation!r}")
    if not 0.5 <= correlation < 1:
        raise ValueError(f"data set 'framed_photos' expected correlation in [0.5, 1), got {correlation}")
    for option, value, least, most in (("frame", frame, 1, 15), ("split_seed", split_seed, 0, None)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"data set 'framed_photos' expected {option} to be an int, got {value!r}")
        if value < least or (most is not None and value > most):
            bounds = f"{option} in {least}..{most}" if most is not None else f"{option} >= {least}"
            raise ValueError(f"data set 'framed_photos' expected {bounds}, got {value}")


def _domains(photographed: Tensor, label: Tensor, share: float, seed: int) -> Tensor:
    """(N,) which colour: that of the class for ``share`` of its images, the other one for the rest."""
    generator = torch.Generator().manual_seed(seed)
    domain = label.clone()
    for number in (0, 1):
        members = torch.nonzero(label == number).squeeze(1)
        # Numbers without gaps, so that every photographed thing gives its part.
        kinds = photographed[members].unique(return_inverse=True)[1]
        rare = round(len(members) * (1 - share))
        domain[members[stratified_rows(kinds, rare, generator)]] = 1 - number
    return domain


def _framed(images: Tensor, colours: Tensor, width: int) -> Tensor:
    """(N, 3, H, W) images with a frame of each one's colour (N, 3)."""
    framed = colours[:, :, None, None].expand_as(images).contiguous()
    inner = (..., slice(width, -width), slice(width, -width))
    framed[inner] = images[inner]
    return framed
