"""Ways to start one run of a grid in a process of its own.

``ForkLauncher`` forks each run from a server that has imported torch, timm and the engine once: a run starts in
milliseconds instead of the seconds that these imports take, and still has a process, a memory peak and a random state
of its own. ``CommandLauncher`` runs a command per cell, for systems without fork and for other programs.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from mixaug.engine.idle import keys_given
from mixaug.engine.writing import appended, own_descriptor
from mixaug.leaderboard.grid import Cell

__all__ = ["THREAD_VARIABLES", "CommandLauncher", "ForkLauncher", "Job", "Launcher"]

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Job(Protocol):
    """A started run."""

    def poll(self) -> int | None:
        """Exit code, negative for a signal, or None while it runs."""

    def send(self, number: signal.Signals) -> None:
        """Signal the run and every process it started; no error if it has ended."""

    def cpu_seconds(self) -> float | None:
        """CPU time of the run's process so far; None where the system does not say it, or it has ended."""


class Launcher(Protocol):
    """Starts runs."""

    def start(self, cell: Cell, log: Path, environment: Mapping[str, str]) -> Job:
        """Start the run; its output goes to the end of ``log``."""

    def close(self) -> None:
        """Release what the launcher holds."""


def stop(jobs: Sequence[Job], patience: float = 5.0) -> None:
    """Ask all jobs to end, then end those that have not within ``patience`` seconds."""
    for job in jobs:
        job.send(signal.SIGTERM)
    deadline = time.monotonic() + patience
    while any(job.poll() is None for job in jobs) and time.monotonic() < deadline:
        time.sleep(0.05)
    for job in jobs:
        if job.poll() is None:
            job.send(signal.SIGKILL)
    while any(job.poll() is None for job in jobs):
        time.sleep(0.02)


# -- a process forked from a warm server --------------------------------------------------------------------------


class ForkLauncher:
    """Runs each cell through ``mixaug.engine`` in a process forked from a server with warm imports.

    Args:
        threads: CPU threads of each run.
        target: what a run does with its config, a function that can be imported; default trains.
    """

    def __init__(self, threads: int, target: Callable[[dict[str, Any]], object] | None = None) -> None:
        # The libraries read these when they are loaded, which is in the server.
        self._saved = {name: os.environ.get(name) for name in THREAD_VARIABLES}
        for name in THREAD_VARIABLES:
            os.environ[name] = str(threads)
        self._target = target
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["mixaug.leaderboard.preload"])

    @staticmethod
    def available() -> bool:
        """Whether this system has a fork server."""
        return "forkserver" in multiprocessing.get_all_start_methods()

    def start(self, cell: Cell, log: Path, environment: Mapping[str, str]) -> Job:
        # As the command would: what of its line does nothing is told in the run's own log.
        target = self._target or partial(train_cell, given=keys_given(cell.overrides))
        process = self._context.Process(
            target=_run_forked,
            args=(target, dict(cell.config), str(log), dict(environment)),
            name=cell.label,
        )
        process.start()
        return _Forked(process)

    def close(self) -> None:
        for name, value in self._saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class _Forked:
    def __init__(self, process: multiprocessing.process.BaseProcess) -> None:
        self._process = process

    def cpu_seconds(self) -> float | None:
        return cpu_seconds_of(self._process.pid)

    def poll(self) -> int | None:
        return self._process.exitcode

    def send(self, number: signal.Signals) -> None:
        if self._process.pid is not None and self._process.exitcode is None:
            _signal_group(self._process.pid, number)


def train_cell(config: dict[str, Any], given: Collection[str] = ()) -> None:
    """Train one composed config, of which the command line sets the keys ``given``.

    The exit code is `EXIT_HELD` if another process works on its folder, and `EXIT_WRONG` if it cannot work as asked.
    """
    from omegaconf import OmegaConf

    from mixaug.engine.errors import EXIT_HELD, EXIT_WRONG, ConfigError, RunHeld
    from mixaug.engine.train import train

    try:
        train(OmegaConf.create(config), given)
    except RunHeld as error:
        print(error)
        sys.exit(EXIT_HELD)
    except (ConfigError, FileNotFoundError):
        # The log has it whole.
        traceback.print_exc()
        sys.exit(EXIT_WRONG)


def _run_forked(
    target: Callable[[dict[str, Any]], object], config: dict[str, Any], log: str, environment: dict[str, str]
) -> None:
    os.setsid()
    _end_with_parent()
    descriptor = own_descriptor(Path(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.environ.update(environment)
    target(config)


# -- a command ----------------------------------------------------------------------------------------------------


class CommandLauncher:
    """Runs ``command`` with the cell's overrides behind it.

    Args:
        threads: CPU threads of each run.
        command: the program; default is ``mixaug train`` of this Python.
    """

    def __init__(self, threads: int, command: Sequence[str] | None = None) -> None:
        self._command = list(command) if command is not None else [sys.executable, "-m", "mixaug", "train"]
        self._threads = {name: str(threads) for name in THREAD_VARIABLES}

    def start(self, cell: Cell, log: Path, environment: Mapping[str, str]) -> Job:
        with appended(log) as output:
            process = subprocess.Popen(
                [*self._command, *cell.overrides],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self._threads, "HYDRA_FULL_ERROR": "1", **environment},
                start_new_session=True,
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )
        return _Command(process)

    def close(self) -> None:
        """Nothing is held."""


class _Command:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def cpu_seconds(self) -> float | None:
        return cpu_seconds_of(self._process.pid)

    def poll(self) -> int | None:
        return self._process.poll()

    def send(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            _signal_group(self._process.pid, number)


def cpu_seconds_of(pid: int | None) -> float | None:
    """CPU time of a process and of those of its children that have ended; None where the system does not say it."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name of the program stands in brackets and may have spaces in it.
    fields = text.rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


# -- processes ----------------------------------------------------------------------------------------------------


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        try:
            os.killpg(pid, number)
        except ProcessLookupError:
            os.kill(pid, number)  # the process has not opened its session yet


def _load_prctl() -> Callable[..., int] | None:
    if sys.platform != "linux":
        return None
    try:
        return ctypes.CDLL(None, use_errno=True).prctl
    except (OSError, AttributeError):
        return None


_PRCTL = _load_prctl()  # loaded before any fork: loading a library in the child of a threaded process may deadlock
_PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    """On Linux, have this process ended when its parent dies, so that a killed benchmark leaves no run behind."""
    if _PRCTL is not None:
        _PRCTL(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)


@contextlib.contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C within the block, so that children are ended either way."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    try:
        previous = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # outside the main thread, signals cannot be handled
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
