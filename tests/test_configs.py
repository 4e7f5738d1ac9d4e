"""Every shipped config composes and builds; policy files repeat their class, name for name and default for default."""

from __future__ import annotations

import copy
import inspect
import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("hydra", reason="the configs need the train extra")
pytest.importorskip("timm", reason="the configs need the train extra")

from omegaconf import DictConfig, OmegaConf

import mixaug
from helpers import ours
from mixaug.engine import build
from mixaug.engine.batches import Batches
from mixaug.engine.config import GROUPS, compose, list_choices, matching_values, mixer_settings, validate
from mixaug.engine.errors import ConfigError
from mixaug.engine.idle import idle_in_all, idle_settings, keys_given
from mixaug.leaderboard.grid import expand
from mixaug.networks import Frozen
from mixaug.objectives import Composition
from mixaug.passes import as_objective
from mixaug.preparation import Inspection
from mixaug.step import MixStep

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
PROTOCOL_DATA = {
    "cmixup": "airfoil",
    "default": "digits",
    "openmixup_cifar": "cifar100",
    "openmixup_cifar_vit": "cifar100",
    "openmixup_tiny_imagenet": "tiny_imagenet",
}
PROTOCOL_MODELS = {
    "cmixup": ["mlp"],
    "default": ["cifar_resnet8"],
    "openmixup_cifar": ["cifar_resnet18", "cifar_resnext50_32x4d", "cifar_wrn28_8"],
    "openmixup_cifar_vit": ["deit_small_patch16_224", "swin_tiny_patch4_window7_224", "cifar_convnext_tiny"],
    "openmixup_tiny_imagenet": ["cifar_resnet18", "cifar_resnext50_32x4d"],
}
# OpenMixup's alphas, section by section of docs/protocols.md.
TWO = {"alignmix": 2.0, "attentivemix": 2.0, "automix": 2.0, "samix": 2.0}
ALPHAS = {
    "openmixup_cifar": {
        "mixup": 1.0, "cutmix": 0.2, "saliencymix": 0.2, "fmix": 0.2, "gridmix": 0.2,
        "manifoldmix": 2.0, "puzzlemix": 1.0, "adautomix": 1.0, **TWO,
    },
    "openmixup_cifar_vit": {
        "mixup": 0.8, "cutmix": 2.0, "saliencymix": 0.2, "fmix": 1.0, "gridmix": 1.0,
        "manifoldmix": 2.0, "puzzlemix": 2.0, "adautomix": 1.0, **TWO,
        "transmix": 1.0, "tokenmix": 1.0, "mixpro": 1.0,
    },
    "openmixup_tiny_imagenet": {
        "mixup": 1.0, "cutmix": 1.0, "saliencymix": 1.0, "fmix": 1.0, "gridmix": 0.2,
        "manifoldmix": 0.2, "puzzlemix": 1.0, "adautomix": 1.0, **TWO,
    },
}  # fmt: skip
LEARNED = ("adautomix", "automix", "samix")
CIFAR, IMAGENET = ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.201]), ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


class Facts:
    """What a model needs to know of a data set."""

    outputs = 7
    input_shape: tuple[int, ...] = (3, 32, 32)


def read(group: str, name: str) -> DictConfig:
    config = OmegaConf.load(CONFIGS / group / f"{name}.yaml")
    assert isinstance(config, DictConfig)
    return config


def with_root(overrides: list[str], data: str) -> list[str]:
    needed = {"root": "/nowhere", "target": "y"}
    return overrides + [f"data.{key}={value}" for key, value in needed.items() if key in list(read("data", data))]


def built_model(config: DictConfig, facts: Facts | None = None) -> nn.Module:
    with torch.device("meta"):
        return build.build_model(config, facts or Facts())


@cache
def model_of(section: str) -> nn.Module:
    """A model without values that several tests look at, by its section of a config as YAML."""
    return built_model(OmegaConf.create({"model": OmegaConf.create(section)}))


def test_every_policy_has_a_file_and_every_file_a_policy() -> None:
    assert list_choices("policy") == sorted(ours())


@pytest.mark.parametrize("name", list_choices("policy"))
def test_policy_file_repeats_names_and_defaults(name: str) -> None:
    written = OmegaConf.to_container(read("policy", name))
    assert isinstance(written, dict)
    info = mixaug.describe(name)
    assert written.pop("_target_") == f"mixaug.policies.{info.target.__qualname__}"
    defaults = {key: list(v) if isinstance(v, tuple) else v for key, v in info.defaults.items()}
    assert written == defaults
    assert isinstance(build.build_policy(compose([f"policy={name}"])), mixaug.Policy)


