"""Scores of a stored checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from mixaug.engine import checkpoint
from mixaug.engine.batches import Batches
from mixaug.engine.build import build_model, build_network, load_data
from mixaug.engine.config import plain
from mixaug.engine.distributed import start
from mixaug.engine.errors import CheckpointError, ConfigError
from mixaug.engine.targets import open_config
from mixaug.engine.tasks import task_of
from mixaug.networks import Frozen


def _warn(line: str) -> None:
    warnings.warn(line, RuntimeWarning, stacklevel=4)


def evaluate_checkpoint(
    path: Path | str,
    weights: str = "auto",
    device: str = "auto",
    allow_targets: Collection[str] = (),
    say: Callable[[str], None] = _warn,
) -> dict[str, float | None]:
    """Score a checkpoint on the test set of the run that wrote it.

    The folder may come from anybody: its config builds what a run of mixaug is made of and nothing else.

    Args:
        path: a checkpoint file, or a run folder for its newest checkpoint that can be read.
        weights: "model", "ema", or "auto": the averaged weights where the run kept them.
        device: "auto", "cpu", "cuda".
        allow_targets: full names that the config may call beside those of mixaug, as ``"my_package.MyModel"``.
        say: called with a line when the newest checkpoint of a folder is damaged and an older one is taken instead. By
            default a RuntimeWarning.

    Returns:
        Numbers by name: ``top1``, ``top5``, ``nll``, ``ece``, recalls of the classes and, for data with groups,
        ``worst_group`` of a classifier (see `Scores`); ``rmse``, ``mae``,
        ``mape``, ``r2`` and, for data with groups, ``worst_rmse`` in regression; ``samples``.

    Raises:
        FileNotFoundError: no checkpoint or no ``config.yaml`` beside it.
        CheckpointError: the file, or every one of a folder, is damaged, does not fit the config, or has no averaged
            weights though they were asked for.
        ConfigError: the config would run code that is not mixaug's own, or cannot work.
        DamagedFile: the config cannot be read.
    """

    model, config, data = open_model(path, weights, allow_targets, say)
    world = start(device)
    model.to(world.device)
    return task_of(data).score(model, Batches(config, data, world), "test", config.precision)


def open_model(
    path: Path | str,
    weights: str = "auto",
    allow_targets: Collection[str] = (),
    say: Callable[[str], None] = _warn,
    load: Callable[[DictConfig], Any] = load_data,
) -> tuple[nn.Module, DictConfig, Any]:
    """The model of a checkpoint, on the CPU, with the config and the data set of its run.

    Args:
        path, weights, allow_targets, say: see :func:`evaluate_checkpoint`.
        load: from the config to the data set, for data that are at hand.

    Raises:
        FileNotFoundError, CheckpointError, ConfigError, DamagedFile: see :func:`evaluate_checkpoint`.
    """
    if weights not in ("auto", "model", "ema"):
        raise ValueError(f"weights must be auto, model or ema, got {weights!r}")
    path = Path(path)
    whole_run = path.is_dir()
    name = f"the checkpoint in {path}" if whole_run else f"checkpoint {path}"
    config = open_config(path if whole_run else path.parent, allow_targets)
    state = checkpoint.load_latest(path, say) if whole_run else checkpoint.load(path)
    if state is None:
        raise FileNotFoundError(f"{path} has no checkpoint yet: a run writes its first one at the end of an epoch")
    if weights == "auto":
        weights = "model" if state.get("ema") is None else "ema"
    if state.get(weights) is None:
        raise CheckpointError(f"{name} has no averaged weights: the run kept none (ema.decay is null)")
    data = load(config)
    model = build_model(config, data)
    try:
        model.load_state_dict(state[weights])
    except (RuntimeError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{name} does not fit the model of its config: {error}") from error
    return model, config, data


def networks_of(config: DictConfig, data: Any) -> dict[str, nn.Module]:
    """The networks beside the model that a config names: finished runs, frozen, and what a ``_target_`` builds.

    Args:
        config: the run's config; ``networks`` maps names to run folders or checkpoints, or to what to build.
        data: the run's data set.

    Raises:
        ConfigError: a folder without a checkpoint, a network of another number of outputs, one that cannot be built.
    """
    networks: dict[str, nn.Module] = {}
    for name, source in plain(config).get("networks", {}).items():
        if not isinstance(source, str):
            networks[name] = build_network(config, name, source)
            continue
        try:
            # The draws for weights that are then replaced must not move the random stream of the model.
            with torch.random.fork_rng(devices=[]):
                network, _, theirs = open_model(source)
        except (FileNotFoundError, CheckpointError) as error:
            raise ConfigError(f"networks.{name}={source}: {error}") from error
        if theirs.outputs != data.outputs:
            raise ConfigError(
                f"networks.{name}={source} has {theirs.outputs} outputs, but {data.name} needs {data.outputs}"
            )
        networks[name] = Frozen(network, source)
    return networks
