"""Runs to boards: one board per setting (model, data, protocol, epochs), one row per policy, statistics over seeds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mixaug.engine.config import without_defaults
from mixaug.engine.tasks import CLASSIFICATION, Task
from mixaug.leaderboard import published, reruns
from mixaug.leaderboard.collect import STATISTICS, Run
from mixaug.leaderboard.command import departures, regenerate, settings_of
from mixaug.leaderboard.statistics import (
    PairedDifference,
    Summary,
    paired_difference,
    ratio_of_medians,
    summarise,
)

__all__ = ["BASELINE", "Board", "Leaderboard", "Row", "aggregate"]

BASELINE = "none"
MATCHES = {"classification": published.match, "regression": reruns.match}


@dataclass(frozen=True)
class Setting:
    """What the rows of one board share."""

    model: str
    data: str
    data_options: str  # JSON with sorted keys, without where the data lies
    protocol: str
    epochs: int
    task: Task = CLASSIFICATION

    @property
    def title(self) -> str:
        options = json.loads(self.data_options)
        told = ", ".join(f"{key}={_plain(value)}" for key, value in options.items())
        return f"{self.model} on {self.data}" + (f" ({told})" if told else "")


@dataclass(frozen=True)
class Row:
    """One policy under one setting, over its seeds."""

    policy: str
    policy_options: Mapping[str, Any]
    settings: Mapping[str, Any]  # other settings in which this row differs from the rest of its board
    runs: tuple[Run, ...]  # one per seed, sorted by seed
    statistic: str
    score: Summary
    difference: PairedDifference | None
    time_ratio: float | None
    memory_ratio: float | None
    published: published.Match
    notes: tuple[str, ...]
    command: str

    @property
    def task(self) -> Task:
        """What the runs predict."""
        return self.runs[0].task

    @property
    def options(self) -> str:
        """The strength of the policy and everything set away from its default, as text."""
        usual = published.policy_defaults(self.policy)
        told = {
            k: v for k, v in self.policy_options.items() if "alpha" in k or _key({"v": usual.get(k)}) != _key({"v": v})
        }
        return ", ".join(f"{key}={_plain(value)}" for key, value in {**told, **self.settings}.items())

    @property
    def label(self) -> str:
        return f"{self.policy} ({self.options})" if self.options else self.policy

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(int(run.result["seed"]) for run in self.runs)

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
    """All policies of one setting, best mean first. ``statistic`` is one of its task's figures."""

    setting: Setting
    rows: tuple[Row, ...]
    statistic: str

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
        return self.rows[0].runs[0].selected_on

    @property
    def baseline(self) -> Row | None:
        return next((row for row in self.rows if row.policy == BASELINE), None)


@dataclass(frozen=True)
class Leaderboard:
    """Boards, and every run that is not in one of them with the reason why."""

    boards: tuple[Board, ...]
    confidence: float
    left_out: tuple[Run, ...] = ()
    problems: tuple[str, ...] = field(default=())


def aggregate(
    runs: Iterable[Run], *, statistic: str | None = None, confidence: float = 0.95, hide_paths: bool = False
) -> Leaderboard:
    """Group finished runs into boards and compare each policy with ``none`` over the seeds both have.

    Args:
        runs: records as :func:`collect` returns them.
        statistic: which number of a run counts: ``"last"``, ``"best"``, ``"median10"`` or ``"best10"`` in
            classification, ``"selected"`` or ``"last"`` in regression; None takes each task's usual one, ``"last"``
            and ``"selected"``.
        confidence: coverage of the intervals, in (0, 1).
        hide_paths: write ``<folder>`` for where the data lies in the commands, for pages that others read.

    Raises:
        ValueError: for an unknown statistic, one that runs among these do not have, or a confidence outside (0, 1).
    """
    if statistic is not None and statistic not in STATISTICS:
        raise ValueError(f"statistic: expected one of {', '.join(STATISTICS)}, got {statistic!r}")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence: expected a number strictly between 0 and 1, got {confidence!r}")
    runs = list(runs)
    problems = [f"{run.name}: {problem}" for run in runs for problem in run.problems]

    grouped: dict[Setting, dict[tuple[str, str, str], list[Run]]] = {}
    for run in runs:
        if run.status == "finished":
            key = (run.result["policy"], _key(run.result.get("policy_options")), _key(settings_of(run)))
            grouped.setdefault(_setting(run), {}).setdefault(key, []).append(run)

    for setting in grouped:
        if statistic is not None and statistic not in setting.task.figures:
            raise ValueError(
                f"statistic: {statistic!r} is not taken in {setting.task.name} ({setting.title}); "
                f"there it is one of {', '.join(setting.task.figures)}"
            )
        for members in grouped[setting].values():
            _check_scored(members, setting.task.result_key(statistic or setting.task.figure))
    boards = []
    for setting in sorted(grouped, key=lambda s: (s.data, s.data_options, s.model, s.protocol, s.epochs)):
        groups = {key: _one_per_seed(members, problems) for key, members in grouped[setting].items()}
        boards.append(_board(setting, groups, statistic or setting.task.figure, confidence, hide_paths))
    left_out = tuple(run for run in runs if run.status != "finished")
    return Leaderboard(tuple(boards), confidence, left_out, tuple(problems))


def _check_scored(members: Sequence[Run], key: str) -> None:
    """Raise where a run has no number under a statistic of its task."""
    for run in members:
        if run.result[key] is None:
            raise ValueError(
                f"statistic: {run.name} has no {key}, since not all of its last epochs were scored; "
                "choose another statistic"
            )