@pytest.mark.parametrize("name", list_choices("objective"))
def test_objective_file_repeats_names_and_defaults(name: str) -> None:
    config = compose([f"objective={name}"])
    objective = build.build_objective(config)
    parameters = inspect.signature(type(objective)).parameters
    for key, value in build.options(config.objective).items():
        default = parameters[key].default
        assert (list(default) if isinstance(default, tuple) else default) == value, key
    if "mean" in parameters:
        # One that goes back to pixels has to be told how the images were normalised.
        objective = build.build_objective(compose([f"objective={name}", "objective.mean=0", "objective.std=1"]))
    labels = torch.randn(4, 7) if objective.task == "regression" else torch.tensor([0, 1, 2, 3])
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 7))
    wants = as_objective(objective).wants
    beside = {name: copy.deepcopy(model) for name in wants.networks if name != "composition"}
    if "composition" in wants.networks:
        pairs = [[0, 0], [1, 0], [0, 1], [1, 1]]
        beside["composition"] = Composition(pairs, torch.randn(2, 3), torch.randn(2, 3), nn.Linear(6, 7))
    partners = mixaug.partners.Stream(wants.streams[0], label="uniform") if wants.streams else None
    # One looks at pairs that a policy of its own draws.
    policy = mixaug.create("selecmix") if name == "selecmix" else mixaug.create("mixup", partners=partners)
    step = MixStep(model, policy, objective, networks=beside)
    images = torch.rand(4, 3, 8, 8)
    if getattr(objective, "refresh_every", None):
        outputs, features = torch.randn(4, 7), torch.randn(4, 5)
        objective.on_refresh(Inspection("train", outputs, features, labels, torch.zeros(7, 5), None))
    streams = {name: mixaug.Batch(images) for name in wants.streams}
    assert step(mixaug.Batch(images, labels, rows=torch.arange(4), streams=streams))[0].ndim == 0


def test_a_set_without_splits_keeps_the_folder_of_an_earlier_version() -> None:
    from mixaug.data import SPLIT_OPTIONS
    from mixaug.engine.config import LATER_OF_DATA

    assert {key: LATER_OF_DATA[key] for key in SPLIT_OPTIONS} == SPLIT_OPTIONS


@pytest.mark.parametrize("name", list_choices("data"))
def test_data_file_repeats_names_and_defaults(name: str) -> None:
    from mixaug.data import SPLIT_OPTIONS, regression
    from mixaug.data.loaders import LOADERS

    config = compose(with_root([f"data={name}"], name))
    written = OmegaConf.to_container(read("data", name))
    assert isinstance(written, dict)
    given = {key: value for key, value in written.items() if key not in ("_target_", "name")}
    parameters = inspect.signature(LOADERS[name]).parameters
    splits = {} if name in regression.LOADERS else {k: v for k, v in SPLIT_OPTIONS.items() if k not in parameters}
    assert list(given) == [*parameters, *splits]
    for key, parameter in parameters.items():
        if parameter.default is not parameter.empty:
            assert given[key] == parameter.default, key
    assert {key: given[key] for key in splits} == splits
    if "root" in given:
        with pytest.raises(FileNotFoundError, match="/nowhere"):
            build.load_data(config)
    else:
        assert build.load_data(config).outputs == {"digits": 10, "photos": 10, "framed_photos": 2}.get(name, 1)


@pytest.mark.parametrize("name", [n for n in list_choices("model") if n != "timm"])
def test_model_builds_and_is_named_like_its_file(name: str) -> None:
    config = compose([f"model={name}"])
    assert config.model.name == name
    facts = Facts()
    if name == "lstnet":
        # It forecasts the series that it is given.
        facts.outputs = 3
    assert sum(p.numel() for p in built_model(config, facts).parameters()) > 0


def test_any_timm_model_by_name() -> None:
    config = compose(["model=timm", "model.name=vit_tiny_patch16_224", "+model.img_size=32"])
    assert built_model(config)(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 7)


@pytest.mark.parametrize("schedule", list_choices("schedule"))
@pytest.mark.parametrize("optimizer", list_choices("optimizer"))
def test_optimizers_and_schedules_build_and_step(optimizer: str, schedule: str) -> None:
    config = compose([f"optimizer={optimizer}", f"schedule={schedule}", "epochs=5"])
    step = MixStep(nn.Linear(3, 2), mixaug.create("none"), build.build_objective(config))
    made = build.build_optimizer(config, step)
    scheduler = build.build_scheduler(config, made, updates_per_epoch=4)
    assert made.param_groups[0]["lr"] == config.optimizer.lr
    scheduler.step_update(1)
    scheduler.step(1)
    loss, _ = step(torch.rand(4, 3).unsqueeze(-1).squeeze(-1), torch.tensor([0, 1, 0, 1]))
    loss.backward()
    made.step()


@pytest.mark.parametrize("name", list_choices("protocol"))
def test_protocol_composes_with_every_model_and_policy_and_builds(name: str) -> None:
    data = PROTOCOL_DATA[name]
    base = with_root([f"data={data}", f"protocol={name}"], data)
    for model in PROTOCOL_MODELS[name]:
        config = compose([*base, f"model={model}"])
        assert config.protocol.name == name
        built_model(config)
    # Policies are composed as their file and the rules say, which a whole composition agrees with for one of them.
    model = PROTOCOL_MODELS[name][0]
    usual = rules_of(name, model, "none")
    changed = [policy for policy in list_choices("policy") if rules_of(name, model, policy) != usual]
    assert bool(changed) == (name != "default")
    # All others are their file and the usual settings.
    build_as_ruled(name, [*dict.fromkeys([*changed, "none", "cutmix", "mixup", "transmix", "cmixup"])])


@pytest.mark.slow
@pytest.mark.parametrize("name", list_choices("protocol"))
def test_protocol_takes_every_policy(name: str) -> None:
    build_as_ruled(name, list_choices("policy"))


