"""What loaders of images share: files that must be there, named transforms, splits."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixaug.data.sets import ArrayData, DataSet, MappedData

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


def _transforms(
    transform: Transform, test_transform: Transform, image_size: int | None, native: int
) -> tuple[Callable[[Any], Any] | None, Callable[[Any], Any] | None, int]:
    """Both transforms as callables, and the side in pixels of what they give."""
    if image_size is not None and (isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < 1):
        raise ValueError(f"image_size must be a positive int or None, got {image_size!r}")
    side = image_size
    built: list[Callable[[Any], Any] | None] = []
    for option, value in (("test_transform", test_transform), ("transform", transform)):
        if isinstance(value, str):
            from mixaug.data.transforms import build, default_size

            usual = default_size(value)
            built.append(build(value, image_size if usual is not None else None))
            side = side or usual
        elif value is None or callable(value):
            built.append(value)
        else:
            raise TypeError(f"{option} must be a name, a callable or None, got {value!r}")
    return built[1], built[0], side or native


def file_transforms(
    transform: Transform, test_transform: Transform, image_size: int | None, native: int
) -> tuple[Callable[[Any], Any] | None, Callable[[Any], Any] | None, int]:
    """As `_transforms`; where one is given and the other is not, the other makes tensors of the images as they are."""
    if transform is None and test_transform is not None:
        transform = "uint8"
    if test_transform is None and transform is not None:
        test_transform = "uint8"
    return _transforms(transform, test_transform, image_size, native)


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
    train_fn, test_fn, side = _transforms(transform, test_transform, image_size, height)
    plain = train_fn is None and test_fn is None
    if plain and image_size not in (None, height):
        raise ValueError(
            f"data set {name!r} has {height}x{width} images; image_size={image_size} needs transform and test_transform"
        )
    names = tuple(class_names)
    return DataSet(
        name=name,
        train=train if train_fn is None else MappedData(train, train_fn),
        test=test if test_fn is None else MappedData(test, test_fn),
        num_classes=len(names),
        mean=mean,
        std=std,
        image_size=(channels, height, width) if plain else (channels, side, side),
        class_names=names,
        valid=valid if valid is None or test_fn is None else MappedData(valid, test_fn),
        fitted=fitted,
    )


def set_from_files(
    name: str, train: Any, test: Any, class_names: Iterable[str], image_size: int, valid: Any = None
) -> DataSet:
    names = tuple(class_names)
    size = (3, image_size, image_size)
    return DataSet(name, train, test, len(names), IMAGENET_MEAN, IMAGENET_STD, size, names, valid)


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
