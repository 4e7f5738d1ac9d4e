"""Tables of numbers: options that loaders share, cells of a file as numbers, splits and scaling."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mixaug.data.sets import RegressionData, RegressionSet
from mixaug.near import did_you_mean

Root = str | Path


Numbers = NDArray[np.float64]


Rows = NDArray[np.int64]


Parts = tuple[Rows, Rows, Rows]


SCALINGS = ("minmax", "standard", "none")


MISSING = frozenset({"", "?", "na", "n/a", "nan", "null", "none"})


def check_choice(name: str, option: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(
            f"data set {name!r} expected {option} to be one of {', '.join(choices)}, got {value!r}"
            f"{did_you_mean(value, choices)}"
        )


def check_fit(name: str, scaling: str, fit_on: str, scalings: Sequence[str] = SCALINGS) -> None:
    check_choice(name, "scaling", scaling, scalings)
    check_choice(name, "fit_on", fit_on, ("train", "all"))


def check_split(name: str, value: object) -> None:
    if value == "by_seed":
        raise ValueError(
            f"data set {name!r}: split='by_seed' is resolved by the training engine, which passes the run's seed; "
            "give an int here"
        )
    check_int(name, "split", value, 0, 2**32 - 1)


def check_int(name: str, option: str, value: object, least: int, most: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"data set {name!r} expected {option} to be an int, got {value!r}")
    if value < least or (most is not None and value > most):
        bounds = f">= {least}" if most is None else f"in {least}..{most}"
        raise ValueError(f"data set {name!r} expected {option} {bounds}, got {value}")


def check_share(name: str, option: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"data set {name!r} expected {option} to be a number, got {value!r}")
    if not 0 < value < 1:
        raise ValueError(f"data set {name!r} expected {option} between 0 and 1, got {value}")


def find_file(
    name: str, root: Root, files: Sequence[str], published: str, folders: Sequence[str] | None = None
) -> Path:
    """The first of the alternative `files` that exists in `root` or in one of its `folders` (the set's name)."""
    base = Path(root).expanduser()
    inner = (name,) if folders is None else tuple(folders)
    for folder in (base, *(base / entry for entry in inner)):
        for file in files:
            if (folder / file).is_file():
                return folder / file
    what = "lacks it" if base.is_dir() else "does not exist"
    raise FileNotFoundError(
        f"data set {name!r}: the folder {str(base)!r} {what}. Expected: {' or '.join(files)}, in it or in its folder "
        f"{' or '.join(inner)}. The set is published at {published}; mixaug downloads nothing."
    )


def read_cells(path: Path, delimiter: str = ",") -> list[list[str]]:
    """Fields of a text table, every row of equal length; packed files are unpacked."""
    raw = path.read_bytes()
    try:
        text = (gzip.decompress(raw) if path.suffix.lower() == ".gz" else raw).decode("utf-8-sig")
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row]
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as comma-separated text in UTF-8: {error}") from error
    if not rows:
        raise ValueError(f"{path} is empty")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(rows[0]):
            raise ValueError(f"{path}, row {number}: expected {len(rows[0])} fields, got {len(row)}")
    return rows


def numbers_of(path: Path, column: str, cells: Sequence[Any]) -> Numbers:
    """One column of text or typed cells; missing cells become NaN."""
    values = np.empty(len(cells))
    for row, cell in enumerate(cells):
        missing = cell is None or (isinstance(cell, str) and cell.strip().lower() in MISSING)
        try:
            if isinstance(cell, str) and "_" in cell:
                raise ValueError("a number of Python's, not of a table")
            values[row] = np.nan if missing else float(cell)
        except (TypeError, ValueError):
            raise ValueError(
                f"{path}: column {column!r} is not numeric, first in data row {row + 1}: {cell!r}"
            ) from None
    beyond = np.abs(values) > np.finfo(np.float32).max
    if beyond.any():
        row = int(beyond.argmax())
        raise ValueError(
            f"{path}: column {column!r} is infinite or beyond float32, first in data row {row + 1}: {cells[row]!r}"
        )
    return values


def pick_columns(path: Path, names: Sequence[str], cells: list[list[str]], columns: Sequence[str]) -> Numbers:
    """(N, len(columns)) numbers of the columns with these names."""
    absent = [column for column in columns if column not in names]
    if absent:
        raise ValueError(f"{path} lacks the column(s) {', '.join(absent)}; it has {', '.join(names)}")
    picked = [names.index(column) for column in columns]
    return np.stack([numbers_of(path, names[k], [row[k] for row in cells]) for k in picked], axis=1)