def build_as_ruled(name: str, policies: list[str]) -> None:
    data, model = PROTOCOL_DATA[name], PROTOCOL_MODELS[name][0]
    base = with_root([f"data={data}", f"protocol={name}"], data)
    usual = OmegaConf.to_container(compose([*base, f"model={model}", "policy=none"]))
    assert isinstance(usual, dict)
    whole = compose([*base, f"model={model}", "policy=cutmix"])
    for policy in policies:
        config = OmegaConf.create({**usual, "policy": read("policy", policy)})
        for key, value in rules_of(name, model, policy).items():
            assert OmegaConf.select(config, key, default=Facts) is not Facts, key
            OmegaConf.update(config, key, value, merge=False)
        if policy == "cutmix":
            assert (config.policy, config.optimizer, config.schedule) == (whole.policy, whole.optimizer, whole.schedule)
        validate(config)
        build.build_policy(config)
        if name in ALPHAS and policy in {*ALPHAS[name], "resizemix", "smoothmix", "deit"}:
            assert config.policy.per == "batch"


@pytest.mark.parametrize(("protocol", "policy"), [(p, m) for p, methods in ALPHAS.items() for m in methods])
def test_protocol_sets_the_published_alpha(protocol: str, policy: str) -> None:
    model, alpha = PROTOCOL_MODELS[protocol][0], ALPHAS[protocol][policy]
    assert rules_of(protocol, model, policy)["policy.alpha"] == alpha
    if policy == "mixup":
        # That rules reach the policy is shown by one of a protocol; composing takes long.
        config = composed(protocol, model, policy)
        assert config.policy.alpha == config.protocol.applied["policy.alpha"] == alpha


@pytest.mark.parametrize("protocol", list(ALPHAS))
def test_protocol_repeats_what_the_published_runs_did(protocol: str) -> None:
    data = PROTOCOL_DATA[protocol]
    base = with_root([f"data={data}", f"protocol={protocol}", f"model={PROTOCOL_MODELS[protocol][0]}"], data)
    assert compose([*base, "policy=fmix"]).policy.spectrum == "reference"
    assert compose([*base, "policy=smoothmix"]).policy.reference_labels is True
    resizemix = compose([*base, "policy=resizemix"]).policy
    assert (resizemix.rule, resizemix.alpha, list(resizemix.scope)) == ("beta", 1.0, [0.1, 0.8])
    assert resizemix.interpolation == ("bilinear" if protocol == "openmixup_cifar_vit" else "nearest")
    assert compose(with_root([f"data={data}", "policy=fmix"], data)).policy.spectrum == "isotropic"


@pytest.mark.parametrize(
    ("data", "bandwidth", "stages", "alpha", "batch", "epochs", "lr"),
    [
        ("airfoil", 1.75, ["layer1"], 2.0, 16, 100, 1e-2),
        ("no2", 1.2, None, 2.0, 32, 100, 1e-2),
        ("exchange_rate", 0.05, ["layer1"], 1.5, 128, 100, 1e-3),
        ("communities_crime", 4.0, ["layer1"], 2.0, 16, 200, 1e-3),
        ("skillcraft", 1.0, None, 2.0, 32, 100, 1e-2),
        ("rcf_mnist", 0.2, ["layer4"], 2.0, 64, 30, 7e-5),
    ],
)
def test_cmixup_reads_like_the_authors_settings(
    data: str, bandwidth: float, stages: list[str] | None, alpha: float, batch: int, epochs: int, lr: float
) -> None:
    base = ["protocol=cmixup", f"data={data}", "data.root=/nowhere"]
    config = compose([*base, "policy=cmixup"])
    assert (config.policy.bandwidth, config.policy.stages, config.policy.alpha) == (bandwidth, stages, alpha)
    assert (config.batch_size, config.epochs, config.optimizer.lr) == (batch, epochs, lr)
    assert (config.optimizer.opt, config.optimizer.weight_decay, config.schedule.sched) == ("adam", 0.0, "constant")
    assert (config.drop_last, config.protocol.figure, config.policy.per) == (True, "selected", "batch")
    assert config.pool == ("batch" if data == "rcf_mnist" else "all")
    assert config.data.get("fit_on", "all") == "all"
    assert config.reshuffle == (data not in ("communities_crime", "skillcraft"))
    assert compose([*base, "policy=none"]).pool is None


def test_openmixup_cifar_reads_like_the_page() -> None:
    base = ["protocol=openmixup_cifar", "data.root=/nowhere"]
    config = compose([*base, "data=cifar100", "model=cifar_resnet18"])
    assert (config.epochs, config.batch_size, config.precision) == (200, 100, "float32")
    assert (config.optimizer.opt, config.optimizer.lr, config.optimizer.momentum) == ("momentum", 0.1, 0.9)
    assert (config.optimizer.weight_decay, config.optimizer.filter_bias_and_bn) == (1e-4, False)
    assert (config.schedule.sched, config.schedule.min_lr, config.schedule.warmup_epochs) == ("cosine", 0.0, 0)
    assert (config.augment.crop_padding, config.augment.padding_mode, config.augment.flip) == (4, "reflect", True)
    assert compose([*base, "data=cifar10", "model=cifar_resnet18"]).augment.padding_mode == "zeros"
    assert compose([*base, "data=image_sheets", "model=cifar_resnet18"]).augment.padding_mode == "reflect"

    wide = compose([*base, "data=cifar100", "model=cifar_wrn28_8"])
    assert (wide.epochs, wide.optimizer.lr, wide.optimizer.weight_decay) == (400, 0.03, 1e-3)
    cut = [*base, "model=cifar_resnext50_32x4d", "policy=cutmix"]
    assert compose([*cut, "data=cifar100"]).optimizer.weight_decay == 5e-4
    assert compose([*cut, "data=cifar10"]).optimizer.weight_decay == 1e-4
    blend = [*base, "model=cifar_resnext50_32x4d", "policy=mixup", "data=cifar100"]
    assert compose(blend).optimizer.weight_decay == 1e-4


