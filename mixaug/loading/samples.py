"""Finds the images and the labels in a batch, whatever container it is."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mixaug.axes import check_layout
from mixaug.batch import MixedBatch
from mixaug.checks import check_dense, check_keys
from mixaug.ops.layout import prefers_slices
from mixaug.ops.nested import mapping_like, rebuild
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
        extent_keys: entries that say how far padded inputs reach, see :meth:`mixaug.MixedBatch.extent`.
        axes: layout of the images by letters; None for (B, C, *size).

    Raises:
        ValueError: one entry named for two purposes, a layout that is none.
        TypeError: a single text where names of entries are expected.
    """

    what: str
    image_key: Hashable | None = None
    label_key: Hashable | None = None
    keys: tuple[Hashable, ...] = ()
    extent_keys: tuple[Hashable, ...] = ()
    axes: str | None = None

    def __post_init__(self) -> None:
        check_layout(self.what, self.axes)
        keys, extents = (check_keys(self.what, name, getattr(self, name)) for name in ("keys", "extent_keys"))
        object.__setattr__(self, "keys", keys)
        object.__setattr__(self, "extent_keys", extents)
        self._check_apart(self.image_key, self.label_key)

    def check_policy(self, policy: Policy) -> None:
        """Raise where `extent_keys` cannot be told of what the policy, or one inside it, makes."""
        moving = [type(part).__name__ for part in policy.modules() if getattr(part, "relocates", False)]
        if self.extent_keys and moving:
            raise ValueError(
                f"{self.what} got extent_keys={list(self.extent_keys)}, but {moving[0]} moves what it shows, so that "
                "no length of a source says how far a mixture reaches: leave extent_keys out, the whole padded length "
                "counts"
            )

    def images(self, batch: Any) -> Tensor:
        """The images of a batch."""
        images = batch if isinstance(batch, Tensor) else self._get(batch, self._image_key(batch))
        if not isinstance(images, Tensor):
            nested = isinstance(images, (Mapping, list, tuple))
            raise TypeError(
                f"{self.what} expects a tensor of images, got {type(images).__name__}; "
                + (
                    "nested inputs are not supported: a batch is (images, labels, ...) or a mapping of tensors"
                    if nested
                    else "images of one batch need one size, and PIL images a transform to tensors"
                )
            )
        check_dense(self.what, "images", images)
        return images

    def with_images(self, batch: Any, images: Tensor) -> Any:
        """The batch with other images."""
        return images if isinstance(batch, Tensor) else self._put(batch, {self._image_key(batch): images})

    def mix(self, policy: Policy, batch: Any, **options: Any) -> MixedBatch:
        """``policy`` on this batch. Its inputs are the images alone where the batch holds nothing else; else
        the batch without its labels, entries that are not mixed passed through.
        """
        if self.axes is not None:
            options["layout"] = self.axes
        self.images(batch)
        if isinstance(batch, Tensor):
            named = {"image_key": self.image_key, "label_key": self.label_key}
            named |= {"keys": self.keys or None, "extent_keys": self.extent_keys or None}
            for name, value in named.items():
                if value is not None:
                    raise ValueError(f"{self.what} got {name}={value!r}, but the batch is a tensor without entries")
            return policy(batch, None, **options)
        image_key, label_key = self._image_key(batch), self._label_key(batch)
        self._check_apart(image_key, label_key)
        labels = None if label_key is None else self._get(batch, label_key)
        if label_key is not None and not isinstance(labels, Tensor):
            raise TypeError(
                f"{self.what} expects labels as a tensor, got {type(labels).__name__}: give each sample a number, or a "
                "tensor of numbers, as its label"
            )
        entries = list(batch) if isinstance(batch, Mapping) else list(range(len(batch)))
        rest = [key for key in entries if key != label_key]
        if len(rest) == 1 and not isinstance(batch, Mapping):
            for name, named_keys in (("keys", self.keys), ("extent_keys", self.extent_keys)):
                if named_keys:
                    raise ValueError(
                        f"{self.what}: {name}={list(named_keys)}, but the batch has images and labels only"
                    )
            return policy(batch[image_key], labels, **options)
        mixed_keys = [image_key, *self.keys]
        for key in (*mixed_keys, *self.extent_keys):
            self._get(batch, key)
        if isinstance(batch, Mapping):
            inputs = mapping_like(batch, {key: batch[key] for key in rest})
            mixed = policy(inputs, labels, keys=mixed_keys, **options)
            return mixed.with_extents(self.extent_keys) if self.extent_keys else mixed
        places = [rest.index(key) for key in mixed_keys]
        mixed = policy(tuple(batch[key] for key in rest), labels, keys=places, **options)
        return mixed.with_extents([rest.index(key) for key in self.extent_keys]) if self.extent_keys else mixed

    def with_targets(self, batch: Any, mixed: MixedBatch, targets: Tensor) -> Any:
        """The batch again, images mixed and labels replaced by ``targets``; a pair comes back as a tuple."""
        if not isinstance(batch, Mapping) and len(batch) == 2:
            images_first = self._image_key(batch) == 0
            return (mixed.inputs, targets) if images_first else (targets, mixed.inputs)
        label_key = self._label_key(batch)
        if isinstance(batch, Mapping):
            return mapping_like(batch, {key: targets if key == label_key else mixed.inputs[key] for key in batch})
        rest = iter(mixed.inputs)
        values = [targets if index == label_key else next(rest) for index in range(len(batch))]
        return rebuild(batch, values)

    def _check_apart(self, image_key: Any, label_key: Any) -> None:
        """Raise where one entry is named for two purposes."""
        named = [image_key, *([] if label_key is None else [label_key]), *self.keys, *self.extent_keys]
        twice = [key for index, key in enumerate(named) if key is not None and key in named[:index]]
        if twice:
            raise ValueError(
                f"{self.what} got {twice[0]!r} for two of image_key, label_key, keys and extent_keys: images, labels, "
                "further entries to mix and lengths are different entries"
            )

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
            return mapping_like(batch, {**batch, **values})
        return rebuild(batch, [values.get(index, value) for index, value in enumerate(batch)])


