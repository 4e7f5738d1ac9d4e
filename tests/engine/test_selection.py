"""Which set chooses epochs, which epochs are scored, and what is written when."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from mixaug.commands.train import PLAIN_SWEEPER, _check_chooser
from mixaug.engine import build, checkpoint, run
from mixaug.engine import train as engine
from mixaug.engine.assembly import assemble
from mixaug.engine.batches import Batches
from mixaug.engine.config import compose
from mixaug.engine.distributed import World
from mixaug.engine.errors import ConfigError
from mixaug.engine.tasks import CLASSIFICATION, REGRESSION, Task, held_out_splits
from mixaug.engine.train import train
from mixaug.leaderboard import aggregate, collect
from mixaug.leaderboard.aggregate import Board
from mixaug.leaderboard.cells import extra_columns

Tiny = Callable[..., DictConfig]


def records(valid: list[float] | None, test: list[float | None]) -> list[dict[str, Any]]:
    """One record an epoch; an epoch whose test score is None was not scored."""
    history: list[dict[str, Any]] = []
    for epoch, score in enumerate(test, start=1):
        record: dict[str, Any] = {"epoch": epoch}
        for split, top1 in (("valid", None if valid is None else valid[epoch - 1]), ("test", score)):
            if top1 is not None and score is not None:
                record |= {f"{split}_top1": top1, f"{split}_top5": 100.0, f"{split}_nll": 1.0, f"{split}_ece": 0.0}
        history.append(record)
    return history


def test_the_validation_set_chooses_and_the_test_set_is_only_scored() -> None:
    valid = [*[10.0] * 4, 60.0, 60.0, *[20.0] * 7, 40.0, 30.0]
    test = [float(epoch) for epoch in range(15, 0, -1)]
    found = CLASSIFICATION.summary(records(valid, [*test]))
    assert (found["selected_on"], found["selected_epoch"]) == ("valid", 5)  # the first of the two best ones
    assert (found["top1_best"], found["valid_top1_best"]) == (11.0, 60.0)
    # Among the last ten, epochs 6 to 15, it is epoch 6.
    assert (found["top1_best10"], found["valid_top1_best10"]) == (10.0, 60.0)
    assert (found["top1_median10"], found["valid_top1_median10"]) == (5.5, 20.0)
    assert (found["top1_last"], found["valid_top1_last"]) == (1.0, 30.0)
    assert CLASSIFICATION.aim(found, "best") == 60.0

    without = CLASSIFICATION.summary(records(None, [*test]))
    assert (without["selected_on"], without["selected_epoch"], without["top1_best"]) == ("test", 1, 15.0)
    assert (without["top1_best10"], CLASSIFICATION.aim(without, "last")) == (10.0, 1.0)
    assert not any(key.startswith("valid") for key in without)


def test_a_search_goes_on_where_a_number_was_not_finite() -> None:
    # An RMSE of NaN is null in a result, and worse than any other.
    assert REGRESSION.aim({"rmse_selected": 3.0, "valid_rmse_selected": None}, "selected") == float("inf")
    assert REGRESSION.aim({"rmse_selected": None, "valid_rmse_selected": 2.5}, "selected") == 2.5
    assert CLASSIFICATION.aim({"top1_last": None}, "last") == -float("inf")


def test_figures_of_the_last_ten_epochs_need_all_of_them() -> None:
    scored = [None, None, None, 3.0, *[None] * 7, 7.0, 5.0, 6.0]
    found = CLASSIFICATION.summary(records(None, scored))
    assert found["top1_median10"] is found["top1_best10"] is None
    assert (found["top1_best"], found["selected_epoch"], found["top1_last"]) == (7.0, 12, 6.0)
    whole = CLASSIFICATION.summary(records(None, [None, *map(float, range(10))]))
    assert (whole["top1_median10"], whole["top1_best10"]) == (4.5, 9.0)


def test_both_tasks_choose_in_one_way() -> None:
    errors = [{"epoch": 1, "valid_rmse": 2.0, "test_rmse": 9.0}, {"epoch": 2, "valid_rmse": 2.0, "test_rmse": 8.0}]
    errors += [{"epoch": 3}, {"epoch": 4, "valid_rmse": None, "test_rmse": 1.0}]
    assert REGRESSION.chosen(errors) == 1  # of equal ones the later
    assert CLASSIFICATION.chosen(records([1.0, 3.0, 3.0], [5.0, 4.0, 9.0])) == 1  # of equal ones the earlier
    assert REGRESSION.chosen([errors[3]]) == 0
    with pytest.raises(ValueError, match="at least one record with scores"):
        REGRESSION.chosen([{"epoch": 1}])


@pytest.mark.parametrize(
    ("task", "figure", "selected_on", "title"),
    [
        (CLASSIFICATION, "best", "valid", "best epoch, chosen on the validation set"),
        (CLASSIFICATION, "best10", "test", "best of the last 10 epochs, chosen on the test set"),
        (CLASSIFICATION, "median10", "valid", "median of the last 10 epochs"),
        (CLASSIFICATION, "last", "valid", "last epoch"),
        (REGRESSION, "selected", "valid", "epoch of lowest validation error"),
    ],
)
def test_titles_say_what_chose(task: Task, figure: str, selected_on: str, title: str) -> None:
    assert task.title_of(figure, selected_on) == title


def lines(config: DictConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.run_folder(config) / "epochs.jsonl").read_text().splitlines()]


def test_a_run_with_a_validation_set(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs are made to differ in a way that tells the two sets apart; everything that chooses follows one of them."""
    told: list[float | None] = []
    scripted = {"valid": iter([10.0, 50.0, 50.0, 20.0]), "test": iter([90.0, 40.0, 30.0, 60.0])}
    really = CLASSIFICATION.score

    def score(model: Any, batches: Batches, split: str, precision: str) -> dict[str, float | None]:
        return {**really(model, batches, split, precision), "top1": next(scripted[split])}

    def scheduler(config: DictConfig, optimizer: Any, updates: int) -> Any:
        class Told:
            def step(self, epoch: int, metric: float | None = None) -> None:
                told.append(metric)

            def step_update(self, number: int) -> None: ...

            def state_dict(self) -> dict[str, Any]:
                return {}

        return Told()

    object.__setattr__(CLASSIFICATION, "score", score)
    monkeypatch.setattr(build, "build_scheduler", scheduler)
    try:
        config = tiny("data.valid_share=0.2", "epochs=4")
        result = train(config)
    finally:
        object.__setattr__(CLASSIFICATION, "score", really)
    # The first step is the one that tries the schedule before the run begins.
    assert told == [None, 10.0, 50.0, 50.0, 20.0]
    assert (result["selected_on"], result["selected_epoch"], result["top1_best"]) == ("valid", 2, 40.0)
    assert checkpoint.load(run.run_folder(config) / checkpoint.BEST)["epoch"] == 2
    assert result["data_options"]["valid_share"] == 0.2
    record = lines(config)[0]
    assert {f"{split}_{name}" for split in ("valid", "test") for name in ("top1", "top5", "nll", "ece")} <= set(record)