@pytest.mark.parametrize(
    ("model", "lr", "drop_path", "clip", "precision", "transform"),
    [
        ("deit_small_patch16_224", 1e-3, 0.0, 5.0, "float32", "cifar_vit_train"),
        ("swin_tiny_patch4_window7_224", 5e-4, 0.2, 5.0, "float16", "cifar_vit_train"),
        ("cifar_convnext_tiny", 1e-3, 0.3, None, "float16", "cifar100_randaugment_train"),
    ],
)
def test_openmixup_cifar_vit_reads_like_the_page(
    model: str, lr: float, drop_path: float, clip: float | None, precision: str, transform: str
) -> None:
    overrides = ["protocol=openmixup_cifar_vit", "data=cifar100", "data.root=/nowhere", f"model={model}"]
    config = compose(overrides)
    assert (config.optimizer.lr, config.model.drop_path_rate) == (lr, drop_path)
    assert (config.clip_grad_norm, config.precision, config.data.transform) == (clip, precision, transform)
    assert config.schedule.warmup_lr == pytest.approx(1e-5 * lr)
    assert (config.schedule.warmup_epochs, config.schedule.step_on_epochs) == (20, False)
    assert (config.objective.label_smoothing, config.optimizer.weight_decay) == (0.1, 0.05)


def composed(protocol: str, model: str, policy: str, *others: str) -> DictConfig:
    data = PROTOCOL_DATA[protocol]
    return compose(
        with_root([f"data={data}", f"protocol={protocol}", f"model={model}", f"policy={policy}", *others], data)
    )


@pytest.mark.parametrize(
    ("protocol", "model", "block_nums", "t_size", "normalisation"),
    [
        ("openmixup_cifar", "cifar_resnet18", [2, 4, 8, 16], 4, CIFAR),
        ("openmixup_cifar_vit", "deit_small_patch16_224", [2, 4, 8], None, IMAGENET),
        ("openmixup_cifar_vit", "swin_tiny_patch4_window7_224", [2, 4, 8], None, IMAGENET),
        ("openmixup_cifar_vit", "cifar_convnext_tiny", [2, 4, 8, 16], 4, CIFAR),
        ("openmixup_tiny_imagenet", "cifar_resnext50_32x4d", [2, 4, 8], None, IMAGENET),
    ],
)
def test_puzzlemix_reads_like_the_published_configs(
    protocol: str,
    model: str,
    block_nums: list[int],
    t_size: int | None,
    normalisation: tuple[list[float], list[float]],
) -> None:
    policy = composed(protocol, model, "puzzlemix").policy
    assert (policy.block_nums, policy.transport, policy.t_size) == (block_nums, True, t_size)
    assert (policy.mean, policy.std) == normalisation
    # The rest are the authors' values, our defaults.
    assert (policy.n_labels, policy.beta, policy.gamma, policy.eta) == (3, 1.2, 0.5, 0.2)
    assert (policy.neigh_size, policy.t_eps, policy.clean_weight, policy.adv_p) == (4, 0.8, 0.0, 0.0)


@pytest.mark.parametrize("protocol", list(ALPHAS))
def test_guided_policies_read_like_the_published_configs(protocol: str) -> None:
    model = PROTOCOL_MODELS[protocol][0]
    attentive = composed(protocol, model, "attentivemix").policy
    assert (attentive.k, attentive.network, attentive.network_size) == (None, None, 224)
    assert composed(protocol, model, "alignmix").policy.reference is True
    if protocol != "openmixup_cifar_vit":
        assert rules_of(protocol, model, "comixup")["policy.dirichlet"] == 2.0


def test_weight_decay_of_cutting_methods() -> None:
    rules = {policy: rules_of("openmixup_cifar", "cifar_resnext50_32x4d", policy) for policy in ours()}
    assert {policy for policy, values in rules.items() if values.get("optimizer.weight_decay") == 5e-4} == {
        *("attentivemix", "cutmix", "fmix", "gridmix", "resizemix", "saliencymix", "smoothmix")
    }


def test_policies_of_attention_read_like_the_published_configs() -> None:
    deit, swin, convnext = PROTOCOL_MODELS["openmixup_cifar_vit"]

    def at(model: str, policy: str) -> DictConfig:
        return composed("openmixup_cifar_vit", model, policy)

    assert (at(deit, "transmix").clip_grad_norm, at(deit, "transmix").schedule.min_lr) == (5.0, 1e-6)
    assert (at(swin, "transmix").clip_grad_norm, at(swin, "transmix").schedule.min_lr) == (10.0, 0.0)
    assert at(deit, "transmix").policy.attention_share == 0.5
    for model in (deit, swin):
        assert (at(model, "mixpro").policy.patch_size, at(model, "mixpro").policy.attention) == (64, "own")
    assert at(convnext, "mixpro").policy.patch_size is None
    assert (at(deit, "tokenmix").policy.minimum_tokens, at(deit, "tokenmix").policy.mode) == (14, "block")
    assert at(deit, "smmix").policy.minmax == [0.25, 0.75]
    for policy in ("transmix", "mixpro", "tokenmix", "smmix"):
        assert at(deit, policy).policy.per == "batch"


