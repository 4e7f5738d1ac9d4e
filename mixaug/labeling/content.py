"""Labels by the activation of each source that the mixed image still shows: TokenMix (arXiv:2207.08409)."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from mixaug.batch import Batch
from mixaug.checks import check_choice
from mixaug.labeling.base import two_shares
from mixaug.ops.activation import content_map
from mixaug.plan import Plan

Source = Literal["attention", "cam"]


class Content:
    """Weigh every source by the share of its activation that the mixed image shows (TokenMix, arXiv:2207.08409).

    For any policy with a mask over images (B, C, H, W); where a plan has none, the area's share stands. Weights
    lie in [0, 1]; their sum lies between 0 and 2.

    Args:
        source: ``"attention"`` of the class token, or ``"cam"``, class activation, both of the clean images.

    Raises:
        ValueError: another source.
    """

    #: The weights need not sum to 1: each is a share of another map.
    normalised = False
    weighs_mask = True

    def __init__(self, source: Source = "attention") -> None:
        check_choice("Content", "source", source, get_args(Source))
        self.source: Source = source
        self.needs: frozenset[str] = frozenset({source})

    def __call__(self, plan: Plan, batch: Batch) -> Tensor:
        if batch.images.ndim != 4:
            raise ValueError(f"labeling 'content' expects images (B, C, H, W), got shape {tuple(batch.images.shape)}")
        if plan.own_mask() is None:
            return two_shares(plan.area(), len(batch))
        if batch.signals is None:
            raise ValueError(f"labeling 'content' needs {self.source} of the clean images: pass signals=")
        size = (batch.size[0], batch.size[1])
        found = batch.signals.attention(size) if self.source == "attention" else batch.signals.cam(size)
        maps = content_map(found, size)
        return plan.shown(maps).clamp(0, 1).float()

    def __repr__(self) -> str:
        return f"Content({self.source!r})"
