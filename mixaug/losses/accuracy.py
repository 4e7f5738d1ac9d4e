"""Accuracy on mixed samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mixaug.batch import MixedBatch
from mixaug.losses.checks import check_inputs, check_options, check_target_threshold, labels_of, leaves_as_is, mix_rows

#: Sum of a row of labels may differ from one by so much, as half precision makes it, where it shares one label out.
TOLERANCE = 0.02


@torch.no_grad()
def mixed_accuracy(
    logits: Tensor,
    targets: MixedBatch | Tensor,
    topk: int | Sequence[int] = 1,
    *,
    ignore_index: int | None = None,
    multi_label: bool | None = False,
    target_threshold: float | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Share of the label weight that lies on the k classes with the highest logits.

    With class ids and weight 1 this is ordinary accuracy; with a mixed pair that got its heavier class right
    it counts lam. Where labels are answers to yes-or-no questions, it is the share of right answers, yes for a logit
    above zero: a mixed target of 0.3 counts 0.3 for a yes and 0.7 for a no. Reads nothing back to the host.

    Args:
        logits: (B, K). A single output is a yes or no.
        targets: a MixedBatch, class ids (B,), or dense targets (B, K). Beside a single output class ids are 0 for no
            and 1 for yes. Negative class ids (the usual marks for "ignore") drop out with their weight.
        topk: k, or several k; more than K counts as K.
        ignore_index: further class id that drops out, as in a loss.
        multi_label: True reads dense targets (B, K) as a yes or no for each class, False as shares of classes; None
            looks whether each row of labels sums to one. ``topk`` must then be 1.
        target_threshold: in [0, 1): a class whose mixed target is above it counts 1, others 0, as
            :func:`mixed_binary_cross_entropy` has it; None counts shares.
        label_smoothing: of the targets that are compared with the threshold. Needs one: what it spreads over all
            classes is no label, and counts nothing by itself.

    Returns:
        float32 in [0, 1] on the device of the logits: a scalar for an integer ``topk``, else one value per k. Samples
        count by their ``importance``, where a MixedBatch has it; shares that are spread over all classes (``uniform``)
        are left out, but in what is compared with a threshold. A sample without any label counts nothing. nan if there
        is no label weight at all.

    Raises:
        ValueError: mismatched shapes, k < 1, yes-or-no labels with other k, a threshold out of range, smoothing without
            one, a MixedBatch without labels, and, on the
            CPU outside ``torch.compile``, class ids that the logits do not have.
        TypeError: integer rows (B, K) or floating labels (B,).
    """
    ks = (topk,) if isinstance(topk, int) else tuple(topk)
    if not ks or min(ks) < 1:
        raise ValueError(f"mixed_accuracy expected topk >= 1, got {topk}")
    if multi_label is not False and set(ks) != {1}:
        raise ValueError(f"mixed_accuracy expected topk=1 for labels of yes and no, got {topk}")
    check_options("mixed_accuracy", label_smoothing, "mean")
    if target_threshold is None and label_smoothing:
        raise ValueError(
            f"mixed_accuracy got label_smoothing={label_smoothing}, which acts on a target_threshold alone"
        )
    check_target_threshold("mixed_accuracy", target_threshold)
    importance = uniform = None
    if isinstance(targets, Tensor):
        labels = targets
        rows = torch.arange(len(labels) if labels.ndim else 0, device=labels.device)
        sources, weights = rows[:, None], torch.ones(len(rows), 1, device=labels.device)
    else:
        labels, sources, weights = labels_of("mixed_accuracy", targets), targets.sources, targets.weights
        importance, uniform = targets.importance, targets.uniform
    check_inputs("mixed_accuracy", logits, labels, sources, weights, ignore_index, negative="ignored")
    plain = ks == (1,) and importance is None and labels.ndim == 1 and logits.shape[1] > 1
    nothing_more = (ignore_index is None or ignore_index < 0) and target_threshold is None
    if plain and nothing_more and isinstance(targets, MixedBatch) and leaves_as_is(targets):
        own = labels[: len(logits)]
        # A mark for "ignore" is negative, which no class is.
        share = (logits.topk(1, dim=1).indices[:, 0] == own).sum() / (own >= 0).sum()
        return share if isinstance(topk, int) else share[None]
    weights, classes = weights.float(), logits.shape[1]
    is_ids = labels.ndim == 1
    if is_ids:
        ids = labels.long()[sources]
        ignored = ids < 0
        if ignore_index is not None and ignore_index >= 0:
            ignored = ignored | (ids == ignore_index)
        weights = weights.masked_fill(ignored, 0)
    if target_threshold is not None:
        dense = _shares(ids, weights, classes) if is_ids else mix_rows(labels.float(), sources, weights)
        off = label_smoothing / (2 if multi_label else max(classes, 2))
        dense = dense * (1 - label_smoothing) + weights.sum(1, keepdim=True) * off
        if uniform is not None:
            dense = dense + uniform.float()[:, None] / max(classes, 2)
        above = (dense > target_threshold).float()
        # A sample without any label counts nothing.
        labelled = weights.sum(1, keepdim=True) if uniform is None else weights.sum(1, keepdim=True) + uniform[:, None]
        weights = (labelled > 0).float()
    if importance is not None:
        weights = weights * importance.float()[:, None]

    if is_ids and classes > 1 and target_threshold is None:
        best = logits.topk(min(max(ks), classes), dim=1).indices
        hits = (weights[:, :, None] * (ids[:, :, None] == best[:, None, :])).sum(1)
        by_rank = _up_to_rank(hits) / weights.sum()
    else:
        if target_threshold is not None:
            mixed = above * weights
        else:
            mixed = _shares(ids, weights, classes) if is_ids else mix_rows(labels.float(), sources, weights)
        if multi_label or classes == 1:
            by_rank = _answers(logits, mixed, weights)[None]
        else:
            best = logits.topk(min(max(ks), classes), dim=1).indices
            by_rank = _up_to_rank(mixed.gather(1, best)) / mixed.sum()
            if multi_label is None and not is_ids:
                shares = ((labels.float().sum(1) - 1).abs() < TOLERANCE).all()
                by_rank = torch.where(shares, by_rank, _answers(logits, mixed, weights))
    if isinstance(topk, int):
        return by_rank[-1]
    return torch.stack([by_rank[min(k, len(by_rank)) - 1] for k in ks])


def _shares(ids: Tensor, weights: Tensor, classes: int) -> Tensor:
    """(B, K) weight of each class, from (B, M) class ids and weights, 0 for ids that are none; or (B, 1) of a yes."""
    if classes == 1:
        return (weights * (ids == 1)).sum(1, keepdim=True)
    return torch.zeros(len(ids), classes, device=ids.device).scatter_add_(1, ids.clamp(0, classes - 1), weights)


def _up_to_rank(hits: Tensor) -> Tensor:
    """(R,) sums over samples and ranks up to each, of (B, R) weight hit at each rank."""
    by_rank = hits.sum(0)
    # One rank is its own sum: a launch less in every training step.
    return by_rank if len(by_rank) == 1 else by_rank.cumsum(0)


def _answers(logits: Tensor, mixed: Tensor, weights: Tensor) -> Tensor:
    """Share of right answers, from (B, K) weights of a yes and (B, M) weights of all sources."""
    total = weights.sum(1, keepdim=True)
    return torch.where(logits > 0, mixed, total - mixed).sum() / (total.sum() * logits.shape[1])
