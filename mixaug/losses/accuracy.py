"""Accuracy on mixed samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mixaug.batch import MixedBatch
from mixaug.losses.checks import check_inputs, labels_of, leaves_as_is, mix_rows


@torch.no_grad()
def mixed_accuracy(logits: Tensor, targets: MixedBatch | Tensor, topk: int | Sequence[int] = 1) -> Tensor:
    """Share of the label weight that lies on the k classes with the highest logits.

    With class ids and weight 1 this is ordinary accuracy; with a mixed pair that got its heavier class right
    it counts lam. Reads nothing back to the host.

    Args:
        logits: (B, K).
        targets: a MixedBatch, class ids (B,), or dense targets (B, K). Negative class ids (the usual marks
            for "ignore") drop out with their weight.
        topk: k, or several k; more than K counts as K.

    Returns:
        float32 in [0, 1] on the device of the logits: a scalar for an integer ``topk``, else one value per k.
        nan if there is no label weight at all.

    Raises:
        ValueError: mismatched shapes, k < 1, or a MixedBatch without labels.
    """
    ks = (topk,) if isinstance(topk, int) else tuple(topk)
    if not ks or min(ks) < 1:
        raise ValueError(f"mixed_accuracy expected topk >= 1, got {topk}")
    if logits.ndim != 2:
        raise ValueError(f"mixed_accuracy expected logits of shape (B, K), got {tuple(logits.shape)}")
    if isinstance(targets, Tensor):
        labels = targets
        sources = torch.arange(len(labels), device=labels.device)[:, None]
        weights = torch.ones(len(labels), 1, device=labels.device)
    else:
        labels, sources, weights = labels_of("mixed_accuracy", targets), targets.sources, targets.weights
    check_inputs("mixed_accuracy", logits, labels, sources, weights, None, check_range=False)

    if ks == (1,) and isinstance(targets, MixedBatch) and labels.ndim == 1 and leaves_as_is(targets):
        own = labels[: len(logits)]
        # A mark for "ignore" is negative, which no class is.
        share = (logits.topk(1, dim=1).indices[:, 0] == own).sum() / (own >= 0).sum()
        return share if isinstance(topk, int) else share[None]
    best = logits.topk(min(max(ks), logits.shape[1]), dim=1).indices
    if labels.ndim == 2:
        mass = mix_rows(labels.float(), sources, weights.float())
        hits = mass.gather(1, best)
        total = mass.sum()
    else:
        ids = labels.long()[sources]
        mass = weights.float().masked_fill(ids < 0, 0)
        hits = (mass[:, :, None] * (ids[:, :, None] == best[:, None, :])).sum(1)
        total = mass.sum()
    if ks == (1,):
        share = (hits.sum(0) / total)[0]
        return share if isinstance(topk, int) else share[None]
    by_rank = hits.sum(0).cumsum(0) / total
    chosen = torch.stack([by_rank[min(k, len(by_rank)) - 1] for k in ks])
    return chosen[0] if isinstance(topk, int) else chosen
