"""Runs to boards: one board per setting (model, data, protocol, epochs), one row per policy and objective.

Every number of a row is a statistic over its seeds.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mixaug.engine.tasks import Task
from mixaug.leaderboard import published, reruns
from mixaug.leaderboard.collect import STATISTICS, Run
from mixaug.leaderboard.command import departures, objective_defaults, processes_of, regenerate
from mixaug.leaderboard.grouping import (
    BASELINE,
    Group,
    Setting,
    baseline_for,
    budget_of,
    differing,
    groups_of,
    key_of,
    shown,
    split_by_setting,
    without_place,
)
from mixaug.leaderboard.statistics import (
    PairedDifference,
    Summary,
    difference_p_value,
    holm,
    paired_difference,
    ratio_of_medians,
    summarise,
)
from mixaug.near import did_you_mean

__all__ = ["BASELINE", "Board", "Leaderboard", "Row", "aggregate"]

ORDER = ("data", "data_options", "model", "protocol", "epochs", "at_equal_cost")
"""Boards are sorted by these."""

MATCHES = {"classification": published.match, "regression": reruns.match}


@dataclass(frozen=True)
class Row:
    """One policy and objective under one setting, over its seeds."""

    key: str  # the same on every board on which the row stands, see `mixaug.leaderboard.grouping.Group.key`
    policy: str
    policy_options: Mapping[str, Any]
    objective: str  # empty for the plain one of the task
    objective_options: Mapping[str, Any]  # of another one: what is set away from its defaults, by dotted keys
    settings: Mapping[str, Any]  # other settings in which this row differs from the rest of its board
    task: Task
    runs: tuple[Run, ...]  # finished ones, one per seed, sorted by seed
    failed: tuple[Run, ...]  # runs of further seeds that failed
    statistic: str
    score: Summary | None  # None where every seed failed
    is_baseline: bool
    difference: PairedDifference | None
    p_value: float | None
    adjusted_p_value: float | None  # after Holm, for all differences of the board
    expected: float | None  # the baseline's mean and the paired difference, which is what rows are ranked by
    time_ratio: float | None
    memory_ratio: float | None
    published: published.Match
    notes: tuple[str, ...]
    command: str

    @property
    def verdict(self) -> str:
        """``"better"`` or ``"worse"`` where that holds for all rows of the board taken together, else ``"unclear"``."""
        if self.difference is None or self.adjusted_p_value is None:
            return "unclear"
        return self.difference.verdict if self.adjusted_p_value <= 1 - self.difference.confidence else "unclear"

    @property
    def name(self) -> str:
        """Policy and objective: ``"mixup"``, ``"mixup + regmixup"``."""
        return f"{self.policy} + {self.objective}" if self.objective else self.policy

    @property
    def options(self) -> str:
        """The strength of the policy and everything set away from its default, as text."""
        usual = published.policy_defaults(self.policy)
        told = {
            k: v
            for k, v in self.policy_options.items()
            if "alpha" in k or key_of({"v": usual.get(k)}) != key_of({"v": v})
        }
        every = {**told, **self.objective_options, **self.settings}
        return ", ".join(f"{key}={shown(value)}" for key, value in every.items())

    @property
    def label(self) -> str:
        return f"{self.name} ({self.options})" if self.options else self.name

    @property
    def cost(self) -> float | None:
        """Operations of a training step, as a multiple of a plain one's; None where no config says it."""
        budgets = [budget_of(run) for run in (*self.runs, *self.failed)]
        costs = [budget.cost for budget in budgets if budget is not None]
        return sum(costs) / len(costs) if costs else None

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(int(run.result["seed"]) for run in self.runs)

    @property
    def failed_seeds(self) -> tuple[int, ...]:
        return tuple(int(run.identity["seed"]) for run in self.failed)

    def values(self, key: str) -> list[float]:
        """The values of one result key over the seeds, seeds without it left out."""
        return [float(run.result[key]) for run in self.runs if run.result.get(key) is not None]

    def values_of_statistic(self) -> list[float]:
        """The number of each seed under the chosen statistic."""
        return self.values(self.task.result_key(self.statistic))

    def summary(self, key: str) -> Summary | None:
        """Mean and spread of any number in result.json, None where no run has it."""
        values = self.values(key)
        return summarise(values) if values else None


