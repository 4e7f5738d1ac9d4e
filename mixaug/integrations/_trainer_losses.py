"""Losses of the Hugging Face `Trainer`, of labels that may be mixed: by problem type, the Trainer's own, a user's."""

from __future__ import annotations

import ast
import inspect
import textwrap
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mixaug import MixedBatch
from mixaug.batch import unmixed
from mixaug.checks import check_choice
from mixaug.integrations._common import require_smoothing
from mixaug.losses import mixed_binary_cross_entropy, mixed_cross_entropy, mixed_regression_loss
from mixaug.ops.nested import logits_of

REGRESSION, SINGLE_LABEL, MULTI_LABEL = "regression", "single_label_classification", "multi_label_classification"
PROBLEM_TYPES = (REGRESSION, SINGLE_LABEL, MULTI_LABEL)
#: The losses of Transformers for these are means over a batch, whatever it is a part of.
MEANS = (REGRESSION, MULTI_LABEL)
#: Class id that the Trainer and torch leave out.
IGNORED = -100


class MixedLossFunction:
    """`compute_loss_func` for classifiers and regression models: the loss of their problem type, mixed or plain.

    Args:
        label_smoothing: in [0, 1], as in `torch.nn.CrossEntropyLoss`; for `"multi_label_classification"` it moves
            targets towards a half.
        problem_type: as in a Hugging Face config. `"single_label_classification"` is the cross-entropy with class
            ids (B,) or shares of classes (B, K), `"multi_label_classification"` the binary cross-entropy with rows
            (B, K), `"regression"` the squared error with numbers (B,) or (B, D). None is the cross-entropy with class
            ids or rows that sum to 1.

    Raises:
        ValueError: `label_smoothing` out of range or beside `"regression"`, an unknown `problem_type`.
    """

    def __init__(self, label_smoothing: float = 0.0, problem_type: str | None = None) -> None:
        self.label_smoothing = require_smoothing(label_smoothing, "MixedLossFunction")
        if problem_type is not None:
            check_choice("MixedLossFunction", "problem_type", problem_type, PROBLEM_TYPES)
        if problem_type == REGRESSION and label_smoothing:
            raise ValueError('label_smoothing needs classes, but problem_type="regression" has numbers as labels')
        self.problem_type = problem_type

    def __call__(
        self, outputs: Any, labels: MixedBatch | Tensor | None, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """The loss of one batch.

        Args:
            outputs: the model's output, with `logits` (B, K) as its entry of that name, or as first item of a tuple.
            labels: a `MixedBatch` in training, labels in evaluation.
            num_items_in_batch: samples of the whole accumulated batch; None for a plain mean.

        Returns:
            A scalar.

        Raises:
            ValueError: no labels; without a `problem_type`, rows of numbers that do not sum to 1.
        """
        logits = logits_from(outputs)
        if not isinstance(labels, MixedBatch):
            labels = unmixed(logits, labels)
        if labels.labels is None:
            raise ValueError(f'{type(self).__name__} got a batch without labels; give it an entry "labels"')
        reduction = "mean" if num_items_in_batch is None else "sum"
        given = as_the_problem_takes(labels.labels, self.problem_type)
        loss = self._loss(logits, given, labels.sources, labels.weights, reduction)
        return loss if num_items_in_batch is None else loss / num_items_in_batch

    def _loss(self, logits: Tensor, labels: Tensor, sources: Tensor, weights: Tensor, reduction: str) -> Tensor:
        if self.problem_type == REGRESSION:
            # The sum over samples of the mean over columns: the divisor counts samples.
            errors = mixed_regression_loss(_squared_error, logits, labels, sources, weights, reduction="none")
            return errors.mean() if reduction == "mean" else errors.sum()
        if self.problem_type == MULTI_LABEL:
            return mixed_binary_cross_entropy(
                logits,
                labels,
                sources,
                weights,
                label_smoothing=self.label_smoothing,
                multi_label=True,
                reduction=reduction,
            )
        if self.problem_type is None and labels.is_floating_point():
            _check_shares(labels)
        return mixed_cross_entropy(
            logits, labels, sources, weights, label_smoothing=self.label_smoothing, reduction=reduction
        )


class OwnLoss:
    """The loss that the Trainer takes by itself, of mixed labels: its kind, and what it is averaged over.

    Args:
        label_smoothing, problem_type: as in `MixedLossFunction`, but None takes labels for what Transformers does.
        hands_on: the model gives the number of samples of the accumulated batch to its loss function.
    """

    def __init__(self, label_smoothing: float, problem_type: str | None, hands_on: bool) -> None:
        MixedLossFunction(label_smoothing, problem_type)
        self.label_smoothing = label_smoothing
        self.problem_type = problem_type
        self.hands_on = hands_on
        self.has_looked = False

    def kind(self, labels: Tensor) -> str:
        """The problem type of these labels, unmixed."""
        if self.problem_type is not None:
            return self.problem_type
        if not labels.is_floating_point():
            return SINGLE_LABEL
        if not self.has_looked:
            self.has_looked = True
            if labels.ndim == 2 and _are_shares(labels):
                warnings.warn(
                    f"rows of labels {tuple(labels.shape)} that sum to 1 are taken for several labels, by the binary "
                    "cross-entropy, as Transformers takes every row of floats where model.config.problem_type is not "
                    f'set. Shares of classes are "{SINGLE_LABEL}"; "{MULTI_LABEL}" says that this is meant',
                    stacklevel=2,
                )
        return MULTI_LABEL

    def is_mean(self, labels: Tensor) -> bool:
        """The Trainer's loss of a part of an accumulated batch is the mean over that part."""
        return not self.hands_on or self.kind(labels) in MEANS

    def __call__(self, outputs: Any, labels: MixedBatch | Tensor | None, num_items_in_batch: Any = None) -> Tensor:
        given = labels.labels if isinstance(labels, MixedBatch) else labels
        if given is None:
            return MixedLossFunction()(outputs, labels)
        kind = self.kind(given)
        if kind == MULTI_LABEL and given.ndim != 2:
            raise ValueError(
                f"labels {tuple(given.shape)} of {given.dtype} are neither class ids, integers (B,), nor rows (B, K): "
                f"say what they are, model.config.problem_type = one of {list(PROBLEM_TYPES)}"
            )
        count = None if self.is_mean(given) else num_items_in_batch
        return MixedLossFunction(self.label_smoothing, kind)(outputs, labels, num_items_in_batch=count)


class DenseTargets:
    """A loss function of the user, given dense mixed targets in the place of a `MixedBatch`."""

    def __init__(self, function: Callable[..., Tensor], label_smoothing: float, problem_type: str | None) -> None:
        if not callable(function):
            raise TypeError(f"compute_loss_func expects a callable, got {type(function).__name__}")
        if label_smoothing and problem_type in (REGRESSION, MULTI_LABEL):
            raise ValueError(
                f"label_smoothing={label_smoothing} beside compute_loss_func spreads shares of one class over all, "
                f"which {problem_type} does not have: smooth in the function"
            )
        self.function = function
        self.label_smoothing = label_smoothing
        self.problem_type = problem_type

    def __call__(self, outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Tensor:
        if isinstance(labels, Tensor) and self.label_smoothing:
            labels = unmixed(labels, as_the_problem_takes(labels, self.problem_type))
        if isinstance(labels, MixedBatch) and labels.labels is not None:
            given = labels.labels
            if given.is_floating_point() and not self.label_smoothing:
                labels = labels.targets()
            else:
                labels = labels.targets(logits_from(outputs).shape[1], self.label_smoothing)
        return self.function(outputs, labels, num_items_in_batch=num_items_in_batch)


def hands_on_count(model: Any) -> bool:
    """Whether a Hugging Face model gives `num_items_in_batch` to its loss function, as its `forward` is written.

    Many take it and leave it, ResNet's among them: their loss is the mean over the batch at hand. True where no call of
    a loss function is found.
    """
    model = getattr(model, "_orig_mod", model)
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    if getattr(model, "loss_function", None) is None:
        return True
    try:
        written = inspect.getsource(inspect.unwrap(type(model).forward))
    except (OSError, TypeError):
        return True
    calls = [node for node in ast.walk(ast.parse(textwrap.dedent(written))) if isinstance(node, ast.Call)]
    losses = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "loss_function"]
    return all(any(k.arg in (None, "num_items_in_batch") for k in call.keywords) for call in losses)


def check_loss_of_forward(name: str, model: Any, inputs: dict[str, Any], label_key: str, loss: Any) -> None:
    """Raise where a model that is not of Transformers computes another loss than the one that stands for it.

    Such a loss is written inside `forward`, where nobody sees what it is: it is compared on one batch, in evaluation
    mode. A loss that is another one in training alone, or that comes behind the logits in a tuple, is not seen.

    Args:
        name: of the caller, for the message.
        model: as the Trainer runs it; its modes and buffers and torch's generators are put back.
        inputs: the batch, with the labels as they came.
        label_key: the entry with the labels.
        loss: a `MixedLossFunction`.

    Raises:
        ValueError: the losses differ.
    """
    training = [module for module in model.modules() if module.training]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = sorted({each.device.index for each in model.parameters() if each.device.type == "cuda"})
    for module in training:
        module.training = False
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            outputs = model(**inputs)
            for buffer, kept in buffers:
                buffer.copy_(kept)
    finally:
        for module in training:
            module.training = True
    if isinstance(outputs, (tuple, list)):
        own, rest = outputs[0], outputs[1:]
    else:
        own, rest = (outputs.get("loss") if hasattr(outputs, "get") else None), outputs
    if not isinstance(own, Tensor) or own.numel() != 1 or len(rest) == 0:
        return
    labels = as_the_problem_takes(inputs[label_key], loss.problem_type)
    # A model that smooths as the mixin was asked to is right, and so is one whose smoothing the mixin adds.
    taken = [each(rest, labels).float() for each in (loss, MixedLossFunction(0.0, loss.problem_type))]
    tolerance = 1e-4 if own.dtype in (torch.float32, torch.float64) else 1e-2
    own = own.float().reshape(())
    if not any(torch.allclose(each, own, rtol=tolerance, atol=tolerance, equal_nan=True) for each in taken):
        raise ValueError(
            f"{type(model).__name__} computes a loss of its own, {own.item():.4f} on a batch of which {name} would "
            f"take {taken[0].item():.4f}: pass it as compute_loss_func=, which gets dense mixed targets, or say that "
            "mixaug's is meant, compute_loss_func=MixedLossFunction(problem_type=...)"
        )


def logits_from(outputs: Any) -> Tensor:
    found = outputs[0] if isinstance(outputs, (tuple, list)) else logits_of(outputs)
    if not isinstance(found, Tensor):
        raise TypeError(f"expected outputs with logits, got {type(outputs).__name__}")
    return found


def are_ids(labels: Tensor) -> bool:
    return not labels.is_floating_point() and (labels.ndim == 1 or labels.shape[1:] == (1,))


def count_of(labels: Tensor) -> Tensor | int:
    return labels.ne(IGNORED).sum() if are_ids(labels) else len(labels)


def _floating(labels: Tensor) -> Tensor:
    return labels if labels.is_floating_point() else labels.float()


def as_the_problem_takes(labels: Tensor, problem_type: str | None) -> Tensor:
    """Numbers as floats, class ids (B, 1) as (B,): what the Trainer's own losses make of them."""
    if problem_type in (REGRESSION, MULTI_LABEL):
        return _floating(labels)
    return labels[:, 0] if labels.ndim == 2 and are_ids(labels) else labels


def _squared_error(predictions: Tensor, targets: Tensor) -> Tensor:
    return (predictions - targets).square()


def _are_shares(labels: Tensor) -> bool:
    return bool(torch.isclose(labels.sum(1), labels.new_ones(()), atol=1e-2).all())


def _check_shares(labels: Tensor) -> None:
    if labels.ndim != 2 or not _are_shares(labels):
        raise ValueError(
            f"labels {tuple(labels.shape)} of {labels.dtype} are no shares of classes, whose rows sum to 1: say what "
            f"they are, model.config.problem_type = one of {list(PROBLEM_TYPES)}"
        )
