"""The search: its plan with made-up times, its choices with made-up runs, what it refuses, what its pages say."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("hydra", reason="the search needs the train extra")

from rich.console import Console

from mixaug import cli
from mixaug.engine.config import compose, config_hash, list_choices
from mixaug.engine.errors import ConfigError, RunHeld
from mixaug.engine.lock import RunLock
from mixaug.engine.tasks import task_named
from mixaug.leaderboard import benchmark
from mixaug.leaderboard.grid import Cell
from mixaug.leaderboard.search import halving, run_search
from mixaug.leaderboard.search.halving import Search
from mixaug.leaderboard.search.journal import NAME, Job, Journal, Standing
from mixaug.leaderboard.search.plan import (
    BudgetTooSmall,
    Cost,
    Rung,
    affordable,
    cost_of_rungs,
    counts_of,
    in_seconds,
    make_plan,
    needed_at_least,
    seconds_of,
    whole_grid,
)
from mixaug.leaderboard.search.space import read_space

from . import fabricate

# -- the plan ---------------------------------------------------------------------------------------------------------

PLAN = {"epochs": 100, "done": 2, "eta": 3, "last_seeds": 3, "final_seeds": 5}
EQUAL = [Cost(1.0, 0.5)] * 16


def test_times_are_read_as_people_write_them() -> None:
    assert [seconds_of(told) for told in ("90", 90, "90s", "1.5m", " 2h ")] == [90, 90, 90, 90, 7200]
    for wrong in ("", "0", "-3", "1d", "ten", "inf", "1e9", None):
        with pytest.raises(ValueError, match="budget: expected"):
            seconds_of(wrong)  # type: ignore[arg-type]


def test_rungs_halve_until_few_are_left() -> None:
    assert [counts_of(n, 3) for n in (1, 3, 4, 16, 27)] == [[1], [3], [4, 2], [16, 6, 2], [27, 9, 3]]


def test_a_plan_fits_the_budget_and_a_longer_first_rung_would_not() -> None:
    # Three rows of five seeds cost 15 * (1 + 50) = 765 s. What is left has room for the last rung's three seeds.
    plan = make_plan(EQUAL, EQUAL[:3], available=1500, **PLAN)
    assert plan.final_seeds == 5 and plan.final_seconds == 765
    assert [rung.trials for rung in plan.rungs] == [16, 6, 2]
    assert plan.rungs[-1] == Rung(2, 100, 3)
    first, second = plan.rungs[0].epochs, plan.rungs[1].epochs
    by_hand = 16 * (1 + (first - 2) / 2) + 6 * (1 + (second - first) / 2) + 2 * (1 + (100 - second) / 2) + 2 * 2 * 51
    assert plan.rung_seconds == pytest.approx(by_hand) and by_hand <= 735
    assert 1 < plan.ratio <= 3 and first == -(-100 // plan.ratio**2)
    # Two more epochs of the first rung, 16 s, are not there.
    assert by_hand + 16 > 735


def test_plenty_is_the_whole_grid_and_dear_trials_count_as_what_they_cost() -> None:
    plan = make_plan(EQUAL, EQUAL[:3], available=1e6, **PLAN)
    assert plan.ratio == 1 and plan.rungs == (Rung(16, 100), Rung(16, 100, 3))
    # The grid once is 16 * (1 + 49), the final comparison 765, and two further seeds of a trial 102 s.
    for further, trials in ((0, 2), (203, 2), (204, 2), (6 * 102, 6), (6 * 102 - 1, 5)):
        plan = make_plan(EQUAL, EQUAL[:3], available=max(800 + 765 + further, 800 + 765 + 204), **PLAN)
        assert plan.rungs == (Rung(16, 100), Rung(trials, 100, 3)) and plan.final_seeds == 5
        assert plan.rung_seconds == 800 + trials * 102
    free = make_plan([Cost(0.0, 0.0)] * 9, EQUAL[:3], available=1e6, **PLAN)
    assert free.rungs == (Rung(9, 100), Rung(9, 100, 3))
    alone = make_plan(EQUAL, EQUAL[:3], available=1e6, **{**PLAN, "last_seeds": 1})
    assert alone.rungs == (Rung(16, 100),)
    assert whole_grid(EQUAL, 100) == 16 * 51 and whole_grid(EQUAL, 100, seeds=2) == 2 * 16 * 51
    dear = make_plan([Cost(1.0, 0.5)] * 8 + [Cost(1.0, 1.5)] * 8, EQUAL[:3], available=1500, **PLAN)
    assert dear.rungs[0].epochs < make_plan(EQUAL, EQUAL[:3], available=1500, **PLAN).rungs[0].epochs


def test_a_tight_budget_takes_seeds_first_and_says_what_is_missing() -> None:
    seeds = [
        (plan.rungs[-1].seeds, plan.final_seeds)
        for available in (1500, 1290, 1200, 1100, 800)
        for plan in [make_plan(EQUAL, EQUAL[:3], available=available, **PLAN)]
    ]
    assert seeds == sorted(seeds, reverse=True) and seeds[0] == (3, 5) and len(set(seeds)) >= 4
    # Less than halving by three costs, with one seed and two: the ratio grows.
    small = make_plan(EQUAL, EQUAL[:3], available=500, **PLAN)
    assert (small.rungs[-1].seeds, small.final_seeds) == (1, 2) and small.ratio > 3
    # 6 final runs of 51 s, and two trials brought from epoch 2 to 100, 100 s: the rest starts again for nothing.
    with pytest.raises(BudgetTooSmall, match=r"306 s: 6 s are missing"):
        make_plan(EQUAL, EQUAL[:3], available=400, **PLAN)
    # Each of the figures is a rounded one, and they add up all the same; what is asked for then suffices.
    for few in range(60, 80):
        costs = [Cost(0.113, few / 1000 + 0.0007)] * 4
        told = {**PLAN, "epochs": 9, "last_seeds": 1, "final_seeds": 2}
        for available in (2.71, 0.49, -0.31, -1.5):
            with pytest.raises(BudgetTooSmall) as refused:
                make_plan(costs, costs[:3], available=available, **told)
            left, rungs, _, final, missing = map(int, re.findall(r"(\d+) (?:s|seeds)\b", str(refused.value)))
            have = -left if available < 0 else left
            assert rungs + final - have == missing > 0, refused.value
            assert make_plan(costs, costs[:3], available=available + missing, **told)
    with pytest.raises(BudgetTooSmall, match="the probe took 28 s too much, nothing is left for 16 trials"):
        make_plan(EQUAL, EQUAL[:3], available=-28, **PLAN)


def test_seconds_are_told_without_powers_of_ten() -> None:
    assert [in_seconds(value) for value in (0.05, 1.5, 59.7, 1800.0, 86400.4)] == ["0.05", "1.5", "60", "1800", "86400"]


@pytest.mark.parametrize("epochs", [4, 10, 50])
@pytest.mark.parametrize("measured", [["dear"], ["dear", "plain"], ["plain"]])
def test_a_budget_that_is_enough_is_never_refused_by_what_is_measured_so_far(measured: list[str], epochs: int) -> None:
    # The dear one is the first of the file, and ten times as dear as the fifteen others.
    costs = {"dear": Cost(0.1, 10.0), "plain": Cost(0.1, 1.0), **{f"cheap {k}": Cost(0.1, 0.9) for k in range(14)}}
    probe = sum(cost.of(1) for cost in costs.values())
    told = {**PLAN, "epochs": epochs, "done": 1}

    def suffices(budget: float) -> bool:
        final = [costs["plain"], costs["cheap 0"], costs["dear"]]
        try:
            make_plan(list(costs.values()), final, available=budget - probe, **told)
        except BudgetTooSmall:
            return False
        return True

    enough = next(budget for budget in range(10**6) if suffices(budget))
    needed = sum(costs[label].of(1) for label in measured) + needed_at_least(
        {label: costs[label] for label in measured},
        list(costs),
        ["plain", "cheap 0"],
        plain=costs["plain"] if "plain" in measured else None,
        epochs=epochs,
        done=1,
        eta=3,
    )
    assert 16 * 0.05 < needed <= enough


def test_every_rung_after_the_first_trains_something() -> None:
    for epochs in (4, 10, 20, 60):
        for trials in (4, 16, 23):
            costs = [Cost(1.0, 0.5)] * trials
            for grids in (0.3, 0.5, 0.7, 1.0, 2.0, 4.0):
                try:
                    plan = make_plan(
                        costs, costs[:3], available=grids * whole_grid(costs, epochs), **{**PLAN, "epochs": epochs}
                    )
                except BudgetTooSmall:
                    continue
                assert plan.rungs[0].trials == trials and plan.rungs[-1].epochs == epochs
                for before, after in zip(plan.rungs, plan.rungs[1:], strict=False):
                    assert after.epochs > before.epochs or after.seeds > before.seeds, plan.rungs


def test_a_rung_that_became_dear_takes_fewer_seeds_then_fewer_trials() -> None:
    costs = [Cost(1.0, 1.0), Cost(1.0, 2.0), Cost(1.0, 1.0)]
    told = {"epochs": 10, "done": 4, "seeds": 2}
    assert affordable(costs, room=27 + 43, **told) == (3, 2)
    assert affordable(costs, room=27 + 42, **told) == (3, 1)
    assert affordable(costs, room=26, **told) == (2, 1)
    assert affordable(costs, room=19, **told) == (1, 2)
    assert affordable(costs, room=6.9, **told) == (0, 0)
    # Where nothing is trained further, trials go before seeds: one seed of each is known already.
    seeds = {"epochs": 10, "done": 10, "seeds": 3}
    assert affordable(costs, room=2 * 43, **seeds) == (3, 3)
    assert affordable(costs, room=2 * 43 - 1, **seeds) == (2, 3)
    assert affordable(costs, room=2 * 32 - 1, **seeds) == (3, 2)
    assert affordable(costs, room=32, **seeds) == (2, 2)
    assert affordable(costs, room=31, **seeds) == (0, 0)
    # A rung that trains nothing at all, as an earlier version planned, goes on with all.
    assert affordable(costs, room=0, epochs=10, done=10, seeds=1) == (3, 1)
    assert cost_of_rungs([Rung(2, 4), Rung(1, 10, 2)], Cost(1.0, 1.0), done=4) == 7 + 11
    # Seeds that a rung brought are not started anew on the next one.
    assert cost_of_rungs([Rung(2, 10, 2), Rung(1, 10, 3)], Cost(1.0, 1.0), done=4) == 2 * 7 + 2 * 11 + 11


# -- the journal ------------------------------------------------------------------------------------------------------


def test_a_journal_is_read_as_it_was_written_and_hostile_lines_are_left_out(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path)
    journal.add_job(Job("probe", "mixup alpha=1.0", 0, 0, 2, 5.0, 1.0, "finished"))
    journal.add_job(Job("rung 1", "mixup alpha=1.0", 0, 2, 12, 23.0, 1.0, "finished"))
    journal.add_plan(make_plan(EQUAL, EQUAL[:3], available=1500, **PLAN))
    journal.add_standing(Standing(0, "mixup alpha=1.0", (50.0, 52.0)))
    assert Journal.open(tmp_path) == journal
    # Three seconds to start; ten epochs took 23 - 3, with the scores in between.
    assert journal.cost("mixup alpha=1.0") == Cost(3.0, 2.0)
    assert (journal.spent(), journal.spent("probe"), journal.reached("mixup alpha=1.0", 0)) == (28.0, 5.0, 12)
    assert journal.on_rung(0)[0].figure == 51.0
    # After a kill the run trained some epochs again: its seconds are for more than the epochs that they stand beside.
    for job in (
        ("probe", "cutmix", 0, 0, 4, 6.0, 1.5, "recovered"),
        ("probe", "cutmix", 0, 4, 5, 9.0, 1.5, "finished"),
    ):
        journal.add_job(Job(*job))
    assert journal.cost("cutmix") is None and journal.recovered_epoch("cutmix") == 1.5
    assert journal.recovered_epoch("mixup alpha=1.0") is None
    hostile = [
        "[1]",
        '{"event": "rung", "rung": 0, "kept": "none", "seeds": 1, "note": ""}',
        '{"event": "rung", "rung": 0, "kept": ["none"], "seeds": 1000000000, "note": ""}',
        '{"event": "plan", "rungs": [[3, 5, 0]], "final_seeds": 2, "ratio": 1, "rung_seconds": 1, "final_seconds": 1}',
        '{"event": "job"}',
        '{"event": "rung", "rung": 0, "kept": 3, "seeds": 1, "note": ""}',
        '{"event": "standing", "rung": 0, "trial": "x", "figures": ["<script>"], "failed": ""}',
        '{"event": "plan", "rungs": [], "final_seeds": 2, "ratio": 1, "rung_seconds": 1, "final_seconds": 1}',
        '{"event": "__init__"}',
        '{"event": "job", "stage": "pro',
    ]
    with open(tmp_path / NAME, "a", encoding="utf-8") as file:
        file.write("\n".join(hostile))
    again = Journal.open(tmp_path)
    assert len(again.problems) == len(hostile)
    assert (again.jobs, again.plan, again.standings) == (journal.jobs, journal.plan, journal.standings)


# -- the space --------------------------------------------------------------------------------------------------------

#: The shipped space with few trials: none, two of mixup and two of cutmix.
FEW = (
    "data=digits",
    *(f"~search.policies.{name}" for name in ("fmix", "resizemix", "manifoldmix", "deit", "saliencymix", "puzzlemix")),
    *("search.policies.mixup.alpha=[0.2,1.0]", "search.policies.cutmix.alpha=[0.5]", "search.eta=2"),
    *("search.probe_epochs=1", "search.last_seeds=2", "search.final_seeds=3"),
)


def test_a_space_is_every_combination_of_a_policys_options(tmp_path: Path) -> None:
    space = read_space([*FEW, "seed=3"])
    assert [trial.label for trial in space.trials] == [
        "none",
        "mixup alpha=0.2",
        "mixup alpha=1.0",
        "cutmix alpha=0.5 labeling=area",
        "cutmix alpha=0.5 labeling=cam",
    ]
    trial = space.trials[-1]
    assert trial.config.policy.labeling == "cam"
    # The run is the one that `mixaug train` makes of the trial's overrides.
    assert config_hash(trial.config) == config_hash(compose(trial.overrides))
    # The usual policy has the options of its file, which are one of the trials'.
    assert space.usual is space.trials[2] and space.none is space.trials[0]
    assert not set(space.fresh_seeds(3)) & {3, 4, 5}
    (tmp_path / "search").mkdir()
    numbers = "eta: 2\nprobe_epochs: 1\nlast_seeds: 2\nfinal_seeds: 3\n"
    (tmp_path / "search" / "mine.yaml").write_text(f"policies: {{mixup: {{alpha: [0.4]}}}}\nusual: mixup\n{numbers}")
    own = read_space(["search=mine"], tmp_path)
    assert [trial.label for trial in own.trials] == ["mixup alpha=0.4"]
    assert (own.usual.label, own.none.label) == ("mixup", "none") and own.hash != space.hash


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["policy=mixup"], "policies are what a search tries"),
        (["policy.alpha=1"], "policies are what a search tries"),
        (["stop_after=3"], "where runs stop is what a search plans"),
        (["seed=0,1"], "one value of each setting"),
        (["search=image"], "image"),
        (["search.eta=1"], "search.eta must be an integer of at least 2, got 1"),
        (["+search.pace=1"], "search must have the settings policies, usual, eta"),
        (["search.policies.mixup=3"], "search.policies.mixup must give options lists of values"),
        (["search.policies.mixup.alpha=1.0"], "search.policies.mixup.alpha must be a list"),
        (["+search.policies.mixpu={}"], "mixpu"),
        (["search.usual=mixpu"], "mixpu"),
        (["data=diabetes", "model=mlp", "objective=squared_error", "data.split=by_seed"], "data.split=0"),
        (["data=digits", "data.valid_share=0.2", "data.split_seed=by_seed"], "data.split_seed=0"),
    ],
)
def test_what_a_search_refuses(arguments: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_space(arguments)


def test_data_without_a_validation_set_and_a_search_that_is_at_work_are_refused(tmp_path: Path) -> None:
    told = [*FEW, f"root={tmp_path / 'runs'}"]
    with pytest.raises(ConfigError, match=r"data=digits has no validation set.*data\.valid_share=0\.2"):
        run_search(told, budget="1m")
    with pytest.raises(ValueError, match="clock: expected wall or cpu, got 'sun'"):
        run_search(told, budget="1m", clock="sun")
    assert not (tmp_path / "runs").exists()
    with RunLock(tmp_path / "out") as lock:
        lock.take()
        with pytest.raises(RunHeld):
            run_search([*told, "data.valid_share=0.2"], budget="1m", out=tmp_path / "out")


def test_a_gpu_that_is_not_there_is_told_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    told = [*FEW, "data.valid_share=0.2", f"root={tmp_path / 'runs'}", "budget=10m"]
    for device in ("cuda", "cuda:0"):
        assert cli.main(["search", *told, f"device={device}"]) == 2
        said = capsys.readouterr()
        assert f"device={device} was asked for, but torch sees no GPU here; use device=cpu" in said.err
        assert said.out == "" and list(tmp_path.iterdir()) == []


def test_the_budget_of_an_experiment_is_not_that_of_a_search() -> None:
    # Runs at equal cost would be shortened by what a step costs, which a search measures in seconds.
    space = read_space(["experiment=photos_all"])
    assert {(trial.config.budget, trial.config.epochs) for trial in (*space.trials, space.none, space.usual)} == {
        (None, 60)
    }
    again = compose(space.trials[-1].overrides)
    assert (again.budget, config_hash(again)) == (None, config_hash(space.trials[-1].config))


@pytest.mark.parametrize("name", list_choices("search"))
def test_the_shipped_spaces_compose(name: str) -> None:
    data = ["data=diabetes", "model=mlp", "objective=squared_error"] if name == "regression" else ["data=photos"]
    space = read_space([*data, f"search={name}"])
    # Which one is taken follows from the data.
    assert space.hash == read_space(data).hash
    head = next(line for line in Path(f"configs/search/{name}.yaml").read_text().splitlines() if line.startswith("#"))
    assert f"{len(space.trials)} trials" in head.replace("sixteen", "16").replace("eleven", "11")


# -- a search with made-up runs ---------------------------------------------------------------------------------------

VALID = {"none": 50.0, "mixup alpha=0.2": 60.0, "mixup alpha=1.0": 55.0, "cutmix alpha=0.5 labeling=area": 40.0}


class Pretended:
    """Runs of a launcher that take no time and leave folders as real ones; validation and test figures disagree."""

    def __init__(self, failing: str = "", dies_at: int | None = None) -> None:
        self.started: list[tuple[str, int, int]] = []
        self.failing, self.dies_at = failing, dies_at

    def start(self, cell: Cell, log: Path, environment: Mapping[str, str]) -> Any:
        if self.dies_at == len(self.started):
            raise KeyboardInterrupt
        label, seed = cell.label.rsplit(" seed=", 1)
        self.started.append((label, int(seed), cell.epochs))
        folder, total = cell.folder, int(cell.config["epochs"])
        folder.mkdir(parents=True, exist_ok=True)
        if label == self.failing:
            (folder / "failure.json").write_text(json.dumps({"reason": "it is meant to <fail>"}))
            return Ended(1)
        # Twenty points less at first, so that one sees which epoch was judged; one more for each seed.
        valid = VALID.get(label, 45.0) + int(seed) % 10 - (0 if cell.epochs == total else 20)
        records = [{"epoch": epoch, "seconds": 1.0, "step_ms": 1.0} for epoch in range(1, cell.epochs + 1)]
        (folder / "epochs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        if cell.epochs < total:
            with open(folder / "stops.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"task": "classification", "epoch": cell.epochs, "valid_top1": valid}) + "\n")
            return Ended(0)
        policy = dict(cell.config["policy"])
        told = fabricate.result(
            str(cell.config["choices"]["policy"]),
            int(seed),
            100.0 - valid,
            policy_options={key: value for key, value in policy.items() if key != "_target_"},
            epochs=total,
            data=cell.config["data"]["name"],
            data_options={key: value for key, value in cell.config["data"].items() if key not in ("_target_", "name")},
            valid_top1_last=valid,
            selected_on="valid",
            test_samples=100,
        )
        (folder / "config.yaml").write_text(json.dumps(cell.config))
        (folder / "result.json").write_text(json.dumps(told))
        return Ended(0)

    def close(self) -> None:
        """Nothing is held."""


class Ended:
    """A job that has ended, after ten seconds."""

    def __init__(self, code: int) -> None:
        self.code = code

    def poll(self) -> int:
        return self.code

    def send(self, number: Any) -> None:
        """It has ended."""

    def cpu_seconds(self) -> float:
        return 10.0


Searched = Callable[..., tuple[int, Pretended, Path]]


@pytest.fixture
def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Searched:
    """`search(budget)`: its exit code, what was started, and its folder. A command takes ten seconds."""
    monkeypatch.setattr(benchmark.time, "sleep", lambda seconds: None)
    # Plots take a second, and are the leaderboard's.
    monkeypatch.setattr(halving, "write", partial(halving.write, formats=["markdown"]))

    def run(budget: str, **options: Any) -> tuple[int, Pretended, Path]:
        launcher = Pretended(**options)
        monkeypatch.setattr(benchmark, "_launcher", lambda name, threads: launcher)
        told = [*FEW, "data.valid_share=0.2", "data.train_size=50", "epochs=8", f"root={tmp_path / 'runs'}"]
        with open(tmp_path / "said.txt", "a", encoding="utf-8") as file:
            console = Console(file=file, width=150)
            code = run_search(
                [*told, "threads=1"], budget=budget, jobs=1, clock="cpu", out=tmp_path / "out", console=console
            )
        return code, launcher, tmp_path / "out"

    return run


def test_a_search_climbs_chooses_on_the_validation_set_and_compares_with_fresh_seeds(search: Searched) -> None:
    code, launcher, folder = search("100m")
    assert code == 0
    space = 5
    assert launcher.started[:space] == [(label, 0, 1) for label in [*VALID, "cutmix alpha=0.5 labeling=cam"]]
    # There is plenty: all are trained in full, and all with a second seed, the best first.
    seconds = [started for started in launcher.started[space:] if started[1] == 1]
    assert seconds[0] == ("mixup alpha=0.2", 1, 8)
    assert set(seconds) == {(label, 1, 8) for label, _, _ in launcher.started[:space]} and len(seconds) == space
    fresh = [(label, seed) for label, seed, _ in launcher.started if seed >= 1000]
    rows = ["none", "mixup alpha=1.0", "mixup alpha=0.2"]
    assert fresh == [(label, seed) for seed in (1000, 1001, 1002) for label in rows]
    page = (folder / "search.md").read_text()
    assert "The winner is mixup alpha=0.2. Its validation figure, 60.50 over 2 seeds, is the best of 5" in page
    # On the test set it is ten points below none, and the page says it. All seeds agree: without a spread no verdict.
    assert "| mixup (alpha=0.2) (winner) | 39.00 ± 1.00 | -10.00" in page
    assert "| mixup (alpha=1) (usual) | 44.00 ± 1.00 | -5.00" in page
    assert "The winner against mixup (alpha=1): -5.00 \\[-5.00, -5.00\\]" in page
    # The command that the page prints goes on in the same folder.
    assert f" budget=100m clock=cpu out={folder}" in page
    assert {path.name for path in folder.iterdir()} >= {"search.md", "search.html", "search.csv", NAME, "final"}
    lines = list(csv.DictReader((folder / "search.csv").read_text().splitlines()))
    assert {line["rung"] for line in lines} == {"1", "2"}
    assert {line["seeds"] for line in lines if line["rung"] == "2"} == {"2"}
    assert len([line for line in lines if line["goes_on"] == "yes" and line["rung"] == "1"]) == space


def test_the_same_command_starts_nothing_again_and_an_interrupted_one_goes_on(search: Searched) -> None:
    whole = search("100m")[1].started
    code, launcher, folder = search("100m")
    assert (code, launcher.started) == (0, [])
    page = (folder / "search.md").read_text()
    # Without what was written of them the runs still stand, as those of commands that were killed.
    (folder / NAME).unlink()
    code, launcher, _ = search("100m")
    assert (code, launcher.started) == (0, [])
    assert re.findall("The winner is .*", (folder / "search.md").read_text())[0][:40] in page
    for path in (folder / NAME, *(folder / "runs").glob("*/*.json*")):
        path.unlink()
    parts = []
    for after in (5,):
        code, launcher, _ = search("100m", dies_at=after)
        assert code == 130
        parts += launcher.started
    code, launcher, _ = search("100m")
    assert code == 0 and parts + launcher.started == whole
    assert (folder / "search.md").read_text() == page


def test_a_failed_trial_is_a_line_and_a_small_budget_trains_less(search: Searched) -> None:
    # An epoch seems to cost ten seconds, which the probe took: 50 s for it, 480 s for two final seeds of three rows.
    code, launcher, folder = search("800s", failing="cutmix alpha=0.5 labeling=area")
    assert code == 0
    page, html = ((folder / name).read_text() for name in ("search.md", "search.html"))
    assert "Failed before the first rung" in page and "it is meant to &lt;fail&gt;" in page
    assert "it is meant to &lt;fail&gt;" in html and "<fail>" not in html
    spent = sum(job.seconds for job in Journal.open(folder).jobs)
    left = 800 - round(spent)
    told = f"{left} s are left" if left >= 0 else f"the last runs took {-left} s more"
    assert f"Of a budget of 800 s, {spent:.0f} s were spent and {told}" in page
    assert len([seed for _, seed, _ in launcher.started if seed >= 1000]) % 3 == 0


@pytest.mark.parametrize(
    ("budget", "started", "told"),
    [
        # Five probes, two trials on the last rung and two seeds of two rows are eleven runs.
        ("0.5s", 0, r"take more than 0.55 s at 0.05 s a run, and the budget is 0.5 s"),
        # The second one has been started when the first is seen to have ended. An epoch takes ten seconds, those of
        # other trials at least five: 10 + 4 * 5 for the probe, two trials of 6 s an epoch from the first to the
        # eighth, and two seeds of 80 and 40 s.
        ("1.5s", 2, r"take more than 354 s by what 1 of them cost so far, and the budget is 1.5 s"),
        ("60s", 2, r"5 trials and .* of 2 rows .* take more than 354 s by what 1 of them cost so far"),
        # All cost as much as none: what is missing shows when the winner's row is known.
        ("600s", 5, "70 s are missing; give more, or fewer trials or epochs"),
    ],
)
def test_a_budget_below_the_least_ends_as_soon_as_that_is_certain(
    search: Searched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: str, started: int, told: str
) -> None:
    labels: list[str] = []
    start = Pretended.start

    def noted(self: Any, cell: Cell, *others: Any) -> Any:
        labels.append(cell.label)
        return start(self, cell, *others)

    monkeypatch.setattr(Pretended, "start", noted)
    with pytest.raises(BudgetTooSmall, match=told) as error:
        search(budget)
    assert (len(labels), error.value.begun) == (started, started > 0)
    assert ("first a probe: every trial is trained for 1 epoch" in (tmp_path / "said.txt").read_text()) == (started > 0)
    assert (tmp_path / "out").exists() == (started > 0)
    if started:
        assert "There is no winner yet." in (tmp_path / "out" / "search.md").read_text()


def test_trials_that_cannot_begin_are_no_part_of_what_a_budget_must_pay(tmp_path: Path) -> None:
    unfit = [-float(number) for number in range(1, 13)]
    told = [*FEW[:-4], f"search.policies.mixup.alpha={[0.2, *unfit]}", "search.policies.cutmix.alpha=[0.5]", *FEW[-3:]]
    told += ["data.valid_share=0.2", "data.train_size=50", "epochs=8", f"root={tmp_path}"]
    space = read_space(told)
    assert len(space.trials) == 16
    fitting = [trial.label for trial in space.trials if not trial.fault]
    assert fitting == ["none", "mixup alpha=0.2", "cutmix alpha=0.5 labeling=area", "cutmix alpha=0.5 labeling=cam"]
    assert "alpha as a positive finite number, got -1" in space.trials[2].fault
    wanted = (space, task_named("digits"), 1.0, "cpu", tmp_path / "out", "", None, None)
    least = [
        needed_at_least({}, labels, ["none", "mixup"], plain=None, epochs=8, done=1, eta=2)
        for labels in (fitting, [trial.label for trial in space.trials])
    ]
    assert least[0] < 1.0 < least[1]
    Search(*wanted).check_budget()
    with pytest.raises(BudgetTooSmall, match="budget: 4 trials and a final comparison"):
        Search(*wanted[:2], 0.3, *wanted[3:]).check_budget()


def test_stop_after_is_no_part_of_what_a_run_computes() -> None:
    assert config_hash(compose(["stop_after=3"])) == config_hash(compose([]))
    for wrong in ("0", "1.5", "true"):
        with pytest.raises(ConfigError, match="stop_after must be an integer of at least 1"):
            compose([f"stop_after={wrong}"])
