"""Hydra's composition, done once for each choice of files and not once for each call.

Composing takes Hydra 0.1 to 0.2 s, and the tests compose about a thousand configs that differ mostly in plain values.
Here the files of a set of choices are merged once; each call gets a copy to which Hydra's own parser and Hydra's own
function apply the plain values, as Hydra does after the merge. An override that Hydra refuses goes to the real
composition, so that its message is the one users see. `test_config.py` holds the two ways against each other.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mixaug.engine import config as engine_config

real = engine_config._hydra_compose


@cache
def _merged(choices: tuple[str, ...]) -> tuple[DictConfig, dict[str, str | None]]:
    return real(list(choices))


@cache
def _parsed(override: str) -> Any:
    return OverridesParser.create().parse_override(override)


def quick(overrides: list[str]) -> tuple[DictConfig, dict[str, str | None]]:
    """Stands for `mixaug.engine.config._hydra_compose`."""
    try:
        parsed = [_parsed(override) for override in overrides]
        if any(o.is_sweep_override() or o.key_or_group.startswith("hydra") or o.package for o in parsed):
            return real(overrides)
        chooses = [o.key_or_group in engine_config.GROUPS and not isinstance(o.value(), dict) for o in parsed]
        merged, choices = _merged(tuple(o.input_line for o, of_group in zip(parsed, chooses, strict=True) if of_group))
        composed = copy.deepcopy(merged)
        OmegaConf.set_struct(composed, True)
        values = [o for o, of_group in zip(parsed, chooses, strict=True) if not of_group]
        ConfigLoaderImpl._apply_overrides_to_config(values, composed)
    except (HydraException, OmegaConfBaseException, engine_config.ConfigError):
        return real(overrides)
    OmegaConf.set_struct(composed, False)
    return composed, dict(choices)
