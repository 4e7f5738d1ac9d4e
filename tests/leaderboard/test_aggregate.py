"""Run folders to rows, and rows to pages."""

import csv
import io

import pytest

from mixaug.leaderboard import aggregate, collect, write
from mixaug.leaderboard.render import to_csv, to_html, to_markdown

from .fabricate import fail, realistic, result, write_run


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
    assert (mixup.top1.mean, mixup.top1.std, mixup.seeds) == (93, 2, (0, 1, 2))
    assert mixup.difference.mean == 2
    assert row(board, "none").difference is None
    assert row(board, "cutmix").difference.mean == pytest.approx(-5 / 3)


@pytest.mark.parametrize(("statistic", "expected"), [("last", 90.0), ("best", 90.5), ("median10", 89.9)])
def test_statistic_is_chosen(tmp_path, statistic, expected):
    grid(tmp_path, {"none": [90]})
    (board,) = aggregate(collect(tmp_path), statistic=statistic).boards
    assert board.rows[0].top1.mean == pytest.approx(expected)


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
            assert f"{shown.top1.mean:.2f}" in page
            assert shown.policy in page
    lines = list(csv.DictReader(io.StringIO(paths[".csv"])))
    assert [line["policy"] for line in lines] == [shown.policy for shown in leaderboard.boards[0].rows]
    for line, shown in zip(lines, leaderboard.boards[0].rows, strict=True):
        assert float(line["mean"]) == pytest.approx(shown.top1.mean, abs=1e-6)


def test_names_from_run_folders_are_escaped(tmp_path):
    write_run(tmp_path, result("none", data_options={"note": "<script>alert(1)</script>"}))
    html = to_html(aggregate(collect(tmp_path)))
    assert "<script>alert" not in html


def test_a_duplicate_seed_counts_once(tmp_path):
    write_run(tmp_path, result("none", 0, 90), name="first")
    write_run(tmp_path, result("none", 0, 91), name="second")
    (board,) = aggregate(collect(tmp_path)).boards
    assert board.rows[0].top1.n == 1


def test_command_regenerates_the_row():
    from mixaug.engine.config import compose, plain
    from mixaug.leaderboard.command import overrides_of

    asked = ["policy=cutmix", "policy.alpha=0.3", "epochs=7", "data.train_size=500", "optimizer.lr=0.05"]
    config_ = plain(compose([*asked, "seed=3"]))
    again = plain(compose([*overrides_of(config_), "seed=3"]))
    assert again == config_
