"""The arithmetic of a leaderboard row: mean, spread, and a paired comparison with the baseline.

The comparison is paired because a seed fixes the initial weights and the order of the data for every policy: what the
seed alone adds to an accuracy is in both members of a pair and leaves their difference. The interval is Student's

    d +- t(1 - (1 - c) / 2, n - 1) * s_d / sqrt(n)

over the n differences, with d their mean and s_d their standard deviation (ddof = 1).

It takes the differences for draws from a normal distribution. An accuracy counts samples and so moves in steps of
100 / N points. Where the steps are coarser than the spread, a few seeds agree by chance, s_d is far too small or zero,
and the interval is sure of anything: such a comparison has no verdict.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

__all__ = [
    "PairedDifference",
    "Summary",
    "difference_p_value",
    "holm",
    "mean_interval",
    "paired_difference",
    "paired_p_value",
    "ratio_of_medians",
    "summarise",
]


@dataclass(frozen=True)
class Summary:
    """Mean, sample standard deviation (None below two values) and count."""

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True)
class PairedDifference:
    """Mean of the per-seed differences, its confidence interval and the seeds it rests on.

    ``low`` and ``high`` are None with a single common seed: one difference says nothing about its own spread.
    ``std`` is the standard deviation of the differences, ``step`` the smallest change that the measure can show.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    seeds: tuple[int, ...]
    missing_ours: tuple[int, ...]  # seeds only the baseline has
    missing_baseline: tuple[int, ...]  # seeds only we have
    confidence: float
    higher_is_better: bool = True
    std: float | None = None
    step: float = 0.0

    @property
    def is_resolved(self) -> bool:
        """Whether the differences have a spread, and one that is not below the step of the measure."""
        return self.std is not None and self.std > 0 and self.std >= self.step * (1 - 1e-9)

    @property
    def verdict(self) -> str:
        """``"better"`` or ``"worse"`` when the interval excludes zero, ``"unclear"`` otherwise.

        Also ``"unclear"`` where the spread is zero, or the step of the measure coarser than it.
        """
        if self.low is None or self.high is None or not self.is_resolved:
            return "unclear"
        if self.low > 0:
            return "better" if self.higher_is_better else "worse"
        if self.high < 0:
            return "worse" if self.higher_is_better else "better"
        return "unclear"


