"""From the configuration to the objects of a run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from mixaug.batch import MixedBatch
from mixaug.checks import check_images
from mixaug.engine.batches import GROUP, Batches, groups_of
from mixaug.engine.config import mixer_settings, plain_section
from mixaug.engine.distributed import stream_seed
from mixaug.engine.errors import ConfigError
from mixaug.engine.state import Part, Schedules
from mixaug.engine.tasks import REGRESSION, Task, held_out_splits, task_of
from mixaug.labeling.object import OBJECT_MASK
from mixaug.passes import Wants, as_objective
from mixaug.policies.pooled import with_training_set
from mixaug.policy import Policy
from mixaug.preparation import Preparation
from mixaug.signals import Loss, ModelSignals
from mixaug.step import MixStep

__all__ = [
    "build_model",
    "build_network",
    "build_objective",
    "build_optimizer",
    "build_policy",
    "build_scheduler",
    "build_step",
    "check_axes",
    "check_model",
    "check_training",
    "check_wants",
    "checked_task",
    "data_settings",
    "leaves_parameters_out",
    "load_data",
    "load_streams",
    "prepare_policy",
    "with_pool",
]


def _instantiate(config: DictConfig, section: str, *arguments: Any, **keywords: Any) -> Any:
    """Build the object that a section of the config names; the error of a wrong value names the section."""
    return _built(section, plain_section(config, section), *arguments, **keywords)


def _built(section: str, settings: Any, *arguments: Any, **keywords: Any) -> Any:
    """As `_instantiate`, of settings that lie anywhere."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return instantiate(settings, *arguments, _convert_="all", **keywords)
    except InstantiationException as error:
        # The cause is the object's own error, without Hydra's layers; an error about a missing file stays as it is.
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from error
        raise ConfigError(f"{section}: {error.__cause__ or error}") from error


BY_SEED = "by_seed"
"""This value of an option of the data in `SEEDED` stands for the number of the run's seed."""

SEEDED = ("split", "split_seed", "class_seed")


def load_data(config: DictConfig) -> Any:
    """The data set, a ``mixaug.data.DataSet`` or ``RegressionSet``."""
    return _built("data", data_settings(config))


def data_settings(config: DictConfig) -> dict[str, Any]:
    """All that decides the data set of a run, the run's seed where an option stands for it."""
    return _settled(config, plain_section(config, "data"))


def load_streams(config: DictConfig) -> dict[str, Any]:
    """The data sets of the further batches beside the training batch, by name.

    Raises:
        ConfigError: names the stream.
    """
    streams = plain_section(config, "streams")
    return {
        name: _built(f"streams.{name}.data", _settled(config, {"_target_": "mixaug.data.load", **stream["data"]}))
        for name, stream in streams.items()
    }


def _settled(config: DictConfig, settings: dict[str, Any]) -> dict[str, Any]:
    return settings | {key: config.seed for key in SEEDED if settings.get(key) == BY_SEED}


def build_model(config: DictConfig, data: Any) -> nn.Module:
    """The model with an output per class or label column, freshly initialised from torch's own generator."""
    model = _instantiate(config, "model", num_classes=data.outputs, in_chans=data.input_shape[0])
    return _module(model, "model")