def test_scores_are_those_of_the_samples_that_were_taken_out(tiny: Tiny) -> None:
    config = tiny("data.valid_share=0.3")
    data = build.load_data(config)
    assert held_out_splits(data) == ("valid", "test")
    assert held_out_splits(build.load_data(tiny())) == ("test",)
    alone = World(0, 1, torch.device("cpu"))
    batches = Batches(config, data, alone)
    assert sum(len(labels) for _, labels in batches.held_out("valid")) == 30
    assert sum(len(batch) for batch in batches.epoch(0)) == 70
    halves = [Batches(config, data, World(rank, 2, torch.device("cpu"))) for rank in (0, 1)]
    shares = [torch.cat([labels for _, labels in half.held_out("valid")]) for half in halves]
    assert torch.equal(torch.cat(shares).bincount(), data.valid.labels.bincount())

    class Knows(torch.nn.Module):
        """Right on every validation sample, by its pixels, and on no other of another class than 0."""

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            known = batches._normalize()(data.valid.images).flatten(1)
            found = (inputs.flatten(1)[:, None] - known).abs().amax(2) < 1e-5
            labels = torch.where(found.any(1), data.valid.labels[found.float().argmax(1)], 0)
            return torch.nn.functional.one_hot(labels, 10).float()

    scores = CLASSIFICATION.scores(Knows(), batches, "float32")
    assert scores["valid_top1"] == 100.0
    assert scores["test_top1"] == pytest.approx(100 * float((data.test.labels == 0).float().mean()), abs=0.5)


