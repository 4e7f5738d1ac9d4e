"""Runs of equally many epochs beside runs of equal cost."""

from __future__ import annotations

import pytest

from mixaug.engine.errors import ConfigError
from mixaug.leaderboard import aggregate, collect, to_html, to_markdown
from mixaug.leaderboard.grid import grid_of
from mixaug.leaderboard.side_by_side import pairs_of

from .fabricate import config, result, write_run


def write(root, policy, seed, top1, epochs, rule, cost, asked=30, name="", **settings):
    told = result(policy, seed, top1, epochs=epochs)
    budget = {"rule": rule, "epochs": asked, "cost": cost}
    configured = config(told, budget=budget, **settings)
    write_run(root, told, configured=configured, name=f"{policy}{name}-{epochs}-{seed}")


@pytest.fixture
def boards(tmp_path):
    for seed, luck in enumerate((0.0, 0.5)):
        write(tmp_path, "none", seed, 90 + luck, 30, "equal_epochs", 1.0)
        write(tmp_path, "mixup", seed, 91 + luck, 30, "equal_epochs", 1.0)
        write(tmp_path, "puzzlemix", seed, 93 + luck, 30, "equal_epochs", 1.675)
        write(tmp_path, "puzzlemix", seed, 89 + luck, 18, "equal_cost", 1.675)
    return aggregate(collect(tmp_path))


def test_runs_whose_length_cost_leaves_as_it_was_stand_on_both_boards(boards):
    [pair] = pairs_of(boards)
    left, right = pair.equal_epochs, pair.equal_cost
    assert {row.policy: row.score.mean for row in left.rows} == {"none": 90.25, "mixup": 91.25, "puzzlemix": 93.25}
    assert {row.policy: row.score.mean for row in right.rows} == {"none": 90.25, "mixup": 91.25, "puzzlemix": 89.25}
    assert right.baseline is not None and right.baseline.policy == "none"
    assert (left.setting.epochs, right.setting.epochs, right.setting.at_equal_cost) == (30, 30, True)


def test_the_table_has_both_halves_in_one_row(boards):
    [pair] = pairs_of(boards)
    rows = {cells[0]: cells[1:] for cells in pair.rows()}
    cost, score, difference, epochs, at_cost, difference_at_cost = rows["puzzlemix"]
    assert (cost, epochs) == ("1.68×", "18")
    assert (score[:5], difference[:5], at_cost[:5], difference_at_cost[:5]) == ("93.25", "+3.00", "89.25", "-1.00")
    assert rows["none"][:1] + rows["none"][2:4] == ("1.00×", "", "30")
    assert "equal epochs and equal cost" in to_markdown(boards) and "equal epochs and equal cost" in to_html(boards)


@pytest.mark.parametrize(
    "told",
    [
        # What is brought beside the batch, and a setting in which the rows of one board alone differ.
        [{"networks": {"teacher": f"runs/{name}"}} for name in ("good", "bad")],
        [{"streams": {"outliers": {"data": {"name": "digits", "per_class": n}}}} for n in (5, 10)],
        [{"optimizer": {"opt": "momentum", "lr": lr, "weight_decay": 1e-4}} for lr in (0.1, 0.3)],
    ],
)
def test_rows_pair_by_all_that_tells_them_apart(tmp_path, told):
    first, second = told
    write(tmp_path, "none", 0, 90, 30, "equal_epochs", 1.0)
    write(tmp_path, "mixup", 0, 91, 30, "equal_epochs", 2.0, name="a", **first)
    write(tmp_path, "mixup", 0, 92, 30, "equal_epochs", 2.0, name="b", **second)
    # At equal cost the order of both is another one, and of a third the half at equal epochs is not there.
    write(tmp_path, "mixup", 0, 81, 15, "equal_cost", 2.0, name="a", **second)
    write(tmp_path, "mixup", 0, 82, 15, "equal_cost", 2.0, name="b", **first)
    [pair] = pairs_of(aggregate(collect(tmp_path)))
    halves = {(cells[2][:2], cells[5][:2]) for cells in pair.rows() if cells[0].startswith("mixup")}
    assert halves == {("91", "82"), ("92", "81")}


