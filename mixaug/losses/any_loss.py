"""Any per-sample loss, for mixed samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mixaug.batch import MixedBatch
from mixaug.losses.checks import check_mixing, check_options, check_per_sample, labels_of, reduced, refuse_uniform
from mixaug.options import Offering


def mixed_loss(
    loss: Callable[[Tensor, Tensor], Tensor],
    logits: Tensor,
    labels: Tensor,
    sources: Tensor,
    weights: Tensor,
    *,
    reduction: str = "mean",
    importance: Tensor | None = None,
) -> Tensor:
    """Mix any per-sample loss: ``sum_m w[b, m] * loss(logits, labels[sources[:, m]])[b]``.

    Args:
        loss: called M times as ``loss(logits, labels)``, must return one value per sample, (B,).
        logits: (B, ...) whatever ``loss`` takes.
        labels: (B, ...) whatever ``loss`` takes: class ids, which it gets as int64, dense targets, regression targets.
        sources: (B, M) int64 rows of the batch that went into each sample.
        weights: (B, M) floating share of each source's label.
        reduction: "none" gives (B,); "mean" over the batch; "sum".
        importance: (B,) floating factor of each sample's loss, or None.

    Returns:
        (B,) for "none", else a scalar, in the dtype ``loss`` returns (at least float32).

    Raises:
        ValueError: mismatched shapes, or ``loss`` does not return (B,).
    """
    check_options("mixed_loss", 0.0, reduction)
    check_mixing("mixed_loss", logits, labels, sources, weights)
    check_per_sample("mixed_loss", "importance", importance, len(logits))
    if not labels.is_floating_point() and not labels.is_complex() and labels.dtype != torch.bool:
        # torch's losses take ids in one or two integer dtypes only.
        labels = labels.long()
    total: Tensor | None = None
    for source, weight in zip(sources.unbind(1), weights.unbind(1), strict=True):
        value = loss(logits, labels[source])
        if not isinstance(value, Tensor) or value.shape != (len(logits),):
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            rows = isinstance(value, Tensor) and value.ndim > 1 and len(value) == len(logits)
            axes = "1" if rows and value.ndim == 2 else "tuple(range(1, ...))"
            raise ValueError(
                f"mixed_loss expected {_name(loss)} to return one loss per sample, shape ({len(logits)},); got {got}; "
                + (
                    f"take the mean over the other axes: MixedLoss(lambda x, y: loss(x, y).mean({axes}))"
                    if rows
                    else "build it with reduction='none'"
                )
            )
        share = weight.to(torch.promote_types(value.dtype, torch.float32)) * value
        total = share if total is None else total + share
    assert total is not None  # check_mixing requires M >= 1
    return reduced(total, importance, reduction)


class MixedLoss(Offering, nn.Module):
    """Turns any per-sample loss into one for mixed samples; ``forward(logits, mixed)`` takes a MixedBatch.

    Args:
        loss: a module or function ``(logits, labels) -> (B,)``, such as
            ``nn.CrossEntropyLoss(reduction="none")`` or a focal loss without reduction.
        reduction: "none", "mean" or "sum".

    Example:
        >>> criterion = MixedLoss(nn.MultiMarginLoss(reduction="none"))
        >>> bce = nn.BCEWithLogitsLoss(reduction="none")
        >>> criterion = MixedLoss(lambda logits, labels: bce(logits, labels).mean(1))
    """

    #: The task is open: the wrapped loss says which labels it takes.
    task: ClassVar[str | None] = None

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor], reduction: str = "mean") -> None:
        super().__init__()
        if not callable(loss):
            raise TypeError(f"MixedLoss expected a callable (logits, labels) -> (B,), got {type(loss).__name__}")
        check_options("MixedLoss", 0.0, reduction)
        self.loss = loss
        self.reduction = reduction

    def forward(self, logits: Tensor, mixed: MixedBatch) -> Tensor:
        """Loss of ``logits`` (B, ...) against the labels of ``mixed``."""
        labels = labels_of("MixedLoss", mixed)
        refuse_uniform("MixedLoss", mixed)
        return mixed_loss(
            self.loss,
            logits,
            labels,
            mixed.sources,
            mixed.weights,
            reduction=self.reduction,
            importance=mixed.importance,
        )

    def counted(self) -> dict[str, Any]:
        """Options of :func:`mixed_accuracy` that make it count the labels that this loss counts."""
        ignored = getattr(self.loss, "ignore_index", None)
        return {"ignore_index": ignored if isinstance(ignored, int) else None}


def _name(function: object) -> str:
    return getattr(function, "__name__", type(function).__name__)
