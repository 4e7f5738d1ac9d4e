"""Processes that get uneven shares, leave parameters out, have nothing to do, or die."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn

import mixaug
from mixaug.engine import build, checkpoint, run
from mixaug.engine import train as engine
from mixaug.engine.config import compose
from mixaug.engine.distributed import World, explained
from mixaug.engine.errors import ConfigError, ProcessLost
from mixaug.engine.sources import EpochBatches
from mixaug.engine.stored import evaluate_checkpoint
from mixaug.losses import MixedCrossEntropy
from processes import free_port, in_two_processes

TINY = ("data=digits", "batch_size=10", "epochs=2", "threads=1", "device=cpu", "progress=false")


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_all_processes_get_the_same_number_of_batches_of_the_same_sizes(size: int, drop_last: bool) -> None:
    for samples in range(1, 70):
        shares = []
        for rank in range(size):
            batches = EpochBatches(samples, 4, rank=rank, world_size=size, seed=1, drop_last=drop_last)
            shares.append(list(batches))
            assert len(shares[-1]) == len(batches)
        assert len({tuple(map(len, share)) for share in shares}) == 1
        assert all(share for batches in shares for share in batches)  # no process steps without samples
        seen = [row for batches in shares for share in batches for row in share]
        assert len(seen) == len(set(seen))
        whole, rest = divmod(samples, 4 * size)
        assert len(seen) == 4 * size * whole + (0 if drop_last else rest // size * size)


class Skipping(nn.Module):
    """A layer without use, and one that is skipped at random."""

    num_features = 8

    def __init__(self, *, useless: bool, skips: bool) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, 10)
        self.skips = skips
        if useless:
            self.useless = nn.Linear(3, 3)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.first(images.flatten(1)).relu()
        if not (self.skips and self.training and torch.rand(()) < 0.5):
            hidden = self.second(hidden).relu()
        outputs: Tensor = self.last(hidden)
        return outputs


class Digits:
    input_shape = (1, 8, 8)


@pytest.mark.parametrize(("useless", "skips"), [(False, False), (True, False), (False, True)])
def test_parameters_that_are_left_out_are_found_without_a_trace(useless: bool, skips: bool) -> None:
    model = Skipping(useless=useless, skips=skips)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    assert build.leaves_parameters_out(model, Digits()) == (useless or skips)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_gloo_says_of_a_lost_process_becomes_one_line() -> None:
    said = (
        "[/__w/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:4512. "
        "This is typically caused by a remote worker crashing."
    )
    world = World(0, 2, torch.device("cpu"))
    told = explained(RuntimeError(said), world)
    assert isinstance(told, ProcessLost)
    assert str(told).startswith(
        "process 0 of 2 lost another one of the run (Connection closed by peer [127.0.0.1]:4512);"
    )
    other = RuntimeError("out of paper")
    assert explained(other, world) is other
    assert explained(RuntimeError(said), World(0, 1, torch.device("cpu"))).args == (said,)


# -- two real processes ---------------------------------------------------------------------------------------------


def trained_alike(rank: int, root: Path) -> None:
    """Train every case, and make sure that both processes end with the same weights of model and policy."""
    states: list[Any] = []
    result = engine._result

    def kept(config: Any, state: Any, *others: Any) -> dict[str, Any]:
        states.append(state)
        return result(config, state, *others)

    for name, (samples, overrides, what, made) in CASES.items():
        with pytest.MonkeyPatch.context() as patch:
            if made is not None:
                patch.setattr(build, what, lambda *arguments, made=made: made())
            patch.setattr(engine, "_result", kept)
            config = compose([*TINY, *overrides, f"data.train_size={samples}", f"root={root / name.replace(' ', '_')}"])
            assert engine.train(config)["status"] == "finished"
        step = states[-1].step
        # Batch statistics are each process's own.
        own = torch.cat([parameter.detach().flatten() for parameter in step.parameters()])
        both = [torch.empty_like(own) for _ in range(2)]
        dist.all_gather(both, own)
        assert torch.equal(both[0], both[1]), name
        assert own.isfinite().all(), name
        assert states[-1].position.step == 2 * -(-samples // 20), name


#: Samples, overrides, and what is put in the place of a part of the run.
CASES: dict[str, tuple[int, tuple[str, ...], str, Callable[[], nn.Module] | None]] = {
    # 107 = 5 * 20 + 7: the last batch has 3 samples on each process, one sample is left out.
    "uneven": (107, ("policy=mixup",), "", None),
    "uneven and accumulated": (107, ("policy=mixup", "accumulate=4"), "", None),
    "a last batch of one": (42, ("policy=cutmix",), "", None),
    "a learned mixer on a batch of one": (42, ("policy=automix",), "", None),
    "a mixer drawn on one process only": (
        *(107, (), "build_policy"),
        lambda: mixaug.OneOf(["automix", "cutmix"]),
    ),
    "a generator drawn on one process only": (
        *(107, (), "build_policy"),
        lambda: mixaug.OneOf(["adamixup", "cutmix"]),
    ),
    "a mixer drawn sometimes": (107, (), "build_policy", lambda: mixaug.Sometimes("automix", 0.5)),
    "a mixer that ends": (107, (), "build_policy", lambda: mixaug.Sometimes("automix", until=0.5)),
    "parameters left out": (107, ("policy=mixup",), "build_model", lambda: Skipping(useless=True, skips=True)),
}


@pytest.mark.slow
def test_two_processes_stay_alike(tmp_path: Path) -> None:
    in_two_processes(trained_alike, tmp_path)


def static_graph_equals_plain(rank: int) -> None:
    from torch.nn.parallel import DistributedDataParallel

    def trained(**options: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 4))
        step = DistributedDataParallel(mixaug.MixStep(model, mixaug.create("cutmix"), MixedCrossEntropy()), **options)
        optimizer = torch.optim.SGD(step.parameters(), 0.1)
        draws = torch.Generator().manual_seed(rank)
        for size in (6, 6, 3):  # an uneven last batch
            images = torch.rand(size, 3, 4, 4, generator=draws)
            loss, _ = step(images, torch.randint(4, (size,), generator=draws), generator=draws)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return [parameter.detach().clone() for parameter in step.parameters()]

    plain = trained()
    for options in ({"static_graph": True}, {"find_unused_parameters": True}):
        for one, two in zip(plain, trained(**options), strict=True):
            assert torch.equal(one, two), options


def nothing_to_do(rank: int, root: Path) -> None:
    from mixaug.engine.evaluate import evaluate, predict

    # One training sample for two processes.
    config = compose([*TINY, "data.train_size=10", f"root={root}"])
    really = build.load_data

    def single(config: Any) -> Any:
        data = really(config)
        object.__setattr__(data.train, "images", data.train.images[:1])
        object.__setattr__(data.train, "labels", data.train.labels[:1])
        return data

    build.load_data = single
    with pytest.raises(ConfigError, match=r"1 training samples give no batch with batch_size=10, 2 processes"):
        engine.train(config)
    assert not root.exists()

    # One test sample for two processes, and none for the second.
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.copy_(torch.arange(10.0))
    images, labels = torch.rand(1, 1, 8, 8), torch.tensor([8])
    world = World(rank, 2, torch.device("cpu"))
    share = [(images, labels)] if rank == 0 else []
    scores = evaluate(model, share, 10, world.device)
    assert (scores.samples, scores.top1, scores.top5) == (1, 0.0, 100.0)
    # -log softmax of the second largest of 0 .. 9
    expected = torch.arange(10.0).logsumexp(0) - 8
    assert scores.nll == pytest.approx(float(expected), rel=1e-6)
    outputs, back = predict(nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), [(x, y[:, None]) for x, y in share], world)
    assert outputs.shape == back.shape == (1, 1)


@pytest.mark.slow
def test_a_static_graph_and_a_look_for_unused_parameters_change_nothing() -> None:
    in_two_processes(static_graph_equals_plain)


@pytest.mark.slow
def test_more_processes_than_samples(tmp_path: Path) -> None:
    in_two_processes(nothing_to_do, tmp_path / "runs")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_ends_the_other_and_the_rest_is_exact(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, victim: int
) -> None:
    ways = [
        *TINY,
        "policy=mixup",
        "data.train_size=107",
        "epochs=12",
        "checkpoint_every_steps=2",
        "+model.drop_rate=0.1",
        "ema.decay=0.9",
    ]

    def start(where: str) -> list[subprocess.Popen[str]]:
        port = free_port()
        shared = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = [sys.executable, str(root / "tools" / "train.py"), *ways, f"root={tmp_path / where}"]
        return [
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env={**shared, "WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(2)
        ]

    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        folders = {where: run.run_folder(compose([*ways, f"root={tmp_path / where}"])) for where in ("whole", "broken")}
    processes = start("broken")
    deadline = time.monotonic() + 240
    while not (folders["broken"] / "previous.pt").exists():
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(random.Random(victim).random())
    processes[victim].send_signal(signal.SIGKILL)
    said, _ = processes[1 - victim].communicate(timeout=120)
    processes[victim].communicate()
    assert processes[1 - victim].returncode == 1
    assert f"process {1 - victim} of 2 lost another one of the run (" in said
    failed = run.status(folders["broken"]) == "failed"
    assert failed == (victim == 1)  # the first process is the one that writes
    for where in ("broken", "whole"):
        for process in start(where):
            said, _ = process.communicate(timeout=240)
            assert process.returncode == 0, said
    got, expected = (checkpoint.load(folders[where] / "last.pt") for where in ("broken", "whole"))
    for part in ("model", "ema"):
        assert all(torch.equal(got[part][name], value) for name, value in expected[part].items()), part
    for one, two in zip(got["history"], expected["history"], strict=True):
        for key in ("train_loss", "train_accuracy", "test_top1", "test_nll"):
            assert one[key] == two[key], key
    # Every process scores with the statistics that the checkpoint has.
    monkeypatch.setenv("WORLD_SIZE", "1")
    scores = evaluate_checkpoint(folders["broken"], device="cpu")
    assert scores["nll"] == pytest.approx(got["history"][-1]["test_nll"], rel=1e-6)
