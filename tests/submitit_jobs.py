"""Script of test_sweep.py: tools/train.py, whose submitit jobs come from a fork server.

A job is still a process that has nothing of the sweep but what submitit has pickled for it. Only the interpreter is not
a new one, which would spend ten seconds on imports.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from typing import Any

from submitit.core.submission import submitit_main
from submitit.local import local

from processes import CONTEXT

TRAIN = Path(__file__).resolve().parents[1] / "tools" / "train.py"


class Job:
    """A process as submitit sees the one of its controller."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._process = CONTEXT.Process(target=work, args=(str(folder), environment))
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode


def work(folder: str, environment: dict[str, str]) -> None:
    """What submitit's command does in a new interpreter."""
    os.environ.clear()
    os.environ.update(environment, SUBMITIT_LOCAL_JOB_ID=str(os.getpid()))
    sys.argv = ["submitit", folder]
    submitit_main()


def start_controller(folder: Path, command: str, tasks_per_node: int = 1, **_: Any) -> Job:
    assert command.endswith(f"-m submitit.core._submit {folder}")
    assert tasks_per_node == 1
    of_the_job = {"NTASKS": "1", "NODEID": "0", "JOB_NUM_NODES": "1", "LOCALID": "0", "GLOBALID": "0"}
    given = {f"SUBMITIT_LOCAL_{name}": value for name, value in of_the_job.items()}
    return Job(folder, {**os.environ, **given, "SUBMITIT_EXECUTOR": "local"})


if __name__ == "__main__":
    # By the name under which a job's process finds `work`.
    import submitit_jobs

    local.start_controller = submitit_jobs.start_controller
    sys.argv[0] = str(TRAIN)
    runpy.run_path(str(TRAIN), run_name="__main__")
