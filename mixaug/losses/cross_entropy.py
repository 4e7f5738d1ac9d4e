"""Cross-entropy of mixed samples, in index form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from mixaug.batch import MixedBatch
from mixaug.checks import check_whole
from mixaug.losses.checks import (
    can_read,
    check_inputs,
    check_options,
    check_per_sample,
    class_factors,
    compute_dtype,
    labels_of,
    leaves_as_is,
    mix_rows,
    outputs_of,
    reduced,
)
from mixaug.options import Offering

NO_LABEL = -(2**62)


def mixed_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    sources: Tensor,
    weights: Tensor,
    *,
    label_smoothing: float = 0.0,
    class_weight: Tensor | None = None,
    ignore_index: int | None = -100,
    reduction: str = "mean",
    uniform: Tensor | None = None,
    importance: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of mixed samples, ``-sum_m w[b, m] * sum_c t[m, c] * class_weight[c] * log p[b, c]``.

    ``t[m]`` is the target of source m, smoothed before mixing: ``(1 - eps) * onehot + eps / K`` for a class
    id, ``(1 - eps) * row + eps / K`` for a dense row, as ``torch.nn.CrossEntropyLoss(label_smoothing=eps)``
    does. Value and gradient equal ``F.cross_entropy(logits, dense_targets, weight=class_weight)`` on the
    mixed dense targets, and for one source of weight 1 equal the class-id form of torch (for which torch
    divides by the summed class weights under ``reduction="mean"``; see below).

    Args:
        logits: (B, K) floating; float16 and bfloat16 are computed in float32.
        labels: class ids (B,) of any integer dtype, or dense targets (B, K) floating (one-hot, soft or
            multi-hot).
        sources: (B, M) int64 rows of the batch that went into each sample.
        weights: (B, M) floating share of each source's label; rows need not sum to one. Differentiable.
        label_smoothing: eps in [0, 1].
        class_weight: (K,) floating factor of each class, or None.
        ignore_index: class id whose sources drop out together with their weight, so they add neither loss nor
            gradient. Refused beside dense labels where it is a class, as in torch. None promises that there is no such
            label, which saves a device a dozen small launches.
        reduction: "none" gives (B,); "sum" the sum; "mean" the sum divided by the number of samples, where a
            sample with ignored sources counts only by the share of its weight that is left. Class weights do
            not enter the divisor, as in torch's form for dense targets. If nothing is left the mean is nan,
            as in torch.
        uniform: (B,) floating share of each sample's target that is spread evenly over the classes, or None.
        importance: (B,) floating factor of each sample's loss, or None. The mean is still over all samples.

    Returns:
        float32 (float64 for float64 logits); (B,) for "none", else a scalar.

    Raises:
        TypeError: integer labels (B, K), floating labels (B,), or a wrong dtype elsewhere.
        ValueError: mismatched shapes, K = 1, an option out of its range, and, on the CPU outside ``torch.compile``,
            class ids outside [0, K) that are not ``ignore_index`` or sources outside [0, B).

    Example:
        >>> import torch
        >>> logits, labels = torch.randn(4, 10), torch.tensor([1, 5, 2, 2])
        >>> sources = torch.tensor([[0, 3], [1, 2], [2, 1], [3, 0]])
        >>> weights = torch.tensor([[0.7, 0.3], [0.6, 0.4], [1.0, 0.0], [0.5, 0.5]])
        >>> mixed_cross_entropy(logits, labels, sources, weights).shape
        torch.Size([])
    """
    check_options("mixed_cross_entropy", label_smoothing, reduction)
    _refuse_one_output("mixed_cross_entropy", logits)
    may_ignore = check_inputs("mixed_cross_entropy", logits, labels, sources, weights, ignore_index)
    check_per_sample("mixed_cross_entropy", "uniform", uniform, len(logits))
    check_per_sample("mixed_cross_entropy", "importance", importance, len(logits))
    if labels.ndim == 2 and ignore_index is not None and ignore_index >= 0:
        raise ValueError(
            f"mixed_cross_entropy got ignore_index={ignore_index} and dense labels {tuple(labels.shape)}, which "
            "have no class to ignore: give such rows no weight, or pass class ids"
        )
    classes = logits.shape[1]
    dtype = compute_dtype(logits)
    if class_weight is not None:
        if class_weight.shape != (classes,) or not class_weight.is_floating_point():
            raise ValueError(
                f"mixed_cross_entropy expected floating class_weight of shape ({classes},), one per class; "
                f"got {tuple(class_weight.shape)} {class_weight.dtype}"
            )
        class_weight = class_weight.to(dtype)
    log_probabilities = F.log_softmax(logits, dim=1, dtype=dtype)
    weights = weights.to(dtype)
    count: Tensor | int = len(logits)

    ignored: Tensor | None = None
    if labels.ndim == 2:
        targets = mix_rows(labels.to(dtype), sources, weights)
        if class_weight is not None:
            targets = targets * class_weight
        own = -(targets * log_probabilities).sum(1)
    else:
        ids = labels.long()[sources]
        if may_ignore and ignore_index is not None:
            ignored = ids == ignore_index
            ids = ids.masked_fill(ignored, 0)
        picked = log_probabilities.gather(1, ids)
        if ignored is not None:
            # These sources have read class 0 in place of their own; where that one is -inf, 0 * -inf would
            # be nan.
            picked = picked.masked_fill(ignored, 0)
            count = _share_left(weights, ignored)
            weights = weights.masked_fill(ignored, 0)
        if class_weight is not None:
            picked = picked * class_weight[ids]
        own = -(weights * picked).sum(1)

    if label_smoothing > 0 or uniform is not None:
        # This is no matrix product, which autocast would run in half precision.
        even = (log_probabilities if class_weight is None else log_probabilities * class_weight).sum(1) / -classes
        if label_smoothing > 0:
            smooth = even if ignored is None else even.masked_fill(ignored.all(1), 0)
            own = (1 - label_smoothing) * own + label_smoothing * weights.sum(1) * smooth
        if uniform is not None:
            own = own + uniform.to(dtype) * even
    return reduced(own, importance, reduction, count)


