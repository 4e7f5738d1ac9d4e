"""Tables and figures of what the suite found, from run folders that are made up."""

import csv
import json

import pytest

from mixaug.engine.evaluation.corruption import CORRUPTIONS
from mixaug.leaderboard import aggregate, collect, evaluation_page
from mixaug.leaderboard.evaluation_page import write_evaluations
from mixaug.leaderboard.evaluation_plots import FIGURES
from mixaug.leaderboard.evaluations import MEASURES, evaluation_of

from .fabricate import result, write_run

BY_NAME = {(measure.family, measure.key): measure for measure in MEASURES}


def found(ece, settings=None, **families):
    """What the suite leaves of a run whose calibration error is this one."""
    bins = {"edges": [0, 0.5, 1], "count": [30, 70], "confidence": [0.4, 0.9], "accuracy": [0.5, 0.9 - ece]}
    made = {
        "calibration": {"numbers": {"ece": ece, "nll": 3 * ece, "mystery": 1}, "curves": bins},
        "temperature": {"skipped": "no validation split"},
        "occlusion": {
            "numbers": {"mean_area": 50 - ece},
            "curves": {"shares": [0, 0.5], "mean": [90, 50], "foreign": [90, 40]},
        },
        "corruption": {"numbers": {"mean_error": 30, **dict.fromkeys(CORRUPTIONS, 30)}, "curves": {}},
        "geometry": {"numbers": {"nc1": 1 + ece, "intrusion_mixup": 7}, "curves": {}},
        "attack": {"numbers": {"pgd": 12.5}, "curves": {}, "notes": ["one step does more harm than ten"]},
        **families,
    }
    common = {"version": 1, "seed": 0, "samples": None, **(settings or {})}
    for entry in made.values():
        if "numbers" in entry:
            entry.setdefault("notes", [])
            entry["settings"] = {"checkpoint": str(ece), **common}
    return {"families": made}


def board(tmp_path, policies, evaluated=True, **changes):
    for policy, values in policies.items():
        for seed, ece in enumerate(values):
            folder = write_run(tmp_path, result(policy, seed, 90.0 + seed))
            if evaluated:
                (folder / "evaluation.json").write_text(json.dumps(found(ece, **changes)))
    leaderboard = aggregate(collect(tmp_path))
    return leaderboard, leaderboard.boards[0]


def test_cells_have_values_by_seed_and_paired_differences(tmp_path):
    _, made = board(tmp_path, {"none": [0.10, 0.12, 0.15], "mixup": [0.04, 0.07, 0.08]})
    evaluation = evaluation_of(made, 0.95)
    ece = evaluation.cells["mixup"][BY_NAME["calibration", "ece"]]
    assert ece.values == {0: 0.04, 1: 0.07, 2: 0.08}
    assert ece.difference.mean == pytest.approx(-0.06)
    assert ece.difference.verdict == "better"
    # Calibration error and likelihood, covered area, corruptions, intrusion and PGD; NC1 is a description.
    assert evaluation.comparisons == 6
    assert evaluation.cells["mixup"][BY_NAME["geometry", "nc1"]].difference is None
    assert evaluation.cells["none"][BY_NAME["calibration", "ece"]].difference is None
    assert [measure.key for measure in evaluation.measures if measure.family == "temperature"] == []
    same = evaluation.cells["mixup"][BY_NAME["attack", "pgd"]]
    assert (same.difference.mean, same.p_value) == (0, 1)
    # The raw p value of the calibration error is 0.0175 or so: one of six that are taken together.
    assert ece.p_value > 0.05


