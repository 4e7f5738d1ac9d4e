"""pytest-xdist's workers, forked from one process that has imported torch and what is around it.

Each worker would import for ten seconds of CPU time what the others import as well, and so would the fork server of
`processes.py`: here the process that hands out the tests starts that server, workers are forked from it, and scripts
that the tests start are forked from it too.
"""

from __future__ import annotations

import gc
import os
import sys
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from processes import CONTEXT


def possible() -> bool:
    """Whether workers can be forked: a process that has looked for a GPU may not fork others that use it."""
    return sys.platform == "linux" and not Path("/dev/nvidiactl").exists() and not Path("/dev/kfd").exists()


def fork_workers() -> None:
    """From now on, execnet forks its workers."""
    from execnet import gateway_io
    from execnet.gateway_base import Popen2IO

    class Forked(Popen2IO):
        def __init__(self, arguments: list[str], execmodel: Any) -> None:
            (told, tell), (heard, hear) = CONTEXT.Pipe(duplex=False), CONTEXT.Pipe(duplex=False)
            forkserver.ensure_running()
            server = {name: getattr(forkserver._forkserver, name, None) for name in SERVER}
            self.process = CONTEXT.Process(target=_work, args=(told, hear, arguments[-1], server))
            self.process.start()
            told.close()
            hear.close()
            files = (os.fdopen(os.dup(tell.fileno()), "wb"), os.fdopen(os.dup(heard.fileno()), "rb"))
            tell.close()
            heard.close()
            super().__init__(*files, execmodel=execmodel)

        def wait(self) -> int | None:
            self.process.join()
            return self.process.exitcode

        def kill(self) -> None:
            self.process.kill()

    gateway_io.Popen2IOMaster = Forked  # type: ignore[misc]


def end() -> None:
    """Wait for the server, so that the time that it and all workers took counts as the tests'."""
    forkserver._forkserver._stop()


#: What a process knows of its fork server, but for its own end of the pipe that keeps the server alive.
SERVER = ("_forkserver_address", "_forkserver_authkey")


def _work(told: Connection, hear: Connection, code: str, server: dict[str, Any]) -> None:
    """What `python -c code` does, with standard input and output of its own."""
    # What is there stays to the end; a collection that looked at it would also copy its pages.
    gc.freeze()
    for connection, number in ((told, 0), (hear, 1)):
        os.dup2(connection.fileno(), number)
        connection.close()
    sys.stdin, sys.stdout = os.fdopen(0, "r", closefd=False), os.fdopen(1, "w", closefd=False)
    sys.argv = ["-c"]
    for name, value in server.items():
        setattr(forkserver._forkserver, name, value)
    # It runs as long as a process that it has forked.
    forkserver._forkserver.ensure_running = lambda: None  # type: ignore[method-assign]
    exec(code, {"__name__": "__main__"})
