"""Run a grid: some cells at a time, each in its own process."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixaug.engine.errors import EXIT_HELD, EXIT_WRONG, ConfigError
from mixaug.engine.lock import holder
from mixaug.engine.tasks import task_named
from mixaug.leaderboard.collect import read_run
from mixaug.leaderboard.grid import Cell
from mixaug.leaderboard.launch import (
    CommandLauncher,
    ForkLauncher,
    Job,
    Launcher,
    stop,
    terminate_as_interrupt,
)
from mixaug.leaderboard.progress import LineDisplay, Outcome, TableDisplay
from mixaug.near import did_you_mean

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "Benchmark",
    "LineDisplay",
    "Outcome",
    "TableDisplay",
    "Workers",
    "cores",
    "default_jobs",
    "gpus",
    "run_grid",
    "show",
]

#: Bytes of free disk space below which a run cannot even write why it failed.
LEAST_SPACE = 2**16


class Benchmark:
    """Runs the cells of a grid, ``jobs`` at a time; finished ones are skipped, a failed one does not stop the others.

    Args:
        cells: the grid.
        launcher: starts one run.
        jobs: processes at a time, at least 1.
        devices: GPUs to spread the jobs over, by number or id; none leaves each run the devices it sees.
        display: called with all outcomes on every change and every ``refresh`` seconds.
        refresh: seconds between two looks.

    Raises:
        ValueError: if ``jobs`` is below 1.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        launcher: Launcher,
        *,
        jobs: int = 1,
        devices: Sequence[str] = (),
        display: Callable[[Sequence[Outcome]], None] = lambda outcomes: None,
        refresh: float = 0.25,
    ) -> None:
        if jobs < 1:
            raise ValueError(f"jobs: expected at least 1, got {jobs}")
        self.outcomes = [Outcome(cell, cell.folder.parent / "logs" / f"{cell.folder.name}.log") for cell in cells]
        self.launcher, self.jobs, self.devices = launcher, jobs, list(devices)
        self.display, self.refresh = display, refresh

    def run(self) -> list[Outcome]:
        """Run to the end. On Ctrl-C or SIGTERM every child is ended first, then KeyboardInterrupt is raised."""
        waiting = []
        for outcome in self.outcomes:
            outcome.look()
            if not _skipped(outcome):
                outcome.resumed_at = outcome.epoch
                waiting.append(outcome)
        running: dict[int, tuple[Outcome, Job, float, float]] = {}  # by slot, with when it was asked for and was there
        try:
            with terminate_as_interrupt():
                while waiting or running:
                    for slot in range(self.jobs):
                        chosen = None if slot in running else _next(waiting)
                        if chosen is not None:
                            self._start(slot, chosen, running)
                    self.display(self.outcomes)
                    if waiting or running:
                        time.sleep(self.refresh)
                    for slot, (outcome, job, asked, began) in list(running.items()):
                        outcome.look()
                        outcome.seconds = time.time() - began
                        outcome.cpu_seconds = job.cpu_seconds() or outcome.cpu_seconds
                        code = job.poll()
                        if code is not None:
                            del running[slot]
                            self._settle(outcome, code, asked)
                            if outcome.state == "held":
                                waiting.append(outcome)
        except BaseException:
            for outcome, *_ in running.values():
                outcome.state = "stopped"
            stop([job for _, job, *_ in running.values()])
            self.display(self.outcomes)
            raise
        finally:
            self.launcher.close()
        self.display(self.outcomes)
        return self.outcomes

    def _start(self, slot: int, outcome: Outcome, running: dict[int, tuple[Outcome, Job, float, float]]) -> None:
        environment = {}
        if self.devices:
            environment["CUDA_VISIBLE_DEVICES"] = self.devices[slot % len(self.devices)]
        asked = time.time()
        try:
            outcome.log.parent.mkdir(parents=True, exist_ok=True)
            if outcome.log.is_symlink():
                # What the run says would land in the file that it leads to.
                outcome.log.unlink()
            job = self.launcher.start(outcome.cell, outcome.log, environment)
        except OSError as error:
            outcome.state, outcome.reason = "failed", f"could not be started: {error}"
            return
        outcome.state, outcome.reason = "running", ""
        # A fork server imports its libraries once, before the first run: no run is to be charged with that.
        running[slot] = (outcome, job, asked, time.time())

    def _settle(self, outcome: Outcome, code: int, started: float) -> None:
        outcome.look()
        outcome.code = code
        if code == EXIT_HELD:
            outcome.hold(f"held by {holder(outcome.cell.folder) or 'another process'}")
            return
        if code == 0 and outcome.cell.is_done():
            outcome.state = "finished"
            return
        outcome.state, outcome.reason = "failed", _reason(outcome, code, started)


