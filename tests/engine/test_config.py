"""Composition, protocol rules, precedence, hashes and checks of values."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

pytest.importorskip("hydra", reason="the engine needs the train extra")

from mixaug.engine.config import compose, config_hash, list_choices, matching_values, validate, with_config_dir
from mixaug.engine.errors import ConfigError
from mixaug.engine.run import run_name
from quick_compose import quick, real

CIFAR = ("data=cifar100", "data.root=/nowhere", "model=cifar_resnet18", "protocol=openmixup_cifar")


def test_rules_of_the_protocol_set_what_depends_on_the_policy_and_the_data() -> None:
    config = compose([*CIFAR, "policy=cutmix"])
    assert (config.policy.alpha, config.policy.per) == (0.2, "batch")
    assert config.protocol.applied["policy.alpha"] == 0.2
    assert "rules" not in config.protocol
    assert compose([*CIFAR, "policy=mixup"]).policy.alpha == 1.0
    assert config.augment.padding_mode == "reflect"
    assert compose([*CIFAR, "data=cifar10"][1:]).augment.padding_mode == "zeros"


def test_the_command_line_wins_over_a_rule() -> None:
    config = compose([*CIFAR, "policy=cutmix", "policy.alpha=0.7"])
    assert config.policy.alpha == 0.7
    assert "policy.alpha" not in config.protocol.applied


def test_a_later_rule_wins_and_rules_that_do_not_match_are_silent() -> None:
    rules = [
        {"when": {"data": ["a", "b"]}, "set": {"epochs": 1, "seed": 2}},
        {"when": {"data": "a", "model": "m"}, "set": {"epochs": 3}},
        {"when": {"data": "c"}, "set": {"epochs": 4}},
    ]
    assert matching_values({"rules": rules}, {"data": "a", "model": "m"}) == {"epochs": 3, "seed": 2}
    assert matching_values({"rules": rules}, {"data": "a", "model": "n"}) == {"epochs": 1, "seed": 2}
    assert matching_values({}, {"data": "a"}) == {}


@pytest.mark.parametrize("rule", [{"when": {}}, {"when": {"colour": "red"}, "set": {}}, {"if": {}, "set": {}}])
def test_malformed_rules_are_refused(rule: dict[str, dict[str, str]]) -> None:
    with pytest.raises(ConfigError, match="protocol rule 0"):
        matching_values({"rules": [rule]}, {})


def test_hash_sees_what_changes_a_run_and_nothing_else() -> None:
    same = config_hash(compose([]))
    for neutral in ("root=/elsewhere", "log_every=7", "workers=3", "progress=false", "checkpoint_every_steps=5"):
        assert config_hash(compose([neutral])) == same, neutral
    for other in ("seed=1", "policy=mixup", "optimizer.lr=0.2", "epochs=31", "data=digits"):
        assert config_hash(compose([other])) != same, other


def test_hash_does_not_depend_on_how_a_value_was_set() -> None:
    by_rule = compose([*CIFAR, "policy=cutmix"])
    by_hand = compose([*CIFAR, "policy=cutmix", "policy.alpha=0.2", "policy.per=batch"])
    assert config_hash(by_rule) == config_hash(by_hand)


def test_run_name_says_policy_model_data_and_seed() -> None:
    config = compose(["policy=mixup", "seed=4"])
    assert run_name(config) == f"mixup-cifar_resnet8-photos-s4-{config_hash(config)}"


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("batch_size=0", "batch_size"),
        ("batch_size=2.5", "batch_size"),
        ("epochs=-1", "epochs"),
        ("accumulate=0", "accumulate"),
        ("seed=-1", "seed"),
        ("seed=null", "seed"),
        ("optimizer.lr=0", "optimizer.lr"),
        ("optimizer.lr=nan", "optimizer.lr"),
        ("optimizer.lr=fast", "optimizer.lr"),
        ("optimizer.weight_decay=-1", "optimizer.weight_decay"),
        ("schedule.min_lr=-0.1", "schedule.min_lr"),
        ("clip_grad_norm=0", "clip_grad_norm"),
        ("ema.decay=1.0", "ema.decay"),
        ("precision=fp8", "precision"),
        ("device=tpu", "device"),
        ("compile=maybe", "compile"),
        ("augment.padding_mode=mirror", "augment.padding_mode"),
        ("augment.crop_padding=-1", "augment.crop_padding"),
        ("augment.flip=1", "augment.flip"),
        ("checkpoint_every_steps=0", "checkpoint_every_steps"),
        ("threads=0", "threads"),
        ("log_every=0", "log_every"),
        ("protocol.figure=luckiest", "protocol.figure"),
        ("root=''", "root"),
    ],
)
def test_values_out_of_range_name_their_key(override: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        compose([override])


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("polcy=mixup", "polcy"),
        ("policy.alhpa=1", "alhpa"),
        ("policy=cutmx", "cutmx"),
        ("augment.crop=4", "crop"),
        ("data.size=4", "size"),
        ("optimizer.betas=4", "betas"),
        ("+epoch=4", "epoch"),
    ],
)
def test_unknown_keys_and_choices_fail(override: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        compose([override])


def test_missing_data_folder_is_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"data\.root"):
        compose(["data=cifar10"])


def test_a_composed_config_cannot_be_changed_by_accident() -> None:
    config = compose([])
    with pytest.raises(Exception, match="read-only"):
        config.epochs = 3


def test_validate_refuses_a_config_with_a_missing_key() -> None:
    config = OmegaConf.create(OmegaConf.to_container(compose([])))
    del config["augment"]
    with pytest.raises(ConfigError, match="augment"):
        validate(config)


def test_list_choices_knows_the_groups() -> None:
    assert {"none", "mixup", "cutmix"} <= set(list_choices("policy"))
    with pytest.raises(ConfigError, match="unknown config group"):
        list_choices("polices")


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        [*CIFAR, "policy=cutmix", "policy.alpha=0.7", "seed=3"],
        ["experiment=diabetes", "policy=cmixup", "policy.stages=[layer1]", "schedule={sched:constant}"],
        ["model=timm", "model.name=vit_tiny_patch16_224", "+model.img_size=32", "++model.depth=1", "~data.valid_share"],
        ["experiment=guided", "mixer.schedule={min_lr:0.001}", "root=/elsewhere"],
    ],
)
def test_the_quick_composition_of_the_tests_is_hydras(overrides: list[str]) -> None:
    (config, choices), (expected, chosen) = quick(overrides), real(overrides)
    assert config == expected
    assert list(config) == list(expected)
    assert choices == chosen
    assert OmegaConf.to_yaml(config) == OmegaConf.to_yaml(expected)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["policy._target_=mixaug.Sometimes"], r"policy=none"),
        (["policy=cutmix", "policy._target_=mixaug.OneOf"], r"policy=cutmix"),
        (["objective._target_=mixaug.objectives.RegMixup"], r"objective=cross_entropy"),
        (["experiment=other"], r"policy=none"),
    ],
)
def test_a_run_is_made_with_what_it_is_named_after(overrides, named, tmp_path):
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\npolicy:\n  _target_: mixaug.Sometimes\n"
    (tmp_path / "experiment" / "other.yaml").write_text(text)
    with pytest.raises(
        ConfigError, match=rf"would stand in tables under the name of {named}: give it a file of your own"
    ):
        compose(with_config_dir(overrides, tmp_path))
    # A file of one's own has a name of its own.
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "half.yaml").write_text("_target_: mixaug.Sometimes\npolicy: cutmix\n")
    made = compose(with_config_dir(["policy=half"], tmp_path))
    assert (made.choices.policy, made.policy._target_) == ("half", "mixaug.Sometimes")
