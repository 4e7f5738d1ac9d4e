"""A grid of runs from Hydra-style arguments: ``policy=none,mixup seed=0,1,2 model=cifar_resnet8`` is six cells.

Comma lists, ``choice(...)`` and ``range(...)`` are Hydra's own sweep syntax and are read by Hydra's own parser. An
experiment file may bring axes in its ``grid:`` section, a mapping of keys to values or a list of such mappings, whose
cells come one after the other; what the command line says about a key replaces its axis.

``policy=all`` and ``objective=all`` stand for every shipped choice that the other settings can train, which is found by
a step or two of each. ``policy=usual`` is the policy that the source of an objective trains with, options included.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mixaug.engine.config import compose, list_choices, plain, plain_section
from mixaug.engine.config_values import to_text
from mixaug.engine.errors import ConfigError
from mixaug.engine.explained import read_overrides
from mixaug.engine.reading import DamagedFile
from mixaug.engine.results import read_result
from mixaug.engine.run import read_stops, run_folder
from mixaug.leaderboard.command import literal

__all__ = ["ALL", "USUAL", "Cell", "Grid", "expand", "grid_of", "with_values"]

#: This value of the groups in `OF_ALL` stands for every choice that fits.
ALL = "all"
OF_ALL = ("policy", "objective")
#: This value of ``policy`` stands for the one that an objective's source trains with.
USUAL = "usual"

Axes = dict[str, list[str]]


@dataclass(frozen=True)
class Cell:
    """One run of a grid: the overrides of ``mixaug train`` that make it, its config and its folder.

    ``shown`` is the set whose scores are shown while it runs, ``"test"`` or ``"valid"``.
    """

    label: str
    overrides: tuple[str, ...]
    config: Mapping[str, Any]
    folder: Path
    shown: str = "test"

    @property
    def epochs(self) -> int:
        """The epoch after which the command ends."""
        epochs, stop = int(self.config["epochs"]), self.config.get("stop_after")
        return epochs if stop is None else min(epochs, int(stop))

    def is_done(self) -> bool:
        """Whether the run has a finished run's result, or was stopped before where it is to stop."""
        try:
            read_result(self.folder / "result.json")
        except FileNotFoundError:
            pass
        except DamagedFile:
            # The run makes it again from its newest checkpoint.
            return False
        else:
            return True
        return self.epochs < int(self.config["epochs"]) and self.epochs in read_stops(self.folder)


@dataclass(frozen=True)
class Grid:
    """The cells of a grid, and which choices of ``all`` are in none of them: ``"policy=lisa"`` to the reason."""

    cells: tuple[Cell, ...]
    left_out: Mapping[str, str]


def expand(arguments: Sequence[str]) -> list[Cell]:
    """The cells of :func:`grid_of`."""
    return list(grid_of(arguments).cells)


def grid_of(arguments: Sequence[str], say: Callable[[str], None] = lambda line: None) -> Grid:
    """All cells of the grid, seeds outermost, so that an interrupted grid has complete seeds to compare.

    Every cell is composed here, and its ``budget`` put into effect: an unknown key or choice is an error before the
    first run starts, and so are options that a policy does not take.

    Args:
        arguments: overrides as ``mixaug train`` takes them, any of them with several values.
        say: gets a line before what takes long.

    Raises:
        ConfigError: an argument or a grid section that cannot be composed; ``all`` where nothing fits.
    """
    fixed, axes = _parse(arguments)
    given = {_key(argument) for argument in fixed} | set(axes)
    probe = compose([*fixed, *_probed(axes)])
    products = [
        {**{k: v for k, v in one.items() if k not in given}, **axes} for one in _parts(_grid_axes(probe), given)
    ]
    seeds: list[list[str] | None] = [one.pop("seed", None) for one in products]
    each: list[Sequence[str | None]] = [own or (None,) for own in seeds]

    left_out: dict[str, str] = {}
    chosen: list[list[tuple[dict[str, str], DictConfig]]] = []
    for product, own in zip(products, seeds, strict=True):
        combinations, every = _combinations(fixed, product), any(map(_asks_for_all, product.values()))
        if every:
            say(f"{len(combinations)} choices are tried for a step each")
        composed = [(one, compose([*fixed, *one.values(), *(own or [])[:1]])) for one in combinations]
        chosen.append([pair for pair in composed if not every or _fits(*pair, left_out)])
    there = [combination for pairs in chosen for combination, _ in pairs]
    left_out = {what: why for what, why in left_out.items() if not any(what in one.values() for one in there)}
    if not there:
        raise ConfigError(f"nothing fits: {'; '.join(left_out.values())}")
    keys = dict.fromkeys(key for combination in there for key in combination)
    varied = [key for key in keys if len({combination.get(key) for combination in there}) > 1]
    _check_policies(config for pairs in chosen for _, config in pairs)
    chosen = [[(combination, _settled(config)) for combination, config in pairs] for pairs in chosen]

    several_seeds = any(own is not None and len(own) > 1 for own in seeds)
    cells: dict[Path, Cell] = {}
    for seed in dict.fromkeys(seed for asked in each for seed in asked):
        for pairs, asked in zip(chosen, each, strict=True):
            for combination, config in pairs if seed in asked else []:
                overrides = (*fixed, *combination.values(), *([seed] if seed is not None else []))
                run = config if seed is None else _with_seed(config, seed)
                label = _label(combination, varied, seed if several_seeds else None) or str(run.choices.policy)
                folder = run_folder(run)
                cells.setdefault(folder, Cell(label, overrides, plain(run), folder))
    return Grid(tuple(cells.values()), left_out)


