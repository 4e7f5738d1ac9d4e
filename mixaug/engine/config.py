"""Compose, complete and check the configuration of a run.

Hydra composes the files under ``configs/``. Two things are added here, both visible in the config that a run
folder keeps:

- ``choices`` names the file taken from each group, which is how a run is called.
- a protocol's ``rules`` are applied. Published recipes set some values by method, backbone or data set (CutMix
  alpha 0.2 on CIFAR, zero padding on CIFAR-10), so a protocol carries a list of ``{when: ..., set: ...}``.
  Every rule whose ``when`` matches the choices is applied in order; what the command line sets wins. The rules
  themselves are then replaced by ``protocol.applied``, the values they set.
  ``protocol.models``, the models of the published runs, says nothing to a run and is left out, too.

Order of precedence, weakest first: ``train.yaml``, group files, protocol, experiment, rules, command line.

A folder of one's own with such files (``<folder>/policy/mine.yaml``) joins through :func:`with_config_dir`.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from mixaug.engine.config_values import check_choice_of, check_integer, check_number, check_numbers, is_device, shown
from mixaug.engine.errors import ConfigError
from mixaug.engine.explained import explained, settings_of
from mixaug.engine.lengths import fault_of_budget

__all__ = [
    "GROUPS",
    "compose",
    "composed_by_hydra",
    "config_folder",
    "config_hash",
    "list_choices",
    "mixer_settings",
    "plain",
    "plain_section",
    "protocol_models",
    "validate",
    "with_config_dir",
]

GROUPS = ("data", "model", "policy", "objective", "optimizer", "schedule", "protocol", "experiment")

# These keys say where, how loudly and how often a run writes, how far a command takes it, or why it has its length;
# they cannot change what it computes.
NEUTRAL_KEYS = (
    *("budget", "root", "grid", "log_every", "progress", "tensorboard", "pictures_every_epochs"),
    *("checkpoint_every_steps", "checkpoint_every_epochs", "workers", "stop_after"),
)

#: The beginning of the override that names further places with config files.
SEARCH_PATH = "hydra.searchpath="

PRECISIONS = ("float32", "bfloat16", "float16")
PADDING_MODES = ("zeros", "reflect")
FIGURES = ("last", "best", "median10", "best10", "selected")
POOLS = ("all", "batch")
SAMPLINGS = ("class", "group")
MIXER_KEYS = ("lr", "momentum", "weight_decay", "schedule")
MIXER_SCHEDULE_KEYS = ("sched", "min_lr", "warmup_epochs", "warmup_lr")
MIXER_SCHEDULES = ("constant", "cosine")
#: These kinds of timm's schedules have no ``min_lr``.
NO_MINIMUM = ("none", "constant", "step", "multistep")

KNOWN_KEYS = frozenset(
    {*GROUPS, *NEUTRAL_KEYS} - {"experiment"}
    | {"accumulate", "augment", "batch_size", "channels_last", "choices", "clip_grad_norm", "compile"}
    | {"device", "drop_last", "ema", "epochs", "eval_batch_size", "evaluate_every", "measure", "mixer", "networks"}
    | {"init_from", "pool", "precision", "reshuffle", "sampling", "seed", "streams", "sync_batchnorm"}
    | {"threads", "views", "world_size"}
)

#: These settings came later, and are as good as absent at these values: runs from before keep their folders.
LATER: Mapping[str, Any] = {
    "evaluate_every": 1,
    "init_from": None,
    "measure": None,
    "networks": {},
    "sampling": None,
    "streams": {},
    "views": [],
}
LATER_OF_DATA: Mapping[str, Any] = {
    # These are `mixaug.data.SPLIT_OPTIONS`; a test compares. Completion and help pages shall not wait for torch.
    "classes": None,
    "class_seed": None,
    "per_class": None,
    "valid_share": 0.0,
    "imbalance": None,
    "split_seed": 0,
    "own_valid": False,
    "valid_folder": None,
    "metadata": None,
}
#: Data sets that had one of them before.
OF_OLD = (("digits", "split_seed"), ("image_sheets", "classes"))

#: Keys of a protocol's file that no run's config keeps.
OF_PROTOCOL_FILES = ("rules", "models")

STREAM_KEYS = ("data", "batch_size", "augment")
AUGMENT_KEYS = ("crop_padding", "padding_mode", "flip")


def config_folder() -> Path:
    """The folder of the shipped configs: ``mixaug/configs`` of an installation, ``configs`` beside it in a checkout.

    Raises:
        ConfigError: neither is there.
    """
    package = Path(__file__).resolve().parents[1]
    folders = [package / "configs", package.parent / "configs"]
    for folder in folders:
        if (folder / "train.yaml").is_file():
            return folder
    raise ConfigError(
        f"no configs at {folders[0]} or {folders[1]}: the installation of mixaug is incomplete, install it again"
    )


def with_config_dir(overrides: Sequence[str], folder: str | Path | None) -> list[str]:
    """The overrides, and beside them the one that lets Hydra look for config files in a folder of one's own, too.

    Args:
        overrides: Hydra overrides.
        folder: with config files in folders named like the groups; None changes nothing.

    Raises:
        ConfigError: no such folder, or ``hydra.searchpath`` is among the overrides already.
    """
    if folder is None:
        return list(overrides)
    if not str(folder).strip() or not Path(folder).is_dir():
        raise ConfigError(f"--config-dir expects a folder of config files, got {str(folder)!r}")
    if any(override.startswith(SEARCH_PATH) for override in overrides):
        raise ConfigError(f"give --config-dir or {SEARCH_PATH.rstrip('=')}, not both")
    place = json.dumps(f"file://{Path(folder).resolve()}", ensure_ascii=False)
    return [f"{SEARCH_PATH}[{place}]", *overrides]


def list_choices(group: str) -> list[str]:
    """Names of the shipped files of one config group, ``search`` among them, sorted."""
    if group not in (*GROUPS, "search"):
        raise ConfigError(f"unknown config group {group!r}; the groups are {', '.join(GROUPS)}")
    return sorted(path.stem for path in (config_folder() / group).glob("*.yaml"))


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """The complete, resolved, checked configuration for a list of command-line overrides.

    Args:
        overrides: Hydra overrides, e.g. ``["policy=cutmix", "policy.alpha=0.5", "seed=3"]``.

    Returns:
        A read-only config with every interpolation resolved, ready for ``train`` and ``run_folder``.

    Raises:
        ConfigError: an unknown key, an unknown choice, or a value out of range.
    """
    overrides = list(overrides)
    composed, choices = _hydra_compose(overrides)
    given = {override.lstrip("+~").split("=", 1)[0] for override in overrides}
    applied = {key: value for key, value in matching_values(composed.protocol, choices).items() if key not in given}
    if applied:
        composed, choices = _hydra_compose([f"{k}={_literal(v)}" for k, v in applied.items()] + overrides)
    # What is missing or leads nowhere is said here. Wrapping the resolved values anew would take most of the time.
    mixer = plain(composed).get("mixer")
    OmegaConf.resolve(composed)
    for key in OF_PROTOCOL_FILES:
        composed.protocol.pop(key, None)
    composed.protocol["applied"] = applied
    composed["choices"] = {group: choices.get(group) for group in GROUPS}
    _check_names(composed, given)
    if isinstance(mixer, dict) and mixer.get("schedule") is None:
        composed.mixer["schedule"] = dict.fromkeys(MIXER_SCHEDULE_KEYS)
    validate(composed)
    OmegaConf.set_readonly(composed, True)
    return composed


def _check_names(config: DictConfig, given: Collection[str]) -> None:
    """Raise where a run would be named after one policy or objective and be made with another."""
    for group in ("policy", "objective"):
        choice, target = config.choices[group], (config.get(group) or {}).get("_target_")
        if f"{group}._target_" in given or _shipped_target(group, str(choice)) not in (None, target):
            raise ConfigError(
                f"{group}._target_={target} would stand in tables under the name of {group}={choice}: give it a file "
                f"of your own, {group}/<name>.yaml in a folder that --config-dir names (docs/benchmark.md)"
            )


@cache
def _shipped_target(group: str, choice: str) -> str | None:
    path = config_folder() / group / f"{choice}.yaml"
    found: str | None = OmegaConf.select(OmegaConf.load(path), "_target_") if path.is_file() else None
    return found


def composed_by_hydra(name: str, overrides: list[str]) -> DictConfig:
    """What Hydra makes of a file of the config folder and overrides, its own section ``hydra`` included.

    Raises:
        ConfigError: it makes nothing of it.
    """
    try:
        composed = _by_hydra(name, overrides)
    except Exception as error:
        # Beside its own errors, Hydra's composition raises whatever its parts do: ValueError for a number as the choice
        # of a group, OmegaConf's errors for values that do not merge.
        reason = explained(error, overrides, lambda: _settings(name, overrides))
        raise ConfigError(reason) from None
    _check_sources(composed.hydra.runtime.config_sources)
    return composed


def _settings(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    return settings_of(overrides, (*GROUPS, "search", SEARCH_PATH[:-1]), _by_hydra, name)


def _by_hydra(name: str, overrides: list[str]) -> DictConfig:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    # A program that was started by Hydra has a state of its own, which is set aside meanwhile.
    around = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(config_folder()), version_base="1.3"):
            return hydra_compose(name, overrides=overrides, return_hydra_config=True)
    finally:
        GlobalHydra.instance().hydra = around


def _hydra_compose(overrides: list[str]) -> tuple[DictConfig, dict[str, str | None]]:
    composed = composed_by_hydra("train", overrides)
    broken = [group for group in GROUPS if composed.get(group) is not None and not OmegaConf.is_dict(composed[group])]
    if broken:
        raise ConfigError(f"{broken[0]} must be a group of settings, got {composed[broken[0]]!r}")
    choices = dict(composed.hydra.runtime.choices)
    OmegaConf.set_struct(composed, False)
    del composed["hydra"]
    return composed, choices


def _check_sources(sources: Sequence[Mapping[str, str]]) -> None:
    """Raise where a file of a folder of one's own would stand behind a shipped one of the same name, unseen."""
    shipped = [path.relative_to(config_folder()) for path in sorted(config_folder().rglob("*.yaml"))]
    for source in sources:
        if source["provider"] in ("hydra", "main", "schema") or source["schema"] not in ("file", "pkg"):
            continue
        own = Path(source["path"]) if source["schema"] == "file" else importlib.resources.files(source["path"])
        if not own.is_dir():
            raise ConfigError(f"no folder of config files at {own}")
        twice = [path for path in shipped if own.joinpath(*path.parts).is_file()]
        if twice:
            raise ConfigError(
                f"{own / str(twice[0])} has the name of a file of mixaug, {twice[0]}: give it another name"
            )


