"""What a run predicts: how its model is scored, and which number of a run counts.

The loop and the leaderboard ask the task of a data set; neither knows what is predicted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from statistics import median
from typing import Any

import torch
from torch import nn

from mixaug.data import RegressionSet, regression
from mixaug.engine.batches import Batches
from mixaug.engine.evaluate import evaluate, predict
from mixaug.regression_metrics import mae, mape, r2, rmse, worst_group

__all__ = [
    "CLASSIFICATION",
    "FIGURES_OF_LAST_EPOCHS",
    "LAST_EPOCHS",
    "REGRESSION",
    "SPLIT_TITLES",
    "TASKS",
    "Detail",
    "Task",
    "held_out_splits",
    "task_named",
    "task_of",
    "task_said",
]

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Detail:
    """A further number of a run, shown beside the one that counts.

    Attributes:
        key: the number's key in ``result.json``; ``{measure}`` stands for the measure that counts, ``{figure}`` for the
            figure that is shown.
        title: title of its column.
        digits: number of digits behind the point.
        beside: the measures beside which it is shown; empty for all.
    """

    key: str
    title: str
    digits: int
    beside: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False)
class Task:
    """What the engine and the leaderboard need to know about a kind of prediction.

    Attributes:
        name: ``"classification"`` or ``"regression"``.
        measure: the number that counts, as in ``test_<measure>`` of a record and ``<measure>_<figure>`` of a result.
        title, unit: how pages call it.
        digits: number of digits behind the point, for the measure and for differences.
        higher_is_better: whether a larger measure is the better one.
        figures: ways of taking one number from a run, and what each is. The number is always one of the test set.
        choosing: those figures whose epoch is chosen among several; `title_of` says on which set.
        figure: the usual one.
        every_detail: further numbers on pages; `details` are those beside the measure.
        score: (model, batches, split, precision) to numbers by name, ``samples`` among them.
        later_wins: whether the later of two equal epochs is the best.
        summarise: task and records of all epochs to the numbers of a result.
        tell: task and record with scores to the text of an epoch's line in the log.
        measures: other measures that may count in its place, of the same unit, and how pages call them.
    """

    name: str
    measure: str
    title: str
    unit: str
    digits: int
    higher_is_better: bool
    figures: Mapping[str, str]
    choosing: frozenset[str]
    figure: str
    every_detail: tuple[Detail, ...]
    score: Callable[[nn.Module, Batches, str, str], dict[str, float | None]]
    later_wins: bool
    summarise: Callable[[Task, Sequence[Record]], dict[str, Any]]
    tell: Callable[[Task, Record], str]
    measures: Mapping[str, str] = field(default_factory=dict)

    @cache  # noqa: B019 (a handful of tasks, which live as long as the program; equal ones must be one)
    def measured_by(self, measure: str | None) -> Task:
        """The task with another of its measures as the one that counts; None keeps the usual one.

        Raises:
            ValueError: a measure that it does not have.
        """
        if measure is None or measure == self.measure:
            return self
        if measure not in self.measures:
            known = ", ".join([self.measure, *self.measures])
            raise ValueError(f"{self.name} is not measured by {measure!r}; expected one of {known}")
        return replace(self, measure=measure, title=self.measures[measure])

    @property
    def variants(self) -> list[Task]:
        """The task under each of its measures, the usual one first."""
        return [self.measured_by(measure) for measure in (self.measure, *self.measures)]

    @property
    def details(self) -> tuple[Detail, ...]:
        """Further numbers on pages, beside the measure that counts."""
        own = self.measure + "_{figure}"
        return tuple(
            detail
            for detail in self.every_detail
            if detail.key != own and (not detail.beside or self.measure in detail.beside)
        )

    def detail_key(self, detail: Detail, figure: str) -> str:
        """Where a result has a further number."""
        return detail.key.format(measure=self.measure, figure=figure)

    def summary(self, history: Sequence[Record]) -> dict[str, Any]:
        """The numbers of a result, from the records of all epochs."""
        return self.summarise(self, history)

    def line(self, record: Record) -> str:
        """The text of an epoch's line in the log, from a record with scores."""
        return self.tell(self, record)

    @property
    def heading(self) -> str:
        """The measure with its unit: ``"Top-1 (%)"``."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def result_key(self, figure: str) -> str:
        """Where a result has this figure."""
        return f"{self.measure}_{figure}"

    def title_of(self, figure: str, selected_on: str) -> str:
        """What a figure is, and for one that is chosen among epochs the set that chose.

        Args:
            figure: one of `figures`.
            selected_on: ``"valid"`` or ``"test"``, as a result has it.
        """
        title = self.figures[figure]
        return f"{title}, chosen on the {SPLIT_TITLES[selected_on]} set" if figure in self.choosing else title

    def aim(self, result: Mapping[str, Any], figure: str) -> float:
        """What a search over options goes by: the figure of the validation set, or, without one, of the test set.

        A number that was not finite, null in a result, counts as worse than any other: minus infinity where a larger
        one is better, else infinity.
        """
        key = self.result_key(figure)
        number = result.get(f"valid_{key}", result[key])
        if number is None:
            return -math.inf if self.higher_is_better else math.inf
        return float(number)

    def scores(self, model: nn.Module, batches: Batches, precision: str) -> dict[str, float | None]:
        """The model's numbers on every held-out set: ``test_top1`` and, where there is such a set, ``valid_top1``."""
        return {
            f"{split}_{name}": value
            for split in held_out_splits(batches.data)
            for name, value in self.score(model, batches, split, precision).items()
            if name != "samples"
        }

    def selected_on(self, record: Record) -> str:
        """The set that chooses epochs: ``"valid"`` where a scored record has such numbers, else ``"test"``."""
        return "valid" if f"valid_{self.measure}" in record else "test"

    def is_scored(self, record: Record) -> bool:
        """Whether the epoch of a record has been scored."""
        return f"test_{self.measure}" in record

    def value(self, record: Record) -> float:
        """What epochs are compared by, the larger the better: the measure on the set that chooses, where it is."""
        number = record.get(f"{self.selected_on(record)}_{self.measure}")
        if number is None:
            return -math.inf
        return float(number) if self.higher_is_better else -float(number)

    def chosen(self, history: Sequence[Record]) -> int:
        """Number of the best scored record, counted from 0; the last one scored where none has a finite value.

        Raises:
            ValueError: no record with scores.
        """
        scored = [number for number, record in enumerate(history) if self.is_scored(record)]
        if not scored:
            raise ValueError("chosen expects at least one record with scores")
        later = 1 if self.later_wins else -1
        return max(scored, key=lambda number: (self.value(history[number]), later * number))


