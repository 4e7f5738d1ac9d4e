"""Sets with real-valued labels: the real files against slow twins of the published rules, small fakes for the rest."""

from __future__ import annotations

import csv
import gzip
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mixaug.data import RegressionData, RegressionSet, load, rcf_mnist
from mixaug.data.regression import LOADERS

SPLITS = ("train", "valid", "test")
ROOTED = sorted(set(LOADERS) - {"diabetes"})
TARGET = {"table": {"target": "y"}}


def parts(data: RegressionSet) -> list[RegressionData]:
    return [data.train, data.valid, data.test]


def sizes(data: RegressionSet) -> tuple[int, ...]:
    return tuple(len(part) for part in parts(data))


def rows(data: RegressionData) -> list[tuple[float, ...]]:
    """Inputs and labels of a table, row by row, without the order."""
    return sorted(map(tuple, torch.cat([data.inputs, data.labels], 1).tolist()))


def as_rows(values: np.ndarray) -> list[tuple[float, ...]]:
    return sorted(map(tuple, values.astype(np.float32).tolist()))


def real(shared: Path, name: str) -> Path:
    folder = shared / "data" / name
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    return folder


def save(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


# --- the containers ---------------------------------------------------------------------------------------------------


def split_of(count: int = 4, columns: int = 3, outputs: int = 2, groups: bool = False) -> RegressionData:
    inputs = torch.arange(float(count * columns)).view(count, columns)
    return RegressionData(inputs, inputs[:, :1].expand(-1, outputs), torch.arange(count) if groups else None)


def test_split_is_a_map_data_set():
    split = split_of(groups=True)
    assert len(split) == 4
    value, label = split[2]
    assert value.tolist() == [6.0, 7.0, 8.0]
    assert label.tolist() == [6.0, 6.0]
    assert repr(split) == "RegressionData(inputs=(4, 3), labels=(4, 2), groups=(4,))"


def test_split_checks_its_tensors():
    x, y, g = torch.zeros(4, 3), torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64)
    for arguments in ((x.double(), y), (x, y.double()), (x, y.long()), (x, y, g.int())):
        with pytest.raises(TypeError, match="RegressionData expected"):
            RegressionData(*arguments)
    for arguments in ((x, y[:3]), (x, y[:, 0]), (x[:, 0], y), (x, y[:, :0]), (x, y, g[:3]), (x[:0], y[:0])):
        with pytest.raises(ValueError, match="RegressionData expected"):
            RegressionData(*arguments)
    with pytest.raises(ValueError, match="uint8 images"):
        RegressionData(x.byte(), y)
    for bad in (float("nan"), float("inf")):
        for where in (0, 1):
            tensors = [x.clone(), y.clone()]
            tensors[where][2, 0] = bad
            with pytest.raises(ValueError, match=rf"finite {('inputs', 'labels')[where]}.*row 2"):
                RegressionData(*tensors)


def test_set_checks_that_its_splits_fit():
    good = split_of()

    def build(train=good, valid=good, test=good, targets=("a", "b"), inputs=("p", "q", "r"), **more):
        return RegressionSet("x", train, valid, test, targets, inputs, **more)

    data = build()
    assert data.outputs == 2
    assert data.input_shape == (3,)
    grouped = split_of(groups=True)
    assert build(grouped, grouped, grouped, group_name="state").group_name == "state"
    for arguments in (
        {"valid": split_of(columns=2)},
        {"test": split_of(outputs=1)},
        {"targets": ("a",)},
        {"inputs": ("p", "q")},
        {"group_name": "state"},
        {"train": grouped},
        {"mean": (0.5, 0.5, 0.5)},
    ):
        with pytest.raises(ValueError, match="RegressionSet expected"):
            build(**arguments)
    image = RegressionData(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2, 2))
    half = (0.5, 0.5, 0.5)
    assert build(image, image, image, mean=half, std=half).input_shape == (3, 4, 4)
    for mean in (None, half[:2]):
        with pytest.raises(ValueError, match="mean per channel"):
            build(image, image, image, mean=mean, std=half)


def test_sets_with_classes_answer_the_same_two_questions():
    pytest.importorskip("sklearn")
    digits = load("digits")
    assert (digits.outputs, digits.input_shape) == (10, (1, 8, 8))


