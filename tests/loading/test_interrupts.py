"""Ctrl-C, errors and killed workers in the middle of a pass: the cause is named, nothing hangs, a resume is exact."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

import mixaug
from mixaug.loading import DeviceLoader, MixCollate, ResidentLoader


class Images(Dataset[Any]):
    """Image i is full of i; one of them may fail."""

    def __init__(self, failing: int | None = None, error: type[BaseException] = OSError, pause: float = 0.0) -> None:
        self.failing, self.error, self.pause = failing, error, pause

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        time.sleep(self.pause)
        if index == self.failing:
            raise self.error(f"image {index} is torn")
        return torch.full((1, 4, 4), float(index)), index % 4


def loader(data: Dataset[Any], workers: int, *, first: int = 0, **options: Any) -> DataLoader[Any]:
    """Batches of 4, mixed by seed, from batch number ``first`` on."""
    collate = MixCollate(mixaug.create("mixup"), 4, seed=3)
    rest = Subset(data, range(4 * first, len(data)))  # type: ignore[arg-type]
    return DataLoader(rest, 4, num_workers=workers, collate_fn=collate, **options)


def told(batches: Any, epoch: int, first: int = 0) -> Iterator[Tensor]:
    batches.collate_fn.set_epoch(epoch, first)
    for images, _ in batches:
        yield images


@pytest.fixture(scope="module")
def undisturbed() -> list[Tensor]:
    """Epoch 1, in one process."""
    return list(told(loader(Images(), 0), 1))


def assert_same(got: list[Tensor], expected: list[Tensor]) -> None:
    assert len(got) == len(expected)
    for number, (one, two) in enumerate(zip(got, expected, strict=True)):
        assert torch.equal(one, two), number


def test_lasting_workers_that_still_make_batches_of_a_broken_pass_number_the_next_one_right(
    undisturbed: list[Tensor],
) -> None:
    batches = loader(Images(pause=0.005), 2, persistent_workers=True, prefetch_factor=4)
    broken = told(batches, 0)
    next(broken), next(broken)
    broken.close()
    assert_same(list(told(batches, 1)), undisturbed)


def test_batches_behind_a_failed_one_are_mixed_as_ever(undisturbed: list[Tensor]) -> None:
    batches = loader(Images(failing=9), 2)
    batches.collate_fn.set_epoch(1)
    passing, got, failed = iter(batches), [], []
    for number in range(10):
        try:
            got.append(next(passing)[0])
        except OSError as error:
            assert "image 9 is torn" in str(error)
            failed.append(number)
    assert failed == [2]
    assert_same(got, undisturbed[:2] + undisturbed[3:])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_comes_after_the_batches_before_it_and_the_rest_can_be_had(
    undisturbed: list[Tensor], workers: int
) -> None:
    broken = DeviceLoader(loader(Images(failing=13), workers), "cpu")
    broken.set_epoch(1)
    got = []
    with pytest.raises(OSError, match="image 13 is torn"):
        for images, _ in broken:
            got.append(images)
    assert len(got) == 3
    mended = DeviceLoader(loader(Images(), workers, first=3), "cpu")
    mended.set_epoch(1, first_batch=3)
    assert_same([*got, *(images for images, _ in mended)], undisturbed)


def test_an_interrupt_inside_a_batch_leaves_nothing_behind(undisturbed: list[Tensor]) -> None:
    data = Images(failing=21, error=KeyboardInterrupt)
    batches = loader(data, 0)
    with pytest.raises(KeyboardInterrupt):
        list(told(batches, 1))
    data.failing = None
    assert_same(list(told(batches, 1)), undisturbed)


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_killed_worker_is_named_and_the_next_pass_is_whole(undisturbed: list[Tensor]) -> None:
    batches = DeviceLoader(loader(Images(pause=0.02), 1, persistent_workers=True), "cpu")
    batches.set_epoch(1)
    got = []
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid.*\) (is killed by signal|exited unexpectedly)"):
        for images, _ in batches:
            got.append(images)
            if len(got) == 2:
                pid = batches.loader._iterator._workers[0].pid  # type: ignore[attr-defined]
                os.kill(pid, signal.SIGKILL)
    again = DeviceLoader(loader(Images(), 1), "cpu")
    again.set_epoch(1)
    assert_same([images for images, _ in again], undisturbed)


class Broken:
    """Stands for a loader whose connection breaks at its second batch."""

    def __init__(self, num_workers: int, said: str) -> None:
        self.num_workers, self.said = num_workers, said

    def __iter__(self) -> Iterator[Any]:
        yield torch.zeros(2, 1, 2, 2), torch.zeros(2)
        raise ConnectionResetError(self.said)


@pytest.mark.parametrize(
    ("workers", "said", "is_a_death"),
    [
        (1, "Connection reset by peer", True),
        (0, "the store closed the connection", False),
        (1, "Caught ConnectionResetError in DataLoader worker process 0.", False),
    ],
)
def test_a_connection_that_a_dead_worker_breaks_is_named_and_no_other(
    workers: int, said: str, is_a_death: bool
) -> None:
    batches = iter(DeviceLoader(Broken(workers, said), "cpu"))
    next(batches)
    with pytest.raises(RuntimeError if is_a_death else ConnectionResetError, match=said) as caught:
        next(batches)
    assert str(caught.value).startswith("DataLoader worker exited unexpectedly") == is_a_death


def test_a_resident_loader_goes_on_behind_the_batch_that_was_interrupted() -> None:
    def make() -> ResidentLoader:
        images = torch.randint(256, (50, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        return ResidentLoader(images, torch.arange(50), 8, crop_padding=1, flip=True, seed=5)

    whole = make()
    expected = [[images.clone() for images, _ in whole] for _ in range(2)]
    broken, got = make(), []
    with pytest.raises(KeyboardInterrupt):
        for images, _ in broken:
            got.append(images.clone())
            if len(got) == 4:
                raise KeyboardInterrupt  # in the middle of the fourth step
    resumed = make()
    resumed.load_state_dict(broken.state_dict())
    got += [images.clone() for images, _ in resumed]
    assert_same(got, expected[0])
    assert_same([images.clone() for images, _ in resumed], expected[1])


SCRIPT = """
import sys, time, torch, mixaug
from torch.utils.data import DataLoader, TensorDataset
from mixaug.loading import DeviceLoader, MixCollate
data = TensorDataset(torch.zeros(4000, 1, 4, 4), torch.zeros(4000, dtype=torch.int64))
collate = MixCollate(mixaug.create("mixup"), 2, seed=0)
batches = DataLoader(data, 2, num_workers=2, collate_fn=collate, persistent_workers=True)
for number, batch in enumerate(DeviceLoader(batches, "cpu")):
    if number == 3:
        print(*(worker.pid for worker in batches._iterator._workers), flush=True)
    time.sleep(0.01)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs process groups")
def test_ctrl_c_ends_the_process_and_its_workers() -> None:
    # A shell that runs this suite in the background lets its children ignore SIGINT: undo that.
    restore = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=restore,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert len(workers) == 2
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, said = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in said
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
