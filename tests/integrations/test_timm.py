"""`MixupFn` against timm's own target arithmetic and its contract with timm's training loop."""

from __future__ import annotations

import pytest
import torch

import mixaug
from helpers import seeded
from mixaug.integrations.timm import MixupFn


def batch(size: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(size, 3, 8, 10, generator=seeded(0)), torch.randint(5, (size,), generator=seeded(1))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixes_as_the_policy_does(smoothing):
    images, labels = batch()
    policy = mixaug.create("cutmix")
    expected = policy(images, labels, generator=seeded(2))
    mixed, targets = MixupFn(policy, 5, smoothing, generator=seeded(2))(images, labels)
    assert torch.equal(mixed, expected.inputs)
    assert torch.equal(targets, expected.targets(5, label_smoothing=smoothing))
    assert not torch.equal(mixed, images)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_against_timm(smoothing):
    timm = pytest.importorskip("timm.data.mixup", reason="needs timm")
    images, labels = batch()
    policy = mixaug.create("mixup", ratio=0.3, pairing="reversed", per="batch")
    mixed, targets = MixupFn(policy, 5, smoothing)(images, labels)
    torch.testing.assert_close(mixed, 0.3 * images + 0.7 * images.flip(0))
    torch.testing.assert_close(targets, timm.mixup_target(labels, 5, 0.3, smoothing))


def test_disabled_gives_unmixed_images_and_timms_dense_targets():
    timm = pytest.importorskip("timm.data.mixup", reason="needs timm")
    images, labels = batch()
    mixup_fn = MixupFn(mixaug.create("mixup"), 5, 0.1)
    assert mixup_fn.mixup_enabled
    mixup_fn.mixup_enabled = False
    mixed, targets = mixup_fn(images, labels)
    assert torch.equal(mixed, images)
    torch.testing.assert_close(targets, timm.mixup_target(labels, 5, 1.0, 0.1))


def test_soft_target_loss_equals_the_index_loss():
    timm = pytest.importorskip("timm.loss", reason="needs timm")
    images, labels = batch()
    policy = mixaug.create("mixup")
    logits = torch.randn(6, 5, generator=seeded(3))
    _, targets = MixupFn(policy, 5, 0.1, generator=seeded(2))(images, labels)
    index_loss = mixaug.losses.MixedCrossEntropy(label_smoothing=0.1)
    expected = index_loss(logits, policy(images, labels, generator=seeded(2)))
    torch.testing.assert_close(timm.SoftTargetCrossEntropy()(logits, targets), expected)


def test_images_of_the_caller_stay_and_odd_batches_work():
    images, labels = batch(5)
    before = images.clone()
    mixed, targets = MixupFn(mixaug.create("mixup"), 5)(images, labels)
    assert torch.equal(images, before)
    assert mixed.shape == images.shape
    assert targets.shape == (5, 5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("cutmix", 5), TypeError, "mixaug.Policy, got str: 'cutmix'"),
        ((None, 0), ValueError, "`num_classes` to be a positive int, got 0"),
        ((None, 5.0), ValueError, "`num_classes` to be a positive int, got 5.0"),
        ((None, 5, 1.5), ValueError, r"`label_smoothing` in \[0, 1\], got 1.5"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    policy, *rest = arguments
    with pytest.raises(error, match=message):
        MixupFn(policy or mixaug.create("mixup"), *rest)


def test_policy_that_needs_the_model_is_refused():
    policy = mixaug.create("mixup")
    policy.needs = frozenset({"saliency"})
    with pytest.raises(ValueError, match=r"needs saliency .* mixaug\.MixStep"):
        MixupFn(policy, 5)