# --- options that the sets share --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROOTED)
def test_root_is_needed_and_missing_files_are_named(name, tmp_path):
    with pytest.raises(TypeError, match=rf"{name}.*needs root=: \w+"):
        load(name, **TARGET.get(name, {}))
    with pytest.raises(FileNotFoundError) as caught:
        load(name, root=tmp_path / "absent", **TARGET.get(name, {}))
    assert str(tmp_path / "absent") in str(caught.value)
    if name != "table":
        assert "https://" in str(caught.value) or "http://" in str(caught.value)
        with pytest.raises(FileNotFoundError, match="lacks it"):
            load(name, root=tmp_path)


@pytest.mark.parametrize("name", [n for n in ROOTED if n not in ("communities_crime", "skillcraft", "exchange_rate")])
def test_split_is_a_number(name, tmp_path):
    options = {"root": tmp_path, **TARGET.get(name, {})}
    with pytest.raises(ValueError, match=r"'by_seed' is resolved by the training engine"):
        load(name, split="by_seed", **options)
    for wrong, error in ((-1, ValueError), (2**32, ValueError), (0.0, TypeError), (True, TypeError), ("0", TypeError)):
        with pytest.raises(error, match="expected split"):
            load(name, split=wrong, **options)


@pytest.mark.parametrize("name", [n for n in LOADERS if n != "rcf_mnist"])
def test_scaling_and_its_rows_are_checked(name, tmp_path):
    options = {**({} if name == "diabetes" else {"root": tmp_path}), **TARGET.get(name, {})}
    with pytest.raises(ValueError, match=r"expected scaling to be one of \w+.*got 'z'"):
        load(name, scaling="z", **options)
    with pytest.raises(ValueError, match=r"expected fit_on to be one of train, all, got 'test'"):
        load(name, fit_on="test", **options)


def test_statistics_come_from_the_chosen_rows():
    pytest.importorskip("sklearn")
    raw = load("diabetes", scaling="none", split=3)
    whole = torch.cat([part.inputs for part in parts(raw)]).double()
    for fit_on, fit in (("train", raw.train.inputs.double()), ("all", whole)):
        low, high = fit.min(0).values, fit.max(0).values
        scalings = {
            "minmax": (low, high - low),
            "standard": (fit.mean(0), fit.std(0, correction=0)),
            "none": (torch.zeros(10), torch.ones(10)),
        }
        for scaling, (shift, span) in scalings.items():
            got = load("diabetes", scaling=scaling, fit_on=fit_on, split=3)
            for part, plain in zip(parts(got), parts(raw), strict=True):
                torch.testing.assert_close(part.inputs, ((plain.inputs.double() - shift) / span).float())
                assert torch.equal(part.labels, plain.labels)


# --- real files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "prefix", "expected"), [("airfoil", "seed", (1003, 300, 200)), ("no2", "split", (200, 200, 100))]
)
def test_random_splits_are_the_shared_ones(name, prefix, expected, shared):
    folder = real(shared, name)
    if name == "airfoil":
        values = np.loadtxt(folder / "airfoil_self_noise.dat")
    else:
        values = np.roll(np.loadtxt(folder / "no2.csv", delimiter=",", skiprows=1), -1, axis=1)
    with (folder / "splits.csv").open(newline="") as file:
        listed = list(csv.DictReader(file))
    columns = [column for column in listed[0] if column != "row"]
    assert len(columns) >= 5
    for column in columns:
        data = load(name, root=folder, split=int(column.removeprefix(prefix)), scaling="none")
        assert sizes(data) == expected
        for split, part in zip(SPLITS, parts(data), strict=True):
            assert rows(part) == as_rows(values[[int(row["row"]) for row in listed if row[column] == split]])


def test_airfoil_rows_keep_the_order_of_the_permutation(shared):
    folder = real(shared, "airfoil")
    np.random.seed(7)  # noqa: NPY002  # as the reference code draws
    order = np.random.permutation(1503)  # noqa: NPY002
    labels = np.loadtxt(folder / "airfoil_self_noise.dat")[order, 5:].astype(np.float32)
    data = load("airfoil", root=folder, split=7)
    assert np.array_equal(torch.cat([part.labels for part in parts(data)]).numpy(), labels)
    assert data.target_names == ("sound_pressure_level",)
    assert (data.input_names[0], len(data.input_names), data.group_name) == ("frequency", 5, None)


