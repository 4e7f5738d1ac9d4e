"""Finds the images and the labels in a batch, whatever container it is."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mixaug.batch import MixedBatch
from mixaug.ops.nested import rebuild
from mixaug.policy import Policy

__all__ = ["Layout"]


@dataclass(frozen=True)
class Layout:
    """Where images and labels are in a batch.

    A tensor is images without labels; a list or tuple has the images first and the labels second unless
    the keys say otherwise; a mapping needs the keys.

    Args:
        what: name of the caller, for messages.
        image_key: entry of the images.
        label_key: entry of the labels; for a mapping, None means that there are none.
        keys: further entries that belong to the images and are mixed like them.
    """

    what: str
    image_key: Hashable | None = None
    label_key: Hashable | None = None
    keys: tuple[Hashable, ...] = ()

    def images(self, batch: Any) -> Tensor:
        """The images of a batch."""
        images = batch if isinstance(batch, Tensor) else self._get(batch, self._image_key(batch))
        if not isinstance(images, Tensor):
            raise TypeError(
                f"{self.what} expects a tensor of images, got {type(images).__name__}; "
                "images of one batch need one size, and PIL images a transform to tensors"
            )
        return images

    def with_images(self, batch: Any, images: Tensor) -> Any:
        """The batch with other images."""
        return images if isinstance(batch, Tensor) else self._put(batch, {self._image_key(batch): images})

    def mix(self, policy: Policy, batch: Any, **options: Any) -> MixedBatch:
        """``policy`` on this batch. Its inputs are the images alone where the batch holds nothing else; else
        the batch without its labels, entries that are not mixed passed through.
        """
        self.images(batch)
        if isinstance(batch, Tensor):
            return policy(batch, None, **options)
        image_key, label_key = self._image_key(batch), self._label_key(batch)
        labels = None if label_key is None else self._get(batch, label_key)
        entries = list(batch) if isinstance(batch, Mapping) else list(range(len(batch)))
        rest = [key for key in entries if key != label_key]
        if len(rest) == 1 and not isinstance(batch, Mapping):
            if self.keys:
                raise ValueError(f"{self.what}: keys={list(self.keys)}, but the batch has images and labels only")
            return policy(batch[image_key], labels, **options)
        mixed_keys = [image_key, *self.keys]
        for key in mixed_keys:
            self._get(batch, key)
        if isinstance(batch, Mapping):
            return policy({key: batch[key] for key in rest}, labels, keys=mixed_keys, **options)
        places = [rest.index(key) for key in mixed_keys]
        return policy(tuple(batch[key] for key in rest), labels, keys=places, **options)

    def with_targets(self, batch: Any, mixed: MixedBatch, targets: Tensor) -> Any:
        """The batch again, images mixed and labels replaced by ``targets``; a pair comes back as a tuple."""
        if not isinstance(batch, Mapping) and len(batch) == 2:
            images_first = self._image_key(batch) == 0
            return (mixed.inputs, targets) if images_first else (targets, mixed.inputs)
        label_key = self._label_key(batch)
        if isinstance(batch, Mapping):
            return {key: targets if key == label_key else mixed.inputs[key] for key in batch}
        rest = iter(mixed.inputs)
        values = [targets if index == label_key else next(rest) for index in range(len(batch))]
        return rebuild(batch, values)

    def _image_key(self, batch: Any) -> Any:
        if isinstance(batch, Mapping):
            if self.image_key is None:
                raise ValueError(
                    f"{self.what} got a mapping with the entries {list(batch)}; say which are the images and the "
                    "labels, as in image_key='pixel_values', label_key='labels'"
                )
            return self.image_key
        return 0 if self.image_key is None else self.image_key

    def _label_key(self, batch: Any) -> Any:
        if isinstance(batch, Mapping) or self.label_key is not None:
            return self.label_key
        if len(batch) == 1:
            return None
        return 1 if self._image_key(batch) == 0 else 0

    def _get(self, batch: Any, key: Any) -> Any:
        if isinstance(batch, Mapping):
            if key not in batch:
                raise ValueError(f"{self.what} has no entry {key!r}: the batch has {list(batch)}")
            return batch[key]
        if not isinstance(batch, Sequence) or isinstance(batch, str):
            raise TypeError(
                f"{self.what} expects batches that are tensors, tuples, lists or mappings, got {type(batch).__name__}"
            )
        if not isinstance(key, int) or not 0 <= key < len(batch):
            raise ValueError(f"{self.what} has no entry {key!r}: the batch has {len(batch)} entries")
        return batch[key]

    def _put(self, batch: Any, values: dict[Any, Any]) -> Any:
        if isinstance(batch, Mapping):
            return {**batch, **values}
        return rebuild(batch, [values.get(index, value) for index, value in enumerate(batch)])
