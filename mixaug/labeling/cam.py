"""Labels by the class activation that the mixed image shows of each source: SnapMix (arXiv:2012.04846)."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from mixaug.batch import Batch
from mixaug.checks import check_choice
from mixaug.ops.activation import check_activation_maps
from mixaug.ops.layout import single_precision
from mixaug.plan import Plan
from mixaug.signals import Mode


class ClassActivation:
    """Weigh every source by the share of its class activation that can be seen (SnapMix, arXiv:2012.04846).

    For any policy that mixes images (B, C, H, W): ``create("cutmix", labeling="cam")``. The maps are those of the true
    labels on the unmixed images. The weights do not sum to one: background that is covered costs little. Samples whose
    partner has the same label count the sum of both weights for each of the two, so up to 2. Where a map says nothing
    (constant, or not finite) the area takes its place, and a sample that nothing was mixed into keeps weight 1.

    Args:
        mode: how the model stands during the pass over the unmixed images: ``"train"`` as in the authors' code, so
            that batch statistics count them, or ``"eval"``.

    Raises:
        ValueError: another mode.
    """

    weighs_mask = True
    needs: frozenset[str] = frozenset({"cam"})
    #: The weights need not sum to 1: each is a share of another map.
    normalised = False

    def __init__(self, mode: Mode = "train") -> None:
        check_choice("ClassActivation", "mode", mode, get_args(Mode))
        self.mode: Mode = mode

    def __call__(self, plan: Plan, batch: Batch) -> Tensor:
        """(B, 2) float32 weights, own first, each in [0, 2].

        Raises:
            ValueError: no signals, images that are not (B, C, H, W), samples of more than two sources.
        """
        if batch.images.ndim != 4:
            raise ValueError(f"labeling 'cam' expects images (B, C, H, W), got shape {tuple(batch.images.shape)}")
        if batch.signals is None:
            raise ValueError("labeling 'cam' needs class activation of the clean images: pass signals=")
        if plan.sources.shape[1] != 2:
            raise ValueError(f"labeling 'cam' weighs pairs; these samples have {plan.sources.shape[1]} sources each")
        height, width = batch.size
        maps = single_precision(batch.signals.cam((height, width), mode=self.mode))
        check_activation_maps("labeling 'cam'", maps, (len(batch), height, width))
        total = maps.sum((1, 2))
        tells = total.isfinite() & (total > 0)
        # Maps that say nothing are taken out first, so that no NaN of one sample reaches its partner.
        shares = torch.where(tells[:, None, None], maps / total[:, None, None], torch.zeros_like(maps))
        area = plan.area().to(shares.dtype).expand(len(batch))
        own, other = plan.shown(shares).clamp(0, 1).unbind(1)
        tells_other = tells.index_select(0, plan.partner)
        if batch.labels is not None:
            labels = batch.labels
            same = (labels == labels.index_select(0, plan.partner)).reshape(len(labels), -1).all(1)
            both = torch.where(tells & tells_other, own + other, torch.nan)
            own, other = torch.where(same, both, own), torch.where(same, both, other)
        own = torch.where(tells & own.isfinite(), own, area)
        other = torch.where(tells_other & other.isfinite(), other, 1 - area)
        mixed = area < 1
        own = torch.where(mixed, own, torch.ones_like(own))
        return torch.stack([own, torch.where(mixed, other, torch.zeros_like(other))], dim=1).float()

    def __repr__(self) -> str:
        return f"ClassActivation({self.mode!r})"
