"""What the losses check before they compute, and sums that they share."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from mixaug.batch import MixedBatch
from mixaug.checks import check_choice, check_dense, check_label_kind, check_probability, shown
from mixaug.ops.nested import logits_of
from mixaug.plan import Unmixed

_REDUCTIONS = ("none", "mean", "sum")


def mix_rows(rows: Tensor, sources: Tensor, weights: Tensor) -> Tensor:
    """(B, K) weighted sums of rows, in one pass: indexing would copy (B, K) once per source."""
    return F.embedding_bag(sources, rows, mode="sum", per_sample_weights=weights)


def reduced(losses: Tensor, importance: Tensor | None, reduction: str, count: Tensor | int | None = None) -> Tensor:
    """Losses (B,) times each sample's importance; reduction "mean" divides by ``count``, without one by B."""
    if importance is not None:
        losses = losses * importance.to(losses.dtype)
    if reduction == "mean":
        return losses.mean() if count is None else losses.sum() / count
    return losses.sum() if reduction == "sum" else losses


def compute_dtype(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def leaves_as_is(mixed: MixedBatch) -> bool:
    """Whether every sample is known to be itself alone, with weight 1, without a look at any value.

    Sources and weights must be those that the plan was made with: a batch may carry others.
    """
    plan = mixed.plan
    return isinstance(plan, Unmixed) and mixed.sources is plan.pairs and mixed.weights is plan.weights


def labels_of(name: str, mixed: MixedBatch) -> Tensor:
    if isinstance(mixed, Tensor):
        raise TypeError(
            f"{name} expected a MixedBatch, got {type(mixed).__name__}; for plain labels use the loss of torch.nn"
        )
    if mixed.labels is None:
        raise ValueError(f"{name} needs labels, but the MixedBatch has none; pass labels to the policy")
    return mixed.labels


def outputs_of(name: str, outputs: Any) -> Tensor:
    """The outputs of a model as a tensor: itself, or the ``logits`` of what a Hugging Face model returns."""
    found = logits_of(outputs)
    if not isinstance(found, Tensor):
        raise TypeError(
            f"{name} expected the model's outputs as a tensor, or with an entry or attribute logits, got "
            f"{type(outputs).__name__}"
        )
    return found


def check_options(name: str, label_smoothing: float, reduction: str) -> None:
    check_probability(name, "label_smoothing", label_smoothing)
    check_choice(name, "reduction", reduction, _REDUCTIONS)


def check_target_threshold(name: str, threshold: Any) -> float | None:
    """``target_threshold`` as a float in [0, 1) or None, or a ValueError."""
    number = isinstance(threshold, numbers.Real) and not isinstance(threshold, bool)
    if threshold is not None and not (number and 0 <= threshold < 1):
        raise ValueError(f"{name} expects target_threshold in [0, 1) or None, got {shown(threshold)}")
    return None if threshold is None else float(threshold)


def class_factors(
    name: str, option: str, value: Any, expected: str, *, zero: bool = False, single: bool = False
) -> Tensor | None:
    """Factors of classes as a floating tensor (K,), with ``single`` or (); None stays None.

    Args:
        name, option, value: who asks, for which option, and what came.
        expected: what to say that is expected.
        zero: whether some of them, not all, may be 0.
        single: whether one number for all classes will do.

    Raises:
        ValueError: something else, or factors that are not finite or too small. Those of a tensor without values, on
            the device "meta", are not looked at.
    """
    if value is None:
        return None
    wrong = ValueError(f"{name} expects {option} as {expected}, got {shown(value)}")
    try:
        # A config brings lists of its own kind, which torch does not read.
        factors = torch.as_tensor(list(value) if isinstance(value, Sequence) else value)
    except (TypeError, ValueError, RuntimeError):
        raise wrong from None
    check_dense(name, option, factors)
    shaped = factors.ndim == 1 or (single and factors.ndim == 0)
    if factors.dtype == torch.bool or factors.is_complex() or not shaped or not factors.numel():
        raise wrong
    if not factors.is_meta and not isinstance(factors, FakeTensor):
        large = (factors >= 0) & factors.any() if zero else factors > 0
        if not bool((factors.isfinite() & large).all()):
            raise wrong
    return factors if factors.is_floating_point() else factors.float()


def check_mixing(
    name: str, outputs: Tensor, labels: Tensor, sources: Tensor, weights: Tensor, what: str = "logits"
) -> None:
    batch = len(outputs)
    if batch == 0:
        raise ValueError(f"{name} got an empty batch: {what} of shape {tuple(outputs.shape)}")
    for argument, tensor in (("labels", labels), ("sources", sources), ("weights", weights)):
        check_dense(name, argument, tensor)
    # There may be more rows of labels (partners from outside the batch) or fewer (several mixtures of one sample).
    if labels.ndim == 0 or len(labels) == 0:
        raise ValueError(f"{name} got {what} of {batch} samples, but labels of shape {tuple(labels.shape)}")
    if sources.ndim != 2 or len(sources) != batch or sources.shape[1] == 0:
        raise ValueError(f"{name} expected sources of shape ({batch}, M), M >= 1; got {tuple(sources.shape)}")
    if sources.dtype != torch.int64:
        raise TypeError(f"{name} expected sources of dtype int64, got {sources.dtype}")
    if weights.shape != sources.shape:
        raise ValueError(
            f"{name} expected weights shaped like sources, {tuple(sources.shape)}; got {tuple(weights.shape)}"
        )
    if not weights.is_floating_point():
        raise TypeError(f"{name} expected floating weights, got {weights.dtype}")
    if can_read(sources):
        low, high = (int(value) for value in sources.aminmax())
        if low < 0 or high >= len(labels):
            raise ValueError(f"{name} expected sources in [0, {len(labels)}), got values from {low} to {high}")


def check_inputs(
    name: str,
    logits: Tensor,
    labels: Tensor,
    sources: Tensor,
    weights: Tensor,
    ignore_index: int | None,
    negative: str = "refused",
) -> bool:
    """Raise for what does not fit. Returns whether a class id may be ``ignore_index``; True where none can be read.

    Args:
        name: who asks.
        logits, labels, sources, weights, ignore_index: what is checked.
        negative: "refused", or "ignored" for class ids below zero; there a single output has the ids 0 and 1.
    """
    check_dense(name, "logits", logits)
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ValueError(f"{name} expected logits of shape (B, K), got {tuple(logits.shape)}")
    if not logits.is_floating_point():
        raise TypeError(f"{name} expected floating logits, got {logits.dtype}")
    check_mixing(name, logits, labels, sources, weights)
    check_label_kind(name, labels)
    classes = logits.shape[1]
    if labels.ndim == 2:
        if labels.shape[1] != classes:
            raise ValueError(f"{name} got logits of {classes} classes, but dense labels of {labels.shape[1]}")
    else:
        if labels.is_floating_point():
            raise TypeError(
                f"{name} expected integer class ids for labels of shape (B,), got {labels.dtype}: labels.long()"
            )
        if can_read(labels):
            known = 2 if negative == "ignored" and classes == 1 else classes
            # One look at the labels is cheaper than masking what is hardly ever there.
            labels = labels.long()
            low, high = (int(value) for value in labels.aminmax())
            if low >= 0 and high < known:
                return ignore_index is not None and low <= ignore_index <= high
            out = labels >= known if negative == "ignored" else (labels < 0) | (labels >= known)
            if ignore_index is not None:
                out &= labels != ignore_index
            if bool(out.any()):
                row = int(out.nonzero()[0])
                excused = "" if ignore_index is None else f" (or ignore_index={ignore_index})"
                raise ValueError(
                    f"{name} expected class ids in [0, {known}){excused}; got {int(labels[row])} at row {row}"
                )
    return True


def refuse_one_output(name: str, logits: Tensor, labels: Tensor) -> None:
    """Raise for class ids beside a single output, which for a loss over classes is the only class there is."""
    if logits.ndim == 2 and logits.shape[1] == 1 and labels.ndim == 1:
        raise ValueError(
            f"{name} got labels of shape {tuple(labels.shape)}, which are class ids, beside logits of one output; for "
            "a yes or no give the policy labels[:, None].float(), 0 or 1, and take MixedBinaryCrossEntropy"
        )


def can_read(tensor: Tensor) -> bool:
    """Whether values can be looked at without stopping a device or breaking a compiled graph."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def check_per_sample(name: str, argument: str, values: Tensor | None, batch: int) -> None:
    """Raise unless ``values`` is None or (B,) floating point."""
    if values is None:
        return
    if not isinstance(values, Tensor) or values.shape != (batch,) or not values.is_floating_point():
        got = f"{tuple(values.shape)} {values.dtype}" if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"{name} expected {argument} ({batch},) floating, got {got}")


def refuse_uniform(name: str, mixed: MixedBatch) -> None:
    """Raise for a batch with shares that are spread over classes, for a loss that knows no classes."""
    if mixed.uniform is not None:
        raise ValueError(
            f"{name} knows no classes to spread a share of the label over (MixedBatch.uniform); use MixedCrossEntropy "
            "or MixedBinaryCrossEntropy"
        )
