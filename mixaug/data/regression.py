"""Sets with real-valued labels, one function per set; `mixaug.data.load` finds them by name.

Options that these loaders share:

    split: which random cut into training, validation and test rows, an int >= 0. Cut k is one permutation by numpy's
        legacy generator seeded with k. `"by_seed"` is a word of the training engine, which passes the run's seed.
    scaling: of the inputs, column by column: `"minmax"` to [0, 1], `"standard"` to mean 0 and standard deviation 1,
        or `"none"`. A column without spread becomes 0.
    fit_on: the rows that give the statistics of the scaling and the means that fill missing cells. `"train"`: the
        training rows, so the other splits may leave [0, 1]. `"all"`: every row, test rows included, which is what
        the reference code of C-Mixup (arXiv:2210.05775) does.

Labels are never scaled, so a bandwidth of C-Mixup is in their own units. `root` is the folder with the set's files or
a folder that holds it under the set's name.
"""

from __future__ import annotations

import csv
import gzip
import importlib
import io
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mixaug.data.sets import RegressionData, RegressionSet

Root = str | Path
Numbers = NDArray[np.float64]
Rows = NDArray[np.int64]
Parts = tuple[Rows, Rows, Rows]

SCALINGS = ("minmax", "standard", "none")
_MISSING = frozenset({"", "?", "na", "n/a", "nan", "null", "none"})


# ----------------------------------------------------------------------------------------------------
# Options


def _check_choice(name: str, option: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"data set {name!r} expected {option} to be one of {', '.join(known)}, got {value!r}")


def _check_fit(name: str, scaling: str, fit_on: str, scalings: Sequence[str] = SCALINGS) -> None:
    _check_choice(name, "scaling", scaling, scalings)
    _check_choice(name, "fit_on", fit_on, ("train", "all"))


def _check_split(name: str, value: object) -> None:
    if value == "by_seed":
        raise ValueError(
            f"data set {name!r}: split='by_seed' is resolved by the training engine, which passes the run's seed; "
            "give an int here"
        )
    _check_int(name, "split", value, 0, 2**32 - 1)


def _check_int(name: str, option: str, value: object, least: int, most: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"data set {name!r} expected {option} to be an int, got {value!r}")
    if value < least or (most is not None and value > most):
        bounds = f">= {least}" if most is None else f"in {least}..{most}"
        raise ValueError(f"data set {name!r} expected {option} {bounds}, got {value}")


def _check_share(name: str, option: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"data set {name!r} expected {option} to be a number, got {value!r}")
    if not 0 < value < 1:
        raise ValueError(f"data set {name!r} expected {option} between 0 and 1, got {value}")


# ----------------------------------------------------------------------------------------------------
# Files


def _find(name: str, root: Root, files: Sequence[str], published: str, folders: Sequence[str] | None = None) -> Path:
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


def _cells(path: Path, delimiter: str = ",") -> list[list[str]]:
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


def _number(path: Path, column: str, cells: Sequence[Any]) -> Numbers:
    """One column of text or typed cells; missing cells become NaN."""
    values = np.empty(len(cells))
    for row, cell in enumerate(cells):
        missing = cell is None or (isinstance(cell, str) and cell.strip().lower() in _MISSING)
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


def _columns(path: Path, names: Sequence[str], cells: list[list[str]], wanted: Sequence[str]) -> Numbers:
    """(N, len(wanted)) numbers of the columns with these names."""
    absent = [column for column in wanted if column not in names]
    if absent:
        raise ValueError(f"{path} lacks the column(s) {', '.join(absent)}; it has {', '.join(names)}")
    picked = [names.index(column) for column in wanted]
    return np.stack([_number(path, names[k], [row[k] for row in cells]) for k in picked], axis=1)


def _expect_rows(path: Path, rows: int, expected: int) -> None:
    if rows != expected:
        raise ValueError(f"{path} has {rows} rows; the published file, which the splits belong to, has {expected}")


def _expect_width(path: Path, cells: list[list[str]], expected: int) -> None:
    if len(cells[0]) != expected:
        raise ValueError(f"{path} has {len(cells[0])} columns; expected {expected}")


# ----------------------------------------------------------------------------------------------------
# Splits and scaling


