"""Settings that do nothing beside the others of a run: a warning says so, since none of them makes a run wrong.

A sweep has one value of a setting for all its runs, of which some may not use it. What a protocol's rules or an
experiment's file sets is left alone: a recipe says at once what some of its cases need. So is what a config file says
already, and what is handed to a schedule or an optimizer of one's own, which may use it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from omegaconf import OmegaConf

from mixaug.engine.config import NO_MINIMUM, config_folder
from mixaug.engine.config_values import shown

__all__ = ["idle_in_all", "idle_settings", "keys_given"]

#: What is known here of settings is known of these functions of timm.
SCHEDULE, OPTIMIZER = "timm.scheduler.create_scheduler_v2", "timm.optim.create_optimizer_v2"
#: What train.yaml has; files of the groups are read.
USUAL = {"augment.padding_mode": "zeros", "ema.warmup": False, "mixer.momentum": None}
MILESTONES = "schedule.decay_milestones"


def keys_given(overrides: Iterable[str]) -> frozenset[str]:
    """The dotted keys that overrides set; what one removes is not among them."""
    given = [override.partition("=")[0] for override in overrides if not override.startswith("~")]
    return frozenset(key.lstrip("+") for key in given) - {
        override.lstrip("~").partition("=")[0] for override in overrides if override.startswith("~")
    }


def idle_settings(config: Mapping[str, Any], given: Collection[str] = ()) -> list[str]:
    """What to say of each setting that does nothing in a run.

    Args:
        config: of a run, checked, its budget put into effect.
        given: dotted keys that the command line sets. Milestones behind the last epoch are told in any case.
    """
    return list(_told(config, given).values())


def idle_in_all(runs: Iterable[tuple[Mapping[str, Any], Collection[str]]]) -> list[str]:
    """As `idle_settings`, of a grid: a value of a setting is told where none of the runs that it is given to uses it.

    Args:
        runs: config and given keys of each run.
    """
    told: dict[tuple[str, str], str] = {}
    used = set()
    for config, given in runs:
        idle = _told(config, given)
        for key in (*given, MILESTONES):
            place = key, str(_value(config, key))
            if key in idle:
                told.setdefault(place, idle[key])
            else:
                used.add(place)
    return [line for place, line in told.items() if place not in used]


def _told(config: Mapping[str, Any], given: Collection[str]) -> dict[str, str]:
    told: dict[str, str] = {}
    for key, why in _idle(config, given).items():
        value = _value(config, key)
        if key == MILESTONES or (key in given and value != _usual(config, key)):
            told[key] = f"{key}={shown(value)} does nothing {why}"
    return told


def _value(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = value.get(name) if hasattr(value, "get") else None
    return value


def _usual(config: Mapping[str, Any], key: str) -> Any:
    """What the shipped files have: written out, it asks for nothing. Of a file of one's own nothing is known."""
    group, _, name = key.partition(".")
    if key in USUAL:
        return USUAL[key]
    return _of_file(group, str(config["choices"].get(group))).get(name)


@cache
def _of_file(group: str, choice: str) -> Mapping[str, Any]:
    path = config_folder() / group / f"{choice}.yaml"
    read: Any = OmegaConf.load(path) if path.is_file() else {}
    return dict(read)


def _idle(config: Mapping[str, Any], given: Collection[str]) -> dict[str, str]:
    """Why settings do nothing in this config, by their keys."""
    schedule, optimizer, mixer = config["schedule"], config["optimizer"], config["mixer"]
    idle: dict[str, str] = {}
    if schedule.get("_target_") == SCHEDULE:
        idle |= _idle_of_schedule(schedule, mixer, config["epochs"])
    if optimizer.get("_target_") == OPTIMIZER:
        if not optimizer.get("weight_decay"):
            idle["optimizer.filter_bias_and_bn"] = "without weight decay, which it keeps from biases and norms"
        momenta = {"optimizer.momentum", "mixer.momentum"} & {*given}
        kind = str(optimizer.get("opt"))
        if momenta and not _has_momentum(kind):
            idle |= dict.fromkeys(sorted(momenta), f"with optimizer.opt={kind}, which has no momentum")
    streams: Sequence[Any] = list(config["streams"].values())
    # A stream takes what it does not say itself from here.
    if not any(map(_pads, (config["augment"], *(stream.get("augment") or {} for stream in streams)))):
        idle["augment.padding_mode"] = "without padding: augment.crop_padding=4"
    if config["ema"]["decay"] is None:
        idle["ema.warmup"] = "without averaged weights: ema.decay=0.999"
    return idle


def _pads(augment: Mapping[str, Any]) -> bool:
    return bool(augment.get("crop_padding"))


def _idle_of_schedule(schedule: Mapping[str, Any], mixer: Mapping[str, Any], epochs: int) -> dict[str, str]:
    kind, warms_up = schedule.get("sched"), bool(schedule.get("warmup_epochs"))
    idle: dict[str, str] = {}
    milestones = schedule.get("decay_milestones")
    if kind == "multistep" and milestones and min(milestones) >= epochs:
        idle[MILESTONES] = f"within epochs={epochs}, so that the rate never drops"
    if any(value is not None for value in mixer["schedule"].values()):
        # The mixer's own schedule takes the rest from here.
        return idle
    if kind in NO_MINIMUM:
        idle["schedule.min_lr"] = f"in a schedule with sched={kind}, which has no least rate"
    if not warms_up:
        idle["schedule.warmup_lr"] = "without a warm-up: schedule.warmup_epochs=5"
    if kind == "none" or (kind == "constant" and not warms_up and schedule.get("noise") is None):
        idle["schedule.step_on_epochs"] = "where the rate stays the same throughout"
    return idle


def _has_momentum(kind: str) -> bool:
    """Whether an optimizer of timm has a momentum; said of one that is unknown, too, which is refused elsewhere."""
    from timm.optim import get_optimizer_info

    try:
        return bool(get_optimizer_info(kind.lower().rpartition("lookahead_")[2]).has_momentum)
    except ValueError:
        return True
