"""Geometry of the last features: neural collapse, alignment and uniformity, mixtures on foreign ground.

Neural collapse (Papyan, Han and Donoho, PNAS 2020, arXiv:2008.08186; under mixup: Fisher, Meng and Papyan, ICLR 2024,
arXiv:2402.06171), of features h that enter the last linear layer (W, b), over the training set in eval mode:

    nc1          tr(S_W S_B^+)                             spread within the classes against that between them
    nc2 norms    std / mean of the lengths                 of centred class means, and of the rows of W
    nc2 angles   mean |cos + 1 / (K - 1)| over pairs       of the same two
    nc3          |W / |W| - M / |M||^2                     classifier against centred class means M
    nc4          share of samples whose nearest class mean is not the predicted class

All are 0 where collapse is perfect. nc1 is not divided by K, as in the authors' notebook; many papers do divide. The
global mean is that of the class means, so classes of other sizes count the same.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mixaug.checks import check_positive, check_whole
from mixaug.engine.evaluation.inputs import check_features, check_labels
from mixaug.engine.evaluation.outliers import class_statistics

__all__ = [
    "alignment",
    "angle_spread",
    "class_alignment",
    "intrusion",
    "nearest_class",
    "neural_collapse",
    "norm_spread",
    "self_duality",
    "uniformity",
    "within_class_variability",
]

_ROWS = 1024


def neural_collapse(features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None = None) -> dict[str, float]:
    """All measures by name.

    Args:
        features: (N, D) floating point, what enters the last linear layer; every class must occur.
        labels: (N,) int64 class ids.
        weight: (K, D) of that layer, K >= 2.
        bias: (K,) of it, or None.

    Returns:
        ``nc1``, ``nc2_norm_means``, ``nc2_norm_weights``, ``nc2_angle_means``, ``nc2_angle_weights``, ``nc3``, ``nc4``,
        and the ``accuracy`` on these samples, in [0, 1].

    Raises:
        TypeError, ValueError: other shapes, dtypes or values, or a class without a sample.
    """
    what = "neural_collapse"
    check_features(what, features)
    check_features(what, weight, "weight")
    classes = check_whole(what, "the number of rows of weight", len(weight), least=2)
    if weight.shape[1] != features.shape[1] or (bias is not None and tuple(bias.shape) != (classes,)):
        raise ValueError(
            f"{what} expects weight (K, {features.shape[1]}) and bias (K,) beside features of "
            f"{features.shape[1]} numbers, got {tuple(weight.shape)} and {None if bias is None else tuple(bias.shape)}"
        )
    means, within = class_statistics(features, labels, classes)
    centred = means - means.mean(0)
    logits = features.double() @ weight.double().T + (0 if bias is None else bias.double())
    predicted = logits.argmax(1)
    numbers = {
        "nc1": within_class_variability(within, centred),
        "nc2_norm_means": norm_spread(centred),
        "nc2_norm_weights": norm_spread(weight),
        "nc2_angle_means": angle_spread(centred),
        "nc2_angle_weights": angle_spread(weight),
        "nc3": self_duality(weight, centred),
        "nc4": (nearest_class(features, means) != predicted).double().mean(),
        "accuracy": (predicted == labels).double().mean(),
    }
    return dict(zip(numbers, torch.stack(list(numbers.values())).tolist(), strict=True))


def within_class_variability(within: Tensor, centred: Tensor) -> Tensor:
    """nc1 of the covariance within the classes (D, D) and the centred class means (K, D): float64 scalar."""
    classes = len(centred)
    # S_B^+ acts on the span of the class means alone, so a singular value decomposition of K rows tells all of it.
    _, scales, axes = torch.linalg.svd(centred.double() / classes**0.5, full_matrices=False)
    rank = min(classes - 1, centred.shape[1])
    scales, axes = scales[:rank], axes[:rank]
    spread = torch.einsum("rd,de,re->r", axes, within.double(), axes)
    return (spread / scales.square()).sum()


def norm_spread(vectors: Tensor) -> Tensor:
    """nc2 of lengths: unbiased standard deviation over mean of the lengths of (K, D) rows, float64 scalar."""
    lengths = vectors.double().norm(dim=1)
    return lengths.std() / lengths.mean()


def angle_spread(vectors: Tensor) -> Tensor:
    """nc2 of angles: mean over pairs of (K, D) rows of how far their cosine is from -1 / (K - 1), float64 scalar."""
    rows = normalize(vectors.double(), dim=1)
    count = len(rows)
    away = (rows @ rows.T + 1 / (count - 1)).abs()
    return (away.sum() - away.diagonal().sum()) / (count * (count - 1))


def self_duality(weight: Tensor, centred: Tensor) -> Tensor:
    """nc3 of the classifier's weight (K, D) and the centred class means (K, D): float64 scalar in [0, 4]."""
    first, second = (each.double() / each.double().norm() for each in (weight, centred))
    return (first - second).square().sum()