def test_the_page_says_how_many_comparisons_and_shows_each_family(tmp_path):
    leaderboard, _ = board(tmp_path / "runs", {"none": [0.10, 0.12, 0.15], "mixup": [0.04, 0.0601, 0.09]})
    written = write_evaluations(leaderboard, tmp_path / "out")
    page = (tmp_path / "out" / "evaluation.md").read_text()
    assert "6 comparisons with `none`; the stars hold for all of them together (Holm)." in page
    # The differences are -0.06, -0.0599 and -0.06: s = 5.8e-5, and t(0.975, 2) s / sqrt(3) = 1.4e-4.
    assert "| mixup | 3 | 0.0634 ± 0.0252<br>**-0.0600 [-0.0601, -0.0598]** * |" in page
    assert "| none | 3 | 0.1233 ± 0.0252 |" in page
    assert "- none, seed 0, 1, 2: one step does more harm than ten" in page
    pictures = {path.name for path in written if path.suffix == ".png"}
    expected = {
        f"evaluation_{family}.png" for family in ("calibration", "attack", "occlusion", "corruption", "geometry")
    }
    assert pictures == expected
    assert all(f"]({name})" in page for name in pictures)
    rows = list(csv.DictReader((tmp_path / "out" / "evaluation.csv").read_text().splitlines()))
    assert {row["value"] for row in rows if row["measure"] == "ece" and row["policy"] == "mixup"} == {
        "0.04",
        "0.0601",
        "0.09",
    }
    assert any(row["measure"] == "mystery" for row in rows)


def test_equal_differences_are_no_evidence(tmp_path, monkeypatch):
    leaderboard, made = board(tmp_path / "runs", {"none": [0.1, 0.3], "mixup": [0.05, 0.25]})
    monkeypatch.setattr(evaluation_page, "FIGURES", {})
    cell = evaluation_of(made, 0.95).cells["mixup"][BY_NAME["calibration", "ece"]]
    assert cell.difference.mean == pytest.approx(-0.05) and cell.p_value == 1
    write_evaluations(leaderboard, tmp_path / "out")
    assert "<br>-0.0500 [-0.0500, -0.0500] |" in (tmp_path / "out" / "evaluation.md").read_text()


def test_shares_of_few_images_have_no_verdict_below_their_step(tmp_path):
    # Of 50 images, mixup withstands 20 and 21 more; of 5000 the same numbers are 2000 and 2100.
    shares = {"none": (10.0, 10.0), "mixup": (50.0, 52.0)}
    for samples, spread_tells in ((50, False), (5000, True)):
        root = tmp_path / str(samples)
        for policy, values in shares.items():
            for seed, value in enumerate(values):
                told = found(0.1, attack={"numbers": {"pgd": value}, "curves": {}, "samples": samples})
                folder = write_run(root, result(policy, seed, 90.0 + seed))
                (folder / "evaluation.json").write_text(json.dumps(told))
        [made] = aggregate(collect(root)).boards
        cell = evaluation_of(made, 0.95).cells["mixup"][BY_NAME["attack", "pgd"]]
        # A spread of 2 / sqrt(2) points; with steps of 2 it could as well be none.
        assert cell.difference.std == pytest.approx(2 / 2**0.5)
        assert (cell.difference.verdict == "better") == spread_tells
        assert (cell.p_value == 1) == (not spread_tells)


def test_runs_evaluated_otherwise_are_left_out_of_that_family_and_named(tmp_path):
    _, made = board(tmp_path, {"none": [0.1, 0.12], "mixup": [0.05, 0.06]})
    row = next(row for row in made.rows if row.policy == "mixup")
    other = found(0.01, {"samples": 100})
    other["families"]["geometry"]["settings"]["samples"] = None
    (row.runs[1].folder / "evaluation.json").write_text(json.dumps(other))
    evaluation = evaluation_of(made, 0.95)
    assert set(evaluation.cells["mixup"][BY_NAME["calibration", "ece"]].values) == {0}
    assert set(evaluation.cells["mixup"][BY_NAME["geometry", "nc1"]].values) == {0, 1}
    assert "calibration was evaluated with other settings: samples=100, seed=0, version=1" in evaluation.problems[0]
    (row.runs[0].folder / "evaluation.json").write_text("[")
    assert "cannot be read" in evaluation_of(made, 0.95).problems[0]


