"""The loss of the step, as far as a learned mixer uses it for passes of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mixaug.batch import MixedBatch
from mixaug.losses import MixedCrossEntropy
from mixaug.signals import ModelSignals, early_backward


def objective_of(source: ModelSignals) -> Callable[[Any, MixedBatch], Tensor]:
    """The loss of the step, (outputs, MixedBatch) to a scalar; cross-entropy outside of a step."""
    return MixedCrossEntropy() if source.objective is None else source.objective


def objective_parameters(source: ModelSignals) -> list[nn.Parameter]:
    """Parameters of the loss of the step, such as a temperature."""
    objective = objective_of(source)
    return list(objective.parameters()) if isinstance(objective, nn.Module) else []


def with_early_gradients(terms: dict[str, Tensor], parameters: Sequence[nn.Parameter]) -> dict[str, Tensor]:
    """The same terms, with the gradients of ``parameters`` computed at once: the first term carries those of all."""
    handed = early_backward(torch.stack(list(terms.values())).sum(), parameters)
    first, *others = terms
    values = {name: term.detach() for name, term in terms.items()}
    return {first: handed - sum(values[name] for name in others), **{name: values[name] for name in others}}
