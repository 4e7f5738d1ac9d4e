"""Order, shards and augmentation depend on seed, epoch and sample alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import Dataset

from mixaug.engine import build
from mixaug.engine.batches import Batches
from mixaug.engine.distributed import World, stream_seed
from mixaug.engine.sources import EpochBatches, SeededDraws

Tiny = Callable[..., DictConfig]


def sampler(samples: int, batch: int, rank: int = 0, size: int = 1, drop_last: bool = False) -> EpochBatches:
    return EpochBatches(samples, batch, rank=rank, world_size=size, seed=3, drop_last=drop_last)


@pytest.mark.parametrize(("samples", "batch"), [(12, 2), (13, 2), (15, 2), (10, 3), (5, 4)])
def test_two_processes_see_the_batches_of_one_with_twice_the_size(samples: int, batch: int) -> None:
    whole = list(sampler(samples, 2 * batch))
    halves = [list(sampler(samples, batch, rank, 2)) for rank in (0, 1)]
    assert len(halves[0]) == len(halves[1]) == len(sampler(samples, batch, 0, 2))
    for number, (left, right) in enumerate(zip(*halves, strict=True)):
        assert len(left) == len(right)
        together = left + right
        assert together == whole[number][: len(together)]
        assert len(whole[number]) - len(together) < 2


@pytest.mark.parametrize("drop_last", [False, True])
def test_an_epoch_is_a_permutation_and_epochs_differ(drop_last: bool) -> None:
    batches = sampler(10, 3, drop_last=drop_last)
    first = [index for batch in batches for index in batch]
    assert len(set(first)) == len(first) == (9 if drop_last else 10)
    batches.epoch = 1
    assert [index for batch in batches for index in batch] != first


def test_one_order_for_all_epochs_on_request(tiny: Tiny) -> None:
    batches = EpochBatches(10, 3, rank=0, world_size=1, seed=3, drop_last=False, reshuffle=False)
    first = list(batches)
    batches.epoch = 4
    assert list(batches) == first
    config = tiny("reshuffle=false")
    resident = Batches(config, build.load_data(config), World(0, 1, torch.device("cpu")))
    rows = [torch.cat([batch.rows for batch in resident.epoch(epoch)]) for epoch in (0, 1)]
    assert torch.equal(*rows)


def test_an_epoch_continues_at_any_batch() -> None:
    batches = sampler(10, 3)
    whole = list(batches)
    batches.first = 2
    assert list(batches) == whole[2:]


class Noisy(Dataset[Any]):
    """Each image is fresh noise from torch's global generator."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.rand(3), index


def test_augmentation_is_a_function_of_seed_epoch_and_sample() -> None:
    data = SeededDraws(Noisy(), seed=1)
    before = torch.get_rng_state()
    one = data[(0, 2)][0]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(data[(0, 2)][0], one)
    for other in (data[(1, 2)][0], data[(0, 3)][0], SeededDraws(Noisy(), seed=2)[(0, 2)][0]):
        assert not torch.equal(other, one)


def test_streams_of_other_seeds_purposes_and_ranks_differ() -> None:
    seeds = {
        stream_seed(seed, purpose, rank) for seed in range(5) for purpose in ("mixing", "model") for rank in range(5)
    }
    assert len(seeds) == 50
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("transform", [None, "uint8"])
def test_epochs_start_anywhere_whatever_the_data(tiny: Tiny, transform: str | None) -> None:
    overrides = [] if transform is None else [f"data.transform={transform}", "augment.crop_padding=0"]
    config = tiny(*overrides)
    batches = Batches(config, build.load_data(config), World(0, 1, torch.device("cpu")))
    whole = list(batches.epoch(5))
    rest = list(batches.epoch(5, 3))
    assert len(whole) == len(batches) == 4
    assert len(rest) == 1
    assert torch.equal(whole[3].inputs, rest[0].inputs)
    assert torch.equal(whole[3].labels, rest[0].labels)
    assert torch.equal(whole[3].rows, rest[0].rows)


@pytest.mark.parametrize("transform", [None, "uint8"])
def test_test_samples_are_on_exactly_one_process(tiny: Tiny, transform: str | None) -> None:
    config = tiny("eval_batch_size=64", *([] if transform is None else [f"data.test_transform={transform}"]))
    if transform is not None:
        config = tiny("eval_batch_size=64", f"data.test_transform={transform}", "augment.crop_padding=0")
    data = build.load_data(config)
    labels = [
        torch.cat([labels for _, labels in Batches(config, data, World(rank, 3, torch.device("cpu"))).held_out()])
        for rank in range(3)
    ]
    counts = torch.stack([part.bincount(minlength=10) for part in labels]).sum(0)
    whole = Batches(config, data, World(0, 1, torch.device("cpu"))).held_out()
    assert torch.equal(counts, torch.cat([part for _, part in whole]).bincount(minlength=10))
    assert max(map(len, labels)) - min(map(len, labels)) <= 1


class Brought(TorchDispatchMode):
    """Counts the values that come from the CPU to a device."""

    def __init__(self) -> None:
        super().__init__()
        self.values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        for made in tree_leaves(result):
            if isinstance(made, Tensor) and any(made.device != leaf.device for leaf in given):
                self.values += made.numel()
        return result


@pytest.mark.parametrize("rank", [0, 1])
def test_a_held_out_set_comes_to_the_device_once(tiny: Tiny, rank: int) -> None:
    config = tiny("eval_batch_size=64")
    data = build.load_data(config)
    data.test.metadata["group"] = torch.arange(len(data.test)) % 3
    # Tensors of this device have no values, so that a GPU is not needed.
    batches = Batches(config, data, World(rank, 2, torch.device("meta")))
    for expected in (len(data.test.inputs[rank::2].flatten()) + len(data.test.labels[rank::2]), 0, 0):
        with Brought() as brought:
            sizes = [len(images) for images, _ in batches.held_out()]
        assert sum(sizes) == len(data.test.labels[rank::2])
        # Mean and std of the channels come along at first.
        assert expected <= brought.values <= expected + (8 if expected else 0)
    # The training set lies on the device for training; a second copy does not stay.
    for _ in range(2):
        with Brought() as brought:
            assert sum(len(images) for images, _ in batches.held_out("train")) == len(data.train.labels[rank::2])
        assert brought.values >= len(data.train.inputs[rank::2].flatten())
    with Brought() as brought:
        of_samples = [batches.groups("test") for _ in range(3)]
    assert brought.values == len(data.test)
    assert all(groups is not None and groups.device.type == "meta" for groups in of_samples)


def test_a_held_out_set_is_read_as_it_is_from_its_beginning(tiny: Tiny) -> None:
    config = tiny("eval_batch_size=100")
    data = build.load_data(config)
    batches = Batches(config, data, World(0, 1, torch.device("cpu")))
    wanted = (data.test.inputs / 255 - batches.mean[0]) / batches.std[0]  # type: ignore[index]
    next(batches.held_out())
    for _ in range(2):
        found = list(batches.held_out())
        torch.testing.assert_close(torch.cat([images for images, _ in found]), wanted)
        assert torch.equal(torch.cat([labels for _, labels in found]), data.test.labels)
