"""What `mixaug.data.load` gives: a pair of splits with the facts that a training run needs about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["ArrayData", "DataSet", "FileData", "MappedData"]

Triple = tuple[float, ...]


@dataclass(frozen=True, eq=False, repr=False)
class ArrayData(Dataset[tuple[Tensor, int]]):
    """A split held in memory; also a map data set of (uint8 image, int label).

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) int64.

    Raises:
        TypeError: wrong dtype.
        ValueError: wrong shape, or lengths that differ.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8:
            raise TypeError(f"ArrayData expected uint8 images, got {self.images.dtype}")
        if self.labels.dtype != torch.int64:
            raise TypeError(f"ArrayData expected int64 labels, got {self.labels.dtype}")
        if self.images.ndim != 4 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                "ArrayData expected images (N, C, H, W) and labels (N,), "
                f"got {tuple(self.images.shape)} and {tuple(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])

    def __repr__(self) -> str:
        return f"ArrayData(images={tuple(self.images.shape)}, labels={tuple(self.labels.shape)})"


@dataclass(frozen=True, eq=False)
class MappedData(Dataset[tuple[Any, int]]):
    """A split in memory whose images go through a transform, one by one.

    Args:
        data: the split.
        transform: from a (C, H, W) uint8 tensor to anything.
    """

    data: ArrayData
    transform: Callable[[Tensor], Any]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, label = self.data[index]
        return self.transform(image), label


@dataclass(frozen=True, eq=False)
class FileData(Dataset[tuple[Any, int]]):
    """A split given as a list of image files, read on access as RGB PIL images.

    Args:
        paths: one image file per sample.
        labels: their class ids.
        transform: applied to each PIL image; None leaves it as it is.
    """

    paths: Sequence[Path] = field(repr=False)
    labels: Sequence[int] = field(repr=False)
    transform: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        if len(self.paths) != len(self.labels):
            raise ValueError(f"FileData got {len(self.paths)} paths and {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        with Image.open(self.paths[index]) as file:
            image = file.convert("RGB")
        return (image if self.transform is None else self.transform(image)), self.labels[index]


@dataclass(frozen=True, eq=False)
class DataSet:
    """Two splits and what is known about them.

    Attributes:
        name: the name it was loaded by.
        train, test: `ArrayData`, or a map data set that yields (PIL or uint8 tensor image, int label).
        num_classes: K; labels are 0..K-1.
        mean, std: per channel, of images scaled to [0, 1] (uint8 / 255).
        image_size: (C, H, W) that a model meets; for files without a transform, the size they are meant to be
            brought to.
        class_names: K names in the order of the labels.
    """

    name: str
    train: Dataset[Any]
    test: Dataset[Any]
    num_classes: int
    mean: Triple
    std: Triple
    image_size: tuple[int, int, int]
    class_names: tuple[str, ...] = field(repr=False)

    @property
    def in_memory(self) -> bool:
        """Whether both splits are `ArrayData`, ready for a device-resident loader."""
        return isinstance(self.train, ArrayData) and isinstance(self.test, ArrayData)
