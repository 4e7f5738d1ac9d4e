"""MoEx beyond the contract: moments against loops, layouts, the place in a model, labels after another policy."""

import copy

import numpy as np
import pytest
import torch

import mixaug
import mixaug.models
from helpers import seeded
from mixaug import functional as F
from mixaug.losses import MixedCrossEntropy

IMAGES = torch.randn(6, 3, 16, 16, generator=seeded(0))
LABELS = torch.arange(6) % 4
PARTNER = torch.tensor([2, 0, 3, 1, 4])


def maps(*shape, seed=1, dtype=torch.float32):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype) * 2 + 1


def slow(features, norm, groups=1, positive=False):
    """Sample by sample and moment by moment."""
    values = features.double().numpy()
    channels, *size = values.shape[1:]
    result = values.copy()
    places, width = list(np.ndindex(*size)), channels // groups

    def parts():
        for g in range(groups):
            block = slice(g * width, (g + 1) * width)
            if norm in ("pono", "gpono"):
                yield from ((block, *place) for place in places)
            elif norm == "in":
                yield from ((channel,) for channel in range(channels))
            else:
                yield (block,)

    def moments_of(part):
        part = part[part > 0] if positive else part
        return part.mean(), np.sqrt(part.var(ddof=0 if positive else 1) + 1e-5)

    for i, j in enumerate(PARTNER.tolist()):
        for part in parts():
            (m, s), (n, t) = moments_of(values[i][part]), moments_of(values[j][part])
            result[i][part] = (values[i][part] - m) / s * t + n
    return torch.from_numpy(result)


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize(("norm", "groups"), [("pono", 1), ("in", 1), ("ln", 1), ("gn", 2), ("gpono", 3)])
def test_exchange_against_a_loop(norm, groups, positive):
    features = maps(5, 6, 3, 4, dtype=torch.float64)
    features = features.abs() if positive and norm in ("pono", "gpono") else features
    got = F.exchange_moments(features, PARTNER, norm, groups, positive_only=positive)
    torch.testing.assert_close(got, slow(features, norm, groups, positive))