def filled_and_scaled(cells: np.ndarray, fit: np.ndarray) -> np.ndarray:
    """The rule of C-Mixup's code in loops: mean over known cells, then min-max, column by column."""
    values = cells.copy()
    for k in range(values.shape[1]):
        known = [v for v in values[fit, k] if not np.isnan(v)]
        values[np.isnan(values[:, k]), k] = sum(known) / len(known)
        low, high = values[fit, k].min(), values[fit, k].max()
        values[:, k] = (values[:, k] - low) / (high - low)
    return values


@pytest.mark.parametrize("fit_on", ["train", "all"])
@pytest.mark.parametrize(
    ("name", "expected", "cuts"),
    [("communities_crime", (1390, 231, 373), None), ("skillcraft", (1878, 806, 711), (4, 5))],
)
def test_domain_sets_against_the_published_rule(name, expected, cuts, fit_on, shared):
    folder = real(shared, name)
    if name == "skillcraft":
        table = np.genfromtxt(folder / "SkillCraft1_Dataset.csv", delimiter=",", skip_header=1, missing_values="?")
        cells, labels, domain = table[:, [*range(2, 13), *range(14, 20)]], table[:, 13:14], table[:, 1]
    else:
        table = np.genfromtxt(folder / "communities.data", delimiter=",")
        cells, labels, domain = table[:, 5:127], table[:, 127:], table[:, 0]
    data = load(name, root=folder, fit_on=fit_on)
    assert sizes(data) == expected
    groups = [part.groups.numpy() for part in parts(data)]
    assert groups[0].max() < groups[1].min() <= groups[1].max() < groups[2].min()
    if cuts is not None:
        assert (groups[0].max(), groups[1].max()) == cuts
    masks = [np.isin(domain, group) for group in groups]
    inputs = filled_and_scaled(cells, masks[0] if fit_on == "train" else np.ones(len(table), dtype=bool))
    for part, mask, group in zip(parts(data), masks, groups, strict=True):
        torch.testing.assert_close(part.inputs, torch.from_numpy(inputs[mask]).float(), rtol=1e-5, atol=1e-6)
        assert np.array_equal(part.labels.numpy(), labels[mask].astype(np.float32))
        assert np.array_equal(group, domain[mask])
    assert data.group_name == {"skillcraft": "league", "communities_crime": "state"}[name]


def test_names_of_the_crime_columns(shared):
    folder = real(shared, "communities_crime")
    names = (folder / "columns.txt").read_text().split()
    data = load("communities_crime", root=folder.parent)
    assert data.input_names == tuple(names[5:-1])
    assert data.target_names == tuple(names[-1:])


@pytest.mark.parametrize("fit_on", ["train", "all"])
def test_exchange_rate_windows(fit_on, shared):
    folder = real(shared, "exchange_rate")
    values = np.loadtxt(folder / "exchange_rate.txt.gz", delimiter=",")
    scale = np.abs(values[:4552] if fit_on == "train" else values).max(0)
    values = (values / scale).astype(np.float32)
    data = load("exchange_rate", root=folder, fit_on=fit_on)
    assert sizes(data) == (4373, 1518, 1518)
    assert (data.input_shape, data.outputs) == ((8, 168), 8)
    first = 0
    for part in parts(data):
        for k in (0, 1, 700, len(part) - 1):
            end = first + k + 168
            assert np.array_equal(part.inputs[k].numpy(), values[end - 168 : end].T)
            assert np.array_equal(part.labels[k].numpy(), values[end - 1 + 12])
        first += len(part)
    assert end + 12 == len(values)


# --- fakes ------------------------------------------------------------------------------------------------------------


