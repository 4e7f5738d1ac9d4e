"""SelfMix of FerKD (arXiv:2312.17473): crops of one image are mixed with each other, so that soft labels stay stable.

    x' = mixup or cutmix of two crops of one image,   y' = w y_crop + (1 - w) y_other crop

With hard labels both crops have the same one and the target does not change: it matters with soft labels for each crop,
such as a teacher's (objective ``ferkd``, or labels (B, K) of one's own).

No code for it was published. What the paper states is that similar regions within one image are mixed; that this is
done by the routine of FKD (Mixup or CutMix by a coin, one lam for each batch), limited to crops of one image, is an
interpretation.
"""

from __future__ import annotations

from mixaug.checks import check_per, check_positive, check_probability, shown
from mixaug.draws import Per
from mixaug.pairing import Own, WithinGroup
from mixaug.partners import View
from mixaug.policies.combinations import OneOf
from mixaug.policies.cutmix import CutMix
from mixaug.policies.mixup import Mixup
from mixaug.registry import register

__all__ = ["selfmix"]


@register(
    "selfmix",
    paper="FerKD: Surgical Label Adaptation for Efficient Distillation, ICCV 2023",
    arxiv="2312.17473",
    family="combinations",
)
def selfmix(
    mixup_alpha: float = 0.8,
    cutmix_alpha: float = 1.0,
    switch_prob: float = 0.5,
    group: str = "image_id",
    view: str | None = None,
    per: Per = "batch",
) -> OneOf:
    """Mixup or CutMix of two crops of one image, drawn for every batch; an image with one crop stays as it is.

    Args:
        mixup_alpha: Mixup's concentration; 0.8 in FKD.
        cutmix_alpha: CutMix's concentration; 1.0 in FKD.
        switch_prob: probability of CutMix; 0.5 in FKD.
        group: metadata that say which image each crop of a batch is from, integers (B,).
        view: name of a view of the batch that holds another crop of each image; it takes the place of ``group``.
        per: how often the choice, lam and the box are drawn: ``"batch"`` as in FKD, or ``"sample"``.

    Raises:
        ValueError: an option out of range.
        TypeError: an option of another type.
    """
    mixup_alpha = check_positive("selfmix", "mixup_alpha", mixup_alpha)
    cutmix_alpha = check_positive("selfmix", "cutmix_alpha", cutmix_alpha)
    switch_prob = check_probability("selfmix", "switch_prob", switch_prob)
    check_per("selfmix", per, mutual=False)
    for name, value in (("group", group), ("view", view)):
        if not (isinstance(value, str) and value) and not (name == "view" and value is None):
            raise TypeError(f"selfmix expects {name} as a name, got {shown(value)}")
    made = [Mixup(mixup_alpha, per=per), CutMix(cutmix_alpha, per=per)]
    chances = [1 - switch_prob, switch_prob]
    if view is None:
        return OneOf(made, chances, pairing=WithinGroup(group), per=per)
    return OneOf(made, chances, pairing=Own(), partners=View(view), per=per)