def test_a_sample_has_the_moments_of_its_partner_and_a_fixed_point_stays():
    features = maps(5, 8, 3, 4)
    mixed = F.exchange_moments(features, PARTNER)
    for moment in (torch.mean, torch.std):
        torch.testing.assert_close(moment(mixed, 1), moment(features[PARTNER], 1), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(mixed[4], features[4])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_dtype_and_layout_are_kept(dtype, layout):
    features = maps(5, 8, 3, 4).to(dtype).contiguous(memory_format=layout)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = F.exchange_moments(features, PARTNER)
    assert (mixed.dtype, mixed.shape, mixed.stride()) == (dtype, features.shape, features.stride())
    expected = F.exchange_moments(features.double(), PARTNER)
    torch.testing.assert_close(mixed.double(), expected, rtol=0, atol=4e-2 if dtype.itemsize == 2 else 1e-12)


def test_gradients_flow_through_the_moments_of_both():
    features = maps(3, 4, 2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: F.exchange_moments(x, torch.tensor([1, 2, 0])), features)
    # The partner's values matter through its moments alone.
    [gradient] = torch.autograd.grad(F.exchange_moments(features, torch.tensor([1, 2, 0]))[0].square().sum(), features)
    assert gradient[1].abs().sum() > 0
    assert gradient[2].abs().sum() == 0


def tiny(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "vit":
            make = pytest.importorskip("timm").models.vision_transformer.VisionTransformer
            return make(img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=4)
        if name == "swin":
            make = pytest.importorskip("timm").models.swin_transformer.SwinTransformer
            return make(img_size=16, patch_size=2, window_size=2, embed_dim=8, depths=(1, 1), num_heads=(1, 1),
                        num_classes=4, drop_path_rate=0.0)  # fmt: skip
        if name == "resnet10t":
            return pytest.importorskip("timm").create_model("resnet10t", num_classes=4)
        return mixaug.models.create(name, 4)


@pytest.mark.parametrize(
    ("name", "stage", "axis"),
    [("cifar_resnet8", "bn1", 1), ("resnet10t", "maxpool", 1), ("vit", "blocks.0", 2), ("swin", "layers.0", 3)],
)
def test_a_training_step_written_out(name, stage, axis):
    model = tiny(name)
    twin = copy.deepcopy(model)
    policy = mixaug.create("moex")
    loss, _ = mixaug.MixStep(model, policy, MixedCrossEntropy())(IMAGES, LABELS, generator=seeded(8))
    loss.backward()
    mixed = policy(IMAGES, LABELS, signals=twin, generator=seeded(8))
    assert mixed.plan.stages == policy.hidden_stages(mixaug.ModelSignals(twin)) == (stage,)
    assert torch.equal(mixed.inputs, IMAGES)

    def hook(module, inputs, output):
        return F.exchange_moments(output.movedim(axis, 1), mixed.partner).movedim(1, axis)

    handle = twin.get_submodule(stage).register_forward_hook(hook)
    outputs = twin(IMAGES)
    handle.remove()
    each = [torch.nn.functional.cross_entropy(outputs, y) for y in (LABELS, LABELS[mixed.partner])]
    expected = 0.9 * each[0] + 0.1 * each[1]
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for got, want in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-4, atol=1e-6)


def test_after_cutmix_a_label_is_that_of_two_mixtures():
    policy = mixaug.create("moex", before=mixaug.create("cutmix", ratio=0.75), pairing="shift", ratio=0.8)
    model = tiny("cifar_resnet8")
    mixed = policy(IMAGES, LABELS, signals=model, generator=seeded(3))
    cut = mixaug.create("cutmix", ratio=0.75, pairing="shift")(IMAGES, LABELS, generator=seeded(3))
    assert torch.equal(mixed.inputs, cut.inputs)
    assert torch.equal(mixed.apply(IMAGES), cut.inputs)
    torch.testing.assert_close(mixed.mask, cut.mask)
    before = cut.targets(4)
    torch.testing.assert_close(mixed.targets(4), 0.8 * before + 0.2 * before.roll(1, 0))
    label_map = LABELS[:, None, None].expand(6, 16, 16)
    assert torch.equal(mixed.apply(label_map), cut.apply(label_map))
    loss, _ = mixaug.MixStep(model, policy, MixedCrossEntropy())(IMAGES, LABELS, generator=seeded(3))
    assert loss.isfinite()


def test_options_reach_the_features():
    model, features = tiny("cifar_resnet8"), maps(6, 8, 4, 4)
    for options, arguments in (
        ({"norm": "gn", "group_size": 2}, {"norm": "gn", "groups": 4}),
        ({"norm": "gpono", "groups": 2}, {"norm": "gpono", "groups": 2}),
        ({"positive_only": True, "epsilon": 0.1}, {"positive_only": True, "epsilon": 0.1}),
    ):
        plan = mixaug.create("moex", stage=1, **options).draw(IMAGES, signals=model)
        assert plan.stages == ("layer1",)
        expected = F.exchange_moments(features, plan.partner, **arguments)
        assert torch.equal(plan.mix_hidden("layer1", features), expected)


@pytest.mark.parametrize(("options", "message"), [
    ({"norm": "bn"}, r"expects norm in \['pono', .* got 'bn'"),
    ({"norm": "gn"}, "expects one of groups and group_size with norm 'gn'"),
    ({"groups": 2}, "expects one of groups and group_size"),
    ({"norm": "gn", "groups": 2, "group_size": 2}, "expects one of groups and group_size"),
    ({"epsilon": 0}, "epsilon as a positive"),
    ({"stage": "input"}, "got 'input': it acts inside"),
    ({"before": "transmix"}, r"asks nothing of the model, got TransMix, which needs \['attention'\]"),
    ({"before": "cutmix", "labeling": "area"}, "give labeling= to it"),
])  # fmt: skip
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        mixaug.create("moex", **options)


def test_features_without_moments_are_refused():
    for features, norm in ((maps(5, 4, 1, 1), "in"), (maps(5, 1, 3, 3), "pono"), (maps(5, 4), "in")):
        with pytest.raises(ValueError, match=f"moments '{norm}' of features .* a single value"):
            F.exchange_moments(features, PARTNER, norm)
    with pytest.raises(ValueError, match="groups that divide the 4 channels, got 3"):
        F.exchange_moments(maps(5, 4, 2), PARTNER, "gn", 3)
    with pytest.raises(TypeError, match=r"floating point features, got torch\.int64"):
        F.exchange_moments(maps(5, 4, 2).long(), PARTNER)
