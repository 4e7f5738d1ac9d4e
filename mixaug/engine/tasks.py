"""What a run predicts: how its model is scored, and which number of a run counts.

The loop and the leaderboard ask the task of a data set; neither knows what is predicted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

from mixaug.data import RegressionSet, regression
from mixaug.engine.batches import Batches
from mixaug.engine.evaluate import evaluate, predict
from mixaug.regression_metrics import mae, mape, r2, rmse, worst_group

__all__ = ["CLASSIFICATION", "REGRESSION", "TASKS", "Detail", "Task", "task_named", "task_of"]

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Detail:
    """A further number of a run, shown beside the one that counts.

    Attributes:
        key: the number's key in ``result.json``; ``{figure}`` stands for the figure that is shown.
        title: title of its column.
        digits: number of digits behind the point.
    """

    key: str
    title: str
    digits: int


@dataclass(frozen=True, eq=False)
class Task:
    """What the engine and the leaderboard need to know about a kind of prediction.

    Attributes:
        name: ``"classification"`` or ``"regression"``.
        measure: the number that counts, as in ``test_<measure>`` of a record and ``<measure>_<figure>`` of a result.
        title, unit: how pages call it.
        digits: number of digits behind the point, for the measure and for differences.
        higher_is_better: whether a larger measure is the better one.
        figures: ways of taking one number from a run, and what each is.
        figure: the usual one.
        details: further numbers on pages.
        splits: the held-out sets that are scored after every epoch.
        score: (model, batches, split, precision) to numbers by name, ``samples`` among them.
        value: record to its value, the larger the better; chooses the best checkpoint.
        later_wins: whether the later of two equal epochs is the best.
        summary: records of all epochs to the numbers of a result.
        line: record to the text of an epoch's line in the log.
    """

    name: str
    measure: str
    title: str
    unit: str
    digits: int
    higher_is_better: bool
    figures: Mapping[str, str]
    figure: str
    details: tuple[Detail, ...]
    splits: tuple[str, ...]
    score: Callable[[nn.Module, Batches, str, str], dict[str, float | None]]
    value: Callable[[Record], float]
    later_wins: bool
    summary: Callable[[Sequence[Record]], dict[str, Any]]
    line: Callable[[Record], str]

    @property
    def heading(self) -> str:
        """The measure with its unit: ``"Top-1 (%)"``."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def result_key(self, figure: str) -> str:
        """Where a result has this figure."""
        return f"{self.measure}_{figure}"

    def scores(self, model: nn.Module, batches: Batches, precision: str) -> dict[str, float | None]:
        """The model's numbers on every held-out set: ``test_top1`` and so on."""
        return {
            f"{split}_{name}": value
            for split in self.splits
            for name, value in self.score(model, batches, split, precision).items()
            if name != "samples"
        }


def task_of(data: Any) -> Task:
    """The task of a data set of `mixaug.data`."""
    return REGRESSION if isinstance(data, RegressionSet) else CLASSIFICATION


def task_named(data: str) -> Task:
    """The task of a data set by the name that `mixaug.data.load` knows it by; a name of another's is classification."""
    return REGRESSION if data in regression.LOADERS else CLASSIFICATION


# -- classification -----------------------------------------------------------------------------------------------


def _score_classes(model: nn.Module, batches: Batches, split: str, precision: str) -> dict[str, float | None]:
    scores = evaluate(model, batches.held_out(split), batches.data.num_classes, batches.world.device, precision)
    return dict(vars(scores))


def _summary_of_classes(history: Sequence[Record]) -> dict[str, Any]:
    top1 = [record["test_top1"] for record in history]
    last = history[-1]
    return {
        "top1_last": top1[-1],
        "top1_best": max(top1),
        "top1_median10": float(median(top1[-10:])),
        "top1_best10": max(top1[-10:]),
        "top5_last": last["test_top5"],
        "nll_last": last["test_nll"],
        "ece_last": last["test_ece"],
    }


CLASSIFICATION = Task(
    name="classification",
    measure="top1",
    title="Top-1",
    unit="%",
    digits=2,
    higher_is_better=True,
    figures={
        "last": "last epoch",
        "best": "best epoch",
        "median10": "median of the last 10 epochs",
        "best10": "best of the last 10 epochs",
    },
    figure="last",
    details=(Detail("nll_last", "NLL", 3), Detail("ece_last", "ECE", 3)),
    splits=("test",),
    score=_score_classes,
    value=lambda record: float(record["test_top1"]),
    later_wins=False,
    summary=_summary_of_classes,
    line=lambda record: f"test top-1 {record['test_top1']:.2f} %  nll {record['test_nll']:.4f}",
)


# -- regression ---------------------------------------------------------------------------------------------------

_ERRORS = ("rmse", "mae", "mape", "r2", "worst_rmse")


def _score_numbers(model: nn.Module, batches: Batches, split: str, precision: str) -> dict[str, float | None]:
    predictions, labels = predict(model, batches.held_out(split), batches.world, precision)
    groups = batches.groups(split)
    numbers = {"rmse": rmse, "mae": mae, "mape": mape, "r2": r2}
    scores = {name: _finite(metric(predictions, labels)) for name, metric in numbers.items()}
    if groups is not None:
        scores["worst_rmse"] = _finite(worst_group(rmse, predictions, labels, groups.to(labels.device)))
    return {**scores, "samples": len(labels)}


def _finite(value: torch.Tensor) -> float | None:
    """JSON has no number for R2 of constant labels or a percentage of zeros."""
    number = float(value)
    return number if math.isfinite(number) else None


def _value_of_numbers(record: Record) -> float:
    error = record["valid_rmse"]
    return -math.inf if error is None else -float(error)


def _summary_of_numbers(history: Sequence[Record]) -> dict[str, Any]:
    # The later of equal epochs wins, as in the code of C-Mixup.
    chosen = max(range(len(history)), key=lambda epoch: (_value_of_numbers(history[epoch]), epoch))
    taken = {"selected": history[chosen], "last": history[-1]}
    numbers = {
        f"{name}_{figure}": record[f"test_{name}"]
        for figure, record in taken.items()
        for name in _ERRORS
        if f"test_{name}" in record
    }
    valid = {f"valid_rmse_{figure}": record["valid_rmse"] for figure, record in taken.items()}
    return {**numbers, **valid, "selected_epoch": chosen + 1}


REGRESSION = Task(
    name="regression",
    measure="rmse",
    title="RMSE",
    unit="",
    digits=4,
    higher_is_better=False,
    figures={"selected": "epoch of lowest validation error", "last": "last epoch"},
    figure="selected",
    details=(
        Detail("mae_{figure}", "MAE", 4),
        Detail("mape_{figure}", "MAPE (%)", 3),
        Detail("r2_{figure}", "R2", 4),
        Detail("worst_rmse_{figure}", "worst group", 4),
    ),
    splits=("valid", "test"),
    score=_score_numbers,
    value=_value_of_numbers,
    later_wins=True,
    summary=_summary_of_numbers,
    line=lambda record: f"valid RMSE {_shown(record['valid_rmse'])}  test RMSE {_shown(record['test_rmse'])}",
)


def _shown(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


TASKS: Mapping[str, Task] = {task.name: task for task in (CLASSIFICATION, REGRESSION)}
