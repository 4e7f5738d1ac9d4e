"""Policies and objectives that look at a whole set again and again: which of a step do, and what their looks cost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mixaug.flops import Flops, attention_by_products
from mixaug.passes import as_objective
from mixaug.policy import Policy
from mixaug.preparation import Inspection
from mixaug.signals import ModelSignals
from mixaug.step import MixStep

__all__ = ["EPOCH", "Sets", "asking", "classifier_of", "every", "look", "looks_a_sample", "rows_shown"]

#: Word of ``refresh_every`` for once an epoch.
EPOCH = "epoch"
#: Rows of an inspection that is made up, unless there are hundreds of classes. What is done with a larger set is
#: concluded from so many rows and from half of them.
ROWS = 512


@dataclass(frozen=True)
class Sets:
    """The sizes of a run that the cost of its looks depends on.

    Attributes:
        samples: of each set that may be looked at, by its name, ``"train"`` or ``"valid"``.
        labels: (N,) class ids of a set by its name; None where they are not known.
        epoch: optimizer steps of an epoch.
        trained: samples that are trained on between two optimizer steps, in all processes.
        processes: each of which does its share of the passes, and all of what follows from them.
    """

    samples: Mapping[str, int]
    labels: Callable[[str], Tensor] | None
    epoch: int
    trained: float
    processes: int = 1


def asking(step: MixStep) -> list[Any]:
    """The policies of a step, and its objective, that look at whole sets again and again."""
    policies = [part for part in step.policy.modules() if isinstance(part, Policy)]
    return [part for part in (*policies, as_objective(step.objective)) if getattr(part, "refresh_every", None)]


def every(part: Any, epoch: int) -> int:
    """Optimizer steps between two looks of a part that :func:`asking` names."""
    return epoch if part.refresh_every == EPOCH else int(part.refresh_every)


@torch.no_grad()
def look(source: ModelSignals, inputs: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """What a model says of a batch in evaluation mode: (B, K) outputs and (B, D) inputs of its classifier."""
    signals = source.of(inputs, labels, frozenset({"pooled", "outputs"}))
    return signals.outputs().float(), signals.pooled().float()


def classifier_of(source: ModelSignals) -> nn.Linear:
    """The linear classifier of a model.

    Raises:
        ValueError: another one.
    """
    classifier = source.inner.get_submodule(source.classifier())
    if not isinstance(classifier, nn.Linear):
        raise ValueError(f"a linear classifier is looked at, the model has {type(classifier).__name__}")
    return classifier


def looks_a_sample(step: MixStep, inputs: Tensor, labels: Tensor | None, sets: Sets) -> tuple[float, float]:
    """What the looks at whole sets cost, for each sample that is trained on; afterwards the step can be run.

    The passes over a set are counted on a batch and multiplied; parts of one step that look at a set at the same time
    share them. What the parts then do is done once, with numbers that are made up.

    Args:
        step: of which a part may look.
        inputs: (B, ...) as the model takes them.
        labels: (B,) class ids.
        sets: sizes of the run.

    Returns:
        Samples that are passed through the model, and operations.

    Raises:
        ValueError: a part that cannot do with what it is shown.
    """
    parts = asking(step)
    if not parts:
        return 0.0, 0.0
    with attention_by_products(), Flops() as passed:
        outputs, pooled = look(step.signals(), inputs, labels)
    rows = operations = 0.0
    for split in {part.refresh_split for part in parts}:
        ours = [part for part in parts if part.refresh_split == split]
        seen = sets.samples[split] * _share_of_steps([every(part, sets.epoch) for part in ours])
        rows += seen
        operations += seen * passed.total / len(inputs)
        for part in ours:
            # Every process does all of this.
            done = sets.processes * _of_a_refresh(part, step, split, sets, outputs.shape[1], pooled.shape[1])
            operations += done / every(part, sets.epoch)
    return rows / sets.trained, operations / sets.trained


def _of_a_refresh(part: Any, step: MixStep, split: str, sets: Sets, classes: int, width: int) -> float:
    """Operations of a part with what a look has shown it: a number of them, and more for every further row."""
    whole = sets.samples[split]
    most = rows_shown(whole, classes)
    counts = [whole] if most == whole else [most // 2, most]
    found = []
    for count in counts:
        shown = _made_up(step, split, sets, count, classes, width)
        with Flops() as done:
            part.on_refresh(shown)
        found.append(done.total)
    slope = 0.0 if len(counts) == 1 else (found[1] - found[0]) / (counts[1] - counts[0])
    return found[-1] + slope * (whole - counts[-1])


def _share_of_steps(intervals: list[int]) -> float:
    """Share of the optimizer steps before which at least one of several intervals begins."""
    return sum(
        (-1) ** (count + 1) / math.lcm(*chosen)
        for count in range(1, len(intervals) + 1)
        for chosen in itertools.combinations(intervals, count)
    )


def _made_up(step: MixStep, split: str, sets: Sets, count: int, classes: int, width: int) -> Inspection:
    """An inspection of so many rows of random numbers, with the labels of the set where it has as many."""
    labels = None if sets.labels is None or count < sets.samples[split] else sets.labels(split)
    classifier = classifier_of(step.signals())
    device = classifier.weight.device
    generator = torch.Generator().manual_seed(0)
    return Inspection(
        split=split,
        outputs=torch.randn(count, classes, generator=generator).to(device),
        pooled=torch.randn(count, width, generator=generator).to(device),
        labels=torch.arange(count, device=device) % classes if labels is None else labels.to(device),
        weight=classifier.weight.detach(),
        bias=None if classifier.bias is None else classifier.bias.detach(),
    )


def rows_shown(samples: int, classes: int) -> int:
    """How many rows of a set of so many samples :func:`looks_a_sample` makes up; a step of it can ask for no others."""
    # Half as many rows have every class yet.
    return min(samples, max(ROWS, 2 * classes))
