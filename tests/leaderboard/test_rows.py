"""Which row a run belongs to, what a row is compared with and how rows are ranked."""

from __future__ import annotations

import csv
import io
import shlex
from pathlib import Path
from typing import Any

import pytest

from mixaug.engine.config import compose, config_hash
from mixaug.leaderboard import aggregate, collect, write
from mixaug.leaderboard.aggregate import Leaderboard, Row
from mixaug.leaderboard.evaluation_page import write_evaluations
from mixaug.leaderboard.page import to_html
from mixaug.leaderboard.render import print_tables, terminal, to_csv, to_markdown

from .fabricate import fail, run


def rows_of(root: Path) -> dict[str, Row]:
    [board] = aggregate(collect(root)).boards
    return {row.label: row for row in board.rows}


def lines(leaderboard: Leaderboard) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(to_csv(leaderboard))))


# -- objectives ---------------------------------------------------------------------------------------------------


def test_an_objective_is_a_row_beside_a_policy(tmp_path: Path) -> None:
    tops = {
        ("none", "cross_entropy"): (80.0, 82.0),
        ("mixup", "cross_entropy"): (83.0, 84.0),
        ("mixup", "regmixup"): (86.0, 87.0),
        ("none", "regmixup"): (80.0, 81.0),
    }
    for (policy, objective), values in tops.items():
        for seed, top1 in enumerate(values):
            run(tmp_path, top1, f"policy={policy}", f"objective={objective}", seed=seed)
    leaderboard = aggregate(collect(tmp_path))
    [board] = leaderboard.boards
    # Paired: (3 + 2) / 2, (6 + 5) / 2 and (0 - 1) / 2, all to none with cross-entropy.
    found = [(row.label, row.difference.mean if row.difference else None) for row in board.rows]
    assert found == [
        ("mixup + regmixup (alpha=1)", 5.5),
        ("mixup (alpha=1)", 2.5),
        ("none", None),
        ("none + regmixup", -0.5),
    ]
    assert board.baseline is not None and board.baseline.label == "none"
    assert [(line["policy"], line["objective"]) for line in lines(leaderboard)] == [
        ("mixup", "regmixup"),
        ("mixup", "cross_entropy"),
        ("none", "cross_entropy"),
        ("none", "regmixup"),
    ]
    assert "| mixup + regmixup (alpha=1) |" in to_markdown(leaderboard)
    html = to_html(leaderboard)
    assert '<span class="policy">mixup + regmixup</span>' in html
    assert html.count('<tr class="baseline">') == 1
    assert not any(row.notes for row in board.rows)


def test_the_command_of_an_objectives_row_makes_its_runs_again(tmp_path: Path) -> None:
    asked = ["policy=mixup", "policy.alpha=10", "objective=regmixup", "objective.eta=0.5", "epochs=7"]
    run(tmp_path, 80.0, *asked)
    [(label, row)] = rows_of(tmp_path).items()
    assert label == "mixup + regmixup (alpha=10, objective.eta=0.5)"
    program, given = row.command[: len("mixaug benchmark")], shlex.split(row.command)[2:]
    assert program == "mixaug benchmark"
    assert config_hash(compose(given)) == config_hash(compose([*asked, "seed=0"]))


def test_options_of_the_plain_objective_are_settings_with_a_baseline_of_their_own(tmp_path: Path) -> None:
    for smoothing, base in ((0.0, 80.0), (0.1, 70.0)):
        given = [f"objective.label_smoothing={smoothing}"]
        run(tmp_path, base, "policy=none", *given)
        run(tmp_path, base + 10 * smoothing + 1, "policy=mixup", *given)
    rows = rows_of(tmp_path)
    smooth = rows["mixup (alpha=1, objective.label_smoothing=0.1)"]
    assert smooth.difference is not None and smooth.difference.mean == pytest.approx(2.0)
    plain_one = rows["mixup (alpha=1, objective.label_smoothing=0)"]
    assert plain_one.difference is not None and plain_one.difference.mean == pytest.approx(1.0)
    # An objective with the same option is compared with the baseline that agrees on it.
    run(tmp_path, 75.0, "policy=mixup", "objective=rankmixup", "objective.label_smoothing=0.1")
    ranked = rows_of(tmp_path)["mixup + rankmixup (alpha=1, objective.label_smoothing=0.1)"]
    assert ranked.difference is not None and ranked.difference.mean == pytest.approx(5.0)


