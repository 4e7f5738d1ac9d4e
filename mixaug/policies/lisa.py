"""LISA (arXiv:2201.00299): partners of the same class from another domain, or of another class from the same domain.

A coin for each batch decides between the two kinds of pairs. Both take the domain for something that a label must not
depend on: the first keeps the label and changes the domain, the second changes the label and keeps the domain. What it
gains comes in part from which samples are drawn (arXiv:2305.16817): compare with plain mixup on batches of balanced
classes or groups before the mixing is credited.
"""

from __future__ import annotations

from mixaug.checks import check_choice, check_per, check_positive, check_probability, shown
from mixaug.draws import Per
from mixaug.pairing import Selective
from mixaug.policies.combinations import OneOf
from mixaug.policies.selective_mixup import Mixing, mix_selected
from mixaug.policy import Policy
from mixaug.registry import register

__all__ = ["lisa"]


@register(
    "lisa",
    paper="Improving Out-of-Distribution Robustness via Selective Augmentation, ICML 2022",
    arxiv="2201.00299",
    family="blends",
)
def lisa(
    alpha: float = 2.0,
    group: str = "domain",
    same_label: float = 0.5,
    mixing: Mixing = "mixup",
    per: Per = "sample",
) -> OneOf:
    """Mix within a class across domains, or within a domain across classes.

    Args:
        alpha: of lam ~ Beta(alpha, alpha); 2 in the paper.
        group: metadata of the batch that hold each sample's domain, integers (B,).
        same_label: probability of pairs within a class, drawn once a batch; 0.5 in the paper.
        mixing: ``"mixup"``, or ``"cutmix"`` as the authors take on some image sets.
        per: how often lam is drawn: ``"sample"`` or ``"batch"``; CutMix in the authors' code draws once a batch.

    Raises:
        ValueError: an option out of range.
        TypeError: an option of another type.
    """
    if not isinstance(group, str):
        raise TypeError(f"lisa expects group as the name of metadata of the batch, got {shown(group)}")
    if not group:
        raise ValueError("lisa expects group as the name of metadata of the batch, got ''")
    alpha = check_positive("lisa", "alpha", alpha)
    check_per("lisa", per, mutual=False)
    check_choice("lisa", "mixing", mixing, ("mixup", "cutmix"))
    same_label = check_probability("lisa", "same_label", same_label)
    pairs = [Selective("same", (group, "other")), Selective("other", (group, "same"))]
    made: list[Policy | str] = [mix_selected(mixing, {"alpha": alpha}, pairing, per) for pairing in pairs]
    return OneOf(made, [same_label, 1 - same_label])
