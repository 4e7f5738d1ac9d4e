"""`stop_after`: a run that stops and goes on equals one that never stopped; what a sweep is told of both."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from helpers import FINISHED, assert_same, timeless
from mixaug.commands.train import main
from mixaug.engine import checkpoint, run
from mixaug.engine.results import fault_of_result, read_result
from mixaug.engine.state import Schedules
from mixaug.engine.train import train
from mixaug.leaderboard.collect import read_run
from mixaug.leaderboard.grid import Cell

Tiny = Callable[..., DictConfig]

DATA = ("data.train_size=50", "data.valid_share=0.4", "batch_size=10")
SETTINGS = ("policy=cutmix", "epochs=4", "evaluate_every=3", *DATA)
WALL = ("seconds", "samples_per_second", "step_ms", "peak_memory_mb", "train_seconds", "prepare_seconds")


def everything(folder: Path) -> tuple[Any, ...]:
    """The last checkpoint, the result and the epochs of a run without what the clock wrote."""
    kept = timeless(checkpoint.load(folder / "last.pt"))
    result = {key: value for key, value in run.read_json(folder / "result.json").items() if key not in WALL}
    lines = [json.loads(line) for line in (folder / "epochs.jsonl").read_text().splitlines()]
    return kept, result, [{key: value for key, value in line.items() if key not in WALL} for line in lines]


def test_a_run_that_stops_and_goes_on_equals_one_that_never_stopped(tiny: Tiny, tmp_path: Path) -> None:
    whole = tiny(*SETTINGS, root=tmp_path / "whole")
    train(whole)
    stopped = [train(tiny(*SETTINGS, f"stop_after={epoch}")) for epoch in (1, 3)]
    assert [(told["status"], told["epoch"]) for told in stopped] == [("stopped", 1), ("stopped", 3)]
    folder = run.run_folder(tiny(*SETTINGS))
    assert run.status(folder) == "unfinished" and read_run(folder).reason == "stopped after epoch 3"
    # The validation set alone is scored there; the run's own records have what it scores by itself.
    assert not [key for told in stopped for key in told if "test" in key]
    history = [json.loads(line) for line in (folder / "epochs.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in history if "valid_top1" in record] == [3]
    assert history[2]["valid_top1"] == stopped[1]["valid_top1"] == run.read_stops(folder)[3]["valid_top1"]
    # Where it stopped before, nothing is done again; what it has passed cannot be had any more.
    before = (folder / "last.pt").stat().st_mtime_ns
    assert train(tiny(*SETTINGS, "stop_after=3")) == stopped[1]
    past = train(tiny(*SETTINGS, "stop_after=2"))
    assert (past["status"], past["epoch"]) == ("stopped", 3) and not [key for key in past if "valid" in key]
    assert (folder / "last.pt").stat().st_mtime_ns == before and not (folder / "failure.json").exists()
    train(tiny(*SETTINGS))
    for found, expected in zip(everything(folder), everything(run.run_folder(whole)), strict=True):
        assert_same(found, expected)


@pytest.mark.filterwarnings("ignore:PlateauLRScheduler is deprecated")
def test_a_schedule_that_counts_epochs_goes_on_where_it_stopped(tiny: Tiny, tmp_path: Path) -> None:
    # It watches for lower scores than the first one, which a model that learns seldom gives: after two of them the rate
    # drops, and noise lies on it in between.
    schedule = ("+schedule.patience_epochs=1", "+schedule.plateau_mode=min", "+schedule.decay_rate=0.5")
    noise = ("+schedule.noise=[0,6]", "+schedule.noise_pct=0.1")
    settings = ("policy=none", "schedule.sched=plateau", *schedule, *noise, "epochs=6", "optimizer.lr=0.01", *DATA)
    whole = tiny(*settings, root=tmp_path / "whole")
    train(whole)
    rates = [record["lr"] for record in everything(run.run_folder(whole))[2]]
    assert min(rates) < 0.6 * rates[0] and len(set(rates)) > 2, rates
    for epoch in (1, 2, 4):
        train(tiny(*settings, f"stop_after={epoch}"))
    train(tiny(*settings))
    for found, expected in zip(
        everything(run.run_folder(tiny(*settings))), everything(run.run_folder(whole)), strict=True
    ):
        assert_same(found, expected)


@pytest.mark.filterwarnings("ignore:PlateauLRScheduler is deprecated")
def test_schedules_of_parts_keep_what_they_have_counted() -> None:
    from timm.scheduler import PlateauLRScheduler

    def made() -> Schedules:
        optimizers = (torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1) for _ in range(2))
        model, mixer = (PlateauLRScheduler(one, patience_t=2, cooldown_t=1) for one in optimizers)
        return Schedules({"model": model, "mixer": mixer})

    first, again, old = made(), made(), made()
    for epoch in range(1, 4):
        first.step(epoch, -float(epoch))
    assert first.state_dict()["mixer"]["counted"] == {"best": -1.0, "num_bad_epochs": 2, "cooldown_counter": 0}
    again.load_state_dict(first.state_dict())
    assert again.state_dict() == first.state_dict()
    for schedules in (first, again):
        schedules.step(4, -4.0)
        rates = [schedule.optimizer.param_groups[0]["lr"] for schedule in schedules.parts.values()]
        assert rates == pytest.approx([0.01, 0.01])
    # What an earlier version kept is taken up as it is.
    old.load_state_dict({name: {"best": -1.0, "last_epoch": 3} for name in ("model", "mixer")})
    assert old.state_dict()["model"]["counted"] == {"best": -1.0, "num_bad_epochs": 0, "cooldown_counter": 0}


def test_a_cell_is_done_where_it_is_to_stop(tmp_path: Path) -> None:
    def cell(stop: int | None) -> Cell:
        return Cell("x", (), {"epochs": 5, "stop_after": stop}, tmp_path)

    assert [cell(stop).epochs for stop in (None, 3, 9)] == [5, 3, 5]
    assert not cell(3).is_done()
    (tmp_path / run.STOPS).write_text('{"epoch": 3, "valid_top1": 1.0}\n[4]\n{"epoch": tr')
    assert [cell(stop).is_done() for stop in (2, 3, 4, 5, None)] == [False, True, False, False, False]
    (tmp_path / "result.json").write_text(FINISHED)
    assert cell(2).is_done() and cell(None).is_done()
    # One that cannot be read, or is not that of a finished run, is made again.
    for damaged in ('{"status": "fin', "{}", "[]", '{"status": "finished"}', FINISHED.replace("50.0", "NaN")):
        (tmp_path / "result.json").write_text(damaged)
        assert not cell(None).is_done(), damaged


def test_a_finished_run_whose_model_gave_no_numbers_is_not_made_again(tmp_path: Path) -> None:
    result = {
        **json.loads(FINISHED),
        "task": "regression",
        "data": "diabetes",
        "rmse_last": None,
        "rmse_selected": None,
    }
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert read_result(tmp_path / "result.json") == result
    # No table has a place for it, and a figure that is not there at all is damage.
    assert fault_of_result(result) == "rmse_selected: expected a finite number, got None"
    del result["rmse_last"]
    assert fault_of_result(result, is_ranked=False) == "rmse_last: expected a finite number, got None"
    # A share of right answers is always a number.
    of_classes = {**json.loads(FINISHED), "top1_last": None}
    assert fault_of_result(of_classes, is_ranked=False) == "top1_last: expected a finite number, got None"


def test_a_sweeper_is_told_the_validation_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    returns: list[Any] = []
    sweep = BasicSweeper.sweep

    def seen(self: BasicSweeper, arguments: list[str]) -> Any:
        returns.extend(job.return_value for batch in sweep(self, arguments) for job in batch)
        return returns

    monkeypatch.setattr(BasicSweeper, "sweep", seen)
    monkeypatch.chdir(tmp_path)
    own = ("data=digits", "policy=mixup", *DATA, "epochs=2", "threads=1", "device=cpu", "progress=false")
    # The second job takes the run of the first to its end.
    assert main(["--multirun", *own, "stop_after=1,2"]) == 0
    (folder,) = Path("runs").glob("mixup-*")
    result = run.read_json(folder / "result.json")
    assert returns == [run.read_stops(folder)[1]["valid_top1"], result["valid_top1_last"]]
    assert returns[1] != result["top1_last"]
    # One that chooses is refused, before it trains, where there is the test set alone.
    monkeypatch.setattr("mixaug.commands.train.PLAIN_SWEEPER", "another")
    assert main(["--multirun", *own, "data.valid_share=0", "seed=1,2"]) != 0
    assert "BasicSweeper chooses by the scores of a validation set, and digits has none" in capsys.readouterr().err
    assert not list(Path("runs").glob("mixup-*-s[12]-*"))
