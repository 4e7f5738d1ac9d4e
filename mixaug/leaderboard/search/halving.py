"""Successive halving: probe the costs, plan the rungs, climb them, compare the winner on the test set."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixaug.engine import build
from mixaug.engine.distributed import check_gpu
from mixaug.engine.errors import ConfigError
from mixaug.engine.lock import RunLock
from mixaug.engine.reading import is_number
from mixaug.engine.run import read_stops
from mixaug.engine.tasks import Task, task_of
from mixaug.leaderboard import Leaderboard, aggregate, collect, write
from mixaug.leaderboard.benchmark import Workers, check_folder, show
from mixaug.leaderboard.collect import read_epochs, read_run
from mixaug.leaderboard.grid import Cell
from mixaug.leaderboard.launch import cpu_seconds_of
from mixaug.leaderboard.progress import Outcome
from mixaug.leaderboard.render import terminal
from mixaug.leaderboard.search.journal import NAME, RECOVERED, Ended, Job, Journal, Standing
from mixaug.leaderboard.search.page import Report, write_pages
from mixaug.leaderboard.search.plan import (
    LEAST_OF_A_RUN,
    LEAST_SEEDS,
    BudgetTooSmall,
    Cost,
    affordable,
    in_seconds,
    make_plan,
    needed_at_least,
    seconds_of,
    whole_grid,
)
from mixaug.leaderboard.search.space import Space, Trial, read_space

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["run_search"]

PROBE, FINAL = "probe", "final"
CLOCKS = ("wall", "cpu")

#: Figures that are the best over a run's epochs so far, not those of one epoch.
OVER_EPOCHS = ("best", "best10", "selected")


def run_search(
    arguments: Sequence[str],
    *,
    budget: str | float,
    jobs: str | int | None = None,
    out: str | Path | None = None,
    clock: str = "wall",
    launch: str | None = None,
    config_dir: str | Path | None = None,
    console: Console | None = None,
) -> int:
    """Search, print and write the pages. The same call again goes on where it was.

    Args:
        arguments: overrides of ``mixaug train`` and of the search's settings, see
            :func:`mixaug.leaderboard.search.space.read_space`.
        budget: seconds that the commands of all runs may take together, or a time such as ``"30m"``. Two runs at a time
            spend two seconds in a second.
        jobs: runs at a time; None takes one per GPU, or one per core.
        out: folder of the search; None takes ``<root>/search-<hash>``.
        clock: what a second is: ``"wall"``, one of a run's command, or ``"cpu"``, one that its process computes, for a
            machine that others use as well (on Linux; a GPU's work is not in it).
        launch: ``"fork"`` or ``"command"``; None takes fork where the system has it.
        config_dir: folder of config files of one's own, see :func:`mixaug.engine.config.with_config_dir`.
        console: where to print; None takes the standard output.

    Returns:
        0, 1 if every trial failed, 130 after Ctrl-C.

    Raises:
        ConfigError: arguments that cannot be composed, data without a validation set, or a GPU where there is none.
        BudgetTooSmall: the budget has no room for the smallest search.
        ValueError: another option that cannot work.
        RunHeld: another process works on this search.
    """
    seconds = seconds_of(budget)
    if clock not in CLOCKS:
        raise ValueError(f"clock: expected {' or '.join(CLOCKS)}, got {clock!r}")
    if clock == "cpu" and cpu_seconds_of(os.getpid()) is None:
        raise ValueError("clock: 'cpu' needs Linux, whose processes say how long they computed")
    space = read_space(arguments, config_dir)
    check_gpu(str(space.config.device))
    data = build.load_data(space.config)
    if data.valid is None:
        raise ConfigError(
            f"data={space.config.data.name} has no validation set, on which a search chooses: data.valid_share=0.2 "
            "takes one from the training samples"
        )
    name = hashlib.sha256(f"{space.hash} {seconds} {clock}".encode()).hexdigest()[:10]
    try:
        task = task_of(data).measured_by(space.config.measure)
    except ValueError as error:
        raise ConfigError(f"measure={space.config.measure}: {error}") from error
    folder = Path(out) if out is not None else Path(space.config.root) / f"search-{name}"
    check_folder("root" if out is None else "out", folder)
    console = console or terminal()
    own = [] if config_dir is None else ["--config-dir", str(config_dir)]
    asked = [f"budget={budget}", *([] if clock == "wall" else [f"clock={clock}"])]
    asked += [] if out is None else [f"out={out}"]
    command = " ".join(map(shlex.quote, ["mixaug", "search", *own, *arguments, *asked]))
    workers = Workers.of(space.config, len(space.trials), jobs=jobs, launch=launch)
    settings = (space, task, seconds, clock, folder, command, workers, console)
    # A budget that is hopeless before anything is run leaves no folder.
    Search(*settings).check_budget()
    with RunLock(folder, lambda text: console.print(text, highlight=False, markup=False)) as lock:
        lock.take()
        search = Search(*settings)
        try:
            return search.run()
        except KeyboardInterrupt:
            search.write()
            search.say("stopped; the same command continues where it stopped")
            return 130


@dataclass
class Search:
    """A search at work."""

    space: Space
    task: Task
    budget: float
    clock: str
    folder: Path
    command: str
    workers: Workers
    console: Console

    def __post_init__(self) -> None:
        self.journal = Journal.open(self.folder)
        self._cells: dict[tuple[str, int, int | None], Cell] = {}
        self.trials: dict[str, Trial] = {trial.label: trial for trial in self.space.trials}
        figure = str(self.space.config.protocol.figure)
        self.figure = figure if figure in self.task.figures else self.task.figure
        self.board: Leaderboard | None = None
        self.winner: Trial | None = None

    def run(self) -> int:
        """To the end; what the journal has is not done again."""
        self.say(f"{len(self.trials)} trials, {in_seconds(self.budget)} s of training, {self.workers}; {self.folder}")
        for problem in self.journal.problems:
            self.say(f"noticed: {problem}")
        self._probe()
        alive = self._measured()
        if not alive:
            self.write()
            self.say("every trial failed; the page says why")
            return 1
        self._plan(alive)
        assert self.journal.plan is not None
        seeds = self.journal.plan.rungs[0].seeds
        for rung in range(len(self.journal.plan.rungs)):
            ended = self.journal.end_of(rung) or self._climb(rung, alive, seeds)
            self.write()
            alive, seeds = list(ended.kept), ended.seeds
            if unknown := [label for label in alive if label not in self.trials]:
                raise ConfigError(
                    f"{self.folder / NAME}: rung {rung + 1} goes on with {unknown}, no trials of this search"
                )
            if len(alive) < 2:
                break
        if not alive:
            self.say("every trial failed; the page says why")
            return 1
        self.winner = self.trials[alive[0]]
        self.say(f"the winner is {self.winner.label}")
        self._compare()
        for path in self.write():
            self.say(f"wrote {path}")
        self.say(f"spent {in_seconds(self.journal.spent())} of {in_seconds(self.budget)} s")
        return 0

    # -- stages ------------------------------------------------------------------------------------------------

    def _probe(self) -> None:
        """Train every trial for a few epochs, to measure what it costs."""
        if self.journal.plan is None:
            until = min(self.space.settings.probe_epochs, self.space.epochs)
            self.say(
                f"first a probe: every trial is trained for {until} epoch{'s' if until > 1 else ''} to measure what it "
                f"costs; from that follows how far the budget of {in_seconds(self.budget)} s trains which of them"
            )
            wanted = [(trial, self.space.seed, until) for trial in self.trials.values()]
            try:
                self._train(PROBE, wanted, self.check_budget)
            finally:
                self.write()

    def check_budget(self) -> None:
        """Raise once it is certain that the budget is too small, be it before anything is run."""
        settings, journal = self.space.settings, self.journal
        if journal.plan is not None:
            return
        # Of a command that was killed, the epochs it trained are not trained again.
        known = {label: self.cost(label) for label in self._measured()}
        failed = {job.trial for job in journal.jobs if job.state == "failed"} - set(known)
        left = [label for label in self.trials if label not in failed]
        rows = list({self.space.none.label, self.space.usual.label})
        plain, done = journal.cost(self.space.none.label), min(settings.probe_epochs, self.space.epochs)
        least = partial(needed_at_least, rows=rows, plain=plain, epochs=self.space.epochs, done=done, eta=settings.eta)
        needed = journal.spent() + least(known, left)
        if needed > self.budget:
            # What cannot be built fails at once. Trials are built, which takes a moment, only where it decides.
            left = [label for label in left if label in known or not self.trials[label].fault]
            needed = journal.spent() + least(known, left)
        if needed > self.budget:
            told = f"by what {len(known)} of them cost so far" if known else f"at {LEAST_OF_A_RUN} s a run"
            error = BudgetTooSmall(
                f"budget: {len(left)} trials and a final comparison of {len(rows)} rows or more with {LEAST_SEEDS} "
                f"seeds, {self.space.epochs} epochs each, take more than {in_seconds(needed)} s {told}, and the budget "
                f"is {in_seconds(self.budget)} s: give more, or fewer trials or epochs"
            )
            error.begun = bool(journal.jobs)
            raise error

    def _measured(self) -> list[str]:
        """Trials of which an epoch was timed, be it by a command that was killed afterwards."""
        journal = self.journal
        return [t for t in self.trials if journal.cost(t) is not None or journal.recovered_epoch(t) is not None]

    def _plan(self, alive: Sequence[str]) -> None:
        if self.journal.plan is not None:
            return
        settings, costs = self.space.settings, [self.cost(label) for label in alive]
        plan = make_plan(
            costs,
            self._final_costs(alive),
            available=self.budget - self.journal.spent(),
            epochs=self.space.epochs,
            done=min(settings.probe_epochs, self.space.epochs),
            eta=settings.eta,
            last_seeds=settings.last_seeds,
            final_seeds=settings.final_seeds,
        )
        self.journal.add_plan(plan)
        rungs = ", ".join(
            f"{rung.trials} to epoch {rung.epochs}" + (f" with {rung.seeds} seeds" if rung.seeds > 1 else "")
            for rung in plan.rungs
        )
        self.say(f"plan: {rungs}; then {plan.final_seeds} fresh seeds on the test set")

    def _climb(self, number: int, alive: Sequence[str], seeds: int) -> Ended:
        """Bring trials to the epoch of a rung, judge them on the validation set, and decide who goes on."""
        plan = self.journal.plan
        assert plan is not None
        rung, first = plan.rungs[number], self.space.seed
        self.say(f"rung {number + 1}: {len(alive)} trials to epoch {rung.epochs}")
        wanted = [(self.trials[label], first + k, rung.epochs) for k in range(seeds) for label in alive]
        failed = self._train(f"rung {number + 1}", wanted)
        for label in alive:
            self.journal.add_standing(self._judged(number, label, range(first, first + seeds), rung.epochs, failed))
        ranked = self.ranked(number)
        is_last = number + 1 == len(plan.rungs)
        kept, next_seeds, note = ranked[:1], 1, ""
        if not is_last and len(ranked) > 1:
            after = plan.rungs[number + 1]
            planned = ranked[: after.trials]
            a_final_seed = sum(cost.of(self.space.epochs) for cost in self._final_costs(planned))
            count = 0
            # Seeds of the final comparison go before trials that are to be trained further: a choice by unfinished
            # runs is the worse of both. They do not go for a trial more that only gets further seeds.
            enough = len(planned) if after.epochs > rung.epochs else min(2, len(planned))
            for finals in range(plan.final_seeds, 1, -1):
                count, next_seeds = affordable(
                    [self.cost(label) for label in planned],
                    room=self.budget - self.journal.spent() - finals * a_final_seed,
                    epochs=after.epochs,
                    done=rung.epochs,
                    seeds=after.seeds,
                )
                if count >= enough:
                    break
            if count < 2 <= len(planned):
                note = "the budget has no room for the next rung: the choice was made here"
            else:
                kept = planned[:count]
                if (count, next_seeds) != (len(planned), after.seeds):
                    note = f"the budget has room for {count} trials with {next_seeds} seeds on the next rung"
        ended = Ended(number, tuple(kept), max(1, next_seeds), note)
        self.journal.end_rung(ended)
        return ended

    def _compare(self) -> None:
        """Train none, the usual policy and the winner with fresh seeds, and look at the test set."""
        assert self.winner is not None
        rows = self.rows()
        wanted = self.space.fresh_seeds(self.space.settings.final_seeds)
        if self.journal.final_note is None:
            done: list[int] = []
            a_seed = sum(self.cost(trial.label).of(self.space.epochs) for trial in rows)
            wave = max(2, math.ceil(self.workers.jobs / len(rows)))
            note = ""
            while len(done) < len(wanted):
                batch = wanted[len(done) : len(done) + wave]
                todo = [(trial, seed) for seed in batch for trial in rows]
                if not all(self._cell(trial, seed, None).is_done() for trial, seed in todo):
                    left = max(0.0, self.budget - self.journal.spent())
                    room = math.floor(left / a_seed) if a_seed > 0 else len(batch)
                    if room < len(batch):
                        batch = batch[:room]
                        note = f"the budget has room for {len(done) + room} seeds"
                    if not batch or len(done) + len(batch) < 2:
                        break
                self._train(FINAL, [(trial, seed, None) for seed in batch for trial in rows])
                done += batch
                wave = max(1, math.ceil(self.workers.jobs / len(rows)))
            if len(done) < 2:
                note = "the budget has no room for a final comparison of two seeds: nothing is known of the test set"
            self.journal.end_final(done, note)
        folders = [self._cell(trial, seed, None).folder for seed in self.journal.final_seeds for trial in rows]
        folders = [folder for folder in folders if folder.is_dir()]
        if folders:
            self.board = aggregate(collect(folders))
            write(self.board, self.folder / "final")

    # -- runs --------------------------------------------------------------------------------------------------

    def _cell(self, trial: Trial, seed: int, until: int | None) -> Cell:
        key = trial.label, seed, until
        if key not in self._cells:
            stop = None if until is None or until >= self.space.epochs else until
            cell = trial.cell(self.folder / "runs", seed, stop)
            self._cells[key] = cell if until is not None else dataclasses.replace(cell, shown="test")
        return self._cells[key]

    def _train(
        self,
        stage: str,
        wanted: Sequence[tuple[Trial, int, int | None]],
        check: Callable[[], None] = lambda: None,
    ) -> dict[tuple[str, int], str]:
        """Bring runs to an epoch, None to the end; the reasons of those that failed, by trial and seed.

        ``check`` is called after each that finished, and ends the others by what it raises.
        """
        cells = [(trial.label, seed, self._cell(trial, seed, until)) for trial, seed, until in wanted]
        for label, seed, cell in cells:
            self._recover(stage, label, seed, cell)
        if all(cell.is_done() for _, _, cell in cells):
            return {}
        benchmark = self.workers.benchmark([cell for _, _, cell in cells])
        named = {
            id(outcome): (label, seed) for outcome, (label, seed, _) in zip(benchmark.outcomes, cells, strict=True)
        }
        noted: set[int] = set()

        def watch(outcomes: Sequence[Outcome]) -> None:
            fresh = [o for o in outcomes if o.state in ("finished", "failed", "stopped") and id(o) not in noted]
            for outcome in fresh:
                noted.add(id(outcome))
                self._note(stage, *named[id(outcome)], outcome)
            if any(outcome.state == "finished" for outcome in fresh):
                check()

        outcomes = show(benchmark, self.console, watch)
        return {named[id(outcome)]: outcome.reason for outcome in outcomes if outcome.state == "failed"}

    def _note(self, stage: str, label: str, seed: int, outcome: Outcome) -> None:
        epochs = _epoch_seconds(outcome.cell.folder)
        begin = self.journal.reached(label, seed)
        end = max(begin, max(epochs, default=0))
        seconds, mean = outcome.seconds, _mean_epoch(epochs, begin, end)
        if self.clock == "cpu":
            # Epochs are timed by the wall; the share that was computed is taken to be that of the whole command.
            seconds = outcome.cpu_seconds or 0.0
            mean *= seconds / outcome.seconds if outcome.seconds else 1.0
        if end > begin:
            mean = min(mean, seconds / (end - begin))
        self.journal.add_job(
            Job(
                *(stage, label, seed, begin, end, seconds),
                epoch_seconds=mean,
                state=outcome.state,
                reason=outcome.reason,
            )
        )

    def _recover(self, stage: str, label: str, seed: int, cell: Cell) -> None:
        """Count the epochs of a command that was killed before its time could be written down."""
        epochs, begin = _epoch_seconds(cell.folder), self.journal.reached(label, seed)
        end = max(epochs, default=0)
        if end > begin:
            seconds = sum(value for epoch, value in epochs.items() if epoch > begin)
            mean, known = _mean_epoch(epochs, begin, end), self.journal.cost(label)
            if self.clock == "cpu" and known is not None:
                mean, seconds = known.epoch, known.epoch * (end - begin)
            self.journal.add_job(Job(stage, label, seed, begin, end, seconds, mean, RECOVERED))

    def _judged(
        self, rung: int, label: str, seeds: Sequence[int], epoch: int, failed: Mapping[tuple[str, int], str]
    ) -> Standing:
        figures = []
        for seed in seeds:
            reason = failed.get((label, seed))
            value = None if reason else self._figure_of(self._cell(self.trials[label], seed, epoch).folder, epoch)
            if value is None:
                return Standing(rung, label, (), reason or f"no finite validation figure at epoch {epoch}")
            figures.append(value)
        return Standing(rung, label, tuple(figures))

    def _figure_of(self, folder: Path, epoch: int) -> float | None:
        """The figure of a run on the validation set after an epoch; None where there is no finite one."""
        key = f"valid_{self.task.measure}"
        if epoch >= self.space.epochs:
            result = read_run(folder).result
            # The last ten epochs need not all have been scored.
            value = result.get(f"{key}_{self.figure}", None)
            return _finite(result.get(f"{key}_last") if value is None else value)
        here = _finite(read_stops(folder).get(epoch, {}).get(key))
        if here is None or self.figure not in OVER_EPOCHS:
            return here
        records = [
            _finite(record.get(key)) for record in read_epochs(folder / "epochs.jsonl") if record["epoch"] <= epoch
        ]
        known = [here, *(value for value in records if value is not None)]
        return max(known) if self.task.higher_is_better else min(known)

    # -- what follows --------------------------------------------------------------------------------------------

    def ranked(self, rung: int) -> list[str]:
        """Trials of a rung without failed ones, the best first; of equal ones the cheaper first."""
        sign = -1 if self.task.higher_is_better else 1
        standings = [(s.figure, s.trial) for s in self.journal.on_rung(rung) if s.trial in self.trials]
        known = [(sign * figure, self.cost(trial).epoch, trial) for figure, trial in standings if figure is not None]
        return [trial for *_, trial in sorted(known)]

    def cost(self, label: str) -> Cost:
        """What a trial costs; of one that was never run, what those of its policy, or all, cost on average."""
        own = self.journal.cost(label)
        if own is not None:
            return own
        policy, epoch = label.split(" ")[0], self.journal.recovered_epoch(label)
        every = {other: cost for other in self.trials if (cost := self.journal.cost(other)) is not None}
        alike = [cost for other, cost in every.items() if other.split(" ")[0] == policy] or list(every.values())
        if not alike:
            # Every command so far was killed: no start has been timed.
            return Cost(0.0, epoch or 0.0)
        mean = Cost(sum(c.start for c in alike) / len(alike), sum(c.epoch for c in alike) / len(alike))
        return mean if epoch is None else dataclasses.replace(mean, epoch=epoch)

    def rows(self) -> list[Trial]:
        """Rows of the final comparison, each once."""
        every = [self.space.none, self.space.usual, *([self.winner] if self.winner is not None else [])]
        return list({trial.label: trial for trial in every}.values())

    def _final_costs(self, alive: Sequence[str]) -> list[Cost]:
        """Costs of the rows of the final comparison, should the dearest of some trials win."""
        known = {trial.label: self.cost(trial.label) for trial in (self.space.none, self.space.usual)}
        others = [self.cost(label) for label in alive if label not in known]
        return [*known.values(), *sorted(others, key=lambda cost: cost.epoch)[-1:]]

    def write(self) -> list[Path]:
        """Write the pages as things stand."""
        costs = [cost for label in self.trials if (cost := self.journal.cost(label)) is not None]
        return write_pages(
            Report(
                space=self.space,
                task=self.task,
                figure=self.figure,
                budget=self.budget,
                clock=self.clock,
                command=self.command,
                journal=self.journal,
                costs={label: self.cost(label) for label in self.trials} if costs else {},
                grid_seconds=whole_grid(costs, self.space.epochs),
                winner=self.winner,
                board=self.board,
            ),
            self.folder,
        )

    def say(self, text: str) -> None:
        """Print a line as it is."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def _epoch_seconds(folder: Path) -> dict[int, float]:
    """Seconds of each epoch that a run has recorded."""
    records = read_epochs(folder / "epochs.jsonl")
    return {r["epoch"]: float(r["seconds"]) for r in records if _finite(r.get("seconds")) is not None}


def _mean_epoch(epochs: Mapping[int, float], begin: int, end: int) -> float:
    """Mean seconds of the epochs of a command, the first of a run left out where there are others."""
    own = [value for epoch, value in epochs.items() if max(begin, 1) < epoch <= end]
    own = own or [value for epoch, value in epochs.items() if begin < epoch <= end]
    return sum(own) / len(own) if own else 0.0


def _finite(value: Any) -> float | None:
    return float(value) if is_number(value) else None


# A caller of this module needs one name for what may be wrong with a budget.
__all__ += ["BudgetTooSmall"]
