"""A grid of runs from Hydra-style arguments: ``policy=none,mixup seed=0,1,2 model=cifar_resnet8`` is six cells.

Comma lists, ``choice(...)`` and ``range(...)`` are Hydra's own sweep syntax and are read by Hydra's own parser. An
experiment file may bring axes in its ``grid:`` section; what the command line says about a key replaces its axis.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mixaug.engine.config import compose, plain
from mixaug.engine.errors import ConfigError
from mixaug.engine.explained import read_overrides
from mixaug.engine.run import run_folder
from mixaug.leaderboard.command import literal

__all__ = ["Cell", "expand"]


@dataclass(frozen=True)
class Cell:
    """One run of a grid: the overrides of ``mixaug train`` that make it, its config and its folder."""

    label: str
    overrides: tuple[str, ...]
    config: Mapping[str, Any]
    folder: Path

    @property
    def epochs(self) -> int:
        return int(self.config["epochs"])


def expand(arguments: Sequence[str]) -> list[Cell]:
    """All cells of the grid, seeds outermost, so that an interrupted grid has complete seeds to compare.

    Every cell is composed here: an unknown key or choice is an error before the first run starts.

    Args:
        arguments: overrides as ``mixaug train`` takes them, any of them with several values.

    Raises:
        ConfigError: an argument or a grid section that cannot be composed.
    """
    fixed, axes = _parse(arguments)
    given = {_key(argument) for argument in fixed} | set(axes)
    probe = compose([*fixed, *(values[0] for values in axes.values())])
    declared = {key: value for key, value in _grid_axes(probe).items() if key not in given}
    axes = {**declared, **axes}
    seeds = axes.pop("seed", None)
    varied = [key for key, values in axes.items() if len(values) > 1]

    combinations = [dict(zip(axes, chosen, strict=True)) for chosen in itertools.product(*axes.values())]
    composed = [compose([*fixed, *chosen.values(), *(seeds or [])[:1]]) for chosen in combinations]
    several_seeds = seeds is not None and len(seeds) > 1
    cells: dict[Path, Cell] = {}
    for seed in seeds if seeds is not None else [None]:
        for chosen, config in zip(combinations, composed, strict=True):
            overrides = (*fixed, *chosen.values(), *([seed] if seed is not None else []))
            own = config if seed is None else _with_seed(config, seed)
            parts = [_value(chosen[key]) if key == "policy" else chosen[key] for key in varied]
            label = " ".join([*parts, *([seed] if seed is not None and several_seeds else [])])
            folder = run_folder(own)
            cells.setdefault(folder, Cell(label or str(own.choices.policy), overrides, plain(own), folder))
    return list(cells.values())


def _parse(arguments: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Arguments with one value, and key to overrides for those with several."""
    fixed: list[str] = []
    axes: dict[str, list[str]] = {}
    for argument, override in zip(arguments, read_overrides(arguments), strict=True):
        if override.is_sweep_override():
            key = override.get_key_element()
            axes[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            fixed.append(argument)
    return fixed, axes


def _grid_axes(config: DictConfig) -> dict[str, list[str]]:
    grid = config.get("grid")
    if grid is None:
        return {}
    container = OmegaConf.to_container(grid)
    if not isinstance(container, dict):
        raise ConfigError(f"grid: expected a mapping of keys to lists of values, got {container!r}")
    axes: dict[str, list[str]] = {}
    for key, values in ((str(key), values) for key, values in container.items()):
        if not isinstance(values, list) or not values:
            raise ConfigError(f"grid.{key}: expected a list of values, got {values!r}")
        axes[key] = [f"{key}={literal(value)}" for value in values]
    return axes


def _with_seed(config: DictConfig, seed: str) -> DictConfig:
    """The same config under another seed. Composing each seed anew takes a fifth of a second a cell."""
    try:
        number = int(_value(seed))
    except ValueError:
        raise ConfigError(f"seed must be an integer of at least 0, got {_value(seed)!r}") from None
    if number < 0:
        raise ConfigError(f"seed must be an integer of at least 0, got {number}")
    return OmegaConf.create({**plain(config), "seed": number})


def _key(override: str) -> str:
    return override.lstrip("+~").split("=", 1)[0]


def _value(override: str) -> str:
    return override.split("=", 1)[1]
