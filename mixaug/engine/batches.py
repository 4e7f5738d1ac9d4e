"""Batches on the device, whatever the data: shards, order and augmentation fixed by seed and epoch alone.

Every epoch has its own permutation, drawn from (seed, epoch). It is cut into global batches and each of those into
one contiguous piece per process, so that n processes with batches of B see what one process with batches of nB sees.
The augmentation of a sample depends on (seed, epoch, sample), never on the process or worker that reads it. A run can
therefore be resumed at any batch of any epoch, and the position is two numbers.
"""

from __future__ import annotations

import random
import re
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from mixaug.engine.distributed import World, stream_seed
from mixaug.engine.errors import ConfigError, LoadingError

__all__ = ["Batches", "EpochBatches", "SeededDraws"]


class EpochBatches:
    """Batch sampler: this process's piece of each global batch of an epoch.

    Args:
        samples: N.
        batch_size: samples per process and batch.
        world_size, rank: number of processes, and this one.
        seed: seed of the permutations.
        reshuffle: a new permutation each epoch, else one for all.
        drop_last: drop the last global batch if it is smaller. Otherwise it is shared evenly; at most
            ``world_size - 1`` samples of the permutation's end are left out of the epoch.
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        *,
        rank: int,
        world_size: int,
        seed: int,
        drop_last: bool,
        reshuffle: bool = True,
    ) -> None:
        self.samples, self.batch_size = samples, batch_size
        self.rank, self.world_size = rank, world_size
        self.seed, self.drop_last, self.reshuffle = seed, drop_last, reshuffle
        self.epoch = 0
        self.first = 0

    def __len__(self) -> int:
        whole, rest = divmod(self.samples, self.batch_size * self.world_size)
        return whole + int(not self.drop_last and rest >= self.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        epoch = self.epoch if self.reshuffle else 0
        generator = torch.Generator().manual_seed(stream_seed(self.seed, f"order/{epoch}"))
        order = torch.randperm(self.samples, generator=generator)
        step = self.batch_size * self.world_size
        for number in range(self.first, len(self)):
            batch = order[number * step : (number + 1) * step]
            share = len(batch) // self.world_size
            yield batch[self.rank * share : (self.rank + 1) * share].tolist()


_STREAMS = {"training": "augmentation", "evaluation": "evaluation"}


class SeededDraws(Dataset[tuple[Tensor, int]]):
    """A data set whose random transforms draw from a stream of (seed, epoch, sample).

    Args:
        data: yields (uint8 tensor, label); transforms inside draw from torch's global generator, Python's ``random`` or
            NumPy's, which are put back afterwards.
        seed: the run's seed.
        purpose: what the samples are read for, ``"training"`` or ``"evaluation"``; each has streams of its own.

    Raises:
        LoadingError: by a sample that cannot be read; names it and its file.
    """

    def __init__(self, data: Dataset[Any], seed: int, purpose: str = "training") -> None:
        self.data, self.seed, self.purpose = data, seed, purpose

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]  # map data sets have a length

    def __getitem__(self, key: tuple[int, int] | int) -> tuple[Tensor, int]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[tuple[int, int] | int]) -> list[tuple[Tensor, int]]:
        """The samples of a batch; a ``DataLoader`` asks for them all at once."""
        samples = []
        with _global_draws_put_back():
            for key in keys:
                epoch, index = key if isinstance(key, tuple) else (0, key)
                seed = stream_seed(self.seed, f"{_STREAMS[self.purpose]}/{epoch}/{index}")
                torch.default_generator.manual_seed(seed)
                random.seed(seed)
                np.random.seed(seed % 2**32)  # noqa: NPY002 (transforms draw from it)
                try:
                    image, label = self.data[index]
                except Exception as error:
                    raise LoadingError(
                        f"sample {index} for {self.purpose}{_place_of(self.data, index)} cannot be read: "
                        f"{type(error).__name__}: {error}"
                    ) from error
                samples.append((image, label))
        return samples


def _place_of(data: Any, index: int) -> str:
    """``", <file>,"`` where a data set has a list of its files, as those of `mixaug.data` and torchvision have."""
    for name in ("paths", "samples", "_image_files", "_samples"):
        try:
            entry = getattr(data, name)[index]
        except (AttributeError, TypeError, LookupError):
            continue
        return f", {entry[0] if isinstance(entry, tuple) else entry},"
    return ""


def _collated(samples: list[Any]) -> Any:
    """The samples as a batch.

    Raises:
        LoadingError: samples that are no tensors of one size.
    """
    from mixaug.loading.samples import explained_samples

    try:
        return default_collate(samples)
    except (TypeError, RuntimeError) as error:
        explained = explained_samples("a batch", samples)
        if explained is None:
            raise
        raise LoadingError(f"{explained} (data.transform, data.test_transform, data.image_size)") from error


def _leave_interrupts(worker: int) -> None:
    """In a loader's process: Ctrl-C is the training process's, which ends its loaders."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _global_draws_put_back() -> Iterator[None]:
    """Leave torch's, Python's and NumPy's global generators of the CPU as they were; a model draws from them."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


class _WithEpoch:
    """Hands each sample's index to the data set together with the epoch, across worker processes."""

    def __init__(self, batches: EpochBatches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self.batches:
            yield [(self.batches.epoch, index) for index in batch]


class Batches:
    """Training and test batches of one run on its device, normalised to float32.

    Args:
        config: the run's config.
        data: a ``mixaug.data.DataSet``.
        world: this process among all.

    Raises:
        ConfigError: fewer training samples than one step needs, image files without a transform, augmentation that the
            data does not take.
    """

    def __init__(self, config: DictConfig, data: Any, world: World) -> None:
        self.config, self.data, self.world = config, data, world
        self.mean = _listed(data.mean if config.augment.mean is None else config.augment.mean)
        self.std = _listed(data.std if config.augment.std is None else config.augment.std)
        self.memory_format = torch.channels_last if config.channels_last else None
        samples = len(data.train)
        self._order = EpochBatches(
            samples,
            config.batch_size,
            rank=world.rank,
            world_size=world.size,
            seed=config.seed,
            drop_last=config.drop_last,
            reshuffle=config.reshuffle,
        )
        if len(self._order) == 0:
            raise ConfigError(
                f"{samples} training samples give no batch with batch_size={config.batch_size}, "
                f"{world.size} processes and drop_last={config.drop_last}"
            )
        augments = bool(config.augment.crop_padding or config.augment.flip)
        if augments and not data.in_memory:
            raise ConfigError(
                "augment.crop_padding and augment.flip act on data held in memory; data that is read image by "
                "image takes data.transform"
            )
        for option, part in (("transform", data.train), ("test_transform", data.test)):
            if not data.in_memory and getattr(part, "transform", self) is None:
                raise ConfigError(
                    f"{data.name} reads image files, and data.{option} is null: set data.transform and "
                    "data.test_transform to what makes tensors of one size of them, such as "
                    "data.transform=imagenet_train data.test_transform=imagenet_test"
                )
        if augments and data.train.inputs.dtype != torch.uint8:
            raise ConfigError(
                f"augment.crop_padding and augment.flip act on images; {data.name} has inputs "
                f"{tuple(data.input_shape)} {data.train.inputs.dtype}"
            )
        if (
            data.in_memory
            and data.train.inputs.dtype != torch.uint8
            and not (config.augment.mean is None and config.augment.std is None)
        ):
            raise ConfigError(
                f"augment.mean and augment.std are for images; {data.name} has inputs {tuple(data.input_shape)}, "
                "which data.scaling scales"
            )
        if config.channels_last and len(data.input_shape) != 3:
            raise ConfigError(f"channels_last=true is for images; {data.name} has inputs {tuple(data.input_shape)}")
        # A DataLoader draws a number from the global generator for every pass, unless it has one of its own. The global
        # one belongs to the model's dropout and is in every checkpoint.
        self._loading = torch.Generator()
        self._scoring: list[Any] = []
        self._train: Any = self._resident() if data.in_memory else self._read()

    def __len__(self) -> int:
        return len(self._order)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """Training batches of an epoch, from batch number ``first`` on.

        Yields:
            inputs (B, ...) float32 and labels (B, ...) on the device, and, of data held in memory, (B,) int64 rows
            of the training set.
        """
        if self.data.in_memory:
            self._train.load_state_dict({**self._train.state_dict(), "epoch": epoch, "position": first})
            return iter(self._train)
        self._order.epoch, self._order.first = epoch, first
        self._loading.manual_seed(stream_seed(self.config.seed, f"loading/{epoch}", self.world.rank))
        return iter(self._train)

    def close(self) -> None:
        """End the processes that read samples."""
        # A DataLoader with lasting workers ends them only when it is no longer referred to, and the traceback of an
        # error refers to it.
        loader, self._train = getattr(self._train, "loader", None), None
        for reading in (getattr(loader, "_iterator", None), *self._scoring):
            _end(reading)
        self._scoring.clear()

    def explained(self, error: Exception) -> Exception:
        """The error itself, or a `LoadingError` that says in one line what happened to a process that reads samples."""
        said = str(error)
        if isinstance(error, LoadingError) and said.startswith("Caught "):
            # From a worker, with a traceback of several pages before its message.
            return LoadingError(said.rpartition("LoadingError: ")[2].strip())
        died = isinstance(error, RuntimeError) and re.match(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (.*)", said)
        if died:
            what = f"(pid {died[1]}) {died[2].strip().rstrip('.')}"
        elif self.config.workers and isinstance(error, ConnectionError | EOFError):
            # A worker that dies while it hands a batch over is missed by the pipe first, and by the loader later.
            what = f"ended while it handed a batch over ({type(error).__name__})"
        else:
            return error
        return LoadingError(
            f"a process that reads samples {what}, often for want of memory; "
            f"the same command continues from the last checkpoint (workers={self.config.workers} now, fewer if need be)"
        )

    def held_out(self, split: str = "test") -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of a held-out set, ``"test"`` or, where there is one, ``"valid"``.

        Each sample is on exactly one process: rank, rank + size, rank + 2 size, ... on this one.
        """
        samples = getattr(self.data, split)
        return self._held_in_memory(samples) if self.data.in_memory else self._held_from_files(samples)

    def groups(self, split: str) -> Tensor | None:
        """(N,) group of every row of a set, None where the data has no groups."""
        groups: Tensor | None = getattr(getattr(self.data, split), "groups", None)
        return groups

    def whole(self, split: str) -> tuple[Tensor, Tensor]:
        """All inputs and labels of a set as batches have them, on the device.

        Raises:
            ConfigError: data that is not held in memory, or that has no such set.
        """
        if not self.data.in_memory:
            raise ConfigError(f"the policy looks at whole sets, but {self.data.name} is read file by file")
        samples = getattr(self.data, split, None)
        if samples is None:
            raise ConfigError(f"the policy looks at a {split} set, but {self.data.name} has none")
        device = self.world.device
        return self._normalize()(samples.inputs.to(device)), samples.labels.to(device)

    def pool(self) -> tuple[Tensor | Callable[[Tensor], Tensor], Tensor]:
        """The training set as a place to draw partners from: inputs, or a function of rows, and labels.

        Raises:
            ConfigError: data that is read file by file, or augmented, so that partners would not be.
        """
        augment = self.config.augment
        if not self.data.in_memory or augment.crop_padding or augment.flip:
            raise ConfigError(
                f"pool={self.config.pool} draws partners from the whole training set, which must be held in memory "
                f"and not augmented; {self.data.name} is "
                + (
                    "augmented: augment.crop_padding=0 augment.flip=false"
                    if self.data.in_memory
                    else "read file by file"
                )
            )
        inputs, labels = self._train.images, self._train.labels
        if inputs.dtype != torch.uint8:
            return inputs, labels
        normalize = self._normalize()
        return (lambda rows: normalize(inputs.index_select(0, rows))), labels

    def _normalize(self) -> Any:
        from mixaug.loading import Normalize

        return Normalize(self.mean, self.std, torch.float32, self.memory_format)

    def _resident(self) -> Any:
        from mixaug.loading import ResidentLoader

        augment, data = self.config.augment, self.data
        return ResidentLoader(
            data.train.inputs,
            data.train.labels,
            self.config.batch_size,
            device=self.world.device,
            crop_padding=augment.crop_padding,
            padding_mode=augment.padding_mode if augment.crop_padding else "zeros",
            flip=augment.flip,
            mean=self.mean,
            std=self.std,
            dtype=torch.float32,
            memory_format=self.memory_format,
            shuffle=True,
            reshuffle=self.config.reshuffle,
            drop_last=self.config.drop_last,
            seed=stream_seed(self.config.seed, "data"),
            rank=self.world.rank,
            world_size=self.world.size,
            with_rows=True,
        )

    def _read(self) -> Any:
        loader: DataLoader[Any] = DataLoader(
            SeededDraws(self.data.train, self.config.seed),
            collate_fn=_collated,
            batch_sampler=_WithEpoch(self._order),
            num_workers=self.config.workers,
            pin_memory=self.world.device.type == "cuda",
            persistent_workers=self.config.workers > 0,
            generator=self._loading,
            worker_init_fn=_leave_interrupts,
        )
        return self._to_device(loader)

    def _to_device(self, loader: Iterable[Any]) -> Any:
        from mixaug.loading import DeviceLoader

        return DeviceLoader(
            loader,
            self.world.device,
            mean=self.mean,
            std=self.std,
            dtype=torch.float32,
            memory_format=self.memory_format,
        )

    def _held_in_memory(self, samples: Any) -> Iterator[tuple[Tensor, Tensor]]:
        normalize = self._normalize()
        inputs = samples.inputs[self.world.rank :: self.world.size]
        labels = samples.labels[self.world.rank :: self.world.size]
        device, size = self.world.device, self.config.eval_batch_size
        for first in range(0, len(labels), size):
            place = slice(first, first + size)
            yield normalize(inputs[place].to(device)), labels[place].to(device)

    def _held_from_files(self, samples: Any) -> Iterator[tuple[Tensor, Tensor]]:
        mine = range(self.world.rank, len(samples), self.world.size)
        loader: DataLoader[Any] = DataLoader(
            SeededDraws(samples, self.config.seed, "evaluation"),
            collate_fn=_collated,
            batch_size=self.config.eval_batch_size,
            sampler=mine,
            num_workers=self.config.workers,
            pin_memory=self.world.device.type == "cuda",
            generator=torch.Generator(),
            worker_init_fn=_leave_interrupts,
        )
        reading = iter(loader)
        self._scoring.append(reading)
        try:
            yield from self._to_device(reading)
        finally:
            _end(reading)
            if reading in self._scoring:
                self._scoring.remove(reading)


def _end(reading: Any) -> None:
    """End the workers of a DataLoader's iterator, if it has any."""
    if hasattr(reading, "_shutdown_workers"):
        # Each process that ends may make torch report one that had been killed, once more.
        with suppress(RuntimeError):
            reading._shutdown_workers()


def _listed(values: Any) -> list[float] | None:
    return None if values is None else list(values)