def test_exchange_rate_options_and_faults(tmp_path):
    values = np.random.RandomState(0).rand(40, 8) + 0.5
    path = save(tmp_path / "exchange_rate" / "exchange_rate.txt", *(",".join(map(repr, map(float, v))) for v in values))
    data = load("exchange_rate", root=tmp_path, window=5, horizon=3, scaling="none")
    assert sizes(data) == (24 - 7, 8, 8)
    assert np.array_equal(data.valid.inputs[0].numpy(), values[24 - 7 : 24 - 2].T.astype(np.float32))
    assert np.array_equal(data.valid.labels[0].numpy(), values[24].astype(np.float32))
    assert sizes(load("exchange_rate", root=path.parent, window=23, horizon=1)) == (1, 8, 8)
    for options, error in (
        ({"window": 24, "horizon": 1}, ValueError),
        ({"window": 0}, ValueError),
        ({"horizon": 0}, ValueError),
        ({"horizon": 1.5}, TypeError),
        ({"scaling": "minmax"}, ValueError),
    ):
        with pytest.raises(error, match=r"too few rows|expected"):
            load("exchange_rate", root=tmp_path, **options)
    path.write_text("1,2,3\n")
    with pytest.raises(ValueError, match="3 columns; expected 8"):
        load("exchange_rate", root=tmp_path)
    path.write_text("\n".join(["1,2,3,4,5,6,7,8"] * 300 + ["1,2,3,4,?,6,7,8"]))
    with pytest.raises(ValueError, match="missing in data row 301"):
        load("exchange_rate", root=tmp_path)


def test_whole_groups_move_together(tmp_path):
    # 10 rows of group 1, 5 of 2, 4 of 3, 3 of 4, 8 of 9: 70 % of 30 is reached in group 4, 10 % more in group 9.
    header = "LeagueIndex,ActionLatency,Age,HoursPerWeek,TotalHours,APM,SelectByHotkeys,AssignToHotkeys,UniqueHotkeys,"
    header += "MinimapAttacks,MinimapRightClicks,NumberOfPACs,GapBetweenPACs,ActionsInPAC,TotalMapExplored,WorkersMade,"
    header += "UniqueUnitsMade,ComplexUnitsMade,ComplexAbilitiesUsed"
    leagues = [9, 1, 4, 3, 2] * 3 + [1] * 7 + [2] * 2 + [3] + [9] * 5
    lines = [
        ",".join(map(str, [league, index] + [index % 7 + k for k in range(17)])) for index, league in enumerate(leagues)
    ]
    path = save(tmp_path / "SkillCraft1_Dataset.csv", header, *lines)
    data = load("skillcraft", root=tmp_path, scaling="none")
    assert [sorted(set(part.groups.tolist())) for part in parts(data)] == [[1, 2, 3], [4], [9]]
    for part in parts(data):
        wanted = [index for index, league in enumerate(leagues) if league in part.groups.tolist()]
        assert part.labels[:, 0].tolist() == wanted
        assert part.inputs[:, 0].tolist() == [index % 7 for index in wanted]

    save(path, header, *lines[:1])
    with pytest.raises(ValueError, match="too few groups or rows"):
        load("skillcraft", root=tmp_path)
    save(path, header.replace("ActionLatency", "Latency"), *lines)
    with pytest.raises(ValueError, match=r"lacks the column\(s\) ActionLatency; it has LeagueIndex, Latency"):
        load("skillcraft", root=tmp_path)
    save(path, header, *lines, lines[0].replace("9,", "?,", 1))
    with pytest.raises(ValueError, match="'LeagueIndex' must hold whole numbers, fails in data row 31"):
        load("skillcraft", root=tmp_path)


def test_faults_of_published_files(tmp_path):
    path = save(tmp_path / "airfoil_self_noise.dat", *["1\t2\t3\t4\t5\t6"] * 3)
    with pytest.raises(ValueError, match=r"3 rows; the published file.*1503"):
        load("airfoil", root=tmp_path)
    save(path, "a\tb\tc\td\te\tf", "1\t2\t3\t4\t5\t6")
    with pytest.raises(ValueError, match="'frequency' is not numeric, first in data row 1: 'a'"):
        load("airfoil", root=tmp_path)
    save(path, "1\t2", "1\t2\t3")
    with pytest.raises(ValueError, match="row 2: expected 2 fields, got 3"):
        load("airfoil", root=tmp_path)
    path.write_text("")
    with pytest.raises(ValueError, match="is empty"):
        load("airfoil", root=tmp_path)


def test_diabetes_is_scikit_learns_raw_table():
    source = pytest.importorskip("sklearn.datasets").load_diabetes(scaled=False)
    data = load("diabetes", split=2, scaling="none")
    assert sizes(data) == (242, 100, 100)
    assert data.input_names == tuple(source.feature_names)
    whole = np.concatenate([source.data, source.target[:, None]], 1)
    assert sorted(row for part in parts(data) for row in rows(part)) == as_rows(whole)
    assert rows(load("diabetes", split=3, scaling="none").test) != rows(data.test)


