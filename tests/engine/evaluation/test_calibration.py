"""Calibration against slow twins in plain Python and NumPy, and against the authors' numbers in tests/golden."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss, log_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from helpers import seeded
from mixaug.engine.evaluation import calibration as measures


def drawn(samples, classes, scale, seed=0):
    generator = seeded(seed)
    logits = torch.randn(samples, classes, generator=generator) * scale
    return logits, torch.randint(classes, (samples,), generator=generator)


def slow_gaps(confidence, hits, edges):
    """(samples, |sum of confidence - sum of hits|) of each bin (edges[i], edges[i + 1]]; the first is closed below."""
    found = []
    for low, high in pairwise(edges):
        inside = [k for k, c in enumerate(confidence) if low < c <= high or (c <= low == edges[0])]
        found.append((len(inside), abs(sum(confidence[k] for k in inside) - sum(hits[k] for k in inside))))
    return found


@pytest.mark.parametrize(("samples", "classes", "scale", "bins"), [(7, 3, 1, 15), (211, 10, 3, 15), (90, 4, 0.2, 5)])
def test_binned_measures_agree_with_the_slow_twin(samples, classes, scale, bins):
    logits, labels = drawn(samples, classes, scale, samples)
    probabilities = logits.double().softmax(1)
    confidence, predicted = (each.tolist() for each in probabilities.max(1))
    hits = [float(p == y) for p, y in zip(predicted, labels.tolist(), strict=True)]
    width = slow_gaps(confidence, hits, np.linspace(0, 1, bins + 1).tolist())
    ordered = sorted(confidence)
    positions = np.linspace(0, samples, bins + 1)
    mass = slow_gaps(confidence, hits, np.interp(positions, range(samples), ordered).tolist())
    per_class = [
        sum(
            gap
            for _, gap in slow_gaps(
                probabilities[:, k].tolist(), (labels == k).double().tolist(), np.linspace(0, 1, bins + 1)
            )
        )
        for k in range(classes)
    ]
    expected = {
        "expected": sum(gap for _, gap in width) / samples,
        "mass": sum(gap for _, gap in mass) / samples,
        "maximum": max(gap / n for n, gap in width if n),
        "average": np.mean([gap / n for n, gap in width if n]),
        "classwise": sum(per_class) / samples / classes,
    }
    found = {
        "expected": measures.expected_calibration_error(probabilities, labels, bins),
        "mass": measures.expected_calibration_error(probabilities, labels, bins, "mass"),
        "maximum": measures.maximum_calibration_error(probabilities, labels, bins),
        "average": measures.average_calibration_error(probabilities, labels, bins),
        "classwise": measures.classwise_calibration_error(probabilities, labels, bins),
    }
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, abs=1e-12)


def test_no_sample_is_left_out_and_equal_confidences_share_a_bin():
    # The least confident sample is the whole error; half of the samples have one and the same confidence.
    probabilities = torch.tensor([[0.5, 0.5], *[[0.8, 0.2]] * 4, *[[1.0, 0.0]] * 3], dtype=torch.float64)
    labels = torch.tensor([1, *[0] * 7])
    for binning in measures.BINNINGS:
        found = measures.reliability(probabilities, labels, 4, binning)
        assert found.count.sum() == 8
        assert (found.count * found.confidence).sum() == pytest.approx(0.5 + 4 * 0.8 + 3)
    assert measures.reliability(probabilities, labels, 4, "mass", reference=True).count.sum() == 7
    assert measures.reliability(probabilities, labels, 8, "mass").count.tolist() == [5, 0, 0, 0, 3, 0, 0, 0]


def test_torchmetrics_agrees_where_no_network_is_quite_sure_and_not_where_it_is():
    logits, labels = drawn(300, 10, 2)
    found = measures.expected_calibration_error(logits.softmax(1), labels)
    theirs = multiclass_calibration_error(logits.softmax(1), labels, 10, n_bins=15)
    assert found.item() == pytest.approx(theirs.item(), abs=1e-6)
    # One sample is wrong with confidence 1, one right with 0.96: a single bin, whose gap is (1.96 - 1) / 2.
    sure = torch.tensor([[1.0, 0.0], [0.96, 0.04]])
    assert measures.expected_calibration_error(sure, torch.tensor([1, 0])).item() == pytest.approx(0.48, abs=1e-6)
    assert multiclass_calibration_error(sure, torch.tensor([1, 0]), 2, n_bins=15).item() == pytest.approx(
        0.52, abs=1e-6
    )


def test_scores_agree_with_scikit_learn_and_a_loop():
    logits, labels = drawn(150, 6, 2)
    probabilities = logits.double().softmax(1)
    one_hot = torch.nn.functional.one_hot(labels, 6)
    brier = sum(brier_score_loss(one_hot[:, k], probabilities[:, k]) for k in range(6))
    assert measures.brier_score(probabilities, labels).item() == pytest.approx(brier)
    assert measures.negative_log_likelihood(logits, labels).item() == pytest.approx(log_loss(labels, probabilities))
    confidence, predicted = probabilities.max(1)
    order = confidence.argsort().tolist()
    hits = (predicted == labels).double().tolist()
    bins = [order[:40], order[40:80], order[80:]]
    gaps = [(len(b), (sum(confidence[k] for k in b) - sum(hits[k] for k in b)) / len(b)) for b in bins]
    rms = math.sqrt(sum(n * gap**2 for n, gap in gaps) / 150)
    assert measures.rms_calibration_error(probabilities, labels, 40).item() == pytest.approx(rms)
    sure_first = [hits[k] for k in reversed(order)]
    areas = [sum(sure_first[: n + 1]) / (n + 1) for n in range(150)]
    assert measures.aurra(probabilities, labels).item() == pytest.approx(sum(areas) / 150)


@pytest.mark.parametrize("scale", [0.2, 1.0, 30.0])
def test_the_temperature_is_the_best_of_a_fine_grid_and_undoes_a_scale(scale):
    generator = seeded(3)
    logits = torch.randn(4000, 5, generator=generator, dtype=torch.float64) * 2
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    found = measures.fit_temperature(logits * scale, labels)
    # The labels are drawn from softmax(logits): within sampling error the scale itself is the answer.
    assert found == pytest.approx(scale, rel=0.06)
    grid = [found * factor for factor in (0.9, 0.99, 0.999, 1.001, 1.01, 1.1)]
    likelihood = [measures.negative_log_likelihood(logits * scale / t, labels).item() for t in [found, *grid]]
    assert min(likelihood) == likelihood[0]


def test_a_temperature_that_does_not_exist_is_said():
    logits = torch.eye(4) * 3
    with pytest.raises(ValueError, match=r"no temperature between 0.001 and 1000 .* all of them may be right"):
        measures.fit_temperature(logits, torch.arange(4))
    with pytest.raises(ValueError, match="no temperature"):
        measures.fit_temperature(logits, (torch.arange(4) + 1) % 4)


def test_all_measures_by_name_have_their_values():
    logits, labels = drawn(120, 4, 2)
    found = measures.calibration(logits, labels)
    probabilities = logits.double().softmax(1)
    assert found["ece_mass"] == measures.expected_calibration_error(probabilities, labels, 15, "mass").item()
    assert found["accuracy"] == (logits.argmax(1) == labels).double().mean().item()
    assert set(found) == {
        "ece",
        "ece_mass",
        "ece_classwise",
        "mce",
        "ace",
        "rms",
        "brier",
        "nll",
        "aurra",
        "confidence",
        "accuracy",
    }


def test_wrong_input_is_named():
    probabilities, labels = torch.full((3, 2), 0.5), torch.tensor([0, 1, 0])
    with pytest.raises(ValueError, match=r"expects probabilities in \[0, 1\], got values from 0.5 to 4"):
        measures.brier_score(torch.tensor([[0.5, 4.0]]), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"labels \(3,\) beside 3 samples, got \(2,\)"):
        measures.reliability(probabilities, labels[:2])
    with pytest.raises(ValueError, match=r"class ids in \[0, 2\), got values from 0 to 2"):
        measures.reliability(probabilities, labels * 2)
    with pytest.raises(TypeError, match="integer class ids"):
        measures.negative_log_likelihood(probabilities, labels.float())
    with pytest.raises(ValueError, match="binning 'width' or 'mass'"):
        measures.reliability(probabilities, labels, 15, "size")
    with pytest.raises(ValueError, match="NaN or infinity in 1 samples"):
        measures.fit_temperature(torch.tensor([[0.0, math.nan], [0.0, 1.0]]), labels[:2])