def may_overwrite(policy: Policy, images: Tensor) -> bool:
    """Whether a policy had better mix images in place that nobody else holds.

    That spares a fresh tensor where images are large and mixed one by one, on a CPU; elsewhere it would add a copy.
    """
    takes = all(part.writes_in_place for part in policy.modules() if isinstance(part, Policy))
    return takes and policy.partners is None and prefers_slices(images)


def explained_samples(what: str, samples: Sequence[Any]) -> Exception | None:
    """Why samples cannot be put together: nothing in a place, pictures that are no tensors, tensors of different sizes.

    None where it is for another reason.

    Args:
        what: name of the caller, for messages.
        samples: each a tensor, a sequence or a mapping of entries.
    """
    missing = [number for number, sample in enumerate(samples) if sample is None]
    if missing:
        return TypeError(
            f"{what} got None for sample {missing[0]} of a batch of {len(samples)}: leave such samples out of the data"
        )
    first = samples[0]
    entries: list[Any] = [None]
    if isinstance(first, (list, tuple, Mapping)):
        entries = list(first) if isinstance(first, Mapping) else list(range(len(first)))
        for number, sample in enumerate(samples):
            if isinstance(sample, (list, tuple, Mapping)) and len(sample) != len(first):
                return ValueError(
                    f"{what} expects samples with as many entries as the first, {len(first)}, got {len(sample)} in "
                    f"sample {number}"
                )
    for key in entries:
        values = [sample if key is None else sample[key] for sample in samples]
        place = "samples" if key is None else f"entry {key!r} of the samples"
        if any(value is None for value in values):
            number = next(number for number, value in enumerate(values) if value is None)
            return TypeError(
                f"{what} expects {place} as tensors or numbers, got None in sample {number} of a batch of "
                f"{len(samples)}: leave the entry out, or such samples"
            )
        if any(type(value).__module__.partition(".")[0] == "PIL" for value in values):
            return TypeError(
                f"{what} expects {place} as tensors, got PIL images: give the data set a transform to tensors, such as "
                "torchvision's v2.PILToTensor"
            )
        shapes = list(dict.fromkeys(tuple(value.shape) for value in values if hasattr(value, "shape")))
        if len(shapes) > 1:
            return ValueError(
                f"{what} expects {place} of one size, got {shapes[0]} and {shapes[1]}: give the data set a transform "
                "to one size, or pad them in collate="
            )
    return None