def expect_rows(path: Path, rows: int, expected: int) -> None:
    if rows != expected:
        raise ValueError(f"{path} has {rows} rows; the published file, which the splits belong to, has {expected}")


def expect_width(path: Path, cells: list[list[str]], expected: int) -> None:
    if len(cells[0]) != expected:
        raise ValueError(f"{path} has {len(cells[0])} columns; expected {expected}")


def random_parts(rows: int, seed: int, train: int, valid: int) -> Parts:
    """One permutation by numpy's legacy generator, whose streams never change, cut in three."""
    order = np.random.RandomState(seed).permutation(rows).astype(np.int64)
    return order[:train], order[train : train + valid], order[train + valid :]


def whole_group_parts(path: Path, groups: Rows, train_share: float = 0.7, valid_share: float = 0.1) -> Parts:
    """Whole groups in ascending order, cut as C-Mixup's code does; rows keep the order of the file.

    The group that brings the rows so far to `train_share` of all is the first of validation; the first group that
    brings a further `valid_share`, counted from the end of that one, is the first of test.
    """
    ids, counts = np.unique(groups, return_counts=True)
    ends = np.cumsum(counts)
    first = int(np.searchsorted(ends, int(len(groups) * train_share)))
    second = int(np.searchsorted(ends, ends[first] + int(len(groups) * valid_share)))
    if not 0 < first < second < len(ids):
        raise ValueError(f"{path}: too few groups or rows to split, got {len(ids)} groups of {len(groups)} rows")
    place = np.searchsorted(ids, groups)
    return (
        np.flatnonzero(place < first),
        np.flatnonzero((place >= first) & (place < second)),
        np.flatnonzero(place >= second),
    )


def _filled(name: str, inputs: Numbers, columns: Sequence[str], fit: Numbers) -> Numbers:
    """Missing cells replaced by their column's mean over the known cells of `fit`."""
    missing = np.isnan(inputs)
    if not missing.any():
        return inputs
    known = (~np.isnan(fit)).sum(0)
    unknown = [columns[k] for k in np.flatnonzero(missing.any(0) & (known == 0)).tolist()]
    if unknown:
        raise ValueError(f"data set {name!r}: no known cell to fill column(s) {', '.join(unknown)} from")
    return np.where(missing, np.nansum(fit, axis=0) / np.maximum(known, 1), inputs)


def _scaled(inputs: Numbers, fit: Numbers, scaling: str) -> Numbers:
    """`inputs` (N, F) by the statistics of `fit` (M, F)."""
    if scaling == "none":
        return inputs
    if scaling == "minmax":
        shift, span = fit.min(0), np.ptp(fit, axis=0)
    else:
        # The mean of equal numbers may miss them by a rounding, which would then be divided by itself.
        shift, span = fit.mean(0), np.where(np.ptp(fit, axis=0) > 0, fit.std(0), 0.0)
        shift = np.where(span > 0, shift, fit[0])
    return (inputs - shift) / np.where(span > 0, span, 1.0)


def assembled_set(
    name: str,
    inputs: Numbers,
    labels: Numbers,
    parts: Parts,
    input_names: Sequence[str],
    target_names: Sequence[str],
    scaling: str,
    fit_on: str,
    groups: Rows | None = None,
    group_name: str | None = None,
) -> RegressionSet:
    """Fills, scales and cuts a table; labels (N, D) stay as they are."""
    for column, values in zip(target_names, labels.T, strict=True):
        if np.isnan(values).any():
            row = int(np.isnan(values).argmax()) + 1
            raise ValueError(f"data set {name!r}: the target {column!r} is missing, first in data row {row}")
    fit_rows = parts[0] if fit_on == "train" else slice(None)
    inputs = _filled(name, inputs, input_names, inputs[fit_rows])
    inputs = _scaled(inputs, inputs[fit_rows], scaling)

    def part(rows: Rows) -> RegressionData:
        return RegressionData(
            torch.from_numpy(inputs[rows]).float(),
            torch.from_numpy(labels[rows]).float(),
            None if groups is None else torch.from_numpy(groups[rows]),
        )

    train, valid, test = (part(rows) for rows in parts)
    return RegressionSet(name, train, valid, test, tuple(target_names), tuple(input_names), group_name)