@dataclass(frozen=True)
class Board:
    """All rows of one setting, ranked.

    ``statistic`` is one of its task's figures, ``usual_statistic`` the one that its protocol reports.
    """

    setting: Setting
    rows: tuple[Row, ...]
    statistic: str
    usual_statistic: str

    @property
    def task(self) -> Task:
        """What the runs predict."""
        return self.setting.task

    @property
    def statistic_title(self) -> str:
        """How the number of a run was taken."""
        return self.task.title_of(self.statistic, self.selected_on)

    @property
    def selected_on(self) -> str:
        """The set that chose among epochs, ``"valid"`` or ``"test"``: one for all rows, whose data are the same."""
        return next(run for row in self.rows for run in row.runs).selected_on

    @property
    def baseline(self) -> Row | None:
        return next((row for row in self.rows if row.is_baseline), None)


@dataclass(frozen=True)
class Leaderboard:
    """Boards, and every run that is not in one of them with the reason why."""

    boards: tuple[Board, ...]
    confidence: float
    left_out: tuple[Run, ...] = ()
    problems: tuple[str, ...] = field(default=())

    @property
    def other_statistic(self) -> str:
        """The statistic that was asked for, where that is not the protocols' own; else empty."""
        return next((board.statistic for board in self.boards if board.statistic != board.usual_statistic), "")


def aggregate(
    runs: Iterable[Run], *, statistic: str | None = None, confidence: float = 0.95, hide_paths: bool = False
) -> Leaderboard:
    """Group runs into boards and compare each policy and objective with ``none`` over the seeds both have.

    Failed runs are counted in their rows. Rows are ranked by the paired difference, so that a row whose worst seed
    failed gains nothing by it; one without a difference by its own mean; one of which every seed failed comes last.

    Args:
        runs: records as :func:`collect` returns them.
        statistic: which number of a run counts: ``"last"``, ``"best"``, ``"median10"`` or ``"best10"`` in
            classification, ``"selected"`` or ``"last"`` in regression; None takes that of the runs' protocol
            (``protocol.figure``), or, where they do not agree on it, the task's, ``"last"`` and ``"selected"``.
        confidence: coverage of the intervals, in (0, 1).
        hide_paths: write ``<folder>`` for where the data lies in the commands, for pages that others read.

    Raises:
        ValueError: for an unknown statistic, one that runs among these do not have, or a confidence outside (0, 1).
    """
    if statistic is not None and statistic not in STATISTICS:
        raise ValueError(
            f"statistic: expected one of {', '.join(STATISTICS)}, got {statistic!r}"
            f"{did_you_mean(statistic, STATISTICS)}"
        )
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence: expected a number strictly between 0 and 1, got {confidence!r}")
    runs = list(runs)
    problems = [f"{run.name}: {problem}" for run in runs for problem in run.problems]

    grouped = split_by_setting(runs)
    for setting, members in grouped.items():
        if statistic is not None and statistic not in setting.task.figures:
            raise ValueError(
                f"statistic: {statistic!r} is not taken in {setting.task.name} ({setting.title}); "
                f"there it is one of {', '.join(setting.task.figures)}"
            )
        _check_scored(members, setting.task.result_key(statistic or _usual_statistic(setting.task, members)))
    boards = []
    for setting in sorted(grouped, key=operator.attrgetter(*ORDER)):
        usual = _usual_statistic(setting.task, grouped[setting])
        groups = groups_of(setting, grouped[setting], problems)
        rows = _rows(setting, groups, statistic or usual, confidence, hide_paths)
        boards.append(Board(setting, tuple(rows), statistic or usual, usual))
    left_out = tuple(run for run in runs if run.status != "finished")
    return Leaderboard(tuple(boards), confidence, left_out, tuple(problems))


