"""FerKD (arXiv:2312.17473): a student learns soft labels of a teacher for each crop, corrected where it is not sure.

    p = the teacher's probability of the true class, for this crop
    p < low            the crop shows something else: (1 - eps) on the true class, eps spread over the others
    low <= p <= high   the teacher's soft label
    p > high           the teacher's soft label, or the crop does not count (``easy="drop"``)

    L = CE(student(x'), y'),   x', y' = crops and their corrected labels, mixed by the policy

Labels are corrected crop by crop before anything is mixed. Crops of one image are mixed with each other by the policy
``selfmix``. The paper's thresholds and eps were not to be verified, and its folder has no code: they are options here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mixaug.batch import MixedBatch
from mixaug.checks import check_choice, check_class_ids, check_probability, check_range, shown
from mixaug.partners import View
from mixaug.passes import Objective, Passes, Wants

Easy = Literal["keep", "drop"]
By = Literal["label", "largest"]


def calibrated_labels(
    probabilities: Tensor, labels: Tensor, low: float = 0.1, high: float = 0.95, eps: float = 0.1, by: By = "label"
) -> tuple[Tensor, Tensor]:
    """Soft labels of a teacher, corrected where it is not sure.

    Args:
        probabilities: (B, K) floating, rows sum to 1, K >= 2.
        labels: (B,) class ids, or (B, K) shares, of which the largest counts.
        low, high: thresholds of the probability, 0 <= low <= high <= 1.
        eps: share that the corrected label spreads over the other classes, in [0, 1].
        by: ``"label"`` judges by the probability of the true class, ``"largest"`` by the largest one.

    Returns:
        (B, K) labels in the dtype of ``probabilities``, and (B,) bool, True for easy crops, those above ``high``.

    Raises:
        ValueError: other shapes, an option out of range.
    """
    low, high = check_range("calibrated_labels", "low and high", (low, high), 0, 1)
    eps = check_probability("calibrated_labels", "eps", eps)
    check_choice("calibrated_labels", "by", by, get_args(By))
    if probabilities.ndim != 2 or probabilities.shape[1] < 2 or labels.shape[:1] != probabilities.shape[:1]:
        raise ValueError(
            f"calibrated_labels expects probabilities (B, K) and labels (B,) or (B, K), got "
            f"{tuple(probabilities.shape)} and {tuple(labels.shape)}"
        )
    ids = labels.argmax(1) if labels.ndim == 2 else labels.long()
    classes = probabilities.shape[1]
    check_class_ids("calibrated_labels", ids, classes)
    own = probabilities.gather(1, ids[:, None])
    sure = own if by == "label" else probabilities.amax(1, keepdim=True)
    corrected = torch.full_like(probabilities, eps / (classes - 1)).scatter(1, ids[:, None], 1 - eps)
    return torch.where(sure < low, corrected, probabilities), sure[:, 0] > high


class FerKD(Objective):
    """Cross-entropy with a teacher's corrected labels for each crop, for any policy that mixes crops of the batch.

    Needs a network ``"teacher"`` beside the model, best a :class:`mixaug.networks.Frozen` one, which sees every crop
    unmixed; or its probabilities, stored for each crop, as metadata.

    Args:
        low, high: thresholds of the teacher's probability, 0 <= low <= high <= 1.
        eps: share that a corrected label spreads over the other classes, in [0, 1].
        easy: ``"keep"`` or ``"drop"`` crops above ``high``.
        by: ``"label"`` judges by the probability of the true class, ``"largest"`` by the largest one.
        stored: name of metadata with the teacher's probabilities (B, K); None asks the teacher.

    Raises:
        ValueError: an option out of range; when the step is made, a policy whose partners are neither of the batch nor
            of a view.
    """

    usual_policy = ("selfmix", {"view": "second"})

    def __init__(
        self,
        low: float = 0.1,
        high: float = 0.95,
        eps: float = 0.1,
        easy: Easy = "keep",
        by: By = "label",
        stored: str | None = None,
    ) -> None:
        super().__init__()
        self.low, self.high = check_range("FerKD", "low and high", (low, high), 0, 1)
        self.eps = check_probability("FerKD", "eps", eps)
        check_choice("FerKD", "easy", easy, get_args(Easy))
        check_choice("FerKD", "by", by, get_args(By))
        if stored is not None and not isinstance(stored, str):
            raise TypeError(f"FerKD expects stored as the name of metadata of the batch, got {shown(stored)}")
        self.easy: Easy = easy
        self.by: By = by
        self.stored = stored
        self.wants = Wants(networks=("teacher",)) if stored is None else Wants(metadata=(stored,))

    def attach(self, step: Any) -> None:
        source = step.policy.partners
        if source is not None and (not isinstance(source, View) or self.stored is not None):
            raise ValueError(
                "FerKD corrects the labels of the crops that the batch brings, so partners are those of the batch, or "
                f"of a view for which the teacher is asked; got {source} and stored={self.stored!r}"
            )
        self.wants = dataclasses.replace(self.wants, views=() if source is None else source.views)

    def forward(self, passes: Passes) -> Mapping[str, Tensor]:
        mixed = passes.run(passes.mixed)
        # Views, whose crops stand behind those of the batch, have labels of their own.
        crops = [passes.clean, *(passes.view(name) for name in self.wants.views)]
        told = [self.calibrated(passes, crop) for crop in crops]
        batch = dataclasses.replace(mixed.batch, labels=torch.cat([labels for labels, _ in told]))
        if self.easy == "drop":
            counts = torch.cat([~easy for _, easy in told]).to(batch.weights.dtype)
            batch = dataclasses.replace(batch, importance=(batch.weights * counts[batch.sources]).sum(1))
        return {"mixed": self.loss(mixed.outputs, batch)}

    def calibrated(self, passes: Passes, crop: MixedBatch) -> tuple[Tensor, Tensor]:
        """(B, K) labels of unmixed crops, and (B,) which of them are easy."""
        if self.stored is not None:
            probabilities = passes.metadata(self.stored)
        else:
            probabilities = passes.run(crop, network="teacher", grad=False).outputs.float().softmax(1)
        if crop.labels is None:
            raise ValueError("FerKD corrects labels by the true class: pass labels with the images")
        return calibrated_labels(probabilities, crop.labels, self.low, self.high, self.eps, self.by)

    def extra_repr(self) -> str:
        return f"low={self.low:g}, high={self.high:g}, eps={self.eps:g}, easy={self.easy!r}, by={self.by!r}"