@cache
def protocol_models(protocol: str) -> tuple[str, ...]:
    """Names of the models whose published runs a shipped protocol describes; none for one that is nobody's."""
    if protocol not in list_choices("protocol"):
        return ()
    section = OmegaConf.load(config_folder() / "protocol" / f"{protocol}.yaml").protocol
    return tuple(section.get("models") or ())


def matching_values(protocol: Mapping[str, Any], choices: Mapping[str, str | None]) -> dict[str, Any]:
    """The values that a protocol's rules set for these choices; a later rule wins over an earlier one."""
    values: dict[str, Any] = {}
    for number, rule in enumerate(protocol.get("rules") or []):
        if set(rule) != {"when", "set"}:
            raise ConfigError(f"protocol rule {number} needs exactly the keys `when` and `set`, got {list(rule)}")
        unknown = set(rule["when"]) - set(GROUPS)
        if unknown:
            raise ConfigError(f"protocol rule {number} asks for unknown groups {sorted(unknown)}")
        if all(choices.get(group) in _as_list(wanted) for group, wanted in rule["when"].items()):
            values.update(rule["set"])
    return values


def _as_list(value: Any) -> list[Any]:
    return [value] if isinstance(value, str) else list(value)


def _literal(value: Any) -> str:
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value)
    return json.dumps(value)


