"""Where the cells of a grid stand, and how that is shown: a line for each change, or a live table on a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mixaug.engine.lock import holder
from mixaug.engine.tasks import TASKS
from mixaug.leaderboard.collect import read_epochs
from mixaug.leaderboard.grid import Cell

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = ["LineDisplay", "Outcome", "TableDisplay"]

ENDED = ("finished", "skipped", "failed", "stopped")

#: Seconds between two looks at a cell that another process works on.
HELD_PAUSE = 2.0


@dataclass
class Outcome:
    """Where one cell stands: ``"waiting"``, ``"running"``, ``"held"``, ``"finished"``, ``"skipped"``, ``"failed"``,
    ``"stopped"``.

    A cell is held while another process works on its folder. ``epoch`` and ``score`` are those of the last finished
    epoch, ``reason`` says why it failed or who holds it. ``seconds`` are those since its process was there,
    ``cpu_seconds`` those that it computed; None where the system does not say it. ``code`` is the exit code of its
    process, once that has ended.
    """

    cell: Cell
    log: Path
    state: str = "waiting"
    epoch: int = 0
    score: str = ""
    reason: str = ""
    seconds: float = 0.0
    cpu_seconds: float | None = None
    resumed_at: int = 0
    code: int | None = None
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
            self.score = _score(epochs[-1], self.cell) or self.score
        return True


def _score(epoch: Mapping[str, Any], cell: Cell) -> str:
    """What a record says of the cell's held-out set, by the measure that counts: ``"Top-1 93.20 %"``."""
    for every in TASKS.values():
        for task in every.variants:
            value = epoch.get(f"{cell.shown}_{task.measure}")
            if task.measure == (cell.config.get("measure") or every.measure) and isinstance(value, (int, float)):
                return f"{task.title} {value:.{task.digits}f} {task.unit}".rstrip()
    return ""


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
        score = "validation" if any(outcome.cell.shown == "valid" for outcome in outcomes) else "test"
        for column in ("", "run", "progress", "epoch", score, "time", ""):
            table.add_column(column, justify="right" if column in ("epoch", score, "time") else "left")
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