def test_figures_have_a_series_for_every_policy(tmp_path):
    _, made = board(tmp_path, {"none": [0.1, 0.2], "mixup": [0.05, 0.1], "cutmix": [0.06, 0.1]})
    evaluation = evaluation_of(made, 0.95)
    [reliability] = FIGURES["calibration"](evaluation).axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in reliability.lines}
    assert lines["none"] == [[0.4, 0.5], [0.9, pytest.approx(0.75)]]
    assert {"mixup", "cutmix"} < set(lines)
    # The area of a dot is the share of its bin, here 60 and 140 of 200.
    areas = {round(float(size)) for dots in reliability.collections for size in dots.get_sizes()}
    assert areas == {120, 280}
    mean, foreign = FIGURES["occlusion"](evaluation).axes
    assert [line.get_ydata()[1] for line in mean.lines] == [50] * 3 and [
        line.get_ydata()[1] for line in foreign.lines
    ] == [40] * 3
    [corrupted] = FIGURES["corruption"](evaluation).axes
    assert len(corrupted.lines) == 3 and len(corrupted.lines[0].get_ydata()) == 15
    assert len(FIGURES["geometry"](evaluation).axes) == 2
    # A policy that was not evaluated in a family has no line in its figure.
    del evaluation.results["cutmix"][0]["attack"], evaluation.results["cutmix"][1]["attack"]
    assert [text.get_text() for text in FIGURES["attack"](evaluation).axes[0].get_yticklabels()] == ["mixup", "none"]
    assert FIGURES["outliers"](evaluation) is None


def test_figures_leave_out_bins_of_a_few_samples_and_show_all_measures(tmp_path):
    numbers = {measure.key: 1.0 for measure in MEASURES if measure.family == "geometry"}
    bins = {"count": [1, 999], "confidence": [0.3, 0.9], "accuracy": [1, 0.8]}
    entries = {"calibration": {"numbers": {"ece": 0.1}, "curves": bins}, "geometry": {"numbers": numbers, "curves": {}}}
    _, made = board(tmp_path, {"none": [0.1]})
    (made.rows[0].runs[0].folder / "evaluation.json").write_text(json.dumps(found(0.1, **entries)))
    evaluation = evaluation_of(made, 0.95)
    [reliability] = FIGURES["calibration"](evaluation).axes
    assert [line.get_xydata().tolist() for line in reliability.lines if line.get_label() == "none"] == [[[0.9, 0.8]]]
    titles = [axis.get_title(loc="left") for axis in FIGURES["geometry"](evaluation).axes]
    assert titles == [measure.title for measure in MEASURES if measure.family == "geometry"]


def test_nothing_is_written_where_nothing_was_evaluated(tmp_path):
    leaderboard, made = board(tmp_path / "runs", {"none": [0.1]}, evaluated=False)
    assert evaluation_of(made, 0.95) is None
    assert write_evaluations(leaderboard, tmp_path / "out") == []
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("drawn")
def test_what_a_folder_says_is_shown_and_not_interpreted(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation_page, "FIGURES", {})  # pictures have a test of their own
    folder = write_run(tmp_path / "runs", result("=cmd|<img>", 0))
    evil = found(
        0.1, attack={"numbers": {"pgd": 1}, "curves": {}, "notes": ["<script>alert(1)</script> [x](http://e)"]}
    )
    (folder / "evaluation.json").write_text(json.dumps(evil))
    write_evaluations(aggregate(collect(tmp_path / "runs")), tmp_path / "out")
    page = (tmp_path / "out" / "evaluation.md").read_text()
    assert "<script>" not in page and "<img>" not in page and "[x](http" not in page
    assert "'=cmd" in (tmp_path / "out" / "evaluation.csv").read_text()