def test_without_a_plain_baseline_the_rows_own_objective_serves(tmp_path: Path) -> None:
    run(tmp_path, 80.0, "policy=none", "objective=binary_cross_entropy")
    run(tmp_path, 83.0, "policy=mixup", "objective=binary_cross_entropy")
    run(tmp_path, 84.0, "policy=mixup")
    rows = rows_of(tmp_path)
    own = rows["mixup + binary_cross_entropy (alpha=1)"]
    assert own.difference is not None and own.difference.mean == pytest.approx(3.0)
    assert rows["mixup (alpha=1)"].difference is None
    assert rows["mixup (alpha=1)"].notes == ("no finished run of none",)


def test_what_an_objective_brings_along_is_no_other_setting(tmp_path: Path) -> None:
    run(tmp_path, 80.0, "policy=none")
    for top1, teacher in ((82.0, "/somewhere/small"), (83.0, "/somewhere/large")):
        run(tmp_path, top1, "policy=mixup", "objective=mixkd", f"+networks.teacher={teacher}")
    leaderboard = aggregate(collect(tmp_path), hide_paths=True)
    [board] = leaderboard.boards
    assert [(row.label, row.notes) for row in board.rows] == [
        ("mixup + mixkd (alpha=1, networks.teacher=large)", ("one seed: no interval",)),
        ("mixup + mixkd (alpha=1, networks.teacher=small)", ("one seed: no interval",)),
        ("none", ()),
    ]
    assert "/somewhere" not in to_markdown(leaderboard)


def test_fine_tuned_runs_are_compared_with_the_baseline_from_the_same_weights(tmp_path: Path) -> None:
    run(tmp_path, 70.0, "policy=none")
    for source, base in (("/somewhere/small", 80.0), ("/somewhere/large/best.pt", 85.0)):
        run(tmp_path, base, "policy=none", f"init_from={source}")
        run(tmp_path, base + 1, "policy=mixup", f"init_from={source}")
    leaderboard = aggregate(collect(tmp_path), hide_paths=True)
    rows = {row.label: row for board in leaderboard.boards for row in board.rows}
    assert sorted(rows) == [
        "mixup (alpha=1, init_from=large/best.pt)",
        "mixup (alpha=1, init_from=small)",
        "none",
        "none (init_from=large/best.pt)",
        "none (init_from=small)",
    ]
    tuned = rows["mixup (alpha=1, init_from=small)"]
    assert tuned.difference is not None and tuned.difference.mean == pytest.approx(1.0)
    assert "init_from=<init_from>" in shlex.split(tuned.command)
    assert "/somewhere" not in to_markdown(leaderboard)


# -- failures and ranks -------------------------------------------------------------------------------------------


@pytest.fixture
def survivors(tmp_path: Path) -> Path:
    """Seed 3 is a bad one. mixup lost it, cutmix did not and gains on every seed, fmix always fails."""
    for seed, top1 in enumerate((90.0, 91.0, 92.0, 60.0)):
        run(tmp_path, top1, "policy=none", seed=seed)
        run(tmp_path, top1 + 0.5 + 0.1 * seed, "policy=cutmix", seed=seed)
        mixup = run(tmp_path, top1, "policy=mixup", seed=seed)
        if seed == 3:
            fail(mixup, "loss became nan at step 7")
        fail(run(tmp_path, 0.0, "policy=fmix", seed=seed), "loss became nan at step 2")
    return tmp_path