# min_lr of the model; lr, momentum, min_lr and warm-up of the mixer; what the rules set of the policy.
OWN = {"lam_channel": False, "upsampling": "nearest", "mask_weight_end": None, "scope": [0.1, 1.0]}
SCALED = {"k": 0.25, "eta": 1.0, "upsampling": "bilinear", "mask_adjust": 0.25, "reference": True, "dropout": 0.0}
MANY = {"n_images": 3, "lam_channel": False, "upsampling": "bilinear", "beta": 0.3, "reference": True}
SLOW = {"momentum_end": 0.999999}
LATE = {"momentum_end": 0.99996, "scope": [0.25, 1.0]}
FADES = {**LATE, "mask_weight_end": 0.0}
ATTENDED = {"k": -1.0, "eta": 1.0, "dropout": 0.1, "mask_adjust": 0.0, "upsampling": "nearest", **FADES}
PLAIN = (None, None, None, None)


@pytest.mark.parametrize(
    ("protocol", "model", "policy", "min_lr", "mixer", "policy_values"),
    [
        ("openmixup_cifar", "cifar_resnet18", "automix", 0.05, PLAIN, {**OWN, **SLOW}),
        ("openmixup_cifar", "cifar_resnext50_32x4d", "automix", 0.05, PLAIN, {**OWN, **SLOW}),
        ("openmixup_cifar", "cifar_wrn28_8", "automix", 1e-3, (0.03, 0.0, None, None), {**OWN, **SLOW}),
        ("openmixup_cifar", "cifar_resnet18", "samix", 0.05, PLAIN, {**SCALED, **SLOW}),
        ("openmixup_cifar", "cifar_wrn28_8", "samix", 1e-3, (0.03, 0.0, None, None), {**SCALED, **SLOW}),
        ("openmixup_cifar", "cifar_resnet18", "adautomix", 0.05, PLAIN, {**MANY, **SLOW}),
        ("openmixup_tiny_imagenet", "cifar_resnet18", "automix", 0.05, (0.1, None, 1e-3, None), {**OWN, **SLOW}),
        (
            *("openmixup_tiny_imagenet", "cifar_resnet18", "samix", 0.05, (0.1, None, 1e-3, None)),
            {**SCALED, "k": -1.0, "mask_adjust": 0.0, "reference": False},
        ),
        (
            *("openmixup_tiny_imagenet", "cifar_resnext50_32x4d", "samix", 0.05, (0.1, None, 1e-3, None)),
            {**SCALED, "mask_adjust": 0.0, "reference": False},
        ),
        (
            *("openmixup_tiny_imagenet", "cifar_resnet18", "adautomix", 0.0, (0.1, None, None, None)),
            {**MANY, "beta": 0.4},
        ),
        (
            *("openmixup_tiny_imagenet", "cifar_resnext50_32x4d", "adautomix", 0.05, (0.1, None, 1e-3, None)),
            {**MANY, "beta": 0.4},
        ),
        (
            *("openmixup_cifar_vit", "deit_small_patch16_224", "automix", 1e-4, (1e-3, None, 1e-4, 0)),
            {**OWN, **FADES, "lam_channel": True, "stage": None},
        ),
        (
            *("openmixup_cifar_vit", "swin_tiny_patch4_window7_224", "automix", 1e-4, (1e-3, None, 1e-4, 0)),
            {**OWN, **FADES, "lam_channel": True, "stage": "layers.3.downsample"},
        ),
        (
            *("openmixup_cifar_vit", "cifar_convnext_tiny", "automix", 1e-4, (1e-3, None, 1e-4, 0)),
            {**OWN, **FADES, "lam_channel": True, "stage": None},
        ),
        (
            *("openmixup_cifar_vit", "deit_small_patch16_224", "samix", 1e-4, (7.5e-4, None, 1e-4, 0)),
            {**ATTENDED, "stage": None},
        ),
        (
            *("openmixup_cifar_vit", "swin_tiny_patch4_window7_224", "samix", 1e-4, (5e-4, None, 1e-4, 0)),
            {**ATTENDED, "stage": "layers.3.downsample"},
        ),
        (
            *("openmixup_cifar_vit", "cifar_convnext_tiny", "samix", 1e-4, (7.5e-4, None, 1e-4, 0)),
            {**ATTENDED, "upsampling": "bilinear"},
        ),
        (
            *("openmixup_cifar_vit", "deit_small_patch16_224", "adautomix", 1e-4, (1e-3, None, 1e-4, 0)),
            {**MANY, **LATE, "lam_channel": True, "upsampling": "nearest", "generator_probability": 0.8},
        ),
        (
            *("openmixup_cifar_vit", "swin_tiny_patch4_window7_224", "adautomix", 1e-4, (1e-3, None, 1e-4, 0)),
            {**MANY, **LATE, "lam_channel": True, "upsampling": "nearest", "min_lam": 0.0},
        ),
    ],
)
def test_learned_mixers_read_like_the_published_configs(
    protocol: str,
    model: str,
    policy: str,
    min_lr: float,
    mixer: tuple[float | None, ...],
    policy_values: dict[str, Any],
) -> None:
    config = composed(protocol, model, policy)
    assert config.schedule.min_lr == min_lr
    own = config.mixer
    assert (own.lr, own.momentum, own.schedule.min_lr, own.schedule.warmup_epochs) == mixer
    assert (own.weight_decay, own.schedule.sched, own.schedule.warmup_lr) == (None, None, None)
    assert {key: config.policy[key] for key in policy_values} == policy_values
    # What the policy's group then trains with.
    step = MixStep(model_of(OmegaConf.to_yaml(config.model)), build.build_policy(config), build.build_objective(config))
    build.check_training(config, step, 1)
    group = build.build_optimizer(config, step).param_groups[-1]
    assert group["mixer"] is True
    assert group["lr"] == (config.optimizer.lr if own.lr is None else own.lr)
    if "momentum" in group:
        assert group["momentum"] == (0.9 if own.momentum is None else own.momentum)


