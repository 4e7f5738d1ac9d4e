"""Tests dealt to forks of the process that has collected them: `pytest --forks 2`.

Each process of pytest-xdist imports and collects everything anew, which takes it fifteen seconds of CPU time. Here that
is done once. A fork that has run out of tests takes half of what another one has left, as with `--dist worksteal`.
Capturing, terminal and warnings are those of the first process; a test whose fork dies fails and says so.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import pytest

CONTEXT = multiprocessing.get_context("fork")
#: What these write comes from the first process, to which all reports go.
OF_THE_FIRST = ("terminalreporter", "lfplugin", "nfplugin", "stepwiseplugin")
NONE = -1


def number_of(value: str) -> int:
    """The number of forks; `auto` is one for each core, eight at most."""
    return min(8, len(os.sched_getaffinity(0))) if value == "auto" else int(value)


def common(folder: Path) -> Path:
    """The folder that all processes of a session share, from the one of temporary files of one of them."""
    return folder.parent if folder.name.startswith(("fork-", "popen-gw")) else folder


class Deal:
    """Which tests are whose, in memory that all processes share.

    A process has four numbers: the bounds of the range of tests it is to run, the test it runs, and the one after that,
    which has to be known before: what both use is not put away between them.
    """

    def __init__(self, tests: int, processes: int) -> None:
        self._numbers = CONTEXT.Array("l", 4 * processes)
        for at in range(processes):
            bounds = tests * at // processes, tests * (at + 1) // processes
            self._numbers[4 * at : 4 * at + 4] = [*bounds, NONE, NONE]

    def claim(self, at: int) -> tuple[int, int]:
        """The test to run now and the one after that; NONE where there is none."""
        with self._numbers.get_lock():
            starts, ends = self._numbers[0::4], self._numbers[1::4]
            left = [end - start for start, end in zip(starts, ends, strict=True)]
            if not left[at]:
                other = left.index(max(left))
                taken = (left[other] + 1) // 2
                self._numbers[4 * other + 1] = ends[other] - taken
                starts[at], left[at] = ends[other] - taken, taken
                self._numbers[4 * at : 4 * at + 2] = [starts[at], starts[at] + taken]
            following = starts[at] if left[at] else NONE
            self._numbers[4 * at] += left[at] > 0
            now = self._numbers[4 * at + 3]
            self._numbers[4 * at + 2 : 4 * at + 4] = [now, following]
            return now, following

    def held(self, at: int) -> list[int]:
        """The tests that a process runs or is about to run."""
        return [test for test in self._numbers[4 * at + 2 : 4 * at + 4] if test != NONE]

    def end(self) -> None:
        """Deal no more."""
        with self._numbers.get_lock():
            self._numbers[1::4] = self._numbers[0::4]


class Told(NamedTuple):
    """What a fork says of a test, or of itself where the test is NONE."""

    test: int
    reports: list[dict[str, Any]]
    warnings: list[dict[str, Any]]


class Teller:
    """In a fork: gathers what pytest says of a test."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.reports: list[dict[str, Any]] = []
        self.warnings: list[dict[str, Any]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.reports.append(self.config.hook.pytest_report_to_serializable(config=self.config, report=report))

    def pytest_warning_recorded(
        self, warning_message: warnings.WarningMessage, when: str, nodeid: str, location: Any
    ) -> None:
        # The message itself may hold what cannot be sent.
        one = warning_message
        shown = warnings.WarningMessage(str(one.message), one.category, one.filename, one.lineno, line=one.line)
        self.warnings.append({"warning_message": shown, "when": when, "nodeid": nodeid, "location": location})

    def told(self, test: int) -> Told:
        told = Told(test, self.reports, self.warnings)
        self.reports, self.warnings = [], []
        return told


class Forks:
    """The plug-in.

    Args:
        count: of processes.
        prepare: called in each of them before its first test.
    """

    def __init__(self, count: int, prepare: Callable[[], None]) -> None:
        self.count = count
        self.prepare = prepare

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        stopped = session.testsfailed and not session.config.option.continue_on_collection_errors
        count = min(self.count, len(session.items))
        if stopped or session.config.option.collectonly or count < 2:
            return None
        # Made here, so that all have their folders in it.
        session.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
        deal = Deal(len(session.items), count)
        forks: dict[Connection, tuple[int, Any]] = {}
        try:
            for at in range(count):
                ours, theirs = CONTEXT.Pipe(duplex=False)
                process = CONTEXT.Process(target=self._work, args=(session, deal, at, theirs))
                process.start()
                theirs.close()
                forks[ours] = at, process
            while forks:
                for ours in wait(list(forks)):
                    self._hear(session, deal, forks, ours)
                if session.shouldfail or session.shouldstop:
                    deal.end()
        finally:
            for _, process in forks.values():
                process.terminate()
                process.join()
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)
        return True

    def _hear(
        self, session: pytest.Session, deal: Deal, forks: dict[Connection, tuple[int, Any]], ours: Connection
    ) -> None:
        try:
            test, reports, recorded = ours.recv()
        except EOFError:
            at, process = forks.pop(ours)
            process.join()
            reason = f"the process of this test ended with exit code {process.exitcode}"
            for test in deal.held(at):
                item = session.items[test]
                report = pytest.TestReport(item.nodeid, item.location, {}, "failed", reason, "call")
                item.ihook.pytest_runtest_logreport(report=report)
                reason = f"not run, since its process ended in {item.nodeid}"
            return
        hook = session.config.hook
        for one in recorded:
            hook.pytest_warning_recorded.call_historic(kwargs=one)
        if test == NONE:
            raise session.Interrupted(reports[0]["reason"])
        item = session.items[test]
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for data in reports:
            report = hook.pytest_report_from_serializable(config=session.config, data=data)
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)

    def _work(self, session: pytest.Session, deal: Deal, at: int, theirs: Connection) -> None:
        # What the first process has to put away at its end is not this one's to put away.
        atexit._clear()
        config = session.config
        for name in OF_THE_FIRST:
            if config.pluginmanager.hasplugin(name):
                config.pluginmanager.unregister(name=name)
        teller = Teller(config)
        config.pluginmanager.register(teller)
        # What was recorded before is told to each new plug-in.
        teller.warnings.clear()
        # Files that hold what is captured would be written by all; between tests nothing is captured.
        capture: Any = config.pluginmanager.getplugin("capturemanager")
        capture.stop_global_capturing()
        capture.start_global_capturing()
        capture.suspend_global_capture()
        factory = config._tmp_path_factory  # type: ignore[attr-defined]
        factory._basetemp = factory.getbasetemp() / f"fork-{at}"
        factory._basetemp.mkdir()
        # Of a fork whose first process is gone there is nobody to tell.
        with contextlib.suppress(BrokenPipeError):
            try:
                self.prepare()
                deal.claim(at)
                while True:
                    now, following = deal.claim(at)
                    if now == NONE:
                        break
                    item = session.items[now]
                    nextitem = None if following == NONE else session.items[following]
                    item.config.hook.pytest_runtest_protocol(item=item, nextitem=nextitem)
                    theirs.send(teller.told(now))
            except BaseException:
                theirs.send(Told(NONE, [{"reason": traceback.format_exc()}], []))
        theirs.close()
        # multiprocessing leaves these out.
        atexit._run_exitfuncs()
