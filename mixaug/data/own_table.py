"""A user's own table of numbers as a data set: CSV or Parquet."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mixaug.data.sets import RegressionSet
from mixaug.data.tables import (
    MISSING,
    Numbers,
    Root,
    Rows,
    assembled_set,
    check_choice,
    check_fit,
    check_share,
    check_split,
    numbers_of,
    random_parts,
    read_cells,
)


def table(
    root: Root,
    *,
    target: str | Sequence[str],
    inputs: Sequence[str] | None = None,
    group: str | None = None,
    valid_share: float = 0.1,
    test_share: float = 0.2,
    split: int = 0,
    missing: str = "error",
    scaling: str = "minmax",
    fit_on: str = "train",
) -> RegressionSet:
    """Your own table: a .csv file with a header, packed as .csv.gz or not, or a .parquet file (needs pyarrow).

    Rows are split at random: the first of a permutation by numpy's legacy generator for training, the next for
    validation, the last for testing. Empty cells, `?`, `NA`, `N/A`, `NaN`, `null` and `None` in any case are missing.

    Args:
        root: path of the file.
        target: the column to predict, or several; numbers without missing cells. A constant one is allowed.
        inputs: the input columns; default all but `target` and `group`. They must hold numbers.
        group: a column that names every row's group; the split does not heed it. Integers stay as they are, anything
            else is counted from 0 in sorted order.
        valid_share, test_share: of the rows, rounded down; each keeps at least one row, training at least two.
        split: which permutation, see `mixaug.data.regression`.
        missing: `"error"`, or `"mean"` to fill input cells with the mean of the known cells of their column.
        scaling, fit_on: see `mixaug.data.regression`.
    """
    name = "table"
    for option, value in (("target", target), ("inputs", inputs)):
        if not (value is None or isinstance(value, str)) and not (
            isinstance(value, Sequence) and all(isinstance(column, str) for column in value)
        ):
            raise TypeError(f"data set 'table' expected {option} to be names of columns, got {value!r}")
    if group is not None and not isinstance(group, str):
        raise TypeError(f"data set 'table' expected group to be the name of a column or None, got {group!r}")
    targets = [target] if isinstance(target, str) else list(target or ())
    if not targets or not all(isinstance(column, str) for column in targets) or len(set(targets)) != len(targets):
        raise ValueError(f"data set 'table' expected target to be a column's name or several, got {target!r}")
    if isinstance(inputs, str):
        raise TypeError(f"data set 'table' expected inputs to be a list of names or None, got {inputs!r}")
    for option, share in (("valid_share", valid_share), ("test_share", test_share)):
        check_share(name, option, share)
    check_split(name, split)
    check_choice(name, "missing", missing, ("error", "mean"))
    check_fit(name, scaling, fit_on)
    path = Path(root).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"data set 'table': {str(path)!r} is no file; expected a .csv, .csv.gz or .parquet file"
        )

    columns = _table_columns(path)
    taken = [*targets, *([] if group is None else [group])]
    chosen = [column for column in columns if column not in taken] if inputs is None else list(inputs)
    absent = [column for column in (*taken, *chosen) if column not in columns]
    if absent:
        raise ValueError(f"{path} lacks the column(s) {', '.join(absent)}; it has {', '.join(columns)}")
    twice = sorted({column for column in (*taken, *chosen) if (*taken, *chosen).count(column) > 1})
    if twice:
        raise ValueError(f"data set 'table': the column(s) {', '.join(twice)} are named more than once")
    if not chosen:
        raise ValueError(f"{path} has no column left for the inputs; it has {', '.join(columns)}")

    labels = np.stack([numbers_of(path, column, columns[column]) for column in targets], axis=1)
    for column, numbers in zip(targets, labels.T, strict=True):
        _check_resolution(path, column, numbers)
    values = np.stack([numbers_of(path, column, columns[column]) for column in chosen], axis=1)
    rows = len(labels)
    valid, test = int(rows * valid_share), int(rows * test_share)
    if min(valid, test) < 1 or rows - valid - test < 2:
        raise ValueError(
            f"{path}: too few rows, got {rows}: valid_share={valid_share} and test_share={test_share} leave {valid} "
            f"for validation, {test} for testing and {rows - valid - test} for training (at least 1, 1 and 2)"
        )
    incomplete = [chosen[k] for k in np.flatnonzero(np.isnan(values).any(axis=0)).tolist()]
    if incomplete and missing == "error":
        raise ValueError(
            f"{path}: cells are missing in the column(s) {', '.join(incomplete)}; missing='mean' fills them"
        )
    groups = None if group is None else _group_ids(path, group, columns[group])
    parts = random_parts(rows, split, rows - valid - test, valid)
    return assembled_set(name, values, labels, parts, chosen, targets, scaling, fit_on, groups, group)


def _check_resolution(path: Path, column: str, numbers: Numbers) -> None:
    """Labels become float32: what that rounds away must be nothing beside their spread."""
    known = numbers[~np.isnan(numbers)]
    lost = np.abs(known - known.astype(np.float32)).max(initial=0.0)
    if known.size and lost > 1e-3 * known.std():
        if known.std() == 0 and lost <= 1e-6 * abs(known[0]):
            return
        raise ValueError(
            f"{path}: the target {column!r} has a spread of {known.std():.3g} around {known.mean():.3g}, which float32 "
            f"rounds by up to {lost:.3g}; subtract a constant from it"
        )


def _table_columns(path: Path) -> dict[str, Sequence[Any]]:
    """Cells of every column by its name: text from CSV, typed values or None from Parquet."""
    if path.name.lower().endswith(".parquet"):
        try:
            parquet = importlib.import_module("pyarrow.parquet")
        except ImportError as error:
            raise ImportError(
                f"reading {path} needs pyarrow: pip install 'mixaug[parquet]', or save the table as .csv"
            ) from error
        try:
            source = parquet.read_table(path)
        except (ValueError, OSError) as error:
            raise ValueError(f"{path} cannot be read as Parquet: {error}") from error
        header, columns = list(source.column_names), [column.to_pylist() for column in source.columns]
    elif path.name.lower().endswith((".csv", ".csv.gz")):
        header, *cells = read_cells(path)
        columns = list(zip(*cells, strict=True)) if cells else [()] * len(header)
    else:
        raise ValueError(f"data set 'table' expected a .csv, .csv.gz or .parquet file, got {str(path)!r}")
    header = [name.strip() for name in header]
    if len(set(header)) != len(header) or "" in header:
        raise ValueError(f"{path}: every column needs a name of its own, got {', '.join(map(repr, header))}")
    return dict(zip(header, columns, strict=True))


def _group_ids(path: Path, column: str, cells: Sequence[Any]) -> Rows:
    names = ["" if cell is None else str(cell).strip() for cell in cells]
    missing = [row for row, cell in enumerate(names, start=1) if cell.lower() in MISSING]
    if missing:
        raise ValueError(f"{path}: the group {column!r} is missing, first in data row {missing[0]}")
    try:
        return np.array([int(cell) for cell in names], dtype=np.int64)
    except (ValueError, OverflowError):
        return np.unique(names, return_inverse=True)[1].astype(np.int64)