def _next(waiting: list[Outcome]) -> Outcome | None:
    """Take the first cell that can be started; cells that other processes have finished leave the list."""
    for outcome in list(waiting):
        if outcome.state == "held":
            outcome.look()
        if _skipped(outcome):
            waiting.remove(outcome)
            continue
        if outcome.can_start():
            waiting.remove(outcome)
            return outcome
    return None


def check_folder(name: str, folder: Path) -> None:
    """Raise ValueError where an argument names a folder that cannot be made, for a file stands on its path."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not there.is_dir():
        raise ValueError(f"{name}: expected a folder, got {str(folder)!r}, and {str(there)!r} is a file")


def _skipped(outcome: Outcome) -> bool:
    """Whether there is nothing left to do for the cell."""
    if not outcome.cell.is_done():
        return False
    outcome.state, outcome.reason = "skipped", ""
    return True


def _reason(outcome: Outcome, code: int, started: float) -> str:
    failure = outcome.cell.folder / "failure.json"
    try:
        fresh = failure.stat().st_mtime >= started - 1  # file times are coarser than the clock
    except OSError:
        fresh = False
    if fresh:
        return read_run(outcome.cell.folder).reason
    if code == 0:
        return f"ended without a result, see {outcome.log}"
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        hint = ", perhaps for want of memory" if -code == getattr(signal, "SIGKILL", 9) else ""
        return f"killed by {name}{hint}; the same command continues it"
    try:
        lines = [line.strip() for line in outcome.log.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    # A traceback ends with the error, but libraries print advice behind it.
    errors = [line for line in lines if re.match(r"(\w+\.)*\w*(Error|Exception|Diverged)\b", line)]
    said = (errors or lines)[-1:]
    if said:
        return f"{said[0]} (exit code {code})"
    full = shutil.disk_usage(outcome.log.parent).free < LEAST_SPACE
    return f"exit code {code}, nothing logged" + (
        f": no space left on the disk of {outcome.log.parent}" if full else ""
    )


# -- the machine --------------------------------------------------------------------------------------------------


def cores() -> int:
    """CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def gpus(config: Mapping[str, Any]) -> list[str]:
    """The GPUs over which runs with this config may be spread: all visible ones for ``device`` auto or cuda."""
    if config["device"] not in ("auto", "cuda"):
        return []
    import torch

    count = torch.cuda.device_count()  # counts without taking hold of a GPU
    visible = [entry for entry in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if entry]
    return visible[:count] if visible else [str(index) for index in range(count)]


def default_jobs(cells: int, devices: int) -> int:
    """One job per GPU; without GPUs one per core, since small models gain little from a second thread."""
    return max(1, min(cells, devices or cores()))


# -- one command --------------------------------------------------------------------------------------------------


def run_grid(
    arguments: Sequence[str],
    *,
    jobs: str | int | None = None,
    statistic: str | None = None,
    out: str | Path | None = None,
    launch: str | None = None,
    config_dir: str | Path | None = None,
    console: Console | None = None,
) -> int:
    """Expand the grid, run it, print and write its leaderboard.

    Runs that lie beside those of the grid, directly in the same root and of the same setting (data, model, protocol,
    length), are rows of it too: a baseline that was trained before need not be named again.

    Args:
        arguments: overrides of ``mixaug train``, any of them with several values.
        jobs: runs at a time; None takes one per GPU, or one per core.
        statistic: the number of a run that counts, see :func:`mixaug.leaderboard.aggregate`; None takes the protocol's.
        out: folder for the leaderboard; None takes ``<root>/leaderboard``.
        launch: ``"fork"`` or ``"command"``; None takes fork where the system has it.
        config_dir: folder of config files of one's own, see :func:`mixaug.engine.config.with_config_dir`.
        console: where to print; None takes the standard output.

    Returns:
        0, or 1 if a run failed, or 130 after Ctrl-C.

    Raises:
        ConfigError: arguments that cannot be composed, or with which none of the runs can begin.
        ValueError: an option that cannot work.
    """
    from mixaug.engine.config import with_config_dir
    from mixaug.engine.idle import idle_in_all, keys_given
    from mixaug.leaderboard import STATISTICS, collect, write
    from mixaug.leaderboard.collect import is_run
    from mixaug.leaderboard.grid import grid_of
    from mixaug.leaderboard.neighbours import with_neighbours
    from mixaug.leaderboard.render import print_tables, terminal

    if statistic is not None and statistic not in STATISTICS:
        raise ValueError(
            f"statistic: expected one of {', '.join(STATISTICS)}, got {statistic!r}"
            f"{did_you_mean(statistic, STATISTICS)}"
        )
    console = console or terminal()

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    grid = grid_of(with_config_dir(arguments, config_dir), say)
    cells = grid.cells
    config = cells[0].config
    if idle := idle_in_all((cell.config, keys_given(cell.overrides)) for cell in cells):
        print(f"warning: {'; '.join(idle)}", file=sys.stderr)
    for what, reason in grid.left_out.items():
        say(f"left out: {what}: {reason.removeprefix(f'{what}: ')}")
    for task in {task_named(str(cell.config["data"]["name"])) for cell in cells}:
        if statistic is not None and statistic not in task.figures:
            raise ValueError(
                f"statistic: {statistic!r} is not taken in {task.name}; there it is one of {', '.join(task.figures)}"
            )
    out = Path(out or cells[0].folder.parent / "leaderboard")
    check_folder("root", cells[0].folder.parent)
    check_folder("out", out)
    workers = Workers.of(config, len(cells), jobs=jobs, launch=launch)
    console.print(f"{len(cells)} runs, {workers}", highlight=False)
    try:
        outcomes = workers.run(cells, console)
    except KeyboardInterrupt:
        console.print("stopped; the same command continues where it stopped", highlight=False)
        return 130

    folders = [outcome.cell.folder for outcome in outcomes if outcome.cell.folder.is_dir()]
    # Rows that an earlier command trained in the same place belong to the comparison, a baseline above all.
    root = cells[0].folder.parent
    beside = [folder for folder in root.iterdir() if is_run(folder)] if root.is_dir() else []
    runs, others = (collect(some, config_dir=config_dir) for some in (folders, beside))
    leaderboard, neighbours, why_none = with_neighbours(runs, others, statistic=statistic)
    if neighbours or why_none:
        say(why_none or f"with {neighbours} runs of the same setting that were there before")
    print_tables(leaderboard, console)
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    for outcome in failed:
        console.print(
            f"failed: {outcome.cell.label}: {outcome.reason}",
            style="red",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        console.print(f"        log: {outcome.log}", markup=False, highlight=False, soft_wrap=True)
    if len(failed) == len(outcomes) and all(outcome.code == EXIT_WRONG for outcome in failed):
        # No run could begin, and there is nothing to write.
        raise ConfigError(f"none of the runs can begin: {'; '.join(dict.fromkeys(o.reason for o in failed))}")
    for path in write(leaderboard, out):
        console.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)
    return 1 if failed else 0


