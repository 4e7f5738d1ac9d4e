"""What a policy may look at beside its batches: once, before training begins, and again and again while it goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Generator, Tensor, nn

from mixaug.frozen import BriefRepr

__all__ = ["Inspection", "Preparation"]


@dataclass(frozen=True)
class Preparation:
    """The data and the model of a run, as far as a policy that learns from them beforehand needs them.

    Nothing is read or built until it is asked for.

    Attributes:
        split: ``"train"`` or ``"valid"`` to all inputs (N, ...) and labels (N, ...) of that set on the device;
            raises a ValueError where the run has no such set.
        new_model: a model like the one to be trained, freshly initialised, on the device; to be thrown away.
        batch_size, learning_rate: of the run.
        loss: the run's objective on unmixed labels, (predictions, labels) to a mean.
        generator: of all draws, on the device.
    """

    split: Callable[[str], tuple[Tensor, Tensor]]
    new_model: Callable[[], nn.Module]
    batch_size: int
    learning_rate: float
    loss: Callable[[Tensor, Tensor], Tensor]
    generator: Generator


@dataclass(frozen=True)
class Inspection(BriefRepr):
    """What a model says of a whole set, for a policy that is told every ``refresh_every`` steps (``on_refresh``).

    Attributes:
        split: name of the set, ``"valid"`` or ``"train"``; never the test set.
        outputs: (N, K) of the model in evaluation mode, without gradient.
        pooled: (N, D) what its classifier takes in.
        labels: (N,) class ids.
        weight, bias: (K, D) and (K,) of the classifier; ``bias`` may be None.
    """

    split: str
    outputs: Tensor
    pooled: Tensor
    labels: Tensor
    weight: Tensor
    bias: Tensor | None
