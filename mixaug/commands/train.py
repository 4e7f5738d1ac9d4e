"""Train one model: mixaug train policy=cutmix model=cifar_resnet18 data=cifar10 data.root=/path

The same command skips a finished run and continues an interrupted one. Several processes:
torchrun --nproc-per-node=2 -m mixaug train ...; several runs: mixaug train --multirun seed=0,1,2 ...
Exit code: 0, 75 if another process works on the run, 1 for every other error.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

__all__ = ["main", "run"]


def main(arguments: Sequence[str]) -> int:
    """Compose the config that the arguments name and run it, through Hydra's own command line."""
    import hydra
    from hydra._internal.utils import get_args_parser

    from mixaug.engine.config import config_folder
    from mixaug.engine.errors import ConfigError

    given = get_args_parser().parse_args(list(arguments))
    try:
        if given.config_path is not None or given.config_name is not None:
            raise ConfigError(
                "--config-path and --config-name are not taken: --config-dir FOLDER joins config files of your own, "
                "and FOLDER/experiment/mine.yaml is experiment=mine"
            )
        if given.shell_completion:
            raise ConfigError(
                "--shell-completion is not taken: mixaug completion bash (or zsh, fish) prints the script"
            )
        # Hydra would print the config before the rules of its protocol.
        if given.cfg == "job" and not given.help:
            print(composed(given.overrides, given.config_dir, given.package))
            return 0
        folder = str(config_folder())
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    # Hydra reads the command line of the process.
    before, sys.argv = sys.argv, ["mixaug train", *arguments]
    try:
        hydra.main(version_base="1.3", config_path=folder, config_name="train")(run)()
    finally:
        sys.argv = before
    return 0


def run(_: Any) -> float | None:
    """Run the composed config; a Hydra sweeper may optimise what is returned, the top-1 or the RMSE that counts.

    It is that of the validation set where there is one, else of the test set. Of a run that ``stop_after`` stops it is
    that of the validation set there, and None without one.
    """
    from hydra.core.hydra_config import HydraConfig

    from mixaug.engine.config import SEARCH_PATH, compose, with_config_dir
    from mixaug.engine.errors import ConfigError, RunHeld
    from mixaug.engine.lock import EXIT_HELD

    hydra = HydraConfig.get()
    given = [*hydra.overrides.task, *(o for o in hydra.overrides.hydra if o.startswith(SEARCH_PATH))]
    own = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    try:
        # Composed once more, because a protocol's rules need to know what the command line has set.
        config = compose(with_config_dir(given, own[0] if own else None))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)

    from mixaug.engine.tasks import task_said
    from mixaug.engine.train import train

    try:
        result = train(config)
    except RunHeld as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_HELD)
    task = task_said(result)
    if result["status"] == "stopped":
        return result.get(f"valid_{task.measure}")
    return task.aim(result, config.protocol.figure)


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
