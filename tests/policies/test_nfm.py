"""Noisy Feature Mixup beyond the contract: the noise and its scales, replays, and the mix inside a model."""

import numpy as np
import pytest
import torch
from scipy import stats

import mixaug
import mixaug.models
from helpers import seeded
from mixaug import functional as F
from mixaug.losses import MixedCrossEntropy
from mixaug.testing import check_policy

IMAGES = torch.randn(6, 3, 16, 16, generator=seeded(0))
LABELS = torch.arange(6) % 4
PARTNER = torch.tensor([2, 0, 3, 1, 4])
AT_INPUT = {"stages": ["input"], "ratio": 0.5}


def drawn(*shape, seed=1, normal=True):
    make = torch.randn if normal else torch.rand
    return make(*shape, generator=seeded(seed))


def test_own_options_matter():
    check_policy("nfm", promises=["options"], options={"add_noise_level": 0.0, "mult_noise_level": 0.0})


def test_noise_against_the_formula():
    features, normal, uniform = drawn(5, 3, 4), drawn(5, 3, 4, seed=2), drawn(5, 3, 4, seed=3, normal=False)
    lam, a, b = (drawn(5, seed=seed, normal=False) for seed in (4, 5, 6))
    got = F.noisy_mixup(features, PARTNER, lam, normal=normal, add_scale=a, uniform=uniform, mult_scale=b)
    for i, j in enumerate(PARTNER.tolist()):
        blend = lam[i] * features[i] + (1 - lam[i]) * features[j]
        torch.testing.assert_close(got[i], (1 + b[i] * (2 * uniform[i] - 1)) * blend + a[i] * normal[i])
    half = F.noisy_mixup(features.half(), PARTNER, lam, normal=normal, add_scale=a, uniform=uniform, mult_scale=b)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), got, rtol=2e-3, atol=2e-3)


def test_bytes_are_rounded_and_clipped():
    images = torch.randint(0, 256, (5, 3, 4, 4), generator=seeded(1), dtype=torch.uint8)
    normal = drawn(5, 3, 4, 4, seed=2)
    lam, scale = torch.tensor([0.25]), torch.tensor([0.3])
    got = F.noisy_mixup(images, PARTNER, lam, normal=normal, add_scale=scale)
    blend = (0.25 * images.double() + 0.75 * images[PARTNER].double()).round()
    expected = (blend + 0.3 * 255 * normal.double()).round().clamp(0, 255)
    assert got.dtype == torch.uint8
    assert (got.double() - expected).abs().max() <= 1
    assert {0, 255} <= set(got.flatten().tolist())


def test_noise_is_normal_and_uniform_and_its_own_in_every_value():
    images = torch.ones(8, 3, 32, 32)
    for options, law in (
        ({"mult_noise_level": 0.0}, lambda plan: stats.norm(1, float(plan.add_scale))),
        ({"add_noise_level": 0.0}, lambda plan: stats.uniform(1 - float(plan.mult_scale), 2 * float(plan.mult_scale))),
    ):
        mixed = mixaug.create("nfm", **AT_INPUT, **options)(images, signals=mixaug.Signals(), generator=seeded(7))
        values = mixed.inputs.flatten(1)
        for row in values:
            assert stats.kstest(row.numpy(), law(mixed.plan).cdf).pvalue > 1e-4
        # Neither samples nor neighbours share their noise.
        correlation = torch.corrcoef(torch.cat([values, values.roll(1, 1)])).fill_diagonal_(0)
        assert correlation.abs().max() < 5 / values.shape[1] ** 0.5


def test_scales_are_beta_2_5_and_drawn_as_often_as_lam():
    g, law = seeded(8), stats.beta(2, 5)
    for per, rows in (("batch", 1), ("sample", 6)):
        policy = mixaug.create("nfm", per=per, stages=["input"], add_noise_level=0.4, mult_noise_level=0.2)
        plans = [policy.draw(IMAGES, signals=mixaug.Signals(), generator=g) for _ in range(150)]
        assert {plan.add_scale.shape for plan in plans} == {(rows,)}
        for name, level in (("add_scale", 0.4), ("mult_scale", 0.2)):
            scales = torch.cat([getattr(plan, name) for plan in plans]).numpy()
            assert stats.kstest(scales / level, law.cdf).pvalue > 1e-4
        both = np.corrcoef(*(torch.cat([getattr(p, n) for p in plans]).numpy() for n in ("add_scale", "mult_scale")))
        assert abs(both[0, 1]) < 4 / (150 * rows) ** 0.5


