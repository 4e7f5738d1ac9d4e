"""k-nearest-neighbour mixup: mixup with a partner from the k samples nearest in input or label.

The plain baseline for methods that learn or soften the limit; k and the distance are ours. It is not k-Mixup
(arXiv:2106.02933), which moves whole sets of k samples towards each other by optimal transport and stands in the
tables of C-Mixup. Over the whole training set: ``mixaug.Pooled("knn_mixup", inputs, labels)``.
"""

from __future__ import annotations

from typing import get_args

from mixaug.checks import check_choice, check_per, check_whole
from mixaug.draws import Per
from mixaug.labeling import Labeling
from mixaug.pairing.nearest import Nearest
from mixaug.pairing.points import By
from mixaug.policies.mixup import Mixup
from mixaug.ratio import Ratio, alpha_or_ratio
from mixaug.registry import register

__all__ = ["knn_mixup"]


@register("knn_mixup", paper="a baseline without a paper of its own", family="regression")
def knn_mixup(
    alpha: float = 2.0,
    k: int = 5,
    by: By = "inputs",
    per: Per = "batch",
    *,
    ratio: str | float | Ratio = "beta",
    labeling: str | Labeling = "area",
) -> Mixup:
    """Blend every sample with one of its k nearest neighbours.

    Args:
        alpha: lam ~ Beta(alpha, alpha).
        k: number of neighbours; a batch with fewer other samples takes all of them.
        by: distance of flattened ``"inputs"``, which want scaling, or of ``"labels"``.
        ratio, labeling: see :class:`mixaug.Policy`.
        per: how often lam is drawn: ``"batch"`` or ``"sample"``.

    Raises:
        ValueError: an option out of range.
    """
    k = check_whole("knn_mixup", "k", k)
    check_choice("knn_mixup", "by", by, get_args(By))
    check_per("knn_mixup", per, mutual=False)
    drawn = alpha_or_ratio("knn_mixup", alpha, 2.0, ratio)
    return Mixup(**drawn, labeling=labeling, pairing=Nearest(k, by=by), per=per)
