"""A data set as training batches on the device: order and augmentation are fixed by seed and epoch alone.

Every epoch has its own permutation, drawn from (seed, epoch). It is cut into global batches and each of those into
one contiguous piece per process, so that n processes with batches of B see what one process with batches of nB sees.
The augmentation of a sample depends on (seed, epoch, sample), never on the process or worker that reads it. Reading can
therefore go on at any batch of any epoch, and the position is two numbers.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from mixaug.batch import Batch
from mixaug.data.splits import labels_of
from mixaug.draws import Draws
from mixaug.engine.distributed import World, stream_seed
from mixaug.engine.errors import ConfigError, LoadingError
from mixaug.labeling.object import OBJECT_MASK
from mixaug.loading import DeviceLoader, Normalize, ResidentLoader
from mixaug.loading.samples import explained_samples

__all__ = ["EpochBatches", "SeededDraws", "Source", "collated", "end_reading", "leave_interrupts"]


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


class SeededDraws(Dataset[tuple[Any, ...]]):
    """A data set whose random transforms draw from a stream of (seed, epoch, sample).

    Args:
        data: yields (uint8 tensor, label); transforms inside draw from torch's global generator, Python's ``random`` or
            NumPy's, which are put back afterwards.
        seed: the run's seed.
        purpose: what the samples are read for, ``"training"`` or ``"evaluation"``; each has streams of its own.
        views: names of further readings of each sample, each with streams of its own. A sample is then (image, label,
            number of the sample, *further readings); where ``views`` is None it is (image, label).

    Raises:
        LoadingError: by a sample that cannot be read; names it and its file.
    """

    def __init__(
        self, data: Dataset[Any], seed: int, purpose: str = "training", views: Sequence[str] | None = None
    ) -> None:
        self.data, self.seed, self.purpose, self.views = data, seed, purpose, views

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]  # map data sets have a length

    def __getitem__(self, key: tuple[int, int] | int) -> tuple[Any, ...]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[tuple[int, int] | int]) -> list[tuple[Any, ...]]:
        """The samples of a batch; a ``DataLoader`` asks for them all at once."""
        samples: list[tuple[Any, ...]] = []
        with _global_draws_put_back():
            for key in keys:
                epoch, index = key if isinstance(key, tuple) else (0, key)
                image, label = self._read(f"{epoch}/{index}", index)
                if self.views is None:
                    samples.append((image, label))
                else:
                    views = [self._read(f"{view}/{epoch}/{index}", index)[0] for view in self.views]
                    samples.append((image, label, index, *views))
        return samples

    def again(self, place: int, index: int) -> Any:
        """The image of a sample, augmented by the stream of a number."""
        with _global_draws_put_back():
            return self._read(f"partner/{place}/{index}", index)[0]

    def _read(self, place: str, index: int) -> tuple[Any, Any]:
        seed = stream_seed(self.seed, f"{_STREAMS[self.purpose]}/{place}")
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
        return image, label


def _place_of(data: Any, index: int) -> str:
    """``", <file>,"`` where a data set has a list of its files, as those of `mixaug.data` and torchvision have."""
    for name in ("paths", "samples", "_image_files", "_samples"):
        try:
            entry = getattr(data, name)[index]
        except (AttributeError, TypeError, LookupError):
            continue
        return f", {entry[0] if isinstance(entry, tuple) else entry},"
    return ""


def collated(samples: list[Any]) -> Any:
    """The samples as a batch.

    Raises:
        LoadingError: samples that are no tensors of one size.
    """
    try:
        return default_collate(samples)
    except (TypeError, RuntimeError) as error:
        explained = explained_samples("a batch", samples)
        if explained is None:
            raise
        raise LoadingError(f"{explained} (data.transform, data.test_transform, data.image_size)") from error


def leave_interrupts(worker: int) -> None:
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


class Pool(NamedTuple):
    """A training part as a place to draw partners from: options of `mixaug.partners.TrainingSet`.

    Attributes:
        inputs: (N, ...) on the device; a function of rows; or, where ``augmented``, of rows and draws.
        labels: (N, ...) on the device.
        metadata: (N, ...) by name, on the device.
        augmented: whether a row gives another input every time.
    """

    inputs: Any
    labels: Tensor
    metadata: Mapping[str, Tensor]
    augmented: bool


class Source:
    """The training part of a data set in batches on the device, normalised to float32.

    Args:
        data: a ``mixaug.data.DataSet`` or one like it.
        batch_size: samples per process and batch.
        world: this process among all.
        seed: of order and augmentation.
        form: ``mean``, ``std``, ``dtype`` and ``memory_format`` of what the model takes, as `Normalize` has them.
        augment: ``crop_padding``, ``padding_mode`` and ``flip``, for data held in memory.
        workers: processes that read files.
        reshuffle: a new order each epoch, else one for all.
        drop_last: drop the last global batch if it is smaller.
        views: names of further augmentations of every sample.

    Raises:
        ConfigError: fewer samples than one batch needs, augmentation that cannot be, views that would be no others.
    """

    def __init__(
        self,
        data: Any,
        batch_size: int,
        world: World,
        *,
        seed: int,
        form: Mapping[str, Any],
        augment: Mapping[str, Any],
        workers: int,
        reshuffle: bool = True,
        drop_last: bool = False,
        views: Sequence[str] = (),
    ) -> None:
        self.data, self.world, self.seed, self.form, self.workers = data, world, seed, form, workers
        self.normalize = Normalize(**form)
        self.views = tuple(views)
        samples = len(data.train)
        self._order = EpochBatches(
            samples,
            batch_size,
            rank=world.rank,
            world_size=world.size,
            seed=seed,
            drop_last=drop_last,
            reshuffle=reshuffle,
        )
        if len(self._order) == 0:
            raise ConfigError(
                f"{samples} training samples give no batch with batch_size={batch_size}, "
                f"{world.size} processes and drop_last={drop_last}"
            )
        augments = bool(augment["crop_padding"] or augment["flip"])
        if augments and not data.in_memory:
            raise ConfigError(
                "augment.crop_padding and augment.flip act on data held in memory; data that is read image by "
                "image takes data.transform"
            )
        if augments and data.train.inputs.dtype != torch.uint8:
            raise ConfigError(
                f"augment.crop_padding and augment.flip act on images; {data.name} has inputs "
                f"{tuple(data.input_shape)} {data.train.inputs.dtype}"
            )
        if data.in_memory and self.views and not augments:
            raise ConfigError(
                f"views={list(self.views)} are further augmentations, but {data.name} is not augmented: "
                "augment.crop_padding, augment.flip"
            )
        # The tensors lie on the device once: a batch knows its rows.
        self.metadata = {name: values.to(world.device) for name, values in getattr(data.train, "metadata", {}).items()}
        if augments or getattr(data.train, "transform", None) is not None:
            # Masks stay where they are when images are cropped, flipped or transformed: they would name other pixels.
            self.metadata.pop(OBJECT_MASK, None)
        # A DataLoader draws a number from the global generator for every pass, unless it has one of its own. The global
        # one belongs to the model's dropout and is in every checkpoint.
        self._loading = torch.Generator()
        self.loader: Any = (
            self._resident(batch_size, augment, reshuffle, drop_last) if data.in_memory else self._from_files()
        )
        self._endless: Iterator[Batch] | None = None
        self._next = -1

    def __len__(self) -> int:
        return len(self._order)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Batches of an epoch, from batch number ``first`` on: inputs float32, rows of the training part, metadata."""
        if self.data.in_memory:
            for loader in self.loader:
                loader.load_state_dict({**loader.state_dict(), "epoch": epoch, "position": first})
            for (inputs, labels, rows), *views in zip(*self.loader, strict=True):
                yield self._batch(inputs, labels, rows, [images for images, _, _ in views])
            return
        self._order.epoch, self._order.first = epoch, first
        self._loading.manual_seed(stream_seed(self.seed, f"loading/{epoch}", self.world.rank))
        for inputs, labels, rows, *views in self.loader:
            yield self._batch(inputs, labels, rows, [self.normalize(view) for view in views])

    def pool(self) -> Pool:
        """All samples, to draw partners from, normalised and augmented as those of batches.

        Their augmentation is drawn anew each time, from the stream of the mixing, so that a resumed run draws the same.

        Raises:
            TypeError: data read from files that do not say their labels without being read.
        """
        if not self.data.in_memory:
            labels = labels_of(self.data.train).to(self.world.device)
            return Pool(_FromFiles(self), labels, self.metadata, True)
        loader = self.loader[0]
        if loader.crop_padding or loader.flip:
            return Pool(_Cropped(loader), loader.labels, self.metadata, True)
        images = loader.images
        if images.dtype != torch.uint8:
            return Pool(images, loader.labels, self.metadata, False)
        return Pool(_Normalised(images, self.normalize), loader.labels, self.metadata, False)

    def draw_by(self, weights: Callable[[Tensor], Tensor | None]) -> None:
        """Draw the batches of data held in memory by weights, a function of the labels."""
        for loader in self.loader:
            loader.weights = weights

    def batch(self, number: int) -> Batch:
        """A batch by its number over all epochs, from 0; reading on from the one before costs no look for the place."""
        if self._endless is None or number != self._next:
            self._endless = self._from(number)
        self._next = number + 1
        return next(self._endless)

    def close(self) -> None:
        """End the processes that read samples."""
        # A DataLoader with lasting workers ends them only when it is no longer referred to, and the traceback of an
        # error refers to it.
        loader, self.loader, self._endless = getattr(self.loader, "loader", None), None, None
        end_reading(getattr(loader, "_iterator", None))

    def _from(self, number: int) -> Iterator[Batch]:
        epoch, first = divmod(number, len(self))
        while True:
            yield from self.epoch(epoch, first)
            epoch, first = epoch + 1, 0

    def _batch(self, inputs: Tensor, labels: Tensor, rows: Tensor, views: Sequence[Tensor]) -> Batch:
        return Batch(
            inputs,
            labels,
            rows=rows,
            metadata={name: values.index_select(0, rows) for name, values in self.metadata.items()},
            views=dict(zip(self.views, views, strict=True)),
        )

    def _resident(
        self, batch_size: int, augment: Mapping[str, Any], reshuffle: bool, drop_last: bool
    ) -> list[ResidentLoader]:
        """The loader of the batches, and one more for each view, which draws other crops and flips of the same rows."""
        made: list[ResidentLoader] = []
        for view in (None, *self.views):
            made.append(
                ResidentLoader(
                    made[0].images if made else self.data.train.inputs,
                    made[0].labels if made else self.data.train.labels,
                    batch_size,
                    device=self.world.device,
                    crop_padding=augment["crop_padding"],
                    padding_mode=augment["padding_mode"] if augment["crop_padding"] else "zeros",
                    flip=augment["flip"],
                    **self.form,
                    reshuffle=reshuffle,
                    drop_last=drop_last,
                    seed=stream_seed(self.seed, "data"),
                    rank=self.world.rank,
                    world_size=self.world.size,
                    with_rows=True,
                    view=view,
                )
            )
        return made

    def _from_files(self) -> DeviceLoader:
        loader: DataLoader[Any] = DataLoader(
            SeededDraws(self.data.train, self.seed, views=self.views),
            collate_fn=collated,
            batch_sampler=_WithEpoch(self._order),
            num_workers=self.workers,
            pin_memory=self.world.device.type == "cuda",
            persistent_workers=self.workers > 0,
            generator=self._loading,
            worker_init_fn=leave_interrupts,
        )
        return DeviceLoader(loader, self.world.device, **self.form)


