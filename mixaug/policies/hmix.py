"""HMix (arXiv:2208.09913): a box of the partner as in CutMix, and a blend with it as in mixup outside the box.

    x' = x[partner] inside the box,   m * x + (1 - m) * x[partner] outside,   m = lam / share of pixels outside

``cut`` says how much of the partner's share the box takes: its sides are (cut (1 - lam))^(1/D) of the image's. The
blend takes what is left, clipped and rounded parts of the box included, so that the mean share of the own pixels is
lam exactly and labels need no correction. ``cut=0`` is mixup; ``cut=1`` is CutMix but for what its box loses.

The authors draw one box per batch and pair it with itself reversed: ``per="batch", pairing="reversed"``. With one or
three spatial axes the root is the first or the third.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mixaug.batch import Batch
from mixaug.checks import check_boxes, check_images, check_out, check_partner, check_probability, check_share
from mixaug.draws import Draws
from mixaug.ops.blend import blend_mask
from mixaug.ops.boxes import area_kept, box_mask, centred_boxes, shares_of_sides
from mixaug.ops.layout import wide_dtype
from mixaug.plan import MaskBlend, Plan
from mixaug.policy import Policy, SharedOptions
from mixaug.registry import register

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["HMix", "hmix", "hmix_boxes", "hmix_mask"]


def hmix_boxes(lam: Tensor, centers: Tensor, size: Sequence[int], cut: float = 0.5) -> Tensor:
    """Boxes of area about ``cut (1 - lam)`` around given centres, clipped to the image.

    Args:
        lam: (R,) floating point in [0, 1], share of the own image; float64 gives the authors' integers exactly.
        centers: (R, D) int64 pixels: y, x for images.
        size: the D spatial sizes.
        cut: share of the partner's part that the box takes, in [0, 1].

    Returns:
        (R, 2 D) int64 boxes, lower corners first, half open. Sides are even before clipping.

    Raises:
        ValueError: centers that do not fit lam and size, or cut outside [0, 1].
    """
    check_share("hmix_boxes", "lam", lam, lam.shape[0] if lam.ndim else 0)
    cut = check_probability("hmix_boxes", "cut", cut)
    if centers.shape != (lam.shape[0], len(size)) or centers.dtype != torch.int64:
        raise ValueError(
            f"hmix_boxes expects centers ({lam.shape[0]}, {len(size)}) int64 for lam {tuple(lam.shape)} and size "
            f"{tuple(size)}, got {tuple(centers.shape)} {centers.dtype}"
        )
    share = 1 - lam.to(wide_dtype(lam.device))
    # Each factor has its root taken, as in the authors' code: the root of the product may round to another pixel.
    root = share.sqrt() * cut**0.5 if len(size) == 2 else (share * cut) ** (1 / len(size))
    return centred_boxes(centers, shares_of_sides(root, size), size)


def hmix_mask(lam: Tensor, boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Share of the own image per pixel: 0 inside the box, the same everywhere outside, of mean ``lam``.

    Args:
        lam: (R,) floating point in [0, 1].
        boxes: (R, 2 D) int64 from :func:`hmix_boxes`: they leave at least a share ``lam`` of the pixels.
        size: the D spatial sizes.

    Returns:
        (R, 1, *size) float32 in [0, 1].

    Raises:
        ValueError: boxes that do not fit lam and size.
    """
    check_share("hmix_mask", "lam", lam, boxes.shape[0])
    check_boxes("hmix_mask", boxes, lam.shape[0], size)
    return _mask(lam, boxes, size)[:, None]


def _mask(lam: Tensor, boxes: Tensor, size: Sequence[int]) -> Tensor:
    outside = area_kept(boxes, size).to(lam.dtype)
    # A box that covers everything leaves nothing to blend: 0 / 0.
    weight = torch.where(outside > 0, lam / outside, torch.zeros_like(lam)).clamp(max=1).float()
    return weight.reshape(-1, *([1] * len(size))) * ~box_mask(boxes, size)


def hmix(
    images: Tensor,
    partner: Tensor,
    lam: Tensor,
    boxes: Tensor,
    *,
    out: Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    """Paste each partner's box into each sample, and blend with the partner outside. Differentiable.

    Half precision and uint8 are blended in float32; uint8 is rounded half to even.

    Args:
        images: (B, C, H, W), or with one or three spatial axes; floating point or uint8.
        partner: (B,) int64.
        lam: (B,), or (1,) for all, floating point in [0, 1]: mean share of the own image.
        boxes: (B, 4), or (1, 4) for all, int64 from :func:`hmix_boxes`.
        out: tensor like ``images`` that receives the result and does not overlap it.
        inplace: write the result into ``images``.

    Returns:
        Mixed images, dtype and memory format of ``images``.

    Raises:
        ValueError: shapes that do not fit, boxes outside the image, partners outside the batch.
        TypeError: another dtype.
    """
    check_images("hmix", images, (1, 2, 3))
    size = images.shape[2:]
    check_partner("hmix", partner, images.shape[0])
    check_share("hmix", "lam", lam, images.shape[0])
    check_boxes("hmix", boxes, images.shape[0], size)
    check_out("hmix", images, out, inplace)
    return blend_mask(images, partner, _mask(lam, boxes, size), out=out, inplace=inplace)


@register(
    "hmix",
    paper="A Unified Analysis of Mixed Sample Data Augmentation: A Loss Function Perspective, NeurIPS 2022",
    arxiv="2208.09913",
    family="masks",
)
class HMix(Policy):
    """Paste a box of the partner and blend with it around the box; the label share is the drawn lam.

    Args:
        alpha: lam ~ Beta(alpha, alpha); 1.0 is the default of the authors' code.
        cut: share of the partner's part that the box takes, in [0, 1], the authors' ``hmix_ratio``: 0 is mixup, near
            1 is CutMix. 0.5 is the value in their notebook.
        ratio, pairing, labeling, per: see :class:`mixaug.Policy`; the area is the drawn lam exactly.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(self, alpha: float = 1.0, cut: float = 0.5, **shared: Unpack[SharedOptions]) -> None:
        super().__init__(alpha=alpha, **shared)
        self.cut = check_probability("HMix", "cut", cut)

    def sample(self, batch: Batch, partner: Tensor, draws: Draws) -> Plan:
        lam, size = self.ratio(draws), batch.size
        boxes = hmix_boxes(lam, draws.pixels(size), size, self.cut)
        share = lam.float()
        return MaskBlend(partner=partner, lam=share, size=size, mask=_mask(lam, boxes, size), share=share)