# --- any table --------------------------------------------------------------------------------------------------------


@pytest.fixture
def people(tmp_path: Path) -> Path:
    lines = [f"{k},{k * k},{'abc'[k % 3]},{k % 4},{2 * k}" for k in range(20)]
    return save(tmp_path / "people.csv", "age, income ,town,league,y", *lines)


def test_table_from_csv(people):
    data = load("table", root=people, target="y", inputs=["income", "age"], scaling="none", split=5)
    assert sizes(data) == (14, 2, 4)
    assert (data.input_names, data.target_names, data.group_name) == (("income", "age"), ("y",), None)
    order = np.random.RandomState(5).permutation(20)
    ages = torch.cat([part.inputs[:, 1] for part in parts(data)])
    assert ages.tolist() == order.tolist()
    for part in parts(data):
        assert torch.equal(part.inputs[:, 0], part.inputs[:, 1] ** 2)
        assert torch.equal(part.labels[:, 0], 2 * part.inputs[:, 1])


def test_table_with_several_targets_groups_and_shares(people):
    options = {"root": people, "scaling": "none", "valid_share": 0.25, "test_share": 0.26}
    data = load("table", target=["y", "age"], group="town", **options)
    assert sizes(data) == (10, 5, 5)
    assert (data.input_names, data.target_names, data.outputs) == (("income", "league"), ("y", "age"), 2)
    for part in parts(data):
        assert torch.equal(part.labels[:, 0], 2 * part.labels[:, 1])
        assert part.groups.tolist() == [int(age) % 3 for age in part.labels[:, 1]]  # a, b, c in sorted order
    numbered = load("table", target="y", inputs=["age"], group="league", **options)
    assert numbered.group_name == "league"
    assert numbered.train.groups.tolist() == [int(age) % 4 for age in numbered.train.inputs[:, 0]]


def test_packed_table_with_a_byte_order_mark_is_the_same(people):
    packed = people.with_suffix(".csv.gz")
    packed.write_bytes(gzip.compress(b"\xef\xbb\xbf" + people.read_bytes()))
    one, two = (load("table", root=path, target="y", group="town") for path in (people, packed))
    assert torch.equal(one.train.inputs, two.train.inputs)


@pytest.mark.parametrize("fit_on", ["train", "all"])
def test_table_fills_missing_cells_with_the_mean(fit_on, tmp_path):
    values = np.random.RandomState(0).rand(30, 2)
    cells = [[repr(float(v)) for v in row] for row in values]
    for row, token in zip((3, 8, 20, 21), ("", "?", "NaN", " NA "), strict=True):
        cells[row][0], values[row, 0] = token, np.nan
    path = save(tmp_path / "t.csv", "a,y", *map(",".join, cells))
    with pytest.raises(ValueError, match=r"missing in the column\(s\) a; missing='mean'"):
        load("table", root=path, target="y")
    data = load("table", root=path, target="y", missing="mean", scaling="none", fit_on=fit_on)
    order = np.random.RandomState(0).permutation(30)
    wanted = values[order]
    fit = wanted[:21, 0] if fit_on == "train" else wanted[:, 0]
    wanted = np.where(np.isnan(wanted), np.nanmean(fit), wanted).astype(np.float32)
    got = np.concatenate([torch.cat([part.inputs, part.labels], 1).numpy() for part in parts(data)])
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


@pytest.mark.parametrize("scaling", ["minmax", "standard"])
def test_columns_without_spread_become_zero_and_constant_targets_are_allowed(scaling, tmp_path):
    path = save(tmp_path / "t.csv", "a,b,y", *(f"0.1,{k},7.5" for k in range(30)))
    data = load("table", root=path, target="y", scaling=scaling)
    for part in parts(data):
        assert not part.inputs[:, 0].any()
        assert (part.labels == 7.5).all()
    assert data.train.inputs[:, 1].std() > 0.1