def test_a_row_gains_nothing_by_a_seed_that_failed(survivors: Path) -> None:
    leaderboard = aggregate(collect(survivors))
    [board] = leaderboard.boards
    # The means are 83.25, 83.9 and, of the three that are left, 91.
    assert [row.policy for row in board.rows] == ["cutmix", "none", "mixup", "fmix"]
    mixup = next(row for row in board.rows if row.policy == "mixup")
    assert mixup.score is not None and mixup.difference is not None
    assert (mixup.score.mean, mixup.difference.mean, mixup.verdict) == (91.0, 0.0, "unclear")
    assert "1 of 4 seeds failed (3): the mean is that of the others" in mixup.notes
    assert not any("lacks" in note for note in mixup.notes)
    assert mixup.command.endswith(" seed=0,1,2,3")


def test_failures_have_a_column_and_one_that_always_fails_a_row(survivors: Path, capsys: Any) -> None:
    leaderboard = aggregate(collect(survivors))
    table = {line["policy"]: line for line in lines(leaderboard)}
    counted = {policy: (line["n"], line["failed"], line["failed_seeds"]) for policy, line in table.items()}
    assert counted == {
        "none": ("4", "0", ""),
        "cutmix": ("4", "0", ""),
        "mixup": ("3", "1", "3"),
        "fmix": ("0", "4", "0 1 2 3"),
    }
    assert (table["fmix"]["mean"], table["fmix"]["std"], table["fmix"]["difference"]) == ("", "", "")
    assert table["fmix"]["command"].endswith(
        "policy=fmix model=cifar_resnet8 data=photos protocol=default seed=0,1,2,3"
    )
    page = to_markdown(leaderboard)
    assert "| vs none | seeds | failed |" in page
    [always] = [line for line in page.splitlines() if line.startswith("| fmix")]
    assert [cell.strip() for cell in always.split("|")][2:6] == ["–", "–", "0", "4"]
    assert "loss became nan at step 2" in page  # each with its reason
    html = to_html(leaderboard)
    assert '<th scope="col">Failed</th>' in html
    assert html.count("<tr><td data-sort=") + html.count('<tr class="baseline">') == 4
    print_tables(leaderboard, terminal())
    [shown] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fmix")]
    assert shown.split()[1:5] == ["–", "–", "0", "4"]
    assert write_evaluations(leaderboard, survivors / "out") == []


def test_a_seed_that_was_run_again_has_not_failed(tmp_path: Path) -> None:
    run(tmp_path, 80.0, "policy=none")
    fail(run(tmp_path / "first", 81.0, "policy=mixup"), "out of memory")
    run(tmp_path / "second", 81.0, "policy=mixup")
    row = rows_of(tmp_path)["mixup (alpha=1)"]
    assert (row.seeds, row.failed) == ((0,), ())


def test_nothing_but_failures_make_no_board(tmp_path: Path) -> None:
    fail(run(tmp_path, 0.0, "policy=mixup"), "loss became nan")
    leaderboard = aggregate(collect(tmp_path))
    assert leaderboard.boards == ()
    assert "loss became nan" in to_markdown(leaderboard)


def test_a_failed_run_without_a_config_is_in_no_row(tmp_path: Path) -> None:
    run(tmp_path, 80.0, "policy=none")
    folder = run(tmp_path, 81.0, "policy=mixup")
    fail(folder, "loss became nan")
    (folder / "config.yaml").unlink()
    assert set(rows_of(tmp_path)) == {"none"}


def test_rows_with_baselines_of_their_own_are_ranked_on_one_scale(tmp_path: Path) -> None:
    # The differences are 1 and 3, to 80 and to 70.
    for rate, base, gain in ((0.1, 80.0, 1.0), (0.01, 70.0, 3.0)):
        run(tmp_path, base, "policy=none", f"optimizer.lr={rate}")
        run(tmp_path, base + gain, "policy=mixup", f"optimizer.lr={rate}")
    assert [row.expected for row in rows_of(tmp_path).values()] == [81.0, 80.0, 73.0, 70.0]


