"""One process at a time works on a run folder; the lock ends with its process, however that ends."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from helpers import FINISHED
from mixaug.engine import lock, run
from mixaug.engine.errors import RunFolderError, RunHeld
from mixaug.engine.lock import EXIT_HELD, RunLock, holder
from mixaug.engine.train import train
from mixaug.leaderboard import progress
from mixaug.leaderboard.benchmark import Benchmark
from mixaug.leaderboard.grid import Cell

Tiny = Callable[..., DictConfig]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a lock is waited for is a test of its own; the others are refused sooner."""
    monkeypatch.setattr(lock, "PATIENCE", 0.1)


def hold(folder: Path, told: Connection) -> None:
    """Take the folder, leave a forked child behind as a loader does, and wait to be killed."""
    RunLock(folder).take()
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    told.send(child)
    time.sleep(60)


def test_another_process_is_refused_until_kill_nine_ends_the_first(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=hold, args=(tmp_path / "run", there))
    process.start()
    child = here.recv()
    try:
        who = holder(tmp_path / "run")
        assert who is not None
        assert (who.pid, who.host) == (process.pid, socket.gethostname())
        with pytest.raises(RunHeld, match=rf"held by process {process.pid} on {socket.gethostname()} since 2\d\d\d-"):
            RunLock(tmp_path / "run").take()
        assert isinstance(process.pid, int)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        os.kill(child, 0)  # a worker outlives its run by some seconds, and holds nothing
        assert holder(tmp_path / "run") is None
        with RunLock(tmp_path / "run") as own:
            own.take()
            assert holder(tmp_path / "run") is not None
        assert list((tmp_path / "run").iterdir()) == []
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_release_and_a_take_at_once_never_give_the_folder_to_two(tmp_path: Path) -> None:
    """What is locked but no longer at its place is not the lock."""
    first, second = RunLock(tmp_path), RunLock(tmp_path)
    first.take()
    really = fcntl.flock

    def flock(descriptor: int, operation: int) -> None:
        if first.held and operation & fcntl.LOCK_EX:
            first.release()  # this falls between the other's open and its lock
        really(descriptor, operation)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "flock", flock)
        second.take()
    assert holder(tmp_path) is not None
    with pytest.raises(RunHeld):
        RunLock(tmp_path).take()
    second.release()
    assert holder(tmp_path) is None


def test_a_holder_that_ends_within_the_patience_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "PATIENCE", 30.0)
    first, second = RunLock(tmp_path), RunLock(tmp_path)
    first.take()
    end = threading.Timer(0.1, first.release)
    end.start()
    second.take()
    end.join()
    assert second.held
    second.release()


