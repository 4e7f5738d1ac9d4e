"""Runs that lie beside those of a grid, on its boards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mixaug.leaderboard import aggregate, collect
from mixaug.leaderboard.aggregate import Leaderboard, Row
from mixaug.leaderboard.neighbours import with_neighbours

from .fabricate import fail, run


def rows(leaderboard: Leaderboard) -> dict[str, Row]:
    (board,) = leaderboard.boards
    return {row.policy: row for row in board.rows}


@pytest.fixture
def mine(tmp_path: Path) -> list[Path]:
    """A grid of one policy, without a baseline of its own."""
    return [run(tmp_path, 81.0 + seed, "policy=mixup", seed=seed) for seed in (0, 1)]


def joined(tmp_path: Path, mine: list[Path], **options: Any) -> tuple[Leaderboard, int, str]:
    return with_neighbours(collect(mine), collect(tmp_path), **options)


def test_a_baseline_that_was_trained_before_is_compared_with(tmp_path: Path, mine: list[Path]) -> None:
    for seed in (0, 1, 2):
        run(tmp_path, 80.0, "policy=none", seed=seed)
    run(tmp_path, 80.0, "policy=none", "epochs=60")
    run(tmp_path, 80.0, "policy=none", "data=digits")
    leaderboard, count, why_none = joined(tmp_path, mine)
    found = rows(leaderboard)
    assert found["mixup"].difference is not None
    assert found["mixup"].difference.mean == pytest.approx(1.5)
    assert found["none"].seeds == (0, 1, 2)
    assert (count, why_none) == (3, "")


def test_failed_neighbours_count_as_they_do_on_any_board(tmp_path: Path, mine: list[Path]) -> None:
    run(tmp_path, 80.0, "policy=cutmix", seed=0)
    fail(run(tmp_path, 80.0, "policy=cutmix", seed=1), "nan")
    found = rows(joined(tmp_path, mine)[0])
    assert found["cutmix"].values_of_statistic() == [80.0]
    assert found["cutmix"].failed_seeds == (1,)


def test_a_run_of_the_grid_is_not_replaced_by_another_of_its_row_and_seed(tmp_path: Path, mine: list[Path]) -> None:
    fail(mine[1], "nan")
    run(tmp_path, 99.0, "policy=mixup", seed=1)
    run(tmp_path, 98.0, "policy=mixup", seed=2)
    leaderboard, count, _ = joined(tmp_path, mine)
    found = rows(leaderboard)["mixup"]
    assert found.values_of_statistic() == [81.0, 98.0]
    assert (found.failed_seeds, count) == ((1,), 1)


def test_neighbours_take_no_comparison_away(tmp_path: Path) -> None:
    mine = [run(tmp_path, 81.0, "policy=mixup", "optimizer.lr=0.2"), run(tmp_path, 80.0, "policy=none")]
    run(tmp_path, 70.0, "policy=none", "optimizer.lr=0.3")
    leaderboard, count, why_none = joined(tmp_path, mine)
    assert leaderboard == aggregate(collect(mine))
    assert count == 0
    assert "optimizer.lr=0.2) would lose its baseline" in why_none


def test_neighbours_that_cannot_be_scored_alike_leave_the_grid_as_it_is(tmp_path: Path, mine: list[Path]) -> None:
    run(tmp_path, 80.0, "policy=fmix", top1_best10=None)
    leaderboard, count, why_none = joined(tmp_path, mine, statistic="best10")
    assert (set(rows(leaderboard)), count) == ({"mixup"}, 0)
    assert "has no top1_best10" in why_none


def test_neighbours_of_another_figure_leave_the_grid_as_it_is(tmp_path: Path) -> None:
    mine = [run(tmp_path, 81.0, "policy=mixup", "protocol.figure=best")]
    run(tmp_path, 80.0, "policy=fmix")
    leaderboard, count, why_none = joined(tmp_path, mine)
    assert (set(rows(leaderboard)), count) == ({"mixup"}, 0)
    assert "another figure" in why_none


def test_no_board_is_added(tmp_path: Path, mine: list[Path]) -> None:
    run(tmp_path, 80.0, "policy=none", "data=digits")
    leaderboard, count, why_none = joined(tmp_path, mine)
    assert (len(leaderboard.boards), count, why_none) == (1, 0, "")
