"""SmoothMix (CVPR Workshops 2020, no arXiv id): blend in the partner under a Gaussian bump.

    x' = (1 - G) * x + G * x[partner],   lam = 1 - mean(G)
    G  = exp(-sum over axes of (p - c)^2 / (2 sigma^2))       peak 1, not normalised

The centre c lies half a pixel before a uniformly drawn pixel, sigma is uniform between a quarter and a half of
the image's side. On images that are not square every axis has the sigma of its own side: the bump is an ellipse
in the shape of the image. Beta has no part in it. (Another method of the same name is about certified robustness.)

OpenMixup, the only published code, gives mean(G), the partner's share of the pixels, to the sample's own label,
and its published numbers were made that way: ``reference_labels=True``. It stands for square images of even side
only; the closed form here needs neither.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from mixaug.batch import Batch
from mixaug.checks import check_flag, check_images, check_out, check_partner, check_range
from mixaug.draws import Draws
from mixaug.labeling import Area
from mixaug.ops.blend import blend_mask
from mixaug.ops.masks import gaussian_lines
from mixaug.plan import MaskBlend, Plan
from mixaug.policy import Policy
from mixaug.registry import register

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from mixaug.shared_options import TakesLabeling, TakesPairing, TakesPartners, TakesPer

    class Offered(TakesPairing, TakesLabeling, TakesPer, TakesPartners, total=False):
        """The shared options without those that ``not_offered`` names."""


__all__ = ["SmoothMix", "smoothmix", "smoothmix_mask"]


def smoothmix_mask(centers: Tensor, sigma: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Share of the own image per pixel: one minus a Gaussian bump.

    Args:
        centers: (R, D) floating point, in pixels: y, x for images.
        sigma: (R, D) floating point, positive, in pixels, one for each axis.
        size: the D spatial sizes.

    Returns:
        Mask (R, 1, *size) float32 in [0, 1], and lam (R,) float32, its mean.

    Raises:
        ValueError: centers and sigma that do not fit each other and size.
    """
    if (
        centers.ndim != 2
        or centers.shape != sigma.shape
        or centers.shape[1] != len(size)
        or not (centers.is_floating_point() and sigma.is_floating_point())
    ):
        raise ValueError(
            f"smoothmix_mask expects centers and sigma (R, {len(size)}) floating point for size {tuple(size)}, "
            f"got {tuple(centers.shape)} {centers.dtype} and {tuple(sigma.shape)} {sigma.dtype}"
        )
    lines, mean = gaussian_lines(centers, sigma, size)
    # Each of the two passes over the pixels goes many values at a time; a single addcmul of two lines does not.
    bump = math.prod(lines[:-1], start=-lines[-1])
    return bump.add_(1), (1 - mean).float()


def smoothmix(
    images: Tensor,
    partner: Tensor,
    centers: Tensor,
    sigma: Tensor,
    *,
    out: Tensor | None = None,
    inplace: bool = False,
) -> tuple[Tensor, Tensor]:
    """Blend every sample with its partner under a Gaussian bump. Differentiable.

    Half precision and uint8 are blended in float32; uint8 is rounded half to even.

    Args:
        images: (B, C, H, W), or with one or three spatial axes; floating point or uint8.
        partner: (B,) int64.
        centers: (B, 2), or (1, 2) for all, floating point y, x: where only the partner shows.
        sigma: like ``centers``, positive: width of the bump along each axis, in pixels.
        out: tensor like ``images`` that receives the result and does not overlap it.
        inplace: write the result into ``images``.

    Returns:
        Mixed images, dtype and memory format of ``images``, and lam (B,) float32, the mean share of the own image.

    Raises:
        ValueError: shapes that do not fit, partners outside the batch.
        TypeError: another dtype.
    """
    check_images("smoothmix", images, (1, 2, 3))
    check_partner("smoothmix", partner, images.shape[0])
    check_out("smoothmix", images, out, inplace)
    if centers.ndim == 0 or centers.shape[0] not in (1, images.shape[0]):
        raise ValueError(
            f"smoothmix expects {images.shape[0]} rows of centers or one, got shape {tuple(centers.shape)}"
        )
    mask, lam = smoothmix_mask(centers, sigma, images.shape[2:])
    mixed = blend_mask(images, partner, mask.squeeze(1), out=out, inplace=inplace)
    return mixed, lam.expand(images.shape[0])


@register(
    "smoothmix",
    paper="SmoothMix: a Simple Yet Effective Data Augmentation to Train Robust Classifiers, CVPR Workshops 2020",
    family="masks",
)
class SmoothMix(Policy):
    """Blend in the partner under a Gaussian bump; the label share is the mean share of the pixels.

    Args:
        sigma: (low, high), 0 < low <= high: range of the bump's width, as a share of the image's side along each
            axis; (0.25, 0.5) is OpenMixup's.
        reference_labels: give the partner's share to the own label and the other way round, as the code behind
            the published numbers does. Only for comparing with those; needs ``labeling="area"``.
        pairing, labeling, per: see :class:`mixaug.Policy`. There is no alpha and no ratio: the share of the own
            image follows from the bump.

    Raises:
        ValueError: an option out of range.
    """

    not_offered = ("alpha", "ratio")
    own_answers: ClassVar[Mapping[str, str]] = {
        "ratio": "What a bump of random place and width leaves.",
    }

    def __init__(
        self,
        sigma: tuple[float, float] = (0.25, 0.5),
        reference_labels: bool = False,
        **shared: Unpack[Offered],
    ) -> None:
        super().__init__(**shared)
        self.sigma = check_range("SmoothMix", "sigma", sigma, positive=True)
        self.reference_labels = check_flag("SmoothMix", "reference_labels", reference_labels)
        if self.reference_labels and not isinstance(self.labeling, Area):
            raise ValueError(
                "SmoothMix swaps the areas with reference_labels=True; it cannot use "
                f"labeling={shared.get('labeling')!r}"
            )

    def sample(self, batch: Batch, partner: Tensor, draws: Draws) -> Plan:
        centers = draws.pixels(batch.size) - 0.5
        share = draws.uniform(*self.sigma)
        sigma = torch.stack([share * side for side in batch.size], dim=1)
        mask, lam = smoothmix_mask(centers, sigma, batch.size)
        weights = None
        if self.reference_labels:
            weights = torch.stack([1 - lam, lam], dim=1).expand(len(batch), 2)
        return MaskBlend(partner=partner, lam=lam, weights=weights, size=batch.size, mask=mask.squeeze(1), share=lam)