def _usual_statistic(task: Task, members: Sequence[Run]) -> str:
    """The figure of the runs' protocol; the task's where they do not agree on one that all of them have."""
    finished = [run for run in members if run.status == "finished"]
    figures = {key_of({"v": (run.config.get("protocol") or {}).get("figure")}) for run in finished}
    for figure in task.figures:
        if figures == {key_of({"v": figure})}:
            return figure
    return task.figure


def _check_scored(members: Sequence[Run], key: str) -> None:
    """Raise where a run has no number under a statistic of its task."""
    for run in members:
        if run.status == "finished" and run.result[key] is None:
            raise ValueError(
                f"statistic: {run.name} has no {key}, since not all of its last epochs were scored; "
                "choose another statistic"
            )


def _rows(setting: Setting, groups: Sequence[Group], statistic: str, confidence: float, hide_paths: bool) -> list[Row]:
    rows = [
        replace(
            _row(setting, group, groups, statistic, confidence),
            settings=_settings_shown(group, groups),
            command=regenerate(group.runs, hide_paths=hide_paths),
        )
        for group in groups
    ]
    tested = [row for row in rows if row.p_value is not None]
    adjusted = iter(holm([row.p_value for row in tested if row.p_value is not None]))
    rows = [row if row.p_value is None else replace(row, adjusted_p_value=next(adjusted)) for row in rows]
    better = -1 if setting.task.higher_is_better else 1
    # Equal ones begin with the baseline.
    return sorted(
        rows,
        key=lambda row: (row.expected is None, better * (row.expected or 0.0), not row.is_baseline, row.label),
    )


def _settings_shown(group: Group, groups: Sequence[Group]) -> dict[str, Any]:
    """Settings in which a row differs from others of its board, and from others of its objective."""
    alike = [other for other in groups if other.objective == group.objective]
    told = {key: group.settings[key] for key in differing([o.settings for o in groups]) if key in group.settings}
    if not group.objective:
        keys = differing([other.objective_options for other in alike])
        told |= {key: group.objective_options[key] for key in keys if key in group.objective_options}
    brought = {key: group.brought[key] for key in differing([o.brought for o in alike]) if key in group.brought}
    return {key: without_place(key, value) for key, value in {**dict(sorted(told.items())), **brought}.items()}


def _row(setting: Setting, group: Group, groups: Sequence[Group], statistic: str, confidence: float) -> Row:
    task, policy, members = setting.task, group.policy, group.finished
    key = task.result_key(statistic)
    baseline, note = (None, "") if group.is_baseline else baseline_for(group, groups)
    notes = [note] if note else []
    ours, theirs = _by_seed(members, key), _by_seed(baseline.finished, key) if baseline is not None else {}
    score = summarise(list(ours.values())) if ours else None
    expected = None if score is None else score.mean
    difference = p_value = time_ratio = memory_ratio = None
    if group.failed:
        notes.append(_told_of_failures(group))
    if baseline is not None and members:
        difference = paired_difference(
            ours,
            theirs,
            confidence,
            higher_is_better=task.higher_is_better,
            step=_step(task, statistic, [*members, *baseline.finished]),
        )
        if difference is None:
            notes.append(f"no seed in common with {BASELINE}")
        else:
            expected = summarise(list(theirs.values())).mean + difference.mean
            if difference.n > 1:
                p_value = difference_p_value(difference, ours, theirs)
            notes += _told_of_difference(difference, group, task)
        if _machines(members) != _machines(baseline.finished):
            notes.append(f"not timed on the machine of {BASELINE}")
        else:
            time_ratio, memory_ratio = (
                ratio_of_medians(_by_seed(members, cost), _by_seed(baseline.finished, cost))
                for cost in ("step_ms", "peak_memory_mb")
            )
        learnt = ratio_of_medians(_by_seed(members, "prepare_seconds"), _by_seed(members, "train_seconds"))
        if learnt is not None and learnt >= 0.02:
            notes.append(
                f"the time leaves out what the policy learnt beforehand, {learnt:.0%} of the training's seconds"
            )
    elif group.is_baseline:
        time_ratio = 1.0 if _by_seed(members, "step_ms") else None
        memory_ratio = 1.0 if _by_seed(members, "peak_memory_mb") else None
    every = group.runs
    foreign = sorted({name for run in every for name in _foreign_targets(run)})
    if foreign:
        notes.append(f"the command runs code outside of mixaug: {', '.join(foreign)}")
    found = MATCHES[task.name](
        policy=policy,
        policy_options=group.policy_options,
        model=setting.model,
        data=setting.data,
        data_options=json.loads(setting.data_options),
        protocol=setting.protocol,
        epochs=int(every[0].identity["epochs"]),
        departures=departures(every[0]),
    )
    if found.figure is not None:
        notes += _told_of_processes(every[0])
    return Row(
        key=group.key,
        policy=policy,
        policy_options=group.policy_options,
        objective=group.objective,
        objective_options=_away_from_file(group.objective, group.objective_options) if group.objective else {},
        settings={},
        task=task,
        runs=tuple(members),
        failed=tuple(group.failed),
        statistic=statistic,
        score=score,
        is_baseline=group.is_baseline,
        difference=difference,
        p_value=p_value,
        adjusted_p_value=None,
        expected=expected,
        time_ratio=time_ratio,
        memory_ratio=memory_ratio,
        published=found,
        notes=tuple(notes),
        command="",
    )


