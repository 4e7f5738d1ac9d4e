"""The arithmetic of a row against hand-worked numbers and theory."""

import math
import random

import numpy as np
import pytest
from scipy import stats

from mixaug.leaderboard.statistics import (
    holm,
    mean_interval,
    paired_difference,
    paired_p_value,
    ratio_of_medians,
    summarise,
)


def test_mean_and_standard_deviation_by_hand():
    summary = summarise([90.0, 92.0, 94.0])
    assert (summary.mean, summary.std, summary.n) == (92.0, 2.0, 3)
    assert summarise([5.0]).std is None
    with pytest.raises(ValueError, match="at least one value"):
        summarise([])


def test_paired_interval_by_hand():
    # Differences 1, 2, 3: mean 2, s = 1, t(0.975, 2) = 4.302653.
    paired = paired_difference({0: 91, 1: 93, 2: 95}, {0: 90, 1: 91, 2: 92})
    half = 4.302652729911275 / math.sqrt(3)
    assert paired.mean == 2
    assert paired.low == pytest.approx(2 - half)
    assert paired.high == pytest.approx(2 + half)
    assert paired.verdict == "unclear"
    assert paired_difference({0: 2.0, 1: 2.1, 2: 1.9}, {0: 1, 1: 1, 2: 1}).verdict == "better"
    assert paired_difference({0: 1, 1: 1, 2: 1}, {0: 2.0, 1: 2.1, 2: 1.9}).verdict == "worse"


def test_only_common_seeds_are_compared_and_the_others_named():
    paired = paired_difference({0: 5, 1: 6, 7: 9}, {1: 4, 7: 7, 8: 1})
    assert (paired.mean, paired.n, paired.seeds) == (2, 2, (1, 7))
    assert paired.missing_ours == (8,)
    assert paired.missing_baseline == (0,)
    assert paired_difference({0: 1}, {1: 1}) is None
    single = paired_difference({0: 3}, {0: 1})
    assert (single.mean, single.low, single.verdict) == (2, None, "unclear")


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_interval_covers_as_often_as_it_says(confidence):
    noise, covered, rounds = random.Random(3), 0, 3000
    for _ in range(rounds):
        low, high = mean_interval([noise.gauss(0.7, 0.4) for _ in range(5)], confidence)
        covered += low <= 0.7 <= high
    assert abs(covered / rounds - confidence) < 4 * math.sqrt(confidence * (1 - confidence) / rounds)


def test_pairing_removes_what_the_seed_adds():
    noise = random.Random(5)
    luck = {seed: noise.gauss(0, 3) for seed in range(8)}
    paired = paired_difference({s: v + 1 + noise.gauss(0, 0.1) for s, v in luck.items()}, luck)
    assert paired.verdict == "better"
    assert paired.high - paired.low < 0.5


def test_ratio_of_medians_ignores_one_slow_run():
    assert ratio_of_medians({0: 11, 1: 11, 2: 500}, {0: 10, 1: 10, 2: 10}) == 1.1
    assert ratio_of_medians({0: 1}, {1: 1}) is None
    assert ratio_of_medians({0: 1}, {0: 0}) is None


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_bad_confidence(confidence):
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        paired_difference({0: 1, 1: 2}, {0: 1, 1: 2}, confidence)


@pytest.mark.parametrize(("n", "confidence"), [(3, 0.95), (5, 0.95), (5, 0.5), (10, 0.99)])
def test_the_interval_covers_the_true_difference_as_often_as_it_says(n, confidence):
    trials, truth = 1500, 0.7
    random = np.random.default_rng(0)
    shared = random.normal(90, 3, (trials, n))
    ours = shared + truth + random.normal(0, 0.4, (trials, n))
    theirs = shared + random.normal(0, 0.3, (trials, n))
    covered = 0
    for ours_row, theirs_row in zip(ours, theirs, strict=True):
        difference = paired_difference(dict(enumerate(ours_row)), dict(enumerate(theirs_row)), confidence)
        covered += difference.low <= truth <= difference.high
    standard_error = math.sqrt(confidence * (1 - confidence) / trials)
    assert abs(covered / trials - confidence) < 4 * standard_error


