"""Geometry of features against NumPy by definition, and in cases whose answer is known."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from helpers import seeded
from mixaug.engine.evaluation import geometry


def drawn(samples=60, width=7, classes=4):
    generator = seeded(samples)
    labels = torch.arange(samples) % classes
    features = (
        torch.randn(samples, width, generator=generator) + 2 * torch.randn(classes, width, generator=generator)[labels]
    )
    return features, labels, torch.randn(classes, width, generator=generator), torch.randn(classes, generator=generator)


@pytest.mark.parametrize("width", [7, 2])
def test_neural_collapse_by_definition(width):
    features, labels, weight, bias = drawn(width=width)
    h, y, w, b = (
        each.double().numpy() if each.is_floating_point() else each.numpy() for each in (features, labels, weight, bias)
    )
    means = np.stack([h[y == k].mean(0) for k in range(4)])
    centred = means - means.mean(0)
    within = sum(np.outer(row - means[k], row - means[k]) for row, k in zip(h, y, strict=True)) / len(h)
    between = sum(np.outer(row, row) for row in centred) / 4
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]

    def angles(v):
        return np.mean([abs(v[i] @ v[j] / np.linalg.norm(v[i]) / np.linalg.norm(v[j]) + 1 / 3) for i, j in pairs])

    def lengths(v):
        return np.std(np.linalg.norm(v, axis=1), ddof=1) / np.mean(np.linalg.norm(v, axis=1))

    predicted = (h @ w.T + b).argmax(1)
    nearest = np.array([np.linalg.norm(means - row, axis=1).argmin() for row in h])
    expected = {
        "nc1": np.trace(within @ np.linalg.pinv(between, rcond=1e-9)),
        "nc2_norm_means": lengths(centred),
        "nc2_norm_weights": lengths(w),
        "nc2_angle_means": angles(centred),
        "nc2_angle_weights": angles(w),
        "nc3": np.square(w / np.linalg.norm(w) - centred / np.linalg.norm(centred)).sum(),
        "nc4": np.mean(nearest != predicted),
        "accuracy": np.mean(predicted == y),
    }
    assert geometry.neural_collapse(features, labels, weight, bias) == pytest.approx(expected, rel=1e-6)


def test_perfect_collapse_is_zero():
    corners = torch.eye(5, dtype=torch.float64) - 0.2
    labels = torch.arange(20) % 5
    found = geometry.neural_collapse(corners[labels] * 3 + 1, labels, corners, -corners.sum(1))
    assert found.pop("accuracy") == 1
    assert found == pytest.approx(dict.fromkeys(found, 0.0), abs=1e-12)


def test_alignment_and_uniformity_over_all_pairs():
    features, labels, *_ = drawn(24)
    unit = normalize(features.double(), dim=1)
    pairs = [(i, j) for i in range(24) for j in range(24) if i != j]
    same = [(unit[i] - unit[j]).square().sum().item() for i, j in pairs if labels[i] == labels[j]]
    assert geometry.class_alignment(features, labels).item() == pytest.approx(np.mean(same))
    potential = [np.exp(-1.5 * (unit[i] - unit[j]).square().sum().item()) for i, j in pairs]
    assert geometry.uniformity(features, 1.5).item() == pytest.approx(np.log(np.mean(potential)))
    first, second = features[:12], features[12:]
    distances = (unit[:12] - unit[12:]).norm(dim=1)
    assert geometry.alignment(first, second, 3.0).item() == pytest.approx(distances.pow(3).mean().item())


def test_uniformity_in_pieces_is_the_same(monkeypatch):
    features = drawn()[0]
    whole = geometry.uniformity(features)
    monkeypatch.setattr(geometry, "_ROWS", 7)
    torch.testing.assert_close(geometry.uniformity(features), whole)


def test_mixtures_on_foreign_ground():
    means = torch.tensor([[0.0, 0.0], [4.0, 0.0], [2.0, 1.0]])
    # Halfway between the first two classes the third one is at home; nearer to either it is not.
    features = torch.tensor([[2.0, 0.0], [0.4, 0.0], [3.6, 0.0], [3.6, 0.0]])
    labels = torch.tensor([[0, 1], [0, 1], [0, 1], [0, 0]])
    weights = torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    foreign, other = geometry.intrusion(features, labels, weights, means)
    assert foreign.tolist() == [True, False, False, True]
    assert other.tolist() == [True, False, True, True]
    even = geometry.intrusion(features[1:3], labels[1:3], torch.full((2, 2), 0.5), means)
    assert [each.tolist() for each in even] == [[False, False]] * 2


def test_wrong_input_is_named():
    features, labels, weight, bias = drawn()
    with pytest.raises(ValueError, match=r"weight \(K, 7\) and bias \(K,\)"):
        geometry.neural_collapse(features, labels, weight[:, :5], bias)
    with pytest.raises(ValueError, match=r"samples of all 4 classes, got none of \[3\]"):
        geometry.neural_collapse(features, labels.clamp_max(2), weight, bias)
    with pytest.raises(ValueError, match="a class of two samples or more"):
        geometry.class_alignment(features[:4], labels[:4])
    with pytest.raises(ValueError, match="the number of features as an integer >= 2, got 1"):
        geometry.uniformity(features[:1])
    with pytest.raises(ValueError, match=r"labels and weights \(60, M\)"):
        geometry.intrusion(features, labels[:, None], weight, weight)