def _told_of_failures(group: Group) -> str:
    seeds = _listed([int(run.identity["seed"]) for run in group.failed])
    rest = "the mean is that of the others" if group.finished else "there is no mean"
    return f"{len(group.failed)} of {len(group.runs)} seeds failed ({seeds}): {rest}"


def _told_of_difference(difference: PairedDifference, group: Group, task: Task) -> list[str]:
    notes = []
    failed = {run.identity["seed"] for run in group.failed}
    missing = [seed for seed in difference.missing_ours if seed not in failed]
    if missing:
        notes.append(f"{group.policy} lacks seed {_listed(missing)}")
    if difference.missing_baseline:
        notes.append(f"{BASELINE} lacks seed {_listed(difference.missing_baseline)}")
    if difference.n == 1:
        notes.append("one seed: no interval")
    elif not difference.std:
        notes.append("all seeds differ by the same: without a spread there is no verdict")
    elif not difference.is_resolved:
        notes.append(
            f"the differences spread by {difference.std:.{task.digits}f}, less than the measure's step of "
            f"{difference.step:.{task.digits}f}: no verdict"
        )
    return notes


def _told_of_processes(run: Run) -> list[str]:
    processes = processes_of(run.config)
    if processes == 1:
        return []
    own = "draws" if run.config.get("sync_batchnorm") else "batch statistics and draws"
    return [f"{processes} processes share a batch, {run.config['batch_size']} samples each: {own} are each one's own"]


def _step(task: Task, statistic: str, members: Sequence[Run]) -> float:
    """The smallest change that the measure can show; 0 for one without steps, and where the runs do not say it."""
    samples = [run.result.get("test_samples") or 0 for run in members]
    if task.unit != "%" or min(samples) < 1:
        return 0.0
    # The median of ten lies between two values.
    return 100 / min(samples) / (2 if statistic == "median10" else 1)


def _away_from_file(objective: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an objective that differ from its shipped config file, all of one of somebody's own."""
    usual = objective_defaults(objective)
    return {
        key: value
        for key, value in options.items()
        if key != "objective._target_" and (key not in usual or key_of({"v": usual[key]}) != key_of({"v": value}))
    }


def _foreign_targets(run: Run) -> list[str]:
    if not run.config:
        return []
    from mixaug.engine.targets import foreign_targets

    return foreign_targets(run.config)


def _by_seed(members: Sequence[Run], key: str) -> dict[int, float]:
    return {int(r.result["seed"]): float(r.result[key]) for r in members if r.result.get(key) is not None}


def _machines(members: Sequence[Run]) -> set[str]:
    return {key_of({k: run.environment.get(k) for k in ("device", "threads", "world_size")}) for run in members}


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