def test_table_says_what_is_wrong(people, tmp_path):
    with pytest.raises(ValueError, match=r"lacks the column\(s\) wage; it has age, income, town, league, y"):
        load("table", root=people, target="wage")
    with pytest.raises(ValueError, match=r"lacks the column\(s\) z, sex"):
        load("table", root=people, target="y", inputs=["age", "sex"], group="z")
    with pytest.raises(ValueError, match="'town' is not numeric, first in data row 1: 'a'"):
        load("table", root=people, target="y")
    with pytest.raises(ValueError, match="'town' is not numeric"):
        load("table", root=people, target="town", inputs=["age"])
    with pytest.raises(ValueError, match=r"y are named more than once"):
        load("table", root=people, target="y", inputs=["age", "y"])
    with pytest.raises(TypeError, match="target"):
        load("table", root=people)
    for option in ({"target": [1]}, {"target": 2}, {"target": "y", "inputs": [0]}, {"target": "y", "group": ["a"]}):
        with pytest.raises(TypeError, match=r"expected (target|inputs|group) to be"):
            load("table", root=people, **option)
    for target in ("", [], ["y", "y"]):
        with pytest.raises(ValueError, match=r"expected target|lacks the column"):
            load("table", root=people, target=target)
    with pytest.raises(TypeError, match="list of names"):
        load("table", root=people, target="y", inputs="age")
    with pytest.raises(ValueError, match="missing to be one of error, mean"):
        load("table", root=people, target="y", missing="drop")
    for shares in ({"valid_share": 0}, {"test_share": 1.0}, {"valid_share": -0.1}):
        with pytest.raises(ValueError, match="between 0 and 1"):
            load("table", root=people, target="y", **shares)
    for shares in ({"valid_share": 0.04}, {"test_share": 0.04}, {"valid_share": 0.5, "test_share": 0.45}):
        with pytest.raises(ValueError, match="too few rows, got 20"):
            load("table", root=people, target="y", inputs=["age"], **shares)
    with pytest.raises(ValueError, match=r"expected a \.csv"):
        load("table", root=save(tmp_path / "t.txt", "a,y", "1,2"), target="y")
    with pytest.raises(ValueError, match="too few rows, got 0"):
        load("table", root=save(tmp_path / "t.csv", "a,y"), target="y")
    with pytest.raises(ValueError, match="no column left"):
        load("table", root=save(tmp_path / "t.csv", "y", "1"), target="y")
    for header in ("a,a,y", "a,,y"):
        with pytest.raises(ValueError, match="a name of its own"):
            load("table", root=save(tmp_path / "t.csv", header, "1,2,3"), target="y")
    for cell, complaint in (
        ("inf", "'y' is infinite or beyond float32"),
        ("1e39", "'y' is infinite or beyond float32"),
        ("1_000", "'y' is not numeric"),
        ("nan", "target 'y' is missing"),
        ("", "target 'y' is missing"),
    ):
        path = save(tmp_path / "t.csv", "a,y", *["1,2"] * 20, f"1,{cell}")
        with pytest.raises(ValueError, match=f"{complaint}, first in data row 21"):
            load("table", root=path, target="y", missing="mean")
    path = save(tmp_path / "t.csv", "a,y,g", *["1,2,x"] * 20, "1,2,?")
    with pytest.raises(ValueError, match="group 'g' is missing, first in data row 21"):
        load("table", root=path, target="y", group="g")
    path = save(tmp_path / "t.csv", "a,y", *["?,2"] * 20)
    with pytest.raises(ValueError, match=r"no known cell to fill column\(s\) a"):
        load("table", root=path, target="y", missing="mean")


