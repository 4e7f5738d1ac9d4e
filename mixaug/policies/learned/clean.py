"""The loss of the unmixed images, which learned mixers add to a step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mixaug.batch import MixedBatch, unmixed
from mixaug.policies.learned.objective import objective_of, objective_parameters
from mixaug.signals import ModelSignals, early_backward, half_scale


def clean_loss(
    images: Tensor, mixed: MixedBatch, source: ModelSignals, *, head: nn.Linear | None, share: float
) -> Tensor:
    """Loss of the unmixed images in training mode; its graph is gone when this returns.

    Args:
        images: (B, C, H, W) unmixed.
        mixed: the batch made of them, whose labels count.
        source: of the model, with the objective of the step.
        head: a classifier in the place of the model's; None keeps the model's.
        share: part of the batch that the loss is taken over, in (0, 1].

    Returns:
        Scalar whose backward hands known gradients to the model, the head and the objective.
    """
    count = rows_of(share, len(images))
    labels = None if mixed.labels is None else mixed.labels[: len(images)]
    if count < len(images):
        images, labels = _first_labelled(images, labels, count)
    objective = objective_of(source)
    model, learning = source.model, [*source.model.parameters(), *objective_parameters(source)]
    swapped: dict[str, Tensor] = {}
    if head is not None:
        name = source.classifier()
        prefix = "" if model is source.inner else "_orig_mod."
        swapped = {f"model.{prefix}{name}.{key}": p for key, p in head.named_parameters()}
        learning += list(head.parameters())

    def learn(outputs: Any) -> Tensor:
        return early_backward(objective(outputs, unmixed(images, labels)), learning, half_scale(images))

    # The model runs its own forward with another classifier: no hook, so a compiled model stays compiled. The gradient
    # is taken inside, where a checkpoint that runs the model again still meets that classifier.
    loss: Tensor = functional_call(_Followed(model), swapped, (images, learn))
    return loss


def clean_classifier(what: str, signals: ModelSignals, existing: nn.Linear | None) -> nn.Linear:
    """A classifier for the unmixed images, of the sizes of the model's; ``existing`` where it fits.

    Raises:
        ValueError: the model's is not linear, has parametrized weights or other sizes than ``existing``.
    """
    way_out = "clean_head=False lets the unmixed images share the model's own"
    try:
        head = signals.like_classifier(what, existing)
    except ValueError as error:
        raise ValueError(f"{error}; {way_out}") from error
    if nn.utils.parametrize.is_parametrized(signals.inner.get_submodule(signals.classifier())):
        raise ValueError(f"{what} cannot copy a classifier with parametrized weights: {way_out}")
    return head


def rows_of(share: float, count: int) -> int:
    """Rows in a part of a batch of ``count``: rounded up, and two where there are two, for batch statistics."""
    return min(count, max(2, math.ceil(share * count)))


def _first_labelled(images: Tensor, labels: Tensor | None, count: int) -> tuple[Tensor, Tensor | None]:
    """The first ``count`` samples; those whose class id is negative, as that of ignored ones is, come last."""
    if labels is None or labels.ndim != 1 or labels.is_floating_point():
        return images[:count], None if labels is None else labels[:count]
    rows = (labels < 0).to(torch.uint8).argsort(stable=True)[:count]
    return images.index_select(0, rows), labels.index_select(0, rows)


class _Followed(nn.Module):
    """A model and what is done with its outputs, as one call."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, then: Callable[[Any], Tensor]) -> Tensor:
        return then(self.model(images))
