"""Run a grid: some cells at a time, each in its own process, with progress read from the run folders."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mixaug.engine.lock import EXIT_HELD, holder
from mixaug.engine.tasks import TASKS, task_named
from mixaug.leaderboard.collect import read_epochs, read_run
from mixaug.leaderboard.grid import Cell
from mixaug.leaderboard.launch import (
    CommandLauncher,
    ForkLauncher,
    Job,
    Launcher,
    stop,
    terminate_as_interrupt,
)

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = ["Benchmark", "LineDisplay", "Outcome", "TableDisplay", "cores", "default_jobs", "gpus", "run_grid"]

ENDED = ("finished", "skipped", "failed", "stopped")

#: Bytes of free disk space below which a run cannot even write why it failed.
LEAST_SPACE = 2**16

#: Seconds between two looks at a cell that another process works on.
HELD_PAUSE = 2.0


@dataclass
class Outcome:
    """Where one cell stands: ``"waiting"``, ``"running"``, ``"held"``, ``"finished"``, ``"skipped"``, ``"failed"``,
    ``"stopped"``.

    A cell is held while another process works on its folder. ``epoch`` and ``score`` are those of the last finished
    epoch, ``reason`` says why it failed or who holds it.
    """

    cell: Cell
    log: Path
    state: str = "waiting"
    epoch: int = 0
    score: str = ""
    reason: str = ""
    seconds: float = 0.0
    resumed_at: int = 0
    _size: int = field(default=-1, repr=False)
    _again: float = field(default=0.0, repr=False)

    def hold(self, reason: str) -> None:
        """Leave the cell to the process that holds it, and look again later."""
        self.state, self.reason, self._again = "held", reason, time.monotonic() + HELD_PAUSE

    def can_start(self) -> bool:
        """Whether no other process works on the cell, as far as is known; one that does makes it held."""
        if time.monotonic() < self._again:
            return False
        who = holder(self.cell.folder)
        if who is not None:
            self.hold(f"held by {who}")
        return who is None

    def look(self) -> bool:
        """Read the progress from the run folder if its epoch file has changed; whether it has."""
        path = self.cell.folder / "epochs.jsonl"
        try:
            size = path.stat().st_size
        except OSError:
            return False
        if size == self._size:
            return False
        self._size = size
        epochs = read_epochs(path)
        if epochs:
            self.epoch = int(epochs[-1]["epoch"])
            # An epoch that was not scored leaves the number of the one before.
            self.score = _score(epochs[-1]) or self.score
        return True


def _score(epoch: Mapping[str, Any]) -> str:
    """What a record says of the test set: ``"Top-1 93.20 %"``."""
    for task in TASKS.values():
        value = epoch.get(f"test_{task.measure}")
        if isinstance(value, (int, float)):
            return f"{task.title} {value:.{task.digits}f} {task.unit}".rstrip()
    return ""


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
        running: dict[int, tuple[Outcome, Job, float]] = {}  # by slot
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
                    for slot, (outcome, job, started) in list(running.items()):
                        outcome.look()
                        outcome.seconds = time.time() - started
                        code = job.poll()
                        if code is not None:
                            del running[slot]
                            self._settle(outcome, code, started)
                            if outcome.state == "held":
                                waiting.append(outcome)
        except BaseException:
            for outcome, _, _ in running.values():
                outcome.state = "stopped"
            stop([job for _, job, _ in running.values()])
            self.display(self.outcomes)
            raise
        finally:
            self.launcher.close()
        self.display(self.outcomes)
        return self.outcomes

    def _start(self, slot: int, outcome: Outcome, running: dict[int, tuple[Outcome, Job, float]]) -> None:
        environment = {}
        if self.devices:
            environment["CUDA_VISIBLE_DEVICES"] = self.devices[slot % len(self.devices)]
        started = time.time()
        try:
            outcome.log.parent.mkdir(parents=True, exist_ok=True)
            job = self.launcher.start(outcome.cell, outcome.log, environment)
        except OSError as error:
            outcome.state, outcome.reason = "failed", f"could not be started: {error}"
            return
        outcome.state, outcome.reason = "running", ""
        running[slot] = (outcome, job, started)

    def _settle(self, outcome: Outcome, code: int, started: float) -> None:
        outcome.look()
        if code == EXIT_HELD:
            outcome.hold(f"held by {holder(outcome.cell.folder) or 'another process'}")
            return
        if code == 0 and (outcome.cell.folder / "result.json").is_file():
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


def _skipped(outcome: Outcome) -> bool:
    """Whether the cell has a result already."""
    if not (outcome.cell.folder / "result.json").is_file():
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


# -- progress -----------------------------------------------------------------------------------------------------


class LineDisplay:
    """A line per change of state and one every ``every`` seconds, for logs and pipes."""

    def __init__(self, say: Callable[[str], None] = print, every: float = 30.0) -> None:
        self._say, self._every = say, every
        self._last_state: dict[str, str] = {}
        self._last = self._begin = time.monotonic()

    def __call__(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            name = outcome.cell.folder.name
            if self._last_state.get(name, "waiting") != outcome.state:
                self._last_state[name] = outcome.state
                ended = sum(other.state in ENDED for other in outcomes)
                self._say(f"[{ended}/{len(outcomes)}] {outcome.state:<8} {outcome.cell.label}{_details(outcome)}")
        if time.monotonic() - self._last >= self._every:
            self._last = time.monotonic()
            running = [f"{o.cell.label} epoch {o.epoch}/{o.cell.epochs}" for o in outcomes if o.state == "running"]
            self._say(f"    running: {'; '.join(running)}{_time_left(outcomes, time.monotonic() - self._begin)}")


def _details(outcome: Outcome) -> str:
    if outcome.state in ("failed", "held"):
        return f"  {outcome.reason}"
    if outcome.state == "running" and outcome.resumed_at:
        return f"  continues after epoch {outcome.resumed_at}"
    if outcome.state in ("finished", "skipped") and outcome.score:
        took = f"  ({outcome.seconds:.0f} s)" if outcome.state == "finished" else "  (was finished)"
        return f"  {outcome.score}{took}"
    return ""


def _time_left(outcomes: Sequence[Outcome], elapsed: float) -> str:
    """``", about 3 min left"`` from the epochs done since the start; empty while nothing is known."""
    counted = [outcome for outcome in outcomes if outcome.state != "skipped"]
    done = sum(
        outcome.cell.epochs - outcome.resumed_at if outcome.state in ENDED else outcome.epoch - outcome.resumed_at
        for outcome in counted
    )
    total = sum(outcome.cell.epochs - outcome.resumed_at for outcome in counted)
    if done <= 0 or done >= total:
        return ""
    seconds = elapsed * (total - done) / done
    return f", about {seconds / 60:.0f} min left" if seconds >= 90 else f", about {seconds:.0f} s left"


class TableDisplay:
    """A live table on a terminal; use as a context manager."""

    MARKS: ClassVar[dict[str, str]] = {
        "waiting": "[dim]·[/]",
        "running": "[cyan]▶[/]",
        "held": "[yellow]▷[/]",
        "finished": "[green]✓[/]",
        "skipped": "[green dim]✓[/]",
        "failed": "[red]✗[/]",
        "stopped": "[yellow]■[/]",
    }

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        self._console = console
        self._begin = time.monotonic()
        self._live = Live(console=console, refresh_per_second=4, transient=False)

    def __enter__(self) -> TableDisplay:
        self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._live.__exit__(*error)

    def __call__(self, outcomes: Sequence[Outcome]) -> None:
        self._live.update(self.render(outcomes))

    def render(self, outcomes: Sequence[Outcome]) -> RenderableType:
        """The table as it is now; where the terminal is too low, what waits and what ended first is left out."""
        from rich.console import Group
        from rich.markup import escape
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="dim")
        for column in ("", "run", "progress", "epoch", "test", "time", ""):
            table.add_column(column, justify="right" if column in ("epoch", "test", "time") else "left")
        for outcome in self._fitting(outcomes):
            epochs = outcome.cell.epochs
            table.add_row(
                self.MARKS[outcome.state],
                escape(outcome.cell.label),
                ProgressBar(total=epochs, completed=outcome.epoch, width=24),
                f"{outcome.epoch}/{epochs}",
                outcome.score,
                f"{outcome.seconds:.0f} s" if outcome.seconds else "",
                Text(outcome.reason or ("was finished" if outcome.state == "skipped" else ""), overflow="ellipsis"),
            )
        counts = {state: sum(o.state == state for o in outcomes) for state in self.MARKS}
        said = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        return Group(table, Text(f"{said}{_time_left(outcomes, time.monotonic() - self._begin)}", style="dim"))

    def _fitting(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        room = max(3, self._console.size.height - 4)
        if len(outcomes) <= room:
            return list(outcomes)
        # Running and failed runs come first, then the latest results, then the runs that come next.
        ended = [o for o in outcomes if o.state in ("finished", "skipped", "stopped")]
        urgent = [o for o in outcomes if o.state in ("running", "held", "failed")]
        kept = [*urgent, *reversed(ended), *(o for o in outcomes if o.state == "waiting")][:room]
        chosen = {id(outcome) for outcome in kept}
        return [outcome for outcome in outcomes if id(outcome) in chosen]


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
        ConfigError: arguments that cannot be composed.
        ValueError: an option that cannot work.
    """
    from mixaug.engine.config import with_config_dir
    from mixaug.leaderboard import STATISTICS, aggregate, collect, write
    from mixaug.leaderboard.grid import expand
    from mixaug.leaderboard.render import print_tables, terminal

    if statistic is not None and statistic not in STATISTICS:
        raise ValueError(f"statistic: expected one of {', '.join(STATISTICS)}, got {statistic!r}")
    console = console or terminal()
    cells = expand(with_config_dir(arguments, config_dir))
    config = cells[0].config
    for task in {task_named(str(cell.config["data"]["name"])) for cell in cells}:
        if statistic is not None and statistic not in task.figures:
            raise ValueError(
                f"statistic: {statistic!r} is not taken in {task.name}; there it is one of {', '.join(task.figures)}"
            )
    out = Path(out or cells[0].folder.parent / "leaderboard")
    for name, folder in (("root", cells[0].folder.parent), ("out", out)):
        there = next(place for place in (folder, *folder.parents) if place.exists())
        if not there.is_dir():
            raise ValueError(f"{name}: expected a folder, got {str(folder)!r}, and {str(there)!r} is a file")
    devices = gpus(config)
    number = default_jobs(len(cells), len(devices)) if jobs is None else _positive("jobs", jobs)
    # Results may differ in the last bits with the number of threads, so a user can fix it (threads=1).
    threads = config["threads"] or max(1, cores() // number)
    where = f"{len(devices)} GPU{'s' if len(devices) > 1 else ''}" if devices else f"{cores()} cores"
    launcher = _launcher(launch, threads)
    console.print(
        f"{len(cells)} runs, {number} at a time with {threads} thread{'s' if threads > 1 else ''} each, on {where}",
        highlight=False,
    )
    try:
        if console.is_terminal:
            with TableDisplay(console) as display:
                outcomes = Benchmark(cells, launcher, jobs=number, devices=devices, display=display).run()
        else:
            lines = LineDisplay(lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True))
            outcomes = Benchmark(cells, launcher, jobs=number, devices=devices, display=lines).run()
    except KeyboardInterrupt:
        console.print("stopped; the same command continues where it stopped", highlight=False)
        return 130

    folders = [outcome.cell.folder for outcome in outcomes if outcome.cell.folder.is_dir()]
    leaderboard = aggregate(collect(folders, config_dir=config_dir), statistic=statistic)
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
    for path in write(leaderboard, out):
        console.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)
    return 1 if failed else 0


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