SPLIT_TITLES: Mapping[str, str] = {"valid": "validation", "test": "test"}


def held_out_splits(data: Any) -> tuple[str, ...]:
    """The sets of a data set that are scored: ``("valid", "test")``, or ``("test",)`` without a validation set."""
    return ("valid", "test") if data.valid is not None else ("test",)


def task_of(data: Any) -> Task:
    """The task of a data set of `mixaug.data`."""
    return REGRESSION if isinstance(data, RegressionSet) else CLASSIFICATION


def task_said(told: Mapping[str, Any]) -> Task:
    """The task of a result, under its measure; results of earlier versions are of classification and its usual one.

    Raises:
        ValueError: an unknown task, or a measure that it does not have.
    """
    name = str(told.get("task", CLASSIFICATION.name))
    if name not in TASKS:
        raise ValueError(f"task: expected one of {', '.join(TASKS)}, got {name!r:.80}")
    measure = told.get("measure")
    if measure is not None and not isinstance(measure, str):
        raise ValueError(f"measure: expected text, got {measure!r:.80}")
    return TASKS[name].measured_by(measure)


def task_named(data: str) -> Task:
    """The task of a data set by the name that `mixaug.data.load` knows it by; a name of another's is classification."""
    return REGRESSION if data in regression.LOADERS else CLASSIFICATION


#: So many epochs at the end count for these figures.
LAST_EPOCHS = 10
FIGURES_OF_LAST_EPOCHS = ("median10", "best10")


# -- classification -----------------------------------------------------------------------------------------------

RECALLS: Mapping[str, str] = {
    "mean_recall": "Mean recall",
    "min_recall": "Least recall",
    "gmean_recall": "G-mean of recalls",
    "hmean_recall": "H-mean of recalls",
}


