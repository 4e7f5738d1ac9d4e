"""`MixupFn` against timm's own target arithmetic and its contract with timm's training loop."""

from __future__ import annotations

import numpy as np
import pytest
import timm.loss
import torch
from timm.data import create_loader
from timm.optim import create_optimizer_v2
from torch import nn

import mixaug
from helpers import seeded
from mixaug.integrations.timm import FastCollateMix, MixupFn


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
    images, labels = batch()
    policy = mixaug.create("mixup", ratio=0.3, pairing="reversed", per="batch")
    mixed, targets = MixupFn(policy, 5, smoothing)(images, labels)
    torch.testing.assert_close(mixed, 0.3 * images + 0.7 * images.flip(0))
    torch.testing.assert_close(targets, timm.data.mixup.mixup_target(labels, 5, 0.3, smoothing))


def test_disabled_gives_unmixed_images_and_timms_dense_targets():
    images, labels = batch()
    mixup_fn = MixupFn(mixaug.create("mixup"), 5, 0.1)
    assert mixup_fn.mixup_enabled
    mixup_fn.mixup_enabled = False
    mixed, targets = mixup_fn(images, labels)
    assert torch.equal(mixed, images)
    torch.testing.assert_close(targets, timm.data.mixup.mixup_target(labels, 5, 1.0, 0.1))


def test_soft_target_loss_equals_the_index_loss():
    images, labels = batch()
    policy = mixaug.create("mixup")
    logits = torch.randn(6, 5, generator=seeded(3))
    _, targets = MixupFn(policy, 5, 0.1, generator=seeded(2))(images, labels)
    index_loss = mixaug.losses.MixedCrossEntropy(label_smoothing=0.1)
    expected = index_loss(logits, policy(images, labels, generator=seeded(2)))
    torch.testing.assert_close(timm.loss.SoftTargetCrossEntropy()(logits, targets), expected)


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


class Images(torch.utils.data.Dataset):
    """Sixteen images of one grey value each, so that a pixel names its parent."""

    transform = None

    def __len__(self):
        return 16

    def __getitem__(self, index):
        image = np.full((3, 8, 8), index * 10, np.uint8)
        return (image if self.transform is None else self.transform(image)), index % 5


def loader_of(collate, **options):
    quick = {"batch_size": 8, "input_size": (3, 8, 8), "is_training": True, "device": torch.device("cpu")}
    return create_loader(Images(), **quick, collate_fn=collate, mean=(0.0,) * 3, std=(1.0,) * 3, **options)


def mixed_rows(loader):
    """Share of the targets in an epoch that name more than one class."""
    targets = torch.cat([target for _, target in loader])
    return float(((targets > 0).sum(1) > 1).float().mean())


@pytest.mark.parametrize("workers", [0, 2])
def test_timms_loader_mixes_and_stops_where_it_is_told(workers):
    torch.manual_seed(0)
    policy = mixaug.create("mixup", ratio=0.3, pairing="derangement")
    loader = loader_of(FastCollateMix(policy, 5), num_workers=workers, persistent_workers=workers > 0)
    # create_loader sets a transform of its own for PIL images.
    loader.dataset.transform = None
    assert loader.mixup_enabled
    assert mixed_rows(loader) > 0.5
    loader.mixup_enabled = False
    assert not loader.mixup_enabled
    assert mixed_rows(loader) == 0


@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_collate_mixes_as_the_policy_does(kind):
    samples = [(np.full((3, 4, 4), 40 * index, np.uint8), index) for index in range(5)]
    if kind == "tensor":
        samples = [(torch.from_numpy(image), label) for image, label in samples]
    images, targets = FastCollateMix(mixaug.create("mixup", ratio=0.25, pairing="reversed"), 5, 0.1)(samples)
    own, other = torch.arange(5) * 40.0, torch.arange(5).flip(0) * 40.0
    assert images.dtype == torch.uint8
    assert torch.equal(images, (0.25 * own + 0.75 * other).to(torch.uint8)[:, None, None, None].expand(5, 3, 4, 4))
    torch.testing.assert_close(targets, timm.data.mixup.mixup_target(torch.arange(5), 5, 0.25, 0.1))


def test_collate_refuses_what_it_cannot_mix():
    with pytest.raises(TypeError, match=r"uint8 images, got torch.float32; MixCollate takes others"):
        FastCollateMix(mixaug.create("mixup"), 5)([(torch.zeros(3, 4, 4), 1)] * 2)
    with pytest.raises(TypeError, match="arrays or tensors, got str"):
        FastCollateMix(mixaug.create("mixup"), 5)([("a", 1)] * 2)
    with pytest.raises(ValueError, match="FastCollateMix mixes before the model runs, but PuzzleMix needs saliency"):
        FastCollateMix(mixaug.create("puzzlemix"), 5)


@pytest.mark.parametrize("layer_decay", [None, 0.5])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet10t"])
def test_an_optimizer_of_the_step_treats_the_model_as_it_would_alone(name, layer_decay):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=5)
    options = {"opt": "adamw", "lr": 0.1, "weight_decay": 0.05, "layer_decay": layer_decay}

    def settings(module):
        groups = create_optimizer_v2(module, **options).param_groups
        names = {id(parameter): key.removeprefix("model.") for key, parameter in module.named_parameters()}
        return {names[id(p)]: (g["weight_decay"], g.get("lr_scale")) for g in groups for p in g["params"]}

    step = mixaug.MixStep(model, mixaug.create("cutmix"), mixaug.losses.MixedCrossEntropy())
    assert settings(step) == settings(model)
    if layer_decay is not None:
        assert len({scale for _, scale in settings(step).values()}) > 3
    # A step around a model that says nothing of layers says nothing of them either.
    assert not hasattr(mixaug.MixStep(nn.Linear(2, 2), step.policy, step.objective), "group_matcher")
