"""Two real processes over gloo, with the environment that torchrun sets; one slow test starts torchrun itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mixaug.engine import checkpoint, distributed, run
from mixaug.engine.config import compose
from mixaug.engine.train import train
from processes import run_ranks

# The model has no batch statistics, which two processes would take over other samples than one.
MODEL = (
    *("model=timm", "model.name=vit_tiny_patch16_224", "+model.img_size=8", "+model.patch_size=4"),
    *("+model.embed_dim=24", "+model.depth=1", "+model.num_heads=2"),
)
TINY = (*MODEL, "epochs=3", "data=digits", "data.train_size=110", "threads=1", "device=cpu", "progress=false")


SCRIPT = Path(__file__).parents[1] / "train_directly.py"


def two_processes(*overrides: str) -> str:
    return run_ranks(SCRIPT, *overrides)


def state_of(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> dict[str, object]:
    """The last checkpoint of the run that two processes made of these overrides."""
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        return checkpoint.load(run.run_folder(compose(overrides)) / "last.pt")


def test_two_processes_train_as_one_with_the_doubled_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = (*TINY, "batch_size=10", f"root={tmp_path}")
    said = two_processes(*two)
    assert said.count("epoch 3/3") == 1  # one process speaks
    one = compose([*TINY, "batch_size=20", f"root={tmp_path}"])
    result = train(one)
    expected = checkpoint.load(run.run_folder(one) / "last.pt")
    got = state_of(monkeypatch, *two)
    for name, value in expected["model"].items():
        torch.testing.assert_close(got["model"][name], value, rtol=1e-4, atol=1e-6, msg=name)
    for ours, theirs in zip(got["history"], expected["history"], strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)
        # No test sample is left out or counted twice.
        assert ours["test_top1"] == pytest.approx(theirs["test_top1"], abs=1e-9)
        assert ours["test_nll"] == pytest.approx(theirs["test_nll"], rel=1e-4)
    assert result["ece_last"] > 0


def test_each_process_mixes_from_its_own_stream_and_resumes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = (*TINY, "policy=mixup", "batch_size=10", "+model.drop_rate=0.1")
    whole, broken = (*shared, f"root={tmp_path / 'whole'}"), (*shared, f"root={tmp_path / 'broken'}")
    two_processes(*whole)
    expected = state_of(monkeypatch, *whole)
    mixing = expected["streams"]["mixing"]
    assert mixing.shape[0] == 2
    assert not torch.equal(mixing[0], mixing[1])
    assert not torch.equal(expected["streams"]["cpu"][0], expected["streams"]["cpu"][1])

    # The second epoch's checkpoint is put back, as if the processes had died in the third.
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        source, target = run.run_folder(compose(whole)), run.run_folder(compose(broken))
    target.mkdir(parents=True)
    (target / "last.pt").write_bytes((source / "previous.pt").read_bytes())
    assert "resumed at epoch 2" in two_processes(*broken)
    got = state_of(monkeypatch, *broken)
    assert torch.equal(got["streams"]["mixing"], mixing)
    for name, value in expected["model"].items():
        assert torch.equal(got["model"][name], value), name


def test_two_processes_score_every_row_of_a_regression_set_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mixaug.engine.stored import evaluate_checkpoint

    overrides = ("experiment=diabetes", "policy=cmixup", "epochs=2", "device=cpu", "progress=false", "data.split=0")
    two = (*overrides, "policy.stages=[layer1]", f"root={tmp_path}")
    assert two_processes(*two).count("epoch 2/2") == 1
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        folder = run.run_folder(compose(two))
    result = run.read_json(folder / "result.json")
    scores = evaluate_checkpoint(folder, device="cpu")
    assert scores["samples"] == 100
    assert result["rmse_last"] == pytest.approx(scores["rmse"], rel=1e-6)
    assert result["r2_last"] == pytest.approx(scores["r2"], rel=1e-6)


@pytest.mark.slow
def test_torchrun_starts_the_two_processes(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = (*TINY, "policy=mixup", "batch_size=10", "epochs=1")
    by_hand, by_torchrun = ((*overrides, f"root={tmp_path / name}") for name in ("hand", "torchrun"))
    two_processes(*by_hand)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(root / "tools" / "train.py"), *by_torchrun]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("epoch 1/1") == 1
    expected, got = (state_of(monkeypatch, *which)["model"] for which in (by_hand, by_torchrun))
    for name, value in expected.items():
        assert torch.equal(got[name], value), name


@pytest.mark.parametrize(("asked", "index"), [("cuda", 2), ("auto", 2), ("cuda:1", 1)])
def test_a_process_alone_takes_the_gpu_that_is_asked_for(
    asked: str, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torch's own `set_device` checks what it is given, and asks for the GPU behind it here.
    now = [2]
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: now[0])
    monkeypatch.setattr(torch._C, "_cuda_setDevice", lambda number: now.__setitem__(0, number), raising=False)
    assert distributed.start(asked).device == torch.device("cuda", index)
    assert now == [index]
