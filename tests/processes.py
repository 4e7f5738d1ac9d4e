"""Scripts in processes of their own that do not pay for the import of torch.

A script starts as `python script.py ...` would: its own process, arguments, environment, working folder, standard
output and exit code, and SIGKILL ends it. It is forked from multiprocessing's fork server, which has imported torch,
timm, Hydra and the engine once, so that a start takes milliseconds and not the four seconds of these imports. The
server is a fork of the process that runs the tests, made when that has imported them and run none.
"""

from __future__ import annotations

import atexit
import datetime
import gc
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import multiprocessing.util
import os
import runpy
import signal
import socket
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any
from unittest import mock

CONTEXT = multiprocessing.get_context("forkserver")
# The engine imports some of these when a run first needs them.
CONTEXT.set_forkserver_preload(
    [
        *("hydra", "hydra._internal.utils", "hydra_plugins.hydra_submitit_launcher", "rich.live", "rich.progress"),
        *("sklearn.datasets", "sklearn.preprocessing", "timm.optim", "timm.scheduler", "torchmetrics.classification"),
        *("mixaug.data.loaders", "mixaug.engine.mixers", "mixaug.engine.train", "mixaug.leaderboard.benchmark"),
        *("mixaug.models", "mixaug.policies", "torch.distributed.nn"),
    ]
)


def start_server() -> None:
    """Start the fork server as a fork of this process, which has imported by now what the server would import anew."""

    spawned = multiprocessing.util.spawnv_passfds

    def forked(path: bytes, arguments: Sequence[str], kept: Sequence[int]) -> int:
        pid = os.fork()
        if pid:
            return pid
        try:
            # Whatever is started from here on is started as ever; the lock is held by what is under way around this.
            multiprocessing.util.spawnv_passfds = spawned
            multiprocessing.forkserver._forkserver._lock = threading.RLock()
            # The pipes of pytest-xdist, among others, which would not end with their process.
            open_ones = sorted({0, 1, 2, *kept})
            for low, high in zip(open_ones, [*open_ones[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
                os.closerange(low + 1, high)
            # What a fresh interpreter would be told to run: the server, which ends with SystemExit.
            exec(arguments[-1], {})
        finally:
            os._exit(0)

    multiprocessing.resource_tracker.ensure_running()
    with mock.patch.object(multiprocessing.util, "spawnv_passfds", forked):
        multiprocessing.forkserver.ensure_running()


def _main(script: str, arguments: list[str], environment: dict[str, str], cwd: str, out: str, err: str) -> None:
    for number, path in ((1, out), (2, err)):
        target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(target, number)
        os.close(target)
    # What the server has imported stays; a collection that looked at it would also copy its pages.
    gc.freeze()
    os.setsid()
    # A shell that runs the tests in the background lets its children ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.path.insert(0, str(Path(script).parent))
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        # multiprocessing leaves these out, an interpreter of its own does not.
        atexit._run_exitfuncs()


class Script:
    """A running script.

    Args:
        script: the file to run.
        arguments: its command line.
        cwd: its working folder; default is that of the tests.
        environment: variables beside those of the tests.
    """

    def __init__(
        self, script: Path, *arguments: str, cwd: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mixaug-script-")
        self._written = [str(Path(self._folder.name) / name) for name in ("out", "err")]
        self._process = CONTEXT.Process(
            target=_main,
            args=(
                str(script),
                list(arguments),
                {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
                str(cwd or Path.cwd()),
                *self._written,
            ),
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid
        # At its own end the test process would wait for one that a failed test has left.
        atexit.register(self._process.kill)

    def poll(self) -> int | None:
        """The exit code, negative for a signal, or None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def output(self) -> tuple[str, str]:
        """What it has written so far to standard output and to standard error."""
        texts = [Path(path).read_text() if Path(path).exists() else "" for path in self._written]
        return texts[0], texts[1]

    def wait(self, timeout: float = 300) -> CompletedProcess[str]:
        """Wait for its end; kills it and fails if that takes too long."""
        self._process.join(timeout)
        late = self._process.exitcode is None
        if late:
            self._process.kill()
            self._process.join()
        out, err = self.output()
        assert not late, f"no end after {timeout} s\n{out}{err}"
        code = self._process.exitcode
        assert code is not None
        atexit.unregister(self._process.kill)
        self._folder.cleanup()
        return CompletedProcess([], code, out, err)


def run_script(
    script: Path, *arguments: str, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> CompletedProcess[str]:
    """Run a script to its end."""
    return Script(script, *arguments, cwd=cwd, environment=environment).wait()


def run_ranks(script: Path, *arguments: str, size: int = 2) -> str:
    """What rank 0 writes when `size` processes run the script with the environment that torchrun sets."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(size)}
    started = [
        Script(script, *arguments, environment={**address, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(size)
    ]
    done = [process.wait() for process in started]
    said = "".join(one.stdout + one.stderr for one in done)
    assert [one.returncode for one in done] == [0] * size, said
    return "".join(one.stdout for one in done)


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _process_of_two(rank: int, port: int, case: Callable[..., None], arguments: tuple[Any, ...], told: Any) -> None:
    import torch
    import torch.distributed as dist

    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    patience = datetime.timedelta(seconds=120)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", timeout=patience, rank=rank, world_size=2)
    try:
        case(rank, *arguments)
        told.put("")
    except BaseException:
        told.put(f"process {rank}:\n{traceback.format_exc()}")
        raise
    finally:
        dist.destroy_process_group()


def in_two_processes(case: Callable[..., None], *arguments: Any) -> None:
    """Call ``case(rank, *arguments)`` in two new processes of one gloo group; fail where it fails."""
    import torch.multiprocessing

    context = torch.multiprocessing.get_context("spawn")
    told, port = context.Queue(), free_port()
    processes = [context.Process(target=_process_of_two, args=(r, port, case, arguments, told)) for r in range(2)]
    for process in processes:
        process.start()
    said = [told.get(timeout=300) for _ in processes]
    for process in processes:
        process.join(60)
    assert said == ["", ""], "\n".join(said)
