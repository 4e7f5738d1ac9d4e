"""A step with three passes of the model and two networks beside it: resumed, in two processes, and compiled."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

import mixaug
from helpers import interrupt
from mixaug import Objective, Wants, networks
from mixaug.engine import checkpoint, run
from mixaug.engine.config import compose
from mixaug.engine.train import train
from mixaug.passes import Passes
from processes import in_two_processes

Tiny = Callable[..., DictConfig]
TINY = ("data.train_size=100", "batch_size=12", "epochs=2", "threads=1", "device=cpu", "progress=false")


class ThreePasses(Objective):
    """The clean batch and two draws; a frozen teacher says what the first, a slow copy what the clean one should be."""

    wants = Wants(networks=("teacher", "slow"))

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__(mixaug.losses.MixedCrossEntropy(label_smoothing))

    def forward(self, passes: Passes) -> Mapping[str, Tensor]:
        clean, first, second = passes.run(passes.clean, passes.draw(index=1), passes.draw(index=2))
        teacher = passes.run(passes.draw(index=1), network="teacher", grad=False)
        slow = passes.run(passes.clean, network="slow", grad=False)
        return {
            "labels": sum((self.loss(one.outputs, one.batch) for one in (clean, first, second)), torch.zeros(())),
            "teacher": (first.outputs - teacher.outputs).square().mean(),
            "slow": 0.1 * (clean.outputs - slow.outputs).square().mean(),
        }


def overrides(teacher: Path) -> list[str]:
    return [
        "policy=cutmix",
        f"objective._target_={ThreePasses.__module__}.ThreePasses",
        f"+networks.teacher={teacher}",
        "+networks.slow={_target_: mixaug.networks.Momentum, momentum: 0.9}",
        "checkpoint_every_steps=1",
    ]


def state_of(config: DictConfig) -> dict[str, Tensor]:
    """Weights of the model and of its slow copy, and what the optimizer keeps."""
    state = checkpoint.load(run.run_folder(config) / checkpoint.LAST)
    momentum = {f"momentum {i}": s["momentum_buffer"] for i, s in state["optimizer"]["state"].items()}
    beside = {f"networks {name}": value for name, value in state["networks"].items()}
    return {**state["model"], **beside, **momentum}


def resumed_equals_whole(whole: DictConfig, broken: DictConfig) -> dict[str, Tensor]:
    train(whole)
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, after=5)
        with pytest.raises(KeyboardInterrupt):
            train(broken)
    train(broken)
    one, other = state_of(whole), state_of(broken)
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    return one


def test_a_run_resumes_to_the_bit(tiny: Tiny, tmp_path: Path) -> None:
    teacher = tiny("epochs=1", root=tmp_path / "teacher")
    train(teacher)
    given = overrides(run.run_folder(teacher))
    state = resumed_equals_whole(tiny(*given), tiny(*given, root=tmp_path / "broken"))
    slow = next(value for name, value in state.items() if name.startswith("networks slow") and "fc.weight" in name)
    assert not torch.equal(slow, state["fc.weight"])
    record = json.loads((run.run_folder(tiny(*given)) / "epochs.jsonl").read_text().splitlines()[0])
    assert {"train_labels", "train_teacher", "train_slow"} <= set(record)


def in_each_process(rank: int, root: Path) -> None:
    configs = [
        compose([*overrides(next((root / "teacher").iterdir())), *TINY, "world_size=2", f"root={root / name}"])
        for name in ("whole", "broken")
    ]
    resumed_equals_whole(*configs)


@pytest.mark.slow
def test_two_processes_resume_to_the_bit(tmp_path: Path) -> None:
    train(compose([*TINY, "epochs=1", f"root={tmp_path / 'teacher'}"]))
    in_two_processes(in_each_process, tmp_path)


@pytest.mark.slow
def test_compiled_into_one_graph_it_gives_the_same() -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    model, teacher = (nn.Sequential(nn.Flatten(), nn.Linear(48, 5)) for _ in range(2))
    beside = {"teacher": networks.Frozen(teacher), "slow": networks.Momentum(0.9)}
    step = mixaug.MixStep(model, mixaug.create("mixup"), ThreePasses(), networks=beside)
    traced = torch.compile(step, fullgraph=True, backend="aot_eager")
    images, labels = torch.randn(6, 3, 4, 4), torch.arange(6) % 5
    found = []
    for forward in (step, traced):
        torch.manual_seed(3)
        loss, logs = forward(images, labels)
        loss.backward()
        found.append((loss.detach(), logs["teacher"], logs["slow"], model[1].weight.grad.clone()))
        model.zero_grad()
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(eager, compiled)