def test_a_second_run_leaves_the_folder_as_it_is(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny("policy=mixup")
    folder = run.run_folder(config)
    with RunLock(folder) as own:
        own.take()
        (folder / "epochs.jsonl").write_text('{"epoch": 1}\n')
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        monkeypatch.setattr("mixaug.engine.build.load_data", lambda config: pytest.fail("the answer came late"))
        with pytest.raises(RunHeld):
            train(config)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert run.status(folder) == "unfinished"


def test_a_run_that_another_process_finished_meanwhile_is_skipped(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from mixaug.engine import build

    config = tiny()
    folder = run.run_folder(config)
    really = build.load_data

    def load(config: DictConfig) -> Any:
        folder.mkdir(parents=True)
        run.write_json(folder / "result.json", {**json.loads(FINISHED), "by": "another"})
        return really(config)

    monkeypatch.setattr(build, "load_data", load)
    assert train(config)["by"] == "another"
    assert [path.name for path in folder.iterdir()] == ["result.json"]


def test_a_folder_that_was_taken_away_is_not_written_to(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from mixaug.engine import train as engine

    config = tiny()
    folder = run.run_folder(config)
    really = engine._record

    def record(*arguments: Any) -> dict[str, Any]:
        (folder / lock.NAME).unlink()
        (folder / lock.NAME).write_text("another process's")
        return really(*arguments)

    monkeypatch.setattr(engine, "_record", record)
    with pytest.raises(RunFolderError, match=r"\.lock was removed while the run was working"):
        train(config)
    assert {path.name for path in folder.iterdir()} == {lock.NAME, "config.yaml", "environment.json", "epochs.jsonl"}
    assert (folder / "epochs.jsonl").read_text() == ""
    assert (folder / lock.NAME).read_text() == "another process's"


def test_a_file_system_without_locks_is_said_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    said: list[str] = []
    with RunLock(tmp_path, said.append) as own:
        own.take()
        assert own.held
    assert len(said) == 1
    assert "file system without locks" in said[0]
    assert holder(tmp_path) is None


def test_what_a_dead_holder_on_another_host_left_is_said(tmp_path: Path) -> None:
    (tmp_path / lock.NAME).write_text(json.dumps({"pid": 7, "host": "far", "since": "2030-01-01T00:00:00+00:00"}))
    assert holder(tmp_path) is None
    said: list[str] = []
    RunLock(tmp_path, said.append).take()
    assert "process 7 on far" in said[0]


@pytest.mark.parametrize("torn", [b"", b"{", b"[]", b'{"pid": "x"}', bytes(range(256))])
def test_a_holder_that_cannot_be_read_is_still_a_holder(tmp_path: Path, torn: bytes) -> None:
    with RunLock(tmp_path) as own:
        own.take()
        (tmp_path / lock.NAME).write_bytes(torn)
        assert str(holder(tmp_path)) == "another process"
        with pytest.raises(RunHeld, match="held by another process"):
            RunLock(tmp_path).take()


def test_a_lock_that_cannot_be_written_names_path_and_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(RunFolderError, match=r"\.lock: No space left on device"):
            RunLock(tmp_path).take()
    assert list(tmp_path.iterdir()) == []


class Launcher:
    """Cells that end at once; the first start of those named is refused as held."""

    def __init__(self, refused: set[str]) -> None:
        self.refused, self.started = refused, []

    def start(self, cell: Cell, log: Path, environment: Any) -> Any:
        self.started.append(cell.label)
        code = EXIT_HELD if cell.label in self.refused else 0
        self.refused.discard(cell.label)
        if code == 0:
            cell.folder.mkdir(parents=True, exist_ok=True)
            (cell.folder / "result.json").write_text(FINISHED)

        class Job:
            def poll(self) -> int:
                return code

            def send(self, number: signal.Signals) -> None:
                """It has ended."""

            def cpu_seconds(self) -> None:
                """Nobody knows."""

        return Job()

    def close(self) -> None:
        """Nothing is held."""


def test_a_benchmark_takes_other_cells_meanwhile_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "HELD_PAUSE", 0.05)
    cells = [Cell(name, (), {"epochs": 1}, tmp_path / name) for name in ("freed", "refused", "theirs", "free")]
    freed, theirs = RunLock(cells[0].folder), RunLock(cells[2].folder)
    freed.take()
    theirs.take()
    launcher, seen = Launcher({"refused"}), []

    def display(outcomes: Any) -> None:
        seen.append([outcome.state for outcome in outcomes])
        if outcomes[3].state == "finished" and freed.held:
            assert outcomes[0].reason.startswith(f"held by process {os.getpid()} on ")
            freed.release()  # the process died
            (cells[2].folder / "result.json").write_text(FINISHED)  # and this one was finished
            theirs.release()

    done = Benchmark(cells, launcher, refresh=0.01, display=display).run()
    assert [outcome.state for outcome in done] == ["finished", "finished", "skipped", "finished"]
    assert [outcome.reason for outcome in done] == [""] * 4
    assert "failed" not in {state for states in seen for state in states}
    assert launcher.started[:2] == ["refused", "free"]
    assert sorted(launcher.started[2:]) == ["freed", "refused"]
