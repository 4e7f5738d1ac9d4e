"""RCF-MNIST: rotated and coloured clothes, whose colour tells the angle in training (arXiv:2210.05775)."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mixaug.data.sets import RegressionData, RegressionSet
from mixaug.data.tables import Numbers, Root, Rows, check_choice, check_split, find_file

_FASHION_IMAGES = 60_000


# The reference code leaves pixels up to this value, of 255, as they are.
_BACKGROUND = 5


def rcf_mnist(
    root: Root, *, split: int = 0, spurious_ratio: float = 0.8, test_colour: str = "reversed"
) -> RegressionSet:
    """RCF-MNIST: rotated, coloured Fashion-MNIST; the label is the angle / 360 in [0, 1]; 40,000 + 10,000 + 10,000.

    Established from the code of C-Mixup (arXiv:2210.05775), whose drawn data could not be had: the 60,000 training
    images of Fashion-MNIST are split at random; each is turned counter-clockwise by an angle uniform in [0, 360)
    degrees, with PIL's nearest neighbour; pixels above 5 of 255 then become (r, 0, 1 - r) times their grey value,
    and the background stays. The share of red r is the label g for `spurious_ratio` of the training images and 1 - g
    for the others, uniform in [0, 1) in validation, and in the test part 1 - g for `spurious_ratio` and g for the
    others. Images are normalised with mean and standard deviation 0.5.

    Ours: the draws, all from numpy's legacy generator seeded with `split`; colours rounded to uint8; the order
    of the images, which is that of the permutation; and the groups, which say how colour and label go together: 0 for
    r = g, 1 for r = 1 - g, 2 for independent (validation).

    Args:
        root: folder that holds `train-images-idx3-ubyte`, packed as .gz or not, or torchvision's folder above it.
        split: which parts, angles and colours, >= 0.
        spurious_ratio: share of the images whose colour follows the rule of their part, 0..1.
        test_colour: `"reversed"` as above, or `"same"` to colour the test part by the rule of training.
    """
    name = "rcf_mnist"
    check_split(name, split)
    if isinstance(spurious_ratio, bool) or not isinstance(spurious_ratio, (int, float)):
        raise TypeError(f"data set 'rcf_mnist' expected spurious_ratio to be a number, got {spurious_ratio!r}")
    if not 0 <= spurious_ratio <= 1:
        raise ValueError(f"data set 'rcf_mnist' expected spurious_ratio in 0..1, got {spurious_ratio}")
    check_choice(name, "test_colour", test_colour, ("reversed", "same"))
    path = find_file(
        name,
        root,
        ["train-images-idx3-ubyte", "train-images-idx3-ubyte.gz"],
        "https://github.com/zalandoresearch/fashion-mnist",
        ("rcf_mnist", "FashionMNIST/raw", "fashion_mnist"),
    )
    images = _idx_images(path)
    draws = np.random.RandomState(split)
    order = draws.permutation(len(images))

    def part(rows: Rows, majority: int) -> RegressionData:
        share = draws.random_sample(len(rows))
        groups = np.full(len(rows), majority)
        if majority == 2:
            red = draws.random_sample(len(rows))
        else:
            groups[draws.permutation(len(rows))[int(len(rows) * spurious_ratio) :]] = 1 - majority
            red = np.where(groups == 0, share, 1 - share)
        return RegressionData(
            torch.from_numpy(_coloured(_rotated(images[rows], 360 * share), red)),
            torch.from_numpy(share[:, None]).float(),
            torch.from_numpy(groups.astype(np.int64)),
        )

    train = part(order[:40_000], 0)
    valid = part(order[40_000:50_000], 2)
    test = part(order[50_000:], 1 if test_colour == "reversed" else 0)
    half = (0.5, 0.5, 0.5)
    return RegressionSet(name, train, valid, test, ("angle",), ("red", "green", "blue"), "colour", half, half)


def _idx_images(path: Path) -> NDArray[np.uint8]:
    """(60000, 28, 28) from the published format: magic number and sizes, big-endian, then bytes."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    head = np.frombuffer(raw[:16], dtype=">i4").tolist() if len(raw) >= 16 else []
    if head != [2051, _FASHION_IMAGES, 28, 28] or len(raw) != 16 + _FASHION_IMAGES * 784:
        raise ValueError(f"{path} does not hold 60,000 images of 28x28 in IDX format, got header {head}")
    return np.frombuffer(raw, dtype=np.uint8, offset=16).reshape(-1, 28, 28)


def _rotated(images: NDArray[np.uint8], degrees: Numbers) -> NDArray[np.uint8]:
    """(N, H, W) grey images, each turned counter-clockwise about its centre."""
    from PIL import Image

    turned = np.empty_like(images)
    for index, (image, angle) in enumerate(zip(images, degrees.tolist(), strict=True)):
        turned[index] = np.asarray(Image.fromarray(image).rotate(angle))
    return turned


def _coloured(images: NDArray[np.uint8], red: Numbers) -> NDArray[np.uint8]:
    """(N, 3, H, W) of grey (N, H, W) images and each one's share of red; the rest of the light is blue."""
    lit = images > _BACKGROUND
    coloured = np.repeat(images[:, None], 3, axis=1)
    coloured[:, 1][lit] = 0
    for channel, share in ((0, red), (2, 1 - red)):
        tones = np.rint(images * share.astype(np.float32)[:, None, None])
        coloured[:, channel] = np.where(lit, tones, images)
    return coloured
