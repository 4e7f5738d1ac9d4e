"""Make the sheets of the data set `photos` of CIFAR-100: python tools/photos.py ../shared/data/cifar100_sheets

The folder is one that `mixaug.data.load("image_sheets", root=...)` reads. Nothing is drawn at random: the same folder
gives the same pixels. The test part is all of a class's test images, in their order. The training images of all classes
are gone through in the order of the SHA-256 of their pixels; one that nearly is a test image, or an image taken before,
is left out; the first 50 of each class are for training and the next 50 for validation.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mixaug.data import load
from mixaug.data.photos import CLASSES, PER_CLASS, SHEETS

#: Root mean square of the differences of two images, in grey levels of 256, below which they count as the same picture.
#: CIFAR-100 has such pairs: cropped, brightened or compressed anew. Those of different pictures begin at some 20.
NEARLY = 20


def chosen(root: str | Path) -> dict[str, Tensor]:
    """Images of each part: (10 * n, 3, 32, 32) uint8, class by class.

    Args:
        root: folder with the sheets of all of CIFAR-100.

    Raises:
        ValueError: a sheet has other pixels than `classes.csv` says, or a class too few different images.
    """
    source = load("image_sheets", root=root, classes=list(CLASSES), verify=True)
    images, labels = source.train.images, source.train.labels
    # Sums of products of bytes are exact in float64.
    flat, test = images.flatten(1).double(), source.test.images.flatten(1).double()
    least = NEARLY**2 * flat.shape[1]
    free = (_squares(flat, test) >= least).all(1)
    order = sorted(range(len(images)), key=lambda row: hashlib.sha256(images[row].numpy().tobytes()).digest())
    wanted = PER_CLASS["train"] + PER_CLASS["valid"]
    taken: list[list[int]] = [[] for _ in CLASSES]
    before, count = flat.new_zeros(wanted * len(CLASSES), flat.shape[1]), 0
    for row in order:
        of_class = taken[int(labels[row])]
        if free[row] and len(of_class) < wanted and (_squares(flat[row : row + 1], before[:count]) >= least).all():
            of_class.append(row)
            before[count] = flat[row]
            count += 1
    if any(len(rows) < wanted for rows in taken):
        raise ValueError(f"{root}: expected {wanted} different training images of every class")
    cut = PER_CLASS["train"]
    parts = {"train": [rows[:cut] for rows in taken], "valid": [rows[cut:] for rows in taken]}
    found = {part: images[torch.tensor(rows).flatten()] for part, rows in parts.items()}
    return {**found, "test": source.test.images}


def sheet(images: Tensor) -> np.ndarray:
    """(rows * 32, columns * 32, 3) uint8: a row of tiles for each class."""
    tiles = images.view(len(CLASSES), -1, 3, 32, 32)
    return tiles.permute(0, 3, 1, 4, 2).reshape(len(CLASSES) * 32, -1, 3).numpy()


def _squares(left: Tensor, right: Tensor) -> Tensor:
    """(N, M) sums of squared differences of (N, D) and (M, D) rows."""
    return left.square().sum(1)[:, None] + right.square().sum(1) - 2 * (left @ right.T)


def main(arguments: Sequence[str]) -> int:
    """Write the sheets."""
    from PIL import Image

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sheets", help="folder with classes.csv, train/ and test/")
    parser.add_argument("--out", default=SHEETS, type=Path, help="folder to write to (default: that of the package)")
    options = parser.parse_args(arguments)
    for part, images in chosen(options.sheets).items():
        path = options.out / f"{part}.webp"
        # "exact" keeps every value, "method" trades time for bytes.
        Image.fromarray(sheet(images)).save(path, lossless=True, exact=True, quality=100, method=6)
        print(f"wrote {path}: {len(images)} images, {path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