def test_without_noise_it_is_manifold_mixup():
    silent = {"add_noise_level": 0.0, "mult_noise_level": 0.0, "alpha": 2.0, "stages": ["input", "layer1"]}
    for seed in range(4):
        given = {"signals": mixaug.Signals(), "generator": seeded(seed)}
        mixed = mixaug.create("nfm", **silent)(IMAGES, LABELS, **given)
        given["generator"].manual_seed(seed)
        plain = mixaug.create("manifoldmix", alpha=2.0, stages=["input", "layer1"])(IMAGES, LABELS, **given)
        assert torch.equal(mixed.inputs, plain.inputs)
        assert torch.equal(mixed.weights, plain.weights)
        assert mixed.plan.is_mean


def test_label_maps_are_blended_without_noise():
    mixed = mixaug.create("nfm", **AT_INPUT)(IMAGES, LABELS, signals=mixaug.Signals(), generator=seeded(9))
    label_map = LABELS[:, None, None].expand(6, 16, 16)
    shares = mixed.apply(label_map, num_classes=4)
    torch.testing.assert_close(shares[:, :, 0, 0], mixed.targets(4))
    with pytest.raises(TypeError, match="num_classes"):
        mixed.apply(label_map)


@pytest.mark.parametrize("read", [True, False], ids=["read", "not read"])
def test_a_training_step_written_out(read, monkeypatch):
    # Where the stage is not read, as while torch.compile traces, the others get neither mixture nor noise.
    if not read:
        monkeypatch.setattr("mixaug.plan.reads_freely", lambda *tensors: False)
    policy, seen = mixaug.create("nfm"), set()
    for seed in (0, 2, 3, 19):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = mixaug.models.create("cifar_resnet8", 4)
        loss, _ = mixaug.MixStep(model, policy, MixedCrossEntropy())(IMAGES, LABELS, generator=seeded(seed))
        mixed = policy(IMAGES, LABELS, signals=model, generator=seeded(seed))
        plan = mixed.plan
        name = plan.eligible[int(plan.stage)]
        seen.add(name)

        def noisy(values, plan=plan):
            shape = values.shape[1:]
            return F.noisy_mixup(
                values,
                plan.partner,
                plan.lam,
                normal=mixaug.ops.hashing.hashed_normal(plan.normal_seeds, shape),
                add_scale=plan.add_scale,
                uniform=mixaug.ops.hashing.hashed_uniform(plan.uniform_seeds, shape),
                mult_scale=plan.mult_scale,
            )

        if name == "input":
            outputs = model(noisy(IMAGES))
        else:
            handle = model.get_submodule(name).register_forward_hook(lambda m, i, output, noisy=noisy: noisy(output))
            outputs = model(IMAGES)
            handle.remove()
        torch.testing.assert_close(loss, MixedCrossEntropy()(outputs, mixed))
    assert seen == {"input", "layer1", "layer2", "layer3"}


def test_checkpointing_replays_the_same_noise():
    found = []
    for checkpointing in (False, True):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = mixaug.models.create("cifar_resnet8", 4).eval()
        model.set_grad_checkpointing(checkpointing)
        policy = mixaug.create("nfm", stages=["layer2.0"])
        mixaug.MixStep(model.train(), policy, MixedCrossEntropy())(IMAGES, LABELS, generator=seeded(9))[0].backward()
        found.append([parameter.grad for parameter in model.parameters()])
    for plain, replayed in zip(*found, strict=True):
        torch.testing.assert_close(replayed, plain)


def test_the_default_stages_of_a_transformer():
    make = pytest.importorskip("timm").models.vision_transformer.VisionTransformer
    with torch.device("meta"):
        model = make(img_size=16, patch_size=8, embed_dim=16, depth=8, num_heads=2, num_classes=4)
    assert mixaug.create("nfm").eligible(model) == ("input", "blocks.1", "blocks.3", "blocks.5")


def test_bad_arguments_are_named():
    for option in ("add_noise_level", "mult_noise_level"):
        with pytest.raises(ValueError, match=f"{option} as a number that is not negative, got -1"):
            mixaug.create("nfm", **{option: -1})
    features, lam = drawn(5, 3), torch.tensor([0.5])
    with pytest.raises(ValueError, match="expects add_scale beside its noise"):
        F.noisy_mixup(features, PARTNER, lam, normal=features)
    with pytest.raises(ValueError, match=r"expects noise \(5, 3\), got \(5, 2\)"):
        F.noisy_mixup(features, PARTNER, lam, uniform=features[:, :2], mult_scale=lam)