# -- verdicts -----------------------------------------------------------------------------------------------------


def test_a_verdict_holds_for_all_rows_together_beside_the_plain_interval(tmp_path: Path) -> None:
    # Differences 0.6, 0.9, 1.5: t = 1 / (0.4583 / sqrt(3)) = 3.78, p = 0.0634. 0.9, 1.0, 1.2: t = 11.7, p = 0.0072.
    gains = {"mixup": (0.9, 1.0, 1.2), "cutmix": (0.8, 0.9, 1.3), "fmix": (0.6, 0.9, 1.5), "gridmix": (0.1, -0.2, 0.0)}
    for seed, base in enumerate((80.0, 83.0, 81.0)):
        run(tmp_path, base, "policy=none", seed=seed)
        for policy, values in gains.items():
            run(tmp_path, base + values[seed], f"policy={policy}", seed=seed)
    rows = {row.policy: row for row in rows_of(tmp_path).values()}
    # 0.8, 0.9, 1.3: mean 1, s = 0.2646, t = 6.547, p = 0.0226; alone it would be better, times three it is not.
    assert rows["cutmix"].difference is not None and rows["cutmix"].difference.verdict == "better"
    assert rows["cutmix"].p_value == pytest.approx(0.02256, abs=1e-4)
    assert rows["cutmix"].adjusted_p_value == pytest.approx(3 * 0.02256, abs=3e-4)
    assert rows["cutmix"].verdict == "unclear"
    assert rows["mixup"].adjusted_p_value == pytest.approx(4 * 0.00727, abs=3e-4)
    assert rows["mixup"].verdict == "better"
    leaderboard = aggregate(collect(tmp_path))
    page, html = to_markdown(leaderboard), to_html(leaderboard)
    starred = [line.split("|")[1].split()[0] for line in page.splitlines() if line.startswith("| ") and " * |" in line]
    assert starred == ["mixup"]
    assert html.count('<span class="better">') == 1
    verdicts = {line["policy"]: line["verdict"] for line in lines(leaderboard)}
    assert verdicts == {"mixup": "better", "cutmix": "unclear", "fmix": "unclear", "gridmix": "unclear", "none": ""}


@pytest.mark.parametrize(
    ("hits", "statistic", "said"),
    [
        ((20, 20), None, "all seeds differ by the same: without a spread there is no verdict"),
        ((20, 21), None, "the differences spread by 0.09, less than the measure's step of 0.13: no verdict"),
        ((20, 22), None, ""),
        ((20, 21), "median10", ""),
    ],
)
def test_no_verdict_where_the_test_set_is_too_coarse_for_the_spread(
    tmp_path: Path, hits: tuple[int, int], statistic: str | None, said: str
) -> None:
    # One image of 797 is 0.125 points; two differences one image apart have a standard deviation of 0.089.
    for seed, more in enumerate(hits):
        for policy, right in (("none", 700 + seed), ("mixup", 700 + seed + more)):
            top1 = 100 * right / 797
            run(tmp_path, top1, f"policy={policy}", seed=seed, test_samples=797, top1_median10=top1)
    [board] = aggregate(collect(tmp_path), statistic=statistic).boards
    row = next(row for row in board.rows if row.policy == "mixup")
    assert row.difference is not None
    assert [note for note in row.notes if "no verdict" in note] == ([said] if said else [])
    assert (row.verdict == "better") == (not said)
    if said:
        assert row.adjusted_p_value == 1.0


