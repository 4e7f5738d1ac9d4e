"""Scores of a classifier, predictions of any model, and both of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixaug.engine.distributed import World, gather_objects

CALIBRATION_BINS = 15
_BELOW_ONE = 1 - 2.0**-24

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Scores:
    """Scores on one labelled set.

    Attributes:
        top1: accuracy in percent.
        top5: share of samples whose label is among the five likeliest classes (all, if there are fewer), percent.
        nll: mean negative log-likelihood in nats.
        ece: expected calibration error over 15 equal bins of confidence, in [0, 1] (arXiv:1706.04599).
        mean_recall, min_recall: mean and least of the classes' recalls (their accuracies by themselves), percent. Of a
            class without a sample nothing is known, and it does not count.
        gmean_recall, hmean_recall: geometric and harmonic mean of the recalls, percent; 0 where one of them is.
        worst_group: least accuracy of a group, percent; None without groups.
        samples: how many samples were counted.
    """

    top1: float
    top5: float
    nll: float
    ece: float
    mean_recall: float
    min_recall: float
    gmean_recall: float
    hmean_recall: float
    worst_group: float | None
    samples: int


def autocast(device: torch.device, precision: str) -> torch.autocast | nullcontext[None]:
    """Autocast to a precision by name; nothing for float32."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=_DTYPES[precision])


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    num_classes: int,
    device: torch.device,
    precision: str = "float32",
    groups: Tensor | None = None,
    num_groups: int = 0,
) -> Scores:
    """Score a model on batches of images and class ids; its training mode is put back.

    In a distributed run every process brings its own, disjoint share of the samples and gets the scores of
    all together.

    Args:
        model: (B, C, H, W) images to (B, num_classes) logits.
        batches: (images, labels) on ``device``.
        num_classes: K.
        device: where the model lies.
        precision: "float32", "bfloat16" or "float16".
        groups: (n,) int64, the group of each sample that ``batches`` bring, in their order; None without groups.
        num_groups: G, groups of all processes are 0..G-1.

    Raises:
        ValueError: no samples at all.
    """
    from torchmetrics import MetricCollection, SumMetric
    from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

    from mixaug.engine.group_accuracy import GroupAccuracy

    def accuracy(k: int) -> MulticlassAccuracy:
        return MulticlassAccuracy(num_classes, top_k=min(k, num_classes), average="micro", validate_args=False)

    metrics = MetricCollection(
        {
            "top1": accuracy(1),
            "top5": accuracy(5),
            "ece": MulticlassCalibrationError(num_classes, n_bins=CALIBRATION_BINS, norm="l1", validate_args=False),
        },
        compute_groups=False,
    ).to(device)
    # The sums are float64: a float32 sum over a large test set loses the digits that methods differ in.
    nll, count = SumMetric().set_dtype(torch.float64).to(device), SumMetric().to(device)
    recalls = GroupAccuracy(num_classes).to(device)
    of_groups = None if groups is None else GroupAccuracy(num_groups).to(device)
    groups = None if groups is None else groups.to(device)
    place = 0

    was_training = model.training
    model.eval()
    try:
        for images, labels in batches:
            with autocast(device, precision):
                logits = model(images)
            logits = logits.float()
            # The metrics get probabilities: torchmetrics would take logits that all lie in [0, 1] for probabilities.
            # It gives confidences of exactly 1 a bin of their own, beside the fifteen; one step of float32 less, they
            # fall into the last.
            metrics.update(logits.softmax(1).clamp_max(_BELOW_ONE), labels)
            # A sum of torchmetrics leaves out what is no number, and would call the NLL of such outputs 0.
            nll.update(F.cross_entropy(logits, labels, reduction="sum").double().nan_to_num(torch.inf, torch.inf))
            count.update(len(labels))
            is_right = logits.argmax(1) == labels
            recalls.update(is_right, labels)
            if of_groups is not None and groups is not None:
                of_groups.update(is_right, groups[place : place + len(labels)])
            place += len(labels)
    finally:
        model.train(was_training)
    samples = int(count.compute())
    if samples == 0:
        raise ValueError("evaluate got no samples: the test set is empty")
    scores = {name: float(value) for name, value in metrics.compute().items()}
    recall = 100 * recalls.compute()
    return Scores(
        top1=100 * scores["top1"],
        top5=100 * scores["top5"],
        nll=float(nll.compute()) / samples,
        ece=scores["ece"],
        mean_recall=float(recall.mean()),
        min_recall=float(recall.min()),
        gmean_recall=float(recall.log().mean().exp()),
        # The harmonic mean of numbers of which one is zero is zero: 1 / infinity.
        hmean_recall=float(1 / (1 / recall).mean()),
        worst_group=None if of_groups is None else float(100 * of_groups.compute().min()),
        samples=samples,
    )


@torch.no_grad()
def predict(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], world: World, precision: str = "float32"
) -> tuple[Tensor, Tensor]:
    """Predictions of a model and the labels beside them; its training mode is put back.

    Args:
        model: (B, ...) inputs to (B, D) numbers.
        batches: (inputs, labels) on the world's device. In a distributed run every process brings its own share:
            samples rank, rank + size, rank + 2 size, ... of the set.
        world: this process among all.
        precision: "float32", "bfloat16" or "float16".

    Returns:
        (N, D) float32 predictions and (N, D) labels of all processes together, in the order of the set.

    Raises:
        ValueError: no samples at all, or another number of outputs than label columns.
    """
    found: list[tuple[Tensor, Tensor]] = []
    was_training = model.training
    model.eval()
    try:
        for inputs, labels in batches:
            with autocast(world.device, precision):
                outputs = model(inputs)
            if outputs.shape != labels.shape:
                raise ValueError(
                    f"the model gives {tuple(outputs.shape)} for labels {tuple(labels.shape)}; "
                    "it needs one output per label column"
                )
            found.append((outputs.float().cpu(), labels.cpu()))
    finally:
        model.train(was_training)
    own = tuple(torch.cat(parts) for parts in zip(*found, strict=True)) if found else None
    shares = gather_objects(own, world)
    if all(share is None for share in shares):
        raise ValueError("predict got no samples: the held-out set is empty")
    predictions, labels = (_interleaved([share[part] for share in shares if share is not None]) for part in (0, 1))
    return predictions.to(world.device), labels.to(world.device)


def _interleaved(shares: list[Tensor]) -> Tensor:
    """Row i of the whole is row i // n of share i % n."""
    whole = shares[0].new_empty(sum(map(len, shares)), *shares[0].shape[1:])
    for rank, share in enumerate(shares):
        whole[rank :: len(shares)] = share
    return whole
