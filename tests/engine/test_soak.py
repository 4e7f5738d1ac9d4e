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
from torch.nn import functional as F

import mixaug
from mixaug.engine import build, checkpoint, run
from mixaug.engine import train as engine
from mixaug.engine.config import compose
from mixaug.passes import Wants

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

VIEWS = ("views=[second]", "augment.crop_padding=1")
OUTLIERS = (
    "policy.partners={_target_: mixaug.partners.Stream, name: outliers, label: uniform}",
    *("+streams.outliers.data.name=digits", "+streams.outliers.data.train_size=70"),
)
NETWORKS = (
    "+networks.teacher=TEACHER",
    "+networks.slow={_target_: mixaug.networks.Momentum, momentum: 0.9}",
    "+networks.side={_target_: mixaug.networks.Auxiliary, network: {_target_: torch.nn.Sequential, _args_: "
    "[{_target_: torch.nn.Flatten}, {_target_: torch.nn.Linear, in_features: 64, out_features: 10}]}}",
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
    # Objectives of several passes, with a teacher, a slow copy and a network that learns beside the model.
    "regmixup": (*DIGITS, "policy=cutmix", "objective=regmixup"),
    "rankmixup": (*DIGITS, "policy=mixup", "objective=rankmixup"),
    "decoupled": (*DIGITS, "policy=puzzlemix", "objective=decoupled"),
    "augmix": (*DIGITS, "policy=none", "objective=augmix", "objective.mean=[0.3]", "objective.std=[0.4]"),
    "mixkd": (*DIGITS, "policy=mixup", "objective=mixkd", "+networks.teacher=TEACHER"),
    "cutmixpick": (*DIGITS, "policy=cutmix", "policy.pairing=derangement", "objective=cutmixpick", *NETWORKS[:1]),
    "three networks": (*DIGITS, "policy=cutmix", *NETWORKS, *VIEWS, "accumulate=2"),
    # Partners from elsewhere, and what is made anew now and then.
    "recursivemix": (*DIGITS, "policy=recursivemix"),
    "previous batch": (*DIGITS, "policy=fmix", "policy.partners={_target_: mixaug.partners.PreviousBatch}"),
    "memory": (*DIGITS, "policy=cutmix", "policy.partners={_target_: mixaug.partners.Memory, size: 60}"),
    "another stream": (*DIGITS, "policy=mixup", *OUTLIERS, "objective=mixoe"),
    "another view": (
        *DIGITS,
        "policy=cutmix",
        "policy.partners={_target_: mixaug.partners.View, name: second}",
        *VIEWS,
    ),
    "training set": (*DIGITS, "policy=resizemix", "pool=all", "augment.crop_padding=0"),
    "refreshed": (
        *DIGITS,
        "policy=selmix",
        "policy.refresh_every=13",
        "policy.measure=min_recall",
        # 210 of them are trained on.
        "data.train_size=300",
        "data.valid_share=0.3",
    ),
    # An auxiliary network that finds partners, pseudo-labels of a whole set, a memory of the objective's own.
    "selecmix": (
        *(*DIGITS, "policy=selecmix", "objective=selecmix"),
        "+networks.biased={_target_: mixaug.networks.Auxiliary, network: "
        "{_target_: mixaug.models.projector, dim: 8, hidden: 8, in_chans: 1}}",
    ),
    "cowa": (*DIGITS, "policy=mixup", "objective=cowa"),
    "dualmix": (*DIGITS, "policy=mixup", "objective=dualmix", "objective.size=60"),
    "ferkd": (*DIGITS, "policy=selfmix", "policy.view=second", *VIEWS, "objective=ferkd", NETWORKS[0]),
    # Rows that pass through the transforms of files.
    "read": (*DIGITS, "policy=mixup", "data.transform=cifar10_train", "data.image_size=8", "augment.crop_padding=0"),
}


class Three(mixaug.Objective):
    """The loss of the mixed pass, beside agreement with a frozen teacher, a slow copy and a network that learns."""

    wants = Wants(views=("second",), networks=("teacher", "slow", "side"))

    def forward(self, passes: mixaug.Passes) -> dict[str, Tensor]:
        mixed = passes.run(passes.mixed)
        teacher = passes.run(passes.mixed, network="teacher", grad=False)
        slow = passes.run(passes.view("second"), network="slow", grad=False)
        side = passes.run(passes.clean, network="side")
        return {
            "mixed": self.loss(mixed.outputs, mixed.batch),
            "teacher": 0.1 * F.mse_loss(mixed.outputs, teacher.outputs),
            "slow": 0.1 * F.mse_loss(mixed.outputs, slow.outputs),
            "side": self.loss(side.outputs, side.batch),
        }


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on digits."""
    given = ("data=digits", "data.train_size=100", "batch_size=50", "epochs=1", *SHARED, "ema.decay=null")
    config = compose([*given, f"root={tmp_path_factory.mktemp('teacher')}"])
    engine.train(config)
    return run.run_folder(config)


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
def test_long_runs_with_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher: Path, kind: str) -> None:
    def make(root: str) -> DictConfig:
        settings = [setting.replace("TEACHER", str(teacher)) for setting in KINDS[kind]]
        return compose([*SHARED, *settings, f"root={tmp_path / root}"])

    if kind == "three networks":
        monkeypatch.setattr(build, "build_objective", lambda config: Three(mixaug.losses.MixedCrossEntropy()))

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
