"""SelMix (arXiv:2403.18301): fine-tune for a measure such as the worst recall by mixing the pairs of classes that help.

For every pair of classes (i, j) the gain of a step on mixtures of the two, labelled i, is estimated from a validation
set: prototypes z_k, the mean of what the classifier takes in, tell how such a step changes the scores of every class,
and the confusion matrix C how the measure M changes with the scores A:

    z_ij = m z_i + (1 - m) z_j,   s_ij = softmax(W z_ij + b)
    G_ij = sum_{q,l} dM/dA_ql ( [l = i] z_ii . z_q - s_ij[l] z_ij . z_q )
    P = softmax over all pairs of G / T, where G > 0

A sample of class i is mixed with one of class j by P, before the classifier, with a share of its own in U(factor, 1),
and keeps its own label. The estimate is made anew every ``refresh_every`` steps. The method fine-tunes a trained model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from mixaug import ratio as ratios
from mixaug.batch import Batch
from mixaug.checks import check_choice, check_positive, check_probability, check_whole
from mixaug.draws import Draws
from mixaug.ops.confusion import MEASURES, Measure, confusion_matrix, measure_gradient
from mixaug.pairing import ClassPairs
from mixaug.plan import Hidden, Plan
from mixaug.policy import Policy
from mixaug.preparation import Inspection
from mixaug.registry import register
from mixaug.shared_options import SharedOptions
from mixaug.signals import ModelSignals, Signals

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from mixaug.shared_options import TakesLabeling, TakesPartners

    class Offered(TakesLabeling, TakesPartners, total=False):
        """The shared options without those that ``not_offered`` names."""


__all__ = ["SelMix", "selmix_gains", "selmix_pairs"]

#: Pairs are looked at in blocks of this many numbers.
BLOCK = 1 << 24


def selmix_gains(
    gradient: Tensor, prototypes: Tensor, weight: Tensor, bias: Tensor | None, share: float = 0.8
) -> Tensor:
    """What a step on mixtures of classes i and j, labelled i, is worth for a measure.

    Args:
        gradient: (K, K) of the measure by the scores, see :func:`mixaug.ops.confusion.measure_gradient`.
        prototypes: (K, D) mean classifier input of every class.
        weight, bias: (K, D) and (K,) of the classifier.
        share: of class i in a mixture, in [0, 1].

    Returns:
        (K, K) in the dtype of ``gradient``: row i, column j.
    """
    z = prototypes.to(gradient.dtype)
    weight = weight.to(gradient.dtype)
    bias = torch.zeros_like(weight[:, 0]) if bias is None else bias.to(gradient.dtype)
    classes = len(z)
    near, logits = z @ z.T, z @ weight.T
    own = (near * gradient.T).sum(1)
    # What a higher score of each class is worth to the samples near a prototype; mixtures are linear in both.
    worth = near @ gradient
    rows = max(1, BLOCK // classes**2)
    gains = []
    for first in range(0, classes, rows):
        some = slice(first, first + rows)
        scores = (share * logits[some, None] + (1 - share) * logits[None] + bias).softmax(2)
        gains.append(-(scores * (share * worth[some, None] + (1 - share) * worth[None])).sum(2))
    return torch.cat(gains) + own[:, None]


def selmix_pairs(gains: Tensor, temperature: float = 0.1, floor: float = 1e-8) -> Tensor:
    """(K, K) probabilities of the pairs, which sum to 1: a softmax over all gains, where they are positive.

    Args:
        gains: (K, K).
        temperature: positive.
        floor: added to every pair before the sum is made 1; without any positive gain all pairs are as likely.
    """
    chances = (gains / temperature).flatten().softmax(0).reshape(gains.shape)
    chances = chances * (gains > 0) + floor
    return chances / chances.sum()


@register(
    "selmix",
    paper="Selective Mixup Fine-Tuning for Optimizing Non-Decomposable Objectives, ICLR 2024",
    arxiv="2403.18301",
    family="hidden features",
)
class SelMix(Policy):
    """Mix the pairs of classes that a measure gains from, before the classifier; the own label counts.

    The engine brings the validation set; elsewhere call ``policy.on_refresh(inspection)`` with a
    :class:`mixaug.preparation.Inspection` every ``refresh_every`` steps. Until the first time all pairs are as likely.

    Args:
        measure: what is to rise: ``"mean_recall"``, ``"gmean"``, ``"hmean"``, ``"min_recall"``, ``"min_ht_recall"``
            (head and tail), ``"coverage"`` and others of :data:`mixaug.ops.confusion.MEASURES`.
        factor: the own share is uniform in [factor, 1], in [0, 1]; 0.6 in the authors' configurations.
        temperature: of the softmax over pairs, positive; 0.1.
        refresh_every: optimizer steps between two estimates, at least 1; 50.
        labeling: ``"own"``, the own label alone; see :class:`mixaug.Policy`.
        partners: where partners come from, see :class:`mixaug.Policy`; the authors draw them from a second,
            pseudo-labelled set.

    Raises:
        ValueError: an option out of range.
    """

    needs = frozenset({"hidden"})
    spatial = None
    shared_defaults: ClassVar[SharedOptions] = {"labeling": "own"}
    binds_late = True
    not_offered = ("alpha", "ratio", "pairing", "per")

    pairs: Tensor | None
    own_answers: ClassVar[Mapping[str, str]] = {
        "ratio": "Uniform in [0.6, 1].",
    }

    def __init__(
        self,
        measure: Measure = "mean_recall",
        factor: float = 0.6,
        temperature: float = 0.1,
        refresh_every: int = 50,
        **shared: Unpack[Offered],
    ) -> None:
        super().__init__(**shared)
        check_choice("SelMix", "measure", measure, MEASURES)
        self.measure: Measure = measure
        self.factor = check_probability("SelMix", "factor", factor)
        self.temperature = check_positive("SelMix", "temperature", temperature)
        self.refresh_every = check_whole("SelMix", "refresh_every", refresh_every)
        self.ratio = ratios.Uniform(self.factor, 1.0)
        self.classifier: str | None = None
        self.register_buffer("pairs", None)
        self.pairing = ClassPairs(self.current_pairs)
        self.bind_partners(self.pairing)

    def current_pairs(self) -> Tensor:
        """(K, K) probabilities of the pairs of classes, row the own class.

        Raises:
            ValueError: the policy has not seen its model yet.
        """
        if self.pairs is None:
            raise ValueError(
                "SelMix does not know the classes yet: train through mixaug.MixStep, or call policy.attach(model)"
            )
        return self.pairs

    def on_attach(self, signals: ModelSignals) -> None:
        self.classifier = signals.classifier()
        classifier = signals.inner.get_submodule(self.classifier)
        classes, weight = classifier.out_features, classifier.weight
        if not isinstance(classes, int) or not isinstance(weight, Tensor):
            raise ValueError(f"SelMix expects a linear classifier, got {type(classifier).__name__}")
        if self.pairs is None:
            self.pairs = torch.full((classes, classes), 1 / classes**2, device=weight.device)
        elif len(self.pairs) != classes:
            raise ValueError(
                f"SelMix is attached to a model of {len(self.pairs)} classes, this one has {classes}: make one policy "
                "for each model"
            )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *further: Any) -> None:
        # A policy that has not met its model yet takes the number of classes from the state.
        stored = state_dict.get(f"{prefix}pairs")
        if self.pairs is None and isinstance(stored, Tensor):
            self.pairs = torch.empty_like(stored)
        super()._load_from_state_dict(state_dict, prefix, *further)

    @torch.no_grad()
    def on_refresh(self, inspection: Inspection) -> None:
        """Estimate the gains of all pairs anew, from a validation set.

        Raises:
            ValueError: a class that the set has no sample of.
        """
        labels, classes = inspection.labels, len(self.current_pairs())
        counts = torch.bincount(labels, minlength=classes)
        if len(counts) > classes or not bool((counts > 0).all()):
            missing = [] if len(counts) > classes else (counts == 0).nonzero().flatten().tolist()[:5]
            raise ValueError(
                f"SelMix needs samples of all {classes} classes in the {inspection.split} set, "
                + (f"there are none of {missing}" if missing else f"got labels up to {len(counts) - 1}")
            )
        confusion = confusion_matrix(inspection.outputs.argmax(1), labels, classes)
        pooled = inspection.pooled.double()
        prototypes = pooled.new_zeros(classes, pooled.shape[1]).index_add_(0, labels, pooled) / counts[:, None]
        gradient, _ = measure_gradient(self.measure, confusion)
        gains = selmix_gains(gradient, prototypes, inspection.weight.double(), inspection.bias, (1 + self.factor) / 2)
        floor = 1e-10 if self.measure == "mean_recall" else 1e-8
        pairs = selmix_pairs(gains, self.temperature, floor)
        self.pairs = pairs.to(self.current_pairs())

    def sampling(self, labels: Tensor) -> Tensor:
        """(N,) how often each sample of a training set should be drawn, by the share of its class among the pairs.

        Args:
            labels: (N,) class ids of the training set.
        """
        share = self.current_pairs().sum(1)
        counts = torch.bincount(labels, minlength=len(share)).clamp(min=1)
        return (share / counts)[labels]

    def hidden_stages(self, signals: Signals | ModelSignals) -> tuple[str, ...]:
        return () if self.classifier is None else (self.classifier,)

    def sample(self, batch: Batch, partner: Tensor, draws: Draws) -> Plan:
        self.current_pairs()
        assert self.classifier is not None  # known as soon as the pairs are
        lam = self.ratio(draws).float()
        return Hidden(
            partner=partner,
            lam=lam,
            stage=torch.zeros(1, dtype=torch.int64, device=batch.device),
            # A share of what goes into a linear layer is the same share of what comes out.
            eligible=(self.classifier,),
        )

    def extra_repr(self) -> str:
        return f"measure={self.measure!r}, factor={self.factor:g}, refresh_every={self.refresh_every}"
