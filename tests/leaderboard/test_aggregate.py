"""Run folders to rows, and rows to pages."""

import csv
import io

import pytest

from mixaug.leaderboard import aggregate, collect, write
from mixaug.leaderboard.page import to_html
from mixaug.leaderboard.render import to_csv, to_markdown

from .fabricate import config, fail, realistic, result, write_run


def row(board, policy):
    (found,) = [row for row in board.rows if row.policy == policy]
    return found


def grid(root, tops, **changes):
    for policy, values in tops.items():
        for seed, top1 in enumerate(values):
            write_run(root, result(policy, seed, top1, **changes))


def test_rows_means_and_paired_differences(tmp_path):
    grid(tmp_path, {"none": [90, 91, 92], "mixup": [91, 93, 95], "cutmix": [88, 89, 91]})
    (board,) = aggregate(collect(tmp_path)).boards
    assert [row.policy for row in board.rows] == ["mixup", "none", "cutmix"]
    mixup = row(board, "mixup")
    assert (mixup.score.mean, mixup.score.std, mixup.seeds) == (93, 2, (0, 1, 2))
    assert mixup.difference.mean == 2
    assert row(board, "none").difference is None
    assert row(board, "cutmix").difference.mean == pytest.approx(-5 / 3)


@pytest.mark.parametrize(("statistic", "expected"), [("last", 90.0), ("best", 90.5), ("median10", 89.9)])
def test_statistic_is_chosen(tmp_path, statistic, expected):
    grid(tmp_path, {"none": [90]})
    (board,) = aggregate(collect(tmp_path), statistic=statistic).boards
    assert board.rows[0].score.mean == pytest.approx(expected)


def test_settings_are_not_mixed(tmp_path):
    grid(tmp_path / "a", {"none": [90]})
    grid(tmp_path / "b", {"none": [80]}, model="cifar_resnet20")
    grid(tmp_path / "c", {"none": [70]}, epochs=10)
    grid(tmp_path / "d", {"none": [60]}, data_options={"train_size": 100})
    assert len(aggregate(collect(tmp_path)).boards) == 4


def test_options_make_rows_of_their_own(tmp_path):
    for alpha in (0.2, 1.0):
        write_run(tmp_path, result("mixup", 0, 90 + alpha, policy_options={"alpha": alpha}))
    (board,) = aggregate(collect(tmp_path)).boards
    assert sorted(row.label for row in board.rows) == ["mixup (alpha=0.2)", "mixup (alpha=1)"]


def test_a_seed_missing_on_one_side_is_said(tmp_path):
    grid(tmp_path, {"none": [90, 91, 92], "mixup": [91, 93]})
    page = to_markdown(aggregate(collect(tmp_path)))
    assert "seed" in page.lower()
    (board,) = aggregate(collect(tmp_path)).boards
    assert row(board, "mixup").difference.missing_ours == (2,)
    assert any("2" in note for note in row(board, "mixup").notes)


def test_costs_are_medians_and_ratios_over_common_seeds(tmp_path):
    for seed, (step, slow) in enumerate([(10, 11), (10, 11), (10, 99)]):
        write_run(tmp_path, result("none", seed, step_ms=step, peak_memory_mb=100))
        write_run(tmp_path, result("mixup", seed, step_ms=slow, peak_memory_mb=150))
    leaderboard = aggregate(collect(tmp_path))
    mixup = row(leaderboard.boards[0], "mixup")
    assert (mixup.time_ratio, mixup.memory_ratio) == (1.1, 1.5)
    lines = {line["policy"]: line for line in csv.DictReader(io.StringIO(to_csv(leaderboard)))}
    assert float(lines["mixup"]["step_ms_median"]) == 11


def test_broken_runs_are_reported_and_left_out(tmp_path):
    grid(tmp_path, {"none": [90, 91]})
    fail(write_run(tmp_path, result("mixup", 0), name="failed"), "loss became nan at step 7")
    write_run(tmp_path, result("mixup", 1), name="unfinished", finished=False)
    torn = write_run(tmp_path, result("mixup", 2), name="torn")
    (torn / "result.json").write_text('{"status": "fin')
    states = {run.folder.name: run.status for run in collect(tmp_path)}
    assert states["failed"] == "failed"
    assert states["unfinished"] == "unfinished"
    leaderboard = aggregate(collect(tmp_path))
    assert [row.policy for row in leaderboard.boards[0].rows] == ["none"]
    page = to_markdown(leaderboard)
    assert "loss became nan at step 7" in page
    for name in ("failed", "unfinished", "torn"):
        assert name in page
        assert name in to_html(leaderboard)


