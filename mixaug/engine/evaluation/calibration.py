"""Calibration: does a classifier that says 80 % hold in 80 of 100 cases?

    ECE = sum_b n_b / N * |mean confidence_b - accuracy_b|         confidence = largest softmax probability

Guo et al., "On Calibration of Modern Neural Networks", ICML 2017 (arXiv:1706.04599); adaptive and classwise forms:
Nixon et al., 2019 (arXiv:1904.01685). Everything is computed in float64. torchmetrics has the expected and the maximum
error, in float32 and with a bin of its own for confidences of exactly 1, so that it departs from the definition on
networks that are very sure; the other measures it does not have.

Differs from published code: bins of equal mass keep the least confident sample, and the error over bins of equal
count keeps the last bin; both are left out by the reference, and with ``reference=True`` here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mixaug.checks import check_choice, check_whole
from mixaug.engine.evaluation.inputs import check_labels, check_logits
from mixaug.frozen import BriefRepr

__all__ = [
    "Reliability",
    "aurra",
    "average_calibration_error",
    "brier_score",
    "calibration",
    "classwise_calibration_error",
    "expected_calibration_error",
    "fit_temperature",
    "maximum_calibration_error",
    "negative_log_likelihood",
    "reliability",
    "rms_calibration_error",
]

BINS = 15
BINNINGS = ("width", "mass")


@dataclass(frozen=True, eq=False)
class Reliability(BriefRepr):
    """What a reliability diagram shows.

    Attributes:
        edges: (bins + 1,) float64, ascending; bin i holds confidences in (edges[i], edges[i + 1]].
        count: (bins,) float64 number of samples.
        confidence: (bins,) float64 mean confidence, 0 in an empty bin.
        accuracy: (bins,) float64 share of right answers, 0 in an empty bin.
    """

    edges: Tensor
    count: Tensor
    confidence: Tensor
    accuracy: Tensor

    @property
    def gap(self) -> Tensor:
        """(bins,) float64 |confidence - accuracy|."""
        return (self.confidence - self.accuracy).abs()


def reliability(
    probabilities: Tensor, labels: Tensor, bins: int = BINS, binning: str = "width", *, reference: bool = False
) -> Reliability:
    """Confidence and accuracy by bins of confidence.

    Args:
        probabilities: (N, K) floating point in [0, 1].
        labels: (N,) int64 class ids.
        bins: number of bins.
        binning: "width", bins of equal width; "mass", bins of equally many samples, whose edges lie between the
            sorted confidences by linear interpolation. Equal confidences share a bin.
        reference: leave the least confident sample out of bins of equal mass, as published code does.

    Raises:
        TypeError, ValueError: other shapes, dtypes, values or options.
    """
    what = "reliability"
    _check(what, probabilities, labels)
    count = check_whole(what, "bins", bins)
    check_choice(what, "binning", binning, BINNINGS)
    confidence, predicted = probabilities.double().max(1)
    correct = (predicted == labels).double()
    edges = _edges(confidence, count, binning)
    place = torch.bucketize(confidence, edges) - 1
    if reference and binning == "mass":
        kept = place >= 0
        place, confidence, correct = place[kept], confidence[kept], correct[kept]
    place = place.clamp(0, count - 1)
    held, sure, right = (
        torch.bincount(place, each, count) for each in (torch.ones_like(confidence), confidence, correct)
    )
    divisor = held.clamp_min(1)
    return Reliability(edges, held, sure / divisor, right / divisor)


def expected_calibration_error(
    probabilities: Tensor, labels: Tensor, bins: int = BINS, binning: str = "width", *, reference: bool = False
) -> Tensor:
    """Mean gap between confidence and accuracy, weighted by the samples of each bin; arguments as `reliability`.

    Returns:
        float64 scalar in [0, 1].
    """
    found = reliability(probabilities, labels, bins, binning, reference=reference)
    return (found.count * found.gap).sum() / len(labels)


def maximum_calibration_error(
    probabilities: Tensor, labels: Tensor, bins: int = BINS, binning: str = "width"
) -> Tensor:
    """Largest gap of a bin; a bin of few samples decides it easily. float64 scalar in [0, 1]."""
    return reliability(probabilities, labels, bins, binning).gap.max()


def average_calibration_error(
    probabilities: Tensor, labels: Tensor, bins: int = BINS, binning: str = "width"
) -> Tensor:
    """Mean gap over the bins that hold samples, each counting the same. float64 scalar in [0, 1]."""
    found = reliability(probabilities, labels, bins, binning)
    return found.gap.sum() / (found.count > 0).sum()


def classwise_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = BINS) -> Tensor:
    """Mean over the classes of the calibration error of "it is class k", in bins of equal width of its probability.

    Every column counts, one whose class has no samples too: its probabilities should then be 0.

    Args:
        probabilities: (N, K) floating point in [0, 1].
        labels: (N,) int64 class ids.
        bins: number of bins.

    Returns:
        float64 scalar in [0, 1].
    """
    _check("classwise_calibration_error", probabilities, labels)
    count = check_whole("classwise_calibration_error", "bins", bins)
    values = probabilities.double()
    samples, classes = values.shape
    hits = F.one_hot(labels.long(), classes).double()
    edges = torch.linspace(0, 1, count + 1, dtype=torch.float64, device=values.device)
    place = (torch.bucketize(values, edges) - 1).clamp(0, count - 1)
    place = place + count * torch.arange(classes, device=values.device)
    gaps = torch.bincount(place.flatten(), (values - hits).flatten(), classes * count)
    return gaps.abs().sum() / (samples * classes)


def rms_calibration_error(
    probabilities: Tensor, labels: Tensor, bin_size: int = 100, *, reference: bool = False
) -> Tensor:
    """Root of the mean square gap over bins of equally many samples (Hendrycks et al., PixMix, arXiv:2112.05135).

    Args:
        probabilities: (N, K) floating point in [0, 1].
        labels: (N,) int64 class ids.
        bin_size: samples in a bin, in order of confidence; the last bin takes the rest as well.
        reference: leave the last, most confident bin out of the sum, as published code does.

    Returns:
        float64 scalar in [0, 1].
    """
    _check("rms_calibration_error", probabilities, labels)
    size = check_whole("rms_calibration_error", "bin_size", bin_size)
    confidence, correct = _ordered(probabilities, labels)
    samples = len(confidence)
    bins = max(samples // size, 1)
    place = (torch.arange(samples, device=confidence.device) // size).clamp_max(bins - 1)
    sums = torch.bincount(place, confidence - correct, bins)
    counts = torch.bincount(place, minlength=bins)
    squares = sums.square() / counts
    return (squares[: bins - 1] if reference else squares).sum().div(samples).sqrt()


def aurra(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Mean accuracy among the most confident 1, 2, ... N samples (arXiv:1907.07174); larger is better, in [0, 1]."""
    _check("aurra", probabilities, labels)
    _, correct = _ordered(probabilities, labels)
    most_sure_first = correct.flip(0)
    answered = torch.arange(1, len(correct) + 1, dtype=torch.float64, device=correct.device)
    return (most_sure_first.cumsum(0) / answered).mean()


