"""What `mixaug.data.load` gives: a pair of splits with the facts that a training run needs about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mixaug.axes import check_place_of_channels
from mixaug.data.images import read_rgb
from mixaug.frozen import BriefRepr
from mixaug.labeling.object import OBJECT_MASK

__all__ = ["ArrayData", "DataSet", "FileData", "MappedData", "RegressionData", "RegressionSet"]

Triple = tuple[float, ...]

_PERMUTE = "permute(0, 3, 1, 2) brings the channels there"


@dataclass(frozen=True, eq=False, repr=False)
class ArrayData(Dataset[tuple[Tensor, int]]):
    """A split held in memory; also a map data set of (uint8 image, int label).

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) int64.
        metadata: per-sample tensors by name, (N, ...), such as "domain"; batches carry them beside the images.

    Raises:
        TypeError: wrong dtype.
        ValueError: wrong shape, or lengths that differ.
    """

    images: Tensor
    labels: Tensor
    metadata: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8:
            raise TypeError(f"ArrayData expected uint8 images, got {self.images.dtype}")
        if self.labels.dtype != torch.int64:
            raise TypeError(f"ArrayData expected int64 labels, got {self.labels.dtype}")
        if self.images.ndim == 4:
            check_place_of_channels("ArrayData", self.images.shape, "(N, C, H, W)", _PERMUTE)
        if self.images.ndim != 4 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                "ArrayData expected images (N, C, H, W) and labels (N,), "
                f"got {tuple(self.images.shape)} and {tuple(self.labels.shape)}"
            )
        _check_metadata("ArrayData", self.metadata, len(self.labels))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])

    @property
    def inputs(self) -> Tensor:
        """The images, under the name that all splits in memory have."""
        return self.images

    def take(self, rows: Tensor, labels: Tensor | None = None) -> ArrayData:
        """The samples of these rows (n,) int64, with other labels (n,) where they are given."""
        taken = self.labels[rows] if labels is None else labels
        return ArrayData(self.images[rows], taken, _taken(self.metadata, rows))

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

    @property
    def metadata(self) -> Mapping[str, Tensor]:
        """Those of the split, but for masks of objects, which do not go through the transform."""
        return {name: values for name, values in self.data.metadata.items() if name != OBJECT_MASK}

    def take(self, rows: Tensor, labels: Tensor | None = None) -> MappedData:
        """The samples of these rows (n,) int64, with other labels (n,) where they are given."""
        return MappedData(self.data.take(rows, labels), self.transform)


@dataclass(frozen=True, eq=False)
class FileData(BriefRepr, Dataset[tuple[Any, int]]):
    """A split given as a list of image files, read on access as RGB PIL images of eight bits.

    Args:
        paths: one image file per sample.
        labels: their class ids.
        transform: applied to each PIL image; None leaves it as it is.
        metadata: per-sample tensors by name, (N, ...), such as "domain"; batches carry them beside the images.

    Raises:
        ValueError: paths and labels of different number; on access, values whose range is not known.
        OSError: on access, a file that cannot be read; names it.
    """

    paths: Sequence[Path | str] = field(repr=False)
    labels: Sequence[int] = field(repr=False)
    transform: Callable[[Any], Any] | None = None
    metadata: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if len(self.paths) != len(self.labels):
            raise ValueError(f"FileData got {len(self.paths)} paths and {len(self.labels)} labels")
        _check_metadata("FileData", self.metadata, len(self.labels))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = read_rgb(self.paths[index])
        return (image if self.transform is None else self.transform(image)), self.labels[index]

    def take(self, rows: Tensor, labels: Tensor | None = None) -> FileData:
        """The samples of these rows (n,) int64, with other labels (n,) where they are given."""
        places = rows.tolist()
        taken = [self.labels[row] for row in places] if labels is None else labels.tolist()
        return FileData([self.paths[row] for row in places], taken, self.transform, _taken(self.metadata, rows))


def _check_metadata(what: str, metadata: Mapping[str, Tensor], samples: int) -> None:
    for name, values in metadata.items():
        if not isinstance(values, Tensor):
            raise TypeError(f"{what} expected metadata[{name!r}] to be a tensor, got {type(values).__name__}")
        if values.ndim == 0 or len(values) != samples:
            raise ValueError(
                f"{what} expected metadata[{name!r}] with a row for each of {samples} samples, got shape "
                f"{tuple(values.shape)}"
            )


def _taken(metadata: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    return {name: values[rows] for name, values in metadata.items()}


@dataclass(frozen=True, eq=False)
class DataSet:
    """A training and a test part, with or without one for validation, and what is known about them.

    Attributes:
        name: the name it was loaded by.
        train, test: `ArrayData`, or a map data set that yields (PIL or uint8 tensor image, int label). A data set of
            your own may have an attribute ``metadata``, per-sample tensors by name.
        num_classes: K; labels are 0..K-1.
        mean, std: per channel, of images scaled to [0, 1] (uint8 / 255).
        image_size: (C, H, W) that a model meets; for files without a transform, the size they are meant to be
            brought to. A function without arguments may be given that finds it: it is called when the attribute is
            first read.
        class_names: K names in the order of the labels.
        valid: a part like ``test`` to choose epochs and options on, or None.
        fitted: whether ``mean`` and ``std`` are those of the training images, and follow a choice among them.
    """

    name: str
    train: Dataset[Any]
    test: Dataset[Any]
    num_classes: int
    mean: Triple
    std: Triple
    image_size: tuple[int, int, int]
    class_names: tuple[str, ...] = field(repr=False)
    valid: Dataset[Any] | None = None
    fitted: bool = False

    def __post_init__(self) -> None:
        if callable(self.image_size):
            object.__setattr__(self, "_find_size", self.image_size)
            object.__delattr__(self, "image_size")

    def __getattr__(self, name: str) -> Any:
        # Python asks here for what is not there, as the size of images is until it is found.
        find = vars(self).get("_find_size") if name == "image_size" else None
        if find is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        found = find()
        object.__setattr__(self, name, found)
        return found

    def replaced(self, **changes: Any) -> DataSet:
        """The set with other values of some attributes; a size that nobody has asked for is not looked up for it."""
        size = vars(self).get("image_size") or vars(self)["_find_size"]
        return replace(self, **{"image_size": size, **changes})

    @property
    def in_memory(self) -> bool:
        """Whether all parts are `ArrayData`, ready for a device-resident loader."""
        return all(isinstance(part, ArrayData) for part in (self.train, self.test, self.valid) if part is not None)

    @property
    def outputs(self) -> int:
        """Size of a model's output: one logit per class."""
        return self.num_classes

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, `image_size`."""
        return self.image_size


@dataclass(frozen=True, eq=False, repr=False)
class RegressionData(Dataset[tuple[Tensor, Tensor]]):
    """A split with real-valued labels, held in memory; also a map data set of (input, label).

    Args:
        inputs: (N, F) table rows, (N, series, steps) windows or any other (N, ...) float32, or (N, C, H, W)
            uint8 images.
        labels: (N, D) float32, D >= 1.
        groups: (N,) int64, the group (domain) of every row; None where there are none.

    Raises:
        TypeError: wrong dtype.
        ValueError: wrong shape, lengths that differ, no rows, or values that are NaN or infinite.
    """

    inputs: Tensor
    labels: Tensor
    groups: Tensor | None = None

    def __post_init__(self) -> None:
        inputs, labels, groups = self.inputs, self.labels, self.groups
        if inputs.dtype not in (torch.float32, torch.uint8):
            raise TypeError(f"RegressionData expected float32 inputs or uint8 images, got {inputs.dtype}")
        if labels.dtype != torch.float32:
            raise TypeError(f"RegressionData expected float32 labels, got {labels.dtype}")
        if groups is not None and groups.dtype != torch.int64:
            raise TypeError(f"RegressionData expected int64 groups, got {groups.dtype}")
        if inputs.dtype == torch.uint8 and inputs.ndim != 4:
            raise ValueError(f"RegressionData expected uint8 images (N, C, H, W), got {tuple(inputs.shape)}")
        if inputs.dtype == torch.uint8:
            check_place_of_channels("RegressionData", inputs.shape, "(N, C, H, W)", _PERMUTE)
        if inputs.ndim < 2 or labels.ndim != 2 or labels.shape[1] < 1 or len(inputs) != len(labels):
            raise ValueError(
                "RegressionData expected inputs (N, ...) and labels (N, D), "
                f"got {tuple(inputs.shape)} and {tuple(labels.shape)}"
            )
        if groups is not None and groups.shape != labels.shape[:1]:
            raise ValueError(f"RegressionData expected groups ({len(labels)},), got {tuple(groups.shape)}")
        if not len(labels):
            raise ValueError("RegressionData expected at least one row, got none")
        for what, values in (("inputs", inputs), ("labels", labels)):
            if values.is_floating_point() and not values.isfinite().all():
                row = int((~values.isfinite()).flatten(1).any(1).nonzero()[0])
                raise ValueError(f"RegressionData expected finite {what}, got NaN or infinity, first in row {row}")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.labels[index]

    @property
    def metadata(self) -> Mapping[str, Tensor]:
        """The groups as "domain", where there are some."""
        return {} if self.groups is None else {"domain": self.groups}

    def __repr__(self) -> str:
        groups = "" if self.groups is None else f", groups={tuple(self.groups.shape)}"
        return f"RegressionData(inputs={tuple(self.inputs.shape)}, labels={tuple(self.labels.shape)}{groups})"


@dataclass(frozen=True, eq=False)
class RegressionSet:
    """Three splits with real-valued labels and what is known about them.

    Attributes:
        name: the name it was loaded by.
        train, valid, test: inputs of one shape and dtype, labels of one width, groups in all or in none.
        target_names: D names, the columns of the labels.
        input_names: names along the first dimension of one input: columns, series or channels.
        group_name: what a group is (`"state"`), where the splits have groups.
        mean, std: per channel, of images scaled to [0, 1] (uint8 / 255); None for other inputs.

    Raises:
        ValueError: splits that do not fit together, or names that do not fit the splits.
    """

    name: str
    train: RegressionData
    valid: RegressionData
    test: RegressionData
    target_names: tuple[str, ...]
    input_names: tuple[str, ...] = field(repr=False)
    group_name: str | None = None
    mean: Triple | None = None
    std: Triple | None = None

    def __post_init__(self) -> None:
        for split, data in (("valid", self.valid), ("test", self.test)):
            same = (data.inputs.shape[1:], data.labels.shape[1:]) == (self.input_shape, self.train.labels.shape[1:])
            if not same or data.inputs.dtype != self.train.inputs.dtype:
                raise ValueError(f"RegressionSet expected {split} to be like train, got {data} and {self.train}")
        if len(self.target_names) != self.outputs or len(self.input_names) != self.input_shape[0]:
            raise ValueError(
                f"RegressionSet expected {self.outputs} target_names and {self.input_shape[0]} input_names, "
                f"got {len(self.target_names)} and {len(self.input_names)}"
            )
        grouped = {data.groups is not None for data in (self.train, self.valid, self.test)}
        if grouped != {self.group_name is not None}:
            raise ValueError(
                f"RegressionSet expected groups in every split if and only if group_name is given, got {self}"
            )
        channels = (self.input_shape[0],) if self.train.inputs.dtype == torch.uint8 else ()
        for what, values in (("mean", self.mean), ("std", self.std)):
            if (values is None) != (not channels) or (values is not None and (len(values),) != channels):
                raise ValueError(
                    f"RegressionSet expected {what} per channel of images and for images only, got {values}"
                )

    @property
    def in_memory(self) -> bool:
        """Always."""
        return True

    @property
    def outputs(self) -> int:
        """D, the size of a model's output."""
        return self.train.labels.shape[1]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.train.inputs.shape[1:])