def test_the_p_value_is_that_of_scipy_and_agrees_with_the_interval():
    generator = np.random.default_rng(1)
    for count in (2, 3, 8):
        pair = generator.normal(0.5, 1, (2, count))
        ours, baseline = ({seed: float(value) for seed, value in enumerate(row)} for row in pair)
        found = paired_p_value(ours, baseline)
        assert found == pytest.approx(stats.ttest_rel(*pair).pvalue)
        # The interval at one minus p touches zero.
        difference = paired_difference(ours, baseline, 1 - found)
        assert min(abs(difference.low), abs(difference.high)) == pytest.approx(0, abs=1e-6)
    assert paired_p_value({0: 1, 1: 2}, {0: 1, 1: 2}) == 1
    assert paired_p_value({0: 2, 1: 3}, {0: 1, 1: 2}) is None
    # 0.3 - 0.1 and 0.9 - 0.7 differ by a rounding alone.
    assert paired_p_value({0: 0.3, 1: 0.9}, {0: 0.1, 1: 0.7}) is None
    assert paired_p_value({0: 1}, {0: 2}) is None
    assert paired_p_value({0: 1, 1: 3}, {1: 2, 2: 4}) is None


def test_holm_by_hand():
    # 0.01 * 4, 0.02 * 3, 0.03 * 2, and the last one, which may not fall below the one before it.
    assert holm([0.02, 0.01, 0.055, 0.03]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        holm([1.2])


def test_holm_keeps_the_chance_of_any_wrong_call_though_the_tests_hang_together():
    generator = np.random.default_rng(0)
    trials, wrong, wrong_without = 3000, 0, 0
    # Ten measures of four seeds, all without an effect; half of what they see is the same.
    values = generator.normal(size=(trials, 10, 4)) + generator.normal(size=(trials, 1, 4))
    p_values = stats.ttest_1samp(values, 0, axis=2).pvalue
    for row in p_values.tolist():
        wrong += min(holm(row)) <= 0.05
        wrong_without += min(row) <= 0.05
    assert wrong / trials <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / trials)
    assert wrong_without / trials > 0.15


def test_without_a_spread_or_below_the_measures_step_there_is_no_verdict():
    # All differences are 2, of which rounding leaves some spread in the second pair.
    for ours, theirs in (({0: 3.0, 1: 4.0}, {0: 1.0, 1: 2.0}), ({0: 2.3, 1: 2.9}, {0: 0.3, 1: 0.9})):
        paired = paired_difference(ours, theirs)
        assert (paired.std, paired.is_resolved, paired.verdict) == (0, False, "unclear")
        assert paired_difference(theirs, ours).verdict == "unclear"
    # The spread is 0.1, its t interval 2 +- 0.25.
    pair = {0: 2.0, 1: 2.1, 2: 1.9}, {0: 0.0, 1: 0.0, 2: 0.0}
    for step, verdict in ((0.0, "better"), (0.1, "better"), (0.1001, "unclear")):
        assert paired_difference(*pair, step=step).verdict == verdict
    with pytest.raises(ValueError, match="step: expected a finite number of at least 0, got -1"):
        paired_difference(*pair, step=-1)


def test_two_seeds_on_few_images_are_not_called_wrongly_more_often_than_they_may():
    """Two equally good policies on 797 images: each is right on four or so that the other one misses."""
    generator = np.random.default_rng(0)
    trials, step = 3000, 100 / 797
    only_ours, only_theirs = generator.poisson(4, (2, trials, 2))
    both = generator.integers(650, 720, (trials, 2))
    pairs = [
        tuple(dict(enumerate((step * row).tolist())) for row in rows)
        for rows in zip(both + only_ours, both + only_theirs, strict=True)
    ]
    plain = [paired_difference(*pair) for pair in pairs]
    of_no_width = [paired.high - paired.low < 1e-9 and abs(paired.mean) > 1e-9 for paired in plain]
    by_interval = [paired.low > 0 or paired.high < 0 for paired in plain]
    called = [paired_difference(*pair, step=step).verdict != "unclear" for pair in pairs]
    allowed = 0.05 + 4 * math.sqrt(0.05 * 0.95 / trials)
    assert np.mean(of_no_width) > 0.05  # which is why the interval alone is wrong too often
    assert np.mean(by_interval) > allowed
    assert np.mean(called) <= allowed
