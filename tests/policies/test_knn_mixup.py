"""k-NN mixup beyond the contract: partners are the k nearest and no others, all equally often."""

import pytest
import torch
from scipy import stats

import mixaug
from helpers import seeded
from mixaug.pairing import Nearest

INPUTS = torch.randn(12, 2, 3, generator=seeded(0))
LABELS = torch.randn(12, generator=seeded(1))


def nearest(points, k):
    """The k nearest others of every row, by a loop."""
    points = points.double().flatten(1) if points.ndim > 1 else points.double()[:, None]
    return [
        sorted((float((points[i] - points[j]).norm()), j) for j in range(len(points)) if j != i)[:k]
        for i in range(len(points))
    ]


@pytest.mark.parametrize(("by", "points"), [("inputs", INPUTS), ("labels", LABELS)])
def test_each_of_the_k_nearest_equally_often(by, points):
    policy, g, counts = mixaug.create("knn_mixup", k=4, by=by), seeded(2), torch.zeros(12, 12)
    for _ in range(800):
        partner = policy(INPUTS, LABELS, generator=g).partner
        counts[torch.arange(12), partner] += 1
    for row, found in enumerate(nearest(points, 4)):
        expected = {j for _, j in found}
        assert set(counts[row].nonzero().flatten().tolist()) == expected
        assert stats.chisquare(counts[row][list(expected)].numpy()).pvalue > 1e-4


def test_a_single_neighbour_is_certain_and_mutual_where_it_is():
    points = torch.tensor([[0.0], [1.0], [10.0], [12.0], [30.0]])
    mixed = mixaug.create("knn_mixup", k=1)(points, generator=seeded(3))
    assert mixed.partner.tolist() == [1, 0, 3, 2, 3]
    lam = mixed.lam[:, None]
    torch.testing.assert_close(mixed.inputs, lam * points + (1 - lam) * points[mixed.partner])


def test_a_short_batch_takes_all_others():
    policy, seen = mixaug.create("knn_mixup", k=9), set()
    for seed in range(60):
        seen.add(tuple(policy(INPUTS[:3], generator=seeded(seed)).partner.tolist()))
    assert seen == {(a, b, c) for a in (1, 2) for b in (0, 2) for c in (0, 1)}


def test_labels_are_not_needed_by_inputs():
    policy = mixaug.create("knn_mixup")
    assert not policy.needs_labels
    assert policy(INPUTS).labels is None
    with pytest.raises(ValueError, match="pairs by labels"):
        mixaug.create("knn_mixup", by="labels")(INPUTS)


def test_defaults_and_lam():
    policy = mixaug.create("knn_mixup")
    assert isinstance(policy.pairing, Nearest)
    assert (policy.pairing.k, policy.pairing.by, policy.alpha) == (5, "inputs", 2.0)
    assert len(policy(INPUTS, generator=seeded(4)).lam.unique()) == 1
    assert len(mixaug.create("knn_mixup", per="sample")(INPUTS, generator=seeded(4)).lam.unique()) == 12


@pytest.mark.parametrize(("options", "message"), [
    ({"k": 0}, "k as an integer >= 1, got 0"),
    ({"k": True}, "k as an integer >= 1"),
    ({"k": 2.0}, "k as an integer >= 1"),
    ({"by": "features"}, "expects by 'labels' or 'inputs', got 'features'"),
    ({"alpha": -1}, "expects alpha as a"),
    ({"per": "pair"}, "per 'sample' or 'batch'"),
])  # fmt: skip
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        mixaug.create("knn_mixup", **options)
