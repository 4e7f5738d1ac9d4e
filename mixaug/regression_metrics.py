"""Metrics of regression: torch functions of predictions and labels, no state.

Predictions and labels are (N,) or (N, D) floating of the same number of entries per row; everything is computed in
float64 where the device has it. All raise a ValueError for shapes that do not fit and for empty sets.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mixaug.ops.layout import wide_dtype

__all__ = ["mae", "mape", "pearson", "r2", "rmse", "worst_group"]


def rmse(predictions: Tensor, labels: Tensor) -> Tensor:
    """Root mean squared error over all entries; a scalar in label units."""
    predicted, wanted = _columns("rmse", predictions, labels)
    return (predicted - wanted).square().mean().sqrt()


def mae(predictions: Tensor, labels: Tensor) -> Tensor:
    """Mean absolute error over all entries; a scalar in label units."""
    predicted, wanted = _columns("mae", predictions, labels)
    return (predicted - wanted).abs().mean()


def mape(predictions: Tensor, labels: Tensor) -> Tensor:
    """Mean absolute percentage error in percent, without the entries whose label is exactly 0.

    As C-Mixup's code (arXiv:2210.05775) has it; nan when all labels are 0.
    """
    predicted, wanted = _columns("mape", predictions, labels)
    counted = wanted != 0
    share = ((predicted - wanted) / torch.where(counted, wanted, torch.ones_like(wanted))).abs()
    return 100 * (share * counted).sum() / counted.sum()


def r2(predictions: Tensor, labels: Tensor) -> Tensor:
    """Coefficient of determination, mean over the label columns; nan for a constant column."""
    predicted, wanted = _columns("r2", predictions, labels)
    residual = (predicted - wanted).square().sum(0)
    total = (wanted - wanted.mean(0)).square().sum(0)
    return (1 - residual / total.masked_fill(_constant(wanted), torch.nan)).mean()


def pearson(predictions: Tensor, labels: Tensor) -> Tensor:
    """Correlation of predictions and labels, all entries taken together; nan when either is constant."""
    predicted, wanted = (values.flatten() for values in _columns("pearson", predictions, labels))
    flat = _constant(predicted) | _constant(wanted)
    predicted, wanted = predicted - predicted.mean(), wanted - wanted.mean()
    scale = (predicted.norm() * wanted.norm()).masked_fill(flat, torch.nan)
    return (predicted * wanted).sum() / scale


def worst_group(
    metric: Callable[[Tensor, Tensor], Tensor],
    predictions: Tensor,
    labels: Tensor,
    groups: Tensor,
    *,
    higher_is_better: bool = False,
) -> Tensor:
    """The metric of the group that fares worst.

    Args:
        metric: of (predictions, labels), such as :func:`rmse`.
        predictions: (N,) or (N, D).
        labels: like ``predictions``.
        groups: (N,) integer group of every row.
        higher_is_better: for R2 and correlations.
    """
    _columns("worst_group", predictions, labels)
    if groups.is_floating_point():
        raise TypeError(f"worst_group expects integer groups, got {groups.dtype}")
    if groups.shape != (len(labels),):
        raise ValueError(f"worst_group expects groups ({len(labels)},), got {tuple(groups.shape)}")
    values = torch.stack([metric(predictions[groups == group], labels[groups == group]) for group in groups.unique()])
    return values.min() if higher_is_better else values.max()


def _constant(values: Tensor) -> Tensor:
    """Whether all rows are equal; the variance of equal numbers need not round to 0."""
    return (values == values[:1]).all(0)


def _columns(what: str, predictions: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    for name, values in (("predictions", predictions), ("labels", labels)):
        if not isinstance(values, Tensor) or not values.is_floating_point():
            kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
            raise TypeError(f"{what} expects {name} as a floating tensor, got {kind}")
    shapes = predictions.shape, labels.shape
    ranks = {len(shape) for shape in shapes} <= {1, 2}
    if not ranks or shapes[0][0] != shapes[1][0] or predictions.numel() != labels.numel() or not labels.numel():
        raise ValueError(
            f"{what} expects predictions and labels of the same rows and columns, at least one row, got "
            f"{tuple(predictions.shape)} and {tuple(labels.shape)}"
        )
    dtype = wide_dtype(labels.device)
    return predictions.reshape(len(labels), -1).to(dtype), labels.reshape(len(labels), -1).to(dtype)
