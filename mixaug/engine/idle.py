"""Settings that the command line gives and that would do nothing beside the others: they are refused, not taken.

What a protocol's rules or an experiment's file sets is left alone: a recipe says at once what some of its cases need.
"""

from __future__ import annotations

from collections.abc import Collection

from omegaconf import DictConfig

from mixaug.engine.config_values import shown

__all__ = ["NO_MINIMUM", "fault_of_idle"]

#: These kinds of timm's schedules have no ``min_lr``.
NO_MINIMUM = ("none", "constant", "step", "multistep")

#: Sets of numbers whose missing cells are filled with means, which are those of some rows whatever the scaling is.
FILLED = ("communities_crime",)
#: Options of the data that choose samples at random, with the values at which they choose none.
DRAWING = {"per_class": None, "valid_share": 0.0, "imbalance": None}
#: Sets that draw by ``split_seed`` themselves: digits where it takes fewer images than the pool has.
DRAWN = ("framed_photos",)
POOL_OF_DIGITS = 1000
#: What the files have. Who gives these values asks for nothing that is not there.
USUAL = {
    "schedule.min_lr": 0.0,
    "schedule.warmup_lr": 1e-5,
    "augment.padding_mode": "zeros",
    "data.split_seed": 0,
    "data.fit_on": "train",
}


def fault_of_idle(config: DictConfig, given: Collection[str]) -> str:
    """What is wrong with the first setting of the command line that does nothing; empty where each does something.

    Args:
        config: of a run, checked.
        given: dotted keys that the command line sets.
    """
    for key, why in _idle(config).items():
        if key in given and (key not in USUAL or _value(config, key) != USUAL[key]):
            return f"{key}={shown(_value(config, key))} does nothing {why}"
    return ""


def _value(config: DictConfig, key: str) -> object:
    section, _, name = key.partition(".")
    return config[section].get(name)


def _idle(config: DictConfig) -> dict[str, str]:
    """Why settings do nothing in this config, by their keys."""
    schedule, optimizer, augment, data = config.schedule, config.optimizer, config.augment, config.data
    kind, warms_up = schedule.get("sched"), bool(schedule.get("warmup_epochs"))
    idle = {}
    if kind in NO_MINIMUM:
        idle["schedule.min_lr"] = f"in a schedule with sched={kind}, which has no least rate"
    if not warms_up:
        idle["schedule.warmup_lr"] = "without a warm-up: schedule.warmup_epochs=5"
    if kind in ("none", "constant") and not warms_up:
        idle["schedule.step_on_epochs"] = "where the rate stays the same throughout"
    if not augment.crop_padding:
        idle["augment.padding_mode"] = "without padding: augment.crop_padding=4"
    if not optimizer.weight_decay:
        idle["optimizer.filter_bias_and_bn"] = "without weight decay, which it keeps from biases and norms"
    draws = any(data.get(option, value) != value for option, value in DRAWING.items())
    draws = draws or data.name in DRAWN or data.get("train_size", POOL_OF_DIGITS) != POOL_OF_DIGITS
    if "split_seed" in data and not draws:
        ways = "data.per_class, data.valid_share or data.imbalance"
        idle["data.split_seed"] = f"where all samples are taken: {ways} draws some of them"
    if data.get("scaling") == "none" and data.get("missing") != "mean" and data.name not in FILLED:
        idle["data.fit_on"] = "beside data.scaling=none, for which no statistics are taken"
    return idle