def _label(combination: Mapping[str, str], varied: Sequence[str], seed: str | None) -> str:
    parts = [_value(combination[key]) if key == "policy" else combination[key] for key in varied if key in combination]
    return " ".join([*parts, *([seed] if seed is not None else [])])


def _check_policies(configs: Iterable[DictConfig]) -> None:
    """Raise for options that a policy does not take together, which a grid easily combines.

    Raises:
        ConfigError: names the policy and what is wrong.
    """
    import torch

    from mixaug.engine.build import build_policy

    checked = set()
    with torch.random.fork_rng(devices=[]):
        for config in configs:
            told = to_text(plain_section(config, "policy"))
            if told not in checked:
                checked.add(told)
                build_policy(config)


def _settled(config: DictConfig) -> DictConfig:
    if config.budget is None:
        return config
    from mixaug.engine.budget import settle

    return settle(config)


def _parts(parts: Sequence[Axes], given: Collection[str]) -> Sequence[Axes]:
    """The parts of a grid that the command line's choice of policies, or of objectives, is about; all without one.

    A part with the usual policies is one of objectives.
    """
    named = {group for group in OF_ALL if group in given}
    about = [
        {group for group in OF_ALL if group in part and part[group] != [f"policy={USUAL}"]} if len(parts) > 1 else named
        for part in parts
    ]
    return [part for part, groups in zip(parts, about, strict=True) if groups == named] or parts


def _probed(axes: Axes) -> list[str]:
    """One value of each axis, to see what else an experiment brings."""
    first = [_choices(values)[0] for values in axes.values()]
    return [override for override in first if override != f"policy={USUAL}"]


def _combinations(fixed: Sequence[str], product: Axes) -> list[dict[str, str]]:
    """Every choice of a value for each axis, usual policies by their names and options."""
    axes = {key: _choices(values) for key, values in product.items()}
    combinations = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    return [
        {**one, **_usual_policy([*fixed, *([one["objective"]] if "objective" in one else [])])}
        if one.get("policy") == f"policy={USUAL}"
        else one
        for one in combinations
    ]


def _asks_for_all(values: Sequence[str]) -> bool:
    return any(_key(value) in OF_ALL and _value(value) == ALL for value in values)


def _choices(values: Sequence[str]) -> list[str]:
    """The values of an axis, every shipped choice in place of ``all``."""
    listed = [[f"{_key(v)}={name}" for name in list_choices(_key(v))] if _asks_for_all([v]) else [v] for v in values]
    return list(dict.fromkeys(itertools.chain(*listed)))


def _usual_policy(overrides: Sequence[str]) -> dict[str, str]:
    """Overrides for the policy that the source of an objective trains with; for a plain loss one that mixes nothing."""
    from hydra.utils import get_object

    target = get_object(compose(overrides).objective["_target_"])
    name, options = getattr(target, "usual_policy", ("none", {}))
    told = {"policy": name, **{f"policy.{option}": value for option, value in options.items()}}
    return {key: f"{key}={literal(value)}" for key, value in told.items()}


def _fits(combination: Mapping[str, str], config: DictConfig, left_out: dict[str, str]) -> bool:
    """Whether a step of the config can be run; ``left_out`` gets the reason where not."""
    from mixaug.engine.budget import step_cost

    try:
        step_cost(config)
    except ConfigError as error:
        what = combination["objective" if "objective" in combination else "policy"]
        left_out.setdefault(what, str(error).splitlines()[0])
        return False
    return True


def _parse(arguments: Sequence[str]) -> tuple[list[str], Axes]:
    """Arguments with one value, and key to overrides for those with several, or with all."""
    fixed: list[str] = []
    axes: Axes = {}
    for argument, override in zip(arguments, read_overrides(arguments), strict=True):
        if override.is_sweep_override():
            key = override.get_key_element()
            axes[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        elif _asks_for_all([argument]) or argument == f"policy={USUAL}":
            axes[_key(argument)] = [argument]
        else:
            fixed.append(argument)
    return fixed, axes


def _grid_axes(config: DictConfig) -> list[Axes]:
    """The axes of an experiment's grid, those of each part of it; of no grid one part without axes."""
    grid = config.get("grid")
    if grid is None:
        return [{}]
    container = OmegaConf.to_container(grid)
    parts = container if isinstance(container, list) else [container]
    found: list[Axes] = []
    for part in parts:
        if not isinstance(part, dict):
            raise ConfigError(f"grid: expected a mapping of keys to lists of values, or a list of such, got {part!r}")
        axes: Axes = {}
        for key, values in ((str(key), values) for key, values in part.items()):
            if (values == ALL and key in OF_ALL) or (key, values) == ("policy", USUAL):
                values = [values]
            if not isinstance(values, list) or not values:
                raise ConfigError(f"grid.{key}: expected a list of values, got {values!r}")
            axes[key] = [f"{key}={literal(value)}" for value in values]
        found.append(axes)
    return found


def _with_seed(config: DictConfig, seed: str) -> DictConfig:
    """The same config under another seed. Composing each seed anew takes a fifth of a second a cell."""
    try:
        number = int(_value(seed))
    except ValueError:
        raise ConfigError(f"seed must be an integer of at least 0, got {_value(seed)!r}") from None
    if number < 0:
        raise ConfigError(f"seed must be an integer of at least 0, got {number}")
    return with_values(config, seed=number)


def with_values(config: DictConfig, **values: Any) -> DictConfig:
    """A copy of a composed config with other values of its top level, which its maker answers for."""
    other = copy.deepcopy(config)
    OmegaConf.set_readonly(other, False)
    for key, value in values.items():
        other[key] = value
    return other


def _key(override: str) -> str:
    return override.lstrip("+~").split("=", 1)[0]


def _value(override: str) -> str:
    return override.split("=", 1)[1]
