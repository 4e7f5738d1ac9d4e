"""Labels by the area that shows, or by the share that was drawn."""

from __future__ import annotations

from torch import Tensor

from mixaug.batch import Batch
from mixaug.labeling.base import two_shares
from mixaug.plan import Plan


class Area:
    """The share of pixels that each source really covers."""

    needs: frozenset[str] = frozenset()

    def __call__(self, plan: Plan, batch: Batch) -> Tensor:
        return two_shares(plan.area(), len(batch))


class Drawn:
    """The share that was drawn, whatever clipping and rounding made of it."""

    needs: frozenset[str] = frozenset()

    def __call__(self, plan: Plan, batch: Batch) -> Tensor:
        return two_shares(plan.lam, len(batch))
