"""Losses of mixed samples whose labels are numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixaug.batch import MixedBatch
from mixaug.checks import check_choice, check_positive
from mixaug.losses.checks import (
    check_mixing,
    check_options,
    check_per_sample,
    compute_dtype,
    labels_of,
    mix_rows,
    outputs_of,
    refuse_uniform,
)
from mixaug.options import Offering

#: Values that a regression loss compares the prediction with.
Against = Literal["target", "sources"]


def mixed_regression_loss(
    elementwise: Callable[[Tensor, Tensor], Tensor],
    predictions: Tensor,
    labels: Tensor,
    sources: Tensor,
    weights: Tensor,
    *,
    against: Against = "target",
    reduction: str = "mean",
    importance: Tensor | None = None,
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
        importance: (B,) floating factor of each sample's errors, or None.

    Returns:
        float32 (float64 for float64 predictions); (B,) for "none", else a scalar.

    Raises:
        ValueError: another number of columns or rows ((B,) counts as (B, 1), nothing is broadcast), an unknown option.
        TypeError: integer labels.
    """
    name = "mixed_regression_loss"
    check_options(name, 0.0, reduction)
    _check_against(name, against)
    if not predictions.is_floating_point() or predictions.ndim not in (1, 2):
        raise ValueError(
            f"{name} expected floating predictions (B,) or (B, D), got {tuple(predictions.shape)} {predictions.dtype}"
        )
    if not labels.is_floating_point():
        raise TypeError(f"{name} expected floating labels, got {labels.dtype} of shape {tuple(labels.shape)}")
    check_mixing(name, predictions, labels, sources, weights, "predictions")
    check_per_sample(name, "importance", importance, len(predictions))
    dtype = compute_dtype(predictions)
    predicted, wanted = predictions.reshape(len(predictions), -1).to(dtype), labels.reshape(len(labels), -1).to(dtype)
    if predicted.shape[1] != wanted.shape[1]:
        raise ValueError(
            f"{name} got predictions {tuple(predictions.shape)} for labels {tuple(labels.shape)}; "
            "the model needs one output per label column"
        )
    weights = weights.to(dtype)
    if against == "target":
        errors = elementwise(predicted, mix_rows(wanted, sources, weights))
    else:
        columns = zip(sources.unbind(1), weights.unbind(1), strict=True)
        errors = torch.stack([share[:, None] * elementwise(predicted, wanted[row]) for row, share in columns]).sum(0)
    if importance is not None:
        errors = errors * importance.to(errors.dtype)[:, None]
    if reduction == "none":
        return errors.mean(1)
    return errors.mean() if reduction == "mean" else errors.sum()


class MixedRegressionLoss(Offering, nn.Module):
    """Base of the regression objectives; ``forward(predictions, mixed)`` takes a MixedBatch.

    Args:
        against: "target" (the mixed label, as in the reference of C-Mixup) or "sources", see
            :func:`mixed_regression_loss`.
        reduction: "none", "mean" or "sum".
    """

    #: What the labels are: "classification" or "regression".
    task: ClassVar[str] = "regression"

    def __init__(self, against: Against = "target", reduction: str = "mean") -> None:
        super().__init__()
        check_options(type(self).__name__, 0.0, reduction)
        _check_against(type(self).__name__, against)
        self.against: Against = against
        self.reduction = reduction

    def error(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """(B, D) errors of (B, D) predictions. What a subclass defines."""
        raise TypeError(f"{type(self).__name__} does not define error(predictions, targets)")

    def forward(self, predictions: Any, mixed: MixedBatch) -> Tensor:
        """Loss of ``predictions`` (B,) or (B, D), or of outputs with ``logits`` of that shape, against ``mixed``."""
        labels = labels_of(type(self).__name__, mixed)
        refuse_uniform(type(self).__name__, mixed)
        return mixed_regression_loss(
            self.error,
            outputs_of(type(self).__name__, predictions),
            labels,
            mixed.sources,
            mixed.weights,
            against=self.against,
            reduction=self.reduction,
            importance=mixed.importance,
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
        self.delta = check_positive("MixedHuber", "delta", delta)

    def error(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return F.huber_loss(predictions, targets, reduction="none", delta=self.delta)

    def extra_repr(self) -> str:
        return f"delta={self.delta:g}, {super().extra_repr()}"


def _check_against(name: str, against: str) -> None:
    check_choice(name, "against", against, get_args(Against))
