"""What a policy may look at once, before training begins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Generator, Tensor, nn

__all__ = ["Preparation"]


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
