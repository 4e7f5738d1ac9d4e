"""Losses and accuracy for mixed samples, in index form.

A mixed sample is a weighted list of sources, so the loss of its label needs only the log-probabilities of the
sources' classes: ``loss_b = sum_m w[b, m] * l(logits[b], labels[sources[b, m]])``. Class ids therefore never
become a (B, K) target; one ``log_softmax`` and a (B, M) gather are all there is. docs/losses.md derives how
this agrees with ``torch.nn.CrossEntropyLoss`` and with ``timm.loss.BinaryCrossEntropy``, the choice of
normaliser included.

Sources: mixup, arXiv:1710.09412; label smoothing, arXiv:1512.00567; BCE for mixed labels with a threshold,
"ResNet strikes back", arXiv:2110.00476; weights that need not sum to one, SnapMix, arXiv:2012.04846.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from .batch import MixedBatch

__all__ = [
    "MixedAbsoluteError",
    "MixedBinaryCrossEntropy",
    "MixedCrossEntropy",
    "MixedHuber",
    "MixedLoss",
    "MixedRegressionLoss",
    "MixedSquaredError",
    "mixed_accuracy",
    "mixed_binary_cross_entropy",
    "mixed_cross_entropy",
    "mixed_loss",
    "mixed_regression_loss",
]

_REDUCTIONS = ("none", "mean", "sum")

#: What a regression loss compares the prediction with.
Against = Literal["target", "sources"]


def mixed_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    sources: Tensor,
    weights: Tensor,
    *,
    label_smoothing: float = 0.0,
    class_weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
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
            gradient. Has no meaning for dense labels, as in torch.
        reduction: "none" gives (B,); "sum" the sum; "mean" the sum divided by the number of samples, where a
            sample with ignored sources counts only by the share of its weight that is left. Class weights do
            not enter the divisor, as in torch's form for dense targets. If nothing is left the mean is nan,
            as in torch.

    Returns:
        float32 (float64 for float64 logits); (B,) for "none", else a scalar.

    Raises:
        TypeError: integer labels (B, K), floating labels (B,), or a wrong dtype elsewhere.
        ValueError: mismatched shapes, an option out of its range, and, on the CPU outside ``torch.compile``,
            class ids outside [0, K) that are not ``ignore_index`` or sources outside [0, B).

    Example:
        >>> logits, labels = torch.randn(4, 10), torch.tensor([1, 5, 2, 2])
        >>> sources = torch.tensor([[0, 3], [1, 2], [2, 1], [3, 0]])
        >>> weights = torch.tensor([[0.7, 0.3], [0.6, 0.4], [1.0, 0.0], [0.5, 0.5]])
        >>> mixed_cross_entropy(logits, labels, sources, weights).shape
        torch.Size([])
    """
    _check_options("mixed_cross_entropy", label_smoothing, reduction)
    may_ignore = _check_inputs("mixed_cross_entropy", logits, labels, sources, weights, ignore_index)
    classes = logits.shape[1]
    dtype = _compute_dtype(logits)
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
        targets = _mix_rows(labels.to(dtype), sources, weights)
        if class_weight is not None:
            targets = targets * class_weight
        own = -(targets * log_probabilities).sum(1)
    else:
        ids = labels.long()[sources]
        if may_ignore:
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

    if label_smoothing > 0:
        # Not a matrix product: autocast would run it in half precision.
        uniform = (log_probabilities if class_weight is None else log_probabilities * class_weight).sum(1)
        if ignored is not None:
            uniform = uniform.masked_fill(ignored.all(1), 0)
        own = (1 - label_smoothing) * own + label_smoothing * weights.sum(1) * (uniform / -classes)

    if reduction == "mean":
        return own.sum() / count
    return own.sum() if reduction == "sum" else own


