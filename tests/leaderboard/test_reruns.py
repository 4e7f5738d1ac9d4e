"""Regression rows: the smaller error is the better, beside reruns of the authors' code and figures that are marked."""

from __future__ import annotations

import csv
import io
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixaug.engine.build import options
from mixaug.engine.config import compose, plain
from mixaug.leaderboard import aggregate, collect
from mixaug.leaderboard.page import to_html
from mixaug.leaderboard.published import Rerun
from mixaug.leaderboard.render import to_csv, to_markdown
from mixaug.leaderboard.reruns import DATA, match

from .fabricate import result, write_run


def numbers(policy: str, seed: int, rmse: float, *overrides: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A result and its config as a run of the regression experiment leaves them."""
    config = plain(compose(["experiment=regression", f"policy={policy}", f"seed={seed}", "data.root=/x", *overrides]))
    told = result(policy, seed, model="mlp", data=config["data"]["name"], protocol="cmixup", epochs=config["epochs"])
    for key in [key for key in told if key.startswith(("top", "nll", "ece"))]:
        del told[key]
    pool = {} if config["pool"] is None else {"pool": config["pool"]}
    return {
        **told,
        "task": "regression",
        "policy_options": {**options(config["policy"]), **pool},
        "data_options": options(config["data"]),
        "rmse_selected": rmse,
        "rmse_last": rmse + 0.5,
        "mae_selected": 0.8 * rmse,
        "r2_selected": None,
    }, config


def grid(root: Path, errors: dict[str, list[float]], *overrides: str) -> None:
    for policy, values in errors.items():
        for seed, rmse in enumerate(values):
            told, configured = numbers(policy, seed, rmse, *overrides)
            write_run(root, told, configured=configured, name=f"{policy}-{seed}")


def test_the_smaller_error_comes_first_and_is_called_better(tmp_path: Path) -> None:
    grid(tmp_path, {"none": [2.8, 2.6, 2.9], "mixup": [3.6, 3.5, 3.7], "cmixup": [2.5, 2.4, 2.7]})
    [board] = aggregate(collect(tmp_path)).boards
    assert [row.policy for row in board.rows] == ["cmixup", "none", "mixup"]
    assert board.statistic == "selected"
    verdicts = {row.policy: row.difference.verdict for row in board.rows if row.difference}
    assert verdicts == {"cmixup": "better", "mixup": "worse"}
    assert board.rows[0].score.mean == pytest.approx(statistics.fmean([2.5, 2.4, 2.7]))
    [last] = aggregate(collect(tmp_path), statistic="last").boards
    assert last.rows[0].score.mean == pytest.approx(board.rows[0].score.mean + 0.5)


def test_a_statistic_of_another_task_is_refused(tmp_path: Path) -> None:
    grid(tmp_path, {"none": [2.8]})
    with pytest.raises(ValueError, match=r"'best' is not taken in regression .*one of selected, last"):
        aggregate(collect(tmp_path), statistic="best")
    write_run(tmp_path, result("none", 0))
    assert {board.statistic for board in aggregate(collect(tmp_path)).boards} == {"selected", "last"}


def test_partners_from_the_training_set_are_an_option_of_the_policy_not_another_setting(tmp_path: Path) -> None:
    grid(tmp_path, {"none": [2.8, 2.7], "cmixup": [2.5, 2.6]})
    [board] = aggregate(collect(tmp_path)).boards
    assert all(not row.settings for row in board.rows)
    assert "pool=all" in next(row.label for row in board.rows if row.policy == "cmixup")
    assert not any("ran with" in note for row in board.rows for note in row.notes)


def test_pages_show_quoted_unverified_and_rerun_figures(tmp_path: Path) -> None:
    grid(tmp_path, {"none": [2.8, 2.6], "manifoldmix": [3.0, 3.1], "cmixup": [9.0, 9.1], "knn_mixup": [2.7, 2.8]})
    leaderboard = aggregate(collect(tmp_path))
    page, html = to_markdown(leaderboard), to_html(leaderboard)
    lines = {line.split("|")[1].split()[0]: line for line in page.splitlines() if line.startswith("| ")}
    assert "2.901 (quoted)" in lines["none"]
    assert "2.8020 ± 0.2157, agrees" in lines["none"]
    assert "3.063 (unverified)" in lines["manifoldmix"]
    assert "2.8674 ± 0.1734, differs" in lines["cmixup"]
    assert "no published figure" in lines["knn_mixup"]
    assert "2.5 standard errors are" in page
    assert "MAE" in page
    assert "R2" not in page  # no run has one
    for shown in ("2.901", "3.063", "differs", "unverified"):
        assert shown in html
    rows = {row["policy"]: row for row in csv.DictReader(io.StringIO(to_csv(leaderboard)))}
    assert (rows["cmixup"]["rerun_agrees"], rows["none"]["rerun_agrees"], rows["knn_mixup"]["rerun_agrees"]) == (
        "no",
        "yes",
        "",
    )
    assert rows["manifoldmix"]["published_status"] == "unverified"
    assert (rows["none"]["measure"], rows["none"]["top1_last_mean"], rows["none"]["rerun_n"]) == ("rmse", "", "10")


@pytest.mark.parametrize(
    ("data", "overrides", "policy", "name"),
    [
        ("airfoil", [], "none", "Airfoil erm"),
        ("airfoil", [], "cmixup", "Airfoil cmixup_manifold_h1.75"),
        ("airfoil", ["policy.stages=null"], "cmixup", "Airfoil cmixup_input_h1.75"),
        ("airfoil", ["policy.alpha=0.5"], "cmixup", "Airfoil cmixup_manifold_alpha0.5_h1.75"),
        ("no2", [], "cmixup", "NO2-split0 cmixup_input_h1.2"),
        (
            "no2",
            ["policy.bandwidth=0.05", "policy.alpha=0.5", "policy.stages=[layer1]"],
            "cmixup",
            "NO2-split0 cmixup_manifold_alpha0.5_h0.05",
        ),
        ("no2", ["data.split=3"], "manifoldmix", "NO2-split3 manifold_mixup"),
        ("communities_crime", [], "cmixup", "CommunitiesAndCrime cmixup_manifold_h4"),
        ("skillcraft", [], "cmixup", "SkillCraft cmixup_input_h1"),
        ("skillcraft", ["policy.bandwidth=2"], "cmixup", None),
        ("airfoil", ["policy.include_self=false"], "cmixup", None),
        ("airfoil", ["policy.stages=[layer2]"], "cmixup", None),
        ("airfoil", ["policy.per=sample"], "cmixup", None),
        ("airfoil", ["policy.stages=[input]"], "manifoldmix", None),
        ("airfoil", [], "regmix", None),
    ],
)
def test_a_row_finds_the_rerun_of_its_own_settings(
    data: str, overrides: list[str], policy: str, name: str | None
) -> None:
    told, config = numbers(policy, 0, 1.0, f"data={data}", *overrides)
    found = match(
        policy=policy,
        policy_options=told["policy_options"],
        model="mlp",
        data=data,
        data_options={key: value for key, value in options(config["data"]).items() if value is not None},
        protocol="cmixup",
        epochs=told["epochs"],
    )
    assert (found.rerun.name if found.rerun else None) == name


@pytest.mark.parametrize(
    ("override", "mark"),
    [
        ("threads=2", ""),
        ("data.fit_on=train", "other data"),
        ("data.split=0", "other data"),
        ("epochs=50", "other epochs"),
        ("optimizer.lr=0.001", "other settings"),
        ("objective=huber", "other settings"),
        ("pool=null", "other options"),
        ("policy.alpha=0.5", "other options"),
        ("policy.per=sample", "other options"),
        ("policy.ratio=midpoint", "other options"),
        ("policy.pairing=label_kernel", "other options"),
    ],
)
def test_a_run_that_leaves_the_protocol_stands_beside_nothing(tmp_path: Path, override: str, mark: str) -> None:
    grid(tmp_path, {"mixup": [3.6, 3.5]}, override)
    found = aggregate(collect(tmp_path)).boards[0].rows[0].published
    assert found.mark == mark
    assert (found.rerun is None) == bool(mark)


def test_what_spread_allows_is_two_and_a_half_standard_errors() -> None:
    rerun = Rerun("made", (1.0, 2.0, 3.0))
    assert rerun.allowed(2.0, 4) == pytest.approx(2.5 * (1.0 / 3 + 4.0 / 4) ** 0.5)


def test_the_smallest_gap_that_is_seen_is_missed_in_one_case_of_five() -> None:
    """Ten seeds on both sides, the spread of the rerun: how often a true gap of that size is called a difference."""
    generator = np.random.default_rng(0)
    rerun = Rerun("made", tuple(generator.normal(0.0, 1.0, 10).tolist()))
    # The rerun is drawn anew about its own mean and spread, as ours is about a mean further off.
    spread, trials = statistics.stdev(rerun.values), 4000
    gap = rerun.visible(spread, 10)
    assert gap == pytest.approx((2.5 + 0.8416212) * spread * (2 / 10) ** 0.5)
    shares = []
    for true_gap in (gap, spread, 0.0):
        theirs, ours = generator.normal(0.0, spread, (trials, 10)), generator.normal(true_gap, spread, (trials, 10))
        away = np.abs(ours.mean(1) - theirs.mean(1))
        shares.append(float((away > 2.5 * np.sqrt(ours.var(1, ddof=1) / 10 + theirs.var(1, ddof=1) / 10)).mean()))
    seen, of_one_spread, of_none = shares
    assert 0.75 < seen < 0.85
    assert of_one_spread < 0.5  # such a gap is missed more often than not, which a page must tell
    assert of_none < 0.03


def test_agreement_says_what_it_could_have_seen(tmp_path: Path) -> None:
    ours = [2.8, 2.6]
    grid(tmp_path, {"none": ours})
    leaderboard = aggregate(collect(tmp_path))
    rerun = leaderboard.boards[0].rows[0].published.rerun
    assert rerun is not None
    error = (statistics.variance(rerun.values) / len(rerun.values) + statistics.variance(ours) / 2) ** 0.5
    gap = (2.5 + 0.8416212) * error
    page = to_markdown(leaderboard)
    assert f"agrees (gaps from {gap:.2g} seen)" in page
    assert f"a true gap of {gap:.4f} would be seen in four of five cases" in page
    [line] = csv.DictReader(io.StringIO(to_csv(leaderboard)))
    assert float(line["rerun_visible_gap"]) == pytest.approx(gap, abs=1e-6)


def test_a_figure_is_of_one_network() -> None:
    for data, entry in DATA.items():
        for model in ("mlp", "lstnet", "cifar_resnet18"):
            options = {**entry.options, "split": entry.options.get("split", 0)}
            found = match(
                policy="none",
                policy_options={},
                model=model,
                data=data,
                data_options=options,
                protocol="cmixup",
                epochs=entry.epochs,
            )
            beside = found.figure is not None or found.rerun is not None
            assert beside == (model == ("lstnet" if data == "exchange_rate" else "mlp")), (data, model, found)


def test_a_result_of_an_unknown_task_is_corrupt(tmp_path: Path) -> None:
    write_run(tmp_path, result(task="ranking"))
    [run] = collect(tmp_path)
    assert (run.status, "task: expected one of classification, regression" in run.reason) == ("corrupt", True)


def test_a_variant_of_the_authors_settings_has_its_rerun_but_no_published_figure(tmp_path: Path) -> None:
    grid(tmp_path, {"cmixup": [2.9, 2.8]}, "policy.alpha=0.5")
    found = aggregate(collect(tmp_path)).boards[0].rows[0].published
    assert found.figure is None
    assert found.rerun is not None
    assert "alpha=0.5 (published: 2.0)" in found.detail


def test_other_statistics_are_not_held_against_the_rerun(tmp_path: Path) -> None:
    grid(tmp_path, {"none": [2.8, 2.6]})
    page = to_markdown(aggregate(collect(tmp_path), statistic="last"))
    assert "agrees" not in page
    assert "differs" not in page
    assert "this column is the last epoch" in page


def test_a_statistic_that_the_task_lacks_is_refused_before_any_run(tmp_path: Path) -> None:
    from mixaug.leaderboard.benchmark import run_grid

    with pytest.raises(ValueError, match="'best' is not taken in regression"):
        run_grid(["experiment=diabetes", f"root={tmp_path / 'runs'}"], statistic="best")
    assert not (tmp_path / "runs").exists()


def test_what_was_learnt_beforehand_is_told_beside_the_time(tmp_path: Path) -> None:
    for policy, seconds in (("none", 0.0), ("regmix", 3.0)):
        told, configured = numbers(policy, 0, 2.8)
        write_run(tmp_path, {**told, "prepare_seconds": seconds}, configured=configured, name=policy)
    rows = {row.policy: row for row in aggregate(collect(tmp_path)).boards[0].rows}
    assert any("25% of the training's seconds" in note for note in rows["regmix"].notes)
    assert not any("learnt" in note for note in rows["none"].notes)