def build_network(config: DictConfig, name: str, settings: dict[str, Any]) -> nn.Module:
    """A network beside the model from its ``_target_``, such as `mixaug.networks.Momentum`; its weights, if it draws
    any, come from a stream of its own.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(config.seed, f"network/{name}"))
        return _module(_built(f"networks.{name}", settings), f"networks.{name}")


def check_model(config: DictConfig, model: nn.Module, data: Any) -> None:
    """Show the model two blank inputs of the data, without a trace: what does not fit is said before a run begins.

    Raises:
        ConfigError: names model and data, what the data gives and what became of it.
    """
    was_training = model.training
    inputs = torch.zeros(2, *data.input_shape)
    try:
        with torch.no_grad():
            outputs = model.eval()(inputs)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        raise ConfigError(
            f"model={config.choices.model} cannot take inputs {tuple(data.input_shape)} of data={config.choices.data}: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error
    finally:
        model.train(was_training)
    if isinstance(outputs, torch.Tensor) and tuple(outputs.shape) != (2, data.outputs):
        raise ConfigError(
            f"model={config.choices.model} gives {tuple(outputs.shape[1:])} numbers for each input, but data="
            f"{config.choices.data} needs ({data.outputs},)"
        )


def leaves_parameters_out(model: nn.Module, data: Any) -> bool:
    """Whether a training pass of the model may go without some of its parameters, as far as a few passes tell.

    DistributedDataParallel waits for the gradient of every parameter unless it is told to look for those that get none.

    Args:
        model: with a tensor as its output; a copy of it is run on blank inputs.
        data: gives the shape of the inputs.
    """
    trial = copy.deepcopy(model).train()
    parameters = [parameter for parameter in trial.parameters() if parameter.requires_grad]
    inputs = torch.zeros(2, *data.input_shape)
    with torch.random.fork_rng(devices=[]):
        for seed in range(TRIALS):
            torch.manual_seed(seed)
            gradients = torch.autograd.grad(trial(inputs).sum(), parameters, allow_unused=True)
            if any(gradient is None for gradient in gradients):
                return True
    return False


TRIALS = 4
"""A layer that is skipped at random is found with one less than its chance to be run in all of so many passes."""


def build_policy(config: DictConfig) -> Any:
    """The mixing policy."""
    return _module(_instantiate(config, "policy"), "policy")


def with_pool(config: DictConfig, policy: Policy, batches: Batches) -> Policy:
    """The policy with partners from the training set, if ``pool`` asks for that.

    Raises:
        ConfigError: a policy, or a training set, that cannot be used so. What mixes nothing takes any pool, for it is
            the baseline of a grid of others.
    """
    if config.pool is None:
        return policy
    if not policy.has_partners:
        if policy.needs:
            raise ConfigError(
                f"pool={config.pool} does nothing for policy={config.choices.policy}, which takes no partners from "
                "elsewhere"
            )
        return policy
    pool = batches.pool()
    try:
        return with_training_set(
            policy,
            pool.inputs,
            pool.labels,
            candidates=config.pool,
            metadata=pool.metadata,
            augmented=pool.augmented,
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"pool={config.pool}: {error}") from error


def build_objective(config: DictConfig) -> nn.Module:
    """The loss on a mixed batch."""
    objective: nn.Module = _module(_instantiate(config, "objective"), "objective")
    return objective


def build_step(
    config: DictConfig,
    model: nn.Module,
    policy: Policy,
    objective: nn.Module,
    data: Any,
    networks: Mapping[str, nn.Module] | None = None,
) -> MixStep:
    """Model, policy and objective as one module; parameters of the policy get the model's sizes.

    Saliency is that of the cross-entropy, as in the literature; for numbers as labels that of the objective.

    Raises:
        ConfigError: a policy that asks for something the model does not have.
    """
    parts = [module for module in policy.modules() if isinstance(module, Policy)]
    choices = [part for part in parts if len(part.members) > 1 and part.needs - {"hidden"}]
    if config.sync_batchnorm and choices:
        raise ConfigError(
            f"policy={config.choices.policy} looks at the model in some batches only, and each process draws its own: "
            "synchronised batch norm would wait for a pass that never comes; use sync_batchnorm=false"
        )
    loss = _plain_loss(objective) if task_of(data) is REGRESSION else None
    try:
        step = MixStep(model, policy, objective, ModelSignals(model, loss=loss), networks=networks)
        # Partners from a training set are like those of a batch: the policy that mixes is tried without them.
        for part in parts:
            if part.needs and not part.members:
                _try(copy.deepcopy(model), copy.deepcopy(part), as_objective(objective).loss, loss, data)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"policy={config.choices.policy} with model={config.choices.model} and objective="
            f"{config.choices.objective}: {error}"
        ) from error
    return step


def _try(model: nn.Module, policy: Policy, objective: Any, loss: Loss | None, data: Any) -> None:
    """Two blank inputs through a step of copies, so that a missing signal is said before a run begins."""
    labels = torch.zeros(2, data.outputs) if task_of(data) is REGRESSION else torch.arange(2) % data.outputs
    if policy.wants_metadata:
        # Nobody knows what blank metadata would look like.
        return
    # Two rows of a batch serve as well as partners from elsewhere, which nobody has yet.
    policy.partners = None
    with torch.random.fork_rng(devices=[]):
        trial = MixStep(model, policy, objective, ModelSignals(model, loss=loss))
        trial(torch.zeros(2, *data.input_shape), labels, generator=torch.Generator().manual_seed(0))


def checked_task(config: DictConfig, objective: nn.Module, data: Any) -> Task:
    """The task of the data under the measure of the config, where everything fits the kind of labels.

    Raises:
        ConfigError: a loss on classes for numbers or the other way round, a figure or a measure that the task does not
            have, the worst of groups where a held-out set has none.
    """
    task = task_of(data)
    if getattr(objective, "task", None) not in (None, task.name):
        fitting = "squared_error, absolute_error or huber" if task is REGRESSION else "cross_entropy"
        raise ConfigError(
            f"objective={config.choices.objective} does not fit the {task.name} data set {data.name}; "
            f"choose objective={fitting}"
        )
    if config.protocol.figure not in task.figures:
        raise ConfigError(
            f"protocol.figure must be one of {', '.join(task.figures)} in {task.name}, got {config.protocol.figure!r}"
        )
    try:
        task = task.measured_by(config.measure)
    except ValueError as error:
        raise ConfigError(f"measure={config.measure}: {error}") from error
    for split in held_out_splits(data):
        if config.measure == "worst_group" and groups_of(getattr(data, split)) is None:
            raise ConfigError(
                f"measure=worst_group needs metadata {GROUP!r} of the {split} set, which data={config.choices.data} "
                "does not bring: data=framed_photos, or data=imagefolder data.metadata=<table with such a column>"
            )
    return task


def check_axes(config: DictConfig, policy: Policy, data: Any) -> None:
    """Refuse a policy that cuts images where the inputs of the data have other axes, such as the rows of a table.

    Raises:
        ConfigError: names policy and data, what it expects and what the data gives.
    """
    blank = torch.zeros(1, *data.input_shape)
    for part in policy.modules():
        # A choice among policies takes whatever they take.
        if isinstance(part, Policy) and not part.members:
            try:
                check_images(type(part).__name__, blank, part.spatial)
            except ValueError as error:
                raise ConfigError(
                    f"policy={config.choices.policy}: {error} of data={config.choices.data}; mixaug policies --task "
                    "regression lists what takes tables and series"
                ) from error


def check_wants(config: DictConfig, objective: nn.Module, policy: Policy, batches: Batches) -> None:
    """Refuse an objective or a policy that wants what no setting brings, and what is brought and nobody wants.

    Raises:
        ConfigError: names it, what there is, and the setting that brings it; or the stream, view or network that is not
            used.
    """
    parts = [part for part in policy.modules() if isinstance(part, Policy)]
    sources = [part.partners for part in parts if part.partners is not None]
    by_policy = Wants(
        views=tuple(name for source in sources for name in source.views),
        streams=tuple(name for source in sources for name in source.streams),
        networks=policy.wants_networks,
        metadata=policy.wants_metadata,
    )
    brought = {
        "views": (tuple(config.views), "views=[{}]"),
        "streams": (tuple(config.streams), "+streams.{}.data.name=<data set>"),
        "networks": (
            tuple(config.networks),
            '+networks.{0}=<folder of a finished run>, or "+networks.{0}={{_target_: ...}}"',
        ),
        "metadata": (batches.metadata, "data that bring it, such as data=imagefolder data.metadata=<table with {!r}>"),
    }
    wanted = (("objective", as_objective(objective).wants), ("policy", by_policy))
    for kind in ("streams", "views", "networks"):
        idle = sorted(set(brought[kind][0]) - {name for _, wants in wanted for name in getattr(wants, kind)})
        if idle:
            raise ConfigError(
                f"{kind}: neither objective={config.choices.objective} nor policy={config.choices.policy} looks at "
                f"{', '.join(map(str, idle))}, which would be there for nothing: leave it out"
            )
    for who, wants in wanted:
        for kind, (there, way_out) in brought.items():
            for name in getattr(wants, kind):
                if name not in there:
                    if name == OBJECT_MASK and name in getattr(batches.data.train, "metadata", {}):
                        way_out = (
                            "masks do not follow what moves images: augment.crop_padding=0 augment.flip=false, and no "
                            "data.transform"
                        )
                    raise ConfigError(
                        f"{who}={config.choices[who]}: the {who} wants {name!r} of {kind}, there are "
                        f"{sorted(map(str, there))}: {way_out.format(name)}"
                    )


def prepare_policy(config: DictConfig, policy: Policy, objective: nn.Module, data: Any, batches: Batches) -> None:
    """Let the policy look at the training data, once, before the first step.

    A policy that wants nothing costs nothing. The draws are the same in every process, and again when a run is
    resumed.
    """
    device = batches.world.device
    generator = torch.Generator(device).manual_seed(stream_seed(config.seed, "preparation"))

    def new_model() -> nn.Module:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(stream_seed(config.seed, "throwaway weights"))
            return build_model(config, data).to(device)

    try:
        policy.prepare(
            Preparation(
                split=batches.whole,
                new_model=new_model,
                batch_size=config.batch_size,
                learning_rate=config.optimizer.lr,
                loss=_plain_loss(objective),
                generator=generator,
            )
        )
    except ValueError as error:
        raise ConfigError(f"policy: {error}") from error


def _plain_loss(objective: nn.Module) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The objective's loss on unmixed labels, (predictions, labels) to their mean."""
    plain_loss = as_objective(objective).loss

    def loss(predictions: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(len(labels), device=labels.device)[:, None]
        weights = torch.ones(len(labels), 1, device=labels.device)
        value: torch.Tensor = plain_loss(
            predictions, MixedBatch(inputs=labels, labels=labels, sources=rows, weights=weights, plan=None)
        )
        return value

    return loss


def check_training(config: DictConfig, step: MixStep, updates_per_epoch: int) -> None:
    """Refuse settings of optimizer and schedule that cannot work, and those of a learned mixer that would do nothing.

    Both are built and let go: what is wrong with them is said before a run begins.

    Raises:
        ConfigError: names the settings.
    """
    settings = mixer_settings(config)
    if settings and not _mixer_parameters(step):
        listed = ", ".join(f"{key}={value}" for key, value in settings.items())
        raise ConfigError(
            f"{listed}: policy={config.choices.policy} has no learned mixer to train, so these settings would do "
            "nothing; leave them at null"
        )
    schedule = build_scheduler(config, build_optimizer(config, step), updates_per_epoch)
    try:
        # A plateau follows from scores, which there are none of yet.
        if schedule is not None and config.schedule.get("sched") != "plateau":
            schedule.step(config.epochs - 1)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ConfigError(f"schedule: these settings give no rate of epoch {config.epochs}: {error}") from error


def build_optimizer(config: DictConfig, step: MixStep) -> torch.optim.Optimizer:
    """timm's optimizer over the model, with at most two groups more.

    Parameters of the policy and the objective get the model's learning rate and weight decay. Those of a learned
    mixer (``Policy.mixer_parameters``) come last, in a group marked ``mixer``, with the settings of ``mixer``. Frozen
    parameters are in neither.

    Args:
        config: the run's config.
        step: a ``MixStep``.

    A momentum, of the model or the mixer, is left out of an optimizer that has none.
    """
    optimizer: torch.optim.Optimizer = _instantiate(config, "optimizer", step.model)
    as_model = {"lr": config.optimizer.lr, "weight_decay": config.optimizer.weight_decay}
    mixer = _mixer_parameters(step)
    known = {id(parameter) for parameter in [*step.model.parameters(), *mixer]}
    others = [p for p in step.parameters() if id(p) not in known and p.requires_grad]
    if others:
        optimizer.add_param_group({"params": others, **as_model})
    if mixer:
        own = {key: config.mixer[key] for key in ("lr", "weight_decay", "momentum") if config.mixer[key] is not None}
        if "momentum" not in optimizer.defaults:
            own.pop("momentum", None)
        optimizer.add_param_group({"params": mixer, **as_model, **own, "mixer": True})
    return optimizer


def _mixer_parameters(step: MixStep) -> list[nn.Parameter]:
    """Trained parameters of the learned mixers in a step's policy, each once, none of the model."""
    policies = [module for module in step.policy.modules() if isinstance(module, Policy)]
    learned = {id(parameter) for policy in policies for parameter in policy.mixer_parameters()}
    learned -= {id(parameter) for parameter in step.model.parameters()}
    return [p for p in step.policy.parameters() if id(p) in learned and p.requires_grad]


def build_scheduler(config: DictConfig, optimizer: torch.optim.Optimizer, updates_per_epoch: int) -> Any:
    """timm's schedule of the learning rate over the run's epochs; with ``mixer.schedule``, one more for the mixer."""

    def schedule(groups: torch.optim.Optimizer, **own: Any) -> Any:
        length = {"num_epochs": config.epochs, "updates_per_epoch": updates_per_epoch}
        return _instantiate(config, "schedule", groups, **length, **own)[0]

    own = {key: value for key, value in plain_section(config, "mixer")["schedule"].items() if value is not None}
    model, mixer = Part(optimizer, mixer=False), Part(optimizer, mixer=True)
    if not own or not mixer.param_groups:
        return schedule(optimizer)
    parts = {"model": schedule(model), "mixer": schedule(mixer, **own)}
    return Schedules({name: part for name, part in parts.items() if part is not None})


def options(section: Mapping[str, Any]) -> dict[str, Any]:
    """A section's settings without Hydra's own keys and the object's name."""
    return {key: value for key, value in section.items() if not key.startswith("_") and key != "name"}


def _module(module: Any, section: str) -> Any:
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{section} must build a torch.nn.Module, got {type(module).__name__}")
    return module