def test_table_from_parquet(people, tmp_path):
    arrow = pytest.importorskip("pyarrow", reason="reading Parquet needs pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    with people.open(newline="") as file:
        header, *cells = csv.reader(file)
    columns = {name.strip(): list(cell) for name, cell in zip(header, zip(*cells, strict=True), strict=True)}
    typed = {name: cell if name == "town" else list(map(int, cell)) for name, cell in columns.items()}
    typed["age"] = [None, *typed["age"][1:]]
    parquet.write_table(arrow.table(typed), tmp_path / "people.parquet")
    one = load("table", root=people, target="y", inputs=["league"], group="town")
    two = load("table", root=tmp_path / "people.parquet", target="y", inputs=["league"], group="town")
    for first, second in zip(parts(one), parts(two), strict=True):
        assert torch.equal(first.inputs, second.inputs)
        assert torch.equal(first.labels, second.labels)
        assert torch.equal(first.groups, second.groups)
    with pytest.raises(ValueError, match=r"missing in the column\(s\) age"):
        load("table", root=tmp_path / "people.parquet", target="y", inputs=["age"])


def test_parquet_without_pyarrow_says_how_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    path = save(tmp_path / "t.parquet", "")
    with pytest.raises(ImportError, match=r"needs pyarrow: pip install 'mixaug\[parquet\]'"):
        load("table", root=path, target="y")


# --- RCF-MNIST --------------------------------------------------------------------------------------------------------


def idx(images: np.ndarray) -> bytes:
    return np.array([2051, *images.shape], dtype=">i4").tobytes() + images.tobytes()


@pytest.fixture(scope="module")
def fashion(tmp_path_factory) -> Path:
    """60,000 images: a bright bar above the centre, and the index in base 6 in pixels too dark to be coloured."""
    images = np.zeros((60_000, 28, 28), dtype=np.uint8)
    images[:, 4:12, 13:15] = 250
    images[:, 0, :7] = np.arange(60_000)[:, None] // 6 ** np.arange(7) % 6
    folder = tmp_path_factory.mktemp("fashion")
    (folder / "train-images-idx3-ubyte").write_bytes(idx(images))
    return folder


@pytest.fixture
def unturned(monkeypatch) -> None:
    """Leaves the rotation out, which takes most of the time."""
    monkeypatch.setattr("mixaug.data.rcf_mnist._rotated", lambda images, degrees: images)


TURNED = 400


@pytest.fixture(scope="module")
def rcf(fashion) -> RegressionSet:
    """Of each part the first 400 images are turned: all 60,000 take five seconds."""
    pytest.importorskip("PIL")
    really = rcf_mnist._rotated

    def some(images, degrees):
        return np.concatenate([really(images[:TURNED], degrees[:TURNED]), images[TURNED:]])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rcf_mnist, "_rotated", some)
        return load("rcf_mnist", root=fashion)


def test_rcf_mnist_has_the_published_form(rcf):
    assert sizes(rcf) == (40_000, 10_000, 10_000)
    assert (rcf.input_shape, rcf.outputs, rcf.train.inputs.dtype) == ((3, 28, 28), 1, torch.uint8)
    assert rcf.mean == rcf.std == (0.5, 0.5, 0.5)
    for part in parts(rcf):
        # A uniform variable on [0, 1) has the standard deviation 1 / sqrt(12).
        assert abs(part.labels.mean() - 0.5) < 4 * (1 / 12 / len(part)) ** 0.5
        assert part.labels.min() >= 0
        assert part.labels.max() <= 1


def test_rcf_mnist_turns_and_colours_as_the_label_and_the_group_say(rcf):
    from PIL import Image

    bar = np.zeros((28, 28), dtype=np.uint8)
    bar[4:12, 13:15] = 250
    for part in parts(rcf):
        for k in range(50):
            label = part.labels[k].item()
            lit = np.asarray(Image.fromarray(bar).rotate(360 * label)) > 0
            image = part.inputs[k].numpy().astype(float)
            # The label was rounded to float32, which may move a pixel that lies between two.
            assert ((image.max(0) > 5) != lit).sum() <= 2
            dark = image.max(0) <= 5
            assert (image[:, dark] == image[0, dark]).all()
            red, green, blue = np.median(image[:, ~dark], axis=1) / 250
            assert green == 0
            assert red + blue == pytest.approx(1, abs=1 / 250)
            if part.groups[k] < 2:
                assert red == pytest.approx(label if part.groups[k] == 0 else 1 - label, abs=1 / 250)


def test_rcf_mnist_bar_turns_counter_clockwise(rcf):
    quarter = (rcf.train.labels[:TURNED, 0] - 0.25).abs().argmin()
    bright = (rcf.train.inputs[quarter].sum(0) > 200).nonzero().double()
    row, column = bright.mean(0).tolist()
    assert abs(row - 13.5) < 1.5
    assert column < 10  # what was above the centre lies left of it


