"""`DeviceLoader`: brings the batches of any loader to the device, normalises and mixes them there."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mixaug.axes import channels_back, channels_first
from mixaug.batch import MixedBatch
from mixaug.loading.collate import MixCollate, check_free_policy
from mixaug.loading.normalize import Normalize
from mixaug.loading.samples import Layout, may_overwrite
from mixaug.ops.nested import map_tensors
from mixaug.policy import Policy
from mixaug.streams import process_rank, stream_key

__all__ = ["DeviceLoader"]

_END = object()


class DeviceLoader:
    """Wraps a loader: its batches come out on the device, normalised, and mixed if a policy is given.

    On a CUDA device each batch is copied from pinned memory, normalised and mixed on a stream of its own
    while the model still works on the batch before; uint8 images cross as uint8, a quarter of the bytes.
    Give ``pin_memory=True`` to a ``DataLoader`` and its pinning thread does that part of the work; what
    arrives unpinned is pinned here. On a CPU the same happens, step by step.

    An exception of the loader comes out where the batch would have, after all batches before it.

    Args:
        loader: any iterable of batches: ``(images, labels, ...)``, mappings, tensors, or
            :class:`MixedBatch` (from :class:`MixCollate`), whose inputs are normalised after mixing.
        device: device that the batches are moved to.
        policy: a model-free policy; batches then come out as :class:`MixedBatch`. On a CPU large images that were
            normalised here are mixed in place: a pairing or ratio of one's own that keeps ``batch.images`` copies them.
        mean, std: in units of 0..1, one number for each channel or one for all.
        dtype: dtype of the images. None gives float32 for normalised uint8 images, else leaves them.
        memory_format: memory format of the images, such as ``torch.channels_last``.
        generator: for mixing, on the device. None takes torch's default one of the device.
        seed: instead of a generator: each batch is mixed by (seed, rank, epoch, number of the batch) alone,
            so that a resumed run repeats none and changes none. Call :meth:`set_epoch` before each epoch.
        image_key, label_key: where batches are mappings, or tuples other than (images, labels, ...).
        keys: further entries that belong to the images and are mixed like them.
        extent_keys: entries that say how far padded inputs reach, see :class:`mixaug.MixCollate`.
        layout: where the channels of the images are, such as ``"NHWC"``, see :meth:`mixaug.Policy.forward`.

    Raises:
        ValueError: a policy that needs the model, or one here and one in a :class:`MixCollate`; a generator of another
            device, generator and seed both; without a policy, settings of mixing, which would have no effect.
        TypeError: something other than a policy; when iterated over, images in a nested or sparse tensor.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        device: torch.device | str,
        policy: Policy | None = None,
        mean: float | Sequence[float] | Tensor | None = None,
        std: float | Sequence[float] | Tensor | None = None,
        dtype: torch.dtype | None = None,
        memory_format: torch.memory_format | None = None,
        *,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        image_key: Hashable | None = None,
        label_key: Hashable | None = None,
        keys: Sequence[Hashable] = (),
        extent_keys: Sequence[Hashable] = (),
        layout: str | None = None,
    ) -> None:
        if policy is not None:
            check_free_policy("DeviceLoader", policy)
            if isinstance(getattr(loader, "collate_fn", None), MixCollate):
                raise ValueError(
                    "DeviceLoader mixes batches itself, but they come from a MixCollate: take one of the two policies, "
                    "for batches would be mixed twice"
                )
        else:
            settings = {"generator": generator, "seed": seed, "keys": keys or None, "extent_keys": extent_keys or None}
            idle = [name for name, value in settings.items() if value is not None]
            if idle:
                raise ValueError(f"DeviceLoader mixes nothing without a policy, so {', '.join(idle)} would do nothing")
        self.loader = loader
        self.device = torch.device(device)
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())
        if generator is not None and seed is not None:
            raise ValueError("DeviceLoader takes a generator or a seed, not both")
        if generator is not None and generator.device.type != self.device.type:
            raise ValueError(f"DeviceLoader mixes on {self.device}, but the generator is on {generator.device}")
        self.policy = policy
        self.normalize = Normalize(mean, std, dtype, memory_format)
        self.generator = torch.Generator(self.device) if seed is not None else generator
        self.seed = seed
        self.layout = Layout("DeviceLoader", image_key, label_key, keys, extent_keys, layout)  # type: ignore[arg-type]
        if policy is not None:
            self.layout.check_policy(policy)
        self.epoch = 0
        self._first = 0
        self._finds_images = policy is not None or any(
            option is not None for option in (mean, std, dtype, memory_format)
        )
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._consumer: torch.cuda.Stream | None = None

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]  # a loader without a length raises its own TypeError

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Tell whatever part of the wrapped loader wants to know, and the mixing streams, which epoch comes
        next.

        Args:
            epoch: passed to ``set_epoch`` of the loader, its sampler, batch sampler, data set and collate
                function, each where it has one.
            first_batch: number of the first batch that the loader will yield, when resumed in mid-epoch.
        """
        self.epoch, self._first = epoch, first_batch
        parts: list[Any] = [self.loader]
        for name in ("sampler", "batch_sampler", "dataset", "collate_fn"):
            parts.append(getattr(self.loader, name, None))
        parts.append(getattr(parts[2], "sampler", None))
        notified: set[int] = set()
        for part in parts:
            method = getattr(part, "set_epoch", None)
            if callable(method) and id(part) not in notified:
                notified.add(id(part))
                if isinstance(part, MixCollate):
                    method(epoch, first_batch)
                else:
                    method(epoch)

    def set_progress(self, fraction: float) -> None:
        """Tell the policy how much of training is done, in [0, 1]; here and in the workers of the loader."""
        if self.policy is not None:
            self.policy.set_progress(fraction)
        for part in (self.loader, getattr(self.loader, "collate_fn", None)):
            method = getattr(part, "set_progress", None)
            if callable(method):
                method(fraction)

    def __iter__(self) -> Iterator[Any]:
        number, self._first = self._first, 0
        if self._stream is None:
            batches = iter(self.loader)
            while True:
                batch = self._next(batches)
                if batch is _END:
                    return
                self._seed(number)
                yield self._prepare(batch)
                number += 1
        yield from self._ahead(self._stream, number)

    def _ahead(self, stream: torch.cuda.Stream, number: int) -> Iterator[Any]:
        """Batches prepared on ``stream``, each handed over when the next one has been started."""
        batches = iter(self.loader)
        ahead: list[Any] = []
        failure: Exception | None = None
        while failure is None:
            try:
                batch = self._next(batches)
                if batch is _END:
                    break
                self._consumer = torch.cuda.current_stream(self.device)
                with torch.cuda.device(self.device), torch.cuda.stream(stream):
                    self._seed(number)
                    ready = self._prepare(batch)
            except Exception as error:
                failure = error
            else:
                number += 1
                ahead.append((ready, stream.record_event()))
            if len(ahead) > 1 or (failure is not None and ahead):
                yield self._hand_over(*ahead.pop(0))
        for entry in ahead:
            yield self._hand_over(*entry)
        if failure is not None:
            raise failure

    def _next(self, batches: Iterator[Any]) -> Any:
        """The loader's next batch, or ``_END``."""
        try:
            return next(batches, _END)
        except ConnectionError as error:
            # A worker's own error has torch's heading; without workers a connection is the data set's own affair.
            if not getattr(self.loader, "num_workers", 0) or str(error).startswith("Caught "):
                raise
            # torch names a dead worker only where the signal of its death comes first, and the broken pipe later.
            raise RuntimeError(
                "DataLoader worker exited unexpectedly while it handed over a batch: killed, for want of memory say, "
                f"or ended by a crash of its own ({type(error).__name__}: {error})"
            ) from error

    def _hand_over(self, batch: Any, ready: torch.cuda.Event) -> Any:
        """Let the consumer's stream wait for the batch, and the allocator for the consumer's stream."""
        current = torch.cuda.current_stream(self.device)
        current.wait_event(ready)

        def in_use(tensor: Tensor) -> Tensor:
            # Without this the memory could be given to the next batch while this stream still reads it.
            tensor.record_stream(current)
            return tensor

        return _each_tensor(batch, in_use)

    def _seed(self, number: int) -> None:
        if self.seed is not None and self.generator is not None:
            self.generator.manual_seed(stream_key("device", self.seed, process_rank(), self.epoch, number))

    def _prepare(self, batch: Any) -> Any:
        if isinstance(batch, MixedBatch):
            return self._prepare_mixed(batch)
        batch = _each_tensor(batch, self._move)
        if not self._finds_images:
            return batch
        came = self.layout.images(batch)
        images = self._normalized(came)
        batch = self.layout.with_images(batch, images)
        if self.policy is None:
            return batch
        # Images that were made here are nobody else's; maps that are mixed with them came from the loader.
        own = not self.layout.keys and images.untyped_storage().data_ptr() != came.untyped_storage().data_ptr()
        inplace = own and may_overwrite(self.policy, images)
        return self.layout.mix(self.policy, batch, generator=self.generator, inplace=inplace)

    def _prepare_mixed(self, mixed: MixedBatch) -> MixedBatch:
        if self.policy is not None:
            raise ValueError(
                "DeviceLoader got a batch that is already a MixedBatch, and a policy to mix it again; "
                "mix in the collate function or here, not twice"
            )
        mixed = _each_tensor(mixed, self._move)
        if not self._finds_images:
            return mixed
        images = self._normalized(self.layout.images(mixed.inputs))
        return replace(mixed, inputs=self.layout.with_images(mixed.inputs, images))

    def _normalized(self, images: Tensor) -> Tensor:
        axes = self.layout.axes
        return channels_back(self.normalize(channels_first("DeviceLoader", images, axes, is_image=True)), axes)

    def _move(self, tensor: Tensor) -> Tensor:
        if tensor.device == self.device:
            if self._stream is not None:
                # The loader itself made it on the consumer's stream: wait for it, and keep it while we read
                # it.
                self._stream.wait_stream(self._consumer or torch.cuda.default_stream(self.device))
                tensor.record_stream(self._stream)
            return tensor
        if self._stream is not None and tensor.device.type == "cpu" and not tensor.is_pinned():
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def __repr__(self) -> str:
        return f"DeviceLoader({self.loader!r}, {self.device}, policy={self.policy!r}, {self.normalize!r})"


def _each_tensor(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """``change`` applied to every tensor of a batch, also of a MixedBatch."""
    return batch.map_tensors(change) if isinstance(batch, MixedBatch) else map_tensors(batch, change)