def mixed_binary_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    sources: Tensor,
    weights: Tensor,
    *,
    label_smoothing: float = 0.0,
    target_threshold: float | None = None,
    sum_classes: bool = False,
    multi_label: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """Binary cross-entropy of every class against the mixed target, timm's convention.

    The mixed target is ``t[b] = sum_m w[b, m] * smoothed(labels[sources[b, m]])``. With class ids it is never
    built: ``sum_c bce = sum_c softplus(x_c) - sum_c t_c * x_c``, and the second sum needs the sources'
    classes and the row's sum of logits only. Equals ``timm.loss.BinaryCrossEntropy`` on the targets of
    ``timm.data.mixup``.

    Args:
        logits: (B, K) floating; float16 and bfloat16 are computed in float32.
        labels: class ids (B,) of any integer dtype, or dense targets (B, K) floating (one-hot, soft or
            multi-hot).
        sources: (B, M) int64 rows of the batch that went into each sample.
        weights: (B, M) floating share of each source's label; rows need not sum to one. Differentiable unless
            a threshold is set.
        label_smoothing: eps in [0, 1]: a source's target becomes ``(1 - eps) * target + eps / K`` before
            mixing (timm's ``mixup_target``).
        target_threshold: in [0, 1); classes whose mixed target, sources of one class added up, is above it
            get target 1, all others 0.
        sum_classes: sum over the classes of a sample; by default their mean.
        multi_label: dense labels are independent yes/no targets, so smoothing moves them towards a half:
            ``(1 - eps) * target + eps / 2`` (timm's ``multi_label``). Needs dense labels.
        reduction: over the samples: "none" gives (B,), "mean", "sum". torch's ``reduction="sum"`` over all
            elements is ``sum_classes=True, reduction="sum"`` here.

    Returns:
        float32 (float64 for float64 logits); (B,) for "none", else a scalar.

    Raises:
        TypeError: integer labels (B, K), floating labels (B,), or a wrong dtype elsewhere.
        ValueError: mismatched shapes, an option out of its range, ``multi_label`` with class ids, and, on the
            CPU outside ``torch.compile``, class ids outside [0, K) or sources outside [0, B).
    """
    _check_options("mixed_binary_cross_entropy", label_smoothing, reduction)
    if target_threshold is not None and not 0 <= target_threshold < 1:
        raise ValueError(
            f"mixed_binary_cross_entropy expected target_threshold in [0, 1) or None, got {target_threshold}"
        )
    _check_inputs("mixed_binary_cross_entropy", logits, labels, sources, weights, None)
    if multi_label and labels.ndim != 2:
        raise ValueError(
            "mixed_binary_cross_entropy got multi_label=True with class ids (B,); pass dense (B, K) labels "
            "or multi_label=False"
        )
    classes = logits.shape[1]
    logits = logits.to(_compute_dtype(logits))
    weights = weights.to(logits.dtype)
    off = label_smoothing * 0.5 if multi_label else label_smoothing / classes

    # softplus(x) - t * x is the stable form of -t log s(x) - (1 - t) log s(-x). Beyond the threshold of 40
    # the linear branch is exact in float64 too (the default of 20 is not).
    negative = F.softplus(logits, threshold=40.0).sum(1)
    if labels.ndim == 2:
        targets = _mix_rows(labels.to(logits.dtype), sources, weights)
        if label_smoothing > 0:
            targets = targets * (1 - label_smoothing) + weights.sum(1, keepdim=True) * off
        if target_threshold is not None:
            targets = (targets > target_threshold).to(logits.dtype)
        loss = negative - (targets * logits).sum(1)
    else:
        ids = labels.long()[sources]
        picked = logits.gather(1, ids)
        if target_threshold is None:
            loss = negative - (1 - label_smoothing) * (weights * picked).sum(1)
            if label_smoothing > 0:
                loss = loss - off * weights.sum(1) * logits.sum(1)
        else:
            # The threshold looks at the target of a class, so the weights of all sources of that class are
            # added and the class is counted once, at its first source. With M sources, (B, M, M) is small.
            same = ids[:, :, None] == ids[:, None, :]
            share = weights[:, None, :]
            shares = torch.where(same, share * (1 - label_smoothing + off), share * off)
            positive = shares.sum(2) > target_threshold
            earlier = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril(-1)
            first = ~(same & earlier).any(2)
            if label_smoothing > 0:
                # All other classes hold the off value, which may itself be above the threshold.
                background = (weights * off).sum(1) > target_threshold
                step = positive.to(logits.dtype) - background[:, None].to(logits.dtype)
                loss = negative - background * logits.sum(1) - (first * step * picked).sum(1)
            else:
                loss = negative - ((first & positive) * picked).sum(1)

    if not sum_classes:
        loss = loss / classes
    if reduction == "mean":
        return loss.mean()
    return loss.sum() if reduction == "sum" else loss