def brier_score(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Mean over the samples of the squared distance to the one-hot label, summed over classes: float64 in [0, 2]."""
    _check("brier_score", probabilities, labels)
    values = probabilities.double()
    return (values - F.one_hot(labels.long(), values.shape[1])).square().sum(1).mean()


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy in nats, float64.

    Args:
        logits: (N, K) floating point, finite.
        labels: (N,) int64 class ids.
    """
    check_logits("negative_log_likelihood", logits, labels)
    return F.cross_entropy(logits.double(), labels.long())


LEAST_TEMPERATURE, MOST_TEMPERATURE = 1e-3, 1e3


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T > 0 that minimises the negative log-likelihood of ``logits / T`` (arXiv:1706.04599, 4.2).

    The likelihood is convex in 1 / T, so halving an interval of log T finds the minimum; the released optimiser stops
    short of it. Fit on held-out samples that were not mixed; scaling changes no prediction. A network that is not sure
    enough, as after mixed training, gets T < 1.

    Args:
        logits: (N, K) floating point, finite, of held-out samples.
        labels: (N,) int64 class ids.

    Raises:
        TypeError, ValueError: other shapes, dtypes or values.
        ValueError: no minimum between 0.001 and 1000: every sample is right, or none tells anything.
    """
    check_logits("fit_temperature", logits, labels)
    values = logits.double()
    own = values.gather(1, labels.long()[:, None]).squeeze(1)

    def slope(inverse: Tensor) -> Tensor:
        """Derivative of the mean negative log-likelihood by 1 / T, ascending in 1 / T."""
        return ((values * inverse).softmax(1).mul(values).sum(1) - own).mean()

    low, high = (values.new_tensor(1 / edge).log() for edge in (MOST_TEMPERATURE, LEAST_TEMPERATURE))
    if not bool((slope(low.exp()) < 0) & (slope(high.exp()) > 0)):
        raise ValueError(
            f"fit_temperature found no temperature between {LEAST_TEMPERATURE:g} and {MOST_TEMPERATURE:g} that "
            f"minimises the likelihood of these {len(labels)} samples: all of them may be right, or the logits may say "
            "nothing of the labels"
        )
    for _ in range(60):
        middle = (low + high) / 2
        falls = slope(middle.exp()) < 0
        low, high = torch.where(falls, middle, low), torch.where(falls, high, middle)
    return float((-(low + high) / 2).exp())


def calibration(logits: Tensor, labels: Tensor, bins: int = BINS) -> dict[str, float]:
    """Every measure of this module by name, of logits (N, K) and labels (N,)."""
    check_logits("calibration", logits, labels)
    probabilities = logits.double().softmax(1)
    numbers = {
        "ece": expected_calibration_error(probabilities, labels, bins),
        "ece_mass": expected_calibration_error(probabilities, labels, bins, "mass"),
        "ece_classwise": classwise_calibration_error(probabilities, labels, bins),
        "mce": maximum_calibration_error(probabilities, labels, bins),
        "ace": average_calibration_error(probabilities, labels, bins),
        "rms": rms_calibration_error(probabilities, labels),
        "brier": brier_score(probabilities, labels),
        "nll": negative_log_likelihood(logits, labels),
        "aurra": aurra(probabilities, labels),
        "confidence": probabilities.max(1).values.mean(),
        "accuracy": (probabilities.argmax(1) == labels).double().mean(),
    }
    return dict(zip(numbers, torch.stack(list(numbers.values())).tolist(), strict=True))


def _edges(confidence: Tensor, bins: int, binning: str) -> Tensor:
    if binning == "width":
        return torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=confidence.device)
    ordered = confidence.sort().values
    last = len(ordered) - 1
    position = torch.linspace(0, len(ordered), bins + 1, dtype=torch.float64, device=confidence.device).clamp_max(last)
    below = position.floor().long()
    return torch.lerp(ordered[below], ordered[(below + 1).clamp_max(last)], position - below)


def _ordered(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Confidences, ascending, and whether each is right; both (N,) float64."""
    confidence, predicted = probabilities.double().max(1)
    order = confidence.argsort(stable=True)
    return confidence[order], (predicted == labels).double()[order]


def _check(what: str, probabilities: Tensor, labels: Tensor) -> None:
    check_logits(what, probabilities, name="probabilities")
    low, high = probabilities.aminmax()
    # Softmax in half precision may overshoot by a rounding.
    if bool((low < 0) | (high > 1 + 1e-3)):
        raise ValueError(
            f"{what} expects probabilities in [0, 1], got values from {float(low):g} to {float(high):g}; "
            "of logits take logits.softmax(1)"
        )
    check_labels(what, labels, *probabilities.shape)
