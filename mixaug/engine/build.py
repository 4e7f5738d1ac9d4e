"""From the configuration to the objects of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from mixaug.engine.config import plain
from mixaug.engine.errors import ConfigError
from mixaug.step import MixStep

__all__ = ["build_model", "build_objective", "build_optimizer", "build_policy", "build_scheduler", "load_data"]


def _instantiate(config: DictConfig, section: str, *arguments: Any, **keywords: Any) -> Any:
    """Build the object that a section of the config names; the error of a wrong value names the section."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return instantiate(plain(config)[section], *arguments, _convert_="all", **keywords)
    except InstantiationException as error:
        # The cause is what the object itself said, without Hydra's layers; missing files stay what they are.
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from error
        raise ConfigError(f"{section}: {error.__cause__ or error}") from error


def load_data(config: DictConfig) -> Any:
    """The data set, a ``mixaug.data.DataSet``."""
    return _instantiate(config, "data")


def build_model(config: DictConfig, data: Any) -> nn.Module:
    """The backbone with a head for the data's classes, freshly initialised from torch's own generator."""
    model = _instantiate(config, "model", num_classes=data.num_classes, in_chans=data.image_size[0])
    return _module(model, "model")


def build_policy(config: DictConfig) -> Any:
    """The mixing policy."""
    return _module(_instantiate(config, "policy"), "policy")


def build_objective(config: DictConfig) -> nn.Module:
    """The loss on a mixed batch."""
    return _module(_instantiate(config, "objective"), "objective")


def build_optimizer(config: DictConfig, step: MixStep) -> torch.optim.Optimizer:
    """timm's optimizer over the model; parameters of the policy and the objective form one group of their own.

    Args:
        config: the run's config.
        step: a ``MixStep``.
    """
    optimizer: torch.optim.Optimizer = _instantiate(config, "optimizer", step.model)
    in_model = {id(parameter) for parameter in step.model.parameters()}
    others = [p for p in step.parameters() if id(p) not in in_model and p.requires_grad]
    if others:
        optimizer.add_param_group(
            {"params": others, "lr": config.optimizer.lr, "weight_decay": config.optimizer.weight_decay}
        )
    return optimizer


def build_scheduler(config: DictConfig, optimizer: torch.optim.Optimizer, updates_per_epoch: int) -> Any:
    """timm's schedule of the learning rate over the run's epochs."""
    scheduler, _ = _instantiate(
        config, "schedule", optimizer, num_epochs=config.epochs, updates_per_epoch=updates_per_epoch
    )
    return scheduler


def options(section: Mapping[str, Any]) -> dict[str, Any]:
    """A section's settings without Hydra's own keys and the object's name."""
    return {key: value for key, value in section.items() if not key.startswith("_") and key != "name"}


def _module(built: Any, section: str) -> Any:
    if not isinstance(built, nn.Module):
        raise ConfigError(f"{section} must build a torch.nn.Module, got {type(built).__name__}")
    return built
