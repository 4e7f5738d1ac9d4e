"""Binary cross-entropy of mixed samples, in index form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixaug.batch import MixedBatch
from mixaug.checks import check_dense, check_flag
from mixaug.losses.checks import (
    check_inputs,
    check_options,
    check_per_sample,
    check_target_threshold,
    class_factors,
    compute_dtype,
    labels_of,
    mix_rows,
    outputs_of,
    reduced,
    refuse_one_output,
)
from mixaug.options import Offering


def mixed_binary_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    sources: Tensor,
    weights: Tensor,
    *,
    label_smoothing: float = 0.0,
    target_threshold: float | None = None,
    sum_classes: bool = False,
    multi_label: bool = False,
    pos_weight: Tensor | None = None,
    reduction: str = "mean",
    uniform: Tensor | None = None,
    importance: Tensor | None = None,
) -> Tensor:
    """Binary cross-entropy of every class against the mixed target, timm's convention.

    The mixed target is ``t[b] = sum_m w[b, m] * smoothed(labels[sources[b, m]])``. With class ids it is never
    built: ``sum_c bce = sum_c softplus(x_c) - sum_c t_c * x_c``, and the second sum needs the sources'
    classes and the row's sum of logits only. Equals ``timm.loss.BinaryCrossEntropy`` on the targets of
    ``timm.data.mixup``.

    Args:
        logits: (B, K) floating; float16 and bfloat16 are computed in float32.
        labels: class ids (B,) of any integer dtype, or dense targets (B, K) floating (one-hot, soft or
            multi-hot).
        sources: (B, M) int64 rows of the batch that went into each sample.
        weights: (B, M) floating share of each source's label; rows need not sum to one. Differentiable unless
            a threshold is set.
        label_smoothing: eps in [0, 1]: a source's target becomes ``(1 - eps) * target + eps / K`` before
            mixing (timm's ``mixup_target``).
        target_threshold: in [0, 1); classes whose mixed target, sources of one class added up, is above it
            get target 1, all others 0.
        sum_classes: sum over the classes of a sample; by default their mean.
        multi_label: dense labels are independent yes/no targets, so smoothing moves them towards a half:
            ``(1 - eps) * target + eps / 2`` (timm's ``multi_label``). Needs dense labels. So is the one column of a
            model with a single output in any case.
        pos_weight: (K,), (1,) or () floating, positive factor of the loss of a yes, as in
            ``torch.nn.BCEWithLogitsLoss``; above 1 it favours recall.
        reduction: over the samples: "none" gives (B,), "mean", "sum". torch's ``reduction="sum"`` over all
            elements is ``sum_classes=True, reduction="sum"`` here.
        uniform: (B,) floating share of each sample's target that is spread evenly over the classes, or None. With one
            output, over yes and no.
        importance: (B,) floating factor of each sample's loss, or None. The mean is still over all samples.

    Returns:
        float32 (float64 for float64 logits); (B,) for "none", else a scalar.

    Raises:
        TypeError: integer labels (B, K), floating labels (B,), or a wrong dtype elsewhere.
        ValueError: mismatched shapes, an option out of its range, ``multi_label`` or K = 1 with class ids, and, on the
            CPU outside ``torch.compile``, class ids outside [0, K) or sources outside [0, B).
    """
    check_options("mixed_binary_cross_entropy", label_smoothing, reduction)
    check_target_threshold("mixed_binary_cross_entropy", target_threshold)
    refuse_one_output("mixed_binary_cross_entropy", logits, labels)
    check_inputs("mixed_binary_cross_entropy", logits, labels, sources, weights, None)
    if multi_label and labels.ndim != 2:
        raise ValueError(
            "mixed_binary_cross_entropy got multi_label=True with class ids (B,); pass dense (B, K) labels "
            "or multi_label=False"
        )
    check_per_sample("mixed_binary_cross_entropy", "uniform", uniform, len(logits))
    check_per_sample("mixed_binary_cross_entropy", "importance", importance, len(logits))
    classes = logits.shape[1]
    logits = logits.to(compute_dtype(logits))
    weights = weights.to(logits.dtype)
    even = None if uniform is None else uniform.to(logits.dtype) / max(classes, 2)
    off = label_smoothing / (2 if multi_label else max(classes, 2))

    # softplus(x) - t * x is the stable form of -t log s(x) - (1 - t) log s(-x). Beyond the threshold of 40
    # the linear branch is exact in float64 too (the default of 20 is not).
    negative = F.softplus(logits, threshold=40.0).sum(1)
    if pos_weight is not None:
        # p t log s(x) in place of t log s(x): what a target takes away from the loss is no longer x itself.
        factor = _checked_weight("mixed_binary_cross_entropy", pos_weight, classes).to(logits)
        logits = logits + (1 - factor) * F.softplus(-logits, threshold=40.0)
    if labels.ndim == 2:
        targets = mix_rows(labels.to(logits.dtype), sources, weights)
        if label_smoothing > 0:
            targets = targets * (1 - label_smoothing) + weights.sum(1, keepdim=True) * off
        if even is not None:
            targets = targets + even[:, None]
        if target_threshold is not None:
            targets = (targets > target_threshold).to(logits.dtype)
        loss = negative - (targets * logits).sum(1)
    else:
        ids = labels.long()[sources]
        picked = logits.gather(1, ids)
        if target_threshold is None:
            loss = negative - (1 - label_smoothing) * (weights * picked).sum(1)
            if label_smoothing > 0:
                loss = loss - off * weights.sum(1) * logits.sum(1)
            if even is not None:
                loss = loss - even * logits.sum(1)
        else:
            # The threshold looks at the target of a class, so the weights of all sources of that class are
            # added and the class is counted once, at its first source. With M sources, (B, M, M) is small.
            same = ids[:, :, None] == ids[:, None, :]
            share = weights[:, None, :]
            shares = torch.where(same, share * (1 - label_smoothing + off), share * off)
            reached = shares.sum(2)
            positive = (reached if even is None else reached + even[:, None]) > target_threshold
            earlier = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril(-1)
            first = ~(same & earlier).any(2)
            if label_smoothing > 0 or even is not None:
                # All other classes hold the off value, which may itself be above the threshold.
                others = (weights * off).sum(1)
                background = (others if even is None else others + even) > target_threshold
                step = positive.to(logits.dtype) - background[:, None].to(logits.dtype)
                loss = negative - background * logits.sum(1) - (first * step * picked).sum(1)
            else:
                loss = negative - ((first & positive) * picked).sum(1)

    if not sum_classes:
        loss = loss / classes
    return reduced(loss, importance, reduction)


def _checked_weight(name: str, pos_weight: Tensor, classes: int) -> Tensor:
    check_dense(name, "pos_weight", pos_weight)
    if not pos_weight.is_floating_point() or tuple(pos_weight.shape) not in ((), (1,), (classes,)):
        raise ValueError(
            f"{name} expected pos_weight ({classes},) floating, one for each class, or one for all, got "
            f"{tuple(pos_weight.shape)} {pos_weight.dtype}"
        )
    return pos_weight


class MixedBinaryCrossEntropy(Offering, nn.Module):
    """Module form of :func:`mixed_binary_cross_entropy`; ``forward(logits, mixed)`` takes a MixedBatch.

    Args:
        label_smoothing: eps in [0, 1].
        target_threshold: in [0, 1), or None for soft targets. "ResNet strikes back" uses 0.2 in its A1
            recipe.
        sum_classes: sum over classes rather than average.
        multi_label: dense labels are independent yes/no targets.
        reduction: "none", "mean" or "sum", over the samples.
        pos_weight: positive factor of the loss of a yes, one number or one for each class, as in
            ``torch.nn.BCEWithLogitsLoss``; kept as a buffer.

    Raises:
        ValueError: an option out of its range.
    """

    #: What the labels are: "classification" or "regression".
    task: ClassVar[str] = "classification"

    pos_weight: Tensor | None

    def __init__(
        self,
        label_smoothing: float = 0.0,
        target_threshold: float | None = None,
        sum_classes: bool = False,
        multi_label: bool = False,
        reduction: str = "mean",
        pos_weight: Tensor | Sequence[float] | float | None = None,
    ) -> None:
        super().__init__()
        check_options("MixedBinaryCrossEntropy", label_smoothing, reduction)
        name = "MixedBinaryCrossEntropy"
        self.label_smoothing = label_smoothing
        self.target_threshold = check_target_threshold(name, target_threshold)
        self.sum_classes = check_flag(name, "sum_classes", sum_classes)
        self.multi_label = check_flag(name, "multi_label", multi_label)
        self.reduction = reduction
        expected = "one positive number or one for each class"
        factors = class_factors(name, "pos_weight", pos_weight, expected, single=True)
        self.register_buffer("pos_weight", factors, persistent=False)

    def forward(self, logits: Any, mixed: MixedBatch) -> Tensor:
        """Loss of ``logits`` (B, K), or of outputs with ``logits`` of that shape, against the labels of ``mixed``."""
        return mixed_binary_cross_entropy(
            outputs_of("MixedBinaryCrossEntropy", logits),
            labels_of("MixedBinaryCrossEntropy", mixed),
            mixed.sources,
            mixed.weights,
            label_smoothing=self.label_smoothing,
            target_threshold=self.target_threshold,
            sum_classes=self.sum_classes,
            multi_label=self.multi_label,
            pos_weight=self.pos_weight,
            reduction=self.reduction,
            uniform=mixed.uniform,
            importance=mixed.importance,
        )

    def counted(self) -> dict[str, Any]:
        """Options of :func:`mixed_accuracy` that make it count the labels that this loss counts."""
        counted: dict[str, Any] = {"multi_label": True if self.multi_label else None}
        if self.target_threshold is not None:
            counted |= {"target_threshold": self.target_threshold, "label_smoothing": self.label_smoothing}
        return counted

    def extra_repr(self) -> str:
        weight = "" if self.pos_weight is None else f", pos_weight={self.pos_weight.tolist()}"
        return (
            f"label_smoothing={self.label_smoothing}, target_threshold={self.target_threshold}, "
            f"sum_classes={self.sum_classes}, multi_label={self.multi_label}, reduction={self.reduction!r}{weight}"
        )