@pytest.mark.parametrize(
    ("model", "policy", "lr", "drop_path", "clip", "warmup", "precision"),
    [
        ("deit_small_patch16_224", "automix", 5e-4, 0.1, 10.0, 5, "float32"),
        ("deit_small_patch16_224", "samix", 7.5e-4, 0.1, 20.0, 20, "float32"),
        ("deit_small_patch16_224", "adautomix", 5e-4, 0.1, 10.0, 5, "float32"),
        ("swin_tiny_patch4_window7_224", "automix", 5e-4, 0.2, 10.0, 20, "float32"),
        ("swin_tiny_patch4_window7_224", "samix", 5e-4, 0.2, 20.0, 20, "float32"),
        ("swin_tiny_patch4_window7_224", "adautomix", 5e-4, 0.2, 10.0, 20, "float32"),
        ("cifar_convnext_tiny", "automix", 2e-3, 0.3, None, 20, "float32"),
        ("cifar_convnext_tiny", "samix", 1e-3, 0.3, 20.0, 20, "float32"),
        ("swin_tiny_patch4_window7_224", "puzzlemix", 5e-4, 0.2, 5.0, 20, "float16"),
    ],
)
def test_learned_mixers_of_transformers_change_the_recipe(
    model: str, policy: str, lr: float, drop_path: float, clip: float | None, warmup: int, precision: str
) -> None:
    config = composed("openmixup_cifar_vit", model, policy)
    assert (config.optimizer.lr, config.model.drop_path_rate, config.clip_grad_norm) == (lr, drop_path, clip)
    assert (config.schedule.warmup_epochs, config.precision) == (warmup, precision)
    assert config.schedule.warmup_lr == pytest.approx(1e-5 * lr)


@cache
def protocol_section(name: str) -> Any:
    return OmegaConf.to_container(read("protocol", name).protocol)


def rules_of(protocol: str, model: str, policy: str) -> dict[str, Any]:
    """What the rules of a protocol set, without the rest of a config, which takes long to compose."""
    chosen = {"data": PROTOCOL_DATA[protocol], "model": model, "policy": policy}
    return matching_values(protocol_section(protocol), chosen)


@pytest.mark.parametrize("protocol", list_choices("protocol"))
def test_only_learned_mixers_get_settings_of_a_mixer_or_another_schedule(protocol: str) -> None:
    for model in PROTOCOL_MODELS[protocol]:
        usual = composed(protocol, model, "none")
        for policy in ours():
            values = rules_of(protocol, model, policy)
            min_lr = values.get("schedule.min_lr", usual.schedule.get("min_lr"))
            assert min_lr < values.get("optimizer.lr", usual.optimizer.lr)
            if policy in LEARNED or (policy, model) == ("transmix", "swin_tiny_patch4_window7_224"):
                continue
            recipe = {key: v for key, v in values.items() if key.startswith(("mixer.", "schedule.", "model.", "prec"))}
            assert recipe == {key: v for key, v in usual.protocol.applied.items() if key in recipe}, policy
            assert not [key for key in values if key.startswith("mixer.")], policy


def test_rules_set_only_what_the_policies_take() -> None:
    for protocol, model in ((p, m) for p in PROTOCOL_MODELS for m in PROTOCOL_MODELS[p]):
        for policy in ours():
            named = {k.removeprefix("policy.") for k in rules_of(protocol, model, policy) if k.startswith("policy.")}
            assert named <= set(mixaug.describe(policy).defaults), (protocol, model, policy)


def test_a_mixer_that_is_given_takes_back_the_settings_of_a_trained_one() -> None:
    frozen = ["policy.frozen=true", "mixer.lr=null", "mixer.schedule.min_lr=null"]
    config = composed("openmixup_tiny_imagenet", "cifar_resnet18", "automix", *frozen)
    assert mixer_settings(config) == {}
    step = MixStep(model_of(OmegaConf.to_yaml(config.model)), build.build_policy(config), build.build_objective(config))
    build.check_training(config, step, 1)
    kept = composed("openmixup_tiny_imagenet", "cifar_resnet18", "automix", "policy.frozen=true")
    with pytest.raises(ConfigError, match="no learned mixer to train"):
        build.check_training(kept, step, 1)


# Every data set without and with the last policy: what one adds, others hardly do. The slow suite takes all of them.
@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", list_choices("experiment"))
def test_experiment_composes_for_each_point_of_its_grid(name: str, whole: bool) -> None:
    base = [f"experiment={name}"]
    if name in ("cifar100_coarse", "exchange_rate", "regression"):
        base.append("data.root=/nowhere")
    base += {
        **{system: ["networks.teacher=/nowhere"] for system in ("cutmixpick", "ferkd", "mixkd")},
        "mixoe": ["streams.outliers.data.root=/nowhere"],
    }.get(name, [])
    grid: Any = compose(base).grid
    if name in ("cutmixpick", "ferkd", "mixkd", "mixoe"):
        # Systems with a network or a stream of their own.
        cells = expand([*base, "root=/nowhere"])
        assert [cell.config["seed"] for cell in cells] == [0, 1, 2, 3, 4]
        config = compose(cells[0].overrides)
        assert config.choices.objective == name
        beside = {network: Frozen(nn.Identity()) for network in config.networks}
        step = MixStep(built_model(config), build.build_policy(config), build.build_objective(config), networks=beside)
        wants = as_objective(step.objective).wants
        assert (set(wants.streams), set(wants.views)) == (set(config.streams), set(config.views))
        return
    if OmegaConf.is_list(grid):
        # A union of grids over all there is; what of it can be trained is found by trying, in test_side_by_side.
        assert {key for part in grid for key, values in part.items() if values == "all"} == {"policy", "objective"}
        return
    assert grid.policy[0] == "none"
    assert set(grid.policy) <= set(list_choices("policy"))
    for data in grid.get("data", [None]):
        chosen = [] if data is None else [f"data={data}"]
        for policy in grid.policy if whole else [grid.policy[0], grid.policy[-1]]:
            config = compose([*base, *chosen, f"policy={policy}", f"seed={grid.seed[-1]}"])
            build.build_policy(config)
            # Mixing partners from the whole set is for mixing: no mixing has none.
            assert (config.pool is None) == (
                policy == "none"
                or name
                in (
                    "cifar100_coarse",
                    "digits",
                    "guided",
                    "guided_vit",
                    "long_tail",
                    "photos",
                    "photos_vit",
                    "worst_group",
                )
            )


