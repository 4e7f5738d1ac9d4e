"""`photos`: a small set of real photographs that comes with the package; README.md beside this file names their source.

Each part is one sheet of 32x32 tiles, losslessly compressed: a row for each class, in the order of `CLASSES`.
`tools/photos.py` makes the sheets of CIFAR-100.
"""

from __future__ import annotations

from pathlib import Path

import torch

from mixaug.data.images import read_tiles
from mixaug.data.reading import CIFAR_MEAN, CIFAR_STD, Transform, in_memory_set
from mixaug.data.sets import ArrayData, DataSet

__all__ = ["CLASSES", "PER_CLASS", "SHEETS", "photos"]

#: The first ten classes of CIFAR-100, in the order of their names, that show no people.
CLASSES = ("apple", "aquarium_fish", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl")

#: Images of each class in each part.
PER_CLASS = {"train": 50, "valid": 50, "test": 100}

#: The folder with a sheet for each part, `train.webp`, `valid.webp` and `test.webp`.
SHEETS = Path(__file__).resolve().parent


def photos(transform: Transform = None, test_transform: Transform = None, image_size: int | None = None) -> DataSet:
    """Ten classes of CIFAR-100 (Krizhevsky 2009) that come with mixaug: 500 + 500 + 1,000 images of 3x32x32.

    50 images of each class are for training, 50 for validation and 100 for the test, which are all test images of that
    class. Validation is a part of its own, so `valid_share` is refused. No image of the first two parts is nearly one
    of another part or of its own. `mean` and `std` are the ones that are usual for CIFAR.
    """
    parts = {}
    for part, amount in PER_CLASS.items():
        images = read_tiles(SHEETS / f"{part}.webp", side=32)
        parts[part] = ArrayData(images, torch.arange(len(CLASSES)).repeat_interleave(amount))
    return in_memory_set(
        "photos",
        parts["train"],
        parts["test"],
        CIFAR_MEAN,
        CIFAR_STD,
        CLASSES,
        transform,
        test_transform,
        image_size,
        valid=parts["valid"],
    )