@pytest.mark.parametrize(
    ("overrides", "scored", "saved"),
    [
        ((), [1, 2, 3, 4, 5], [1, 2, 3, 4, 5]),
        (("evaluate_every=2", "checkpoint_every_epochs=3"), [2, 4, 5], [3, 5]),
        (("evaluate_every=9", "checkpoint_every_epochs=9"), [5], [5]),
        (("evaluate_every=9", "protocol.figure=median10"), [1, 2, 3, 4, 5], [1, 2, 3, 4, 5]),
    ],
)
def test_scoring_and_saving_every_so_many_epochs(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], scored: list[int], saved: list[int]
) -> None:
    written, really = [], engine._save

    def save(training: Any) -> None:
        written.append(training.state.position.epoch)
        really(training)

    monkeypatch.setattr(engine, "_save", save)
    config = tiny("epochs=5", "data.train_size=25", *overrides)
    result = train(config)
    assert [record["epoch"] for record in lines(config) if "test_top1" in record] == scored
    assert len(lines(config)) == 5
    assert written == saved
    assert (result["top1_median10"] is None) == (scored != [1, 2, 3, 4, 5])


def test_how_often_one_looks_changes_no_weight(tiny: Tiny, tmp_path: Path) -> None:
    settings = ("policy=mixup", "epochs=3", "data.train_size=50")
    seldom = ("evaluate_every=3", "checkpoint_every_epochs=2")
    configs = tiny(*settings), tiny(*settings, *seldom, root=tmp_path / "seldom")
    one, other = (checkpoint.load(run.run_folder(config) / "last.pt") for config in configs if train(config))
    assert all(torch.equal(value, other["model"][name]) for name, value in one["model"].items())
    assert one["history"][-1]["test_nll"] == other["history"][-1]["test_nll"]


def test_a_plateau_wants_the_scores_of_every_epoch() -> None:
    with pytest.raises(ConfigError, match=r"sched=plateau looks at the scores of every epoch, but evaluate_every=2"):
        compose(["schedule=cosine_epoch", "schedule.sched=plateau", "evaluate_every=2"])


def test_a_sweeper_never_chooses_by_the_test_set(tiny: Tiny) -> None:
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    assert f"{BasicSweeper.__module__}.{BasicSweeper.__qualname__}" == PLAIN_SWEEPER
    without, with_valid = (tiny("data.train_size=50", *more) for more in ((), ("data.valid_share=0.2",)))
    _check_chooser(PLAIN_SWEEPER, without)
    _check_chooser("theirs.Chooser", with_valid)
    with pytest.raises(ConfigError, match=r"theirs\.Chooser chooses by the scores of a validation set, and digits has"):
        _check_chooser("theirs.Chooser", without)


def test_a_plateau_never_watches_the_test_set(tiny: Tiny) -> None:
    world = World(0, 1, torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"sched=plateau watches the scores of a validation set, and digits has none"):
        assemble(tiny("schedule.sched=plateau", "data.train_size=50"), world)
    assemble(tiny("schedule.sched=plateau", "data.train_size=50", "data.valid_share=0.2"), world)


@pytest.mark.parametrize("option", ["split_seed", "class_seed"])
def test_a_seed_of_the_data_may_be_the_runs(option: str) -> None:
    ways = ["data=digits", "data.classes=3", "data.per_class=5", "data.valid_share=0.1", f"data.{option}=by_seed"]
    found = [build.load_data(compose([*ways, f"seed={seed}"])) for seed in (1, 2, 3)]
    if option == "class_seed":
        assert len({data.class_names for data in found}) > 1
    else:
        assert len({str(data.valid.labels.tolist()) + str(data.train.images.sum()) for data in found}) == 3
    given = compose([*ways[:4], f"data.{option}=2"])
    for split in ("train", "valid"):
        assert torch.equal(getattr(build.load_data(given), split).images, getattr(found[1], split).images)


def test_pages_say_which_set_chose(tiny: Tiny, tmp_path: Path) -> None:
    from mixaug.leaderboard.render import to_csv, to_html, to_markdown

    for overrides in ((), ("data.valid_share=0.2",)):
        train(tiny("data.train_size=50", "epochs=1", *overrides))
    boards = aggregate(collect(tmp_path / "runs"), statistic="best").boards
    titles = {board.setting.title: board.statistic_title for board in boards}
    name = "cifar_resnet8 on digits (split_seed=0, train_size=50"
    assert titles == {
        f"{name})": "best epoch, chosen on the test set",
        f"{name}, valid_share=0.2)": "best epoch, chosen on the validation set",
    }
    board = next(board for board in boards if board.selected_on == "valid")
    for text in (to_markdown(shown(board)), to_html(shown(board))):
        assert "best epoch, chosen on the validation set, in percent, of the test set" in text
        assert "Validation" in text
    [row] = csv.DictReader(io.StringIO(to_csv(shown(board))))
    result = board.rows[0].runs[0].result
    assert row["selected_on"] == "valid"
    assert float(row["valid_top1_best_mean"]) == pytest.approx(result["valid_top1_best"], abs=1e-6)