def mixed_loss(
    loss: Callable[[Tensor, Tensor], Tensor],
    logits: Tensor,
    labels: Tensor,
    sources: Tensor,
    weights: Tensor,
    *,
    reduction: str = "mean",
) -> Tensor:
    """Mix any per-sample loss: ``sum_m w[b, m] * loss(logits, labels[sources[:, m]])[b]``.

    Args:
        loss: called M times as ``loss(logits, labels)``, must return one value per sample, (B,).
        logits: (B, ...) whatever ``loss`` takes.
        labels: (B, ...) whatever ``loss`` takes: class ids, dense targets, regression targets.
        sources: (B, M) int64 rows of the batch that went into each sample.
        weights: (B, M) floating share of each source's label.
        reduction: "none" gives (B,); "mean" over the batch; "sum".

    Returns:
        (B,) for "none", else a scalar, in the dtype ``loss`` returns (at least float32).

    Raises:
        ValueError: mismatched shapes, or ``loss`` does not return (B,).
    """
    _check_options("mixed_loss", 0.0, reduction)
    _check_mixing("mixed_loss", logits, labels, sources, weights)
    total: Tensor | None = None
    for source, weight in zip(sources.unbind(1), weights.unbind(1), strict=True):
        value = loss(logits, labels[source])
        if not isinstance(value, Tensor) or value.shape != (len(logits),):
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"mixed_loss expected {_name(loss)} to return one loss per sample, shape ({len(logits)},); "
                f"got {got}; build it with reduction='none'"
            )
        share = weight.to(torch.promote_types(value.dtype, torch.float32)) * value
        total = share if total is None else total + share
    assert total is not None  # _check_mixing requires M >= 1
    if reduction == "mean":
        return total.mean()
    return total.sum() if reduction == "sum" else total


@torch.no_grad()
def mixed_accuracy(logits: Tensor, targets: MixedBatch | Tensor, topk: int | Sequence[int] = 1) -> Tensor:
    """Share of the label weight that lies on the k classes with the highest logits.

    With class ids and weight 1 this is ordinary accuracy; with a mixed pair that got its heavier class right
    it counts lam. Reads nothing back to the host.

    Args:
        logits: (B, K).
        targets: a MixedBatch, class ids (B,), or dense targets (B, K). Negative class ids (the usual marks
            for "ignore") drop out with their weight.
        topk: k, or several k; more than K counts as K.

    Returns:
        float32 in [0, 1] on the device of the logits: a scalar for an integer ``topk``, else one value per k.
        nan if there is no label weight at all.

    Raises:
        ValueError: mismatched shapes, k < 1, or a MixedBatch without labels.
    """
    ks = (topk,) if isinstance(topk, int) else tuple(topk)
    if not ks or min(ks) < 1:
        raise ValueError(f"mixed_accuracy expected topk >= 1, got {topk}")
    if logits.ndim != 2:
        raise ValueError(f"mixed_accuracy expected logits of shape (B, K), got {tuple(logits.shape)}")
    if isinstance(targets, Tensor):
        labels = targets
        sources = torch.arange(len(labels), device=labels.device)[:, None]
        weights = torch.ones(len(labels), 1, device=labels.device)
    else:
        labels, sources, weights = _labels_of("mixed_accuracy", targets), targets.sources, targets.weights
    _check_inputs("mixed_accuracy", logits, labels, sources, weights, None, check_range=False)

    best = logits.topk(min(max(ks), logits.shape[1]), dim=1).indices
    if labels.ndim == 2:
        mass = _mix_rows(labels.float(), sources, weights.float())
        hits = mass.gather(1, best)
        total = mass.sum()
    else:
        ids = labels.long()[sources]
        mass = weights.float().masked_fill(ids < 0, 0)
        hits = (mass[:, :, None] * (ids[:, :, None] == best[:, None, :])).sum(1)
        total = mass.sum()
    by_rank = hits.sum(0).cumsum(0) / total
    chosen = torch.stack([by_rank[min(k, len(by_rank)) - 1] for k in ks])
    return chosen[0] if isinstance(topk, int) else chosen


