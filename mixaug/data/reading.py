"""What loaders of images share: files that must be there, named transforms, splits."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixaug.data.sets import ArrayData, DataSet, FileData, MappedData

# The normalisation that the published CIFAR mixing tables use, for both sets.
CIFAR_MEAN = (0.4914, 0.4822, 0.4465)


CIFAR_STD = (0.2023, 0.1994, 0.201)


IMAGENET_MEAN = (0.485, 0.456, 0.406)


IMAGENET_STD = (0.229, 0.224, 0.225)


Root = str | Path


Transform = str | Callable[[Any], Any] | None


def require_files(
    name: str, root: Root, expected: Iterable[str], published: str | None, *, holds: str | None = None
) -> Path:
    """`root` as a path, if every expected file or folder (ending in "/") lies under it.

    Where one does not, the error says where the set is published, or, of a set of the user's own, what it holds.
    """
    folder = Path(root).expanduser()
    expected = list(expected)
    missing = [entry for entry in expected if not _present(folder, entry)]
    if not missing:
        return folder
    what = "does not exist" if not folder.is_dir() else f"lacks {shortened(missing)}"
    raise FileNotFoundError(
        f"data set {name!r}: the folder {str(folder)!r} {what}. Expected in it: {shortened(expected)}. "
        + (f"It holds {holds}" if published is None else f"The set is published at {published}")
        + "; mixaug downloads nothing."
    )


def _present(folder: Path, entry: str) -> bool:
    return (folder / entry).is_dir() if entry.endswith("/") else (folder / entry).is_file()


def shortened(entries: list[str], most: int = 10) -> str:
    rest = f" and {len(entries) - most} more" if len(entries) > most else ""
    return ", ".join(entries[:most]) + rest


class Sides(NamedTuple):
    """What is known of the size of images before one is read.

    Attributes:
        told: side in pixels that ``image_size`` says, or that a named transform makes; None where nothing tells it.
        usual: side where nothing tells it.
        kept: options whose transform leaves images at the size they have.
    """

    told: int | None
    usual: int
    kept: tuple[str, ...]


def _transforms(
    transform: Transform, test_transform: Transform, image_size: int | None, usual: int
) -> tuple[Callable[[Any], Any] | None, Callable[[Any], Any] | None, Sides]:
    """Both transforms as callables, and the size in pixels of what they give.

    Raises:
        TypeError: a transform that is none.
        ValueError: an unknown name, a size that is none, transforms that make images of two sizes.
    """
    if image_size is not None and (isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < 1):
        raise ValueError(f"image_size must be a positive int or None, got {image_size!r}")
    built: list[Callable[[Any], Any] | None] = []
    made: dict[str, int] = {}
    kept = []
    for option, value in (("test_transform", test_transform), ("transform", transform)):
        if isinstance(value, str):
            from mixaug.data.transforms import build, default_size

            side = default_size(value)
            built.append(build(value, None if side is None else image_size))
            if side is None:
                kept.append(option)
            else:
                made[f"{option}={value}"] = image_size or side
        elif value is None or callable(value):
            built.append(value)
            kept += [option] if value is None else []
        else:
            raise TypeError(f"{option} must be a name, a callable or None, got {value!r}")
    if len(set(made.values())) > 1:
        sizes = " and ".join(f"{option} images of {side} pixels" for option, side in made.items())
        raise ValueError(f"{sizes}, but a model meets one size: give image_size, which both then make")
    told = image_size or next(iter(made.values()), None)
    return built[1], built[0], Sides(told, usual, tuple(kept))


def file_transforms(
    transform: Transform, test_transform: Transform, image_size: int | None, usual: int
) -> tuple[Callable[[Any], Any] | None, Callable[[Any], Any] | None, Sides]:
    """As `_transforms`; where one is given and the other is not, the other makes tensors of the images as they are."""
    if transform is None and test_transform is not None:
        transform = "uint8"
    if test_transform is None and transform is not None:
        test_transform = "uint8"
    return _transforms(transform, test_transform, image_size, usual)


def in_memory_set(
    name: str,
    train: ArrayData,
    test: ArrayData,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    class_names: Iterable[str],
    transform: Transform,
    test_transform: Transform,
    image_size: int | None,
    fitted: bool = False,
    valid: ArrayData | None = None,
) -> DataSet:
    channels, height, width = train.images.shape[1:]
    train_fn, test_fn, sides = _transforms(transform, test_transform, image_size, height)
    if sides.kept and sides.told not in (None, height):
        other = f"image_size={image_size}" if image_size else f"{sides.told} pixels, as the other images have them,"
        raise ValueError(
            f"data set {name!r} has {height}x{width} images, which {' and '.join(reversed(sides.kept))} would keep; "
            f"{other} needs {' and '.join(reversed(sides.kept))} to make them, such as cifar_vit_test"
        )
    names = tuple(class_names)
    side = sides.told or height
    return DataSet(
        name=name,
        train=train if train_fn is None else MappedData(train, train_fn),
        test=test if test_fn is None else MappedData(test, test_fn),
        num_classes=len(names),
        mean=mean,
        std=std,
        image_size=(channels, height, width) if sides.kept else (channels, side, side),
        class_names=names,
        valid=valid if valid is None or test_fn is None else MappedData(valid, test_fn),
        fitted=fitted,
    )


def set_from_files(
    name: str, train: FileData, test: FileData, class_names: Iterable[str], sides: Sides, valid: FileData | None = None
) -> DataSet:
    """A data set of image files; where images stay as they are, the first one says the size, once that is asked for."""
    told = None if sides.told is None else (3, sides.told, sides.told)
    size: Any = told or partial(_size_of_first, [train, test, *([] if valid is None else [valid])], sides.usual)
    names = tuple(class_names)
    return DataSet(name, train, test, len(names), IMAGENET_MEAN, IMAGENET_STD, size, names, valid)


def _size_of_first(parts: Sequence[FileData], usual: int) -> tuple[int, ...]:
    """(C, H, W) of the first image of a part that keeps its images as they are; the usual one where none does."""
    kept = [part for part in parts if len(part) and _keeps_size(part)]
    return tuple(kept[0][0][0].shape) if kept else (3, usual, usual)


def _keeps_size(part: object) -> bool:
    return isinstance(part, FileData) and bool(getattr(part.transform, "keeps_size", False))


def fault_of_sizes(data: DataSet) -> str:
    """What keeps a model from meeting images of one size in all parts of a set; empty where nothing does.

    Of each part of files that stay as they are the first one is read.

    Raises:
        OSError: it cannot be.
    """
    for option, part in (("transform", data.train), ("test_transform", data.test), ("test_transform", data.valid)):
        if not isinstance(part, FileData) or not _keeps_size(part) or not len(part):
            continue
        own, size = tuple(part[0][0].shape), tuple(data.image_size)
        if own != size:
            return (
                f"data set {data.name!r}: {option} keeps images as they are, and {part.paths[0]} is of "
                f"{own[1]}x{own[2]} pixels, but image_size or the other images are of {size[1]}x{size[2]}: give "
                f"{option} one that makes that size, such as imagenet_test"
            )
    return ""


def read_lines(path: Path, columns: int) -> list[list[str]]:
    """Lines of a text table, split at white space into `columns` fields (the last keeps its blanks)."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        fields = line.split(maxsplit=columns - 1)
        if len(fields) != columns:
            raise ValueError(f"{path}, line {number}: expected {columns} fields, got {line!r}")
        rows.append(fields)
    return rows


