"""What goes into a policy (`Batch`) and what comes out of it (`MixedBatch`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from mixaug.checks import check_class_ids
from mixaug.ops.frozen import ConvertibleFields
from mixaug.ops.nested import first_tensor, map_tensors
from mixaug.ops.precision import full_precision
from mixaug.plan import Plan
from mixaug.signals import Signals


@dataclass(frozen=True)
class Batch:
    """One batch before it is mixed: what a loader brings, a policy draws for and an objective runs.

    Attributes:
        inputs: (B, ...) tensor.
        labels: (B,) class ids, (B, K) dense targets, (B,) or (B, D) regression targets, or None.
        signals: what the model says of the inputs, for policies with ``needs``; else None.
        rows: (B,) int64 rows of the training set that the samples are, or None.
        metadata: per-sample tensors by name, (B, ...): "domain", "image_id", "object_mask", "length".
        views: other augmentations of the same samples by name, (B, ...) each.
        streams: batches from other sources by name: "outliers", "unlabelled".
    """

    inputs: Tensor
    labels: Tensor | None = None
    signals: Signals | None = None
    rows: Tensor | None = None
    metadata: Mapping[str, Tensor] = field(default_factory=dict)
    views: Mapping[str, Tensor] = field(default_factory=dict)
    streams: Mapping[str, Batch] = field(default_factory=dict)

    @property
    def images(self) -> Tensor:
        """:attr:`inputs`, as policies for images call them."""
        return self.inputs

    def __len__(self) -> int:
        return self.inputs.shape[0]

    def ask(self, what: str) -> Signals:
        """The signals, for a policy of the name ``what`` that cannot do without.

        Raises:
            ValueError: there are none.
        """
        if self.signals is None:
            raise ValueError(f"{what} needs signals: pass signals=model, or mixaug.Signals, with the images")
        return self.signals

    @property
    def size(self) -> tuple[int, ...]:
        """Spatial size of (B, C, *size) images; empty for (B, D) vectors."""
        return tuple(self.images.shape[2:])

    @property
    def device(self) -> torch.device:
        return self.images.device


@dataclass(frozen=True)
class MixedBatch(ConvertibleFields):
    """Mixed samples, described as weighted lists of sources. Nothing more is needed for any method.

    Attributes:
        inputs: (B, ...) mixed inputs, dtype and memory format of what came in; a dict or tuple when
            the policy was given one.
        labels: (B,) class ids, (B, K) dense targets, (B,) or (B, D) regression targets, as they came,
            unmixed; or None.
        sources: (B, M) int64 rows of ``labels`` that went into each sample, the sample itself first. Partners
            from outside the batch (:class:`mixaug.Pooled`) follow the batch's own rows in ``labels``.
        weights: (B, M) float32 share of each source's label; rows need not sum to 1 (SnapMix).
        plan: the draw behind it, which :meth:`apply` replays.
        uniform: (B,) floating share of the label that is spread evenly over the classes, for outliers without a label;
            None stands for none.
        importance: (B,) floating factor of each sample's loss, such as a confidence; None stands for 1.
        metadata: tensors by name whose rows are those of ``labels``.
    """

    inputs: Any
    labels: Tensor | None
    sources: Tensor
    weights: Tensor
    plan: Plan | None = None
    uniform: Tensor | None = None
    importance: Tensor | None = None
    metadata: Mapping[str, Tensor] = field(default_factory=dict)

    #: Labels and their shares are never rounded.
    convertible: ClassVar[tuple[str, ...]] = ("inputs",)

    def __len__(self) -> int:
        return self.sources.shape[0]

    @property
    def lam(self) -> Tensor:
        """(B,) float32 weight of the sample's own label."""
        return self.weights[:, 0]

    @property
    def partner(self) -> Tensor:
        """(B,) int64 row that was mixed in.

        Raises:
            ValueError: for a method that mixes more than two samples.
        """
        if self.sources.shape[1] != 2:
            raise ValueError(
                f"partner is defined for pairs; these samples have {self.sources.shape[1]} sources each, "
                "see MixedBatch.sources"
            )
        return self.sources[:, 1]

    @property
    def mask(self) -> Tensor | None:
        """(B, 1, *size) float32 share of the own image per pixel, None where the method has no mask."""
        mask = None if self.plan is None else self.plan.own_mask()
        if mask is None:
            return None
        return mask.float().expand(len(self), *mask.shape[1:]).unsqueeze(1)

    def apply(self, tensor: Tensor, num_classes: int | None = None) -> Tensor:
        """Replay the same mixing on another tensor that belongs to the images.

        Methods that cut copy values, so label maps of any integer type stay label maps; methods that
        blend give per-pixel class shares instead, for which ``num_classes`` is needed.

        Args:
            tensor: (B, ..., *size): a second view, further channels, or a segmentation map (B, *size).
            num_classes: K, to read ``tensor`` as a map (B, *size) of class ids and get class shares.
                Ids outside [0, K), such as 255 for "ignore", get no share.

        Returns:
            Mixed tensor like ``tensor``; with ``num_classes`` (B, K, *size) float32.

        Raises:
            ValueError: another batch size or spatial size, or a batch without a plan.
            TypeError: an integer map that would have to be blended, or a float map with ``num_classes``.
        """
        if self.plan is None:
            raise ValueError("this MixedBatch carries no plan to replay; make it with a policy")
        _check_replay(tensor, self.plan.rows, self.plan.size)
        if num_classes is not None and tensor.is_floating_point():
            raise TypeError(f"num_classes expects a map of integer class ids, got {tensor.dtype}")
        with full_precision(tensor.device):
            if num_classes is None:
                return self.plan.mix(tensor)
            return self.plan.mix_label_map(tensor, num_classes)

    def targets(self, num_classes: int | None = None, label_smoothing: float = 0.0) -> Tensor:
        """Dense targets, label smoothing applied to every source before mixing.

        Args:
            num_classes: K; required for class ids, checked against (B, K) labels.
            label_smoothing: share spread evenly over all classes, in [0, 1], as in
                ``torch.nn.CrossEntropyLoss``.

        Returns:
            (B, K) targets: float32 for class ids, else the labels' dtype. For regression labels the
            weighted mean, of the labels' shape.

        Raises:
            ValueError: no labels, class ids without ``num_classes`` or out of range, a wrong K,
                smoothing outside [0, 1].
        """
        labels = self.labels
        if labels is None:
            raise ValueError("this batch has no labels: pass them to the policy together with the images")
        if not 0.0 <= label_smoothing <= 1.0:
            raise ValueError(f"label_smoothing expects a share in [0, 1], got {label_smoothing!r}")
        if labels.is_floating_point():
            if num_classes is not None and (labels.ndim != 2 or labels.shape[1] != num_classes):
                raise ValueError(f"num_classes={num_classes} does not fit labels of shape {tuple(labels.shape)}")
            if label_smoothing and labels.ndim != 2:
                raise ValueError(f"label_smoothing needs class targets, got labels {tuple(labels.shape)}")
            weights = self.weights.to(labels.dtype)
            picked = labels[self.sources.flatten()].reshape(*self.sources.shape, *labels.shape[1:])
            mixed = (picked * weights.reshape(*weights.shape, *([1] * (labels.ndim - 1)))).sum(1)
        else:
            if num_classes is None:
                raise ValueError("targets() needs num_classes to make dense targets of class ids")
            check_class_ids("targets", labels, num_classes)
            weights = self.weights
            mixed = weights.new_zeros(len(self), num_classes)
            mixed.scatter_add_(1, labels.long()[self.sources], weights)
        if label_smoothing:
            off = weights.sum(1, keepdim=True) * (label_smoothing / mixed.shape[1])
            mixed = mixed * (1 - label_smoothing) + off
        if self.uniform is not None:
            if labels.is_floating_point() and labels.ndim != 2:
                raise ValueError(f"an even share needs class targets, got labels {tuple(labels.shape)}")
            mixed = mixed + self.uniform.to(mixed.dtype)[:, None] / mixed.shape[1]
        return mixed

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> MixedBatch:
        """The same batch on another device."""
        return self._moved(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> MixedBatch:
        """The same batch in page-locked memory; ``torch.utils.data.DataLoader`` calls this."""
        return self._moved(lambda tensor: tensor.pin_memory())

    def _moved(self, move: Callable[[Tensor], Tensor]) -> MixedBatch:
        return MixedBatch(
            inputs=map_tensors(self.inputs, move),
            labels=None if self.labels is None else move(self.labels),
            sources=move(self.sources),
            weights=move(self.weights),
            plan=None if self.plan is None else self.plan.map_tensors(move),
            uniform=None if self.uniform is None else move(self.uniform),
            importance=None if self.importance is None else move(self.importance),
            metadata={name: move(value) for name, value in self.metadata.items()},
        )


def _check_replay(tensor: Tensor, batch_size: int, size: tuple[int, ...]) -> None:
    if tensor.ndim == 0 or tensor.shape[0] != batch_size:
        raise ValueError(f"apply expects {batch_size} rows like the images, got shape {tuple(tensor.shape)}")
    if size and tuple(tensor.shape[-len(size) :]) != size:
        raise ValueError(
            f"apply expects a tensor that ends in the images' spatial size {size}, got {tuple(tensor.shape)}; "
            "resize it first"
        )


def unmixed(inputs: Any, labels: Tensor | None) -> MixedBatch:
    """A batch that nothing was mixed into: what a loss on mixed batches takes for plain ones.

    Args:
        inputs: (B, ...), or a dict, list or tuple of such tensors.
        labels: (B,) or (B, K), or None.
    """
    first = first_tensor(inputs)
    rows = torch.arange(len(first), device=first.device)[:, None]
    return MixedBatch(inputs=inputs, labels=labels, sources=rows, weights=torch.ones_like(rows, dtype=torch.float32))
