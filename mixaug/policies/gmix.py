"""GMix (arXiv:2208.09913): the minor image of a pair shows under a Gaussian bump, the other around it.

    k  = exp(-pi |p - c|^2 / a^2),   a^D = min(lam, 1 - lam) N       of N pixels along D axes
    m  = k where lam < 1/2, else 1 - k,   x' = m * x + (1 - m) * x[partner],   label share mean(m)

lam ~ Beta(alpha, alpha); the centre c is a pixel, uniform over the image. Over an endless plane the bump has the area
of the minor share; what of it leaves the image is lost, so the minor image gets less than was drawn, down to a quarter
at a corner. The labels follow the pixels, as in the authors' code.

Departures: theirs takes the height for both axes, and so fits square images alone; here the bump is round on any image.
They draw one bump per batch and pair it with itself reversed: ``per="batch", pairing="reversed"``. For lam of exactly
0 or 1, where they divide 0 by 0, there is no bump.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mixaug.batch import Batch
from mixaug.checks import check_images, check_out, check_partner, check_share
from mixaug.draws import Draws
from mixaug.ops.blend import blend_mask
from mixaug.ops.layout import column
from mixaug.ops.masks import gaussian_lines
from mixaug.plan import MaskBlend, Plan
from mixaug.policy import Policy, SharedOptions
from mixaug.registry import register

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["GMix", "gmix", "gmix_mask"]


def gmix_mask(lam: Tensor, centers: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Share of the own image per pixel: a Gaussian bump, or one minus it.

    Args:
        lam: (R,) floating point in [0, 1]: below 1/2 the own image is under the bump, else the partner.
        centers: (R, D) pixels, y, x for images: the top of the bump.
        size: the D spatial sizes.

    Returns:
        Mask (R, 1, *size) float32 in [0, 1], and its mean (R,) float32.

    Raises:
        ValueError: centers that do not fit lam and size.
    """
    check_share("gmix_mask", "lam", lam, lam.shape[0] if lam.ndim else 0)
    if centers.shape != (lam.shape[0], len(size)):
        raise ValueError(
            f"gmix_mask expects centers ({lam.shape[0]}, {len(size)}) for lam {tuple(lam.shape)} and size "
            f"{tuple(size)}, got {tuple(centers.shape)}"
        )
    minor = torch.minimum(lam, 1 - lam)
    width = (minor * math.prod(size)) ** (1 / len(size))
    # No bump is left of a share of nothing; the width must not be 0 beside a distance of 0.
    sigma = (width / math.sqrt(2 * math.pi)).clamp(min=1e-3)
    lines, mean = gaussian_lines(centers.to(lam.dtype), sigma[:, None].expand(-1, len(size)), size)
    own = lam < 0.5
    # The sign goes into a line, so that the mask is one product and one sum over the pixels.
    sign = torch.where(own, 1.0, -1.0) * (minor > 0)
    mask = math.prod(lines[:-1], start=lines[-1] * column(sign.float(), lines[-1]))
    mask = mask.add_(column((~own).float(), mask))
    return mask, ((~own).to(lam.dtype) + sign.to(lam.dtype) * mean).float()


def gmix(
    images: Tensor,
    partner: Tensor,
    lam: Tensor,
    centers: Tensor,
    *,
    out: Tensor | None = None,
    inplace: bool = False,
) -> tuple[Tensor, Tensor]:
    """Blend every sample with its partner under a Gaussian bump of the minor one. Differentiable.

    Half precision and uint8 are blended in float32; uint8 is rounded half to even.

    Args:
        images: (B, C, H, W), or with one or three spatial axes; floating point or uint8.
        partner: (B,) int64.
        lam: (B,), or (1,) for all, floating point in [0, 1], see :func:`gmix_mask`.
        centers: (B, 2), or (1, 2) for all, pixels y, x.
        out: tensor like ``images`` that receives the result and does not overlap it.
        inplace: write the result into ``images``.

    Returns:
        Mixed images, dtype and memory format of ``images``, and the mean share (B,) float32 of the own image.

    Raises:
        ValueError: shapes that do not fit, partners outside the batch.
        TypeError: another dtype.
    """
    check_images("gmix", images, (1, 2, 3))
    check_partner("gmix", partner, images.shape[0])
    check_share("gmix", "lam", lam, images.shape[0])
    check_out("gmix", images, out, inplace)
    mask, share = gmix_mask(lam, centers, images.shape[2:])
    return blend_mask(images, partner, mask.squeeze(1), out=out, inplace=inplace), share.expand(images.shape[0])


@register(
    "gmix",
    paper="A Unified Analysis of Mixed Sample Data Augmentation: A Loss Function Perspective, NeurIPS 2022",
    arxiv="2208.09913",
    family="masks",
)
class GMix(Policy):
    """Show the minor image of a pair under a Gaussian bump; the label share is the mean share of the pixels.

    Args:
        alpha: lam ~ Beta(alpha, alpha); 1.0 is the default of the authors' code.
        ratio, pairing, labeling, per: see :class:`mixaug.Policy`; ``labeling="ratio"`` keeps the drawn lam, which the
            border of the image does not cut.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(self, alpha: float = 1.0, **shared: Unpack[SharedOptions]) -> None:
        super().__init__(alpha=alpha, **shared)

    def sample(self, batch: Batch, partner: Tensor, draws: Draws) -> Plan:
        lam, size = self.ratio(draws), batch.size
        mask, share = gmix_mask(lam, draws.pixels(size), size)
        return MaskBlend(partner=partner, lam=lam.float(), size=size, mask=mask.squeeze(1), share=share)
