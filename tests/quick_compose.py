"""Hydra's composition, done once for each choice of files and not once for each call.

Composing takes Hydra 0.1 to 0.2 s, and the tests compose about a thousand configs that differ mostly in plain values.
Here Hydra merges the files of a protocol and an experiment once; the sections of a policy, a model or a data set are
put in where nothing else adds to them; each call gets a copy to which Hydra's own parser and Hydra's own function
apply the plain values, as Hydra does after the merge. An override that Hydra refuses goes to the real
composition, so that its message is the one users see. `test_config.py` holds the two ways against each other.

Copies are made by pickle, which takes a tenth of what deepcopy does. What one process of a test session has merged, the
others read in the folder that the environment names.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from functools import cache
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mixaug.engine import config as engine_config

real = engine_config._hydra_compose
FOLDER = "MIXAUG_TESTS_COMPOSED"


@cache
def _by_hydra(choices: tuple[str, ...]) -> bytes:
    """A config and its choices, pickled."""
    folder = os.environ.get(FOLDER)
    if folder is None:
        return pickle.dumps(real(list(choices)))
    path = Path(folder) / hashlib.sha256(repr(choices).encode()).hexdigest()
    if not path.exists():
        part = path.with_suffix(f".{os.getpid()}")
        part.write_bytes(pickle.dumps(real(list(choices))))
        part.replace(path)
    return path.read_bytes()


@cache
def _keys(group: str, name: str | None) -> frozenset[str]:
    """The sections that a file speaks of."""
    path = engine_config.config_folder() / group / f"{name}.yaml"
    return frozenset(map(str, OmegaConf.load(path))) if path.is_file() else frozenset()


@cache
def _section(group: str, name: str) -> DictConfig | None:
    """The content of a file that is its group's section as it stands: no package, no defaults of its own."""
    path = engine_config.config_folder() / group / f"{name}.yaml"
    if not path.is_file() or "@package" in path.read_text(encoding="utf-8"):
        return None
    content = OmegaConf.load(path)
    return content if isinstance(content, DictConfig) and "defaults" not in content else None


@cache
def _merged(choices: tuple[str, ...]) -> bytes:
    """The merged files of these choices; where no other file adds to a section, the section is put in as it is."""
    whole = tuple(choice for choice in choices if choice.split("=")[0] in ("protocol", "experiment"))
    merged, chosen = pickle.loads(_by_hydra(whole))
    added_to = frozenset.union(*(_keys(group, chosen[group]) for group in ("protocol", "experiment")))
    for choice in (choice for choice in choices if choice not in whole):
        group, _, name = choice.partition("=")
        section = _section(group, name)
        if section is None or group in added_to:
            return _by_hydra(choices)
        merged[group], chosen[group] = section, name
    return pickle.dumps((merged, chosen))


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
        composed, choices = pickle.loads(
            _merged(tuple(o.input_line for o, of_group in zip(parsed, chooses, strict=True) if of_group))
        )
        OmegaConf.set_struct(composed, True)
        values = [o for o, of_group in zip(parsed, chooses, strict=True) if not of_group]
        ConfigLoaderImpl._apply_overrides_to_config(values, composed)
    except (HydraException, OmegaConfBaseException, engine_config.ConfigError):
        return real(overrides)
    OmegaConf.set_struct(composed, False)
    return composed, choices