def summarise(values: Sequence[float]) -> Summary:
    """Mean and standard deviation (ddof = 1) of at least one value.

    Raises:
        ValueError: without values.
    """
    if len(values) == 0:
        raise ValueError("summarise: expected at least one value, got none")
    std = statistics.stdev(values) if len(values) > 1 else None
    return Summary(mean=statistics.fmean(values), std=std, n=len(values))


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Student-t interval (low, high) of the mean, or None below two values.

    Raises:
        ValueError: if ``confidence`` is not strictly between 0 and 1, or without values.
    """
    summary = summarise(values)
    if summary.std is None:
        return None
    half = _quantile(confidence, summary.n - 1) * summary.std / math.sqrt(summary.n)
    return summary.mean - half, summary.mean + half


def paired_difference(
    ours: Mapping[int, float],
    baseline: Mapping[int, float],
    confidence: float = 0.95,
    *,
    higher_is_better: bool = True,
    step: float = 0.0,
) -> PairedDifference | None:
    """Difference ours - baseline over the seeds that both have, with its interval; None without a common seed.

    Args:
        ours: value per seed.
        baseline: value per seed.
        confidence: coverage of the interval, in (0, 1).
        higher_is_better: which sign is good; errors have it the other way round.
        step: the smallest change that the measure can show, in its unit: 100 / N for a share of N samples in percent.
            0 for a measure that has none, or where it is not known.

    Raises:
        ValueError: if ``confidence`` is not strictly between 0 and 1, or ``step`` is negative or not finite.
    """
    _check_confidence(confidence)
    if not 0 <= step < math.inf:
        raise ValueError(f"step: expected a finite number of at least 0, got {step!r}")
    common = tuple(sorted(set(ours) & set(baseline)))
    if not common:
        return None
    differences = [ours[seed] - baseline[seed] for seed in common]
    summary, interval = summarise(differences), mean_interval(differences, confidence)
    low, high = interval if interval is not None else (None, None)
    return PairedDifference(
        mean=summary.mean,
        low=low,
        high=high,
        n=len(common),
        seeds=common,
        missing_ours=tuple(sorted(set(baseline) - set(ours))),
        missing_baseline=tuple(sorted(set(ours) - set(baseline))),
        confidence=confidence,
        higher_is_better=higher_is_better,
        std=_without_rounding(summary.std, [values[seed] for values in (ours, baseline) for seed in common]),
        step=step,
    )


def paired_p_value(ours: Mapping[int, float], baseline: Mapping[int, float]) -> float | None:
    """Two-sided p value of Student's paired test over the seeds that both have; None below two of them.

    Where all differences are zero it is 1. Where all are equal and not zero it is None: scores that count samples can
    agree by chance, and without a spread the test would be sure of anything.
    """
    common = sorted(set(ours) & set(baseline))
    if len(common) < 2:
        return None
    differences = summarise([ours[seed] - baseline[seed] for seed in common])
    values = [values[seed] for values in (ours, baseline) for seed in common]
    std = _without_rounding(differences.std, values)
    if not std:
        return None if _without_rounding(abs(differences.mean), values) else 1.0
    from scipy import stats  # heavy, and only needed once there are two seeds

    ratio = abs(differences.mean) / (std / math.sqrt(differences.n))
    return float(2 * stats.t.sf(ratio, differences.n - 1))


def difference_p_value(difference: PairedDifference, ours: Mapping[int, float], baseline: Mapping[int, float]) -> float:
    """`paired_p_value` of two or more common seeds; 1 where the difference has no verdict whatever its size.

    So it counts as a test among others and is never significant.
    """
    p_value = paired_p_value(ours, baseline) if difference.is_resolved else None
    return 1.0 if p_value is None else p_value


def _without_rounding(number: float | None, values: Sequence[float]) -> float | None:
    """The number, zero where it is no more than what is left of equal differences of these values after rounding."""
    if number is None:
        return None
    return 0.0 if number <= 1e-12 * max(map(abs, values)) else number


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values of several tests at once (Holm, Scandinavian Journal of Statistics 1979).

    Calling those at most a significant keeps the chance of any wrong call at a, however the tests hang together.

    Args:
        p_values: one for each test, in [0, 1].

    Returns:
        The adjusted ones, in the same order, each in [0, 1] and not below its own.

    Raises:
        ValueError: a value outside [0, 1].
    """
    if any(not 0 <= p <= 1 for p in p_values):
        raise ValueError(f"holm: expected p values in [0, 1], got {list(p_values)}")
    adjusted = [0.0] * len(p_values)
    floor = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        floor = max(floor, min((len(p_values) - rank) * p_values[index], 1.0))
        adjusted[index] = floor
    return adjusted


def ratio_of_medians(ours: Mapping[int, float], baseline: Mapping[int, float]) -> float | None:
    """median(ours) / median(baseline) over the common seeds; None without one, or when the baseline's median is 0."""
    common = set(ours) & set(baseline)
    if not common:
        return None
    below = statistics.median(baseline[seed] for seed in common)
    if below == 0:
        return None
    return statistics.median(ours[seed] for seed in common) / below


def _check_confidence(confidence: float) -> None:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence: expected a number strictly between 0 and 1, got {confidence!r}")


@cache
def _quantile(confidence: float, degrees: int) -> float:
    _check_confidence(confidence)
    from scipy import stats  # heavy, and only needed once there are two seeds

    return float(stats.t.ppf(0.5 + confidence / 2, degrees))
