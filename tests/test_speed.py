"""The benchmark: interleaving, goals and tables. Nothing here judges how fast anything is."""

import csv
import io

import pytest
import torch

import mixaug
from mixaug.speed import goals as goal_files
from mixaug.speed import rivals, sections
from mixaug.speed.command import main
from mixaug.speed.goals import Goal, judge, read_goals
from mixaug.speed.memory import peak_bytes
from mixaug.speed.regime import Regime
from mixaug.speed.report import table
from mixaug.speed.sections import Row
from mixaug.speed.timing import Ratio, Timing, interleaved


def test_every_case_runs_once_a_round_in_turn():
    order = []
    cases = {name: lambda name=name: order.append(name) for name in "abc"}
    timings = interleaved(cases, rounds=3, round_seconds=0)
    # Two calls each to warm up, then two each in every round.
    assert order == list("aabbcc") * 4
    assert {name: len(timing.rounds) for name, timing in timings.items()} == {"a": 3, "b": 3, "c": 3}
    with pytest.raises(ValueError, match="rounds of at least 1, got 0"):
        interleaved(cases, rounds=0)


def test_ratio_is_taken_round_by_round():
    # A machine that slows down threefold in the second round changes no ratio.
    ratio = Ratio.of(Timing((2.0, 6.0, 2.0)), Timing((1.0, 3.0, 2.0)))
    assert (ratio.median, ratio.low, ratio.high) == (2.0, 1.0, 2.0)


def row(job, per, floor, output="out", side=224, peer=None):
    ratio = Ratio(floor, floor - 0.1, floor + 0.1)
    against = None if peer is None else Ratio(peer, peer, peer)
    regime = f"64x3x{side}x{side} float32 contiguous"
    return Row("mixing", regime, job, per, output, "mixaug", 1.0, ratio, against, "timm" if peer else "")


def test_goals_take_the_better_of_out_and_inplace():
    goals = [Goal("mixup", "batch", "large", 0.8, 0.4, "", None)]
    rows = [row("mixup", "batch", 1.5), row("mixup", "batch", 0.7, "inplace", peer=0.5), row("mixup", "sample", 9)]
    verdicts = judge([*rows, row("mixup", "batch", 9, side=32), row("mixup", "batch", 0.1, "fresh")], goals)
    assert [(v.got, v.goal, v.reached, v.missed) for v in verdicts] == [
        (0.7, 0.8, True, False),
        (0.5, 0.4, False, True),
    ]


def test_a_goal_within_the_spread_is_not_missed():
    goals = [Goal("mixup", "batch", "large", 0.8, None, "", None)]
    (verdict,) = judge([row("mixup", "batch", 0.85)], goals)
    assert not verdict.reached
    assert not verdict.missed
    (verdict,) = judge([row("mixup", "batch", 0.95)], goals)
    assert verdict.missed


def test_recorded_peers_stand_in_where_none_is_installed():
    goals = [Goal("gridmix", "batch", "large", None, 0.2, "openmixup", 5.0)]
    (verdict,) = judge([row("gridmix", "batch", 1.5)], goals)
    assert verdict.got == pytest.approx(0.3)
    assert verdict.missed
    assert "openmixup" in verdict.what


def test_every_goal_names_a_job():
    labels = {job.label for job in sections.JOBS}
    assert {goal.job for goal in read_goals(goal_files.GOALS)} <= labels
    for job in sections.JOBS:
        mixaug.create(job.policy, **job.options)


@pytest.mark.parametrize(("policy", "per"), [("mixup", "batch"), ("mixup", "sample"), ("cutmix", "batch")])
def test_rivals_do_the_same_job(policy, per):
    regime = Regime((4, 3, 8, 8))
    found = dict(rivals.rivals(policy, per, regime))
    assert "timm" in found
    assert ("torchvision" in found) == (per == "batch")
    images, labels = regime.images(0), torch.tensor([1, 2, 3, 4])
    targets = rivals.dense_targets(found["timm"](images.clone(), labels))
    torch.testing.assert_close(targets.sum(1), torch.ones(4))


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_command_prints_and_writes_tables(capsys, tmp_path, dtype):
    arguments = ["--shapes", "4,3,8,8", "--rounds", "1", "--jobs", "mixup", "cutmix", "--dtypes", dtype]
    code = main([*arguments, "--sections", "mixing", "--per", "sample", "--out", str(tmp_path)])
    assert code == 0
    printed = capsys.readouterr().out
    assert "### mixing: 4x3x8x8" in printed
    assert f"torch {torch.__version__}" in printed
    lines = list(csv.DictReader(io.StringIO((tmp_path / "speed.csv").read_text())))
    assert {(line["job"], line["output"]) for line in lines if line["library"] == "mixaug"} == {
        (job, output) for job in ("mixup", "cutmix") for output in ("fresh", "out", "inplace")
    }
    assert {float(line["x_floor"]) for line in lines if line["library"] == "floor"} == {1.0}
    assert table([]).count("\n") == 1


def test_bad_shape_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--shapes", "4,3,8"])
    assert "expected B,C,H,W of positive integers, got '4,3,8'" in capsys.readouterr().err


def test_a_step_shows_its_peak_of_memory():
    rows = list(
        sections.training_step(
            Regime((4, 3, 8, 8)), [sections.Job("cutmix", "cutmix")], "cifar_resnet8", 1, memory=True
        )
    )
    assert [row.job for row in rows] == ["none", "cutmix"]
    assert rows[0].note == "peak memory x 1.00"
    assert 0.9 < float(rows[1].note.split()[-1]) < 2


def test_peak_memory_counts_what_is_held_at_once():
    def call():
        first = torch.zeros(250_000)
        second = first + 1
        del first
        return second, torch.zeros(125_000)

    assert peak_bytes(call, torch.device("cpu")) == pytest.approx(2_000_000, rel=0.01)


def test_puzzlemix_section_compares_with_recorded_costs():
    rows = list(sections.puzzlemix((4, 3, 32, 32), "cpu", 1))
    assert len(rows) >= 8
    assert all(row.milliseconds > 0 for row in rows)
    gaps = list(sections.cut_energies("cpu", count=2))
    assert {row.output for row in gaps} == {"scipy", "host", "device"}
    assert all("largest 0.00 %" in row.note for row in gaps if row.output == "scipy" or row.job == "L = 3, n = 4")


@pytest.mark.slow
def test_every_section_runs(capsys):
    arguments = ["--shapes", "8,3,32,32", "--rounds", "1", "--jobs", "mixup", "--model", "cifar_resnet8", "--compiled"]
    main([*arguments, "--sections", "mixing", "loss", "step", "loader"])
    printed = capsys.readouterr().out
    for section in ("mixing:", "mixing, labels and loss", "training step", "loader", "log_softmax"):
        assert section in printed
