"""CutMixPick (arXiv:2012.02909): of several mixtures of a batch a student learns from those that score highest.

    pool = R mixtures of the batch;  picked = the n of R B samples with the highest score
    L = a KL(teacher(x) || student(x)) + b CE(student(picked), their labels) + c KL(teacher(picked) || student(picked))

Scores are the entropy of the student, that of the teacher, or the divergence between them; the paper calls the first
two "S. ent." and "T. ent.". The pick goes over the whole pool, so a sample may be there several times or not at all.
Scoring runs in evaluation mode, where the authors' code scores with the student in training mode; among equal scores
the first ones are picked, where theirs takes any.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from mixaug.batch import MixedBatch, concatenated_batches
from mixaug.checks import check_choice, check_not_negative, check_positive, check_whole
from mixaug.losses import MixedCrossEntropy
from mixaug.passes import Objective, Passes, Wants

Score = Literal["student_entropy", "teacher_entropy", "divergence"]


def pick_scores(score: Score, student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """How much each candidate promises to teach.

    Args:
        score: ``"student_entropy"``, ``"teacher_entropy"`` or ``"divergence"``, KL(teacher || student) at the
            temperature; entropies are at temperature 1.
        student, teacher: (N, K) logits.
        temperature: positive.

    Returns:
        (N,) float32, not negative.
    """
    check_choice("pick_scores", "score", score, get_args(Score))
    temperature = check_positive("pick_scores", "temperature", temperature)
    if score == "divergence":
        ours, theirs = ((logits.float() / temperature).log_softmax(1) for logits in (student, teacher))
        return (theirs.exp() * (theirs - ours)).sum(1)
    log = (student if score == "student_entropy" else teacher).float().log_softmax(1)
    return -(log.exp() * log).sum(1)


def pick(scores: Tensor, count: int) -> Tensor:
    """(n,) int64 rows of the highest scores, in rising order, n = min(count, N); NaN counts as the lowest."""
    order = scores.nan_to_num(nan=-torch.inf).argsort(stable=True, descending=True)
    return order[:count].flip(0)


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean KL(teacher || student) of (B, K) logits at a temperature, times its square (arXiv:1503.02531)."""
    ours, theirs = ((logits.float() / temperature).log_softmax(1) for logits in (student, teacher))
    return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


class CutMixPick(Objective):
    """Distillation on the clean batch and on the mixtures with the highest scores, for any policy that mixes inputs.

    Needs a network ``"teacher"`` beside the model, best a :class:`mixaug.networks.Frozen` one. The authors mix with
    CutMix, lam ~ Beta(1, 1), nobody with themselves: ``policy=cutmix policy.pairing=derangement policy.per=batch``.

    Args:
        score: what is picked by, see :func:`pick_scores`.
        draws: R, mixtures of the batch to choose from, at least 1; 2 in the authors' scripts.
        pick: n, samples to pick; None picks as many as the batch has.
        temperature: of the distillation and of the score ``"divergence"``, positive.
        clean_distillation, mixed_labels, mixed_distillation: a, b, c, not negative; 1, 0, 1 in the authors' scripts.

    Raises:
        ValueError: an option out of range; in a step, a policy that mixes inside the model.
    """

    wants = Wants(networks=("teacher",))
    usual_policy = ("cutmix", {"pairing": "derangement"})

    def __init__(
        self,
        score: Score = "student_entropy",
        draws: int = 2,
        pick: int | None = None,
        temperature: float = 4.0,
        clean_distillation: float = 1.0,
        mixed_labels: float = 0.0,
        mixed_distillation: float = 1.0,
    ) -> None:
        super().__init__(MixedCrossEntropy())
        check_choice("CutMixPick", "score", score, get_args(Score))
        self.score: Score = score
        self.draws = check_whole("CutMixPick", "draws", draws, most=64)
        self.pick = None if pick is None else check_whole("CutMixPick", "pick", pick)
        self.temperature = check_positive("CutMixPick", "temperature", temperature)
        self.clean_distillation = check_not_negative("CutMixPick", "clean_distillation", clean_distillation)
        self.mixed_labels = check_not_negative("CutMixPick", "mixed_labels", mixed_labels)
        self.mixed_distillation = check_not_negative("CutMixPick", "mixed_distillation", mixed_distillation)

    def attach(self, step: Any) -> None:
        policy = step.policy
        if "hidden" in policy.needs:
            raise ValueError(
                f"CutMixPick picks mixed inputs, and {type(policy).__name__} mixes inside the model: choose a policy "
                "that mixes the inputs"
            )
        if policy.reads or any(True for _ in policy.parameters()):
            raise ValueError(
                f"CutMixPick trains on picked samples alone, so {type(policy).__name__} could not learn, nor look at "
                "the pass of its own batch: choose a policy without parameters that reads nothing of the mixed pass"
            )

    def forward(self, passes: Passes) -> Mapping[str, Tensor]:
        picked = self.picked(passes)
        student = passes.run(picked)
        teacher = passes.run(picked, network="teacher", grad=False)
        terms = {"picked": self.mixed_distillation * distillation(student.outputs, teacher.outputs, self.temperature)}
        if self.mixed_labels:
            terms["labels"] = self.mixed_labels * self.loss(student.outputs, student.batch)
        if self.clean_distillation:
            clean = passes.run(passes.clean)
            told = passes.run(passes.clean, network="teacher", grad=False)
            terms["clean"] = self.clean_distillation * distillation(clean.outputs, told.outputs, self.temperature)
        return terms

    def picked(self, passes: Passes) -> MixedBatch:
        """The candidates with the highest scores, as a batch."""
        drawn = [passes.draw(index=index) for index in range(1, self.draws + 1)]
        if any(batch.plan is not None and batch.plan.stages for batch in drawn):
            raise ValueError("CutMixPick picks mixed inputs, but the policy mixes inside the model: choose another one")
        pool = concatenated_batches(drawn)
        asked = {"student_entropy": ("model",), "teacher_entropy": ("teacher",), "divergence": ("model", "teacher")}
        outputs = {name: passes.run(pool, network=name, grad=False, mode="eval").outputs for name in asked[self.score]}
        any_outputs = next(iter(outputs.values()))
        scores = pick_scores(
            self.score, outputs.get("model", any_outputs), outputs.get("teacher", any_outputs), self.temperature
        )
        return pool.rows_of(pick(scores, len(passes.batch) if self.pick is None else self.pick))

    def extra_repr(self) -> str:
        return f"score={self.score!r}, draws={self.draws}, pick={self.pick}, temperature={self.temperature:g}"
