"""Train one model: mixaug train policy=cutmix model=cifar_resnet18 data=cifar10 data.root=/path

The same command skips a finished run and continues an interrupted one. Several processes:
torchrun --nproc-per-node=2 -m mixaug train ...; several runs: mixaug train --multirun seed=0,1,2 ...
Exit status: 0; 1 if it was begun and failed; 2 if it cannot work as asked; 75 if another process works on the run.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mixaug.commands.arguments import FAILED, WRONG, split, status_of

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["main", "run"]

#: Whether Hydra has begun with the runs of a sweep.
_begun: list[str] = []

#: What `_check_points` has composed for a single run, by its overrides: it is not composed a second time.
_checked: dict[tuple[str, ...], DictConfig] = {}


def main(arguments: Sequence[str]) -> int:
    """Compose the config that the arguments name and run it, through Hydra's own command line."""
    import hydra
    from hydra._internal.utils import get_args_parser
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from mixaug.engine.config import config_folder, with_config_dir
    from mixaug.engine.errors import EXIT_HELD, FAULTS, RunHeld
    from mixaug.engine.explained import explained, on_one_line

    reader = get_args_parser()
    reader.prog = "mixaug train"
    given = reader.parse_intermixed_args(list(arguments))
    options = list(arguments)
    for override in given.overrides:
        options.remove(override)
    # Hydra reads the command line of the process, and would end it with a trace of its own.
    before, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    _checked.clear()
    _begun.clear()
    try:
        _check(given)
        split("train", given.overrides)
        # Hydra would print the config before the rules of its protocol.
        if given.cfg == "job" and not given.help:
            print(composed(given.overrides, given.config_dir, given.package))
            return 0
        if _trains(given):
            _check_points(with_config_dir(given.overrides, given.config_dir))
        sys.argv, os.environ["HYDRA_FULL_ERROR"] = ["mixaug train", *options, *given.overrides], "1"
        hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="train")(run)()
    except RunHeld as error:
        print(on_one_line(error), file=sys.stderr)
        return EXIT_HELD
    except (*FAULTS, HydraException, OmegaConfBaseException) as error:
        of_hydra = isinstance(error, (HydraException, OmegaConfBaseException))
        told = explained(error, given.overrides, dict) if of_hydra else error
        print(f"error: {on_one_line(told)}", file=sys.stderr)
        # A sweep that has begun, and one of whose runs failed, has failed, whatever was wrong with that run.
        return FAILED if _begun else WRONG if of_hydra else status_of(error)
    finally:
        sys.argv = before
        os.environ.pop("HYDRA_FULL_ERROR", None)
        if full is not None:
            os.environ["HYDRA_FULL_ERROR"] = full
    return 0


def _check(given: argparse.Namespace) -> None:
    """Raise for options of Hydra's that mean nothing here."""
    from mixaug.engine.errors import ConfigError

    if given.config_path is not None or given.config_name is not None:
        raise ConfigError(
            "--config-path and --config-name are not taken: --config-dir FOLDER joins config files of your own, "
            "and FOLDER/experiment/mine.yaml is experiment=mine"
        )
    if given.shell_completion:
        raise ConfigError("--shell-completion is not taken: mixaug completion bash (or zsh, fish) prints the script")


def _trains(given: argparse.Namespace) -> bool:
    """Whether the command line asks for more than to be shown something."""
    return not (given.help or given.hydra_help or given.cfg or given.info or given.experimental_rerun)


def _check_points(overrides: Sequence[str]) -> None:
    """Compose every run that the overrides ask for, before the first of them begins.

    Points that a sweeper chooses while it goes on, and values that it draws, are met when they come.
    """
    from mixaug.engine.config import compose
    from mixaug.engine.explained import read_overrides

    parsed = read_overrides(overrides)
    if any((o.is_sweep_override() and not o.is_discrete_sweep()) or o.key_or_group == "hydra/sweeper" for o in parsed):
        return
    if not any(o.is_sweep_override() for o in parsed):
        _checked[tuple(overrides)] = compose(overrides)
        return
    values = [
        [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()] if o.is_sweep_override() else [given]
        for given, o in zip(overrides, parsed, strict=True)
    ]
    for point in itertools.product(*values):
        compose(point)


def run(_: Any) -> float | None:
    """Run the composed config; a Hydra sweeper may optimise what is returned, the top-1 or the RMSE that counts.

    It is that of the validation set where there is one, else of the test set; a sweeper that chooses is refused then.
    Of a run that ``stop_after`` stops it is that of the validation set there, and None without one.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from mixaug.engine.config import SEARCH_PATH, compose, with_config_dir
    from mixaug.engine.errors import FAULTS, RunHeld
    from mixaug.engine.explained import on_one_line

    hydra = HydraConfig.get()
    given = [*hydra.overrides.task, *(o for o in hydra.overrides.hydra if o.startswith(SEARCH_PATH))]
    own = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    # Not what Hydra composed, because a protocol's rules need to know what the command line has set. Points of a
    # sweep are not kept from the check, which may be thousands, and a launcher may run them in another process.
    overrides = tuple(with_config_dir(given, own[0] if own else None))
    config = _checked.pop(overrides, None)
    config = compose(overrides) if config is None else config

    from mixaug.engine.idle import keys_given
    from mixaug.engine.tasks import task_said
    from mixaug.engine.train import train

    try:
        if hydra.mode == RunMode.MULTIRUN:
            _begun.append(str(config.choices.policy))
            _check_chooser(str(hydra.sweeper._target_), config)
        result = train(config, keys_given(overrides))
    except FAULTS as error:
        if hydra.mode != RunMode.RUN:
            # The other runs of a sweep go on; Hydra says which one failed, and this command why.
            raise
        held = isinstance(error, RunHeld)
        print(on_one_line(error) if held else f"error: {on_one_line(error)}", file=sys.stderr)
        sys.exit(status_of(error))
    task = task_said(result)
    if result["status"] == "stopped":
        return result.get(f"valid_{task.measure}")
    return task.aim(result, config.protocol.figure)


PLAIN_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


def _check_chooser(sweeper: str, config: DictConfig) -> None:
    """Refuse a sweeper that would choose by the scores of the test set.

    Args:
        sweeper: full name of its class; Hydra's own runs every point and chooses none.
        config: of one of its runs.

    Raises:
        ConfigError: the data has no validation set.
    """
    from mixaug.engine.build import load_data
    from mixaug.engine.errors import ConfigError
    from mixaug.engine.tasks import held_out_splits

    if sweeper == PLAIN_SWEEPER:
        return
    data = load_data(config)
    if "valid" not in held_out_splits(data):
        raise ConfigError(
            f"the sweeper {sweeper} chooses by the scores of a validation set, and {data.name} has none: "
            "data.valid_share=0.1 takes one from the training set"
        )


def composed(overrides: Sequence[str], config_dir: str | None, package: str | None) -> str:
    """The config of a run as YAML, or the part of it that ``package`` names."""
    from omegaconf import OmegaConf

    from mixaug.engine.config import compose, with_config_dir
    from mixaug.engine.errors import ConfigError

    config = compose(with_config_dir(overrides, config_dir))
    part = config if package is None else OmegaConf.select(config, package)
    if not OmegaConf.is_config(part):
        raise ConfigError(f"--package expects a section of the config, got {package!r}")
    return OmegaConf.to_yaml(part).rstrip()
