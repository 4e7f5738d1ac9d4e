"""The data of a run in batches on its device: training batches with what travels beside them, and held-out sets.

Order and augmentation are those of `mixaug.engine.sources`: functions of seed, epoch and sample. What comes beside the
training batch (streams) has an order and a seed of its own, and the batch that a step gets is a function of the step's
number. A run can therefore be resumed at any batch of any epoch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import DataLoader

from mixaug.batch import Batch
from mixaug.engine.config import AUGMENT_KEYS
from mixaug.engine.distributed import World, stream_seed
from mixaug.engine.errors import ConfigError, LoadingError
from mixaug.engine.sources import Pool, SeededDraws, Source, collated, end_reading, leave_interrupts
from mixaug.loading import DeviceLoader, Normalize, ResidentLoader

__all__ = ["GROUP", "Batches", "groups_of"]

#: Metadata of this name say which group a sample counts to where groups are scored.
GROUP = "group"


class Batches:
    """Training and test batches of one run on its device, normalised to float32.

    Args:
        config: the run's config.
        data: a ``mixaug.data.DataSet``.
        world: this process among all.
        streams: data sets of the config's ``streams`` by name, for training.

    Raises:
        ConfigError: fewer training samples than one step needs, image files without a transform, settings that do not
            fit the data, a stream whose inputs are not like those of the training set.
    """

    def __init__(self, config: DictConfig, data: Any, world: World, streams: Mapping[str, Any] | None = None) -> None:
        self.config, self.data, self.world = config, data, world
        self.mean = _listed(data.mean if config.augment.mean is None else config.augment.mean)
        self.std = _listed(data.std if config.augment.std is None else config.augment.std)
        self.memory_format = torch.channels_last if config.channels_last else None
        for key in ("mean", "std"):
            told, channels = config.augment[key], data.input_shape[0]
            if told is not None and len(told) not in (1, channels):
                raise ConfigError(
                    f"augment.{key}={list(told)} has {len(told)} numbers, but images of {data.name} have {channels} "
                    "channels"
                )
        for option, part in (("transform", data.train), ("test_transform", data.test)):
            if not data.in_memory and getattr(part, "transform", self) is None:
                raise ConfigError(
                    f"{data.name} reads image files, and data.{option} is null: set data.transform and "
                    "data.test_transform to what makes tensors of one size of them, such as "
                    "data.transform=imagenet_train data.test_transform=imagenet_test"
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
        self._scoring: list[Any] = []
        self._resident: dict[str, ResidentLoader | None] = {}
        self._groups: dict[str, Tensor | None] = {}
        self._train = Source(
            data,
            config.batch_size,
            world,
            seed=config.seed,
            form=self._form,
            augment=config.augment,
            workers=config.workers,
            reshuffle=config.reshuffle,
            drop_last=config.drop_last,
            views=config.views,
        )
        self._streams = {name: self._stream(name, source) for name, source in (streams or {}).items()}

    def __len__(self) -> int:
        return len(self._train)

    @property
    def tensors_of_samples(self) -> Mapping[str, Tensor]:
        """What is known of each training sample by name, (N, ...) on the device."""
        return self._train.metadata

    @property
    def metadata(self) -> tuple[str, ...]:
        """Names of what batches carry of each sample."""
        return tuple(self._train.metadata)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Training batches of an epoch, from batch number ``first`` on.

        Yields:
            inputs (B, ...) float32, labels (B, ...) and (B,) int64 rows of the training set, all on the device, with
            metadata, views and streams where there are some. Streams go on from epoch to epoch: batch n of a run
            comes with batch n of each stream.
        """
        number = epoch * len(self) + first
        for batch in self._train.epoch(epoch, first):
            if self._streams:
                batch = replace(batch, streams={name: source.batch(number) for name, source in self._streams.items()})
            yield batch
            number += 1

    def draw_by(self, weights: Callable[[Tensor], Tensor | None]) -> None:
        """Draw training batches with replacement, by weights of the samples that change while training goes on.

        Args:
            weights: from the training set's labels (N, ...) to (N,) weights.

        Raises:
            ConfigError: data that is read file by file, ahead of the step that would say the weights.
        """
        if not self.data.in_memory:
            raise ConfigError(f"the policy says which samples are drawn, but {self.data.name} is read file by file")
        self._train.draw_by(weights)

    def draw_evenly(self) -> None:
        """Draw batches with replacement, and all classes, or all groups, as often, where ``sampling`` asks for that.

        Raises:
            ConfigError: data that is read file by file or has numbers as labels, no metadata "group".
        """
        kind = self.config.sampling
        if kind is None:
            return
        where = f"sampling={kind}"
        labels = getattr(self.data.train, "labels", None)
        if not self.data.in_memory or not isinstance(labels, Tensor) or labels.is_floating_point():
            raise ConfigError(
                f"{where} is for classes, held in memory; {self.data.name} has none, or is read from files"
            )
        among = labels if kind == "class" else groups_of(self.data.train)
        if among is None:
            raise ConfigError(f"{where} needs metadata {GROUP!r} of the training set, which {self.data.name} lacks")
        # Rows are drawn on the CPU, where the weights therefore stay.
        among = among.cpu()
        weights = (1.0 / torch.bincount(among).clamp(min=1))[among]
        self.draw_by(lambda labels: weights)

    def close(self) -> None:
        """End the processes that read samples."""
        for source in (self._train, *self._streams.values()):
            source.close()
        for reading in self._scoring:
            end_reading(reading)
        self._scoring.clear()

    def explained(self, error: Exception) -> Exception:
        """The error itself, or a `LoadingError` that says in one line what happened to a process that reads samples."""
        said = str(error)
        if isinstance(error, LoadingError) and said.startswith("Caught "):
            # From a worker, with a traceback of several pages before its message.
            return LoadingError(said.rpartition("LoadingError: ")[2].strip())
        # A worker that dies while it hands a batch over is missed by the pipe first, and by the loader later.
        lost = error.__cause__ if isinstance(error.__cause__, ConnectionError) else error
        died = isinstance(error, RuntimeError) and re.match(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (.*)", said)
        if died:
            what = f"(pid {died[1]}) {died[2].strip().rstrip('.')}"
        elif self.config.workers and isinstance(lost, ConnectionError | EOFError):
            what = f"ended while it handed a batch over ({type(lost).__name__})"
        else:
            return error
        return LoadingError(
            f"a process that reads samples {what}, often for want of memory; "
            f"the same command continues from the last checkpoint (workers={self.config.workers} now, fewer if need be)"
        )

    def held_out(self, split: str = "test") -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of a held-out set, ``"test"`` or, where there is one, ``"valid"``; or of ``"train"``.

        Each sample is on exactly one process: rank, rank + size, rank + 2 size, ... on this one. A set held in memory
        is brought to the device once, when it is first asked for, and stays there; the training set, which lies there
        for training already, passes through batch by batch.
        """
        if not self.data.in_memory:
            return self._held_from_files(getattr(self.data, split))
        if split == "train":
            return self._passing(self.data.train)
        if split not in self._resident:
            self._resident[split] = self._share_on_device(getattr(self.data, split))
        share = self._resident[split]
        return iter(()) if share is None else ((inputs, labels) for inputs, labels in share)

    def groups(self, split: str) -> Tensor | None:
        """(N,) int64 group of every row of a set, on the device; None where the data has no groups."""
        if split not in self._groups:
            groups = groups_of(getattr(self.data, split))
            self._groups[split] = None if groups is None else groups.to(self.world.device)
        return self._groups[split]

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

    def pool(self) -> Pool:
        """The training set as a place to draw partners from, read and augmented as its batches are.

        Raises:
            ConfigError: a data set of one's own that does not say its labels without being read.
        """
        try:
            return self._train.pool()
        except TypeError as error:
            raise ConfigError(f"pool={self.config.pool} draws partners from {self.data.name}: {error}") from error

    @property
    def _form(self) -> dict[str, Any]:
        """What the model takes: options of `mixaug.loading.Normalize`."""
        return {"mean": self.mean, "std": self.std, "dtype": torch.float32, "memory_format": self.memory_format}

    def _normalize(self) -> Normalize:
        return Normalize(**self._form)

    def _stream(self, name: str, data: Any) -> Source:
        """Batches of another source, normalised as those of the training set and all of one size."""
        settings, where = self.config.streams[name], f"streams.{name}"
        if tuple(data.input_shape) != tuple(self.data.input_shape):
            raise ConfigError(
                f"{where} has inputs {tuple(data.input_shape)}, but the model is for those of {self.data.name}, "
                f"{tuple(self.data.input_shape)}"
            )
        own = settings.get("augment") or {}
        images = data.in_memory and data.train.inputs.dtype == torch.uint8
        usual = self.config.augment if images else {"crop_padding": 0, "padding_mode": "zeros", "flip": False}
        try:
            return Source(
                data,
                settings.get("batch_size") or self.config.batch_size,
                self.world,
                seed=stream_seed(self.config.seed, f"stream/{name}"),
                form=self._form,
                augment={key: own.get(key, usual[key]) for key in AUGMENT_KEYS},
                workers=self.config.workers,
                drop_last=True,
            )
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error

    def _share_on_device(self, samples: Any) -> ResidentLoader | None:
        """This process's rows of a set, on its device; None where none of them is its own."""
        inputs = samples.inputs[self.world.rank :: self.world.size]
        labels = samples.labels[self.world.rank :: self.world.size]
        if not len(labels):
            return None
        # The rows are this process's already.
        alone: dict[str, Any] = {"shuffle": False, "rank": 0, "world_size": 1}
        size = self.config.eval_batch_size
        return ResidentLoader(inputs, labels, size, device=self.world.device, **self._form, **alone)

    def _passing(self, samples: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's rows of a set in memory, of which nothing stays on the device."""
        normalize, device, size = self._normalize(), self.world.device, self.config.eval_batch_size
        inputs = samples.inputs[self.world.rank :: self.world.size]
        labels = samples.labels[self.world.rank :: self.world.size]
        for first in range(0, len(labels), size):
            place = slice(first, first + size)
            yield normalize(inputs[place].to(device)), labels[place].to(device)

    def _held_from_files(self, samples: Any) -> Iterator[tuple[Tensor, Tensor]]:
        mine = range(self.world.rank, len(samples), self.world.size)
        loader: DataLoader[Any] = DataLoader(
            SeededDraws(samples, self.config.seed, "evaluation"),
            collate_fn=collated,
            batch_size=self.config.eval_batch_size,
            sampler=mine,
            num_workers=self.config.workers,
            pin_memory=self.world.device.type == "cuda",
            generator=torch.Generator(),
            worker_init_fn=leave_interrupts,
        )
        reading = iter(loader)
        self._scoring.append(reading)
        try:
            yield from DeviceLoader(reading, self.world.device, **self._form)
        finally:
            end_reading(reading)
            if reading in self._scoring:
                self._scoring.remove(reading)


def groups_of(part: Any) -> Tensor | None:
    """(N,) int64 group of every sample of a part of a data set: its ``groups``, or its metadata "group"; None without.

    Raises:
        ConfigError: groups that are no whole numbers from 0 on, one for each sample.
    """
    groups: Tensor | None = getattr(part, "groups", None)
    if groups is None:
        groups = getattr(part, "metadata", {}).get(GROUP)
    if groups is None:
        return None
    if groups.ndim != 1 or groups.is_floating_point() or groups.is_complex() or bool((groups < 0).any()):
        raise ConfigError(
            f"the metadata {GROUP!r}, by which the worst group is found, must be whole numbers from 0 on, one for each "
            f"sample; got {tuple(groups.shape)} {groups.dtype}"
        )
    return groups.long()


def _listed(values: Any) -> list[float] | None:
    return None if values is None else list(values)
