"""C-Mixup beyond the contract: near labels meet, labels are mixed like inputs, the bandwidth at its limits."""

import pytest
import torch

import mixaug
from helpers import seeded
from mixaug.pairing import LabelKernel
from mixaug.policies import ManifoldMix, Mixup

INPUTS = torch.randn(64, 3, generator=seeded(0))
LABELS = torch.linspace(-2, 2, 64)[torch.randperm(64, generator=seeded(1))]


def mean_distance(policy, rounds=40):
    g = seeded(2)
    return sum(float((LABELS - LABELS[policy(INPUTS, LABELS, generator=g).partner]).abs().mean()) for _ in
               range(rounds)) / rounds  # fmt: skip


def test_labels_are_mixed_like_inputs():
    # Labels that are a linear function of the inputs stay one under the mixing.
    slope = torch.tensor([1.0, -2.0, 0.5])
    mixed = mixaug.create("cmixup")(INPUTS, INPUTS @ slope + 3, generator=seeded(3))
    torch.testing.assert_close(mixed.targets(), mixed.inputs @ slope + 3)
    assert (mixed.partner != torch.arange(64)).any()


def test_partners_are_nearer_the_narrower_the_kernel():
    expected = []
    for bandwidth in (0.1, 0.5, 1.5):
        probabilities = mixaug.functional.label_kernel(LABELS, bandwidth)
        expected.append(float((probabilities * (LABELS[:, None] - LABELS).abs()).sum(1).mean()))
        assert mean_distance(mixaug.create("cmixup", bandwidth=bandwidth)) == pytest.approx(expected[-1], rel=0.05)
    assert expected == sorted(expected)


@pytest.mark.filterwarnings("ignore:LabelKernel")
def test_limits_of_the_bandwidth():
    # Far below the spacing nobody but the sample itself is near; far above the spread anybody is.
    alone = mixaug.create("cmixup", bandwidth=1e-6)(INPUTS, LABELS, generator=seeded(4))
    assert torch.equal(alone.inputs, INPUTS)
    assert torch.equal(alone.partner, torch.arange(64))
    uniform = float((LABELS[:, None] - LABELS).abs().mean())
    assert mean_distance(mixaug.create("cmixup", bandwidth=1e6)) == pytest.approx(uniform, rel=0.05)


def test_a_tophat_never_reaches_beyond_its_radius():
    policy = mixaug.create("cmixup", bandwidth=0.2, kernel="tophat")
    for seed in range(20):
        partner = policy(INPUTS, LABELS, generator=seeded(seed)).partner
        assert ((LABELS - LABELS[partner]).abs() < 0.2).all()


def test_one_lam_per_batch_and_not_folded():
    lams = [mixaug.create("cmixup")(INPUTS, LABELS, generator=seeded(seed)).lam for seed in range(40)]
    assert all(len(lam.unique()) == 1 for lam in lams)
    first = torch.stack([lam[0] for lam in lams])
    assert 0.25 < (first < 0.5).double().mean() < 0.75
    assert len(mixaug.create("cmixup", per="sample")(INPUTS, LABELS, generator=seeded(0)).lam.unique()) == 64


def test_options_reach_their_parts():
    policy = mixaug.create("cmixup", alpha=1.5, bandwidth=0.05, units="standardised", include_self=False)
    assert isinstance(policy, Mixup)
    assert policy.alpha == 1.5
    assert isinstance(policy.pairing, LabelKernel)
    assert (policy.pairing.bandwidth, policy.pairing.units, policy.pairing.include_self) == (
        0.05,
        "standardised",
        False,
    )
    hidden = mixaug.create("cmixup", stages=["0"])
    assert isinstance(hidden, ManifoldMix)
    assert hidden.stages == ("0",)
    assert isinstance(hidden.pairing, LabelKernel)


def test_mixing_hidden_features_by_label():
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
    policy = mixaug.create("cmixup", stages=["1"], bandwidth=0.3)
    mixed = policy(INPUTS, LABELS, signals=model, generator=seeded(5))
    with policy.tap(model, mixed):
        got = model(mixed.inputs)
    hidden = model[1](model[0](INPUTS))
    lam = mixed.lam[:, None]
    torch.testing.assert_close(got, model[2](lam * hidden + (1 - lam) * hidden[mixed.partner]))
    assert (LABELS - LABELS[mixed.partner]).abs().max() < 6 * 0.3


@pytest.mark.parametrize(("options", "message"), [
    ({"bandwidth": 0}, "expects bandwidth as a"),
    ({"bandwidth": -1.0}, "expects bandwidth as a"),
    ({"bandwidth": float("nan")}, "expects bandwidth as a"),
    ({"bandwidth": "wide"}, "bandwidth"),
    ({"kernel": "box"}, "expects kernel 'gaussian' or 'tophat', got 'box'"),
    ({"units": "sd"}, "expects units 'raw' or 'standardised', got 'sd'"),
    ({"alpha": 0}, "expects alpha as a"),
    ({"per": "pair"}, "per 'sample' or 'batch'"),
    ({"stages": "layer1"}, "stages as a sequence of module names, got 'layer1'"),
])  # fmt: skip
def test_bad_options_are_named(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        mixaug.create("cmixup", **options)


def test_labels_are_needed():
    with pytest.raises(ValueError, match="pairs by labels: pass labels"):
        mixaug.create("cmixup")(INPUTS)
    with pytest.raises(ValueError, match="row 5 of labels holds NaN"):
        mixaug.create("cmixup")(INPUTS, torch.where(torch.arange(64) == 5, torch.nan, LABELS))