class MixedCrossEntropy(Offering, nn.Module):
    """Module form of :func:`mixed_cross_entropy`; ``forward(logits, mixed)`` takes a MixedBatch.

    Args:
        label_smoothing: eps in [0, 1].
        class_weight: (K,) factors, not negative, kept as a buffer.
        ignore_index: class id whose sources drop out with their weight; None where no label is such.
        reduction: "none", "mean" or "sum".

    Raises:
        ValueError: an option out of its range.
    """

    #: What the labels are: "classification" or "regression".
    task: ClassVar[str] = "classification"

    class_weight: Tensor | None

    def __init__(
        self,
        label_smoothing: float = 0.0,
        class_weight: Tensor | Sequence[float] | None = None,
        ignore_index: int | None = -100,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        name = "MixedCrossEntropy"
        check_options(name, label_smoothing, reduction)
        self.label_smoothing = label_smoothing
        factors = class_factors(
            name, "class_weight", class_weight, "numbers from 0 on, one for each class and not all 0", zero=True
        )
        self.register_buffer("class_weight", factors)
        self.ignore_index = (
            None if ignore_index is None else check_whole(name, "ignore_index", ignore_index, least=-(2**63))
        )
        self.reduction = reduction

    def forward(self, logits: Any, mixed: MixedBatch) -> Tensor:
        """Loss of ``logits`` (B, K), or of outputs with ``logits`` of that shape, against the labels of ``mixed``."""
        logits = outputs_of("MixedCrossEntropy", logits)
        labels = labels_of("MixedCrossEntropy", mixed)
        plain = self.label_smoothing == 0 and self.class_weight is None and mixed.uniform is None
        if plain and mixed.importance is None and labels.ndim == 1 and leaves_as_is(mixed):
            return _of_ids(logits, mixed, labels, self.ignore_index, self.reduction)
        return mixed_cross_entropy(
            logits,
            labels,
            mixed.sources,
            mixed.weights,
            label_smoothing=self.label_smoothing,
            class_weight=self.class_weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            uniform=mixed.uniform,
            importance=mixed.importance,
        )

    def counted(self) -> dict[str, Any]:
        """Options of :func:`mixed_accuracy` that make it count the labels that this loss counts."""
        return {"ignore_index": self.ignore_index}

    def extra_repr(self) -> str:
        return f"label_smoothing={self.label_smoothing}, reduction={self.reduction!r}"


def _refuse_one_output(what: str, logits: Tensor) -> None:
    if logits.ndim == 2 and logits.shape[1] == 1:
        raise ValueError(
            f"{what} got logits of one output, whose probability is always 1: use MixedBinaryCrossEntropy "
            "with labels (B, 1) of 0 and 1, or a model of two outputs"
        )


def _of_ids(logits: Tensor, mixed: MixedBatch, labels: Tensor, ignore_index: int | None, reduction: str) -> Tensor:
    """:func:`mixed_cross_entropy` of samples that nothing was mixed into: on a device two launches, by torch's loss."""
    _refuse_one_output("MixedCrossEntropy", logits)
    may_ignore = check_inputs("MixedCrossEntropy", logits, labels, mixed.sources, mixed.weights, ignore_index)
    own = labels[: len(logits)].long()
    log_probabilities = F.log_softmax(logits, dim=1, dtype=compute_dtype(logits))
    # torch's loss knows no "none": a number that is no label stands for it.
    ignored = NO_LABEL if ignore_index is None else ignore_index
    if not can_read(labels):
        return F.nll_loss(log_probabilities, own, ignore_index=ignored, reduction=reduction)
    # In the order of sums of mixed samples, so that both give the same bits.
    losses = F.nll_loss(log_probabilities, own, ignore_index=ignored, reduction="none")
    return reduced(losses, None, reduction, (own != ignored).sum() if may_ignore else len(logits))


def _share_left(weights: Tensor, ignored: Tensor) -> Tensor:
    """Number of samples, each counted by the share of its weight that is not ignored."""
    total = weights.sum(1)
    lost = (weights * ignored).sum(1) / total.masked_fill(total == 0, 1)
    return len(weights) - lost.sum()