def test_each_file_says_how_to_run_it() -> None:
    files = sorted(CONFIGS.rglob("*.yaml"))
    assert files
    for path in files:
        head = next(line for line in path.read_text().splitlines() if not line.startswith("# @package"))
        assert head.startswith("#"), path
        assert any(f"mixaug {command} " in head for command in ("train", "benchmark", "search")), path
        known = path in (CONFIGS / "train.yaml", CONFIGS / "search.yaml") or path.parent.name in (*GROUPS, "search")
        assert known, path


IDLE = {
    "schedule=constant schedule.min_lr=0.01": "schedule.min_lr=0.01 does nothing in a schedule with sched=constant,",
    "schedule.warmup_lr=0.01": "schedule.warmup_lr=0.01 does nothing without a warm-up",
    "schedule=constant schedule.step_on_epochs=false": "schedule.step_on_epochs=false does nothing where",
    "schedule=multistep": "schedule.decay_milestones=[100, 150] does nothing within epochs=30, so that",
    "augment.crop_padding=0 augment.padding_mode=reflect": "augment.padding_mode=reflect does nothing without padding",
    "optimizer.weight_decay=0 optimizer.filter_bias_and_bn=true": "optimizer.filter_bias_and_bn=true does nothing",
    "ema.warmup=true": "ema.warmup=true does nothing without averaged weights",
    "optimizer=adam +optimizer.momentum=0.5": "optimizer.momentum=0.5 does nothing with optimizer.opt=adam",
    "optimizer=sgd optimizer.opt=lookahead_adamw optimizer.momentum=0.5": "optimizer.momentum=0.5 does nothing with",
    "policy=automix optimizer=adamw mixer.momentum=0.5": "mixer.momentum=0.5 does nothing with optimizer.opt=adamw",
}
#: What makes each of them do something, or asks for nothing.
BUSY = (
    "schedule.min_lr=0.01 schedule.warmup_epochs=2 schedule.warmup_lr=0.01 schedule.step_on_epochs=false",
    "schedule=multistep schedule.decay_milestones=[10] augment.padding_mode=reflect sampling=class",
    "ema.warmup=true ema.decay=0.9 optimizer=adamw optimizer.filter_bias_and_bn=false optimizer.eps=1e-6",
    "optimizer=sgd optimizer.opt=rmsprop optimizer.momentum=0.5",
    # What another part takes over.
    "policy=automix schedule=constant schedule.min_lr=0.01 mixer.schedule.sched=cosine",
    "policy=automix schedule.warmup_lr=0.01 mixer.schedule.warmup_epochs=1",
    "augment.crop_padding=0 augment.padding_mode=reflect +streams.o={data: {name: digits}, augment: {crop_padding: 2}}",
    # The rules of a protocol may say what this run has no use for, and what is removed says nothing.
    "data=digits protocol=openmixup_cifar augment.crop_padding=0",
    "protocol=openmixup_tiny_imagenet data=tiny_imagenet data.root=x optimizer=adamw",
    "optimizer=sgd optimizer.opt=adamw",
    "~schedule.warmup_lr",
    "~schedule.warmup_lr=1e-05",
    # So does what the files say already.
    "schedule=constant schedule.min_lr=0 schedule.warmup_lr=1e-05 augment.crop_padding=0 augment.padding_mode=zeros",
    "optimizer=adamw optimizer.weight_decay=0 optimizer.filter_bias_and_bn=true ema.warmup=false",
    # Nothing is known of what is not timm's.
    "schedule=constant schedule._target_=mymod.schedule schedule.min_lr=0.01 schedule.warmup_lr=0.01",
    "optimizer=adamw optimizer._target_=mymod.adamw +optimizer.momentum=0.5 optimizer.weight_decay=0",
    # Nor of what depends on a data set.
    "data=skillcraft data.root=x data.scaling=none data.fit_on=all",
)


def test_a_setting_that_does_nothing_beside_the_others_is_told_and_never_refused() -> None:
    for line, said in IDLE.items():
        (told,) = idle_settings(compose(words(line)), keys_given(words(line)))
        assert told.startswith(said), line
    for line in BUSY:
        assert idle_settings(compose(words(line)), keys_given(words(line))) == [], line
    for line, said in {
        "sampling=class reshuffle=false": "reshuffle=false keeps the order of the first epoch, and sampling=class",
        "policy=automix mixer.schedule.warmup_lr=0.1": "mixer.schedule.warmup_lr=0.1 does nothing without a warm-up",
    }.items():
        with pytest.raises(ConfigError, match=said):
            compose(line.split())


