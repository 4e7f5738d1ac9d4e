"""`ResidentLoader`: a data set that lies on the device, shuffled, cropped and flipped there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mixaug.axes import check_place_of_channels
from mixaug.checks import check_dense
from mixaug.loading.crops import PERMUTE, check_padding
from mixaug.loading.normalize import Normalize
from mixaug.streams import stream_key, world_of

__all__ = ["ResidentLoader"]


class ResidentLoader:
    """Batches of a data set small enough to lie on the device (CIFAR-100 takes 154 MB), without worker
    processes.

    The order of an epoch and the crop and flip of each place in that order are functions of (seed, epoch)
    alone, drawn on the CPU, so they are the same on every device. Batch i of n processes with batches of B
    holds, in the order of the ranks, exactly the samples, crops and flips of batch i of one process with
    batches of nB.

    Each complete pass moves on to the next epoch by itself; :meth:`set_epoch` chooses one.

    For evaluation: ``ResidentLoader(images, labels, 500, device=device, mean=mean, std=std, shuffle=False)``.

    Args:
        images: (N, C, H, W) uint8; or, where nothing is cropped or flipped, (N, ...) uint8 or floating. On a CPU
            they are used as they are, not copied: leave them alone.
        labels: (N, ...) tensor.
        batch_size: B, per process.
        device: where the data set lies from now on.
        crop_padding: p >= 0; windows of H x W are cut out of images padded by p. With "reflect" p < min(H,
            W).
        padding_mode: "zeros" (black, before normalisation) or "reflect".
        flip: mirror left to right with probability 1/2.
        mean, std: in units of 0..1, one number for each channel or one for all.
        dtype: dtype of the images. None gives float32 if there is a mean or std, else they stay uint8.
        memory_format: memory format of the images.
        shuffle: a random order.
        reshuffle: a new one each epoch; else that of epoch 0 throughout, and so the same batches.
        drop_last: leave out a last batch that is not full.
        seed: seed of all draws.
        rank, world_size: this process among all; None asks torch.distributed, if it runs. When shuffling, all
            processes get batches of one size, so a rest of fewer than world_size samples of the epoch's
            order is left out; without shuffling none is left out, and the last batches may differ in size
            and number.
        with_rows: give the batch's (B,) int64 rows of the data set as a third tensor, for policies that have to
            know them (:class:`mixaug.Pooled`).
        view: a name for crops and flips of their own, in the order that there is without one: two loaders that differ
            in it alone give two augmentations of the same samples.
        weights: a function of the labels that returns (N,) floating weights, or None. Every batch is then drawn by the
            weights as they are at that moment, with replacement.

    Raises:
        TypeError: images of another dtype, labels other than a tensor.
        ValueError: wrong shapes, options out of range, or no batch at all.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        *,
        device: torch.device | str = "cpu",
        crop_padding: int = 0,
        padding_mode: str = "zeros",
        flip: bool = False,
        mean: float | Sequence[float] | Tensor | None = None,
        std: float | Sequence[float] | Tensor | None = None,
        dtype: torch.dtype | None = None,
        memory_format: torch.memory_format | None = None,
        shuffle: bool = True,
        reshuffle: bool = True,
        drop_last: bool = False,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        with_rows: bool = False,
        view: str | None = None,
        weights: Callable[[Tensor], Tensor | None] | None = None,
    ) -> None:
        _check(images, labels, batch_size, crop_padding, padding_mode, flip)
        if not crop_padding and padding_mode != "zeros":
            raise ValueError(
                f"ResidentLoader pads nothing with crop_padding=0, so padding_mode={padding_mode!r} does nothing"
            )
        if not shuffle and not reshuffle:
            raise ValueError("ResidentLoader has one order with shuffle=False, so reshuffle=False does nothing")
        self.rank, self.world_size = world_of("ResidentLoader", rank, world_size)
        self.device = torch.device(device)
        self.images = images.to(self.device).contiguous()
        self.labels = labels.to(self.device)
        self.batch_size = batch_size
        self.crop_padding = crop_padding
        self.padding_mode = padding_mode
        self.flip = flip
        self.normalize = Normalize(mean, std, dtype, memory_format)
        self.shuffle = shuffle
        self.reshuffle = reshuffle
        self.drop_last = drop_last
        self.seed = seed
        self.with_rows = with_rows
        self.view = view
        self.weights = weights
        self.epoch = 0
        self._position = 0
        self._resume_at = 0
        if len(self) == 0:
            raise ValueError(
                f"ResidentLoader gets no batch out of {len(images)} samples with batch_size={batch_size}, "
                f"world_size={self.world_size}, rank={self.rank} and drop_last={drop_last}"
            )

    def __len__(self) -> int:
        """Batches of a complete epoch on this process."""
        whole, rest = divmod(len(self.images), self.batch_size * self.world_size)
        if self.drop_last or rest == 0:
            return whole
        start, stop = self._share(rest)
        return whole + int(stop > start)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass. A position loaded for this very epoch is kept."""
        if epoch != self.epoch:
            self._resume_at = self._position = 0
        self.epoch = epoch

    def state_dict(self) -> dict[str, int]:
        """Where this loader stands: the epoch, the number of batches handed out in it, and what makes that a place."""
        return {"epoch": self.epoch, "position": self._position, **self._identity()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from :meth:`state_dict`: the next pass begins with the batch after the last one handed out.

        Raises:
            ValueError: the state is of a loader with another data set size, batch size, seed or number of
                processes.
        """
        missing = {"epoch", "position", *self._identity()} - set(state)
        if missing:
            raise ValueError(f"ResidentLoader expects a state with {sorted(missing)}, got {sorted(state)}")
        for name, value in self._identity().items():
            if state[name] != value:
                raise ValueError(f"ResidentLoader has {name}={value}, but the state was saved with {state[name]}")
        if not 0 <= state["position"] <= len(self):
            raise ValueError(f"ResidentLoader has {len(self)} batches, but the state says {state['position']}")
        self.epoch = state["epoch"]
        self._resume_at = self._position = state["position"]

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        epoch, first = self.epoch, self._resume_at
        self._resume_at, self._position = 0, first
        order, offsets, flips = self._draw(epoch)
        samples, step = len(self.images), self.batch_size * self.world_size
        for number in range(first, len(self)):
            begin, end = number * step, min((number + 1) * step, samples)
            start, stop = self._share(end - begin)
            place = slice(begin + start, begin + stop)
            drawn = self._by_weights(epoch, number, end - begin)
            batch = self._batch(place, order, offsets, flips, None if drawn is None else drawn[start:stop])
            self._position = number + 1
            yield batch
        if self.epoch == epoch:
            self.epoch, self._position = epoch + 1, 0

    def _share(self, count: int) -> tuple[int, int]:
        """This process's part of a global batch of ``count`` samples."""
        if self.shuffle:
            size = count // self.world_size
            return self.rank * size, (self.rank + 1) * size
        return count * self.rank // self.world_size, count * (self.rank + 1) // self.world_size

    def _draw(self, epoch: int) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Order (N,), offsets (N, 2) and flips (N,) of an epoch, each None where there is nothing to draw."""
        samples = len(self.images)

        def stream(purpose: str, epoch: int = epoch) -> torch.Generator:
            # Each purpose has a stream of its own: whether images are flipped does not change their order.
            return torch.Generator().manual_seed(stream_key("resident", purpose, self.seed, epoch))

        own = "" if self.view is None else f"/{self.view}"
        order = offsets = flips = None
        if self.shuffle:
            order = torch.randperm(samples, generator=stream("order", epoch if self.reshuffle else 0)).to(self.device)
        if self.crop_padding:
            sides = 2 * self.crop_padding + 1
            offsets = torch.randint(sides, (samples, 2), generator=stream(f"crop{own}")).to(self.device)
        if self.flip:
            flips = (torch.rand(samples, generator=stream(f"flip{own}")) < 0.5).to(self.device)
        return order, offsets, flips

    def _by_weights(self, epoch: int, number: int, count: int) -> Tensor | None:
        """(count,) rows of a global batch drawn by the weights as they are now; None where there are none."""
        weights = None if self.weights is None else self.weights(self.labels)
        if weights is None:
            return None
        if weights.shape != (len(self.images),) or not weights.is_floating_point():
            raise ValueError(
                f"ResidentLoader expects weights ({len(self.images)},) floating of its function, got "
                f"{tuple(weights.shape)} {weights.dtype}"
            )
        generator = torch.Generator().manual_seed(stream_key("resident", f"drawn/{number}", self.seed, epoch))
        return torch.multinomial(weights.double().cpu(), count, replacement=True, generator=generator).to(self.device)

    def _batch(
        self,
        place: slice,
        order: Tensor | None,
        offsets: Tensor | None,
        flips: Tensor | None,
        drawn: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        if drawn is not None:
            rows = drawn
        elif order is None:
            rows = torch.arange(place.start, place.stop, device=self.device)
        else:
            rows = order[place]
        images = self.normalize.cropped(
            self.images,
            rows,
            None if offsets is None else offsets[place],
            None if flips is None else flips[place],
            padding=self.crop_padding,
            padding_mode=self.padding_mode,
        )
        batch = images, self.labels.index_select(0, rows)
        return (*batch, rows) if self.with_rows else batch

    def _identity(self) -> dict[str, int]:
        return {
            "samples": len(self.images),
            "batch_size": self.batch_size,
            "world_size": self.world_size,
            "seed": self.seed,
        }

    def __repr__(self) -> str:
        return (
            f"ResidentLoader({len(self.images)} images {tuple(self.images.shape[1:])} on {self.device}, "
            f"batch_size={self.batch_size}, epoch={self.epoch})"
        )


def _check(images: Any, labels: Any, batch_size: int, crop_padding: int, padding_mode: str, flip: bool) -> None:
    if isinstance(images, Tensor):
        check_dense("ResidentLoader", "images", images)
    moves = bool(crop_padding or flip)
    right = isinstance(images, Tensor) and (images.dtype == torch.uint8 or (images.is_floating_point() and not moves))
    if not right:
        got = images.dtype if isinstance(images, Tensor) else type(images).__name__
        expected = "a uint8 tensor" if moves else "a uint8 or floating tensor"
        raise TypeError(f"ResidentLoader expects images as {expected}, got {got}")
    if images.ndim == 0 or images.numel() == 0 or (moves and images.ndim != 4):
        expected = "(N, C, H, W)" if moves else "(N, ...)"
        raise ValueError(f"ResidentLoader expects images {expected}, got shape {tuple(images.shape)}")
    if moves:
        check_place_of_channels("ResidentLoader", images.shape, "(N, C, H, W)", PERMUTE)
    check_dense("ResidentLoader", "labels", labels)
    if labels.ndim == 0 or len(labels) != len(images):
        raise ValueError(f"ResidentLoader got {len(images)} images but labels of shape {tuple(labels.shape)}")
    if batch_size < 1:
        raise ValueError(f"ResidentLoader expects batch_size >= 1, got {batch_size}")
    if images.ndim == 4:
        check_padding("ResidentLoader", images.shape, crop_padding, padding_mode)