@pytest.mark.parametrize("content", ["[1, 2]", '{"status": "finished"}', '{"top1_last": "high"}', "\x00\x01", ""])
def test_damaged_results_are_not_fatal(tmp_path, content):
    folder = write_run(tmp_path, result(), name="run")
    (folder / "result.json").write_text(content)
    (run,) = collect(tmp_path)
    assert run.status != "finished"
    assert run.reason
    assert not aggregate(collect(tmp_path)).boards


@pytest.mark.usefixtures("drawn")
def test_pages_hold_every_number_and_nothing_from_outside(tmp_path):
    realistic(tmp_path / "runs", seeds=5, epochs=30)
    leaderboard = aggregate(collect(tmp_path / "runs"))
    paths = {path.suffix: path.read_text() for path in write(leaderboard, tmp_path / "out")}
    assert set(paths) == {".md", ".csv", ".html"}
    html = paths[".html"]
    for outside in ("http://", "https://", 'src="/', "<link", "@import"):
        assert outside not in html.replace("http://www.w3.org", ""), outside
    assert html.count("<img") + html.count("<svg") >= 3
    for shown in leaderboard.boards[0].rows:
        for page in (paths[".md"], html):
            assert f"{shown.score.mean:.2f}" in page
            assert shown.policy in page
    lines = list(csv.DictReader(io.StringIO(paths[".csv"])))
    assert [line["policy"] for line in lines] == [shown.policy for shown in leaderboard.boards[0].rows]
    for line, shown in zip(lines, leaderboard.boards[0].rows, strict=True):
        assert float(line["mean"]) == pytest.approx(shown.score.mean, abs=1e-6)


def test_names_from_run_folders_are_escaped(tmp_path):
    write_run(tmp_path, result("none", data_options={"note": "<script>alert(1)</script>"}))
    html = to_html(aggregate(collect(tmp_path)))
    assert "<script>alert" not in html


def test_a_duplicate_seed_counts_once(tmp_path):
    write_run(tmp_path, result("none", 0, 90), name="first")
    write_run(tmp_path, result("none", 0, 91), name="second")
    (board,) = aggregate(collect(tmp_path)).boards
    assert board.rows[0].score.n == 1


@pytest.mark.parametrize(
    "asked",
    [
        ["policy=cutmix", "policy.alpha=0.3", "epochs=7", "data=digits", "data.train_size=500", "optimizer.lr=0.05"],
        # A mapping where the file has a single value.
        [
            "policy=mixup",
            "policy.partners={_target_: mixaug.partners.Stream, name: outliers, label: uniform}",
            "policy.labeling={_target_: mixaug.labeling.Separate, ratio: 0.8}",
            "+streams.outliers.data={name: digits, train_size: 20}",
        ],
    ],
)
def test_command_regenerates_the_row(asked):
    from mixaug.engine.config import compose, plain
    from mixaug.leaderboard.command import overrides_of

    config_ = plain(compose([*asked, "seed=3"]))
    again = plain(compose([*overrides_of(config_), "seed=3"]))
    assert again == config_


def test_settings_of_a_learned_mixer_are_the_policys_and_in_its_command(tmp_path):
    from mixaug.engine.build import options
    from mixaug.engine.config import compose, mixer_settings, plain

    photos = {"data": "photos", "data_options": options(plain(compose([]))["data"])}
    for rate in (None, 0.01, 0.2):
        given = [] if rate is None else [f"mixer.lr={rate}", "mixer.momentum=0", "mixer.schedule.min_lr=0.001"]
        policy = "none" if rate is None else "mixup"
        composed = compose([f"policy={policy}", *given])
        set_for_it = {**options(plain(composed)["policy"]), **mixer_settings(composed)}
        told = result(policy, 0, 80.0 + (rate or 0), policy_options=set_for_it, **photos)
        write_run(tmp_path, told, configured=plain(composed))
    # Such a run comes from a version that had no mixers.
    older = plain(compose(["policy=none", "seed=1"]))
    del older["mixer"]
    write_run(tmp_path, result("none", 1, 81.0, **photos), configured=older)

    [board] = aggregate(collect(tmp_path)).boards
    rows = {row.label: row for row in board.rows}
    shown = "alpha=1, mixer.lr={}, mixer.momentum=0, mixer.schedule.min_lr=0.001"
    assert set(rows) == {"none", f"mixup ({shown.format(0.2)})", f"mixup ({shown.format(0.01)})"}
    found = rows[f"mixup ({shown.format(0.2)})"]
    assert found.difference.mean == pytest.approx(0.2)  # the baseline has no mixer to set
    assert not any("ran with" in note for note in found.notes)
    assert found.command == (
        "mixaug benchmark policy=mixup model=cifar_resnet8 data=photos protocol=default "
        "mixer.lr=0.2 mixer.momentum=0 mixer.schedule.min_lr=0.001 seed=0"
    )
    assert found.command in to_markdown(aggregate(collect(tmp_path)))
    assert rows["none"].seeds == (0, 1)
    assert rows["none"].command.endswith("protocol=default seed=0,1")