def _board(
    setting: Setting,
    groups: Mapping[tuple[str, str, str], Sequence[Run]],
    statistic: str,
    confidence: float,
    hide_paths: bool,
) -> Board:
    shown = _differing([json.loads(settings) for _, _, settings in groups])
    baselines = {settings: members for (policy, _, settings), members in groups.items() if policy == BASELINE}
    rows = []
    for (policy, options, settings), members in groups.items():
        own_settings = {key: json.loads(settings).get(key) for key in shown if key in json.loads(settings)}
        baseline, note = (None, "") if policy == BASELINE else _baseline_for(settings, baselines)
        command = regenerate(members, hide_paths=hide_paths)
        row = _row(setting, policy, json.loads(options), own_settings, members, baseline, note, statistic, confidence)
        rows.append(replace(row, command=command))
    better = -1 if setting.task.higher_is_better else 1
    rows.sort(key=lambda row: (better * row.score.mean, row.label))
    return Board(setting, tuple(rows), statistic)


def _row(
    setting: Setting,
    policy: str,
    options: Mapping[str, Any],
    settings: Mapping[str, Any],
    members: Sequence[Run],
    baseline: Sequence[Run] | None,
    baseline_note: str,
    statistic: str,
    confidence: float,
) -> Row:
    task = setting.task
    key = task.result_key(statistic)
    notes = [baseline_note] if baseline_note else []
    difference = time_ratio = memory_ratio = None
    if baseline is not None:
        difference = paired_difference(
            _by_seed(members, key), _by_seed(baseline, key), confidence, higher_is_better=task.higher_is_better
        )
        if difference is None:
            notes.append(f"no seed in common with {BASELINE}")
        else:
            if difference.missing_ours:
                notes.append(f"{policy} lacks seed {_listed(difference.missing_ours)}")
            if difference.missing_baseline:
                notes.append(f"{BASELINE} lacks seed {_listed(difference.missing_baseline)}")
            if difference.n == 1:
                notes.append("one seed: no interval")
        if _machines(members) != _machines(baseline):
            notes.append(f"not timed on the machine of {BASELINE}")
        else:
            time_ratio = ratio_of_medians(_by_seed(members, "step_ms"), _by_seed(baseline, "step_ms"))
            memory_ratio = ratio_of_medians(_by_seed(members, "peak_memory_mb"), _by_seed(baseline, "peak_memory_mb"))
        learnt = ratio_of_medians(_by_seed(members, "prepare_seconds"), _by_seed(members, "train_seconds"))
        if learnt is not None and learnt >= 0.02:
            notes.append(
                f"the time leaves out what the policy learnt beforehand, {learnt:.0%} of the training's seconds"
            )
    elif policy == BASELINE:
        time_ratio = 1.0 if _by_seed(members, "step_ms") else None
        memory_ratio = 1.0 if _by_seed(members, "peak_memory_mb") else None
    foreign = sorted({name for run in members for name in _foreign_targets(run)})
    if foreign:
        notes.append(f"the command runs code outside of mixaug: {', '.join(foreign)}")
    found = MATCHES[task.name](
        policy=policy,
        policy_options=options,
        model=setting.model,
        data=setting.data,
        data_options=json.loads(setting.data_options),
        protocol=setting.protocol,
        epochs=setting.epochs,
        departures=departures(members[0]),
    )
    return Row(
        policy=policy,
        policy_options=options,
        settings=settings,
        runs=tuple(members),
        statistic=statistic,
        score=summarise([float(run.result[key]) for run in members]),
        difference=difference,
        time_ratio=time_ratio,
        memory_ratio=memory_ratio,
        published=found,
        notes=tuple(notes),
        command="",
    )


def _baseline_for(settings: str, baselines: Mapping[str, Sequence[Run]]) -> tuple[Sequence[Run] | None, str]:
    """The baseline under the same settings; else the only one there is, with the settings it differs in."""
    if settings in baselines:
        return baselines[settings], ""
    if not baselines:
        return None, f"no finished run of {BASELINE}"
    if len(baselines) > 1:
        return None, f"no {BASELINE} under these settings"
    [(other, members)] = baselines.items()
    theirs, ours = json.loads(other), json.loads(settings)
    told = [f"{key}={_plain(theirs.get(key))}" for key in _differing([theirs, ours])]
    return members, f"{BASELINE} ran with {', '.join(told)}"


def _foreign_targets(run: Run) -> list[str]:
    if not run.config:
        return []
    from mixaug.engine.targets import foreign_targets

    return foreign_targets(run.config)


def _one_per_seed(members: Sequence[Run], problems: list[str]) -> list[Run]:
    kept: dict[int, Run] = {}
    for run in members:
        seed = int(run.result["seed"])
        if seed in kept:
            problems.append(f"{run.name}: seed {seed} was also run in {kept[seed].name}, which counts")
        else:
            kept[seed] = run
    return [kept[seed] for seed in sorted(kept)]


def _by_seed(members: Sequence[Run], key: str) -> dict[int, float]:
    return {int(r.result["seed"]): float(r.result[key]) for r in members if r.result.get(key) is not None}


def _machines(members: Sequence[Run]) -> set[str]:
    return {_key({k: run.environment.get(k) for k in ("device", "threads", "world_size")}) for run in members}


def _setting(run: Run) -> Setting:
    result = run.result
    given = {"name": result["data"], **(result.get("data_options") or {})}
    options = {
        key: value
        for key, value in without_defaults(given).items()
        if key not in published.LOCATIONS | {"name"} and value is not None
    }
    return Setting(result["model"], result["data"], _key(options), result["protocol"], int(result["epochs"]), run.task)


def _differing(mappings: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = sorted({key for mapping in mappings for key in mapping})
    return [key for key in keys if len({_key({"v": m.get(key)}) for m in mappings}) > 1]


def _key(value: Mapping[str, Any] | None) -> str:
    return json.dumps(value or {}, sort_keys=True, default=str)


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
