"""Selective mixup (arXiv:2305.16817): partners by class and group.

Picking partners by a criterion changes which classes and groups are trained on, even without mixing: among two classes,
partners of the other class make both equally frequent, whatever their frequency in the data. The paper finds that part
of the gain is this resampling: compare with plain mixup on balanced batches before the mixing is credited.
"""

from __future__ import annotations

from typing import Any, Literal

from mixaug.checks import check_choice, check_per, check_positive, shown
from mixaug.draws import Per
from mixaug.pairing import Selective
from mixaug.pairing.selective import Relation
from mixaug.partners import PartnerSource
from mixaug.policies.cutmix import CutMix
from mixaug.policies.mixup import Mixup
from mixaug.policy import Policy
from mixaug.ratio import Ratio, alpha_or_ratio
from mixaug.registry import register

__all__ = ["selective_mixup"]

Mixing = Literal["mixup", "cutmix"]


@register(
    "selective_mixup",
    paper="Selective Mixup Helps with Distribution Shifts, But Not (Only) because of Mixup, ICML 2024",
    arxiv="2305.16817",
    family="blends",
)
def selective_mixup(
    alpha: float = 1.0,
    label: Relation = "other",
    group: str | None = None,
    relation: Relation = "any",
    mixing: Mixing = "mixup",
    per: Per = "sample",
    partners: str | PartnerSource | None = None,
    ratio: str | float | Ratio = "beta",
) -> Policy:
    """Mix with a partner of the same or of another class, from the same or from another group.

    With ``ratio="bernoulli"`` nothing is mixed: a coin takes the sample or its partner, whole. That is the control of
    the paper, training on the same choice of samples without mixing; the paper keeps both of each pair.

    Args:
        alpha: of lam ~ Beta(alpha, alpha).
        label: ``"same"`` class, an ``"other"`` one, or ``"any"``.
        group: metadata of the batch that hold each sample's group, integers (B,); None looks at no group.
        relation: ``"same"`` group, an ``"other"`` one, or ``"any"``.
        mixing: ``"mixup"`` or ``"cutmix"``.
        per: how often lam is drawn: ``"sample"`` or ``"batch"``.
        partners: see :class:`mixaug.Policy`; the paper draws them from the whole training set.
        ratio: see :class:`mixaug.Policy`.
    """
    alpha = check_positive("selective_mixup", "alpha", alpha)
    check_per("selective_mixup", per, mutual=False)
    check_choice("selective_mixup", "mixing", mixing, ("mixup", "cutmix"))
    check_choice("selective_mixup", "label", label, ("same", "other", "any"))
    check_choice("selective_mixup", "relation", relation, ("same", "other", "any"))
    if group is not None and not isinstance(group, str):
        raise TypeError(f"selective_mixup expects group as the name of metadata of the batch, got {shown(group)}")
    if group is None and relation != "any":
        raise ValueError(
            f"selective_mixup got relation={relation!r}, but no group to look at: name one, group='domain'"
        )
    pairing = Selective(label, None if group is None else (group, relation))
    return mix_selected(mixing, alpha_or_ratio("selective_mixup", alpha, 1.0, ratio), pairing, per, partners)


def mix_selected(
    mixing: Mixing,
    drawn: dict[str, Any],
    pairing: Selective,
    per: Per,
    partners: str | PartnerSource | None = None,
) -> Policy:
    """Mixup or CutMix with partners by class and group; ``drawn`` says from what lam is drawn."""
    made = Mixup if mixing == "mixup" else CutMix
    return made(**drawn, pairing=pairing, per=per, partners=partners)