def plain(config: DictConfig) -> dict[str, Any]:
    """The config as nested dicts and lists, interpolations resolved."""
    container = _resolved(config)
    if not isinstance(container, dict):
        raise ConfigError(f"the configuration must be a mapping, got {type(container).__name__}")
    return {str(key): value for key, value in container.items()}


def plain_section(config: DictConfig, name: str) -> Any:
    """``plain(config).get(name)``, for which the other sections are not gone through."""
    section = config.get(name)
    return _resolved(section) if OmegaConf.is_config(section) else section


def _resolved(config: Any) -> Any:
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    try:
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError(f"the configuration is incomplete: give {error.full_key}=...") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"the configuration is incomplete: {' '.join(str(error).split())}") from error


def mixer_settings(config: DictConfig) -> dict[str, Any]:
    """What is set for a learned mixer apart from the model, by dotted keys: ``{"mixer.lr": 0.1}``."""
    return told_of_mixer(plain_section(config, "mixer") or {})


def told_of_mixer(mixer: Mapping[str, Any]) -> dict[str, Any]:
    """`mixer_settings` of the section alone."""
    every = {**mixer, **{f"schedule.{key}": value for key, value in (mixer.get("schedule") or {}).items()}}
    return {f"mixer.{key}": value for key, value in every.items() if key != "schedule" and value is not None}


