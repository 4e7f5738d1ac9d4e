"""DeiT's switch (arXiv:2012.12877): every batch is mixed by Mixup or by CutMix, half and half."""

from __future__ import annotations

from mixaug.checks import check_per, check_positive, check_probability
from mixaug.draws import Per
from mixaug.policies.combinations import OneOf
from mixaug.policies.cutmix import CutMix
from mixaug.policies.mixup import Mixup
from mixaug.registry import register

__all__ = ["deit"]


@register(
    "deit",
    paper="Training data-efficient image transformers & distillation through attention, ICML 2021",
    arxiv="2012.12877",
    family="combinations",
)
def deit(
    mixup_alpha: float = 0.8,
    cutmix_alpha: float = 1.0,
    switch_prob: float = 0.5,
    per: Per = "batch",
) -> OneOf:
    """Mixup or CutMix, chosen at random; the recipe's label smoothing of 0.1 belongs to the objective.

    Args:
        mixup_alpha: Mixup's concentration, 0.8 in DeiT.
        cutmix_alpha: CutMix's concentration, 1.0 in DeiT.
        switch_prob: probability of CutMix, 0.5 in DeiT.
        per: how often the choice, lam and the box are drawn; once per batch in DeiT.
    """
    return mixup_or_cutmix("deit", mixup_alpha, cutmix_alpha, switch_prob, per)


def mixup_or_cutmix(what: str, mixup_alpha: float, cutmix_alpha: float, switch_prob: float, per: Per) -> OneOf:
    """What :func:`deit` and the presets like it are; ``what`` names the preset in messages."""
    mixup_alpha = check_positive(what, "mixup_alpha", mixup_alpha)
    cutmix_alpha = check_positive(what, "cutmix_alpha", cutmix_alpha)
    switch_prob = check_probability(what, "switch_prob", switch_prob)
    check_per(what, per)
    return OneOf([Mixup(mixup_alpha, per=per), CutMix(cutmix_alpha, per=per)], [1 - switch_prob, switch_prob], per=per)
