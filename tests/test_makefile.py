"""The Makefile's environment: made on first use, not taken for made when its making broke off."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")

# Stands for a Python; pip and the tools of its venv fail while the file `broken` exists.
FAKE_PYTHON = """#!/bin/sh
case "$1 $2" in
  "-m venv") mkdir -p .venv/bin
             printf '#!/bin/sh\\necho "$@" >> log\\ntest ! -e broken -a ! -e "broken-$2"\\n' > .venv/bin/python
             cp .venv/bin/python .venv/bin/ruff
             chmod +x .venv/bin/python .venv/bin/ruff;;
esac
"""

OLD_PYTHON = """#!/bin/sh
test "$1" = -V && { echo "Python 3.9.2"; exit 0; }
exit 1
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ["Makefile", "setup.cfg", "setup.py", "pyproject.toml"]:
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def make(folder: Path, *arguments: str, python: str = FAKE_PYTHON) -> subprocess.CompletedProcess[str]:
    fake = folder / "fake-python"
    fake.write_text(python)
    fake.chmod(0o755)
    return subprocess.run(
        ["make", f"PYTHON={fake}", *arguments], cwd=folder, capture_output=True, text=True, timeout=60
    )


def test_help_is_the_default_and_lists_every_target(checkout):
    shown = make(checkout).stdout
    targets = re.search(r"^\.PHONY: (.*)$", (checkout / "Makefile").read_text(), flags=re.MULTILINE)[1].split()
    for target in targets:
        assert re.search(rf"^  make {target} +\w", shown, flags=re.MULTILINE), target
    assert not (checkout / ".venv").exists()


def test_environment_is_made_once(checkout):
    assert make(checkout, "lint").returncode == 0
    assert make(checkout, "lint").returncode == 0
    installs = [line for line in (checkout / "log").read_text().splitlines() if "pip install" in line]
    assert len(installs) == 1
    assert installs[0].endswith("--editable .[dev]")


def test_environment_follows_setup_cfg(checkout):
    make(checkout, "lint")
    stamp = checkout / ".venv" / ".installed"
    old = stamp.stat().st_mtime - 60
    os.utime(stamp, (old, old))
    make(checkout, "lint")
    assert (checkout / "log").read_text().count("pip install") == 2


def test_broken_installation_is_done_again(checkout):
    (checkout / "broken").touch()
    assert make(checkout, "lint").returncode != 0
    assert (checkout / ".venv").exists()
    (checkout / "broken").unlink()
    assert make(checkout, "lint").returncode == 0
    assert (checkout / "log").read_text().count("pip install") == 2


def test_old_python_is_named_and_nothing_is_made(checkout):
    done = make(checkout, "test", python=OLD_PYTHON)
    assert done.returncode != 0
    assert "needs Python 3.10 or later" in done.stdout
    assert "Python 3.9.2" in done.stdout
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize(("broken", "said"), [("pytest", "tests failed"), ("mypy", "style or types failed")])
def test_failing_check_fails_make_test_and_the_others_run_to_their_end(checkout, broken, said):
    make(checkout, "lint")
    assert make(checkout, "test").returncode == 0
    (checkout / f"broken-{broken}").touch()
    (checkout / "log").unlink()
    done = make(checkout, "test")
    assert done.returncode != 0
    assert said in done.stdout
    calls = (checkout / "log").read_text()
    assert "-m pytest" in calls
    assert "-m mypy" in calls


def test_ci_runs_make_test():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert "\nmake test\n" in script.read_text()


def test_gpu_tests_need_no_environment_where_python_sees_a_gpu(checkout):
    sees = 'echo "$PYTHONPATH $@" >> calls\n'
    assert make(checkout, "test-gpu", python=f"#!/bin/sh\n{sees}").returncode == 0
    assert not (checkout / ".venv").exists()
    last = (checkout / "calls").read_text().splitlines()[-1]
    assert last.startswith(f"{checkout}:{checkout}/gpu_day/site:")
    assert "-m pytest -q --device cuda" in last
    blind = FAKE_PYTHON.replace('case "$1 $2" in', 'case "$1 $2" in\n  "-c import pytest"*) exit 1;;')
    assert make(checkout, "test-gpu", python=blind).returncode == 0
    assert "-m pytest -q --device cuda" in (checkout / "log").read_text()