def config_hash(config: DictConfig) -> str:
    """Ten hexadecimal digits over everything in the config that can change what a run computes."""
    content = {key: value for key, value in plain(config).items() if key not in NEUTRAL_KEYS}
    content["protocol"] = {k: v for k, v in content["protocol"].items() if k != "applied"}
    content["choices"] = {k: v for k, v in content["choices"].items() if k != "experiment"}
    if not told_of_mixer(content.get("mixer") or {}):
        # A section of nulls changes nothing, and runs from before there was one keep their folders.
        content.pop("mixer", None)
    content = {key: value for key, value in content.items() if key not in LATER or value != LATER[key]}
    content["data"] = without_defaults(content["data"])
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def without_defaults(data: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a data set without those that came later and leave it as it is."""
    return {
        key: value
        for key, value in data.items()
        if (data.get("name"), key) in OF_OLD or key not in LATER_OF_DATA or value != LATER_OF_DATA[key]
    }


def validate(config: DictConfig) -> None:
    """Check every value the engine itself uses; what a policy or a loss takes, it checks on construction.

    Raises:
        ConfigError: names the key, what came and what was expected.
    """
    unknown = sorted(set(map(str, config)) - KNOWN_KEYS)
    missing = sorted(KNOWN_KEYS - set(map(str, config)))
    if unknown or missing:
        wrong = [f"{kind} top-level keys {keys}" for kind, keys in (("unknown", unknown), ("missing", missing)) if keys]
        raise ConfigError(", ".join(wrong))
    for section in ("augment", "ema"):
        if not isinstance(config[section], DictConfig):
            raise ConfigError(f"{section} must be a group of settings, got {config[section]!r}")
    for key in ("choices.policy", "data.name"):
        # Both are part of the name of the run's folder.
        value = OmegaConf.select(config, key)
        if not isinstance(value, str) or not value.isprintable() or not value.strip() or set(value) & set("/\\"):
            raise ConfigError(
                f"{key} must be a name without / and \\, since the run's folder is called by it, got {value!r}"
            )
    model = OmegaConf.select(config, "model.name")
    if not isinstance(model, str) or not model.isprintable() or "\\" in model:
        raise ConfigError(f"model.name must be a name on one line without \\, got {model!r}")
    counts = ("batch_size", "eval_batch_size", "epochs", "accumulate", "log_every", "world_size")
    for key in (*counts, "evaluate_every", "checkpoint_every_epochs"):
        check_integer(config, key, minimum=1)
    for key in ("checkpoint_every_steps", "pictures_every_epochs", "stop_after", "threads"):
        check_integer(config, key, minimum=1, optional=True)
    check_integer(config, "workers", minimum=0)
    check_integer(config, "seed", minimum=0)
    flags = ("channels_last", "compile", "drop_last", "progress", "reshuffle", "sync_batchnorm", "tensorboard")
    for key in (*flags, "augment.flip", "ema.warmup"):
        if not isinstance(OmegaConf.select(config, key), bool):
            raise ConfigError(f"{key} must be true or false, got {OmegaConf.select(config, key)!r}")
    if config.pictures_every_epochs is not None and not config.tensorboard:
        raise ConfigError(f"pictures_every_epochs={config.pictures_every_epochs} goes to TensorBoard: tensorboard=true")
    check_number(config, "clip_grad_norm", above=0.0, optional=True)
    check_number(config, "optimizer.lr", above=0.0)
    check_number(config, "optimizer.weight_decay", minimum=0.0)
    check_number(config, "optimizer.momentum", minimum=0.0, below=1.0, optional=True)
    check_number(config, "optimizer.eps", minimum=0.0, optional=True)
    check_numbers(config, "optimizer.betas", below=1.0)
    check_number(config, "schedule.min_lr", minimum=0.0)
    check_number(config, "schedule.warmup_lr", minimum=0.0, optional=True)
    check_number(config, "schedule.decay_rate", above=0.0, optional=True)
    check_integer(config, "schedule.warmup_epochs", minimum=0, optional=True)
    check_numbers(config, "schedule.decay_milestones", positive=True)
    check_numbers(config, "augment.mean")
    check_numbers(config, "augment.std", positive=True)
    check_number(config, "ema.decay", above=0.0, below=1.0, optional=True)
    _check_mixer(config)
    if config.sampling is not None and not config.reshuffle:
        raise ConfigError(
            f"reshuffle=false keeps the order of the first epoch, and sampling={config.sampling} draws without an order"
        )
    networks = config.networks
    if not isinstance(networks, DictConfig) or not all(
        isinstance(network, str) or (isinstance(network, DictConfig) and "_target_" in network)
        for network in networks.values()
    ):
        raise ConfigError(
            "networks must give each name the folder of a finished run, or what to build by its _target_, got "
            f"{networks!r}"
        )
    if config.init_from is not None and not (isinstance(config.init_from, str) and config.init_from.strip()):
        raise ConfigError(
            f"init_from must be the folder of a finished run, one of its checkpoints, or null, got {config.init_from!r}"
        )
    if config.evaluate_every > 1 and config.schedule.get("sched") == "plateau":
        raise ConfigError(
            f"schedule.sched=plateau looks at the scores of every epoch, but evaluate_every={config.evaluate_every}: "
            "evaluate_every=1"
        )
    _check_streams(config)
    if fault := fault_of_budget(plain_section(config, "budget")):
        raise ConfigError(fault)
    check_choice_of(config, "precision", PRECISIONS)
    check_choice_of(config, "pool", (None, *POOLS))
    check_choice_of(config, "sampling", (None, *SAMPLINGS))
    if config.measure is not None and not isinstance(config.measure, str):
        raise ConfigError(f"measure must be the name of a measure or null, got {config.measure!r}")
    check_choice_of(config, "protocol.figure", FIGURES)
    check_choice_of(config, "augment.padding_mode", PADDING_MODES)
    check_integer(config, "augment.crop_padding", minimum=0)
    if not is_device(config.device):
        raise ConfigError(f"device must be auto, cpu, cuda or cuda:<index>, got {config.device!r}")
    if not isinstance(config.root, str) or not config.root:
        raise ConfigError(f"root must be the folder that holds the run folders, got {config.root!r}")


def _check_streams(config: DictConfig) -> None:
    views = config.views
    if not isinstance(views, ListConfig) or not all(isinstance(name, str) and name.isidentifier() for name in views):
        raise ConfigError(f"views must be a list of names, got {views!r}")
    if len(set(views)) != len(views):
        raise ConfigError(f"views must name each view once, got {list(views)}")
    streams = config.streams
    if not isinstance(streams, DictConfig):
        raise ConfigError(f"streams must give each name its data, got {streams!r}")
    for name, stream in streams.items():
        where = f"streams.{name!s}"
        if not str(name).isidentifier():
            raise ConfigError(f"streams must have names of letters, digits and _, got {name!r}")
        if not isinstance(stream, DictConfig) or not isinstance(stream.get("data"), DictConfig):
            raise ConfigError(f"{where} needs data, such as +{where}.data.name=image_sheets, got {stream!r}")
        unknown = sorted(set(map(str, stream)) - set(STREAM_KEYS))
        if unknown:
            raise ConfigError(f"{where} has the unknown keys {unknown}; it takes {', '.join(STREAM_KEYS)}")
        if "name" not in stream.data and "_target_" not in stream.data:
            raise ConfigError(f"{where}.data needs the name of a data set: +{where}.data.name=image_sheets")
        check_integer(config, f"{where}.batch_size", minimum=1, optional=True)
        augment = stream.get("augment")
        if augment is None:
            continue
        if not isinstance(augment, DictConfig) or set(augment) - set(AUGMENT_KEYS):
            raise ConfigError(f"{where}.augment takes {', '.join(AUGMENT_KEYS)}, got {augment!r}")
        if "crop_padding" in augment:
            check_integer(config, f"{where}.augment.crop_padding", minimum=0)
        if "padding_mode" in augment:
            check_choice_of(config, f"{where}.augment.padding_mode", PADDING_MODES)
        if not isinstance(augment.get("flip", False), bool):
            raise ConfigError(f"{where}.augment.flip must be true or false, got {augment.flip!r}")


def _check_mixer(config: DictConfig) -> None:
    for section, keys in (("mixer", MIXER_KEYS), ("mixer.schedule", MIXER_SCHEDULE_KEYS)):
        value = OmegaConf.select(config, section)
        if not isinstance(value, DictConfig) or set(value) != set(keys):
            raise ConfigError(
                f"{section} must have the keys {', '.join(keys)}, each of them null or set; got {value!r}"
            )
    check_number(config, "mixer.lr", above=0.0, optional=True)
    check_number(config, "mixer.momentum", minimum=0.0, below=1.0, optional=True)
    for key in ("weight_decay", "schedule.min_lr", "schedule.warmup_lr"):
        check_number(config, f"mixer.{key}", minimum=0.0, optional=True)
    check_integer(config, "mixer.schedule.warmup_epochs", minimum=0, optional=True)
    check_choice_of(config, "mixer.schedule.sched", (None, *MIXER_SCHEDULES))

    own, its = config.mixer.schedule, config.schedule
    kind = own.sched or its.get("sched")
    warmup = its.get("warmup_epochs") if own.warmup_epochs is None else own.warmup_epochs
    if own.warmup_lr is not None and not warmup:
        raise ConfigError(
            f"mixer.schedule.warmup_lr={own.warmup_lr} does nothing without a warm-up: mixer.schedule.warmup_epochs=5"
        )
    if kind in NO_MINIMUM:
        for key, value in mixer_settings(config).items():
            if key == "mixer.schedule.min_lr" or (kind == "none" and key.startswith("mixer.schedule.")):
                raise ConfigError(f"{key}={value} does nothing in a schedule with sched={kind}")
        return
    lr = config.optimizer.lr if config.mixer.lr is None else config.mixer.lr
    lowest = its.min_lr if own.min_lr is None else own.min_lr
    if lr < lowest and (config.mixer.lr, own.min_lr) != (None, None):
        raise ConfigError(
            f"the mixer's learning rate would rise from {lr} to {lowest}: mixer.lr={shown(config.mixer.lr)}, "
            f"mixer.schedule.min_lr={shown(own.min_lr)}, where null takes the model's"
        )
