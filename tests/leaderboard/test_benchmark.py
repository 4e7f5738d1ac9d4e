"""A grid of runs: what is started, skipped, resumed, and what a failure does to the others."""

import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers import FINISHED
from mixaug.commands.benchmark import main as benchmark_command
from mixaug.engine.config import compose, plain
from mixaug.engine.errors import ConfigError
from mixaug.leaderboard import benchmark
from mixaug.leaderboard.benchmark import Benchmark, default_jobs, run_grid
from mixaug.leaderboard.grid import Cell, expand
from mixaug.leaderboard.launch import CommandLauncher, train_cell
from mixaug.leaderboard.progress import Outcome
from processes import CONTEXT, Script

# A stand-in for tools/train.py: it fails for seed 1 and writes a result for the others. It reads the folders of the
# overrides, which spares each process the import of torch.
FAKE = (
    f"""
FINISHED = {FINISHED!r}
"""
    + """
import json, pathlib, sys
folders = json.loads(pathlib.Path(sys.argv[1]).read_text())
folder = pathlib.Path(folders[" ".join(sys.argv[2:])])
seed = int(next(given for given in sys.argv if given.startswith("seed=")).removeprefix("seed="))
folder.mkdir(parents=True, exist_ok=True)
if seed == 1:
    (folder / "failure.json").write_text(json.dumps({"status": "failed", "reason": "seed one fails"}))
    sys.exit(3)
(folder / "epochs.jsonl").write_text(json.dumps({"epoch": 1, "test_top1": 50.0 + seed}) + "\\n")
(folder / "result.json").write_text(FINISHED)
"""
)


ENDLESS = """
import sys
from mixaug.leaderboard import benchmark, launch
command = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
benchmark._launcher = lambda name, threads: launch.CommandLauncher(threads, command)
sys.exit(benchmark.run_grid(sys.argv[1:]))
"""


# Real runs, forked from the benchmark itself: a fork server of its own would import for ten seconds what is imported.
FORKED = """
import multiprocessing, sys
from mixaug.leaderboard import benchmark, launch
class Launcher(launch.ForkLauncher):
    def __init__(self, threads):
        super().__init__(threads)
        self._context = multiprocessing.get_context("fork")
benchmark._launcher = lambda name, threads: Launcher(threads)
sys.exit(benchmark.run_grid(sys.argv[1:]))
"""


def cells(root, *arguments):
    return expand([f"root={root}", "epochs=1", *arguments])


def test_comma_lists_make_the_grid(tmp_path):
    grid = cells(tmp_path, "policy=none,mixup", "seed=0,1,2")
    assert len(grid) == 6
    assert len({cell.folder for cell in grid}) == 6
    # Seeds are the outermost loop: an interrupted grid has whole comparisons.
    assert [cell.config["seed"] for cell in grid] == [0, 0, 1, 1, 2, 2]
    assert [cell.label for cell in grid][:2] == ["none seed=0", "mixup seed=0"]