def test_rcf_mnist_colour_is_spurious_in_the_stated_shares(rcf, fashion, unturned):
    counts = [part.groups.bincount(minlength=3).tolist() for part in parts(rcf)]
    assert counts == [[32_000, 8_000, 0], [0, 0, 10_000], [2_000, 8_000, 0]]
    same = load("rcf_mnist", root=fashion, spurious_ratio=0.9, test_colour="same")
    assert [part.groups.bincount(minlength=3).tolist() for part in parts(same)] == [
        [36_000, 4_000, 0],
        [0, 0, 10_000],
        [9_000, 1_000, 0],
    ]
    red, blue = (rcf.valid.inputs[:, k].flatten(1).amax(1).double() for k in (0, 2))
    share = red / (red + blue)
    correlation = torch.corrcoef(torch.stack([share, rcf.valid.labels[:, 0].double()]))[0, 1]
    assert abs(correlation) < 4 / len(rcf.valid) ** 0.5


def places(part) -> torch.Tensor:
    """Where the images of a part stand in the file."""
    return part.inputs[:, 1, 0, :7].long() @ 6 ** torch.arange(7)


def test_rcf_mnist_is_fixed_by_its_split(rcf, fashion, unturned):
    other = load("rcf_mnist", root=fashion, split=1)
    used = [places(part) for part in parts(other)]
    assert torch.equal(torch.cat(used).sort().values, torch.arange(60_000))
    assert not torch.equal(used[0], used[0].sort().values)
    assert not torch.equal(other.train.labels, rcf.train.labels)
    assert not torch.equal(used[0][TURNED:], places(rcf.train)[TURNED:])


@pytest.mark.slow
def test_rcf_mnist_is_the_same_each_time_and_from_a_packed_file(rcf, fashion, unturned, tmp_path):
    (tmp_path / "FashionMNIST" / "raw").mkdir(parents=True)
    packed = tmp_path / "FashionMNIST" / "raw" / "train-images-idx3-ubyte.gz"
    packed.write_bytes(gzip.compress((fashion / "train-images-idx3-ubyte").read_bytes(), compresslevel=1))
    plain, again = (load("rcf_mnist", root=root) for root in (fashion, tmp_path))
    for one, two, three in zip(parts(plain), parts(again), parts(rcf), strict=True):
        assert torch.equal(one.inputs, two.inputs)
        assert torch.equal(one.labels, two.labels)
        assert torch.equal(one.labels, three.labels)
        assert torch.equal(one.groups, three.groups)


def test_faults_of_rcf_mnist(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte"
    for content in (b"", idx(np.zeros((10, 28, 28), dtype=np.uint8)), b"x" * 5000):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="60,000 images of 28x28"):
            load("rcf_mnist", root=tmp_path)
    for options, error in (
        ({"spurious_ratio": 1.1}, ValueError),
        ({"spurious_ratio": "0.8"}, TypeError),
        ({"test_colour": "green"}, ValueError),
    ):
        with pytest.raises(error, match=f"expected {next(iter(options))}"):
            load("rcf_mnist", root=tmp_path, **options)


def test_files_that_are_no_text_say_so_with_their_name(tmp_path):
    whole = gzip.compress(b"a,y\n" + b"1,2\n" * 20)
    contents = {
        "latin.csv": "a,gr\u00f6\u00dfe\n1,2\n".encode("latin-1"),
        "torn.csv.gz": whole[:-12],
        "text.csv.gz": b"a,y\n1,2\n",
        "wide.csv": b"a,y\n" + b"9" * 200_000 + b",2\n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} cannot be read as comma-separated text in UTF-8"):
            load("table", root=tmp_path / name, target="y")
    (tmp_path / "LOUD.CSV.GZ").write_bytes(whole)
    assert load("table", root=tmp_path / "LOUD.CSV.GZ", target="y").outputs == 1


def test_targets_that_float32_cannot_tell_apart_are_refused(tmp_path):
    path = save(tmp_path / "t.csv", "a,y", *[f"{k},{1_600_000_000 + k}" for k in range(20)])
    with pytest.raises(ValueError, match=r"target 'y' has a spread of 5.77 around 1.6e\+09, which float32 rounds by"):
        load("table", root=path, target="y")
    fine = save(tmp_path / "u.csv", "a,y", *[f"{k},{1_600_000_000 + 1e7 * k}" for k in range(20)])
    assert len(load("table", root=fine, target="y").train.labels.unique()) == 14