def _score_classes(model: nn.Module, batches: Batches, split: str, precision: str) -> dict[str, float | None]:
    groups, world = batches.groups(split), batches.world
    scores = evaluate(
        model,
        batches.held_out(split),
        batches.data.num_classes,
        world.device,
        precision,
        groups=None if groups is None else groups[world.rank :: world.size],
        num_groups=0 if groups is None else int(groups.max()) + 1,
    )
    return {name: value for name, value in vars(scores).items() if value is not None}


def _summary_of_classes(task: Task, history: Sequence[Record]) -> dict[str, Any]:
    last, tail, chosen = history[-1], history[-LAST_EPOCHS:], task.chosen(history)
    selected_on = task.selected_on(last)

    def figures(key: str) -> dict[str, float | None]:
        whole = all(map(task.is_scored, tail))
        return {
            "last": last[key],
            "best": history[chosen][key],
            "median10": float(median([record[key] for record in tail])) if whole else None,
            "best10": tail[task.chosen(tail)][key] if whole else None,
        }

    def every(split: str, prefix: str) -> dict[str, float | None]:
        return {
            f"{prefix}{measure}_{figure}": value
            for measure in (CLASSIFICATION.measure, *CLASSIFICATION.measures)
            if f"{split}_{measure}" in last
            for figure, value in figures(f"{split}_{measure}").items()
        }

    return {
        **every("test", ""),
        "top5_last": last["test_top5"],
        "nll_last": last["test_nll"],
        "ece_last": last["test_ece"],
        **(every("valid", "valid_") if selected_on == "valid" else {}),
        "selected_on": selected_on,
        "selected_epoch": chosen + 1,
    }


def _line_of_classes(task: Task, record: Record) -> str:
    key, title = task.measure, task.title.lower()
    valid = f"valid {title} {record[f'valid_{key}']:.2f} %  " if f"valid_{key}" in record else ""
    return f"{valid}test {title} {record[f'test_{key}']:.2f} %  nll {record['test_nll']:.4f}"


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
    choosing=frozenset({"best", "best10"}),
    figure="last",
    every_detail=(
        Detail("valid_{measure}_{figure}", "Validation", 2),
        Detail("top1_{figure}", "Top-1 (%)", 2),
        *(Detail(f"{name}_{{figure}}", title, 2, frozenset(RECALLS)) for name, title in RECALLS.items()),
        Detail("worst_group_{figure}", "Worst group", 2),
        Detail("nll_last", "NLL", 3),
        Detail("ece_last", "ECE", 3),
    ),
    score=_score_classes,
    later_wins=False,
    summarise=_summary_of_classes,
    tell=_line_of_classes,
    measures={**RECALLS, "worst_group": "Worst group"},
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


def _summary_of_numbers(task: Task, history: Sequence[Record]) -> dict[str, Any]:
    # The later of equal epochs wins, as in the code of C-Mixup.
    chosen = task.chosen(history)
    taken = {"selected": history[chosen], "last": history[-1]}
    numbers = {
        f"{name}_{figure}": record[f"test_{name}"]
        for figure, record in taken.items()
        for name in _ERRORS
        if f"test_{name}" in record
    }
    valid = {f"valid_rmse_{figure}": record["valid_rmse"] for figure, record in taken.items()}
    return {**numbers, **valid, "selected_on": "valid", "selected_epoch": chosen + 1}


REGRESSION = Task(
    name="regression",
    measure="rmse",
    title="RMSE",
    unit="",
    digits=4,
    higher_is_better=False,
    figures={"selected": "epoch of lowest validation error", "last": "last epoch"},
    # The title of the figure says the set.
    choosing=frozenset(),
    figure="selected",
    every_detail=(
        Detail("valid_rmse_{figure}", "Validation", 4),
        Detail("mae_{figure}", "MAE", 4),
        Detail("mape_{figure}", "MAPE (%)", 3),
        Detail("r2_{figure}", "R2", 4),
        Detail("worst_rmse_{figure}", "worst group", 4),
    ),
    score=_score_numbers,
    later_wins=True,
    summarise=_summary_of_numbers,
    tell=lambda _, record: f"valid RMSE {_shown(record['valid_rmse'])}  test RMSE {_shown(record['test_rmse'])}",
)


def _shown(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


TASKS: Mapping[str, Task] = {task.name: task for task in (CLASSIFICATION, REGRESSION)}
