"""The small-image backbones against published sizes, the papers' rules and timm's conventions."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch

timm = pytest.importorskip("timm")
import torch.nn.functional as F  # noqa: E402
from timm.models.resnet import BasicBlock, Bottleneck  # noqa: E402
from timm.models.resnetv2 import PreActBasic  # noqa: E402

from mixaug import models  # noqa: E402
from mixaug.models import small  # noqa: E402
from mixaug.models.small import PadShortcut, SmallResNet  # noqa: E402

SMALL = sorted(small.default_cfgs)
# Thin relatives of the wide networks: same code, quick on a CPU.
LIGHT = {
    "cifar_resnet8": {},
    "cifar_resnet20": {},
    "cifar_resnet18": {"channels": (8, 16, 32, 64), "stem_width": 8},
    "cifar_resnext50_32x4d": {"layers": (1, 1, 1, 1)},
    "cifar_preact_resnet18": {"channels": (8, 16, 24, 32), "stem_chs": 8},
    "cifar_wrn28_8": {"channels": (16, 24, 32)},
    "cifar_wrn28_10": {"channels": (16, 24, 32)},
    "cifar_convnext_tiny": {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)},
}


THREE_STAGES = ("cifar_resnet8", "cifar_resnet20", "cifar_wrn28_8", "cifar_wrn28_10")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def light(name: str, num_classes: int = 5, **options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return models.create(name, num_classes, **{**LIGHT[name], **options}).eval()


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_every_small_model_has_a_light_relative_here():
    assert sorted(LIGHT) == SMALL


# --- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "classes", "published"),
    [
        ("cifar_resnet20", 10, 269_722),  # He et al., table 6: 0.27 M, option A
        ("cifar_resnet18", 10, 11_173_962),
        ("cifar_resnet18", 100, 11_220_132),
        ("cifar_wrn28_8", 100, 23_401_012),  # Zagoruyko and Komodakis, table 4: 23.4 M
        ("cifar_wrn28_10", 10, 36_479_194),  # table 4: 36.5 M
        ("cifar_preact_resnet18", 10, 11_172_170),
    ],
)
def test_parameter_counts_are_the_published_ones(name, classes, published):
    with torch.device("meta"):
        assert parameters(models.create(name, classes)) == published


def test_resnet8_counts_by_hand():
    stem = 3 * 16 * 9 + 2 * 16
    stages = sum(9 * (a * b + b * b) + 4 * b for a, b in ((16, 16), (16, 32), (32, 64)))
    assert parameters(models.create("cifar_resnet8", 10)) == stem + stages + 64 * 10 + 10


@pytest.mark.parametrize(
    ("small", "large", "stem_weights"),
    [
        ("cifar_resnet18", "resnet18", 64 * 3 * (49 - 9)),
        ("cifar_resnext50_32x4d", "resnext50_32x4d", 64 * 3 * (49 - 9)),
        ("cifar_convnext_tiny", "convnext_tiny", 96 * 3 * (16 - 9)),
    ],
)
def test_only_the_stem_differs_from_the_large_image_model(small, large, stem_weights):
    with torch.device("meta"):
        mine, theirs = models.create(small, 100), models.create(large, 100)
    assert parameters(theirs) - parameters(mine) == stem_weights
    shapes = {k: v.shape for k, v in mine.state_dict().items()}
    different = {k for k, v in theirs.state_dict().items() if shapes[k] != v.shape}
    assert different == {mine.pretrained_cfg["first_conv"] + ".weight"}


@pytest.mark.parametrize("name", SMALL)
def test_depth_is_in_the_name(name):
    with torch.device("meta"):
        model = models.create(name, 10)
    weighted = 1 + 1  # stem and classifier
    weighted += sum(2 for m in model.modules() if isinstance(m, (BasicBlock, PreActBasic)))
    weighted += sum(3 for m in model.modules() if isinstance(m, Bottleneck))
    depth = {"resnet8": 8, "resnet20": 20, "resnet18": 18, "resnext50": 50, "wrn28": 26}
    for key, value in depth.items():
        if key in name:
            # a WideResNet's 28 counts the 1x1 shortcuts of its stages: 26 + 3 - 1
            assert weighted == value


# --- images of every kind --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(
    ("channels", "size"), [(3, (32, 32)), (1, (28, 28)), (3, (33, 47)), (1, (8, 8)), (4, (64, 64))]
)
def test_logits_for_any_image(name, channels, size):
    images = torch.randn(2, channels, *size, generator=seeded())
    model = light(name, 7, in_chans=channels)
    with torch.no_grad():
        logits = model(images)
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", SMALL)
def test_the_first_stage_sees_every_pixel(name):
    model = light(name, features_only=True)
    with torch.no_grad():
        first = model(torch.randn(1, 3, 21, 19, generator=seeded()))[0]
    assert first.shape[2:] == (21, 19)


@pytest.mark.parametrize("name", SMALL)
def test_gradients_reach_every_parameter(name):
    # Zeroed residual branches pass no gradient inwards at the start.
    keeps = {} if "convnext" in name else {"zero_init_last": False}
    model = light(name, **keeps).train()
    F.cross_entropy(model(torch.randn(4, 3, 16, 16, generator=seeded())), torch.tensor([0, 1, 2, 3])).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


# --- initialisation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "zero"),
    [
        ("cifar_resnet18", True),
        ("cifar_resnext50_32x4d", True),
        ("cifar_resnet8", False),
        ("cifar_resnet20", False),
        ("cifar_preact_resnet18", False),
        ("cifar_wrn28_8", False),
        ("cifar_wrn28_10", False),
    ],
)
def test_zero_initialised_residuals_where_the_protocol_has_them(name, zero):
    model = light(name)
    blocks = [m for m in model.modules() if isinstance(m, (BasicBlock, Bottleneck, PreActBasic))]
    images = torch.randn(2, 3, 16, 16, generator=seeded())

    def quiet(block):  # is the block its own shortcut (and the last activation, where there is one)?
        kept = {}
        hook = block.register_forward_hook(lambda _, inputs, output: kept.update(x=inputs[0].clone(), y=output))
        with torch.no_grad():
            model(images)
        hook.remove()
        if block.downsample is not None:
            return None
        shortcut = kept["x"] if isinstance(block, PreActBasic) else kept["x"].relu()
        return torch.equal(kept["y"], shortcut)

    verdicts = {quiet(block) for block in blocks} - {None}
    if name == "cifar_resnext50_32x4d":  # its light relative has no block without projection
        verdicts = {bool((block.bn3.weight == 0).all()) for block in blocks}
    assert verdicts == {zero}


@pytest.mark.parametrize("name", [n for n in SMALL if "convnext" not in n])
def test_classifier_starts_at_normal_001_also_after_a_reset(name):
    model = light(name, 4000)
    for classes in (4000, 3000):
        model.reset_classifier(classes)
        head = model.get_classifier()
        assert isinstance(head, torch.nn.Linear)
        assert head.weight.shape == (classes, model.num_features)
        # the standard error of a standard deviation is std / sqrt(2 n); n is 96,000 or more
        assert abs(head.weight.std().item() - 0.01) < 4 * 0.01 / (2 * head.weight.numel()) ** 0.5
        assert not head.bias.any()


def test_stem_of_the_preactivation_networks_is_drawn_as_the_other_convolutions():
    torch.manual_seed(0)
    weight = models.create("cifar_preact_resnet18", 10, in_chans=64).stem.conv.weight
    assert abs(weight.std().item() - (2 / (64 * 9)) ** 0.5) < 4 * (2 / (64 * 9)) ** 0.5 / (2 * weight.numel()) ** 0.5


# --- shortcuts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(4, 4), (5, 7), (1, 1)])
def test_pad_shortcut_against_a_slow_twin(size):
    x = torch.randn(2, 3, *size, generator=seeded())
    out = PadShortcut(3, 5, stride=2)(x)
    expected = torch.zeros(2, 5, (size[0] + 1) // 2, (size[1] + 1) // 2)
    for channel in range(3):
        for row in range(expected.shape[2]):
            for column in range(expected.shape[3]):
                expected[:, channel, row, column] = x[:, channel, 2 * row, 2 * column]
    assert torch.equal(out, expected)


def test_resnet20_has_parameter_free_shortcuts_and_projections_on_request():
    plain, projected = models.create("cifar_resnet20", 10), models.create("cifar_resnet20", 10, shortcut="projection")
    assert sum(isinstance(m, PadShortcut) for m in plain.modules()) == 2
    assert not any(isinstance(m, PadShortcut) for m in projected.modules())
    assert parameters(projected) - parameters(plain) == 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64  # 272,474: option B


def test_wide_resnet_shortcuts_read_the_activated_input():
    block = light("cifar_wrn28_8").stages[1].blocks[0]
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 16, 8, 8, generator=seeded())
    with torch.no_grad():
        assert torch.allclose(block(x), block.downsample(F.relu(F.batch_norm(x, torch.zeros(16), torch.ones(16)))))


# --- timm's conventions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_features_match_their_description(name):
    assert timm.is_model(name)
    images = torch.randn(2, 3, 32, 32, generator=seeded())
    model = light(name)
    features = light(name, features_only=True)
    with torch.no_grad():
        maps = features(images)
        last, intermediates = model.forward_intermediates(images)
        whole = model.forward_features(images)
    assert features.feature_info.reduction()[-1] == (4 if name in THREE_STAGES else 8)
    assert len(maps) == len(intermediates) == len(features.feature_info)
    for info, given, got in zip(features.feature_info.get_dicts(), maps, intermediates, strict=True):
        assert given.shape == (2, info["num_chs"], 32 // info["reduction"], 32 // info["reduction"])
        assert torch.allclose(given, got, atol=1e-6)
    assert torch.equal(last, whole)


@pytest.mark.parametrize("name", SMALL)
def test_last_index_means_the_last_stage(name):
    model = light(name)
    images = torch.randn(1, 3, 16, 16, generator=seeded())
    with torch.no_grad():
        every = model.forward_intermediates(images, intermediates_only=True)
        last = model.forward_intermediates(images, indices=1, intermediates_only=True)
        first = model.forward_intermediates(images, indices=[0], stop_early=True, intermediates_only=True)
    assert len(last) == len(first) == 1
    with torch.no_grad():
        stopped, second = model.forward_intermediates(images, indices=[1], stop_early=True)
    assert torch.equal(last[0], every[-1])
    assert torch.equal(second[0], every[1])
    if "convnext" not in name:
        assert torch.equal(stopped, every[1])
    assert torch.equal(first[0], every[0])


@pytest.mark.parametrize("name", SMALL)
def test_head_and_features_make_the_logits(name):
    model = light(name)
    images = torch.randn(2, 3, 16, 16, generator=seeded())
    with torch.no_grad():
        features = model.forward_features(images)
        assert torch.equal(model.forward_head(features), model(images))
        pooled = model.forward_head(features, pre_logits=True)
        assert pooled.shape == (2, model.num_features)
        model.reset_classifier(0)
        assert torch.allclose(model(images), pooled, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in SMALL if "convnext" not in n])
def test_class_activation_is_linear_in_the_last_map(name):
    """Zhou et al. 2016, arXiv:1512.04150: the mean of the activation map of a class is its logit."""
    model = light(name)
    images = torch.randn(2, 3, 16, 16, generator=seeded())
    with torch.no_grad():
        head = model.get_classifier()
        cam = torch.einsum("bchw,kc->bkhw", model.forward_features(images), head.weight)
        assert torch.allclose(cam.mean((2, 3)) + head.bias, model(images), atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_pruned_models_keep_what_was_asked_for(name):
    model = light(name)
    images = torch.randn(1, 3, 16, 16, generator=seeded())
    with torch.no_grad():
        expected = model.forward_intermediates(images, indices=[1], intermediates_only=True)[0]
        before = parameters(model)
        assert model.prune_intermediate_layers([1]) == [1]
        got = model.forward_intermediates(images, indices=[1], stop_early=True, intermediates_only=True)[0]
    assert torch.equal(got, expected)
    assert parameters(model) < before


@pytest.mark.parametrize("name", SMALL)
def test_output_stride_trades_stride_for_dilation(name):
    images = torch.randn(1, 3, 32, 32, generator=seeded())
    with torch.no_grad():
        assert light(name, output_stride=2).forward_features(images).shape[-2:] == (16, 16)
    with pytest.raises(ValueError, match="output_stride must be one of"):
        light(name, output_stride=32)


def test_stem_stride_halves_every_map_and_is_told_of():
    images = torch.randn(1, 3, 32, 32, generator=seeded())
    model = models.create("cifar_resnet8", 10, stem_stride=2)
    with torch.no_grad():
        maps = model.forward_intermediates(images, intermediates_only=True)
        dilated = models.create("cifar_resnet8", 10, stem_stride=2, output_stride=4).forward_features(images)
    assert [tuple(found.shape[1:]) for found in maps] == [(16, 16, 16), (16, 16, 16), (32, 8, 8), (64, 4, 4)]
    assert [entry["reduction"] for entry in model.feature_info] == [32 // found.shape[-1] for found in maps]
    assert dilated.shape[-2:] == (8, 8)
    for options, message in (
        ({"stem_stride": 3}, "stem_stride must be 1 or 2, got 3"),
        ({"stem_stride": 2, "output_stride": 2}, r"output_stride must be one of \[4, 8\]"),
    ):
        with pytest.raises(ValueError, match=message):
            models.create("cifar_resnet8", 10, **options)


@pytest.mark.parametrize("name", SMALL)
def test_gradient_checkpointing_changes_nothing(name):
    model = light(name)
    images = torch.randn(2, 3, 16, 16, generator=seeded(), requires_grad=True)
    (plain,) = torch.autograd.grad(model(images).sum(), images)
    model.set_grad_checkpointing(True)
    (checkpointed,) = torch.autograd.grad(model(images).sum(), images)
    assert torch.equal(plain, checkpointed)


@pytest.mark.parametrize("name", SMALL)
def test_config_names_the_first_convolution_and_the_classifier(name):
    model = light(name, 3, in_chans=2)
    config = model.pretrained_cfg
    assert model.get_submodule(config["first_conv"]).weight.shape[1:] == (2, 3, 3)
    assert model.get_submodule(config["classifier"]) is model.get_classifier()
    assert config["input_size"] == (3, 32, 32)


def test_same_seed_same_weights():
    one, two = light("cifar_resnet18").state_dict(), light("cifar_resnet18").state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)


# --- create ----------------------------------------------------------------------------------------------------------


def test_any_timm_model_by_name():
    with torch.device("meta"):
        assert models.create("resnet18", 3, in_chans=1).conv1.weight.shape == (64, 1, 7, 7)


def test_list_models_takes_a_pattern():
    assert models.list_models("*wrn*") == ["cifar_wrn28_10", "cifar_wrn28_8"]
    assert set(models.list_models("cifar*")) == set(SMALL) <= set(timm.list_models())


def test_unknown_name_suggests_the_closest():
    with pytest.raises(ValueError, match=r"'cifar_resnet19'.*cifar_resnet18"):
        models.create("cifar_resnet19", 10)
    with pytest.raises(ValueError, match=r"beside those of timm there are .*cifar_resnet8"):
        models.create("qqqqqqqqqqqqqqqqqq", 10)


def test_each_close_name_is_told_once():
    with pytest.raises(ValueError, match="closest names: cifar_resnet8, cifar_resnet20, ") as caught:
        models.create("cifar_resnet9", 10)
    close = str(caught.value).partition("closest names: ")[2].split(", ")
    assert len(close) == len(set(close)) == 5


def test_without_timm_the_extra_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "timm" or name.startswith("mixaug.models")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModuleNotFoundError, match=r"timm.*pip install 'mixaug\[train\]'") as caught:
        importlib.import_module("mixaug.models")
    # By this the command knows that an extra is missing.
    assert caught.value.name == "timm"


@pytest.mark.parametrize("name", SMALL)
def test_unknown_option_is_an_error(name):
    with pytest.raises(TypeError, match="widht"):
        models.create(name, 10, widht=3)


def test_no_weights_are_published_for_the_small_models():
    with pytest.raises(RuntimeError, match="pretrained"):
        models.create("cifar_resnet8", 10, pretrained=True)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"num_classes": -1}, ValueError),
        ({"num_classes": 2.0}, TypeError),
        ({"num_classes": True}, TypeError),
        ({"num_classes": 10, "in_chans": 0}, ValueError),
        ({"num_classes": 10, "in_chans": "3"}, TypeError),
    ],
)
def test_numbers_are_checked(arguments, error):
    with pytest.raises(error, match=r"mixaug\.models\.create expected"):
        models.create("cifar_resnet8", **arguments)
    with pytest.raises(TypeError, match="name to be a str"):
        models.create(8, 10)


def test_classes_check_their_arguments():
    with pytest.raises(ValueError, match="shortcut must be"):
        models.create("cifar_resnet8", 10, shortcut="C")
    with pytest.raises(ValueError, match="one entry per stage"):
        SmallResNet(BasicBlock, (1, 1), (8, 8, 8))
    with pytest.raises(ValueError, match="one entry per stage"):
        models.create("cifar_wrn28_8", 10, layers=(1, 1))
    with pytest.raises(ValueError, match="cannot drop channels"):
        PadShortcut(4, 2)
    with pytest.raises(TypeError, match="fixed stem"):
        models.create("cifar_convnext_tiny", 10, patch_size=2)