@dataclass(frozen=True)
class Workers:
    """So many runs at a time, with so many threads each, on these GPUs, started in this way."""

    jobs: int
    threads: int
    devices: Sequence[str]
    launch: str | None

    @classmethod
    def of(cls, config: Mapping[str, Any], cells: int, *, jobs: str | int | None, launch: str | None) -> Workers:
        """What this machine has for so many runs with such a config; see `run_grid`."""
        devices = gpus(config)
        number = default_jobs(cells, len(devices)) if jobs is None else _positive("jobs", jobs)
        # Results may differ in the last bits with the number of threads, so a user can fix it (threads=1).
        threads = config["threads"] or max(1, cores() // number)
        _launcher(launch, threads)  # a name that cannot work is told before anything is shown
        return cls(number, threads, devices, launch)

    def __str__(self) -> str:
        count = len(self.devices)
        where = f"{count} GPU{'s' if count > 1 else ''}" if count else f"{cores()} cores"
        return f"{self.jobs} at a time with {self.threads} thread{'s' if self.threads > 1 else ''} each, on {where}"

    def benchmark(self, cells: Sequence[Cell]) -> Benchmark:
        """The cells, to be run by these."""
        return Benchmark(cells, _launcher(self.launch, self.threads), jobs=self.jobs, devices=self.devices)

    def run(self, cells: Sequence[Cell], console: Console) -> list[Outcome]:
        """Run the cells and show how far they are."""
        return show(self.benchmark(cells), console)


def show(
    benchmark: Benchmark, console: Console, watch: Callable[[Sequence[Outcome]], None] = lambda outcomes: None
) -> list[Outcome]:
    """Run a benchmark with a live table on a terminal, with lines elsewhere; ``watch`` sees what is shown."""

    def run(display: Callable[[Sequence[Outcome]], None]) -> list[Outcome]:
        def both(outcomes: Sequence[Outcome]) -> None:
            watch(outcomes)
            display(outcomes)

        benchmark.display = both
        return benchmark.run()

    if console.is_terminal:
        with TableDisplay(console) as table:
            return run(table)
    return run(LineDisplay(lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True)))


def _launcher(name: str | None, threads: int) -> Launcher:
    if name is None:
        name = "fork" if ForkLauncher.available() else "command"
    if name == "fork" and ForkLauncher.available():
        return ForkLauncher(threads)
    if name == "command":
        return CommandLauncher(threads)
    raise ValueError(f"launch: expected fork (where the system has it) or command, got {name!r}")


def _positive(name: str, value: str | int) -> int:
    try:
        number = int(value)
    except ValueError:
        number = 0
    if number < 1:
        raise ValueError(f"{name}: expected an integer of at least 1, got {value!r}")
    return number
