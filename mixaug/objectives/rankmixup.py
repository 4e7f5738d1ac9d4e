"""RankMixup (arXiv:2308.11990): a clean sample shall be more certain than its mixtures, and these in order of lam.

    L = CE(f(x), y) + w L_rank

``"margin"`` (MRL): one mixture, L_rank = mean(relu(max_c z' - max_c z + margin)) over the logits of mixed and clean
samples. ``"ndcg"`` (M-NDCG): several mixtures of every sample; their confidences, largest probability each, are to fall
as the largest share of a class falls that was mixed in: one minus the normalised discounted cumulative gain.

Labels of mixtures serve for their order alone. Clean samples and mixtures run in passes of their own. Departure from
the authors' code: with ``"margin"`` pairs of one class are left out one by one; theirs multiplies two means by a
broadcast, which ``reference=True`` does too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mixaug.batch import MixedBatch
from mixaug.checks import check_choice, check_flag, check_not_negative, check_whole
from mixaug.losses import MixedCrossEntropy
from mixaug.passes import Objective, Passes, check_joins

Form = Literal["margin", "ndcg"]
#: Own share from which on a mixture counts as a sample of a single class.
WHOLE = 1 - 1e-6


def top_share(mixed: MixedBatch) -> Tensor:
    """(B,) float32 share of the class that has most of each sample's label.

    Raises:
        ValueError: a batch without labels.
    """
    labels = mixed.labels
    if labels is None:
        raise ValueError("RankMixup orders mixtures by their labels: pass labels to the policy")
    if labels.ndim == 2:
        return mixed.targets().amax(1).float()
    ids = labels[mixed.sources]
    same = (ids[:, :, None] == ids[:, None, :]).to(mixed.weights.dtype)
    return (same * mixed.weights[:, None, :]).sum(2).amax(1)


def rank_margin_loss(
    logits: Tensor, mixed_logits: Tensor, share: Tensor, margin: float = 2.0, *, reference: bool = False
) -> Tensor:
    """Hinge of the largest logits: the clean one above the mixed one by a margin.

    Args:
        logits, mixed_logits: (B, K).
        share: (B,) from :func:`top_share`; mixtures of a single class are left out.
        margin: by which the clean one is to lie above.
        reference: the mean share of pairs that count times the mean hinge, as the authors' code.

    Returns:
        Scalar, the mean over all B.
    """
    hinge = (mixed_logits.amax(1) - logits.amax(1) + margin).clamp(min=0)
    counts = (share < WHOLE).to(hinge.dtype)
    return counts.mean() * hinge.mean() if reference else (counts * hinge).mean()


def rank_ndcg_loss(logits: Tensor, mixed_logits: Tensor, shares: Tensor) -> Tensor:
    """One minus the gain of the confidences in the order of the shares.

    Args:
        logits: (B, K) of the clean samples.
        mixed_logits: (M, B, K) of M mixtures of each.
        shares: (M, B) from :func:`top_share`.

    Returns:
        Scalar in [0, 1).
    """
    confidence = logits.float().softmax(1).amax(1)
    mixed_confidence = mixed_logits.float().softmax(2).amax(2)
    ordered, order = shares.float().sort(0, descending=True)
    gains = torch.cat([confidence[None], mixed_confidence.gather(0, order)])
    ideal = torch.cat([torch.ones_like(confidence)[None], ordered])
    discount = 1 / torch.arange(2, len(gains) + 2, device=gains.device, dtype=gains.dtype).log2()
    gain, best = (discount[:, None] * gains).sum(0), (discount[:, None] * ideal).sum(0)
    return (1 - torch.minimum(gain / best, best / gain)).mean()


class RankMixup(Objective):
    """Cross-entropy of the clean batch and a loss on the order of confidences, for any policy.

    Args:
        form: ``"ndcg"`` or ``"margin"``, see the module.
        draws: mixtures of each sample, at least 1; 3 in the paper for ``"ndcg"``. ``"margin"`` takes one.
        weight: of the ranking loss, not negative; 0.1 in the authors' code.
        margin: of ``"margin"``, not negative: 2 on CIFAR, 1 on Tiny ImageNet.
        label_smoothing: of the cross-entropy, in [0, 1].
        reference: see the module.

    Raises:
        ValueError: an option out of range.
    """

    usual_policy = ("mixup", {"alpha": 2.0, "per": "batch"})

    def __init__(
        self,
        form: Form = "ndcg",
        draws: int = 3,
        weight: float = 0.1,
        margin: float = 2.0,
        label_smoothing: float = 0.0,
        reference: bool = False,
    ) -> None:
        super().__init__(MixedCrossEntropy(label_smoothing))
        check_choice("RankMixup", "form", form, get_args(Form))
        draws = check_whole("RankMixup", "draws", draws, most=64)
        self.form: Form = form
        self.draws = draws if form == "ndcg" else 1
        self.weight = check_not_negative("RankMixup", "weight", weight)
        self.margin = check_not_negative("RankMixup", "margin", margin)
        self.reference = check_flag("RankMixup", "reference", reference)

    def attach(self, step: Any) -> None:
        check_joins("RankMixup", step)
        if step.policy.partners is not None and step.policy.partners.both:
            raise ValueError(
                "RankMixup compares each sample with its mixtures, but partners with both=True give 2B of them"
            )

    def forward(self, passes: Passes) -> Mapping[str, Tensor]:
        clean = passes.run(passes.clean)
        drawn = [passes.draw(index=index) for index in range(1, self.draws + 1)]
        mixed = passes.run(*drawn, joined=True)
        outcomes = mixed if isinstance(mixed, tuple) else (mixed,)
        shares = torch.stack([top_share(outcome.batch) for outcome in outcomes])
        if self.form == "margin":
            rank = rank_margin_loss(
                clean.outputs, outcomes[0].outputs, shares[0], self.margin, reference=self.reference
            )
        else:
            rank = rank_ndcg_loss(clean.outputs, torch.stack([outcome.outputs for outcome in outcomes]), shares)
        return {"clean": self.loss(clean.outputs, clean.batch), "rank": self.weight * rank}

    def extra_repr(self) -> str:
        return f"form={self.form!r}, draws={self.draws}, weight={self.weight:g}, margin={self.margin:g}"
