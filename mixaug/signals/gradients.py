"""Parts of a loss whose gradient is computed at once, and the scale that half precision needs for it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

#: The scale of a half-precision loss stays below this number.
LARGEST_SCALED = 2.0**15


class KnownGradient(torch.autograd.Function):
    """A loss whose gradient is already known: the value forward, the kept gradients backward.

    So one ``backward`` still does everything, while the graph of the clean pass is gone before the mixed pass begins.
    """

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor | None], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (factor,) = grads
        scaled = [None if g is None else g * factor.to(g.dtype) for g in ctx.gradients]
        return (None, None, *scaled)


def early_backward(loss: Tensor, parameters: Iterable[Tensor], scale: float = 1.0) -> Tensor:
    """A part of the loss whose gradient is computed at once, so that nothing else has to be kept for it.

    Adding it to the loss of the step gives every parameter the gradient that ``loss`` itself would have given.

    Args:
        loss: scalar with a graph.
        parameters: all that shall learn from it; others get nothing.
        scale: largest factor during the backward pass, see :func:`half_scale`.
    """
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    if not loss.requires_grad or not learning:
        return loss.detach()
    if scale == 1.0:
        kept = list(torch.autograd.grad(loss, learning, allow_unused=True))
    else:
        # A large loss brings large gradients of its own: with the whole factor they would overflow, for ever.
        factor = (LARGEST_SCALED / loss.detach().float().abs().clamp(min=1e-3)).clamp(max=scale)
        found = torch.autograd.grad(loss.float() * factor, learning, allow_unused=True)
        # The division is in float32: the factor itself may be too large for half precision.
        kept = [None if gradient is None else (gradient.float() / factor).to(gradient.dtype) for gradient in found]
    handed: Tensor = KnownGradient.apply(loss.detach(), kept, *learning)
    return handed


def half_scale(images: Tensor) -> float:
    """Factor that keeps gradients of a mean over the batch above the smallest number where the model runs in fp16."""
    return len(images) * 2.0**9 if _in_half(images) else 1.0


def _in_half(images: Tensor) -> bool:
    device = images.device.type
    autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
    return images.dtype == torch.float16 or autocast
