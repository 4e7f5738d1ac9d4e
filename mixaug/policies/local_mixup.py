"""Local Mixup (arXiv:2201.04368): mixup limited to partners within a distance.

The paper multiplies each pair's loss by a decreasing function of the distance of the two inputs. This is its hard
threshold as a pairing: a pair beyond the radius is never formed, in place of being formed with weight zero, so every
sample of a batch trains. Over the whole training set: ``mixaug.Pooled("local_mixup", inputs, labels)``.
"""

from __future__ import annotations

from typing import Literal

from mixaug.checks import check_per
from mixaug.draws import Per
from mixaug.labeling import Labeling
from mixaug.pairing.nearest import Local, check_local
from mixaug.pairing.points import By
from mixaug.policies.mixup import Mixup
from mixaug.ratio import Ratio, alpha_or_ratio
from mixaug.registry import register

__all__ = ["local_mixup"]


@register(
    "local_mixup",
    paper="Preventing Manifold Intrusion with Locality: Local Mixup, 2022",
    arxiv="2201.04368",
    family="regression",
)
def local_mixup(
    alpha: float = 1.0,
    radius: float | Literal["auto"] = "auto",
    by: By = "inputs",
    include_self: bool = True,
    per: Per = "sample",
    *,
    ratio: str | float | Ratio = "beta",
    labeling: str | Labeling = "area",
) -> Mixup:
    """Blend every sample with one of those within a distance of it.

    Args:
        alpha: lam ~ Beta(alpha, alpha).
        radius: partners are nearer than this; ``"auto"`` takes the distance within which a tenth of pairs lie.
        by: distance of flattened ``"inputs"``, which want scaling, or of ``"labels"``.
        include_self: whether a sample may be its own partner.
        ratio, labeling: see :class:`mixaug.Policy`.
        per: how often lam is drawn: ``"sample"`` or ``"batch"``.

    Raises:
        ValueError: an option out of range.
    """
    check_local("local_mixup", radius, by, include_self)
    check_per("local_mixup", per, mutual=False)
    drawn = alpha_or_ratio("local_mixup", alpha, 1.0, ratio)
    return Mixup(**drawn, labeling=labeling, pairing=Local(radius, by=by, include_self=include_self), per=per)
