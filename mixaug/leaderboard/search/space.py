"""What a search tries: settings from ``configs/search/*.yaml``, and the trials that they and a run's settings make."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from mixaug.engine import build
from mixaug.engine.assembly import assemble
from mixaug.engine.budget import data_of
from mixaug.engine.config import (
    compose,
    composed_by_hydra,
    config_hash,
    list_choices,
    plain,
    with_config_dir,
)
from mixaug.engine.config_values import to_text
from mixaug.engine.distributed import World
from mixaug.engine.errors import FAULTS, ConfigError
from mixaug.engine.explained import on_one_line
from mixaug.engine.run import run_folder
from mixaug.engine.tasks import task_named
from mixaug.leaderboard.command import literal
from mixaug.leaderboard.grid import Cell, with_values

__all__ = ["Settings", "Space", "Trial", "read_space"]

#: Numbers of the settings, each with its smallest value.
NUMBERS = {"eta": 2, "probe_epochs": 1, "last_seeds": 1, "final_seeds": 2}
SETTINGS = ("policies", "usual", *NUMBERS)

#: The seeds of the final comparison begin so far behind those of the search.
FRESH = 1000


@dataclass(frozen=True)
class Settings:
    """The settings of a search, checked.

    Attributes:
        policies: options by the names of policies; each option with the values to try.
        usual: the policy that stands in the final comparison beside ``none`` and the winner.
        eta: one of so many trials goes on, at least 2.
        probe_epochs: epochs by which costs are measured.
        last_seeds, final_seeds: most seeds of a trial on the last rung, and of a row in the final comparison.
    """

    policies: Mapping[str, Mapping[str, tuple[Any, ...]]]
    usual: str
    eta: int
    probe_epochs: int
    last_seeds: int
    final_seeds: int


@dataclass(frozen=True, eq=False)
class Trial:
    """A policy with its options; ``config`` is that of its run with the first seed."""

    policy: str
    options: Mapping[str, Any]
    overrides: tuple[str, ...]
    config: DictConfig

    @property
    def label(self) -> str:
        """``"cutmix alpha=0.2 labeling=cam"``."""
        return " ".join([self.policy, *(f"{key}={literal(value)}" for key, value in self.options.items())])

    @cached_property
    def fault(self) -> str:
        """Why its run cannot begin; empty where it can. The parts of the run are built for it."""
        try:
            data = data_of(to_text(plain(self.config)["data"]))
            parts = assemble(self.config, World(0, 1, torch.device("cpu")), data)
        except (*FAULTS, ValueError, TypeError) as error:
            return on_one_line(error)
        parts.batches.close()
        return ""

    def cell(self, folder: Path, seed: int, stop_after: int | None = None) -> Cell:
        """The run of this trial with a seed, below a folder, to its end or to an epoch."""
        own = {"seed": seed, "root": str(folder), "stop_after": stop_after}
        config = with_values(self.config, **own)
        overrides = (*self.overrides, *(f"{key}={literal(value)}" for key, value in own.items()))
        return Cell(f"{self.label} seed={seed}", overrides, plain(config), run_folder(config), shown="valid")


@dataclass(frozen=True, eq=False)
class Space:
    """The trials of a search.

    Attributes:
        settings: of the search.
        trials: each once, in the order of the file.
        none, usual: trials of the final comparison; the same as one of ``trials`` where it has their options.
    """

    settings: Settings
    trials: tuple[Trial, ...]
    none: Trial
    usual: Trial

    @property
    def config(self) -> DictConfig:
        """What all trials share is in this one."""
        return self.none.config

    @property
    def epochs(self) -> int:
        """Epochs of a whole run."""
        return int(self.config.epochs)

    @property
    def seed(self) -> int:
        """The first seed of the search."""
        return int(self.config.seed)

    def fresh_seeds(self, count: int) -> list[int]:
        """Seeds that no run of the search has had."""
        return [self.seed + FRESH + number for number in range(count)]

    @cached_property
    def hash(self) -> str:
        """Ten hexadecimal digits over everything that can change what the search does, the budget apart."""
        numbers = {name: getattr(self.settings, name) for name in NUMBERS}
        hashes = [config_hash(trial.config) for trial in (*self.trials, self.none, self.usual)]
        return hashlib.sha256(json.dumps([numbers, hashes], sort_keys=True).encode()).hexdigest()[:10]


def read_space(arguments: Sequence[str], config_dir: str | Path | None = None) -> Space:
    """The space of a command line.

    Args:
        arguments: overrides of ``mixaug train`` without a policy, and of the search's own settings: ``search=images``,
            ``search.eta=2``, ``search.policies.mixup.alpha=[0.5]``, ``~search.policies.fmix``.
        config_dir: folder of config files of one's own.

    Raises:
        ConfigError: arguments that cannot be composed, or a setting that cannot work.
    """
    own = [argument for argument in arguments if _key(argument).partition(".")[0] == "search"]
    fixed = [argument for argument in arguments if argument not in own]
    for argument in fixed:
        key = _key(argument)
        if key == "policy" or key.startswith("policy."):
            raise ConfigError(f"{argument}: policies are what a search tries; name them in search.policies")
        if key == "stop_after":
            raise ConfigError(f"{argument}: where runs stop is what a search plans")
    _refuse_several_values(fixed)
    beside = with_config_dir((), config_dir)
    base = compose([*beside, *fixed, "policy=none"])
    if base.budget is not None:
        # The lengths of an experiment's runs at equal cost are not those of a search, which has a budget of its own.
        fixed = [*fixed, "budget=null"]
        base = compose([*beside, *fixed, "policy=none"])
    _check_splits(base)
    if not any(_key(argument) == "search" for argument in own):
        usual = "regression" if task_named(str(base.data.name)).name == "regression" else "images"
        own = [f"search={usual}", *own]
    settings = _read_settings([*beside, *own])

    composed = {"none": base}

    def trial(policy: str, options: Mapping[str, Any]) -> Trial:
        chosen = [f"policy={policy}", *(f"policy.{key}={literal(value)}" for key, value in options.items())]
        overrides = (*beside, *fixed, *chosen)
        if policy not in composed:
            composed[policy] = compose([*beside, *fixed, f"policy={policy}"])
        usual = plain(composed[policy])
        if not set(options) <= set(usual["policy"]):
            # Hydra knows what to say of an option that there is not.
            return Trial(policy, options, overrides, compose(overrides))
        # What the line sets wins over a protocol's rules; composing anew for each value would take a fifth of a second.
        usual["policy"].update(options)
        return Trial(policy, options, overrides, OmegaConf.create(usual))

    trials: dict[str, Trial] = {}
    for policy, options in settings.policies.items():
        for values in itertools.product(*options.values()):
            made = trial(policy, dict(zip(options, values, strict=True)))
            trials.setdefault(config_hash(made.config), made)

    def known(policy: str) -> Trial:
        made = trial(policy, {})
        return trials.get(config_hash(made.config), made)

    return Space(settings, tuple(trials.values()), known("none"), known(settings.usual))


def _read_settings(overrides: Sequence[str]) -> Settings:
    composed = composed_by_hydra("search", list(overrides))
    section = composed.get("search")
    told = OmegaConf.to_container(section, resolve=True) if OmegaConf.is_dict(section) else section
    if not isinstance(told, dict) or set(told) != set(SETTINGS):
        found = ", ".join(map(str, told)) if isinstance(told, dict) else repr(told)
        raise ConfigError(f"search must have the settings {', '.join(SETTINGS)}, got {found}")
    for name, least in NUMBERS.items():
        value = told[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"search.{name} must be an integer of at least {least}, got {value!r}")
    policies = told["policies"]
    if not isinstance(policies, dict) or not policies:
        raise ConfigError(f"search.policies must give policies their options, got {policies!r}")
    if not isinstance(told["usual"], str):
        raise ConfigError(f"search.usual must be the name of a policy, got {told['usual']!r}")
    return Settings(
        policies={str(policy): _values(str(policy), options) for policy, options in policies.items()},
        usual=told["usual"],
        **{name: told[name] for name in NUMBERS},
    )


def _values(policy: str, options: Any) -> dict[str, tuple[Any, ...]]:
    where = f"search.policies.{policy}"
    if options is None:
        options = {}
    if not isinstance(options, dict):
        raise ConfigError(f"{where} must give options lists of values, {{}} for none, got {options!r}")
    for key, values in options.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{where}.{key} must be a list of the values to try, got {values!r}")
    return {str(key): tuple(values) for key, values in options.items()}


def _check_splits(config: DictConfig) -> None:
    """Raise where each seed has a test set of its own: the final one would hold rows that the choice has seen."""
    for key in build.SEEDED:
        if config.data.get(key) == "by_seed":
            raise ConfigError(
                f"data.{key}=by_seed gives each seed a test set of its own, and rows of the final ones would have been "
                f"trained and chosen on before: data.{key}=0"
            )


def _refuse_several_values(fixed: Sequence[str]) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_overrides(list(fixed))
    except HydraException as error:
        raise ConfigError(f"cannot read the arguments {list(fixed)}: {error}") from error
    for argument, override in zip(fixed, parsed, strict=True):
        if override.is_sweep_override():
            raise ConfigError(
                f"{argument}: a search takes one value of each setting; several belong to options in search.policies"
            )


def choices() -> list[str]:
    """Names of the shipped search spaces."""
    return list_choices("search")


def _key(argument: str) -> str:
    return argument.lstrip("+~").split("=", 1)[0]
