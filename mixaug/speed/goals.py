"""Goal ratios and whether a run reached them, beyond the run's own spread."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mixaug.speed.sections import PLAIN, Row

GOALS = Path(__file__).parent / "goals.csv"
LARGE_SIDE = 128


@dataclass(frozen=True)
class Goal:
    """Goal of a job: a multiple of the floor, and a fraction of the best peer.

    ``recorded_peer_x_floor`` stands in for a peer that cannot be installed beside the others: what it
    cost, in floors of its own run, when it was measured (docs/speed.md).
    """

    job: str
    per: str
    where: str
    x_floor: float | None
    x_best_peer: float | None
    recorded_peer: str
    recorded_peer_x_floor: float | None


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
                job=line["policy"],
                per=line["per"],
                where=line["where"],
                x_floor=_number(line["x_floor"]),
                x_best_peer=_number(line["x_best_peer"]),
                recorded_peer=line["recorded_peer"],
                recorded_peer_x_floor=_number(line["recorded_peer_x_floor"]),
            )
            for line in csv.DictReader(file)
        ]


def judge(rows: Iterable[Row], goals: Iterable[Goal]) -> list[Verdict]:
    """Verdicts on float32 CPU mixing rows: the better of ``out=`` and in place for every job."""
    kept: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        if row.section != "mixing" or row.library != PLAIN or row.output not in ("out", "inplace"):
            continue
        key = (row.regime, row.job, row.per)
        if key not in kept or row.floor.median < kept[key].floor.median:
            kept[key] = row
    verdicts = []
    for row in kept.values():
        where = "large" if int(row.regime.split()[0].split("x")[-1]) >= LARGE_SIDE else "small"
        for goal in goals:
            if (goal.job, goal.per, goal.where) != (row.job, row.per, where):
                continue
            if goal.x_floor is not None:
                verdicts.append(Verdict(row, "floors", goal.x_floor, row.floor.median, row.floor.low))
            if goal.x_best_peer is not None and row.against_best_peer is not None:
                ratio = row.against_best_peer
                what = f"of {row.best_peer}"
                verdicts.append(Verdict(row, what, goal.x_best_peer, ratio.median, ratio.low))
            elif goal.x_best_peer is not None and goal.recorded_peer_x_floor is not None:
                peer = goal.recorded_peer_x_floor
                what = f"of {goal.recorded_peer}, as recorded"
                verdicts.append(Verdict(row, what, goal.x_best_peer, row.floor.median / peer, row.floor.low / peer))
    return verdicts


def _number(text: str) -> float | None:
    return float(text) if text else None
