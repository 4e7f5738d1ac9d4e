"""What goes into a policy (`Batch`) and what comes out of it (`MixedBatch`)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from mixaug.axes import SIGNED, channels_first
from mixaug.checks import (
    check_class_ids,
    check_dense,
    check_label_kind,
    check_probability,
    check_rows_named,
    check_whole,
)
from mixaug.frozen import ConvertibleFields, NoTensor
from mixaug.ops.nested import concatenated, entries, first_tensor, map_tensors, replaced
from mixaug.ops.precision import full_precision
from mixaug.plan import Plan
from mixaug.signals import Signals


@dataclass(frozen=True)
class Batch(NoTensor, ConvertibleFields):
    """One batch before it is mixed: what a loader brings, a policy draws for and an objective runs.

    Attributes:
        inputs: (B, ...) tensor.
        labels: (B,) class ids, (B, K) dense targets, (B,) or (B, D) regression targets, or None.
        signals: what the model says of the inputs, for policies with ``needs``; else None.
        rows: (B,) int64 rows of the training set that the samples are, or None.
        metadata: per-sample tensors by name, (B, ...): "domain", "image_id", "object_mask", "length".
        views: other augmentations of the same samples by name, (B, ...) each.
        streams: batches from other sources by name: "outliers", "unlabelled".

    Raises:
        TypeError: metadata that are no tensors.
        ValueError: metadata without a row for each sample; inputs that are a MixedBatch.
    """

    inputs: Tensor
    labels: Tensor | None = None
    signals: Signals | None = None
    rows: Tensor | None = None
    metadata: Mapping[str, Tensor] = field(default_factory=dict)
    views: Mapping[str, Tensor] = field(default_factory=dict)
    streams: Mapping[str, Batch] = field(default_factory=dict)

    #: Labels and metadata are never rounded.
    convertible: ClassVar[tuple[str, ...]] = ("inputs", "views", "streams")

    def __post_init__(self) -> None:
        if isinstance(self.inputs, MixedBatch):
            raise ValueError(
                "got a MixedBatch to mix, which is mixed already: mix here or where it was made, not twice"
            )
        for name, values in self.metadata.items():
            if not isinstance(values, Tensor):
                raise TypeError(f"Batch expects metadata[{name!r}] as a tensor, got {type(values).__name__}")
            rows = len(first_tensor(self.inputs))
            if values.ndim == 0 or values.shape[0] != rows:
                raise ValueError(
                    f"Batch expects metadata[{name!r}] with a row for each of its {rows} samples, got shape "
                    f"{tuple(values.shape)}"
                )

    @property
    def images(self) -> Tensor:
        """:attr:`inputs`, as policies for images call them."""
        return self.inputs

    def __len__(self) -> int:
        return self.inputs.shape[0]

    def map_tensors(self, move: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with ``move`` applied to every tensor in it, such as one that copies to a device.

        Raises:
            ValueError: there are signals, which are asked of the batch that the model sees.
        """
        if self.signals is not None:
            raise ValueError(
                "a Batch with signals stays as it is: move or pin it first, then ask the model for signals"
            )
        return replace(
            self,
            inputs=map_tensors(self.inputs, move),
            labels=map_tensors(self.labels, move),
            rows=map_tensors(self.rows, move),
            metadata=map_tensors(dict(self.metadata), move),
            views=map_tensors(dict(self.views), move),
            streams={name: stream.map_tensors(move) for name, stream in self.streams.items()},
        )

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
class MixedBatch(NoTensor, ConvertibleFields):
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

    Raises:
        ValueError: tensors whose shapes do not fit together.
        TypeError: sources or weights that are no tensors of these dtypes.
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

    def __post_init__(self) -> None:
        # Shapes alone, for values would have to be waited for on a GPU; `targets` and the losses look at sources there.
        sources, weights = self.sources, self.weights
        if not isinstance(sources, Tensor) or sources.dtype != torch.int64 or sources.ndim != 2:
            raise _unfit("sources", "an int64 tensor (B, M)", sources)
        if not isinstance(weights, Tensor) or not weights.is_floating_point() or weights.shape != sources.shape:
            raise _unfit("weights", f"a floating tensor like sources, {tuple(sources.shape)}", weights)
        count = sources.shape[0]
        # Where features are mixed inside the model, the inputs of partners from elsewhere go along behind the samples'.
        if isinstance(self.inputs, Tensor) and not self.inputs.is_nested and _rows(self.inputs) < count:
            raise _unfit("inputs", f"{count} rows, one for each of sources", self.inputs)
        for name in ("uniform", "importance"):
            values = getattr(self, name)
            if values is not None and (not isinstance(values, Tensor) or tuple(values.shape) != (count,)):
                raise _unfit(name, f"a tensor ({count},)", values)
        labels = self.labels
        if labels is None or (isinstance(labels, Tensor) and labels.is_nested):
            # Who reads labels refuses nested ones.
            return
        if not isinstance(labels, Tensor) or labels.ndim == 0 or (labels.shape[0] == 0 and count):
            raise _unfit("labels", "a tensor with a row for each sample that sources name", labels)
        # Without a plan samples may be there several times. With one, the rows of the batch come first.
        if self.plan is not None and labels.shape[0] < count:
            raise _unfit("labels", f"at least {count} rows, one for each sample", labels)

    @classmethod
    def _instead(cls) -> str:
        return (
            "mixed.inputs goes into the model; mixed labels go into a loss of mixaug.losses, such as "
            "MixedCrossEntropy()(outputs, mixed), or into others as mixed.targets(num_classes), a tensor (B, K)"
        )

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
        blend give per-pixel class shares instead, for which ``num_classes`` is needed. uint8 values are blended where
        they have the images' own shape and dtype, as a second view has; in every other shape they are a label map.

        Args:
            tensor: (B, ..., *size): a second view, further channels, or a segmentation map (B, *size). Channels lie
                where those of the images lay (``layout``).
            num_classes: K, to read ``tensor`` as a map (B, *size) of class ids and get class shares.
                Ids outside [0, K), such as 255 for "ignore", get no share.

        Returns:
            Mixed tensor like ``tensor``; with ``num_classes`` (B, K, *size) float32.

        Raises:
            ValueError: another batch size or spatial size, or a batch without a plan.
            TypeError: an integer map that would have to be blended, a float map with ``num_classes``, a nested, sparse
                or quantized tensor.
        """
        check_dense("apply", "tensor", tensor)
        if self.plan is None:
            raise ValueError("this MixedBatch carries no plan to replay; make it with a policy")
        if num_classes is not None and (tensor.is_floating_point() or tensor.dtype == torch.bool):
            raise TypeError(f"num_classes expects a map of integer class ids, got {tensor.dtype}")
        form = self.plan.form
        layout = None if form is None or num_classes is not None or tensor.ndim < 2 else form.layout
        _check_replay(channels_first("apply", tensor, layout), self.plan.rows, self.plan.size)
        with full_precision(tensor.device):
            if num_classes is None:
                return self.plan.replay("apply", tensor)
            return self.plan.mix_label_map(tensor, check_whole("apply", "num_classes", num_classes))

    def extent(self, tensor: Tensor) -> Tensor:
        """How far mixed recordings of different length reach: the largest value among the sources of each sample.

        A padded recording that is blended with a longer one is as long as that one. So is one whose middle is cut out
        of another's, at most. Labels do not matter here: a source whose label has no share is still to be seen.

        Args:
            tensor: (N, ...) lengths, or masks of valid positions, bool or 0 and 1, of which the union is taken; the
                rows are those of :attr:`labels`.

        Returns:
            (B, ...), dtype of ``tensor``.

        Raises:
            ValueError: fewer rows than the sources name; a policy that moved what it shows, as ResizeMix does.
            TypeError: no dense tensor.

        Example:
            >>> import mixaug
            >>> recordings, lengths = torch.zeros(3, 1, 100), torch.tensor([40, 100, 70])
            >>> mixed = mixaug.create("mixup")(recordings, torch.arange(3), generator=torch.Generator().manual_seed(0))
            >>> mixed.partner, mixed.extent(lengths)
            (tensor([2, 1, 0]), tensor([ 70, 100,  70]))
        """
        check_dense("extent", "tensor", tensor)
        if self.plan is not None and self.plan.relocates:
            raise ValueError(
                f"extent expects content that stays where its sample has it, got a {type(self.plan).__name__}, which "
                "moves it: how far it reaches is no length of a source; the whole padded length counts"
            )
        if self.labels is not None:
            rows = len(self.labels)
        else:
            rows = len(self) if self.plan is None else self.plan.rows
        if tensor.ndim == 0 or tensor.shape[0] < rows:
            raise ValueError(
                f"extent expects a tensor of {rows} rows, those of the labels and of partners from outside the batch "
                f"behind them, got shape {tuple(tensor.shape)}"
            )
        # No kernel reduces unsigned integers of more than eight bits.
        wide = tensor.long() if tensor.dtype in SIGNED else tensor
        return wide[self.sources].amax(1).to(tensor.dtype)

    def with_extents(self, keys: Sequence[Hashable]) -> MixedBatch:
        """The batch with :meth:`extent` in place of some entries of its inputs, a dict, list or tuple.

        Args:
            keys: the entries that say how far the inputs reach, such as ``["length"]`` or ``["attention_mask"]``.

        Raises:
            ValueError: an entry that is not there.
            TypeError: inputs without entries, or an entry that is no tensor.
        """
        found = entries("with_extents", self.inputs, list(keys))
        return replace(self, inputs=replaced(self.inputs, {key: self.extent(value) for key, value in found.items()}))

    def targets(self, num_classes: int | None = None, label_smoothing: float = 0.0) -> Tensor:
        """Dense targets, label smoothing applied to every source before mixing.

        Args:
            num_classes: K; required for class ids, checked against (B, K) labels.
            label_smoothing: share spread evenly over all classes, in [0, 1], as in
                ``torch.nn.CrossEntropyLoss``.

        Returns:
            (B, K) targets, float32; float64 for float64 labels. For regression labels the weighted mean, of the
            labels' shape.

        Raises:
            ValueError: no labels, class ids without ``num_classes`` or out of range, a wrong K,
                smoothing outside [0, 1].
            TypeError: integer rows (N, K), bool labels, floats (N,) with ``num_classes``, labels in a nested or sparse
                tensor.
        """
        labels = self.labels
        if labels is None:
            raise ValueError("this batch has no labels: pass them to the policy together with the images")
        check_label_kind("targets", labels)
        if num_classes is not None:
            check_whole("targets", "num_classes", num_classes)
        label_smoothing = check_probability("targets", "label_smoothing", label_smoothing)
        check_rows_named("targets", self.sources, len(labels))
        if labels.is_floating_point():
            if num_classes is not None and labels.ndim == 1:
                raise TypeError(
                    f"num_classes={num_classes} is for class ids, which are integers, and float labels of shape "
                    f"{tuple(labels.shape)} are numbers, got {labels.dtype}: give class ids as labels.long()"
                )
            if num_classes is not None and (labels.ndim != 2 or labels.shape[1] != num_classes):
                raise ValueError(f"num_classes={num_classes} does not fit labels of shape {tuple(labels.shape)}")
            if label_smoothing and labels.ndim != 2:
                raise ValueError(f"label_smoothing needs class targets, got labels {tuple(labels.shape)}")
            # Sums of half-precision shares would not be one.
            labels = labels.to(torch.promote_types(labels.dtype, torch.float32))
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
            # One column is a yes or no, of which the even share is a half.
            off = weights.sum(1, keepdim=True) * (label_smoothing / max(mixed.shape[1], 2))
            mixed = mixed * (1 - label_smoothing) + off
        if self.uniform is not None:
            if labels.is_floating_point() and labels.ndim != 2:
                raise ValueError(f"an even share needs class targets, got labels {tuple(labels.shape)}")
            mixed = mixed + self.uniform.to(mixed.dtype)[:, None] / max(mixed.shape[1], 2)
        return mixed

    def rows_of(self, index: Tensor) -> MixedBatch:
        """Some of the mixed samples, in the order of ``index`` (n,) int64; without a plan, for nothing is replayed.

        A sample may be there several times, so there may be more of them than rows of labels.
        """
        return MixedBatch(
            inputs=map_tensors(self.inputs, lambda tensor: tensor.index_select(0, index)),
            labels=self.labels,
            sources=self.sources.index_select(0, index),
            weights=self.weights.index_select(0, index),
            uniform=None if self.uniform is None else self.uniform.index_select(0, index),
            importance=None if self.importance is None else self.importance.index_select(0, index),
            metadata=self.metadata,
        )

    def map_tensors(self, move: Callable[[Tensor], Tensor]) -> MixedBatch:
        """The same batch with ``move`` applied to every tensor in it, such as one that copies to a device."""
        return replace(
            self,
            inputs=map_tensors(self.inputs, move),
            labels=None if self.labels is None else move(self.labels),
            sources=move(self.sources),
            weights=move(self.weights),
            plan=None if self.plan is None else self.plan.map_tensors(move),
            uniform=None if self.uniform is None else move(self.uniform),
            importance=None if self.importance is None else move(self.importance),
            metadata={name: move(value) for name, value in self.metadata.items()},
        )


def _rows(tensor: Tensor) -> int:
    return tensor.shape[0] if tensor.ndim else -1


def _unfit(name: str, expected: str, got: Any) -> Exception:
    """What to raise for a part of a batch that does not fit the others."""
    if not isinstance(got, Tensor):
        return TypeError(f"MixedBatch expects {name} as {expected}, got {type(got).__name__}")
    return ValueError(f"MixedBatch expects {name} as {expected}, got {tuple(got.shape)} {got.dtype}")


def _check_replay(tensor: Tensor, batch_size: int, size: tuple[int, ...]) -> None:
    if tensor.ndim == 0 or tensor.shape[0] != batch_size:
        raise ValueError(f"apply expects {batch_size} rows like the images, got shape {tuple(tensor.shape)}")
    if size and tuple(tensor.shape[-len(size) :]) != size:
        raise ValueError(
            f"apply expects a tensor that ends in the images' spatial size {size}, got {tuple(tensor.shape)}; "
            "resize it first"
        )


def concatenated_batches(batches: Sequence[MixedBatch]) -> MixedBatch:
    """Mixed batches one behind the other; without a plan, for nothing is replayed.

    Args:
        batches: at least one, of like inputs and labels; labels that they share are not repeated.
    """
    first, *others = batches
    if not others:
        return first
    shared = all(other.labels is first.labels for other in others)
    starts = [0]
    for batch in batches[:-1]:
        starts.append(starts[-1] + (0 if shared or batch.labels is None else len(batch.labels)))
    columns = max(batch.sources.shape[1] for batch in batches)
    sources, weights = [], []
    for batch, start in zip(batches, starts, strict=True):
        missing = columns - batch.sources.shape[1]
        own = batch.sources[:, :1].expand(-1, missing)
        # A source that is not there is the sample itself, with weight 0.
        sources.append(torch.cat([batch.sources, own], 1) + start)
        weights.append(torch.cat([batch.weights, batch.weights.new_zeros(len(batch), missing)], 1))
    given = [batch.labels for batch in batches if batch.labels is not None]
    return MixedBatch(
        inputs=concatenated([batch.inputs for batch in batches]),
        labels=first.labels if shared else torch.cat(given),
        sources=torch.cat(sources),
        weights=torch.cat(weights),
        uniform=_filled(batches, "uniform", 0.0),
        importance=_filled(batches, "importance", 1.0),
        metadata=first.metadata if shared else {},
    )


def _filled(batches: Sequence[MixedBatch], name: str, missing: float) -> Tensor | None:
    values = [getattr(batch, name) for batch in batches]
    if all(value is None for value in values):
        return None
    return torch.cat(
        [
            batch.weights.new_full((len(batch),), missing) if value is None else value
            for batch, value in zip(batches, values, strict=True)
        ]
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
