"""Labels by the object that is seen of each source: OA-CutMix (arXiv:2606.04820)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mixaug.batch import Batch
from mixaug.checks import check_flag, check_probability
from mixaug.labeling.base import two_shares
from mixaug.plan import Plan

#: The name under which a batch brings the masks.
OBJECT_MASK = "object_mask"
#: Constant by which the authors' code keeps quotients finite.
TINY = 1e-7


class VisibleObject:
    """Weigh every source by the pixels of its object that the mixed image shows (OA-CutMix, arXiv:2606.04820).

    With a and b pixels of own and partner's object that are seen, of o and p there are: ``"absolute"`` gives the own
    label a / (a + b), ``"relative"`` (a / o) / (a / o + b / p). Where nothing is seen of either both labels get a half.
    For any policy on images (B, C, H, W): ``create("fmix", labeling="object")``; one that blends shows a share of every
    pixel.

    The batch brings the masks: ``policy(mixaug.Batch(images, labels, metadata={"object_mask": masks}))``, (B, H, W) or
    (B, 1, H, W), bool or integers, not zero on the object, or floating shares in [0, 1]. Masks of another size are
    scaled to the images' by nearest neighbour. They have to go through every geometric augmentation that the images go
    through.

    Args:
        mode: ``"absolute"``, ``"relative"``, or the weight of the absolute share in a mean of both, in [0, 1].
        foreground: weight of the object's share beside the area's, in [0, 1]; 1 as in the authors' configurations.
        reference: weigh as the authors' code an image without an object. There its relative share is 1 as the own
            image and 0 as the partner; here it counts by its pixels. A sample that nothing was mixed into keeps
            weight 1 here, and where nothing is seen of either, relative weights are a half here and 0 there.

    Raises:
        ValueError: an option out of range; when drawing, a batch without masks, or masks of another shape.
    """

    needs: frozenset[str] = frozenset()
    #: Names of per-sample tensors that the batch must bring.
    metadata: tuple[str, ...] = (OBJECT_MASK,)

    def __init__(
        self,
        mode: Literal["absolute", "relative"] | float = "absolute",
        foreground: float = 1.0,
        reference: bool = False,
    ) -> None:
        if isinstance(mode, str) and mode not in ("absolute", "relative"):
            raise ValueError(
                f"VisibleObject expects mode 'absolute', 'relative' or the weight of the first in [0, 1], got {mode!r}"
            )
        known = {"absolute": 1.0, "relative": 0.0}
        self.absolute = known[mode] if isinstance(mode, str) else check_probability("VisibleObject", "mode", mode)
        self.foreground = check_probability("VisibleObject", "foreground", foreground)
        self.reference = check_flag("VisibleObject", "reference", reference)

    def __call__(self, plan: Plan, batch: Batch) -> Tensor:
        """(B, 2) float32 weights, own first."""
        if plan.sources.shape[1] != 2:
            raise ValueError(f"labeling 'object' weighs pairs; these samples have {plan.sources.shape[1]} sources each")
        masks = _masks(batch)
        area = plan.area().float().expand(len(batch))
        seen_own, seen_other = plan.shown(masks).unbind(1)
        own = masks.flatten(1).sum(1)
        other = own.index_select(0, plan.partner)
        shares = (
            self._of_reference(seen_own, seen_other, own, other)
            if self.reference
            else _relative(seen_own, seen_other, own, other, area)
        )
        weight = self.absolute * _quotient(seen_own, seen_other) + (1 - self.absolute) * shares
        if not self.reference:
            # Whole images keep their label, also those without an object.
            weight = torch.where((area > 0) & (area < 1), weight, area)
        return two_shares(self.foreground * weight + (1 - self.foreground) * area, len(batch))

    @staticmethod
    def _of_reference(seen_own: Tensor, seen_other: Tensor, own: Tensor, other: Tensor) -> Tensor:
        share, other_share = 1 - (own - seen_own) / (own + TINY), seen_other / (other + TINY)
        return share / (share + other_share).clamp(min=TINY)

    def __repr__(self) -> str:
        return f"VisibleObject({self.absolute:g}, foreground={self.foreground:g}, reference={self.reference})"


def _relative(seen_own: Tensor, seen_other: Tensor, own: Tensor, other: Tensor, area: Tensor) -> Tensor:
    share = torch.where(own > 0, seen_own / own.clamp(min=TINY), area)
    other_share = torch.where(other > 0, seen_other / other.clamp(min=TINY), 1 - area)
    return _quotient(share, other_share)


def _quotient(one: Tensor, other: Tensor) -> Tensor:
    """``one / (one + other)``, a half where both are zero."""
    total = one + other
    return torch.where(total > 0, one / total.clamp(min=torch.finfo(total.dtype).tiny), 0.5)


def _masks(batch: Batch) -> Tensor:
    """(B, H, W) float32 share of the object in every pixel."""
    if batch.images.ndim != 4:
        raise ValueError(f"labeling 'object' expects images (B, C, H, W), got shape {tuple(batch.images.shape)}")
    masks = batch.metadata.get(OBJECT_MASK)
    if masks is None:
        raise ValueError(
            f"labeling 'object' needs {OBJECT_MASK!r} of every sample, the batch has metadata "
            f"{sorted(batch.metadata)}: pass Batch(images, labels, metadata={{{OBJECT_MASK!r}: ...}})"
        )
    planes = masks[:, 0] if masks.ndim == 4 and masks.shape[1] == 1 else masks
    if planes.ndim != 3 or len(planes) != len(batch):
        raise ValueError(
            f"labeling 'object' expects {OBJECT_MASK} ({len(batch)}, H, W) or ({len(batch)}, 1, H, W), got "
            f"{tuple(masks.shape)}"
        )
    planes = planes.float() if planes.is_floating_point() else (planes != 0).float()
    if tuple(planes.shape[1:]) != batch.size:
        planes = F.interpolate(planes[:, None], batch.size, mode="nearest")[:, 0]
    return planes
