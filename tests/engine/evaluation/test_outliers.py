"""Outlier scores and their ranking measures against scikit-learn, SciPy and counting."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.covariance import EmpiricalCovariance
from sklearn.metrics import average_precision_score, roc_auc_score

from helpers import seeded
from mixaug.engine.evaluation import outliers


def scores(inside, outside, ties, seed=0):
    generator = seeded(seed)
    both = torch.randn(inside, generator=generator), torch.randn(outside, generator=generator) + 1
    return [(each * 3).round() / 3 if ties else each for each in both]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("inside", "outside"), [(57, 91), (20, 1), (1, 40)])
def test_ranking_measures_agree_with_scikit_learn(inside, outside, ties):
    found_in, found_out = scores(inside, outside, ties)
    values = torch.cat([found_in, found_out]).double().numpy()
    truth = np.r_[np.zeros(inside), np.ones(outside)]
    assert outliers.auroc(found_in, found_out).item() == pytest.approx(roc_auc_score(truth, values))
    expected = average_precision_score(truth, values), average_precision_score(1 - truth, -values)
    got = [outliers.average_precision(found_in, found_out, positive).item() for positive in ("outliers", "inliers")]
    assert got == pytest.approx(expected)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("inside", "outside"), [(60, 100), (37, 43), (3, 2)])
def test_both_conventions_of_fpr95_by_trying_every_threshold(inside, outside, ties):
    found_in, found_out = scores(inside, outside, ties, seed=inside)

    def smallest(positives, negatives):
        fit = [t for t in positives + negatives if sum(p >= t for p in positives) >= 0.95 * len(positives)]
        return min(sum(n >= t for n in negatives) / len(negatives) for t in fit)

    kept = smallest((-found_in).tolist(), (-found_out).tolist())
    flagged = smallest(found_out.tolist(), found_in.tolist())
    assert outliers.fpr_at_recall(found_in, found_out).item() == pytest.approx(kept)
    assert outliers.fpr_at_recall(found_in, found_out, positive="outliers").item() == pytest.approx(flagged)


def test_the_conventions_differ_and_are_told_apart_by_name():
    # A tenth of the inliers look like outliers; the outliers are spread.
    inside = torch.cat([torch.zeros(18), torch.full((2,), 9.0)])
    outside = torch.arange(20.0)
    found = outliers.detection(inside, outside)
    assert found["fpr95"] == 0.5  # to keep 19 of 20 inliers, all scores up to 9 must pass
    assert found["fpr95_outliers_positive"] == pytest.approx(0.1)
    assert set(found) == {"auroc", "aupr_out", "aupr_in", "fpr95", "fpr95_outliers_positive"}


def test_large_scores_do_not_become_ties():
    # A sigmoid would make 1 of all of these in float32.
    assert outliers.auroc(torch.tensor([40.0, 41.0]), torch.tensor([42.0, 43.0])).item() == 1
    logits = torch.tensor([[20.0, 0.0], [25.0, 0.0]])
    assert outliers.msp(logits).unique().numel() == 2


def test_scores_of_logits_by_hand():
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.0, 0.0, 0.0]])
    rows = logits.double().tolist()
    sums = [sum(math.exp(z) for z in row) for row in rows]
    halves = [2 * math.log(sum(math.exp(z / 2) for z in row)) for row in rows]
    assert outliers.msp(logits).tolist() == pytest.approx(
        [-math.exp(max(r)) / s for r, s in zip(rows, sums, strict=True)]
    )
    assert outliers.energy(logits).tolist() == pytest.approx([-math.log(s) for s in sums])
    assert outliers.energy(logits, 2.0).tolist() == pytest.approx([-value for value in halves])
    assert outliers.max_logit(logits).tolist() == [-2, 0]


def test_scores_of_features_agree_with_scikit_learn_and_scipy(monkeypatch):
    generator = seeded(1)
    bank, labels = torch.randn(90, 6, generator=generator), torch.arange(90) % 4
    features = torch.randn(25, 6, generator=generator) * 2
    means, covariance = outliers.class_statistics(bank, labels, 4)
    expected_means = torch.stack([bank[labels == k].double().mean(0) for k in range(4)])
    torch.testing.assert_close(means, expected_means)
    estimate = EmpiricalCovariance(assume_centered=True).fit((bank.double() - expected_means[labels]).numpy())
    distances = [estimate.mahalanobis((features.double() - mean).numpy()) for mean in expected_means]
    torch.testing.assert_close(
        outliers.mahalanobis(features, means, covariance), torch.from_numpy(np.min(distances, 0))
    )
    unit = [torch.nn.functional.normalize(each.double(), dim=1).numpy() for each in (features, bank)]
    nearest = np.sort(cdist(*unit), 1)[:, 6]
    torch.testing.assert_close(outliers.knn(features, bank, 7), torch.from_numpy(nearest))
    monkeypatch.setattr(outliers, "_ROWS", 10)  # in several pieces it is the same
    torch.testing.assert_close(outliers.knn(features, bank, 7), torch.from_numpy(nearest))


def test_features_of_less_than_full_rank_have_a_distance():
    bank = torch.randn(40, 3, generator=seeded(2), dtype=torch.float64)
    means, covariance = outliers.class_statistics(bank, torch.arange(40) % 2, 2)
    doubled = torch.cat([bank, bank], 1)
    means2, covariance2 = outliers.class_statistics(doubled, torch.arange(40) % 2, 2)
    torch.testing.assert_close(
        outliers.mahalanobis(doubled, means2, covariance2), outliers.mahalanobis(bank, means, covariance)
    )


def test_wrong_input_is_named():
    values = torch.zeros(3)
    with pytest.raises(ValueError, match=r"outliers \(N,\) with at least one score"):
        outliers.auroc(values, torch.zeros(0))
    with pytest.raises(ValueError, match="inliers without NaN"):
        outliers.auroc(torch.tensor([math.nan]), values)
    with pytest.raises(ValueError, match="positive 'inliers' or 'outliers'"):
        outliers.fpr_at_recall(values, values, positive="ood")
    with pytest.raises(ValueError, match=r"samples of all 3 classes, got none of \[1\]"):
        outliers.class_statistics(torch.ones(2, 2), torch.tensor([0, 2]), 3)
    with pytest.raises(ValueError, match="neighbours of at most 2, got 3: the bank has no more samples"):
        outliers.knn(torch.ones(1, 2), torch.ones(2, 2), 3)
    with pytest.raises(ValueError, match=r"means \(K, 2\) and covariance \(2, 2\)"):
        outliers.mahalanobis(torch.ones(1, 2), torch.ones(2, 3), torch.eye(2))