def shown(board: Board) -> Any:
    from mixaug.leaderboard.aggregate import Leaderboard

    return Leaderboard((board,), 0.95)


def test_a_statistic_that_a_run_lacks_is_named(tiny: Tiny, tmp_path: Path) -> None:
    train(tiny("epochs=3", "data.train_size=25", "evaluate_every=2"))
    runs = collect(tmp_path / "runs")
    assert [one.status for one in runs] == ["finished"]
    assert aggregate(runs).boards[0].rows[0].score.n == 1
    with pytest.raises(ValueError, match=r"has no top1_median10, since not all of its last epochs were scored"):
        aggregate(runs, statistic="median10")


def test_another_measure_chooses_and_counts(tiny: Tiny) -> None:
    """Least recall in place of top-1: in the epoch that is chosen, in the result and on the board."""
    history = records([50.0, 60.0, 70.0], [10.0, 20.0, 30.0])
    for record, least in zip(history, (5.0, 9.0, 7.0), strict=True):
        record |= {"valid_min_recall": least, "test_min_recall": least - 1}
    by_least = CLASSIFICATION.measured_by("min_recall")
    assert by_least is CLASSIFICATION.measured_by("min_recall")
    assert CLASSIFICATION.measured_by(None) is CLASSIFICATION.measured_by("top1") is CLASSIFICATION
    found = by_least.summary(history)
    assert (found["selected_epoch"], found["min_recall_best"], found["top1_best"]) == (2, 8.0, 20.0)
    assert (found["valid_min_recall_best"], found["min_recall_last"]) == (9.0, 6.0)
    assert by_least.aim(found, "best") == 9.0
    assert CLASSIFICATION.summary(history)["selected_epoch"] == 3
    with pytest.raises(ValueError, match="classification is not measured by 'rmse'; expected one of top1, mean_recall"):
        CLASSIFICATION.measured_by("rmse")

    # A run of its own, in a folder of its own, on a board of its own.
    for measure in ("null", "min_recall"):
        for policy in ("none", "mixup"):
            config = tiny("data.imbalance=4", f"measure={measure}", f"policy={policy}", "epochs=1")
            assert train(config)["measure"] == ("top1" if measure == "null" else measure)
    boards = {board.task.measure: board for board in aggregate(collect(config.root)).boards}
    assert sorted(boards) == ["min_recall", "top1"]
    board = boards["min_recall"]
    mixed, plain = sorted(board.rows, key=lambda row: row.is_baseline)
    assert mixed.difference is not None
    assert mixed.score is not None and plain.score is not None
    assert mixed.score.mean == mixed.runs[0].result["min_recall_last"]
    assert mixed.difference.mean == pytest.approx(mixed.score.mean - plain.score.mean)
    titles = [detail.title for detail, _ in extra_columns(board)]
    assert titles == ["Top-1 (%)", "Mean recall", "G-mean of recalls", "H-mean of recalls", "NLL", "ECE"]
    assert [detail.title for detail, _ in extra_columns(boards["top1"])] == ["NLL", "ECE"]
    assert "measure=min_recall" in mixed.command


def test_the_worst_group_needs_groups_and_balanced_batches_draw_them_as_often(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"measure=worst_group needs metadata 'group' of the test set.*digits"):
        train(tiny("measure=worst_group"))
    with pytest.raises(ConfigError, match=r"measure=precision: .*expected one of top1"):
        train(tiny("measure=precision"))
    with pytest.raises(ConfigError, match="sampling=group needs metadata 'group' of the training set"):
        train(tiny("sampling=group"))
    framed = compose(["data=framed_photos", "sampling=group", "batch_size=50", "threads=1", "device=cpu"])
    batches = Batches(framed, build.load_data(framed), World(0, 1, torch.device("cpu")))
    batches.draw_evenly()
    drawn = torch.cat([batch.metadata["group"] for epoch in range(8) for batch in batches.epoch(epoch)])
    # 4000 draws, a quarter of each group: standard deviation 27. Without it there are 104 of each rare one.
    assert ((drawn.bincount() - 1000).abs() < 5 * 27).all()
    assert batches.groups("test").bincount().tolist() == [250] * 4
