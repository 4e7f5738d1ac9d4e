"""Samples that cannot be read and processes that die while they read them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from PIL import Image

from mixaug.engine import build, checkpoint, distributed, run
from mixaug.engine.batches import Batches
from mixaug.engine.config import compose
from mixaug.engine.errors import ConfigError, LoadingError
from mixaug.engine.train import train

WAYS = (
    *("data=imagefolder", "data.transform=cifar10_train", "data.image_size=8", "policy=mixup", "batch_size=4"),
    *("+model.drop_rate=0.2", "checkpoint_every_steps=1", "threads=1", "device=cpu", "progress=false"),
)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """16 training and 8 test images of 8 x 8 in two classes."""
    pixels = np.random.RandomState(0)
    for split, count in (("train", 8), ("val", 4)):
        for name in ("a", "b"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for number in range(count):
                image = Image.fromarray(pixels.randint(0, 256, (8, 8, 3), dtype=np.uint8))
                image.save(tmp_path / "images" / split / name / f"{number}.png")
    return tmp_path / "images"


@pytest.fixture
def read(images: Path, tmp_path: Path) -> Callable[..., DictConfig]:
    def make(*overrides: str, root: str = "runs") -> DictConfig:
        return compose([*WAYS, f"data.root={images}", f"root={tmp_path / root}", "epochs=2", *overrides])

    return make


def assert_as_undisturbed(read: Callable[..., DictConfig], broken: DictConfig) -> None:
    whole = read(root="whole")
    train(whole)
    got, expected = (checkpoint.load(run.run_folder(config) / "last.pt") for config in (broken, whole))
    for name, value in expected["model"].items():
        assert torch.equal(got["model"][name], value), name


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
@pytest.mark.parametrize("part", ["training", pytest.param("scoring", marks=pytest.mark.slow)])
def test_a_killed_worker_is_told_in_one_line_and_the_run_goes_on_later(
    read: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    config = read("workers=1")
    name = {"training": "epoch", "scoring": "held_out"}[part]
    really = getattr(Batches, name)

    def dying(self: Batches, *arguments: Any) -> Iterator[Any]:
        for number, batch in enumerate(really(self, *arguments)):
            if number == (2 if part == "training" else 0):
                for worker in multiprocessing.active_children():
                    os.kill(worker.pid or 0, signal.SIGKILL)
            yield batch
        time.sleep(10)  # the news come as a signal

    with monkeypatch.context() as patch:
        patch.setattr(Batches, name, dying)
        with pytest.raises(LoadingError) as caught:
            train(config)
    # The loader misses the worker first, or the pipe of the batch that was being handed over.
    assert "a process that reads samples " in str(caught.value)
    assert "\n" not in str(caught.value)
    folder = run.run_folder(config)
    assert run.read_json(folder / "failure.json")["reason"] == str(caught.value)
    assert multiprocessing.active_children() == []
    train(config)
    assert_as_undisturbed(read, config)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_that_cannot_be_read_is_named_with_its_file_and_its_fault(
    read: Callable[..., DictConfig], images: Path, workers: int
) -> None:
    config = read(f"workers={workers}")
    torn = images / "train" / "b" / "3.png"
    whole = torn.read_bytes()
    torn.write_bytes(whole[:60])
    with pytest.raises(LoadingError) as caught:
        train(config)
    assert str(caught.value).startswith(f"sample 11 for training, {torn}, cannot be read: ")
    assert "\n" not in str(caught.value)
    assert "truncated" in str(caught.value)
    failure = run.read_json(run.run_folder(config) / "failure.json")
    assert failure["reason"] == str(caught.value)
    assert multiprocessing.active_children() == []
    torn.write_bytes(whole)
    train(config)
    if workers:
        assert_as_undisturbed(read, config)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs process groups")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_a_run_and_its_workers_and_the_rest_is_exact(
    read: Callable[..., DictConfig], images: Path, tmp_path: Path, root: Path, number: signal.Signals
) -> None:
    config = read("workers=2", "epochs=12")
    folder = run.run_folder(config)
    command = [sys.executable, str(root / "tools" / "train.py"), *WAYS, f"data.root={images}", "epochs=12", "workers=2"]
    # A shell that runs this suite in the background lets its children ignore SIGINT: undo that.
    restore = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    process = subprocess.Popen(
        [*command, f"root={tmp_path / 'runs'}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=restore,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 200
    while not (folder / "previous.pt").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    shown = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout
    workers = [int(pid) for pid in shown.split()]
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == -number
    assert run.status(folder) == "unfinished"
    if number == signal.SIGINT:
        assert said.count(b"KeyboardInterrupt") == 1  # the run's, none of its workers'
    train(config)  # at once: dying workers hold nothing
    whole = read("epochs=12", root="whole")
    train(whole)
    got, expected = (checkpoint.load(run.run_folder(one) / "last.pt") for one in (config, whole))
    assert all(torch.equal(got["model"][name], value) for name, value in expected["model"].items())
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()], ids=repr)
def test_a_worker_that_dies_while_it_hands_a_batch_over_is_told_in_one_line(
    tiny: Callable[..., DictConfig], error: Exception
) -> None:
    config = tiny("workers=2")
    batches = Batches(config, build.load_data(config), distributed.start("cpu"))
    clear = batches.explained(error)
    assert isinstance(clear, LoadingError)
    assert f"ended while it handed a batch over ({type(error).__name__})" in str(clear)
    assert Batches(tiny(), build.load_data(tiny()), distributed.start("cpu")).explained(error) is error


def test_images_that_make_no_batch_are_told_before_or_at_the_batch(
    read: Callable[..., DictConfig], images: Path
) -> None:
    config = read("data.transform=null", "data.test_transform=null")
    with pytest.raises(ConfigError, match=r"reads image files, and data\.transform is null: set data\.transform and"):
        Batches(config, build.load_data(config), distributed.World(0, 1, torch.device("cpu")))
    Image.new("RGB", (9, 8)).save(images / "train" / "a" / "1.png")
    config = read("data.transform=uint8", "data.test_transform=uint8", "data.image_size=null", "batch_size=16")
    batches = Batches(config, build.load_data(config), distributed.World(0, 1, torch.device("cpu")))
    with pytest.raises(LoadingError, match=r"one size, got \(3, 8, [89]\) and \(3, 8, [89]\).*data\.transform"):
        list(batches.epoch(0))
