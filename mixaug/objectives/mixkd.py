"""MIX-KD (arXiv:2211.03946): a student learns from mixed samples and from what a frozen teacher says of them.

    L = gamma CE(s, t) + alpha KL(softmax(z) || softmax(s)),   s, z logits over their deviation across the classes

The deviation takes the place of a temperature. The paper finds that a teacher trained without mixing teaches better,
and that fewer mixed samples serve: its "partial mixup" leaves about 59 % of the samples as they are,
``Sometimes("mixup", 0.41, per="sample")``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from mixaug.checks import check_not_negative
from mixaug.losses import MixedCrossEntropy
from mixaug.passes import Objective, Passes, Wants


def rescaled_distillation(student: Tensor, teacher: Tensor, eps: float = 1e-7) -> tuple[Tensor, Tensor]:
    """Logits of the student over their deviation, and the divergence from the teacher's.

    Args:
        student, teacher: (B, K) logits, K >= 2; half precision is computed in float32.
        eps: added to the deviation, which is zero for constant logits.

    Returns:
        (B, K) rescaled logits of the student, and the mean over the batch of ``KL(teacher || student)``.
    """
    own, other = (logits / (logits.std(1, keepdim=True) + eps) for logits in (student.float(), teacher.float()))
    divergence = F.kl_div(own.log_softmax(1), other.log_softmax(1), reduction="batchmean", log_target=True)
    return own, divergence


class MixKD(Objective):
    """Distillation on mixed samples. Needs a network ``"teacher"`` beside the model, best a :class:`Frozen` one.

    Args:
        gamma: weight of the labels, not negative; 0.1 in the paper.
        alpha: weight of the teacher, not negative; 0.9 in the paper.
        label_smoothing: of the labels, in [0, 1].

    Raises:
        ValueError: an option out of range.
    """

    wants = Wants(networks=("teacher",))
    usual_policy = ("mixup", {})

    def __init__(self, gamma: float = 0.1, alpha: float = 0.9, label_smoothing: float = 0.0) -> None:
        super().__init__(MixedCrossEntropy(label_smoothing))
        self.gamma = check_not_negative("MixKD", "gamma", gamma)
        self.alpha = check_not_negative("MixKD", "alpha", alpha)

    def forward(self, passes: Passes) -> Mapping[str, Tensor]:
        student = passes.run(passes.mixed)
        teacher = passes.run(passes.mixed, network="teacher", grad=False)
        rescaled, divergence = rescaled_distillation(student.outputs, teacher.outputs)
        return {"labels": self.gamma * self.loss(rescaled, student.batch), "teacher": self.alpha * divergence}

    def extra_repr(self) -> str:
        return f"gamma={self.gamma:g}, alpha={self.alpha:g}"
