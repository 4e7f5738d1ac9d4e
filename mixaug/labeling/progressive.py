"""Labels that move from the area to the attention: MixPro (arXiv:2304.12043)."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor

from mixaug.batch import Batch, MixedBatch
from mixaug.checks import check_choice, check_probability
from mixaug.labeling.base import area_of_images, height_and_width, mask_and_area, of_pair
from mixaug.ops.attention import progressive_lam
from mixaug.plan import Plan
from mixaug.signals import MixedSignals


class Progressive:
    """From the area's share to the attention's, as far as the prediction agrees with the area's target.

    Progressive attention labeling of MixPro (arXiv:2304.12043): ``rho * attention + (1 - rho) * area``, rho the cosine
    of the area's target and the predicted probabilities. Known after the mixed pass; needs labels of classes. Where a
    plan has no mask, its weights stay.

    Args:
        attention: ``"mixed"`` reads the attention of the mixed images, as the paper; ``"own"`` that of the unmixed own
            images from one more pass in evaluation mode, as OpenMixup.
        label_smoothing: of the target that the prediction is compared with, in [0, 1]; the loss has its own.

    Raises:
        ValueError: an option out of range.
    """

    weighs_mask = True
    needs = frozenset({"attention", "outputs"})
    reads = frozenset({"attention"})

    def __init__(self, attention: Literal["mixed", "own"] = "mixed", label_smoothing: float = 0.1) -> None:
        check_choice("Progressive", "attention", attention, ("mixed", "own"))
        self.attention = attention
        self.label_smoothing = check_probability("Progressive", "label_smoothing", label_smoothing)
        if attention == "own":
            self.reads = frozenset({"outputs"})

    def __call__(self, plan: Plan, batch: Batch) -> Tensor:
        return area_of_images("progressive", plan, batch)

    def after(self, plan: Plan, mixed: MixedBatch, seen: MixedSignals) -> Tensor:
        """(B, 2) float32 weights from the attention and the outputs of the mixed pass."""
        with torch.no_grad():
            found = mask_and_area("progressive", plan, mixed)
            if found is None:
                return mixed.weights
            mask, area = found
            logits = seen.outputs().detach()
            if logits.ndim != 2:
                raise ValueError(f"labeling 'progressive' expects class scores (B, K), got {tuple(logits.shape)}")
            source = seen if self.attention == "mixed" else seen.clean
            if source is None:
                raise ValueError(
                    "labeling 'progressive' of the own images' attention needs their signals: "
                    "policy.tap(model, mixed, clean), or mixaug.MixStep"
                )
            attention = source.attention(height_and_width(mask)).detach()
            by_area = dataclasses.replace(mixed, weights=of_pair(area))
            targets = by_area.targets(logits.shape[1], self.label_smoothing)
            return of_pair(progressive_lam(attention, mask, area, targets, logits))
