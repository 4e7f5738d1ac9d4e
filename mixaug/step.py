"""`MixStep`: a whole training forward (mixing, the model's passes, the loss) as one module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn

from mixaug.batch import MixedBatch
from mixaug.losses import MixedBinaryCrossEntropy, MixedCrossEntropy, mixed_accuracy
from mixaug.ops.precision import full_precision
from mixaug.policy import Policy
from mixaug.signals import ModelSignals

Objective = Callable[[Tensor, MixedBatch], Tensor]


class MixStep(nn.Module):
    """Mix a batch, run the model on it and compute the loss, in one ``forward``.

    Because every call of the model happens inside, wrapping this module in DistributedDataParallel or
    placing it in a Lightning module needs nothing further.

    Args:
        model: maps mixed inputs to outputs, such as logits (B, K).
        policy: any policy of the registry.
        objective: maps (outputs, MixedBatch) to a scalar loss, such as
            :class:`mixaug.losses.MixedCrossEntropy`.
        signals: where the parts of the model are that a policy with ``needs`` looks at, for models of which
            :class:`mixaug.ModelSignals` does not find them by itself.

    Raises:
        TypeError: ``policy`` is not a Policy.
        ValueError: ``signals`` of another model.
    """

    def __init__(
        self, model: nn.Module, policy: Policy, objective: Objective, signals: ModelSignals | None = None
    ) -> None:
        super().__init__()
        if not isinstance(policy, Policy):
            raise TypeError(
                f"MixStep expects policy as a mixaug.Policy, got {type(policy).__name__}; "
                "make one with mixaug.create(name)"
            )
        if signals is not None and signals.model is not model:
            raise ValueError("MixStep expects signals made of its own model: ModelSignals(model, ...)")
        self.model = model
        self.policy = policy
        self.objective = objective
        # The names only: the model may yet be replaced, by its form with synchronised batch norm for one.
        self.sources = {} if signals is None else signals.places()
        policy.attach(self.signals())

    def signals(self) -> ModelSignals:
        """What the policy may ask of the model."""
        signals = ModelSignals(self.model, **self.sources)
        signals.objective = self.objective
        return signals

    def forward(
        self, images: Tensor, labels: Tensor, generator: Generator | None = None, rows: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One training forward.

        Args:
            images: (B, C, *size), or what else the model and the policy take, on the model's device.
            labels: (B,) class ids, or float targets that the objective understands.
            generator: of the mixing, on the images' device; None takes torch's default one.
            rows: (B,) int64 rows of the training set that the samples are, for a policy that ``needs_rows``.

        Returns:
            The scalar loss, and detached scalars to log: ``loss``, ``accuracy`` (lambda-weighted, in [0, 1]) where
            the outputs are class scores, and the policy's own terms of the loss by their names.
        """
        policy, source = self.policy, self.signals()
        known = {} if rows is None else {"rows": rows}
        clean = source.of(images, labels, policy.needs)
        mixed = policy(images, labels, signals=clean, generator=generator, **known)
        terms = policy.early_loss(images, mixed, clean)
        with policy.tap(source, mixed, clean) as seen:
            outputs = self.model(mixed.inputs)
        with full_precision(mixed.weights.device):
            mixed = policy.relabel(mixed, seen)
        terms = terms | policy.auxiliary_loss(mixed, seen)
        loss = self.objective(outputs, mixed)
        for term in terms.values():
            loss = loss + term
        classifies = isinstance(self.objective, (MixedCrossEntropy, MixedBinaryCrossEntropy))
        return loss, _scalars(loss, outputs, mixed, classifies=classifies) | {k: v.detach() for k, v in terms.items()}


def _scalars(loss: Tensor, outputs: Any, mixed: MixedBatch, *, classifies: bool) -> dict[str, Tensor]:
    scalars = {"loss": loss.detach()}
    labels = mixed.labels
    scored = isinstance(outputs, Tensor) and outputs.ndim == 2 and labels is not None
    # Rows of numbers are classes only to an objective that takes them for such.
    dense = classifies and labels is not None and labels.shape[1:] == outputs.shape[1:]
    if scored and labels is not None and (not labels.is_floating_point() or dense):
        with torch.no_grad():
            scalars["accuracy"] = mixed_accuracy(outputs.detach(), mixed)
    return scalars