def words(line: str) -> list[str]:
    """Overrides of a line, in which braces hold together."""
    return re.findall(r"(?:[^\s{]|\{.*\})+", line)


def test_a_grid_is_told_of_what_none_of_its_runs_uses() -> None:
    runs = {
        line: (compose(line.split()), keys_given(line.split()))
        for line in (
            "schedule=constant schedule.min_lr=0.01 seed=1",
            "schedule=constant schedule.min_lr=0.01 seed=2",
            "schedule=constant schedule.min_lr=0.02",
            "schedule=cosine_epoch schedule.min_lr=0.01",
            "schedule=multistep epochs=3",
        )
    }
    first, again, other, busy, late = runs.values()
    assert idle_in_all([first, busy, late]) == idle_settings(*late) != []
    assert idle_in_all([first, again, other]) == [*idle_settings(*first), *idle_settings(*other)]


def test_a_momentum_is_for_optimizers_that_have_one() -> None:
    step = MixStep(nn.Linear(3, 2), mixaug.create("none"), nn.CrossEntropyLoss())
    for line in (["optimizer=adam", "+optimizer.momentum=0.5"], ["optimizer=sgd", "optimizer.opt=adamw"]):
        assert "momentum" not in build.build_optimizer(compose(line), step).param_groups[0]
    for line in (["optimizer.momentum=0.5"], ["optimizer=nesterov", "optimizer.momentum=0.5"]):
        assert build.build_optimizer(compose(line), step).param_groups[0]["momentum"] == 0.5


def test_a_network_beside_the_model_that_nobody_looks_at_is_refused() -> None:
    config = compose(["data=digits", "+networks.teacher={_target_: torch.nn.Identity}"])
    step = MixStep(nn.Linear(3, 2), mixaug.create("none"), nn.CrossEntropyLoss())
    with pytest.raises(
        ConfigError, match=r"networks: neither objective=cross_entropy nor policy=none looks at teacher"
    ):
        build.check_wants(config, step.objective, step.policy, SimpleNamespace(metadata=()))


WRONG_VALUES = {
    "optimizer.momentum=2": "optimizer.momentum must be a number at least 0.0 and below 1.0, got 2",
    "optimizer.momentum=x": "optimizer.momentum must be a number at least 0.0 and below 1.0, got 'x'",
    "optimizer=adamw optimizer.betas=3": "optimizer.betas must be null or a list of numbers from 0, below 1.0, got 3",
    "optimizer=adamw optimizer.betas=[0.9,1.5]": r"optimizer.betas must be .*, got \[0.9, 1.5\]",
    "schedule.warmup_epochs=-1": "schedule.warmup_epochs must be an integer of at least 0, got -1",
    "schedule.warmup_epochs=x": "schedule.warmup_epochs must be an integer of at least 0, got 'x'",
    "schedule=multistep schedule.decay_milestones=x": "schedule.decay_milestones must be null or a list of",
    "schedule=multistep schedule.decay_milestones=[1,x]": "schedule.decay_milestones must be .*, got",
    "schedule=multistep schedule.decay_rate=x": "schedule.decay_rate must be a number above 0.0, got 'x'",
    "augment.mean=x": "augment.mean must be null or a list of numbers, got x",
    "augment.std=[0,0,0]": r"augment.std must be null or a list of positive numbers, got \[0, 0, 0\]",
    "ema=0.9": "ema must be a group of settings, got 0.9",
    "device=cuda:x": "device must be auto, cpu, cuda or cuda:<index>, got 'cuda:x'",
}


def test_values_of_optimizer_schedule_and_images_are_checked_before_anything_is_built() -> None:
    for line, told in WRONG_VALUES.items():
        with pytest.raises(ConfigError, match=told):
            compose(line.split())


def test_what_optimizer_and_schedule_refuse_is_said_before_a_run_begins() -> None:
    step = MixStep(nn.Linear(3, 2), mixaug.create("none"), nn.CrossEntropyLoss())
    for line, told in (
        ("optimizer.opt=nope", "optimizer: .*nope"),
        ("schedule.sched=nope", "schedule: .*nope"),
        ("+schedule.cycle_decay=x +schedule.cycle_mul=2 epochs=9", "schedule: these settings give no rate of epoch 9"),
    ):
        with pytest.raises(ConfigError, match=told):
            build.check_training(compose(line.split()), step, 3)
    before = step.state_dict()
    build.check_training(compose(["schedule=multistep", "schedule.decay_milestones=[3]"]), step, 3)
    assert all(torch.equal(value, before[name]) for name, value in step.state_dict().items())


def test_means_of_images_are_as_many_as_these_have_channels() -> None:
    config = compose(["data=digits", "augment.mean=[0.1,0.2]", "device=cpu"])
    world = SimpleNamespace(rank=0, size=1, device=torch.device("cpu"), is_main=True)
    with pytest.raises(ConfigError, match=r"augment.mean=\[0.1, 0.2\] has 2 numbers, but images of digits"):
        Batches(config, build.load_data(config), world)


def test_a_pool_is_for_policies_that_take_partners_from_it() -> None:
    for policy, refused in (("comixup", True), ("none", False)):
        config = compose([f"policy={policy}", "pool=all", "data=digits"])
        made = build.build_policy(config)
        if refused:
            with pytest.raises(ConfigError, match="pool=all does nothing for policy=comixup"):
                build.with_pool(config, made, None)
        else:
            assert build.with_pool(config, made, None) is made
