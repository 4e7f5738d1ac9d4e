"""Labels by the attention of the class token: TransMix (arXiv:2111.09833)."""

from __future__ import annotations

import torch
from torch import Tensor

from mixaug.batch import Batch, MixedBatch
from mixaug.checks import check_probability
from mixaug.labeling.base import area_of_images, height_and_width, mask_and_area, of_pair
from mixaug.ops.attention import attention_lam
from mixaug.plan import Plan
from mixaug.signals import MixedSignals


class Attention:
    """The share of the class token's attention that falls on each source (TransMix, arXiv:2111.09833).

    Known after the mixed pass, whose own attention is read: :class:`mixaug.MixStep` or ``Policy.relabel`` puts it in
    the place of the area's share. For models without a class token see :meth:`mixaug.Signals.attention`. Works with
    every mask over images (B, C, H, W); where a plan has none, its weights stay.

    Args:
        attention_share: weight of the attention's share beside the area's, in [0, 1]: 0.5 as in the authors' code, 1
            as in their paper.

    Raises:
        ValueError: an option out of range.
    """

    weighs_mask = True
    needs = frozenset({"attention"})
    reads = frozenset({"attention"})

    def __init__(self, attention_share: float = 0.5) -> None:
        self.attention_share = check_probability("Attention", "attention_share", attention_share)

    def __call__(self, plan: Plan, batch: Batch) -> Tensor:
        return area_of_images("attention", plan, batch)

    def after(self, plan: Plan, mixed: MixedBatch, seen: MixedSignals) -> Tensor:
        """(B, 2) float32 weights from the attention of the mixed pass."""
        with torch.no_grad():
            found = mask_and_area("attention", plan, mixed)
            if found is None:
                return mixed.weights
            mask, area = found
            attention = seen.attention(height_and_width(mask)).detach()
            return of_pair(attention_lam(attention, mask, area, attention_share=self.attention_share))
