"""The parts of a run, built from its config and checked against each other before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from mixaug.data.reading import fault_of_sizes
from mixaug.data.sets import DataSet
from mixaug.engine import build
from mixaug.engine.batches import Batches
from mixaug.engine.distributed import World, stream_seed
from mixaug.engine.errors import ConfigError
from mixaug.engine.refreshes import Refreshes
from mixaug.engine.stored import initialise, networks_of
from mixaug.engine.tasks import Task, held_out_splits
from mixaug.policy import Policy
from mixaug.step import MixStep

__all__ = ["Parts", "assemble"]


@dataclass(frozen=True)
class Parts:
    """What trains together.

    Attributes:
        data: the data set.
        task: what is predicted.
        objective, model, policy: as built; the policy is the step's.
        batches: the data, read in batches.
        step: the whole training forward.
        refreshes: shows the policy the validation set, where it asks for that.
        init_from: where the model's first weights came from, see `mixaug.engine.stored.initialise`.
    """

    data: Any
    task: Task
    objective: nn.Module
    model: nn.Module
    batches: Batches
    policy: Policy
    step: MixStep
    refreshes: Refreshes
    init_from: dict[str, str] | None


def assemble(config: DictConfig, world: World, data: Any = None) -> Parts:
    """Build the parts of a run; all processes get the same weights.

    Args:
        config: from ``mixaug.engine.config.compose``.
        world: this process among all.
        data: the data set of the config, where it has been loaded already.

    Raises:
        ConfigError: values that cannot work, or not with each other.
    """
    torch.manual_seed(stream_seed(config.seed, "weights"))
    if data is None:
        data = build.load_data(config)
    if isinstance(data, DataSet) and (fault := fault_of_sizes(data)):
        raise ConfigError(f"data: {fault}")
    if config.schedule.get("sched") == "plateau" and "valid" not in held_out_splits(data):
        # Whatever the schedule watches is trained on: that of the test set would make its scores worthless.
        raise ConfigError(
            f"schedule.sched=plateau watches the scores of a validation set, and {data.name} has none: "
            "data.valid_share=0.1 takes one from the training set"
        )
    objective = build.build_objective(config)
    task = build.checked_task(config, objective, data)
    model, batches = build.build_model(config, data), Batches(config, data, world, build.load_streams(config))
    build.check_model(config, model, data)
    # What copies the model or reads its weights, such as a slow copy, comes later.
    init_from = initialise(config, model)
    told = getattr(objective, "normalised_by", None)
    if callable(told) and batches.mean is not None and batches.std is not None:
        told(batches.mean, batches.std)
    policy = build.build_policy(config)
    build.check_axes(config, policy, data)
    policy = build.with_pool(config, policy, batches)
    build.check_wants(config, objective, policy, batches)
    step = build.build_step(config, model, policy, objective, data, networks_of(config, data))
    build.check_training(config, step, -(-len(batches) // config.accumulate))
    batches.draw_evenly()
    refreshes = Refreshes(config, step, batches, world)
    return Parts(data, task, objective, model, batches, policy, step, refreshes, init_from)
