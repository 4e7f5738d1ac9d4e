"""Tests in forks of one process: each is run once, and what becomes of it is told."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from forks import NONE, Deal, common, number_of

CONFTEST = """
import forks, pytest
def pytest_configure(config):
    config.pluginmanager.register(forks.Forks(2, lambda: print("ready")))
"""
TESTS = """
import os, signal, time, warnings
import pytest

@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    made = tmp_path_factory.mktemp("shared")
    yield made
    (made / "down").touch()

@pytest.mark.parametrize("n", range(12))
def test_one(n, shared, tmp_path):
    assert tmp_path.is_dir() and not (shared / "down").exists()
    print("this is", n)
    if n == 2: warnings.warn("this warns")
    if n == 3: pytest.skip("not now")
    assert n != 5, "this fails"
    if n == 8: os.kill(os.getpid(), signal.SIGKILL)
"""


def test_each_test_is_dealt_once_and_known_before_it_is_run():
    deal, seen, next_of = Deal(11, 3), [], {}
    for at in range(3):
        deal.claim(at)
    # The second process is quick, and takes from the others when it has run out.
    turns, ended = [1, 1, 1, 1, 1, 0, 1, 2] * 4, set()
    for at in turns:
        now, following = deal.claim(at)
        assert next_of.get(at, now) == now
        next_of[at] = following
        if now == NONE:
            ended.add(at)
            assert deal.held(at) == []
        else:
            seen.append(now)
            assert deal.held(at) == [test for test in (now, following) if test != NONE]
    assert sorted(seen) == list(range(11)) and ended == {0, 1, 2}
    assert {1, 2, 3} & set(seen[:8]) != {1, 2, 3}, "the others have kept some"


def test_none_is_dealt_after_the_end_but_what_was_announced():
    deal = Deal(10, 2)
    deal.claim(0), deal.claim(1)
    deal.end()
    assert [deal.claim(at) for at in (0, 1, 0, 1)] == [(0, NONE), (5, NONE), (NONE, NONE), (NONE, NONE)]


def test_number_and_folders_of_forks():
    assert number_of("3") == 3 and 1 <= number_of("auto") <= 8
    base = Path("/tmp/pytest-1")
    assert {common(folder) for folder in (base, base / "fork-1", base / "popen-gw0")} == {base}


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_some.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_failures_skips_warnings_output_and_dead_forks_are_told(tmp_path):
    code, said = run(tmp_path)
    assert code == 1
    # The test after the one in which a process dies is not run.
    assert "3 failed, 8 passed, 1 skipped, 1 warning" in said
    assert "assert 5 != 5" in said and "this is 5\n" in said
    assert "UserWarning: this warns" in said and "not now" in said
    assert re.search(r"FAILED test_some.py::test_one\[8\] - the process of this test ended with exit", said)
    assert re.search(r"FAILED test_some.py::test_one\[9\] - not run, since its process ended", said)
    assert {int(n) for n in re.findall(r"(?:PASSED|FAILED) test_some.py::test_one\[(\d+)\]", said)} == {*range(12)} - {
        3
    }


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_first_failure_ends_all(tmp_path):
    code, said = run(tmp_path, "-x", "-k", "5 or 0 or 6 or 7 or 9 or 10 or 11")
    assert code == 1 and "1 failed" in said and "stopping after 1 failures" in said
