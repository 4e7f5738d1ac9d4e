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
    """The own label alone, whatever is mixed in: for methods that change the style and not the content, and SelMix."""

    needs: frozenset[str] = frozenset()

    def __call__(self, plan: Plan, batch: Batch) -> Tensor:
        return _of_column(plan, 0)


class Partner:
    """The label of the sample that was mixed in alone: SelecMix (arXiv:2211.02291)."""

    needs: frozenset[str] = frozenset()

    def __call__(self, plan: Plan, batch: Batch) -> Tensor:
        if plan.sources.shape[1] != 2:
            raise ValueError(
                f"labeling 'partner' is for pairs; these samples have {plan.sources.shape[1]} sources each"
            )
        return _of_column(plan, 1)


def _of_column(plan: Plan, column: int) -> Tensor:
    weights = torch.zeros(plan.sources.shape, device=plan.sources.device)
    weights[:, column] = 1
    return weights
