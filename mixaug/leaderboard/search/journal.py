"""What a search has done so far, a line for each event: an interrupted search reads it and goes on.

The file ``search.jsonl`` only grows. Each line is a JSON object; a torn or foreign one is left out and told. Reading it
executes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mixaug.engine.reading import DamagedFile, is_number, parse_json, read_text
from mixaug.engine.run import append_line
from mixaug.leaderboard.search.plan import Cost, Plan, Rung

__all__ = ["NAME", "RECOVERED", "Job", "Journal", "Standing"]

NAME = "search.jsonl"

RECOVERED = "recovered"
"""This state has a job whose command was killed: its epochs are in the run's folder, its start was timed by nobody."""

MOST_BYTES = 16 * 2**20
MOST_SEEDS = 1000


@dataclass(frozen=True)
class Job:
    """One command of a run: which trial, in which stage, from which epoch to which, and the seconds that it took.

    ``epoch_seconds`` is the mean time of its epochs, the first of a run left out where there are others.
    """

    stage: str
    trial: str
    seed: int
    begin: int
    end: int
    seconds: float
    epoch_seconds: float
    state: str
    reason: str = ""


@dataclass(frozen=True)
class Standing:
    """How a trial stands on a rung: its validation figure for each seed, or why it has none."""

    rung: int
    trial: str
    figures: tuple[float, ...]
    failed: str = ""

    @property
    def figure(self) -> float | None:
        """The mean over seeds; None for a failed trial."""
        return sum(self.figures) / len(self.figures) if self.figures and not self.failed else None


@dataclass(frozen=True)
class Ended:
    """A rung that is over: who goes on, the best first, with how many seeds, and what should be said of it."""

    rung: int
    kept: tuple[str, ...]
    seeds: int
    note: str = ""


