"""Which runs make one row of a table, which rows one table, and which row the others are compared with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any

from mixaug.engine.config import without_defaults
from mixaug.engine.lengths import epochs_at_equal_cost, fault_of_budget
from mixaug.engine.tasks import CLASSIFICATION, Task
from mixaug.leaderboard.collect import Run
from mixaug.leaderboard.command import brought_by, is_location, settings_of
from mixaug.leaderboard.published import LOCATIONS

__all__ = [
    "BASELINE",
    "Budget",
    "Group",
    "Setting",
    "baseline_for",
    "budget_of",
    "differing",
    "groups_of",
    "key_of",
    "row_and_seed",
    "shown",
    "split_by_setting",
    "without_place",
]

BASELINE = "none"
PLAIN_OBJECTIVES = {"classification": "cross_entropy", "regression": "squared_error"}
"""The objective of the rows that others are compared with, where a table has several of the baseline policy."""


@dataclass(frozen=True)
class Setting:
    """What the rows of one board share."""

    model: str
    data: str
    data_options: str  # JSON with sorted keys, without where the data lies
    protocol: str
    epochs: int  # at equal cost those of a run that costs nothing beside plain training
    task: Task = CLASSIFICATION
    at_equal_cost: bool = False

    @property
    def title(self) -> str:
        options = json.loads(self.data_options)
        told = ", ".join(f"{key}={shown(value)}" for key, value in options.items())
        told = f"{self.model} on {self.data}" + (f" ({told})" if told else "")
        return f"{told} at equal cost" if self.at_equal_cost else told


@dataclass
class Group:
    """The runs of one row.

    Attributes:
        policy, policy_options: as in result.json.
        objective: name of the objective; empty for the plain one of the task, and where no config says it.
        objective_options: its options by dotted keys, ``objective.eta``.
        brought: networks, streams and views, by dotted keys.
        settings: the others, by dotted keys.
        finished: one run per seed, sorted by seed.
        failed: runs that failed, for seeds without a finished one.
        is_baseline: whether other rows are compared with this one, see `baseline_for`.
    """

    policy: str
    policy_options: Mapping[str, Any]
    objective: str
    objective_options: Mapping[str, Any]
    brought: Mapping[str, Any]
    settings: Mapping[str, Any]
    finished: list[Run] = field(default_factory=list)
    failed: list[Run] = field(default_factory=list)
    is_baseline: bool = False

    @property
    def key(self) -> str:
        """All that tells the row from others: the same on every board on which it stands."""
        told = (self.policy_options, self.objective_options, self.brought, self.settings)
        return json.dumps([self.policy, self.objective, *map(key_of, told)])

    @property
    def runs(self) -> list[Run]:
        """Finished and failed ones, sorted by seed."""
        return sorted([*self.finished, *self.failed], key=lambda run: int(run.identity["seed"]))


def split_by_setting(runs: Iterable[Run]) -> dict[Setting, list[Run]]:
    """Finished and failed runs by what a board shares; without boards on which nothing has finished.

    Runs that were shortened to cost as much as others have boards of their own. A run whose length that left as it was
    stands on both kinds of boards, if the other runs of both are there.
    """
    found: dict[Setting, list[Run]] = {}
    budgets: list[tuple[Run, Budget]] = []
    for run in runs:
        if not run.identity:
            continue
        budget = budget_of(run)
        if budget is not None:
            budgets.append((run, budget))
        if budget is None or budget.rule == "equal_epochs":
            found.setdefault(_setting_of(run), []).append(run)
    lengths = {replace(_setting_of(run), epochs=b.epochs, at_equal_cost=True) for run, b in budgets if b.is_shortened}
    for run, budget in budgets:
        at_cost = replace(_setting_of(run), epochs=budget.epochs, at_equal_cost=True)
        if budget.rule == "equal_cost" or (at_cost in lengths and budget.is_kept_at_equal_cost):
            found.setdefault(at_cost, []).append(run)
        if budget.rule == "equal_cost" and _setting_of(run) in found and budget.epochs == int(run.identity["epochs"]):
            found[_setting_of(run)].append(run)
    return {setting: members for setting, members in found.items() if any(run.status == "finished" for run in members)}


@dataclass(frozen=True)
class Budget:
    """What a run's config says of its length.

    Attributes:
        rule: ``"equal_epochs"`` or ``"equal_cost"``.
        epochs: that were asked for.
        cost: operations of a step, as a multiple of a plain one's.
    """

    rule: str
    epochs: int
    cost: float

    @property
    def is_kept_at_equal_cost(self) -> bool:
        """Whether the run at equal cost would be as long as it was asked to be."""
        return epochs_at_equal_cost(self.epochs, self.cost) == self.epochs

    @property
    def is_shortened(self) -> bool:
        return self.rule == "equal_cost" and not self.is_kept_at_equal_cost


def budget_of(run: Run) -> Budget | None:
    """What the run's config says; None where there is nothing, or nothing that can be used."""
    told = run.config.get("budget")
    if told is None and run.identity["policy"] == BASELINE and run.objective == PLAIN_OBJECTIVES[run.task.name]:
        # This is the plain step.
        return Budget("equal_epochs", int(run.identity["epochs"]), 1.0)
    if not isinstance(told, Mapping) or fault_of_budget(told):
        return None
    return Budget(told["rule"], told["epochs"], float(told["cost"]))