def test_a_row_with_one_half_has_no_other(tmp_path):
    write(tmp_path, "none", 0, 90, 30, "equal_epochs", 1.0)
    write(tmp_path, "mixup", 0, 91, 30, "equal_epochs", 2.0, networks={"teacher": "runs/good"})
    write(tmp_path, "mixup", 0, 81, 15, "equal_cost", 2.0, networks={"teacher": "runs/bad"})
    [pair] = pairs_of(aggregate(collect(tmp_path)))
    halves = [(cells[2][:2], cells[5][:2]) for cells in pair.rows() if cells[0].startswith("mixup")]
    assert halves == [("91", "–"), ("–", "81")]


def test_a_grid_of_equal_cost_alone_has_one_board(tmp_path):
    write(tmp_path, "none", 0, 90, 30, "equal_cost", 1.0)
    write(tmp_path, "puzzlemix", 0, 89, 18, "equal_cost", 1.675)
    board = aggregate(collect(tmp_path))
    assert [b.setting.at_equal_cost for b in board.boards] == [True]
    assert [row.policy for row in board.boards[0].rows] == ["none", "puzzlemix"]
    assert pairs_of(board) == []


def test_a_damaged_budget_is_none(tmp_path):
    write(tmp_path, "none", 0, 90, 30, "equal_cost", -1.0)
    write(tmp_path, "mixup", 0, 90, 30, "cheap", 1.0)
    assert [b.setting.at_equal_cost for b in aggregate(collect(tmp_path)).boards] == [False]


@pytest.fixture
def every(tmp_path, monkeypatch):
    """The grid of all policies and objectives that fit, where a step tells of three policies and an objective."""
    from mixaug.engine import budget
    from mixaug.leaderboard import grid

    shipped = {"policy": ["lisa", "none", "puzzlemix"], "objective": ["cross_entropy", "huber", "regmixup"]}
    monkeypatch.setattr(grid, "list_choices", lambda group: shipped[group])
    costs = {"puzzlemix": 1.675, "mixup": 2.0, "none": 1.0}

    def cost(config):
        if config.choices.policy == "lisa" or config.choices.objective == "huber":
            raise ConfigError(f"{config.choices.policy} with {config.choices.objective}")
        return costs[config.choices.policy]

    monkeypatch.setattr(budget, "step_cost", cost)
    return lambda *more: grid_of(["experiment=photos_all", f"root={tmp_path}", *more])


def test_all_is_what_fits_and_the_rest_is_named(every):
    grid = every()
    assert [(c.config["choices"]["policy"], c.config["choices"]["objective"]) for c in grid.cells] == [
        ("none", "cross_entropy"), ("puzzlemix", "cross_entropy"), ("mixup", "regmixup"),
    ]  # fmt: skip
    assert grid.left_out == {"policy=lisa": "lisa with cross_entropy", "objective=huber": "none with huber"}
    usual = grid.cells[-1].config["policy"]
    assert (usual["alpha"], usual["per"]) == (10.0, "batch")


def test_both_budgets_share_the_runs_that_cost_nothing_more(every):
    grid = every("budget=equal_epochs,equal_cost", "epochs=30")
    told = [(cell.config["choices"]["policy"], cell.epochs, cell.config["budget"]["rule"]) for cell in grid.cells]
    assert told == [
        ("none", 30, "equal_epochs"), ("puzzlemix", 30, "equal_epochs"), ("puzzlemix", 18, "equal_cost"),
        ("mixup", 30, "equal_epochs"), ("mixup", 15, "equal_cost"),
    ]  # fmt: skip


def test_the_command_line_chooses_the_part_of_the_grid(every):
    assert [cell.label for cell in every("policy=none,puzzlemix").cells] == ["none", "puzzlemix"]
    assert [cell.config["choices"]["policy"] for cell in every("objective=regmixup").cells] == ["mixup"]
