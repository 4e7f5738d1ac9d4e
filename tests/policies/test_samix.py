"""SAMix beyond AutoMix: the cubic of lambda, the balanced loss, the reward for masks that vary."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import mixaug
from helpers import seeded
from mixaug import functional as F
from mixaug import models
from mixaug.losses import MixedCrossEntropy

IMAGES = torch.randn(6, 3, 16, 16, generator=seeded(0))
LABELS = torch.tensor([0, 3, 1, 4, 2, 2])


def step_of(name, objective=None, **options):
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = models.create("cifar_resnet8", num_classes=5)
        step = mixaug.MixStep(model, mixaug.create(name, **options), objective or MixedCrossEntropy())
        for parameter in step.policy.block.parameters():
            nn.init.normal_(parameter, std=0.3)
    return step


def pair_loss(outputs, lam, partner):
    first = cross_entropy(outputs, LABELS, reduction="none")
    second = cross_entropy(outputs, LABELS[partner], reduction="none")
    return (lam * first + (1 - lam) * second).mean()


@pytest.mark.parametrize(("options", "message"), [
    ({"k": -0.5}, "k as a number that is not negative"),
    ({"eta": 1.5}, "eta"),
    ({"variance": -1.0}, "variance"),
    ({"dropout": 2.0}, "dropout"),
])  # fmt: skip
def test_bad_options_of_samix_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        mixaug.create("samix", **options)


def test_the_cubic_keeps_its_fixed_points_and_pulls_to_the_middle():
    lam = torch.linspace(0, 1, 101, dtype=torch.float64)
    for k in (0.0, 0.25, 3.0):
        got = F.rescaled_lam(lam, k)
        torch.testing.assert_close(got[[0, 50, 100]], torch.tensor([0, 0.5, 1.0], dtype=torch.float64))
        assert (got.diff() >= 0).all()
        assert ((got - 0.5).abs() <= (lam - 0.5).abs() + 1e-12).all()
        torch.testing.assert_close(got + F.rescaled_lam(1 - lam, k), torch.ones_like(lam))
    assert torch.equal(F.rescaled_lam(lam, -1), lam)
    assert torch.equal(F.rescaled_lam(lam, 99.0), F.rescaled_lam(lam, 10.0))
    with pytest.raises(ValueError, match="k >= 0"):
        F.rescaled_lam(lam, -0.5)


def test_the_balanced_loss():
    logits = torch.randn(6, 5, generator=seeded(1), dtype=torch.float64)
    partner, lam = torch.tensor([5, 4, 3, 2, 1, 4]), torch.rand(6, generator=seeded(2), dtype=torch.float64)
    plain = pair_loss(logits, lam, partner)
    torch.testing.assert_close(F.balanced_cross_entropy(logits, LABELS, partner, lam, 1.0), plain)
    probabilities = logits.softmax(1)
    local, everything = [], []
    for i, j in enumerate(partner.tolist()):
        a, b = int(LABELS[i]), int(LABELS[j])
        p, q = probabilities[i, a], probabilities[i, b]
        whole = p if a == b else p + q
        local.append(-(lam[i] * (p / whole).log() + (1 - lam[i]) * (q / whole).log()))
        everything.append(-whole.log())
    expected = torch.stack(local).mean() + 0.5 * torch.stack(everything).mean()
    torch.testing.assert_close(F.balanced_cross_entropy(logits, LABELS, partner, lam, 0.5), expected)


def test_the_balance_needs_class_ids():
    soft = torch.rand(6, 5, generator=seeded(1))
    with pytest.raises(ValueError, match=r"SAMix\(eta=0.5\) expects class ids"):
        step_of("samix", eta=0.5)(IMAGES, soft)
    for objective in (MixedCrossEntropy(0.1), mixaug.losses.MixedBinaryCrossEntropy()):
        with pytest.raises(ValueError, match=r"divides a plain MixedCrossEntropy .* eta=1 takes any"):
            step_of("samix", objective, eta=0.5)(IMAGES, LABELS)
        assert step_of("samix", objective)(IMAGES, LABELS)[0].isfinite()
    loss, _ = step_of("samix")(IMAGES, soft)
    assert loss.isfinite()


def test_only_samix_rewards_masks_that_vary():
    step = step_of("samix", mask_margin=1.0)
    _, scalars = step(IMAGES, LABELS, generator=seeded(1))
    assert float(scalars["mask_loss"]) < 0
    _, scalars = step_of("automix", mask_margin=1.0)(IMAGES, LABELS, generator=seeded(1))
    assert float(scalars["mask_loss"]) == 0