def groups_of(setting: Setting, runs: Sequence[Run], problems: list[str]) -> list[Group]:
    """The rows of one board.

    Args:
        setting: the board's.
        runs: its finished and failed runs.
        problems: gets a line for every run that is left out, since its seed was run before.
    """
    groups: dict[str, Group] = {}
    for run in runs:
        settings = settings_of(run)
        options = {key: value for key, value in settings.items() if key.startswith("objective.")}
        group = Group(
            policy=run.identity["policy"],
            policy_options=run.identity.get("policy_options") or {},
            objective="" if run.objective == PLAIN_OBJECTIVES[setting.task.name] else run.objective,
            objective_options=options,
            brought=brought_by(run),
            settings={key: value for key, value in settings.items() if key not in options},
        )
        group = groups.setdefault(group.key, group)
        (group.finished if run.status == "finished" else group.failed).append(run)
    for group in groups.values():
        group.finished = _one_per_seed(group.finished, problems)
        finished = {run.identity["seed"] for run in group.finished}
        failed = {run.identity["seed"]: run for run in reversed(group.failed) if run.identity["seed"] not in finished}
        group.failed = [failed[seed] for seed in sorted(failed)]
    unmixed = [group for group in groups.values() if group.policy == BASELINE and group.finished]
    plain = [group for group in unmixed if not group.objective]
    for group in plain or unmixed:
        group.is_baseline = True
    return list(groups.values())


def row_and_seed(run: Run) -> tuple[str, int]:
    """The key of the row that a finished or failed run is of, on whichever board, and its seed."""
    (group,) = groups_of(_setting_of(run), [run], [])
    return group.key, int(run.identity["seed"])


def baseline_for(group: Group, groups: Sequence[Group]) -> tuple[Group | None, str]:
    """The row that one is compared with, and a note where that is not quite like it.

    It mixes nothing and minimises the plain objective, whatever the row's is; where no such run has finished, the
    row's own objective. Of several, it is the one with the same settings, and the same options of the objective as far
    as both have them. One that is the only one may differ, which the note tells.
    """
    baselines = [other for other in groups if other.is_baseline and other.objective in ("", group.objective)]
    if not baselines:
        return None, f"no finished run of {BASELINE}"
    same = [other for other in baselines if not _apart(group, other)]
    if len(same) == 1:
        return same[0], ""
    if same:
        return None, f"several rows of {BASELINE} that differ in nothing this row has"
    if len(baselines) > 1:
        return None, f"no {BASELINE} under these settings"
    [other] = baselines
    theirs = {**other.settings, **other.objective_options}
    told = {key: without_place(key, theirs.get(key)) for key in _apart(group, other)}
    return other, f"{BASELINE} ran with " + ", ".join(f"{key}={shown(value)}" for key, value in told.items())


def _apart(group: Group, other: Group) -> list[str]:
    """Settings in which two rows differ; of options of different objectives those that both have."""
    ours, theirs = dict(group.objective_options), dict(other.objective_options)
    if group.objective != other.objective:
        both = (set(ours) & set(theirs)) - {"objective._target_"}
        ours, theirs = ({key: options[key] for key in both} for options in (ours, theirs))
    return differing([{**group.settings, **ours}, {**other.settings, **theirs}])


def differing(mappings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys whose values are not the same in all of the mappings, sorted."""
    keys = sorted({key for mapping in mappings for key in mapping})
    return [key for key in keys if len({key_of({"v": mapping.get(key)}) for mapping in mappings}) > 1]


def key_of(value: Mapping[str, Any] | None) -> str:
    """A mapping as text, the same for the same content."""
    return json.dumps(value or {}, sort_keys=True, default=str)


def without_place(key: str, value: object) -> object:
    """A setting; of a run that weights are taken from the folder's name, and the checkpoint's where one is named."""
    if value is None or not is_location(key):
        return value
    parts = PurePath(str(value)).parts
    return "/".join(parts[-2:] if parts[-1:] and parts[-1].endswith(".pt") else parts[-1:])


def shown(value: object) -> str:
    """A value as a page shows it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _one_per_seed(members: Sequence[Run], problems: list[str]) -> list[Run]:
    kept: dict[int, Run] = {}
    for run in members:
        seed = int(run.identity["seed"])
        if seed in kept:
            problems.append(f"{run.name}: seed {seed} was also run in {kept[seed].name}, which counts")
        else:
            kept[seed] = run
    return [kept[seed] for seed in sorted(kept)]


def _setting_of(run: Run) -> Setting:
    told = run.identity
    given = {"name": told["data"], **(told.get("data_options") or {})}
    options = {
        key: value
        for key, value in without_defaults(given).items()
        if key not in LOCATIONS | {"name"} and value is not None
    }
    return Setting(told["model"], told["data"], key_of(options), told["protocol"], int(told["epochs"]), run.task)