def test_experiment_brings_its_grid_and_the_command_line_wins(tmp_path):
    grid = expand(["experiment=digits", f"root={tmp_path}"])
    assert len(grid) == 30
    assert len(expand(["experiment=digits", f"root={tmp_path}", "policy=none,mixup", "seed=4"])) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["policy=none,mixpu"],
        ["polcy=none"],
        ["seed=0,one"],
        ["seed=-1,0"],
        ["policy=mixup", "policy.alpha=0.2,1", "policy.ratio=beta,uniform"],
    ],
)
def test_a_wrong_cell_stops_the_grid_before_it_starts(tmp_path, arguments):
    with pytest.raises(ConfigError):
        cells(tmp_path, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_run_is_told_and_stops_nothing(tmp_path):
    grid = cells(tmp_path, "seed=0,1,2")
    folders = tmp_path / "folders.json"
    folders.write_text(json.dumps({" ".join(cell.overrides): str(cell.folder) for cell in grid}))
    launcher = CommandLauncher(1, [sys.executable, "-S", "-c", FAKE, str(folders)])
    first = Benchmark(grid, launcher, jobs=2, refresh=0.02).run()
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


def test_a_log_that_is_a_link_is_replaced(tmp_path):
    mine, grid = tmp_path / "mine", cells(tmp_path)
    mine.write_text("precious")
    (outcome,) = Benchmark(grid, launcher := CommandLauncher(1, [sys.executable, "-S", "-c", "print('mine')"])).outcomes
    outcome.log.parent.mkdir(parents=True)
    outcome.log.symlink_to(mine)
    (outcome,) = Benchmark(grid, launcher, refresh=0.02).run()
    assert mine.read_text() == "precious"
    assert outcome.log.read_text() == "mine\n"


def test_bad_options(tmp_path):
    with pytest.raises(ValueError, match="jobs: expected at least 1, got 0"):
        Benchmark([], CommandLauncher(1), jobs=0)
    with pytest.raises(ValueError, match="jobs: expected an integer"):
        run_grid([f"root={tmp_path}"], jobs="many")
    with pytest.raises(ValueError, match="statistic: expected one of"):
        run_grid([f"root={tmp_path}"], statistic="mean")
    assert default_jobs(1, 0) == 1


def test_real_grid_ends_with_its_leaderboard(tmp_path, capsys):
    """Real runs come from a fork server, here that of the tests, which has imported what they need."""
    first = CONTEXT.Process(target=int)
    first.start()
    first.join()
    own = tmp_path / "own"
    (own / "policy").mkdir(parents=True)
    (own / "policy" / "mine.yaml").write_text("_target_: mixaug.policies.Mixup\n")
    command = ["policy=none,mine", "seed=0", "epochs=1", "--config-dir", str(own)]
    command += ["data=digits", "data.train_size=100", f"root={tmp_path}/runs", "jobs=2", "threads=1"]
    command += ["schedule.warmup_lr=0.1"]
    assert benchmark_command(command) == 0
    said, warned = capsys.readouterr()
    assert "2 runs, 2 at a time" in said
    # What does nothing is told by the command, and in the log of each run as mixaug train would tell it.
    idle = "warning: schedule.warmup_lr=0.1 does nothing without a warm-up"
    assert warned.count(idle) == 1
    logs = [path.read_text() for path in (tmp_path / "runs/logs").iterdir()]
    assert [log.count(idle) for log in logs] == [1, 1], logs
    assert {path.name for path in (tmp_path / "runs/leaderboard").iterdir()} == {
        "leaderboard.md", "leaderboard.csv", "leaderboard.html",
    }  # fmt: skip
    page = (tmp_path / "runs/leaderboard/leaderboard.md").read_text()
    assert f"mixaug benchmark --config-dir {own} policy=mine" in page and "mixaug benchmark policy=none" in page
    assert benchmark_command(command) == 0
    assert "running" not in capsys.readouterr().out


def writers(folder):
    """Processes with an open file below the folder: each run writes its log there."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if os.readlink(link).startswith(str(folder)):
                found.add(int(link.parts[2]))
    return found


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_ends_the_children(tmp_path, number):
    """Real runs end with SIGTERM; a command that never ends stands for them with SIGINT."""
    tool, begun = tmp_path / "tool.py", "*/epochs.jsonl" if number == signal.SIGTERM else "**/*.log"
    tool.write_text(FORKED if number == signal.SIGTERM else ENDLESS)
    process = Script(tool, "policy=none", "epochs=500", f"root={tmp_path}/runs")
    deadline = time.time() + 120
    runs = tmp_path / "runs"
    while time.time() < deadline and not (list(runs.glob(begun)) and writers(runs) - {process.pid}):
        assert process.poll() is None, process.output()
        time.sleep(0.05)
    assert writers(runs) - {process.pid}
    process.send_signal(number)
    done = process.wait(60)
    assert done.returncode == 130
    assert "the same command continues" in done.stdout
    # One that was being started at that moment ends with its parent, which the system sees to.
    deadline = time.time() + 10
    while writers(runs) and time.time() < deadline:
        time.sleep(0.05)
    assert not writers(runs)


def test_progress_shows_the_measure_that_counts(tmp_path: Path) -> None:
    (tmp_path / "epochs.jsonl").write_text('{"epoch": 3, "test_top1": 90.0, "test_worst_group": 40.0}\n')
    for measure, shown in ((None, "Top-1 90.00 %"), ("worst_group", "Worst group 40.00 %")):
        outcome = Outcome(Cell("none", (), {"measure": measure, "epochs": 5}, tmp_path), tmp_path / "log")
        assert outcome.look() and outcome.score == shown


class Refusing:
    """A launcher whose runs end at once with a code, as those that cannot work do."""

    def __init__(self, codes):
        self.codes = list(codes)

    def start(self, cell, log, environment):
        log.write_text(f"error: {cell.label} cannot work")
        code = self.codes.pop(0)
        return SimpleNamespace(poll=lambda: code, cpu_seconds=lambda: 0.0)

    def close(self):
        """Nothing is held."""


@pytest.mark.parametrize(("codes", "begun"), [((2, 2), False), ((2, 1), True)])
def test_a_grid_of_which_no_run_can_begin_is_a_wrong_line(tmp_path, monkeypatch, codes, begun):
    monkeypatch.setattr(benchmark, "_launcher", lambda name, threads: Refusing(codes))
    monkeypatch.setattr(benchmark.time, "sleep", lambda seconds: None)
    given = ["data=digits", "policy=none,mixup", "threads=1", f"root={tmp_path}"]
    if begun:
        assert run_grid(given, jobs=1) == 1
        assert (tmp_path / "leaderboard").is_dir()
        return
    with pytest.raises(ConfigError, match=r"none of the runs can begin: .*none cannot work.*; .*mixup cannot work"):
        run_grid(given, jobs=1)
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


def test_a_run_that_cannot_work_ends_with_the_status_for_that(tmp_path, capsys):
    config = plain(compose(["data=imagefolder", f"data.root={tmp_path / 'none'}", f"root={tmp_path}", "device=cpu"]))
    with pytest.raises(SystemExit) as ended:
        train_cell(config)
    assert ended.value.code == 2
    assert "does not exist" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
