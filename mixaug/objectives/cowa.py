"""CoWA-JMDS (arXiv:2206.06640): adapt to unlabelled data by mixing pseudo-labels and how far each is to be trusted.

Refreshed every epoch, over the whole training set and in evaluation mode, with p the model's probabilities and f its
features (the classifier's input) of length 1:

    a Gaussian for each class, mixed:  log g_k = log pi_k + log N(f; mu_k, S_k)
    pseudo-label  argmax_k g_k
    LPG = (largest log g - second largest) / its maximum over the set;   PPL = p at the pseudo-label;   JMDS = LPG PPL

    L = mean(c' (-sum_k t'_k log(p'_k + eps)))      t', c': pseudo-labels and scores, mixed with the policy's weights

The labels that come with the batch are never looked at. The model starts from one that was trained on another domain.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from mixaug.batch import Batch
from mixaug.checks import check_choice, check_positive, check_whole
from mixaug.ops.layout import wide_dtype
from mixaug.ops.precision import full_precision
from mixaug.passes import Objective, Passes
from mixaug.preparation import Inspection

Score = Literal["jmds", "lpg", "ppl"]
#: Factor of the loss while only batch statistics are to follow the new data.
WARM = 1e-6


class Confidence(NamedTuple):
    """What a Gaussian mixture in the space of features says of N samples and K classes.

    Attributes:
        log_posterior: (N, K) logarithm of ``shares``; -inf for a class that nobody is of.
        first: (N, K) shares of the classes after the first round.
        shares: (N, K) after the second one; rows sum to 1.
        labels: (N,) int64, the class with the largest share.
        lpg, ppl, jmds: (N,) scores in [0, 1].
    """

    log_posterior: Tensor
    first: Tensor
    shares: Tensor
    labels: Tensor
    lpg: Tensor
    ppl: Tensor
    jmds: Tensor


@torch.no_grad()
def mixture_confidence(features: Tensor, probabilities: Tensor, epsilon: float = 1e-6) -> Confidence:
    """Pseudo-labels of a Gaussian mixture with a full covariance for each class, and how far each is to be trusted.

    Args:
        features: (N, D) floating; they are made of length 1.
        probabilities: (N, K) of the model, rows sum to 1; K >= 2.
        epsilon: added to the diagonals of the covariances, positive.

    Returns:
        See :class:`Confidence`; in float64, or float32 on a device that has no other.

    Raises:
        ValueError: other shapes, fewer than two classes.
        RuntimeError: a covariance that is not positive, even with 0.0001 more on its diagonal.
    """
    if features.ndim != 2 or probabilities.ndim != 2 or len(features) != len(probabilities):
        raise ValueError(
            f"mixture_confidence expects features (N, D) and probabilities (N, K), got {tuple(features.shape)} and "
            f"{tuple(probabilities.shape)}"
        )
    if probabilities.shape[1] < 2:
        raise ValueError(f"mixture_confidence expects two classes or more, got {probabilities.shape[1]}")
    epsilon = check_positive("mixture_confidence", "epsilon", epsilon)
    dtype = wide_dtype(features.device)
    with full_precision(features.device):
        points = F.normalize(features.to(dtype), dim=1)
        shares = probabilities.to(dtype)
        # The first covariances are those of all samples about each class's mean.
        first = _log_joint(points, shares, torch.full_like(shares, 1 / shares.shape[1]), epsilon).softmax(1)
        log_posterior = _log_joint(points, first, first, epsilon).log_softmax(1)
    second = log_posterior.exp()
    labels = second.argmax(1)
    best = log_posterior.topk(2, dim=1).values
    gap = best[:, 0] - best[:, 1]
    # Where all are of one class, nobody is in doubt.
    lpg = torch.where(gap.isinf(), 1.0, gap / gap.max().clamp(min=torch.finfo(dtype).tiny))
    ppl = shares.gather(1, labels[:, None])[:, 0]
    return Confidence(log_posterior, first, second, labels, lpg, ppl, lpg * ppl)


def _log_joint(points: Tensor, shares: Tensor, spread: Tensor, epsilon: float) -> Tensor:
    """(N, K) log pi + log N(points; mu, S): pi and mu by ``shares``, S by ``spread`` about mu."""
    total = shares.sum(0)
    # A class that nobody is of lies anywhere: its weight of 0 keeps everybody from it.
    means = shares.T @ points / total.clamp(min=torch.finfo(shares.dtype).tiny)[:, None]
    columns = []
    for share, mean in zip(spread.T, means, strict=True):
        apart = points - mean
        covariance = (share[:, None] * apart).T @ apart / share.sum().clamp(min=torch.finfo(shares.dtype).tiny)
        factor = _cholesky(covariance, epsilon)
        distance = torch.linalg.solve_triangular(factor, apart.T, upper=False).square().sum(0)
        columns.append(-0.5 * (distance + points.shape[1] * LOG_TWO_PI) - factor.diagonal().log().sum())
    return torch.stack(columns, 1) + total.log()


LOG_TWO_PI = 1.8378770664093453


def _cholesky(covariance: Tensor, epsilon: float) -> Tensor:
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    for more in (epsilon, epsilon + 1e-4):
        factor, failed = torch.linalg.cholesky_ex(covariance + more * identity)
        if not bool(failed):
            return factor
    raise RuntimeError("mixture_confidence: a covariance of the features is not positive: are they finite?")


class CoWA(Objective):
    """Pseudo-labels in place of labels, and a loss by how far they are to be trusted, for any policy of the batch.

    Args:
        score: ``"jmds"``, ``"lpg"`` or ``"ppl"``; the scripts of the authors take JMDS.
        refresh_every: optimizer steps between two looks at the whole training set, at least 1, or ``"epoch"``.
        warm: first looks after which the loss counts next to nothing, so that batch statistics adapt alone; not
            negative. 0 on Office-Home, 1 on VisDA.
        epsilon: added to probabilities in the loss and to the diagonals of covariances, positive.

    Raises:
        ValueError: an option out of range; when the step is made, a policy with partners from outside; in a step, a
            batch without rows, or before the first look.
    """

    refresh_split = "train"

    usual_policy = ("mixup", {"alpha": 0.2})

    def __init__(
        self,
        score: Score = "jmds",
        refresh_every: int | Literal["epoch"] = "epoch",
        warm: int = 0,
        epsilon: float = 1e-6,
    ) -> None:
        super().__init__()
        check_choice("CoWA", "score", score, get_args(Score))
        self.score: Score = score
        every = refresh_every if refresh_every == "epoch" else check_whole("CoWA", "refresh_every", refresh_every)
        self.refresh_every: int | Literal["epoch"] = every
        self.warm = check_whole("CoWA", "warm", warm, least=0)
        self.epsilon = check_positive("CoWA", "epsilon", epsilon)
        #: Of every sample of the training set: pseudo-labels (N,) int64 and scores (N,) float32.
        self.told: dict[str, Tensor] = {}
        self.classes, self.looks = 0, 0

    def attach(self, step: Any) -> None:
        if step.policy.partners is not None:
            raise ValueError(
                f"CoWA knows pseudo-labels of the batch's own rows, so partners come from the batch, got "
                f"{step.policy.partners}"
            )

    def on_refresh(self, inspection: Inspection) -> None:
        """Score every sample of the training set.

        Raises:
            ValueError: outputs that are no (N, K), K >= 2.
        """
        found = mixture_confidence(inspection.pooled, inspection.outputs.float().softmax(1), self.epsilon)
        self.told = {"labels": found.labels, "scores": getattr(found, self.score).float()}
        self.classes, self.looks = inspection.outputs.shape[1], self.looks + 1

    def prepare_batch(self, batch: Batch, generator: Generator | None = None) -> Batch:
        """The batch with pseudo-labels in place of its labels, and its scores as metadata ``"confidence"``."""
        if batch.rows is None:
            raise ValueError(
                "CoWA looks its pseudo-labels up by the rows that the samples have in the training set: pass "
                "Batch(inputs, rows=rows)"
            )
        if not self.told:
            raise ValueError(
                "CoWA has no pseudo-labels yet: call objective.on_refresh(inspection) first, with a "
                "mixaug.preparation.Inspection of the whole training set"
            )
        self.told = {name: values.to(batch.rows.device) for name, values in self.told.items()}
        known = {name: values[batch.rows] for name, values in self.told.items()}
        metadata = {**batch.metadata, "confidence": known["scores"]}
        return dataclasses.replace(batch, labels=known["labels"], metadata=metadata)

    def forward(self, passes: Passes) -> Mapping[str, Tensor]:
        mixed = passes.run(passes.mixed)
        batch, confidence = mixed.batch, passes.batch.metadata["confidence"]
        trust = (batch.weights * confidence[batch.sources]).sum(1)
        log = (mixed.outputs.float().softmax(1) + self.epsilon).log()
        each = -(batch.targets(self.classes) * log).sum(1)
        return {"mixed": (WARM if self.looks <= self.warm else 1.0) * (trust * each).mean()}

    def get_extra_state(self) -> dict[str, Tensor]:
        """Pseudo-labels, scores, and how often they were made."""
        numbers = {"classes": torch.tensor(self.classes), "looks": torch.tensor(self.looks)}
        return {**{name: values.clone() for name, values in self.told.items()}, **numbers}

    def set_extra_state(self, state: Any) -> None:
        """Go on with what a ``state_dict`` holds."""
        self.classes, self.looks = int(state["classes"]), int(state["looks"])
        self.told = {name: state[name].clone() for name in ("labels", "scores") if name in state}

    def extra_repr(self) -> str:
        return f"score={self.score!r}, refresh_every={self.refresh_every!r}, warm={self.warm}"