class _Normalised:
    """Rows of images that lie on the device."""

    def __init__(self, images: Tensor, normalize: Normalize) -> None:
        self.images, self.normalize = images, normalize

    def __call__(self, rows: Tensor) -> Tensor:
        return self.normalize(self.images.index_select(0, rows))


class _Cropped:
    """Rows of images that lie on the device, each cropped and flipped anew as the loader does."""

    def __init__(self, loader: ResidentLoader) -> None:
        self.loader = loader

    def __call__(self, rows: Tensor, draws: Draws) -> Tensor:
        loader, padding = self.loader, self.loader.crop_padding
        offsets = draws.integers(0, 2 * padding + 1, (2,), per="sample") if padding else None
        flips = draws.uniform(per="sample") < 0.5 if loader.flip else None
        return loader.normalize.cropped(
            loader.images, rows, offsets, flips, padding=padding, padding_mode=loader.padding_mode
        )


class _FromFiles:
    """Rows that are read from files when they are drawn, in the process that trains, each augmented anew."""

    def __init__(self, source: Source) -> None:
        self.samples, self.normalize = SeededDraws(source.data.train, source.seed), source.normalize
        self.device = source.world.device

    def __call__(self, rows: Tensor, draws: Draws) -> Tensor:
        places = draws.integers(0, 2**31, per="sample").tolist()
        images = [self.samples.again(place, row) for place, row in zip(places, rows.tolist(), strict=True)]
        return self.normalize(collated(images).to(self.device))


def end_reading(reading: Any) -> None:
    """End the workers of a DataLoader's iterator, if it has any."""
    if hasattr(reading, "_shutdown_workers"):
        # Each process that ends may make torch report one that had been killed, once more.
        with suppress(RuntimeError):
            reading._shutdown_workers()
