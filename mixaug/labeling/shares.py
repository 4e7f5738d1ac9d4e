"""Labels by the area that shows, by the share that was drawn, or of one of the two samples alone."""

from __future__ import annotations

import torch
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


class Own:
    """The own label alone, whatever is mixed in: SelMix (arXiv:2403.18301)."""

    needs: frozenset[str] = frozenset()

    def __call__(self, plan: Plan, batch: Batch) -> Tensor:
        return two_shares(torch.ones(1, device=batch.device), len(batch))


class Partner:
    """The partner's label alone: SelecMix (arXiv:2211.02291)."""

    needs: frozenset[str] = frozenset()

    def __call__(self, plan: Plan, batch: Batch) -> Tensor:
        return two_shares(torch.zeros(1, device=batch.device), len(batch))
