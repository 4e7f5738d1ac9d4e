"""What a run says while it runs: a live bar on a terminal, plain lines elsewhere, TensorBoard if asked for."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from mixaug.engine.errors import RunFolderError
from mixaug.engine.tasks import Task

__all__ = ["Log"]


class Log:
    """Reports of one run; silent on all processes but the first.

    Every method raises RunFolderError, with path and reason, where a report cannot be written.

    Args:
        name: what the run is called.
        active: whether this process speaks.
        progress: whether a live bar may be shown on a terminal.
    """

    def __init__(self, name: str, *, active: bool, progress: bool) -> None:
        self.name, self.active = name, active
        self._bar: Any = None
        self._task: Any = None
        self._writer: Any = None
        self._folder: Path | None = None
        self._want_bar = active and progress and sys.stdout.isatty()

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._writer is not None:
            try:
                with _named(str(self._folder)):
                    self._writer.close()
            except RunFolderError:
                # The error that ends the run says more than this one.
                if error is None:
                    raise

    def start(self, total_steps: int, done: int, tensorboard: Path | None = None) -> None:
        """Show how far the run is; open the TensorBoard file if a folder is given."""
        if self._want_bar:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
            )
            self._bar.start()
            self._task = self._bar.add_task(self.name, total=total_steps, completed=done)
        if self.active and tensorboard is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._folder = tensorboard
            with _named(str(tensorboard)):
                self._writer = SummaryWriter(str(tensorboard), purge_step=done)

    def say(self, text: str) -> None:
        """One line."""
        if not self.active:
            return
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            with _named(_standard_output()):
                print(text, flush=True)

    def warn(self, lines: Sequence[str]) -> None:
        """One line on the standard error; nothing where there is nothing to warn of."""
        if self.active and lines:
            with _named("the standard error"):
                print(f"warning: {'; '.join(lines)}", file=sys.stderr, flush=True)

    def step(self, number: int) -> None:
        """The run has finished this many steps."""
        if self._bar is not None:
            self._bar.update(self._task, completed=number)

    def curves(self, values: dict[str, float], step: int) -> None:
        """Points of TensorBoard curves."""
        if self._writer is not None:
            with _named(str(self._folder)):
                for name, value in values.items():
                    self._writer.add_scalar(name, value, step)

    def picture(self, name: str, image: Tensor, step: int) -> None:
        """A picture (3, H, W) with values in [0, 1], in TensorBoard."""
        if self._writer is not None:
            with _named(str(self._folder)):
                self._writer.add_image(name, image, step)

    def epoch(self, record: dict[str, Any], epochs: int, scores: str) -> None:
        """A finished epoch; ``scores`` says how the model did."""
        self.say(
            f"{self.name}  epoch {record['epoch']}/{epochs}  loss {record['train_loss']:.4f}  "
            f"lr {record['lr']:.2e}  {scores}  {record['samples_per_second']:.0f} samples/s"
        )

    def result(self, result: dict[str, Any], task: Task, figure: str) -> None:
        """The figures of a finished run; ``figure`` is the one the protocol counts."""
        shown = [name for name in task.figures if name != "best10" or figure == "best10"]
        parts = [
            f"{task.title_of(name, result['selected_on'])} {self._number(result[task.result_key(name)], task.digits)}"
            + (" (the protocol's figure)" if name == figure else "")
            for name in shown
        ]
        keys = [(detail, task.detail_key(detail, figure)) for detail in task.details]
        details = [
            f"{detail.title} {self._number(result[key], detail.digits)}" for detail, key in keys if key in result
        ]
        self.say(f"{self.name}  finished: {task.heading} {', '.join(parts)}; {', '.join(details)}")

    @staticmethod
    def _number(value: float | None, digits: int) -> str:
        return "none" if value is None else f"{value:.{digits}f}"


@contextmanager
def _named(place: str) -> Iterator[None]:
    """Say where it is that cannot be written."""
    try:
        yield
    except OSError as error:
        raise RunFolderError(f"cannot write {place}: {error.strerror or error}") from error


def _standard_output() -> str:
    try:
        return f"the standard output, {os.readlink('/proc/self/fd/1')}"
    except OSError:
        return "the standard output"
