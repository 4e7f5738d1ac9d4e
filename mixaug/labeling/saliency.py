"""Labels by the saliency of each source that the mixed image still shows: Saliency Grafting (arXiv:2112.08796)."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from mixaug.batch import Batch
from mixaug.checks import check_choice
from mixaug.labeling.base import of_pair
from mixaug.ops.layout import single_precision
from mixaug.plan import Plan
from mixaug.signals import Mode


class VisibleSaliency:
    """Weigh two sources by the shares of their saliency that the mixed image shows, made to sum to one.

    For any policy that mixes pairs of images by a mask: ``create("cutmix", labeling="saliency")``. Where a plan has no
    mask, nothing salient of either image is left, or a map has no saliency at all, the area takes its place.

    Args:
        mode: how the model stands during the pass over the unmixed images: ``"eval"``, or ``"train"``, which a policy
            asks for that takes its own saliency so.

    Raises:
        ValueError: another mode.
    """

    weighs_mask = True
    needs: frozenset[str] = frozenset({"saliency"})

    def __init__(self, mode: Mode = "eval") -> None:
        check_choice("VisibleSaliency", "mode", mode, get_args(Mode))
        self.mode: Mode = mode

    def __call__(self, plan: Plan, batch: Batch) -> Tensor:
        """(B, 2) float32 weights, own first.

        Raises:
            ValueError: no signals, saliency of another size than the images, samples of more than two sources.
        """
        if plan.sources.shape[1] != 2:
            raise ValueError(f"labeling 'saliency' weighs pairs; these samples have {plan.sources.shape[1]} sources")
        area = plan.area().float().expand(len(batch))
        if plan.own_mask() is None:
            return of_pair(area)
        if batch.signals is None:
            raise ValueError("labeling 'saliency' needs saliency of the clean images: pass signals=")
        maps = single_precision(batch.signals.saliency(mode=self.mode).detach()).to(batch.device)
        if tuple(maps.shape) != (len(batch), *batch.size):
            raise ValueError(
                f"labeling 'saliency' expects saliency {(len(batch), *batch.size)}, a value per pixel, got "
                f"{tuple(maps.shape)}"
            )
        maps = maps.nan_to_num(0.0, 0.0, 0.0).clamp(min=0)
        # The division by the largest comes first: neither tiny nor huge gradients may leave the range of float32.
        maps = maps / maps.flatten(1).amax(1).clamp(min=torch.finfo(maps.dtype).tiny)[:, None, None]
        total = maps.flatten(1).sum(1)
        own, other = plan.shown(maps / total.clamp(min=0.5)[:, None, None]).clamp(min=0).float().unbind(1)
        tells = total > 0.5
        tells = tells & tells.index_select(0, plan.partner) & (own + other > 1e-6)
        return of_pair(torch.where(tells, own / (own + other).clamp(min=1e-6), area))

    def __repr__(self) -> str:
        return f"VisibleSaliency({self.mode!r})"