def _random_parts(rows: int, seed: int, train: int, valid: int) -> Parts:
    """One permutation by numpy's legacy generator, whose streams never change, cut in three."""
    order = np.random.RandomState(seed).permutation(rows).astype(np.int64)
    return order[:train], order[train : train + valid], order[train + valid :]


def _whole_group_parts(path: Path, groups: Rows, train_share: float = 0.7, valid_share: float = 0.1) -> Parts:
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


def _assembled(
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


# ----------------------------------------------------------------------------------------------------
# Tables with random splits

_AIRFOIL_COLUMNS = (
    "frequency",
    "angle_of_attack",
    "chord_length",
    "free_stream_velocity",
    "displacement_thickness",
    "sound_pressure_level",
)


def airfoil(root: Root, *, split: int = 0, scaling: str = "minmax", fit_on: str = "train") -> RegressionSet:
    """Airfoil self-noise (UCI): 5 inputs, sound pressure level in dB; 1,003 + 300 + 200 rows.

    Split k has the rows, in order, that C-Mixup's code draws when its numpy seed is k.

    Args:
        root: folder that holds `airfoil_self_noise.dat`.
        split, scaling, fit_on: see `mixaug.data.regression`.
    """
    _check_split("airfoil", split)
    _check_fit("airfoil", scaling, fit_on)
    source = "https://archive.ics.uci.edu/dataset/291/airfoil+self+noise"
    path = _find("airfoil", root, ["airfoil_self_noise.dat"], source)
    cells = _cells(path, "\t")
    _expect_width(path, cells, len(_AIRFOIL_COLUMNS))
    values = _columns(path, _AIRFOIL_COLUMNS, cells, _AIRFOIL_COLUMNS)
    _expect_rows(path, len(values), 1503)
    parts = _random_parts(len(values), split, 1003, 300)
    names = _AIRFOIL_COLUMNS
    return _assembled("airfoil", values[:, :5], values[:, 5:], parts, names[:5], names[5:], scaling, fit_on)


_NO2_COLUMNS = (
    "cars_per_hour",
    "temperature_at_2m",
    "wind_speed",
    "temperature_diff_2m_25m",
    "wind_direction",
    "hour_of_day",
    "day",
)


def no2(root: Root, *, split: int = 0, scaling: str = "minmax", fit_on: str = "train") -> RegressionSet:
    """NO2 at a road in Oslo (StatLib): 7 inputs, log of the hourly concentration; 200 + 200 + 100 rows.

    The splits are ours. C-Mixup's authors ship arrays that are already cut; neither their rows nor their sizes are
    known from the code, so published figures compare only within the spread between splits.

    Args:
        root: folder that holds `no2.csv`, with the column `target` and the seven inputs by name.
        split, scaling, fit_on: see `mixaug.data.regression`.
    """
    _check_split("no2", split)
    _check_fit("no2", scaling, fit_on)
    path = _find("no2", root, ["no2.csv"], "http://lib.stat.cmu.edu/datasets/NO2.dat and as OpenML's set 547")
    header, *cells = _cells(path)
    values = _columns(path, header, cells, (*_NO2_COLUMNS, "target"))
    _expect_rows(path, len(values), 500)
    parts = _random_parts(len(values), split, 200, 200)
    return _assembled("no2", values[:, :-1], values[:, -1:], parts, _NO2_COLUMNS, ("target",), scaling, fit_on)


def diabetes(*, split: int = 0, scaling: str = "minmax", fit_on: str = "train") -> RegressionSet:
    """scikit-learn's diabetes: 10 raw inputs, progression of the disease in 25..346; 242 + 100 + 100 rows.

    Args:
        split, scaling, fit_on: see `mixaug.data.regression`.
    """
    _check_split("diabetes", split)
    _check_fit("diabetes", scaling, fit_on)
    from sklearn.datasets import load_diabetes

    # scikit-learn's scaled inputs carry statistics of what are test rows here.
    source = load_diabetes(scaled=False)
    labels = np.asarray(source.target, dtype=np.float64)[:, None]
    parts = _random_parts(len(labels), split, 242, 100)
    names = [str(name) for name in source.feature_names]
    inputs = np.asarray(source.data, dtype=np.float64)
    return _assembled("diabetes", inputs, labels, parts, names, ("progression",), scaling, fit_on)


# ----------------------------------------------------------------------------------------------------
# Tables split by whole groups

# UCI's names of communities.data, which has no header; the first five identify a row and are no predictors.
_CRIME_HEADER = """
state county community communityname fold population householdsize racepctblack racePctWhite racePctAsian racePctHisp
agePct12t21 agePct12t29 agePct16t24 agePct65up numbUrban pctUrban medIncome pctWWage pctWFarmSelf pctWInvInc
pctWSocSec pctWPubAsst pctWRetire medFamInc perCapInc whitePerCap blackPerCap indianPerCap AsianPerCap OtherPerCap
HispPerCap NumUnderPov PctPopUnderPov PctLess9thGrade PctNotHSGrad PctBSorMore PctUnemployed PctEmploy PctEmplManu
PctEmplProfServ PctOccupManu PctOccupMgmtProf MalePctDivorce MalePctNevMarr FemalePctDiv TotalPctDiv PersPerFam
PctFam2Par PctKids2Par PctYoungKids2Par PctTeen2Par PctWorkMomYoungKids PctWorkMom NumIlleg PctIlleg NumImmig
PctImmigRecent PctImmigRec5 PctImmigRec8 PctImmigRec10 PctRecentImmig PctRecImmig5 PctRecImmig8 PctRecImmig10
PctSpeakEnglOnly PctNotSpeakEnglWell PctLargHouseFam PctLargHouseOccup PersPerOccupHous PersPerOwnOccHous
PersPerRentOccHous PctPersOwnOccup PctPersDenseHous PctHousLess3BR MedNumBR HousVacant PctHousOccup PctHousOwnOcc
PctVacantBoarded PctVacMore6Mos MedYrHousBuilt PctHousNoPhone PctWOFullPlumb OwnOccLowQuart OwnOccMedVal OwnOccHiQuart
RentLowQ RentMedian RentHighQ MedRent MedRentPctHousInc MedOwnCostPctInc MedOwnCostPctIncNoMtg NumInShelters NumStreet
PctForeignBorn PctBornSameState PctSameHouse85 PctSameCity85 PctSameState85 LemasSwornFT LemasSwFTPerPop
LemasSwFTFieldOps LemasSwFTFieldPerPop LemasTotalReq LemasTotReqPerPop PolicReqPerOffic PolicPerPop RacialMatchCommPol
PctPolicWhite PctPolicBlack PctPolicHisp PctPolicAsian PctPolicMinor OfficAssgnDrugUnits NumKindsDrugsSeiz
PolicAveOTWorked LandArea PopDens PctUsePubTrans PolicCars PolicOperBudg LemasPctPolicOnPatr LemasGangUnitDeploy
LemasPctOfficDrugUn PolicBudgPerPop ViolentCrimesPerPop
"""
_CRIME_COLUMNS = tuple(_CRIME_HEADER.split())


def communities_crime(root: Root, *, scaling: str = "minmax", fit_on: str = "train") -> RegressionSet:
    """Communities and Crime (UCI, normalised): 122 inputs, violent crimes per population in [0, 1].

    Groups are states, by their number. As in C-Mixup, whole states in ascending order make training (1,390 rows),
    validation (231) and test (373), and a missing cell becomes its column's mean.

    Args:
        root: folder that holds `communities.data`.
        scaling, fit_on: see `mixaug.data.regression`.
    """
    name = "communities_crime"
    _check_fit(name, scaling, fit_on)
    source = "https://archive.ics.uci.edu/dataset/183/communities+and+crime"
    path = _find(name, root, ["communities.data"], source)
    cells = _cells(path)
    _expect_width(path, cells, len(_CRIME_COLUMNS))
    inputs, target = _CRIME_COLUMNS[5:-1], _CRIME_COLUMNS[-1:]
    values = _columns(path, _CRIME_COLUMNS, cells, (*inputs, *target))
    states = _groups(path, "state", _columns(path, _CRIME_COLUMNS, cells, ["state"])[:, 0])
    parts = _whole_group_parts(path, states)
    return _assembled(name, values[:, :-1], values[:, -1:], parts, inputs, target, scaling, fit_on, states, "state")


_SKILLCRAFT_TARGET = "ActionLatency"
_SKILLCRAFT_COLUMNS = (
    "Age",
    "HoursPerWeek",
    "TotalHours",
    "APM",
    "SelectByHotkeys",
    "AssignToHotkeys",
    "UniqueHotkeys",
    "MinimapAttacks",
    "MinimapRightClicks",
    "NumberOfPACs",
    "GapBetweenPACs",
    "ActionsInPAC",
    "TotalMapExplored",
    "WorkersMade",
    "UniqueUnitsMade",
    "ComplexUnitsMade",
    "ComplexAbilitiesUsed",
)


def skillcraft(root: Root, *, scaling: str = "minmax", fit_on: str = "train") -> RegressionSet:
    """SkillCraft1 (UCI): 17 inputs of StarCraft II players, action latency in 24..177.

    Groups are leagues 1..8. As in C-Mixup, leagues 1 to 4 are for training (1,878 rows), 5 for validation (806) and
    6 to 8 for testing (711), and a missing cell becomes its column's mean.

    Args:
        root: folder that holds `SkillCraft1_Dataset.csv`.
        scaling, fit_on: see `mixaug.data.regression`.
    """
    _check_fit("skillcraft", scaling, fit_on)
    source = "https://archive.ics.uci.edu/dataset/272/skillcraft1+master+table+dataset"
    path = _find("skillcraft", root, ["SkillCraft1_Dataset.csv"], source)
    header, *cells = _cells(path)
    values = _columns(path, header, cells, (*_SKILLCRAFT_COLUMNS, _SKILLCRAFT_TARGET))
    leagues = _groups(path, "LeagueIndex", _columns(path, header, cells, ["LeagueIndex"])[:, 0])
    return _assembled(
        "skillcraft",
        values[:, :-1],
        values[:, -1:],
        _whole_group_parts(path, leagues),
        _SKILLCRAFT_COLUMNS,
        (_SKILLCRAFT_TARGET,),
        scaling,
        fit_on,
        leagues,
        "league",
    )


def _groups(path: Path, column: str, values: Numbers) -> Rows:
    wrong = np.isnan(values) | (values != np.round(values))
    if wrong.any():
        raise ValueError(f"{path}: column {column!r} must hold whole numbers, fails in data row {wrong.argmax() + 1}")
    return values.astype(np.int64)


# ----------------------------------------------------------------------------------------------------
# Time series

_EXCHANGE_SERIES = (
    "Australia",
    "Britain",
    "Canada",
    "Switzerland",
    "China",
    "Japan",
    "New Zealand",
    "Singapore",
)


def exchange_rate(
    root: Root, *, window: int = 168, horizon: int = 12, scaling: str = "maxabs", fit_on: str = "train"
) -> RegressionSet:
    """Daily exchange rates of 8 countries (LSTNet, arXiv:1703.07015): windows (8, 168), labels (8,).

    The label is the row `horizon` steps after the window's last one. Split by the label's time, 60 / 20 / 20 % of
    the rows as in the codes of LSTNet and C-Mixup: with the defaults 4,373 + 1,518 + 1,518 samples, in the order of
    time. A window of a later split may begin in the split before. The order of the series is the source's.

    Args:
        root: folder that holds `exchange_rate.txt.gz` or the unpacked `exchange_rate.txt`.
        window: steps of an input, >= 1.
        horizon: steps from the last of the window to the label, >= 1.
        scaling: `"maxabs"` divides every series by its largest absolute value, or `"none"`. Inputs and labels are the
            same series, so here the labels are scaled too.
        fit_on: `"train"`: the largest of the first 60 % of the rows; `"all"`: of the whole file, as in both codes.
    """
    name = "exchange_rate"
    _check_int(name, "window", window, 1)
    _check_int(name, "horizon", horizon, 1)
    _check_fit(name, scaling, fit_on, ("maxabs", "none"))
    source = "https://github.com/laiguokun/multivariate-time-series-data"
    path = _find(name, root, ["exchange_rate.txt.gz", "exchange_rate.txt"], source)
    cells = _cells(path)
    _expect_width(path, cells, len(_EXCHANGE_SERIES))
    series = _columns(path, _EXCHANGE_SERIES, cells, _EXCHANGE_SERIES)
    if np.isnan(series).any():
        raise ValueError(f"{path}: a value is missing in data row {int(np.isnan(series).any(1).argmax()) + 1}")
    rows = len(series)
    first = window + horizon - 1
    ends = rows * 6 // 10, rows * 8 // 10, rows
    if not first < ends[0] < ends[1] < ends[2]:
        raise ValueError(
            f"{path}: too few rows, got {rows} of which the first {ends[0]} are for training; window={window} and "
            f"horizon={horizon} need more than {first} of them"
        )
    if scaling == "maxabs":
        largest = np.abs(series[: ends[0]] if fit_on == "train" else series).max(0)
        series = series / np.where(largest > 0, largest, 1.0)
    steps = torch.from_numpy(series).float()
    windows = steps.unfold(0, window, 1)

    def part(start: int, end: int) -> RegressionData:
        return RegressionData(windows[start - first : end - first].contiguous(), steps[start:end])

    train, valid, test = (part(start, end) for start, end in zip((first, *ends[:2]), ends, strict=True))
    return RegressionSet(name, train, valid, test, _EXCHANGE_SERIES, _EXCHANGE_SERIES)


# ----------------------------------------------------------------------------------------------------
# Any table


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
    for option, wanted in (("target", target), ("inputs", inputs)):
        if not (wanted is None or isinstance(wanted, str)) and not (
            isinstance(wanted, Sequence) and all(isinstance(column, str) for column in wanted)
        ):
            raise TypeError(f"data set 'table' expected {option} to be names of columns, got {wanted!r}")
    if group is not None and not isinstance(group, str):
        raise TypeError(f"data set 'table' expected group to be the name of a column or None, got {group!r}")
    targets = [target] if isinstance(target, str) else list(target or ())
    if not targets or not all(isinstance(column, str) for column in targets) or len(set(targets)) != len(targets):
        raise ValueError(f"data set 'table' expected target to be a column's name or several, got {target!r}")
    if isinstance(inputs, str):
        raise TypeError(f"data set 'table' expected inputs to be a list of names or None, got {inputs!r}")
    for option, share in (("valid_share", valid_share), ("test_share", test_share)):
        _check_share(name, option, share)
    _check_split(name, split)
    _check_choice(name, "missing", missing, ("error", "mean"))
    _check_fit(name, scaling, fit_on)
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

    labels = np.stack([_number(path, column, columns[column]) for column in targets], axis=1)
    for column, numbers in zip(targets, labels.T, strict=True):
        _check_resolution(path, column, numbers)
    values = np.stack([_number(path, column, columns[column]) for column in chosen], axis=1)
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
    parts = _random_parts(rows, split, rows - valid - test, valid)
    return _assembled(name, values, labels, parts, chosen, targets, scaling, fit_on, groups, group)


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
        header, *cells = _cells(path)
        columns = list(zip(*cells, strict=True)) if cells else [()] * len(header)
    else:
        raise ValueError(f"data set 'table' expected a .csv, .csv.gz or .parquet file, got {str(path)!r}")
    header = [name.strip() for name in header]
    if len(set(header)) != len(header) or "" in header:
        raise ValueError(f"{path}: every column needs a name of its own, got {', '.join(map(repr, header))}")
    return dict(zip(header, columns, strict=True))


def _group_ids(path: Path, column: str, cells: Sequence[Any]) -> Rows:
    names = ["" if cell is None else str(cell).strip() for cell in cells]
    missing = [row for row, cell in enumerate(names, start=1) if cell.lower() in _MISSING]
    if missing:
        raise ValueError(f"{path}: the group {column!r} is missing, first in data row {missing[0]}")
    try:
        return np.array([int(cell) for cell in names], dtype=np.int64)
    except (ValueError, OverflowError):
        return np.unique(names, return_inverse=True)[1].astype(np.int64)


# ----------------------------------------------------------------------------------------------------
# Images

_FASHION_IMAGES = 60_000
# Of 255; the reference code leaves pixels up to here as they are.
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
    _check_split(name, split)
    if isinstance(spurious_ratio, bool) or not isinstance(spurious_ratio, (int, float)):
        raise TypeError(f"data set 'rcf_mnist' expected spurious_ratio to be a number, got {spurious_ratio!r}")
    if not 0 <= spurious_ratio <= 1:
        raise ValueError(f"data set 'rcf_mnist' expected spurious_ratio in 0..1, got {spurious_ratio}")
    _check_choice(name, "test_colour", test_colour, ("reversed", "same"))
    path = _find(
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


LOADERS: dict[str, Callable[..., RegressionSet]] = {
    "airfoil": airfoil,
    "communities_crime": communities_crime,
    "diabetes": diabetes,
    "exchange_rate": exchange_rate,
    "no2": no2,
    "rcf_mnist": rcf_mnist,
    "skillcraft": skillcraft,
    "table": table,
}
