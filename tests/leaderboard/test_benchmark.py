"""A grid of runs: what is started, skipped, resumed, and what a failure does to the others."""

import os
import signal
import subprocess
import sys
import time

import pytest

from mixaug.engine.errors import ConfigError
from mixaug.leaderboard.benchmark import Benchmark, default_jobs, run_grid
from mixaug.leaderboard.grid import expand
from mixaug.leaderboard.launch import CommandLauncher

# Stands for tools/train.py: fails for seed 1, writes a result for the others.
FAKE = """
import json, pathlib, sys
from mixaug.engine.config import compose
from mixaug.engine.run import run_folder
config = compose(sys.argv[1:])
folder = run_folder(config)
folder.mkdir(parents=True, exist_ok=True)
if config.seed == 1:
    (folder / "failure.json").write_text(json.dumps({"status": "failed", "reason": "seed one fails"}))
    sys.exit(3)
(folder / "epochs.jsonl").write_text(json.dumps({"epoch": 1, "test_top1": 50.0 + config.seed}) + "\\n")
(folder / "result.json").write_text("{}")
"""


def cells(root, *arguments):
    return expand([f"root={root}", "epochs=1", *arguments])


def test_comma_lists_make_the_grid(tmp_path):
    grid = cells(tmp_path, "policy=none,mixup", "seed=0,1,2")
    assert len(grid) == 6
    assert len({cell.folder for cell in grid}) == 6
    # Seeds outermost: an interrupted grid has whole comparisons.
    assert [cell.config["seed"] for cell in grid] == [0, 0, 1, 1, 2, 2]
    assert [cell.label for cell in grid][:2] == ["none seed=0", "mixup seed=0"]


def test_experiment_brings_its_grid_and_the_command_line_wins(tmp_path):
    grid = expand(["experiment=digits", f"root={tmp_path}"])
    assert len(grid) == 30
    assert len(expand(["experiment=digits", f"root={tmp_path}", "policy=none,mixup", "seed=4"])) == 2


@pytest.mark.parametrize("arguments", [["policy=none,mixpu"], ["polcy=none"], ["seed=0,one"], ["seed=-1,0"]])
def test_a_wrong_cell_stops_the_grid_before_it_starts(tmp_path, arguments):
    with pytest.raises(ConfigError):
        cells(tmp_path, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_run_is_told_and_stops_nothing(tmp_path):
    launcher = CommandLauncher(1, [sys.executable, "-c", FAKE])
    first = Benchmark(cells(tmp_path, "seed=0,1,2"), launcher, jobs=2, refresh=0.02).run()
    assert [outcome.state for outcome in first] == ["finished", "failed", "finished"]
    assert "seed one fails" in first[1].reason
    assert first[2].score == "Top-1 52.00 %"
    second = Benchmark(cells(tmp_path, "seed=0,1,2"), launcher, refresh=0.02).run()
    assert [outcome.state for outcome in second] == ["skipped", "failed", "skipped"]


def test_a_run_that_dies_without_a_word_is_a_failure(tmp_path):
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    (outcome,) = Benchmark(cells(tmp_path), CommandLauncher(1, [sys.executable, "-c", code]), refresh=0.02).run()
    assert outcome.state == "failed"
    assert "9" in outcome.reason or "kill" in outcome.reason.lower()


def test_bad_options(tmp_path):
    with pytest.raises(ValueError, match="jobs: expected at least 1, got 0"):
        Benchmark([], CommandLauncher(1), jobs=0)
    with pytest.raises(ValueError, match="jobs: expected an integer"):
        run_grid([f"root={tmp_path}"], jobs="many")
    with pytest.raises(ValueError, match="statistic: expected one of"):
        run_grid([f"root={tmp_path}"], statistic="mean")
    assert default_jobs(1, 0) == 1


def test_real_grid_ends_with_its_leaderboard(tmp_path, root, capfd):
    command = [sys.executable, str(root / "tools/benchmark.py"), "policy=none,mixup", "seed=0,1", "epochs=1"]
    command += ["data.train_size=100", f"root={tmp_path}/runs", "jobs=2", "threads=1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "4 runs, 2 at a time" in done.stdout
    assert {path.name for path in (tmp_path / "runs/leaderboard").iterdir()} == {
        "leaderboard.md", "leaderboard.csv", "leaderboard.html",
    }  # fmt: skip
    again = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=300)
    assert again.returncode == 0
    assert "running" not in again.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_ends_the_children(tmp_path, root, number):
    command = [sys.executable, str(root / "tools/benchmark.py"), "policy=none", "epochs=500", f"root={tmp_path}/runs"]
    # A shell that runs this suite in the background lets its children ignore SIGINT: undo that.
    restore = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    process = subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=restore
    )
    deadline = time.time() + 120
    while time.time() < deadline and not list((tmp_path / "runs").glob("*/epochs.jsonl")):
        time.sleep(0.2)
    os.kill(process.pid, number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command continues" in out
    left = subprocess.run(["pgrep", "-f", f"{tmp_path}/runs"], capture_output=True, text=True).stdout.split()
    assert left == []