def test_wrong_choices_are_refused():
    with pytest.raises(ValueError, match=r"statistic: expected one of last, best, .*got 'mean'"):
        aggregate([], statistic="mean")
    with pytest.raises(ValueError, match="confidence"):
        aggregate([], confidence=95)


def test_without_a_baseline_there_is_no_difference(tmp_path):
    write_run(tmp_path, result("mixup"))
    fail(write_run(tmp_path, result("none")), "nan")
    found = row(aggregate(collect(tmp_path)).boards[0], "mixup")
    assert found.difference is None
    assert found.time_ratio is None
    assert found.notes == ("no finished run of none",)


def test_one_common_seed_gives_no_interval(tmp_path):
    write_run(tmp_path, result("none", 0, 80.0))
    write_run(tmp_path, result("mixup", 0, 81.0))
    found = row(aggregate(collect(tmp_path)).boards[0], "mixup")
    assert (found.difference.mean, found.difference.low) == (1.0, None)
    assert "one seed: no interval" in found.notes


def test_where_the_data_lies_makes_no_other_board(tmp_path):
    write_run(tmp_path, result("none", data_options={"root": "/a", "transform": None}))
    write_run(tmp_path, result("mixup", data_options={"root": "/b"}))
    assert len(aggregate(collect(tmp_path)).boards) == 1


def test_other_settings_are_not_averaged_together(tmp_path):
    slow = {"opt": "momentum", "lr": 0.01, "weight_decay": 1e-4}
    for seed in (0, 1):
        for policy, gain in (("none", 0), ("mixup", 1)):
            told = result(policy, seed, 80.0 + gain)
            write_run(tmp_path, told)
            slower = result(policy, seed, 70.0 + 3 * gain)
            write_run(tmp_path, slower, configured=config(slower, optimizer=slow), name=f"slow-{policy}-{seed}")
    [board] = aggregate(collect(tmp_path)).boards
    differences = {row.label: row.difference.mean for row in board.rows if row.difference}
    assert differences == {"mixup (optimizer.lr=0.1)": 1.0, "mixup (optimizer.lr=0.01)": 3.0}


def test_a_lone_baseline_under_other_settings_is_used_and_said(tmp_path):
    write_run(tmp_path, result("none", 0, 80.0))
    told = result("cutmix", 0, 82.0)
    decayed = {"opt": "momentum", "lr": 0.1, "weight_decay": 5e-4}
    write_run(tmp_path, told, configured=config(told, optimizer=decayed))
    found = row(aggregate(collect(tmp_path)).boards[0], "cutmix")
    assert found.difference.mean == pytest.approx(2.0)
    assert "none ran with optimizer.weight_decay=0.0001" in found.notes


def test_times_of_another_machine_are_not_compared(tmp_path):
    write_run(tmp_path, result("none", 0, 80.0))
    write_run(tmp_path, result("mixup", 0, 81.0), environment={"threads": 8})
    found = row(aggregate(collect(tmp_path)).boards[0], "mixup")
    assert found.time_ratio is None
    assert found.memory_ratio is None
    assert found.difference.mean == pytest.approx(1.0)
    assert "not timed on the machine of none" in found.notes


def test_command_names_the_folder_a_data_set_needs():
    from mixaug.engine.config import compose, config_hash, plain
    from mixaug.leaderboard.command import overrides_of

    asked = compose(
        ["policy=fmix", "model=cifar_resnet18", "data=cifar100", "data.root=/x", "protocol=openmixup_cifar"]
    )
    overrides = overrides_of(plain(asked))
    assert overrides[-1] == "data.root=/x"  # the protocol's own values need no repetition
    assert config_hash(compose([*overrides, "seed=0"])) == config_hash(asked)


@pytest.mark.parametrize(
    ("override", "mark"),
    [
        ("threads=1", ""),
        ("compile=true", ""),
        ("optimizer.lr=0.2", "other settings"),
        ("+model.drop_path_rate=0.1", "other settings"),
        ("augment.flip=false", "other settings"),
    ],
)
def test_a_figure_stands_only_beside_a_run_that_kept_to_its_protocol(tmp_path, override, mark):
    from mixaug.engine.build import options
    from mixaug.engine.config import compose, plain

    asked = ["policy=mixup", "model=cifar_resnet18", "data=cifar100", "data.root=/x", "protocol=openmixup_cifar"]
    composed = plain(compose([*asked, override]))
    told = result(
        "mixup",
        model="cifar_resnet18",
        data="cifar100",
        protocol="openmixup_cifar",
        epochs=200,
        policy_options=options(composed["policy"]),
        data_options=options(composed["data"]),
    )
    write_run(tmp_path, told, configured=composed)
    found = aggregate(collect(tmp_path)).boards[0].rows[0].published
    assert found.mark == mark
    assert (found.figure is None) == bool(mark)
