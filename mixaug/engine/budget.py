"""How much a training step costs beside one that mixes nothing, and how long a run lasts that may cost as much.

The cost of a step is a number of floating-point operations (:class:`mixaug.flops.Flops`): its forward and its backward
passes, those of networks beside the model, and whatever a policy computes with a network of its own. It is given as a
multiple of a plain step, which runs the unmixed batch once and learns from it. For most networks a pass with its
backward pass is three times one without, so a further pass without gradients adds about a third. What policies and
objectives look at again and again while a run goes on (:mod:`mixaug.refreshing`) is spread over the steps between.

Steps are run to find it, on a few samples of the run's own data. Nothing is declared but the chances of policies that
choose for a whole batch: every choice among policies is run, and counts by its chance, as long as they are at most 64.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from mixaug.batch import Batch
from mixaug.data.splits import labels_of
from mixaug.draws import mean_over_choices
from mixaug.engine import build
from mixaug.engine.assembly import assemble
from mixaug.engine.config import plain
from mixaug.engine.config_values import from_text, to_text
from mixaug.engine.distributed import World
from mixaug.engine.errors import ConfigError
from mixaug.engine.lengths import epochs_at_equal_cost
from mixaug.engine.sources import EpochBatches
from mixaug.flops import Flops, attention_by_products
from mixaug.passes import as_objective
from mixaug.policy import Policy
from mixaug.refreshing import Sets, asking, looks_a_sample, rows_shown
from mixaug.registry import create
from mixaug.step import MixStep

__all__ = ["data_of", "settle", "step_cost"]

#: Samples of a step that is only counted.
SAMPLES = 8
#: Steps that are counted, spread over training: some policies do another thing every second time, and those that change
#: while training goes on are looked at more often.
STEPS, STEPS_OF_A_CHANGE = 2, 20


def settle(config: DictConfig) -> DictConfig:
    """Put into effect what ``budget`` asks for.

    ``budget=equal_cost`` divides ``epochs`` by the cost of a step, so that the run costs what as many epochs without
    mixing cost; ``budget=equal_epochs`` leaves them. Both write down rule, epochs and cost in the config's ``budget``.
    What a run computes is said by its ``epochs`` alone: two runs of equal length are one, whatever rule they came from.

    Args:
        config: from ``mixaug.engine.config.compose``; one that is settled already stays as it is.

    Returns:
        A read-only config.

    Raises:
        ConfigError: a run that cannot work.
    """
    if not isinstance(config.budget, str):
        return config
    rule, epochs, cost = config.budget, config.epochs, round(step_cost(config), 3)
    length = epochs_at_equal_cost(epochs, cost) if rule == "equal_cost" else epochs
    settled = OmegaConf.create(
        {**plain(config), "epochs": length, "budget": {"rule": rule, "epochs": epochs, "cost": cost}}
    )
    OmegaConf.set_readonly(settled, True)
    return settled


def step_cost(config: DictConfig) -> float:
    """Floating-point operations of a training step, as a multiple of those of a step that mixes nothing.

    What is done once before training is left out. Repeated looks at a whole set count as long as training is: of one
    look every k steps, a k-th for each step.

    Args:
        config: from ``mixaug.engine.config.compose``.

    Raises:
        ConfigError: a run that cannot work: parts that do not go together, or a first step that fails.
    """
    content = {key: value for key, value in plain(config).items() if key not in ("root", "budget", "epochs", "seed")}
    return _step_cost(to_text(content))


@lru_cache(maxsize=256)
def _step_cost(content: str) -> float:
    told = from_text(content)
    few = {"batch_size": min(SAMPLES, told["batch_size"]), "root": ".", "budget": None, "epochs": 1, "seed": 0}
    config = OmegaConf.create({**told, **few})
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        parts = assemble(config, World(0, 1, torch.device("cpu")), data_of(to_text(told["data"])))
        try:
            build.prepare_policy(config, parts.step.policy, parts.objective, parts.data, parts.batches)
            batch = next(parts.batches.epoch(0))
            model, loss = build.build_model(config, parts.data), as_objective(parts.objective).loss
            unmixed = _operations(MixStep(model, create("none"), loss), Batch(batch.inputs, batch.labels))
            looks, batch = _looks(parts.step, batch, parts.data, told)
            return (_operations(parts.step, batch) + looks * len(batch)) / unmixed
        except (ValueError, TypeError, RuntimeError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(
                f"policy={config.choices.policy} with model={config.choices.model}, data={config.choices.data} and "
                f"objective={config.choices.objective}: {(str(error) or type(error).__name__).splitlines()[0]}"
            ) from error
        finally:
            parts.batches.close()


@lru_cache(maxsize=2)
def data_of(section: str) -> Any:
    """The data set of a config's section, given as `to_text` does; the runs of a grid mostly share one."""
    return build.load_data(OmegaConf.create({"data": from_text(section), "seed": 0}))


def _looks(step: MixStep, batch: Batch, data: Any, told: dict[str, Any]) -> tuple[float, Batch]:
    """Operations of repeated looks at whole sets for each sample that is trained on, and the batch for a step then."""
    if not asking(step):
        return 0.0, batch
    samples = {split: len(part) for split in ("train", "valid") if (part := getattr(data, split, None)) is not None}
    processes = told["world_size"]
    batches = EpochBatches(
        samples["train"], told["batch_size"], rank=0, world_size=processes, seed=0, drop_last=told["drop_last"]
    )
    epoch = -(-len(batches) // told["accumulate"])
    trained = min(samples["train"], len(batches) * told["batch_size"] * processes) / epoch
    sets = Sets(samples, lambda split: labels_of(getattr(data, split)), epoch, trained, processes)
    looks = looks_a_sample(step, batch.inputs, batch.labels, sets)[1]
    if batch.rows is None:
        return looks, batch
    # Nothing is known of the other rows, which have labels of their own; a step costs the same whatever they are.
    return looks, replace(batch, rows=batch.rows % rows_shown(samples["train"], data.outputs))


def _operations(step: MixStep, batch: Batch) -> float:
    """Mean number of operations of a step, spread over training, over all choices for a whole batch."""
    parts = [part for part in step.policy.modules() if isinstance(part, Policy)]
    count = STEPS_OF_A_CHANGE if any(part.schedules or part.changes_later for part in parts) else STEPS
    step.train()
    # A first step that is not counted fills what keeps earlier samples, such as DualMix's memory.
    _one_step(step, batch, 0.5 / count, seed=count)
    total = 0.0
    for number in range(count):
        start, tried = step, step

        def counted(
            progress: float = (number + 0.5) / count, seed: int = number, start: MixStep = start
        ) -> list[float]:
            nonlocal tried
            # Each of several choices finds the step as it was.
            tried = copy.deepcopy(start)
            with attention_by_products(), Flops() as flops:
                _one_step(tried, batch, progress, seed)
            return [float(flops.total)]

        total += mean_over_choices(counted)[0]
        step = tried
    return total / count


def _one_step(step: MixStep, batch: Batch, progress: float, seed: int) -> None:
    step.set_progress(progress)
    loss, _ = step(batch, generator=torch.Generator().manual_seed(seed))
    loss.backward()
    step.after_step()
