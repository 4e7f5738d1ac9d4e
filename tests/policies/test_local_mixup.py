"""Local Mixup beyond the contract: nobody beyond the radius, everybody within it equally often."""

import pytest
import torch
from scipy import stats

import mixaug
from helpers import seeded
from mixaug.pairing import Local

INPUTS = torch.randn(10, 2, generator=seeded(0))
LABELS = torch.randn(10, 3, generator=seeded(1))


def within(points, radius, include_self):
    distance = torch.cdist(points.double(), points.double())
    allowed = (distance < radius).fill_diagonal_(include_self)
    return [row.nonzero().flatten().tolist() for row in allowed]


@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize(("by", "points"), [("inputs", INPUTS), ("labels", LABELS)])
def test_everybody_within_the_radius_equally_often(by, points, include_self):
    policy = mixaug.create("local_mixup", radius=1.3, by=by, include_self=include_self)
    g, counts = seeded(2), torch.zeros(10, 10)
    for _ in range(400):
        counts[torch.arange(10), policy(INPUTS, LABELS, generator=g).partner] += 1
    allowed = within(points, 1.3, include_self)
    assert {len(row) for row in allowed} != {1}
    for row, expected in enumerate(allowed):
        # With nobody near, the sample stays unmixed.
        expected = expected or [row]
        assert counts[row].nonzero().flatten().tolist() == expected
        if len(expected) > 1:
            assert stats.chisquare(counts[row][expected].numpy()).pvalue > 1e-4


def test_the_radius_itself_is_outside():
    points = torch.tensor([[0.0], [1.0], [3.0]])
    for seed in range(10):
        assert mixaug.create("local_mixup", radius=1.0)(points, generator=seeded(seed)).partner.tolist() == [0, 1, 2]
    pairs = [
        mixaug.create("local_mixup", radius=1.1)(points, generator=seeded(s)).partner[:2].tolist() for s in range(20)
    ]
    assert [1, 0] in pairs


def test_a_small_radius_is_no_mixing_and_a_large_one_is_mixup():
    still = mixaug.create("local_mixup", radius=1e-9)(INPUTS, generator=seeded(3))
    assert torch.equal(still.inputs, INPUTS)
    g, policy, counts = seeded(4), mixaug.create("local_mixup", radius=1e9), torch.zeros(10, 10)
    for _ in range(800):
        counts[torch.arange(10), policy(INPUTS, generator=g).partner] += 1
    assert stats.chisquare(counts.flatten().numpy()).pvalue > 1e-4


@pytest.mark.parametrize("count", [5, 40, 101])
def test_the_automatic_radius_allows_a_tenth_of_the_pairs(count):
    points = torch.randn(count, 3, generator=seeded(5))
    distance = torch.cdist(points.double(), points.double())
    policy = mixaug.create("local_mixup", include_self=False)
    allowed = set()
    for seed in range(150):
        partner = policy(points, generator=seeded(seed)).partner
        allowed |= {(i, j) for i, j in enumerate(partner.tolist()) if i != j}
    pairs = sorted((float(distance[i, j]), i, j) for i in range(count) for j in range(count) if i != j)
    # Both directions of a pair are equally far, so an odd rank takes one more.
    rank = max(1, round(0.1 * count * (count - 1)))
    expected = {(i, j) for _, i, j in pairs[: rank + rank % 2]}
    assert allowed == expected


def test_defaults_and_lam():
    policy = mixaug.create("local_mixup")
    assert isinstance(policy.pairing, Local)
    assert (policy.pairing.radius, policy.pairing.by, policy.pairing.include_self) == ("auto", "inputs", True)
    assert policy.alpha == 1.0
    assert len(policy(INPUTS, generator=seeded(6)).lam.unique()) == 10
    assert len(mixaug.create("local_mixup", per="batch")(INPUTS, generator=seeded(6)).lam.unique()) == 1


@pytest.mark.parametrize(("options", "message"), [
    ({"radius": 0}, "expects radius as a"),
    ({"radius": float("inf")}, "expects radius as a"),
    ({"by": "pixels"}, "expects by 'labels' or 'inputs', got 'pixels'"),
    ({"alpha": 0}, "expects alpha as a"),
    ({"per": "pair"}, "per 'sample' or 'batch'"),
])  # fmt: skip
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        mixaug.create("local_mixup", **options)


def test_what_cannot_be_compared_is_named():
    with pytest.raises(ValueError, match="row 2 of inputs holds NaN"):
        mixaug.create("local_mixup")(torch.tensor([[0.0], [1.0], [float("inf")]]))
    with pytest.raises(ValueError, match="pairs by labels"):
        mixaug.create("local_mixup", by="labels")(INPUTS)
