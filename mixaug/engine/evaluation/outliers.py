"""Outlier detection: does a model notice that an image belongs to none of its classes?

Every score is higher for what looks more like an outlier:

    msp          -max softmax(z)                  Hendrycks and Gimpel, ICLR 2017 (arXiv:1610.02136)
    energy       -T logsumexp(z / T)              Liu et al., NeurIPS 2020 (arXiv:2010.03759)
    max_logit    -max z                           Hendrycks et al., ICML 2022 (arXiv:1911.11132)
    mahalanobis  least distance to a class mean   Lee et al., NeurIPS 2018 (arXiv:1807.03888), last features alone
    knn          distance to the k-th neighbour   Sun et al., ICML 2022 (arXiv:2204.06507), features of length one

FPR95 has two conventions in the literature that may differ by twenty points. Ours, unless said otherwise, is that of
most recent papers: of the outliers, the share that is taken for inliers where the threshold keeps 95 % of the inliers.

The ranking measures are computed from float64 scores as they are. Metrics that take scores for logits and put them
through a sigmoid first, as torchmetrics does outside [0, 1], merge large scores into ties.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mixaug.checks import check_choice, check_flag, check_positive, check_positive_share, check_whole
from mixaug.engine.evaluation.inputs import check_features, check_labels, check_logits

__all__ = [
    "auroc",
    "average_precision",
    "class_statistics",
    "detection",
    "energy",
    "fpr_at_recall",
    "knn",
    "mahalanobis",
    "max_logit",
    "msp",
]

POSITIVES = ("inliers", "outliers")
NEIGHBOURS = 50
_ROWS = 1024


def msp(logits: Tensor) -> Tensor:
    """(N, K) logits to (N,) float64: minus the largest softmax probability, in [-1, 0)."""
    check_logits("msp", logits)
    return -logits.double().softmax(1).max(1).values


def energy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """(N, K) logits to (N,) float64: the free energy at a temperature. It depends on the scale of the logits."""
    check_logits("energy", logits)
    t = check_positive("energy", "temperature", temperature)
    return -t * (logits.double() / t).logsumexp(1)


def max_logit(logits: Tensor) -> Tensor:
    """(N, K) logits to (N,) float64: minus the largest logit."""
    check_logits("max_logit", logits)
    return -logits.double().max(1).values


def class_statistics(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Class means and the covariance that the classes share.

    Args:
        features: (N, D) floating point, of training samples.
        labels: (N,) int64 class ids; every class must occur.
        classes: K.

    Returns:
        (K, D) means and (D, D) covariance, the mean over the samples of (h - mean)(h - mean)^T; both float64.

    Raises:
        TypeError, ValueError: other shapes, dtypes or values, or a class without a sample.
    """
    what = "class_statistics"
    check_features(what, features)
    count = check_whole(what, "classes", classes)
    check_labels(what, labels, len(features), count)
    values = features.double()
    held = torch.bincount(labels, minlength=count)
    if bool((held == 0).any()):
        raise ValueError(
            f"{what} expects samples of all {count} classes, got none of {(held == 0).nonzero()[:, 0].tolist()}"
        )
    means = values.new_zeros(count, values.shape[1]).index_add_(0, labels.long(), values) / held[:, None]
    centred = values - means[labels.long()]
    return means, centred.T @ centred / len(values)


def mahalanobis(features: Tensor, means: Tensor, covariance: Tensor) -> Tensor:
    """Least squared Mahalanobis distance to a class mean.

    Args:
        features: (N, D) floating point.
        means, covariance: of `class_statistics`. A covariance of less than full rank is inverted on its range.

    Returns:
        (N,) float64, not negative.

    Raises:
        TypeError, ValueError: other shapes, dtypes or values.
    """
    check_features("mahalanobis", features)
    width = features.shape[1]
    if means.ndim != 2 or means.shape[1] != width or tuple(covariance.shape) != (width, width):
        raise ValueError(
            f"mahalanobis expects means (K, {width}) and covariance ({width}, {width}) beside features of {width} "
            f"numbers, got {tuple(means.shape)} and {tuple(covariance.shape)}"
        )
    scales, axes = torch.linalg.eigh(covariance.double())
    kept = scales > scales.max() * width * torch.finfo(torch.float64).eps
    whiten = axes * torch.where(kept, scales.clamp_min(1e-300).rsqrt(), 0.0)
    return _squared_distances(features.double() @ whiten, means.double() @ whiten).min(1).values


def knn(features: Tensor, bank: Tensor, neighbours: int = NEIGHBOURS) -> Tensor:
    """Distance to the k-th nearest training sample, all features brought to length one.

    Args:
        features: (N, D) floating point.
        bank: (M, D) features of training samples, M >= neighbours.
        neighbours: k; the paper has 50 for CIFAR-10.

    Returns:
        (N,) float64 in [0, 2].

    Raises:
        TypeError, ValueError: other shapes, dtypes or values.
    """
    check_features("knn", features)
    check_features("knn", bank, "bank")
    if bank.shape[1] != features.shape[1]:
        raise ValueError(f"knn expects bank (M, {features.shape[1]}), got {tuple(bank.shape)}")
    k = check_whole("knn", "neighbours", neighbours, most=len(bank), reason="the bank has no more samples")
    stored = torch.nn.functional.normalize(bank.double(), dim=1)
    # Whole matrices of distances between sets of ten thousands of samples would not fit into memory.
    found = [
        _squared_distances(torch.nn.functional.normalize(rows.double(), dim=1), stored).kthvalue(k, 1).values
        for rows in features.split(_ROWS)
    ]
    return torch.cat(found).sqrt()