def nearest_class(features: Tensor, means: Tensor) -> Tensor:
    """Class whose mean is nearest in Euclidean distance: (N, D) and (K, D) to (N,) int64."""
    rows, centres = features.double(), means.double()
    # The length of a feature is the same for all classes.
    return (centres.square().sum(1) - 2 * rows @ centres.T).argmin(1)


def alignment(first: Tensor, second: Tensor, power: float = 2.0) -> Tensor:
    """Mean distance of positive pairs on the unit sphere (Wang and Isola, ICML 2020, arXiv:2005.10242).

    Args:
        first, second: (N, D) floating point, row i of both a pair; brought to length one here.
        power: of the distance.

    Returns:
        float64 scalar; smaller is closer.
    """
    check_features("alignment", first, "first")
    check_features("alignment", second, "second")
    if first.shape != second.shape:
        raise ValueError(f"alignment expects pairs of one shape, got {tuple(first.shape)} and {tuple(second.shape)}")
    exponent = check_positive("alignment", "power", power)
    apart = normalize(first.double(), dim=1) - normalize(second.double(), dim=1)
    return apart.norm(dim=1).pow(exponent).mean()


def class_alignment(features: Tensor, labels: Tensor) -> Tensor:
    """`alignment` with power 2 over all pairs of different samples of one class, each pair counting the same.

    Args:
        features: (N, D) floating point.
        labels: (N,) int64 class ids.

    Raises:
        ValueError: no class has two samples.
    """
    check_features("class_alignment", features)
    check_labels("class_alignment", labels, len(features), int(labels.max()) + 1)
    rows = normalize(features.double(), dim=1)
    held = torch.bincount(labels)
    sums = rows.new_zeros(len(held), rows.shape[1]).index_add_(0, labels.long(), rows)
    # Over pairs of a class, sum |a - b|^2 = 2 n sum |a|^2 - 2 |sum a|^2, and every |a| is one.
    total = (2 * held.double().square() - 2 * sums.square().sum(1)).sum()
    pairs = (held * (held - 1)).sum()
    if int(pairs) == 0:
        raise ValueError("class_alignment expects a class of two samples or more, got none")
    return total / pairs


def uniformity(features: Tensor, temperature: float = 2.0) -> Tensor:
    """Log of the mean Gaussian potential over all pairs of different samples on the unit sphere (arXiv:2005.10242).

    Args:
        features: (N, D) floating point, N >= 2; brought to length one here.
        temperature: t in exp(-t |a - b|^2).

    Returns:
        float64 scalar, not positive; smaller is more evenly spread.
    """
    check_features("uniformity", features)
    count = check_whole("uniformity", "the number of features", len(features), least=2)
    t = check_positive("uniformity", "temperature", temperature)
    rows = normalize(features.double(), dim=1)
    total = rows.new_zeros(())
    for part in rows.split(_ROWS):
        total += (2 * t * (part @ rows.T - 1)).exp().sum()
    # A sample has the potential one with itself.
    return ((total - count) / (count * (count - 1))).log()


def intrusion(features: Tensor, labels: Tensor, weights: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
    """Whether a mixture lies where a class is at home that its label lacks (Guo et al., AAAI 2019, arXiv:1809.02499).

    Args:
        features: (B, D) floating point, of mixtures.
        labels: (B, M) int64 classes of the sources of each mixture.
        weights: (B, M) float shares of them in its label.
        means: (K, D) class means of unmixed samples.

    Returns:
        (B,) bool: the nearest class has no share in the label, manifold intrusion. (B,) bool: the nearest class is not
        the one that has most of the label, any of them where several do.

    Raises:
        TypeError, ValueError: other shapes, dtypes or values.
    """
    check_features("intrusion", features)
    if labels.ndim != 2 or labels.shape != weights.shape or len(labels) != len(features):
        raise ValueError(
            f"intrusion expects labels and weights ({len(features)}, M), got "
            f"{tuple(labels.shape)} and {tuple(weights.shape)}"
        )
    check_labels("intrusion", labels.flatten(), labels.numel(), len(means))
    shares = weights.new_zeros(len(features), len(means)).scatter_add_(1, labels.long(), weights)
    found = shares.gather(1, nearest_class(features, means)[:, None])[:, 0]
    return found <= 0, found < shares.max(1).values
