"""Goal ratios and whether a run reached them, beyond the run's own spread."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from speed.sections import PLAIN, Row

GOALS = Path(__file__).parent / "goals.csv"
#: The unit of each section's goals: a goal is a multiple of it.
UNITS = {"mixing": "floors", "loss": "of log_softmax", "step": "steps of none", "resident": "of steps on one batch"}


@dataclass(frozen=True, kw_only=True)
class Goal:
    """Goal of a section's rows: a multiple of the floor or reference, of a fresh lerp, of memory, of the best peer.

    Empty words stand for any. ``output`` "kept" is the better of ``out=`` and in place. ``recorded_peer_x_floor``
    stands in for a peer that cannot be installed beside the others: what it cost, in floors of its own run, when it
    was measured (docs/speed.md).
    """

    section: str
    job: str = ""
    per: str = ""
    where: str = ""
    output: str = ""
    device: str = ""
    x_floor: float | None = None
    x_fresh_lerp: float | None = None
    x_memory: float | None = None
    x_best_peer: float | None = None
    recorded_peer: str = ""
    recorded_peer_x_floor: float | None = None


@dataclass(frozen=True)
class Verdict:
    """A row beside its goal; ``missed`` only when the goal lies outside the run's own spread."""

    row: Row
    what: str
    goal: float
    got: float
    best_of_run: float

    @property
    def reached(self) -> bool:
        return self.got <= self.goal

    @property
    def missed(self) -> bool:
        return self.best_of_run > self.goal


def read_goals(path: Path = GOALS) -> list[Goal]:
    """Goals from a CSV file with the columns of goals.csv."""
    with path.open(newline="") as file:
        return [
            Goal(
                section=line["section"],
                job=line["job"],
                per=line["per"],
                where=line["where"],
                output=line["output"],
                device=line["device"],
                x_floor=_number(line["x_floor"]),
                x_fresh_lerp=_number(line["x_fresh_lerp"]),
                x_memory=_number(line["x_memory"]),
                x_best_peer=_number(line["x_best_peer"]),
                recorded_peer=line["recorded_peer"],
                recorded_peer_x_floor=_number(line["recorded_peer_x_floor"]),
            )
            for line in csv.DictReader(file)
        ]


def judge(rows: Iterable[Row], goals: Iterable[Goal], device: str = "cpu") -> list[Verdict]:
    """Verdicts on our rows that have goals.

    Args:
        rows: those with a ``goal_section`` are judged; of ``out=`` and in place the better one.
        goals: see :func:`read_goals`.
        device: type of the device of the run, "cpu" or "cuda".
    """
    goals = list(goals)
    verdicts: list[Verdict] = []
    for output, row in kept(rows):
        conditions = {"section": row.goal_section, "job": row.job, "per": row.per, "where": row.where, "output": output}
        conditions["device"] = device
        for goal in goals:
            if all(getattr(goal, name) in ("", value) for name, value in conditions.items()):
                verdicts += _verdicts(row, goal)
    return verdicts


def kept(rows: Iterable[Row]) -> list[tuple[str, Row]]:
    """Our rows that are judged with the word for their output: of ``out=`` and in place the better one, "kept"."""
    judged: dict[tuple[str, ...], tuple[str, Row]] = {}
    for row in rows:
        if row.library != PLAIN or not row.goal_section:
            continue
        output = "kept" if row.output in ("out", "inplace") else row.output
        key = (row.section, row.setting, row.job, row.per, output)
        if key not in judged or row.floor.median < judged[key][1].floor.median:
            judged[key] = output, row
    return list(judged.values())


def _verdicts(row: Row, goal: Goal) -> Iterator[Verdict]:
    if goal.x_floor is not None:
        yield Verdict(row, UNITS[goal.section], goal.x_floor, row.floor.median, row.floor.low)
    if goal.x_fresh_lerp is not None and row.fresh_lerp is not None:
        yield Verdict(row, "fresh lerps", goal.x_fresh_lerp, row.fresh_lerp.median, row.fresh_lerp.low)
    if goal.x_memory is not None and row.memory is not None:
        yield Verdict(row, "of the memory of none", goal.x_memory, row.memory, row.memory)
    if goal.x_best_peer is None:
        return
    if row.against_best_peer is not None:
        ratio = row.against_best_peer
        yield Verdict(row, f"of {row.best_peer}", goal.x_best_peer, ratio.median, ratio.low)
    elif goal.recorded_peer_x_floor is not None:
        peer = goal.recorded_peer_x_floor
        what = f"of {goal.recorded_peer}, as recorded"
        yield Verdict(row, what, goal.x_best_peer, row.floor.median / peer, row.floor.low / peer)


def _number(text: str) -> float | None:
    return float(text) if text else None
