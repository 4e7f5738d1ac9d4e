"""Long runs of every kind of policy and objective, killed at random: exact to the last bit, and nothing grows."""

from __future__ import annotations

import gc
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from mixaug.engine import checkpoint, run
from mixaug.engine import train as engine
from mixaug.engine.config import compose

SHARED = ("threads=1", "device=cpu", "progress=false", "checkpoint_every_steps=7", "ema.decay=0.9")
# 20 epochs of 10 batches.
DIGITS = (
    *("data=digits", "data.train_size=200", "batch_size=20", "epochs=20", "eval_batch_size=400"),
    "+model.drop_rate=0.1",
)
# 7 batches an epoch.
NUMBERS = ("experiment=diabetes", "data.split=0", "batch_size=40", "epochs=40")
VIT = (
    *(
        "model=timm",
        "model.name=vit_tiny_patch16_224",
        "+model.img_size=8",
        "+model.patch_size=2",
        "schedule=cosine_step",
    ),
    *("+model.embed_dim=24", "+model.depth=2", "+model.num_heads=2", "+model.drop_path_rate=0.2", "optimizer=adamw"),
)

KINDS = {
    # Pixels alone: blended, cut, in the frequency domain, one of several.
    "mixup": (*DIGITS, "policy=mixup"),
    "cutmix, binary": (*DIGITS, "policy=cutmix", "objective=binary_cross_entropy", "accumulate=3"),
    "fmix": (*DIGITS, "policy=fmix", "clip_grad_norm=1.0"),
    "one of several": (*DIGITS, "policy=rsb", "optimizer=adamw"),
    # Signals of the model: saliency, class activation, hidden features, attention.
    "puzzlemix": (*DIGITS, "policy=puzzlemix"),
    "snapmix": (*DIGITS, "policy=snapmix"),
    "manifoldmix": (*DIGITS, "policy=manifoldmix"),
    "alignmix": (*DIGITS, "policy=alignmix"),
    "transmix": (*DIGITS, *VIT, "policy=transmix"),
    # Learned mixers, momentum copies, generators.
    "automix": (*DIGITS, "policy=automix"),
    "samix": (*DIGITS, "policy=samix", "mixer.lr=0.05"),
    "adamixup": (*DIGITS, "policy=adamixup"),
    # Numbers as labels, each objective.
    "cmixup": (*NUMBERS, "policy=cmixup", "objective=squared_error"),
    "regmix": (*NUMBERS, "policy=regmix", "objective=absolute_error"),
    "mixup of numbers": (*NUMBERS, "policy=mixup", "objective=huber"),
    # Rows that pass through the transforms of files.
    "read": (*DIGITS, "policy=mixup", "data.transform=cifar10_train", "data.image_size=8", "augment.crop_padding=0"),
}

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")


def hooks(module: nn.Module) -> int:
    own = sum(len(getattr(part, name)) for part in module.modules() for name in HOOKS)
    return own + sum(len(tensor._backward_hooks or ()) for tensor in module.parameters())


def alive() -> int:
    """Bytes of all tensors that Python knows."""
    gc.collect()
    found = {id(thing): thing for thing in gc.get_objects() if type(thing) in (Tensor, nn.Parameter)}
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


def resident() -> float:
    """MiB of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, float]]:
    """Hooks, bytes of tensors and resident memory at the beginning of each epoch from now on."""
    really, seen = engine._train_epoch, []

    def train_epoch(training: Any) -> None:
        step = training.state.step
        seen.append((hooks(step), alive(), resident()))
        really(training)
        assert hooks(step) == seen[0][0]

    monkeypatch.setattr(engine, "_train_epoch", train_epoch)
    return seen


def killed_at_random(config: DictConfig, chance: random.Random, longest: float, kills: int) -> int:
    """Start the run in forked processes and kill -9 them at random moments; how many died so."""
    died = 0
    for _ in range(kills):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                engine.train(config)
                code = 0
            finally:
                os._exit(code)
        time.sleep(chance.uniform(0.1, longest))
        os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, -signal.SIGKILL)
        died += code != 0
    return died


def timeless(state: dict[str, Any]) -> dict[str, Any]:
    wall = ("seconds", "samples_per_second", "step_ms", "peak_memory_mb")
    history = [{key: value for key, value in record.items() if key not in wall} for record in state["history"]]
    return {**state, "history": history, "meters": None, "prepare_seconds": None}


def same(one: Any, two: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(same, one, two))
    return torch.equal(one, two) if isinstance(one, Tensor) else bool(one == two)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs fork and /proc")
@pytest.mark.parametrize("kind", KINDS)
def test_long_runs_with_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    def make(root: str) -> DictConfig:
        return compose([*SHARED, *KINDS[kind], f"root={tmp_path / root}"])

    whole, broken = make("whole"), make("broken")
    begun = time.monotonic()
    with monkeypatch.context() as patch:
        seen = watched(patch)
        engine.train(whole)
    took = time.monotonic() - begun
    assert len({tensors for _, tensors, _ in seen[2:]}) == 1, [tensors for _, tensors, _ in seen]
    assert seen[-1][2] - seen[len(seen) // 4][2] < 24, [round(size) for _, _, size in seen]

    died = killed_at_random(broken, random.Random(kind), took / 8, kills=10)
    result = engine.train(broken)
    expected, got = (checkpoint.load(run.run_folder(config) / "last.pt") for config in (whole, broken))
    assert same(timeless(got), timeless(expected))
    assert got["position"]["step"] >= 200
    assert result["status"] == "finished"
    assert len((run.run_folder(broken) / "epochs.jsonl").read_text().splitlines()) == len(seen)
    assert died >= 2
    print(f"{kind}: {got['position']['step']} steps, {died} kills, no difference")