# -- statistics ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("protocol", "model", "extra", "usual"),
    [
        ("openmixup_cifar", "cifar_resnet18", ["policy.per=batch"], "median10"),
        ("openmixup_cifar_vit", "deit_small_patch16_224", [], "best10"),
    ],
)
def test_the_pages_statistic_is_the_protocols(
    tmp_path: Path, protocol: str, model: str, extra: list[str], usual: str
) -> None:
    given = ["policy=mixup", f"protocol={protocol}", f"model={model}", "data=cifar100", "data.root=/x", *extra]
    run(tmp_path / "runs", 80.0, *given)
    leaderboard = aggregate(collect(tmp_path / "runs"))
    [board] = leaderboard.boards
    assert (board.statistic, board.rows[0].published.mark) == (usual, "")
    assert "this column is" not in to_markdown(leaderboard)
    write(leaderboard, tmp_path)
    pages = {path.name: path.read_bytes() for path in tmp_path.glob("leaderboard*")}

    other = aggregate(collect(tmp_path / "runs"), statistic="last")
    assert "this column is the last epoch" in to_markdown(other)
    names = [path.name for path in write(other, tmp_path)]
    assert names == ["leaderboard_last.md", "leaderboard_last.csv", "leaderboard_last.html"]
    assert {name: (tmp_path / name).read_bytes() for name in pages} == pages
    # Asked for by name, it is the usual page.
    named = aggregate(collect(tmp_path / "runs"), statistic=usual)
    assert {path.name for path in write(named, tmp_path)} == set(pages)


# -- several processes --------------------------------------------------------------------------------------------

FOUR = ("world_size=4", "batch_size=25")
PROTOCOL = ("policy=cutmix", "protocol=openmixup_cifar", "model=cifar_resnet18", "data=cifar100", "data.root=/x")


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 5)])
def test_runs_of_several_processes_keep_figure_and_command(tmp_path: Path, seeds: tuple[int, ...]) -> None:
    for seed in seeds:
        run(tmp_path, 70.0 + seed, *PROTOCOL, *FOUR, seed=seed)
    [row] = rows_of(tmp_path).values()
    assert (row.published.mark, row.published.figure is not None) == ("", True)
    assert "4 processes share a batch, 25 samples each: batch statistics and draws are each one's own" in row.notes
    told = row.command
    if len(seeds) > 1:
        assert told.startswith("for seed in 0 1 5; do ") and told.endswith(" seed=$seed; done")
        told = told.removeprefix("for seed in 0 1 5; do ").removesuffix("; done").replace("$seed", "5")
    words = shlex.split(told)
    assert words[:5] == ["torchrun", "--nproc-per-node=4", "-m", "mixaug", "train"]
    # Each process of torchrun finds the number of them in its environment.
    again = compose([*words[5:], "world_size=4"])
    assert config_hash(again) == config_hash(compose([*PROTOCOL, *FOUR, f"seed={seeds[-1]}"]))


@pytest.mark.parametrize(
    ("given", "detail"),
    [
        (["world_size=4"], "batch_size=100 on 4 processes"),
        (["world_size=2", "batch_size=25"], "batch_size=25 on 2 processes"),
        (["world_size=4", "batch_size=25", "optimizer.lr=0.4"], "optimizer.lr=0.4"),
    ],
)
def test_processes_that_share_another_batch_leave_the_protocol(tmp_path: Path, given: list[str], detail: str) -> None:
    run(tmp_path, 70.0, *PROTOCOL, *given)
    [row] = rows_of(tmp_path).values()
    assert (row.published.mark, row.published.detail) == ("other settings", detail)


def test_one_process_and_four_are_no_seeds_of_one_row(tmp_path: Path) -> None:
    run(tmp_path, 70.0, *PROTOCOL, "batch_size=25", seed=0)
    run(tmp_path, 71.0, *PROTOCOL, "batch_size=25", "world_size=4", seed=1)
    assert set(rows_of(tmp_path)) == {"cutmix (alpha=0.2, per=batch, world_size=4)", "cutmix (alpha=0.2, per=batch)"}
