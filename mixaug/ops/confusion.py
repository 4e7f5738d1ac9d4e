"""Measures of a classifier that are functions of its confusion matrix, and how they change with the scores.

A confusion matrix C (K, K) holds shares of all samples: row the true class, column the predicted one, entries sum to 1.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from mixaug.checks import check_choice, shown

Measure = Literal[
    "mean_recall",
    "gmean",
    "hmean",
    "min_recall",
    "min_ht_recall",
    "coverage",
    "hmean_coverage",
    "ht_coverage",
    "hmean_ht_coverage",
]
MEASURES: tuple[str, ...] = get_args(Measure)
#: Entries of a confusion matrix count as this much at least.
LEAST = 1e-7
#: Share of the classes, in the order of their ids, that are the head; the rest are the tail.
HEAD = 0.9


def confusion_matrix(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(K, K) float64 shares of samples by true class and predicted class.

    Args:
        predicted, labels: (N,) class ids in [0, K).
        classes: K.
    """
    flat = torch.bincount(labels.long() * classes + predicted.long(), minlength=classes * classes)
    return flat.double().reshape(classes, classes) / max(len(labels), 1)


def recalls(confusion: Tensor) -> Tensor:
    """(K,) share of each class that is recognised; 0 for a class without samples."""
    return confusion.diagonal() / confusion.sum(1).clamp(min=torch.finfo(confusion.dtype).tiny)


def measure_gradient(
    measure: Measure,
    confusion: Tensor,
    *,
    coverage: float = 0.95,
    tau: float = 0.1,
    largest: float = 100.0,
    rate: float = 50.0,
    reference: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """How a measure changes with the scores behind a confusion matrix, scores that go through a softmax of each row.

    Args:
        measure: mean, geometric or harmonic mean of the recalls; their minimum over classes or over head and tail
            (through exponential weights); mean or harmonic mean under the constraint that each class, or head and
            tail, are predicted for their share of the samples (through multipliers).
        confusion: (K, K) floating.
        coverage: share of 1/K that every class should be predicted for.
        tau, largest: of the multipliers ``largest (1 - exp((covered - coverage / K) / tau))``, not below 0.
        rate: of the weights exp(-rate recall) of a minimum.
        reference: spread what head and tail have over 0.9 K and 0.1 K classes, as the authors' code, also where that is
            no whole number; then a class may count for the other part.

    Returns:
        (K, K) gradient, row the true class, column the class of the score; and (K,) multipliers or weights of the
        classes, None where the measure has none.

    Raises:
        ValueError: another measure, a confusion matrix of another shape.
    """
    check_choice("measure_gradient", "measure", measure, MEASURES)
    if not isinstance(confusion, Tensor) or confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise ValueError(f"measure_gradient expects confusion (K, K), got {shown(confusion)}")
    classes = len(confusion)
    clipped = confusion.clamp(min=LEAST)
    recall = recalls(confusion).clamp(min=LEAST)
    if measure == "gmean":
        return _through_scores(clipped, _of_gmean(clipped, recall)), None
    if measure == "hmean":
        return _through_scores(clipped, _of_hmean(clipped, recall)), None
    mean = _through_scores(clipped, torch.eye(classes, dtype=clipped.dtype, device=clipped.device))
    if measure == "mean_recall":
        return mean, None
    if measure in ("min_recall", "min_ht_recall"):
        weights = _weights_of_minimum(measure, recalls(confusion), rate, reference)
        return classes * weights[:, None] * mean, weights
    covered = confusion.sum(0)
    by_halves = "ht_coverage" in measure
    each = torch.stack([part.mean() for part in _head_and_tail(covered)]) if by_halves else covered
    multipliers = (largest * (1 - ((each - coverage / classes) / tau).exp())).clamp(min=0)
    spread = _spread(multipliers, classes, reference) if by_halves else multipliers
    # The authors' divisor is that of the parts for the mean, and that of the classes for the harmonic mean.
    total = (spread if measure.startswith("hmean") else multipliers).max() + 1
    plain = _through_scores(clipped, _of_hmean(clipped, recall)) if measure.startswith("hmean") else mean
    return (plain + _through_scores(clipped, spread.expand(classes, classes))) / total, spread


def _through_scores(confusion: Tensor, gradient: Tensor) -> Tensor:
    """dM/dA from dM/dC, where each row of C is 1/K of a softmax of scores A."""
    product = confusion * gradient
    return product - len(confusion) * confusion * product.sum(1, keepdim=True)


def _of_gmean(confusion: Tensor, recall: Tensor) -> Tensor:
    classes = len(confusion)
    value = recall.log().mean().exp()
    eye = torch.eye(classes, dtype=confusion.dtype, device=confusion.device)
    return value / classes * (eye / confusion.diagonal()[:, None] - 1 / confusion.sum(1, keepdim=True))


def _of_hmean(confusion: Tensor, recall: Tensor) -> Tensor:
    value = 1 / (1 / recall).mean()
    diagonal, row = confusion.diagonal()[:, None], confusion.sum(1, keepdim=True)
    eye = torch.eye(len(confusion), dtype=confusion.dtype, device=confusion.device)
    return -(value**2) / len(confusion) * (1 / diagonal - eye * row / diagonal**2)


def _weights_of_minimum(measure: str, recall: Tensor, rate: float, reference: bool) -> Tensor:
    if measure == "min_recall":
        return (-rate * recall).softmax(0)
    parts = torch.stack([part.mean() for part in _head_and_tail(recall)])
    return _spread((-rate * parts).softmax(0), len(recall), reference)


def _head_and_tail(values: Tensor) -> tuple[Tensor, Tensor]:
    first = _heads(len(values))
    return values[:first], values[first:]


def _spread(parts: Tensor, classes: int, reference: bool) -> Tensor:
    """(K,) what head and tail have, over their classes."""
    first = float(_heads(classes))
    share = HEAD * classes if reference else first
    head = torch.arange(classes, device=parts.device) < share
    return torch.where(head, parts[0] / share, parts[1] / (classes - share))


def _heads(classes: int) -> int:
    return min(max(math.floor(HEAD * classes), 1), classes - 1)


__all__ = ["MEASURES", "Measure", "confusion_matrix", "measure_gradient", "recalls"]