def read_metadata(name: str, table: Path, root: Path, parts: Sequence[Sequence[str]]) -> list[dict[str, Tensor]]:
    """Whole numbers known of each file, from a table with the column `path` and one for each of them.

    Args:
        name: of the data set, for messages.
        table: CSV file with a header; `path` is relative to `root`, with `/` between folders.
        root: folder of the files.
        parts: files of each part.

    Returns:
        For each part the columns by name, (N,) int64.

    Raises:
        ValueError: no such column, no other one, a file that the table lacks, a value that is no whole number.
    """
    with table.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        columns = [column for column in reader.fieldnames or () if column != "path"]
        if "path" not in (reader.fieldnames or ()) or not columns:
            raise ValueError(f"{table} needs the column path and at least one more, it has {reader.fieldnames}")
        known = {row["path"]: row for row in reader}
    found = []
    for files in parts:
        paths = [Path(entry).relative_to(root).as_posix() for entry in files]
        absent = [path for path in paths if path not in known]
        if absent:
            raise ValueError(f"data set {name!r}: {table} lacks {shortened(absent)}")
        try:
            values = {column: [int(known[path][column]) for path in paths] for column in columns}
        except (TypeError, ValueError) as error:
            raise ValueError(f"{table}: expected whole numbers beside each path: {error}") from error
        found.append({column: torch.tensor(numbers, dtype=torch.int64) for column, numbers in values.items()})
    return found


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of (N, C, H, W) uint8 images, scaled to [0, 1]."""
    pixels = images.double().div(255).transpose(0, 1).flatten(1)
    return tuple(pixels.mean(1).tolist()), tuple(pixels.std(1, correction=0).tolist())


def stratified_rows(labels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Indices of `size` samples in ascending order, with every class at its share (largest remainders first).

    Each class is permuted whole before its first samples are taken, so with one seed a smaller draw from a
    class is part of a larger one.
    """
    counts = torch.bincount(labels)
    exact = counts.double() * size / len(labels)
    take = exact.floor().long()
    remainders = torch.argsort(exact - take, descending=True, stable=True)
    take[remainders[: size - int(take.sum())]] += 1
    chosen = []
    for label, amount in enumerate(take.tolist()):
        members = torch.nonzero(labels == label).squeeze(1)
        chosen.append(members[torch.randperm(len(members), generator=generator)[:amount]])
    return torch.cat(chosen).sort().values