class MixedCrossEntropy(nn.Module):
    """Module form of :func:`mixed_cross_entropy`; ``forward(logits, mixed)`` takes a MixedBatch.

    Args:
        label_smoothing: eps in [0, 1].
        class_weight: (K,) factors, kept as a buffer.
        ignore_index: class id whose sources drop out with their weight.
        reduction: "none", "mean" or "sum".
    """

    class_weight: Tensor | None

    def __init__(
        self,
        label_smoothing: float = 0.0,
        class_weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        _check_options("MixedCrossEntropy", label_smoothing, reduction)
        self.label_smoothing = label_smoothing
        self.register_buffer("class_weight", class_weight)
        self.ignore_index = ignore_index
        self.reduction = reduction

    def forward(self, logits: Tensor, mixed: MixedBatch) -> Tensor:
        """Loss of ``logits`` (B, K) against the labels of ``mixed``."""
        return mixed_cross_entropy(
            logits,
            _labels_of("MixedCrossEntropy", mixed),
            mixed.sources,
            mixed.weights,
            label_smoothing=self.label_smoothing,
            class_weight=self.class_weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        return f"label_smoothing={self.label_smoothing}, reduction={self.reduction!r}"


class MixedBinaryCrossEntropy(nn.Module):
    """Module form of :func:`mixed_binary_cross_entropy`; ``forward(logits, mixed)`` takes a MixedBatch.

    Args:
        label_smoothing: eps in [0, 1].
        target_threshold: in [0, 1), or None for soft targets. "ResNet strikes back" uses 0.2 in its A1
            recipe.
        sum_classes: sum over classes rather than average.
        multi_label: dense labels are independent yes/no targets.
        reduction: "none", "mean" or "sum", over the samples.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        target_threshold: float | None = None,
        sum_classes: bool = False,
        multi_label: bool = False,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        _check_options("MixedBinaryCrossEntropy", label_smoothing, reduction)
        if target_threshold is not None and not 0 <= target_threshold < 1:
            raise ValueError(
                f"MixedBinaryCrossEntropy expected target_threshold in [0, 1) or None, got {target_threshold}"
            )
        self.label_smoothing = label_smoothing
        self.target_threshold = target_threshold
        self.sum_classes = sum_classes
        self.multi_label = multi_label
        self.reduction = reduction

    def forward(self, logits: Tensor, mixed: MixedBatch) -> Tensor:
        """Loss of ``logits`` (B, K) against the labels of ``mixed``."""
        return mixed_binary_cross_entropy(
            logits,
            _labels_of("MixedBinaryCrossEntropy", mixed),
            mixed.sources,
            mixed.weights,
            label_smoothing=self.label_smoothing,
            target_threshold=self.target_threshold,
            sum_classes=self.sum_classes,
            multi_label=self.multi_label,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        return (
            f"label_smoothing={self.label_smoothing}, target_threshold={self.target_threshold}, "
            f"sum_classes={self.sum_classes}, multi_label={self.multi_label}, reduction={self.reduction!r}"
        )


class MixedLoss(nn.Module):
    """Turns any per-sample loss into one for mixed samples; ``forward(logits, mixed)`` takes a MixedBatch.

    Args:
        loss: a module or function ``(logits, labels) -> (B,)``, such as
            ``nn.CrossEntropyLoss(reduction="none")`` or a focal loss without reduction.
        reduction: "none", "mean" or "sum".

    Example:
        >>> criterion = MixedLoss(nn.MultiMarginLoss(reduction="none"))
    """

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor], reduction: str = "mean") -> None:
        super().__init__()
        if not callable(loss):
            raise TypeError(f"MixedLoss expected a callable (logits, labels) -> (B,), got {type(loss).__name__}")
        _check_options("MixedLoss", 0.0, reduction)
        self.loss = loss
        self.reduction = reduction

    def forward(self, logits: Tensor, mixed: MixedBatch) -> Tensor:
        """Loss of ``logits`` (B, ...) against the labels of ``mixed``."""
        labels = _labels_of("MixedLoss", mixed)
        return mixed_loss(self.loss, logits, labels, mixed.sources, mixed.weights, reduction=self.reduction)


def mixed_regression_loss(
    elementwise: Callable[[Tensor, Tensor], Tensor],
    predictions: Tensor,
    labels: Tensor,
    sources: Tensor,
    weights: Tensor,
    *,
    against: Against = "target",
    reduction: str = "mean",
) -> Tensor:
    """Loss of predictions for mixed samples with number labels.

    ``against="target"`` compares with the mixed label, ``e(prediction, sum_m w_m y_m)``, as the reference of
    C-Mixup (arXiv:2210.05775) does; ``against="sources"`` mixes the losses, ``sum_m w_m e(prediction, y_m)``. With
    the squared error and weights that sum to one the two differ by the labels' spread around the mixed label, a
    constant, and so have the same gradient; the absolute error and Huber's loss pull towards the nearer source's
    label in the second form.

    Args:
        elementwise: ``(predictions, targets)``, both (B, D), to errors (B, D).
        predictions: (B,) or (B, D) floating; float16 and bfloat16 are computed in float32.
        labels: (N,) or (N, D) floating, N >= B, the batch's own rows first.
        sources: (B, M) int64 rows of ``labels``.
        weights: (B, M) floating share of each source.
        against: "target" or "sources".
        reduction: "none" gives (B,), the mean over the D columns; "mean" over all entries; "sum" over all entries.

    Returns:
        float32 (float64 for float64 predictions); (B,) for "none", else a scalar.

    Raises:
        ValueError: another number of columns or rows ((B,) counts as (B, 1), nothing is broadcast), an unknown option.
        TypeError: integer labels.
    """
    name = "mixed_regression_loss"
    _check_options(name, 0.0, reduction)
    _check_against(name, against)
    if not predictions.is_floating_point() or predictions.ndim not in (1, 2):
        raise ValueError(
            f"{name} expected floating predictions (B,) or (B, D), got {tuple(predictions.shape)} {predictions.dtype}"
        )
    if not labels.is_floating_point():
        raise TypeError(f"{name} expected floating labels, got {labels.dtype} of shape {tuple(labels.shape)}")
    _check_mixing(name, predictions, labels, sources, weights, "predictions")
    dtype = _compute_dtype(predictions)
    predicted, wanted = predictions.reshape(len(predictions), -1).to(dtype), labels.reshape(len(labels), -1).to(dtype)
    if predicted.shape[1] != wanted.shape[1]:
        raise ValueError(
            f"{name} got predictions {tuple(predictions.shape)} for labels {tuple(labels.shape)}; "
            "the model needs one output per label column"
        )
    weights = weights.to(dtype)
    if against == "target":
        errors = elementwise(predicted, _mix_rows(wanted, sources, weights))
    else:
        columns = zip(sources.unbind(1), weights.unbind(1), strict=True)
        errors = torch.stack([share[:, None] * elementwise(predicted, wanted[row]) for row, share in columns]).sum(0)
    if reduction == "none":
        return errors.mean(1)
    return errors.mean() if reduction == "mean" else errors.sum()


class MixedRegressionLoss(nn.Module):
    """Base of the regression objectives; ``forward(predictions, mixed)`` takes a MixedBatch.

    Args:
        against: "target" (the mixed label, as in the reference of C-Mixup) or "sources", see
            :func:`mixed_regression_loss`.
        reduction: "none", "mean" or "sum".
    """

    def __init__(self, against: Against = "target", reduction: str = "mean") -> None:
        super().__init__()
        _check_options(type(self).__name__, 0.0, reduction)
        _check_against(type(self).__name__, against)
        self.against: Against = against
        self.reduction = reduction

    def error(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """(B, D) errors of (B, D) predictions. What a subclass defines."""
        raise TypeError(f"{type(self).__name__} does not define error(predictions, targets)")

    def forward(self, predictions: Tensor, mixed: MixedBatch) -> Tensor:
        """Loss of ``predictions`` (B,) or (B, D) against the labels of ``mixed``."""
        return mixed_regression_loss(
            self.error,
            predictions,
            _labels_of(type(self).__name__, mixed),
            mixed.sources,
            mixed.weights,
            against=self.against,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        return f"against={self.against!r}, reduction={self.reduction!r}"


class MixedSquaredError(MixedRegressionLoss):
    """Squared error on mixed targets; see :class:`MixedRegressionLoss`."""

    def error(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return (predictions - targets).square()


class MixedAbsoluteError(MixedRegressionLoss):
    """Absolute error on mixed targets; see :class:`MixedRegressionLoss`."""

    def error(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return (predictions - targets).abs()


class MixedHuber(MixedRegressionLoss):
    """Huber's loss on mixed targets: quadratic up to an error of ``delta``, linear beyond.

    Args:
        delta: positive, in label units.
        against, reduction: see :class:`MixedRegressionLoss`.
    """

    def __init__(self, delta: float = 1.0, against: Against = "target", reduction: str = "mean") -> None:
        super().__init__(against, reduction)
        if isinstance(delta, bool) or not isinstance(delta, (int, float)) or not delta > 0:
            raise ValueError(f"MixedHuber expected delta > 0, got {delta!r}")
        self.delta = float(delta)

    def error(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return F.huber_loss(predictions, targets, reduction="none", delta=self.delta)

    def extra_repr(self) -> str:
        return f"delta={self.delta:g}, {super().extra_repr()}"


def _check_against(name: str, against: str) -> None:
    if against not in ("target", "sources"):
        raise ValueError(f"{name} expected against 'target' or 'sources', got {against!r}")


def _mix_rows(rows: Tensor, sources: Tensor, weights: Tensor) -> Tensor:
    """(B, K) weighted sums of rows, in one pass: indexing would copy (B, K) once per source."""
    return F.embedding_bag(sources, rows, mode="sum", per_sample_weights=weights)


def _share_left(weights: Tensor, ignored: Tensor) -> Tensor:
    """Number of samples, each counted by the share of its weight that is not ignored."""
    total = weights.sum(1)
    lost = (weights * ignored).sum(1) / total.masked_fill(total == 0, 1)
    return len(weights) - lost.sum()


def _compute_dtype(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def _labels_of(name: str, mixed: MixedBatch) -> Tensor:
    if isinstance(mixed, Tensor):
        raise TypeError(
            f"{name} expected a MixedBatch, got {type(mixed).__name__}; for plain labels use the loss of torch.nn"
        )
    if mixed.labels is None:
        raise ValueError(f"{name} needs labels, but the MixedBatch has none; pass labels to the policy")
    return mixed.labels


def _name(function: object) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _check_options(name: str, label_smoothing: float, reduction: str) -> None:
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"{name} expected label_smoothing in [0, 1], got {label_smoothing}")
    if reduction not in _REDUCTIONS:
        raise ValueError(f"{name} expected reduction one of {_REDUCTIONS}, got {reduction!r}")


def _check_mixing(
    name: str, outputs: Tensor, labels: Tensor, sources: Tensor, weights: Tensor, what: str = "logits"
) -> None:
    batch = len(outputs)
    if batch == 0:
        raise ValueError(f"{name} got an empty batch: {what} of shape {tuple(outputs.shape)}")
    # Partners from outside the batch follow its own rows (mixaug.Pooled).
    if len(labels) < batch:
        raise ValueError(f"{name} got {what} of {batch} samples, but labels of shape {tuple(labels.shape)}")
    if sources.ndim != 2 or len(sources) != batch or sources.shape[1] == 0:
        raise ValueError(f"{name} expected sources of shape ({batch}, M), M >= 1; got {tuple(sources.shape)}")
    if sources.dtype != torch.int64:
        raise TypeError(f"{name} expected sources of dtype int64, got {sources.dtype}")
    if weights.shape != sources.shape:
        raise ValueError(
            f"{name} expected weights shaped like sources, {tuple(sources.shape)}; got {tuple(weights.shape)}"
        )
    if not weights.is_floating_point():
        raise TypeError(f"{name} expected floating weights, got {weights.dtype}")
    if _can_read(sources):
        low, high = (int(value) for value in sources.aminmax())
        if low < 0 or high >= len(labels):
            raise ValueError(f"{name} expected sources in [0, {len(labels)}), got values from {low} to {high}")


def _check_inputs(
    name: str,
    logits: Tensor,
    labels: Tensor,
    sources: Tensor,
    weights: Tensor,
    ignore_index: int | None,
    check_range: bool = True,
) -> bool:
    """Raise for what does not fit. Returns whether a class id may be ``ignore_index``; True where none can be read."""
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ValueError(f"{name} expected logits of shape (B, K), got {tuple(logits.shape)}")
    if not logits.is_floating_point():
        raise TypeError(f"{name} expected floating logits, got {logits.dtype}")
    _check_mixing(name, logits, labels, sources, weights)
    classes = logits.shape[1]
    if labels.ndim == 2:
        if not labels.is_floating_point():
            raise TypeError(
                f"{name} got {labels.dtype} labels of shape {tuple(labels.shape)}; pass class ids (B,) or "
                "floating dense targets (B, K), for example F.one_hot(ids, K).float()"
            )
        if labels.shape[1] != classes:
            raise ValueError(f"{name} got logits of {classes} classes, but dense labels of {labels.shape[1]}")
    elif labels.ndim == 1:
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise TypeError(f"{name} expected integer class ids for labels of shape (B,), got {labels.dtype}")
        if check_range and _can_read(labels):
            # One look at the labels is cheaper than masking what is hardly ever there.
            low, high = (int(value) for value in labels.long().aminmax())
            if low >= 0 and high < classes:
                return ignore_index is not None and low <= ignore_index <= high
            labels = labels.long()
            out = (labels < 0) | (labels >= classes)
            if ignore_index is not None:
                out &= labels != ignore_index
            if bool(out.any()):
                row = int(out.nonzero()[0])
                excused = "" if ignore_index is None else f" (or ignore_index={ignore_index})"
                raise ValueError(
                    f"{name} expected class ids in [0, {classes}){excused}; got {int(labels[row])} at row {row}"
                )
    else:
        raise ValueError(f"{name} expected labels of shape (B,) or (B, K), got {tuple(labels.shape)}")
    return True


def _can_read(tensor: Tensor) -> bool:
    """Whether values can be looked at without stopping a device or breaking a compiled graph."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()
