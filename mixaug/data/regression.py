"""Sets with real-valued labels, one function per set; `mixaug.data.load` finds them by name.

Options that these loaders share:

    split: which random cut into training, validation and test rows, an int >= 0. Cut k is one permutation by numpy's
        legacy generator seeded with k. `"by_seed"` is a word of the training engine, which passes the run's seed.
    scaling: scaling of the inputs by columns: `"minmax"` to [0, 1], `"standard"` to mean 0 and standard deviation 1,
        or `"none"`. A column without spread becomes 0.
    fit_on: the rows that give the statistics of the scaling and the means that fill missing cells. `"train"`: the
        training rows, so the other splits may leave [0, 1]. `"all"`: every row, test rows included, which is what
        the reference code of C-Mixup (arXiv:2210.05775) does.

Labels are never scaled, so a bandwidth of C-Mixup is in their own units. `root` is the folder with the set's files or
a folder that holds it under the set's name.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from mixaug.data.own_table import table
from mixaug.data.rcf_mnist import rcf_mnist
from mixaug.data.sets import RegressionData, RegressionSet
from mixaug.data.tables import (
    Numbers,
    Root,
    Rows,
    assembled_set,
    check_fit,
    check_int,
    check_split,
    expect_rows,
    expect_width,
    find_file,
    pick_columns,
    random_parts,
    read_cells,
    whole_group_parts,
)

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
    check_split("airfoil", split)
    check_fit("airfoil", scaling, fit_on)
    source = "https://archive.ics.uci.edu/dataset/291/airfoil+self+noise"
    path = find_file("airfoil", root, ["airfoil_self_noise.dat"], source)
    cells = read_cells(path, "\t")
    expect_width(path, cells, len(_AIRFOIL_COLUMNS))
    values = pick_columns(path, _AIRFOIL_COLUMNS, cells, _AIRFOIL_COLUMNS)
    expect_rows(path, len(values), 1503)
    parts = random_parts(len(values), split, 1003, 300)
    names = _AIRFOIL_COLUMNS
    return assembled_set("airfoil", values[:, :5], values[:, 5:], parts, names[:5], names[5:], scaling, fit_on)


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
    check_split("no2", split)
    check_fit("no2", scaling, fit_on)
    path = find_file("no2", root, ["no2.csv"], "http://lib.stat.cmu.edu/datasets/NO2.dat and as OpenML's set 547")
    header, *cells = read_cells(path)
    values = pick_columns(path, header, cells, (*_NO2_COLUMNS, "target"))
    expect_rows(path, len(values), 500)
    parts = random_parts(len(values), split, 200, 200)
    return assembled_set("no2", values[:, :-1], values[:, -1:], parts, _NO2_COLUMNS, ("target",), scaling, fit_on)


def diabetes(*, split: int = 0, scaling: str = "minmax", fit_on: str = "train") -> RegressionSet:
    """scikit-learn's diabetes: 10 raw inputs, progression of the disease in 25..346; 242 + 100 + 100 rows.

    Args:
        split, scaling, fit_on: see `mixaug.data.regression`.
    """
    check_split("diabetes", split)
    check_fit("diabetes", scaling, fit_on)
    from sklearn.datasets import load_diabetes

    # scikit-learn's scaled inputs carry statistics of what are test rows here.
    source = load_diabetes(scaled=False)
    labels = np.asarray(source.target, dtype=np.float64)[:, None]
    parts = random_parts(len(labels), split, 242, 100)
    names = [str(name) for name in source.feature_names]
    inputs = np.asarray(source.data, dtype=np.float64)
    return assembled_set("diabetes", inputs, labels, parts, names, ("progression",), scaling, fit_on)


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
    check_fit(name, scaling, fit_on)
    source = "https://archive.ics.uci.edu/dataset/183/communities+and+crime"
    path = find_file(name, root, ["communities.data"], source)
    cells = read_cells(path)
    expect_width(path, cells, len(_CRIME_COLUMNS))
    inputs, target = _CRIME_COLUMNS[5:-1], _CRIME_COLUMNS[-1:]
    values = pick_columns(path, _CRIME_COLUMNS, cells, (*inputs, *target))
    states = _groups(path, "state", pick_columns(path, _CRIME_COLUMNS, cells, ["state"])[:, 0])
    parts = whole_group_parts(path, states)
    return assembled_set(name, values[:, :-1], values[:, -1:], parts, inputs, target, scaling, fit_on, states, "state")


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
    check_fit("skillcraft", scaling, fit_on)
    source = "https://archive.ics.uci.edu/dataset/272/skillcraft1+master+table+dataset"
    path = find_file("skillcraft", root, ["SkillCraft1_Dataset.csv"], source)
    header, *cells = read_cells(path)
    values = pick_columns(path, header, cells, (*_SKILLCRAFT_COLUMNS, _SKILLCRAFT_TARGET))
    leagues = _groups(path, "LeagueIndex", pick_columns(path, header, cells, ["LeagueIndex"])[:, 0])
    return assembled_set(
        "skillcraft",
        values[:, :-1],
        values[:, -1:],
        whole_group_parts(path, leagues),
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
    check_int(name, "window", window, 1)
    check_int(name, "horizon", horizon, 1)
    check_fit(name, scaling, fit_on, ("maxabs", "none"))
    source = "https://github.com/laiguokun/multivariate-time-series-data"
    path = find_file(name, root, ["exchange_rate.txt.gz", "exchange_rate.txt"], source)
    cells = read_cells(path)
    expect_width(path, cells, len(_EXCHANGE_SERIES))
    series = pick_columns(path, _EXCHANGE_SERIES, cells, _EXCHANGE_SERIES)
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
