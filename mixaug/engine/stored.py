"""What comes from stored checkpoints: scores, models, networks beside a model, weights that a run starts from."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from mixaug.engine import checkpoint
from mixaug.engine.batches import Batches
from mixaug.engine.build import build_model, build_network, load_data
from mixaug.engine.config import plain_section
from mixaug.engine.distributed import start
from mixaug.engine.errors import CheckpointError, ConfigError
from mixaug.engine.reading import DamagedFile
from mixaug.engine.results import read_result
from mixaug.engine.targets import open_config
from mixaug.engine.tasks import task_of
from mixaug.networks import Frozen, fingerprint

__all__ = ["evaluate_checkpoint", "initialise", "networks_of", "open_model"]


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
        weights = _figured(state)
    if state.get(weights) is None:
        raise CheckpointError(f"{name} has no averaged weights: the run kept none (ema.decay is null)")
    data = load(config)
    model = build_model(config, data)
    try:
        model.load_state_dict(state[weights])
    except (RuntimeError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{name} does not fit the model of its config: {error}") from error
    return model, config, data


def _figured(state: Mapping[str, Any]) -> str:
    """Which weights of a checkpoint the run's figures are of: the averaged ones where it kept them."""
    return "model" if state.get("ema") is None else "ema"


def initialise(config: DictConfig, model: nn.Module) -> dict[str, str] | None:
    """Give a model the weights that the config's ``init_from`` names, and leave it as it is where that is null.

    Nothing but the tensors of one checkpoint is read: neither the other run's config nor its data are needed. The
    averaged weights are taken where that run kept them.

    Args:
        config: the run's config; ``init_from`` is the folder of a finished run, whose last checkpoint counts, or a
            checkpoint file.
        model: on the CPU; its weights are replaced, batch statistics included.

    Returns:
        ``source`` as the config has it and ``sha256``, the weights' `mixaug.networks.fingerprint`; None for null.

    Raises:
        ConfigError: a run that is not finished, a checkpoint that is missing or damaged, or weights that do not fit;
            names the parameters.
    """
    source = config.init_from
    if source is None:
        return None
    path, what = Path(source), f"init_from={source}"
    if path.is_dir():
        try:
            read_result(path / "result.json")
        except FileNotFoundError:
            raise ConfigError(
                f"{what} is no finished run, since it has no result.json: finish that run, or name a checkpoint of it"
            ) from None
        except DamagedFile as error:
            raise ConfigError(f"{what} is no finished run: {error}: finish it, or name a checkpoint of it") from error
        path = path / checkpoint.LAST
    try:
        state = checkpoint.load(path)
    except FileNotFoundError as error:
        raise ConfigError(f"{what}: there is no {path}") from error
    except CheckpointError as error:
        raise ConfigError(f"{what}: {error}") from error
    weights: Any = state.get(_figured(state))
    where = f"model={config.choices.model} on data={config.choices.data}"
    faults = _misfits(weights, model.state_dict())
    if faults:
        more = f", and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
        raise ConfigError(f"{what} does not fit {where}: {', '.join(faults[:NAMED])}{more}")
    try:
        model.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ConfigError(f"{what} does not fit {where}: {error}") from error
    return {"source": source, "sha256": fingerprint(model)}


NAMED = 3
"""A message names so many of the parameters that do not fit."""


def _misfits(theirs: Any, ours: Mapping[str, Any]) -> list[str]:
    """What keeps weights from taking the place of ours, a phrase for each parameter or buffer."""
    if not isinstance(theirs, Mapping) or not all(isinstance(value, Tensor) for value in theirs.values()):
        return ["it holds no weights of a model"]
    faults = [
        f"{name} is {tuple(theirs[name].shape)} there and {tuple(value.shape)} here"
        for name, value in ours.items()
        if name in theirs and theirs[name].shape != value.shape
    ]
    faults += [f"{name} is not there" for name in ours if name not in theirs]
    return faults + [f"{name} is not here" for name in theirs if name not in ours]


def networks_of(config: DictConfig, data: Any) -> dict[str, nn.Module]:
    """The networks beside the model that a config names: finished runs, frozen, and what a ``_target_`` builds.

    Args:
        config: the run's config; ``networks`` maps names to run folders or checkpoints, or to what to build.
        data: the run's data set.

    Raises:
        ConfigError: a folder without a checkpoint, a network of another number of outputs, one that cannot be built.
    """
    networks: dict[str, nn.Module] = {}
    for name, source in (plain_section(config, "networks") or {}).items():
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
