"""k-nearest-neighbour mixup: mixup with a partner from the k samples nearest in input or label.

The baseline of C-Mixup's tables (arXiv:2210.05775, "k-NN Mixup"); its settings are not in the authors' code, so k
and the distance are ours. Over the whole training set: ``mixaug.Pooled("knn_mixup", inputs, labels)``.
"""

from __future__ import annotations

from mixaug.draws import Per
from mixaug.neighbours import By, Nearest
from mixaug.policies.mixup import Mixup
from mixaug.registry import register


@register(
    "knn_mixup", paper="baseline in C-Mixup: Improving Generalization in Regression, NeurIPS 2022", arxiv="2210.05775"
)
def knn_mixup(alpha: float = 2.0, k: int = 5, by: By = "inputs", per: Per = "batch") -> Mixup:
    """Blend every sample with one of its k nearest neighbours.

    Args:
        alpha: lam ~ Beta(alpha, alpha).
        k: number of neighbours; a batch with fewer other samples takes all of them.
        by: distance of flattened ``"inputs"``, which want scaling, or of ``"labels"``.
        per: how often lam is drawn: ``"batch"`` or ``"sample"``.

    Raises:
        ValueError: an option out of range.
    """
    return Mixup(alpha, pairing=Nearest(k, by=by), per=per)
