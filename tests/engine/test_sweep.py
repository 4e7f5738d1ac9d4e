"""`tools/train.py` as a user calls it: sweeps, exit codes, Hydra's submitit launcher on this machine."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from mixaug.engine.run import read_json
from processes import run_script

JOBS = Path(__file__).resolve().parents[1] / "submitit_jobs.py"
TINY = ("data=digits", "data.train_size=100", "epochs=1", "batch_size=50", "threads=1", "device=cpu", "progress=false")


def call(checkout: Path, where: Path, *arguments: str) -> CompletedProcess[str]:
    return run_script(checkout / "tools" / "train.py", *arguments, cwd=where)


def results(root: Path) -> list[tuple[str, int]]:
    return sorted((r["policy"], r["seed"]) for r in map(read_json, root.glob("*/result.json")))


@pytest.mark.parametrize("seeds", [(0,), pytest.param((0, 1), marks=pytest.mark.slow)])
def test_multirun_makes_one_folder_for_each_point(tmp_path: Path, root: Path, seeds: tuple[int, ...]) -> None:
    (tmp_path / "own" / "policy").mkdir(parents=True)
    (tmp_path / "own" / "policy" / "mine.yaml").write_text("_target_: mixaug.policies.Mixup\n")
    own = ("--config-dir", "own")
    done = call(root, tmp_path, "--multirun", *own, *TINY, "policy=none,mine", f"seed={','.join(map(str, seeds))}")
    assert done.returncode == 0, done.stderr
    assert results(tmp_path / "runs") == [(policy, seed) for policy in ("mine", "none") for seed in seeds]
    # Nothing but the runs' root is left behind.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own", "runs"]


def test_an_error_ends_with_its_reason_and_a_failing_exit_code(tmp_path: Path, root: Path) -> None:
    # Wrong lines that no run begins with are those of test_cli.py.
    failed = call(root, tmp_path, *TINY, "policy=mixup", "policy.alpha=0")
    assert failed.returncode == 2
    assert "alpha" in failed.stderr


# Submitit starts interpreters of its own and asks every few seconds how they are.
@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("hydra_plugins.hydra_submitit_launcher") is None
    if importlib.util.find_spec("hydra_plugins") is not None
    else True,
    reason="needs hydra-submitit-launcher, the cluster extra",
)
def test_the_submitit_launcher_runs_a_sweep_on_this_machine(tmp_path: Path, root: Path) -> None:
    launcher = ("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5", "hydra.launcher.cpus_per_task=1")
    # An interpreter of its own: the jobs come from a fork server that this process starts.
    command = [sys.executable, str(JOBS), "--multirun", *launcher, *TINY, "seed=3"]
    paths = os.pathsep.join([str(JOBS.parent), str(root)])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert results(tmp_path / "runs") == [("none", 3)]