def auroc(inliers: Tensor, outliers: Tensor) -> Tensor:
    """Chance that an outlier scores higher than an inlier, ties counting half: float64 in [0, 1], 0.5 is chance.

    Args:
        inliers, outliers: (N,) and (M,) scores, higher for outliers.
    """
    inside, outside = _scores("auroc", inliers, outliers)
    ordered = inside.sort().values
    below = torch.searchsorted(ordered, outside)
    not_above = torch.searchsorted(ordered, outside, right=True)
    return (below + not_above).double().mean() / (2 * len(inside))


def average_precision(inliers: Tensor, outliers: Tensor, positive: str = "outliers") -> Tensor:
    """Area under the curve of precision over recall (AUPR), in steps, with one threshold for each distinct score.

    Args:
        inliers, outliers: (N,) and (M,) scores, higher for outliers.
        positive: which of both is to be found, "outliers" or "inliers".

    Returns:
        float64 in [0, 1]; chance is the share of the positives.
    """
    inside, outside = _scores("average_precision", inliers, outliers)
    check_choice("average_precision", "positive", positive, POSITIVES)
    found, others = (outside, inside) if positive == "outliers" else (-inside, -outside)
    ordered_found, ordered_others = found.sort().values, others.sort().values
    # Of the positives at each threshold, its own score, as many are ranked at least as high; ties come in together.
    hits = len(found) - torch.searchsorted(ordered_found, ordered_found)
    false = len(others) - torch.searchsorted(ordered_others, ordered_found)
    return (hits / (hits + false).double()).mean()


def fpr_at_recall(
    inliers: Tensor, outliers: Tensor, recall: float = 0.95, positive: str = "inliers", *, reference: bool = False
) -> Tensor:
    """Share of the negatives that pass where a share of the positives does: FPR95 at recall 0.95.

    Args:
        inliers, outliers: (N,) and (M,) scores, higher for outliers.
        recall: share of the positives that must pass, at least, in (0, 1].
        positive: "inliers": outliers accepted where 95 % of the inliers are, as in most recent papers; "outliers":
            inliers flagged where 95 % of the outliers are, as in Outlier Exposure (arXiv:1812.04606).
        reference: take the threshold as the code of Outlier Exposure does: among all distinct scores the one whose
            recall is nearest, of several the one that lets most negatives pass.

    Returns:
        float64 in [0, 1]; a useless score has ``recall``.
    """
    what = "fpr_at_recall"
    inside, outside = _scores(what, inliers, outliers)
    share = check_positive_share(what, "recall", recall)
    check_choice(what, "positive", positive, POSITIVES)
    found, others = (outside, inside) if positive == "outliers" else (-inside, -outside)
    ordered = found.sort(descending=True).values
    if check_flag(what, "reference", reference):
        thresholds = torch.cat([found, others]).unique()
        passing = len(found) - torch.searchsorted(ordered.flip(0), thresholds)
        # Thresholds ascend, so the first of the nearest is the one that most negatives pass.
        threshold = thresholds[(passing / len(found) - share).abs().argmin()]
    else:
        # 0.95 * 20 is a little above 19 in binary numbers.
        threshold = ordered[math.ceil(share * len(found) - 1e-9) - 1]
    return (others >= threshold).double().mean()


def detection(inliers: Tensor, outliers: Tensor) -> dict[str, float]:
    """AUROC, AUPR of both kinds of positives and FPR95 in both conventions, as shares in [0, 1].

    Args:
        inliers, outliers: (N,) and (M,) scores, higher for outliers.
    """
    numbers = {
        "auroc": auroc(inliers, outliers),
        "aupr_out": average_precision(inliers, outliers),
        "aupr_in": average_precision(inliers, outliers, "inliers"),
        "fpr95": fpr_at_recall(inliers, outliers),
        "fpr95_outliers_positive": fpr_at_recall(inliers, outliers, positive="outliers"),
    }
    return dict(zip(numbers, torch.stack(list(numbers.values())).tolist(), strict=True))


def _squared_distances(rows: Tensor, others: Tensor) -> Tensor:
    """(N, D) and (M, D) to (N, M), not negative."""
    products = rows @ others.T
    return (rows.square().sum(1)[:, None] - 2 * products + others.square().sum(1)).clamp_min(0)


def _scores(what: str, inliers: Tensor, outliers: Tensor) -> tuple[Tensor, Tensor]:
    for name, values in (("inliers", inliers), ("outliers", outliers)):
        if not isinstance(values, Tensor) or not values.is_floating_point():
            kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
            raise TypeError(f"{what} expects {name} as floating-point scores (N,), got {kind}")
        if values.ndim != 1 or not len(values):
            raise ValueError(f"{what} expects {name} (N,) with at least one score, got shape {tuple(values.shape)}")
        if bool(values.isnan().any()):
            raise ValueError(f"{what} expects {name} without NaN")
    return inliers.double(), outliers.double()