@dataclass
class Journal:
    """The events of a search, in memory and on the disk.

    Attributes:
        folder: of the search.
        jobs, standings, ended: events in their order.
        plan: None before there is one.
        final_note: what should be said of the final comparison; None before it is over.
        final_seeds: seeds of the final comparison, each tried with every row; its board counts runs that failed.
        problems: lines that could not be read.
    """

    folder: Path
    jobs: list[Job] = field(default_factory=list)
    standings: list[Standing] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)
    plan: Plan | None = None
    final_seeds: tuple[int, ...] = ()
    final_note: str | None = None
    problems: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, folder: Path) -> Journal:
        """The journal of a folder; an empty one where there is none.

        Raises:
            DamagedFile: the file is no text of a search.
        """
        journal = cls(folder)
        try:
            lines = read_text(folder / NAME, MOST_BYTES).split("\n")
        except FileNotFoundError:
            return journal
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                event = parse_json(line, NAME)
                journal._take(event["event"], event)
            except (DamagedFile, KeyError, TypeError, ValueError):
                journal.problems.append(f"{NAME}: line {number} is no event of a search")
        return journal

    # -- events ------------------------------------------------------------------------------------------------

    def add_job(self, job: Job) -> None:
        """A command has ended."""
        self._write("job", asdict(job))

    def add_plan(self, plan: Plan) -> None:
        """The rungs are planned."""
        self._write("plan", {**asdict(plan), "rungs": [[r.trials, r.epochs, r.seeds] for r in plan.rungs]})

    def add_standing(self, standing: Standing) -> None:
        """A trial has been judged."""
        self._write("standing", asdict(standing))

    def end_rung(self, ended: Ended) -> None:
        """It is decided who goes on."""
        self._write("rung", asdict(ended))

    def end_final(self, seeds: list[int], note: str) -> None:
        """The final comparison is over."""
        self._write("final", {"seeds": seeds, "note": note})

    def _write(self, name: str, event: Mapping[str, Any]) -> None:
        record = {"event": name, **event}
        append_line(self.folder / NAME, record)
        self._take(name, record)

    def _take(self, name: str, event: Mapping[str, Any]) -> None:
        """Take an event into memory; KeyError, TypeError or ValueError where it is none."""
        if name == "job":
            self.jobs.append(
                Job(
                    stage=_text(event["stage"]),
                    trial=_text(event["trial"]),
                    seed=_whole(event["seed"]),
                    begin=_whole(event["begin"]),
                    end=_whole(event["end"]),
                    seconds=_seconds(event["seconds"]),
                    epoch_seconds=_seconds(event["epoch_seconds"]),
                    state=_text(event["state"]),
                    reason=_text(event["reason"]),
                )
            )
        elif name == "plan":
            rungs = tuple(Rung(*map(_whole, rung)) for rung in _list(event["rungs"]))
            if not all(1 <= rung.seeds <= MOST_SEEDS for rung in rungs):
                raise ValueError("a rung without seeds, or with too many")
            numbers = [_seconds(event[key]) for key in ("ratio", "rung_seconds", "final_seconds")]
            if not rungs:
                raise ValueError("a plan without rungs")
            self.plan = Plan(rungs, _whole(event["final_seeds"]), *numbers)
        elif name == "standing":
            figures = tuple(map(_number, event["figures"]))
            standing = Standing(_whole(event["rung"]), _text(event["trial"]), figures, _text(event["failed"]))
            # A rung that was interrupted while it was judged is judged again.
            self.standings = [s for s in self.standings if (s.rung, s.trial) != (standing.rung, standing.trial)]
            self.standings.append(standing)
        elif name == "rung":
            kept, seeds = tuple(map(_text, _list(event["kept"]))), _whole(event["seeds"])
            if not 1 <= seeds <= MOST_SEEDS:
                raise ValueError("a rung that goes on without seeds, or with too many")
            self.ended.append(Ended(_whole(event["rung"]), kept, seeds, _text(event["note"])))
        elif name == "final":
            self.final_seeds, self.final_note = tuple(map(_whole, event["seeds"])), _text(event["note"])
        else:
            raise ValueError(f"no event is called {name!r}")

    # -- what follows from them ----------------------------------------------------------------------------------

    def spent(self, stage: str | None = None) -> float:
        """Seconds of all commands, or of those of one stage."""
        return sum(job.seconds for job in self.jobs if stage in (None, job.stage))

    def epochs(self, stage: str) -> int:
        """Epochs that the commands of a stage trained."""
        return sum(job.end - job.begin for job in self.jobs if job.stage == stage)

    def reached(self, trial: str, seed: int) -> int:
        """The epoch up to which the seconds of a run are in the journal."""
        return max((job.end for job in self.jobs if (job.trial, job.seed) == (trial, seed)), default=0)

    def on_rung(self, rung: int) -> list[Standing]:
        """Those that have been judged there."""
        return [standing for standing in self.standings if standing.rung == rung]

    def end_of(self, rung: int) -> Ended | None:
        """How a rung ended; None while it has not."""
        return next((ended for ended in self.ended if ended.rung == rung), None)

    def cost(self, trial: str) -> Cost | None:
        """What a trial has been seen to cost; None where no command of it was measured.

        To start, what the first command took beside its epochs; for an epoch, what its longest command took for each.
        """
        # One that went on after a kill trained some epochs again, which its seconds hold and its epochs do not.
        killed = {(job.seed, job.end) for job in self.jobs if job.trial == trial and job.state == RECOVERED}
        own = [
            job
            for job in self.jobs
            if job.trial == trial and job.state == "finished" and job.end > job.begin
            if (job.seed, job.begin) not in killed
        ]
        if not own:
            return None
        first, longest = own[0], max(own, key=lambda job: job.end - job.begin)
        start = max(0.0, first.seconds - (first.end - first.begin) * first.epoch_seconds)
        epoch = longest.epoch_seconds
        if longest is not first:
            # Scores of epochs in between take time that is nobody's epoch.
            epoch = max(epoch, (longest.seconds - start) / (longest.end - longest.begin))
        return Cost(start, epoch)

    def recovered_epoch(self, trial: str) -> float | None:
        """Seconds an epoch of a trial by what killed commands left; None where none of its commands was killed."""
        known = [job.epoch_seconds for job in self.jobs if job.trial == trial and job.state == RECOVERED]
        return max(known, default=None)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("expected text")
    return " ".join(value.split())


def _list(value: Any) -> list[Any] | tuple[Any, ...]:
    # A tuple before it is written, a list when it is read.
    if not isinstance(value, (list, tuple)):
        raise TypeError("expected a list")
    return value


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TypeError("expected a whole number of at least 0")
    return value


def _number(value: Any) -> float:
    if not is_number(value):
        raise TypeError("expected a finite number")
    return float(value)


def _seconds(value: Any) -> float:
    number = _number(value)
    if number < 0:
        raise ValueError("expected a number of at least 0")
    return number
