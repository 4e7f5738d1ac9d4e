"""The switch of "ResNet strikes back" (arXiv:2110.00476), recipes A2 and A3: Mixup 0.1 or CutMix 1.0."""

from __future__ import annotations

from mixaug.draws import Per
from mixaug.policies.combinations import OneOf
from mixaug.policies.deit import mixup_or_cutmix
from mixaug.registry import register

__all__ = ["rsb"]


@register(
    "rsb",
    paper="ResNet strikes back: An improved training procedure in timm, 2021",
    arxiv="2110.00476",
    family="combinations",
)
def rsb(
    mixup_alpha: float = 0.1,
    cutmix_alpha: float = 1.0,
    switch_prob: float = 0.5,
    per: Per = "batch",
) -> OneOf:
    """Mixup or CutMix, chosen at random; the recipes train with binary cross-entropy and no smoothing.

    Args:
        mixup_alpha: Mixup's concentration, 0.1 in A2 and A3.
        cutmix_alpha: CutMix's concentration, 1.0 in A2 and A3.
        switch_prob: probability of CutMix, 0.5.
        per: how often the choice, lam and the box are drawn; once per batch in the recipes.
    """
    return mixup_or_cutmix("rsb", mixup_alpha, cutmix_alpha, switch_prob, per)
