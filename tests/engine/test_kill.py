"""Kill -9 at any moment, then the same command: the end is bit-identical to that of an undisturbed run."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from helpers import THIN
from mixaug.engine import checkpoint, run
from mixaug.engine.config import compose
from mixaug.engine.train import train
from processes import Script

OVERRIDES = (
    *("policy=mixup", "data=digits", "data.train_size=200", "batch_size=20", "epochs=5", "threads=1", "device=cpu"),
    *("ema.decay=0.9", "+model.drop_rate=0.1", "checkpoint_every_steps=3", "progress=false"),
    *THIN,
)


SCRIPT = Path(__file__).parents[1] / "train_directly.py"


def started(root: Path) -> Script:
    return Script(SCRIPT, *OVERRIDES, f"root={root}")


def inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return 0


# The kills come right after the start, in the middle of things, and while a checkpoint is being replaced.
@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
@pytest.mark.parametrize(
    "moments",
    [
        ((0, 0.0), (2, 0.004), (5, 0.001)),
        pytest.param(((0, 0.0), (2, 0.004), (9, 0.001), (4, 0.02)), marks=pytest.mark.slow),
    ],
    ids=["three", "four"],
)
def test_kill_nine_at_several_moments_changes_nothing(tmp_path: Path, moments: tuple[tuple[int, float], ...]) -> None:
    folder = run.run_folder(compose([*OVERRIDES, f"root={tmp_path / 'killed'}"]))
    for writes, delay in moments:
        process = started(tmp_path / "killed")
        last, seen, known = folder / "last.pt", 0, inode(folder / "last.pt")
        deadline = time.monotonic() + 300
        while seen < writes or (writes == 0 and not folder.exists()):
            assert process.poll() is None, process.output()
            assert time.monotonic() < deadline
            now = inode(last)
            seen, known = seen + int(now not in (known, 0)), now or known
            time.sleep(0.002)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        assert process.wait().returncode == -signal.SIGKILL
        assert run.status(folder) == "unfinished"
    process = started(tmp_path / "killed")
    done = process.wait()
    assert done.returncode == 0, done.stderr
    assert "resumed at epoch" in done.stdout
    assert run.status(folder) == "finished"

    undisturbed = compose([*OVERRIDES, f"root={tmp_path / 'whole'}"])
    train(undisturbed)
    expected = checkpoint.load(run.run_folder(undisturbed) / "last.pt")
    got = checkpoint.load(folder / "last.pt")
    for part in ("model", "ema"):
        for name, value in expected[part].items():
            assert torch.equal(got[part][name], value), f"{part}.{name}"
    for one, two in zip(expected["history"], got["history"], strict=True):
        for key in ("epoch", "train_loss", "train_accuracy", "lr", "test_top1", "test_nll"):
            assert one[key] == two[key], key
    assert len((folder / "epochs.jsonl").read_text().splitlines()) == 5
