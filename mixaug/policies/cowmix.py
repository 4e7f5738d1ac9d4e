"""CowMix (arXiv:2003.12022): patches of random size and shape, like those of a cow: smooth noise, cut at a threshold.

    smooth = Gaussian smoothing of standard normal noise, sigma = exp(U(log 4, log 16)) pixels
    x' = x where smooth > tau, x[partner] elsewhere,   tau = mean + std sqrt(2) erfinv(2 p - 1)

The partner's share p is uniform between 0.2 and 0.8. The threshold would give exactly that share to normal values; of
an image that is not many sigmas wide the real share differs, and labels count the pixels, as in the authors' code.

``border="zero"`` is the authors' smoothing: outside the image lie zeros, so pixels near the border seldom stand out.
``border="reflect"`` is that of ClassMix's code, by scipy. The authors mix every sample with the next one
(``pairing="shift"``), which for batches in random order is a random partner.

Departure: the authors cut the Gaussian at more than six times the largest sigma; here it is whole, which changes a
value of the smooth image by less than 1e-7.

The paper trains with few labels: :func:`mixaug.functional.cowmix_consistency` is its loss beside the class loss.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor

from mixaug.batch import Batch
from mixaug.checks import (
    check_choice,
    check_images,
    check_not_negative,
    check_out,
    check_partner,
    check_positive,
    check_range,
    check_share,
    shown,
)
from mixaug.draws import Draws
from mixaug.ops.blend import blend_mask
from mixaug.ops.filters import Border, gaussian_smooth
from mixaug.ops.layout import column, single_precision
from mixaug.ops.parts import in_parts
from mixaug.plan import MaskBlend, Plan
from mixaug.policy import Policy, SharedOptions
from mixaug.registry import register

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["CowMix", "cow_mask", "cow_noise", "cowmix", "cowmix_consistency"]


def cow_noise(noise: Tensor, sigma: Tensor, largest: float = 16.0, border: Border = "zero") -> Tensor:
    """Smooth random images. Deterministic given the noise.

    Args:
        noise: (R, *size) float32 or float64 standard normals.
        sigma: (R,) floating point, positive, in pixels.
        largest: an upper bound of sigma; needed by ``border="reflect"`` alone.
        border: ``"zero"`` or ``"reflect"``, see the module.

    Returns:
        (R, 1, *size) of the dtype of ``noise``.

    Raises:
        ValueError: shapes that do not fit, an unknown border.
        TypeError: noise of another dtype.
    """
    check_choice("cow_noise", "border", border, get_args(Border))
    if noise.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"cow_noise expects noise of dtype float32 or float64, got {noise.dtype}")
    if noise.ndim < 2 or sigma.shape != noise.shape[:1]:
        raise ValueError(
            f"cow_noise expects noise (R, *size) and sigma (R,), got {tuple(noise.shape)} and {tuple(sigma.shape)}"
        )
    return gaussian_smooth(noise, sigma, check_positive("cow_noise", "largest", largest), border)[:, None]


def cow_mask(smooth: Tensor, lam: Tensor) -> Tensor:
    """The pixels of a smooth random image above its threshold.

    Args:
        smooth: (R, 1, *size) floating point from :func:`cow_noise`.
        lam: (R,) floating point in [0, 1], share of the own image for values that are normal; 0 and 1 are exact.

    Returns:
        (R, 1, *size) bool, True where the own image shows.

    Raises:
        ValueError: shapes that do not fit.
    """
    check_share("cow_mask", "lam", lam, smooth.shape[0])
    values = smooth.flatten(1)
    quantile = math.sqrt(2) * torch.erfinv(1 - 2 * lam)
    middle, spread = values.mean(1), values.var(1, correction=0).sqrt()
    # Beside an infinite quantile a spread of 0, that of a constant image, has no meaning.
    threshold = torch.where(quantile.isinf(), quantile, middle + spread * quantile)
    return smooth > column(threshold, smooth)


def cowmix(
    images: Tensor, partner: Tensor, mask: Tensor, *, out: Tensor | None = None, inplace: bool = False
) -> tuple[Tensor, Tensor]:
    """Copy the partner's pixels outside a mask. Differentiable.

    Args:
        images: (B, C, H, W), or with one or three spatial axes; floating point or uint8.
        partner: (B,) int64.
        mask: (B, 1, *size), or (1, 1, *size) for all, bool: True where the own image shows.
        out: tensor like ``images`` that receives the result and does not overlap it.
        inplace: write the result into ``images``.

    Returns:
        Mixed images, dtype and memory format of ``images``, and lam (B,) float32, the share of own pixels.

    Raises:
        ValueError: shapes that do not fit, partners outside the batch.
        TypeError: another dtype.
    """
    check_images("cowmix", images, (1, 2, 3))
    check_partner("cowmix", partner, images.shape[0])
    check_out("cowmix", images, out, inplace)
    size = tuple(images.shape[2:])
    if mask.dtype != torch.bool:
        raise TypeError(f"cowmix expects mask of dtype torch.bool, True for own pixels, got {mask.dtype}")
    if tuple(mask.shape) not in {(count, 1, *size) for count in (1, images.shape[0])}:
        raise ValueError(f"cowmix expects mask {(images.shape[0], 1, *size)} or one for all, got {tuple(mask.shape)}")
    lam = mask.flatten(1).mean(1, dtype=torch.float32).expand(images.shape[0])
    return blend_mask(images, partner, mask.squeeze(1), out=out, inplace=inplace), lam


def cowmix_consistency(
    logits: Tensor, teacher_logits: Tensor, partner: Tensor, lam: Tensor, threshold: float = 0.6
) -> Tensor:
    """Squared distance of the mixed outputs from the mixed outputs of a teacher, as far as that one is sure.

    Args:
        logits: (B, K) for the mixed samples.
        teacher_logits: (B, K) for the unmixed ones; no gradient flows to them.
        partner: (B,) int64.
        lam: (B,) share of the own sample.
        threshold: the loss is weighted by the share of the samples whose mixed confidence (largest probability) is
            above it, in the whole batch; 0.6 in the authors' code.

    Returns:
        A scalar, float32 (float64 for float64 logits): the sum over classes, the mean over samples. The paper weighs it
        by 30.

    Raises:
        ValueError: shapes that do not fit, a negative threshold.
    """
    threshold = check_not_negative("cowmix_consistency", "threshold", threshold)
    check_partner("cowmix_consistency", partner, logits.shape[0])
    check_share("cowmix_consistency", "lam", lam, logits.shape[0])
    if logits.ndim != 2 or logits.shape != teacher_logits.shape:
        raise ValueError(
            f"cowmix_consistency expects logits and teacher_logits (B, K), got {tuple(logits.shape)} and "
            f"{tuple(teacher_logits.shape)}"
        )
    clean = single_precision(teacher_logits.detach()).softmax(1)
    own = lam.to(clean.dtype)[:, None]
    confidence = clean.amax(1, keepdim=True)
    both = torch.cat([clean, confidence], 1)
    mixed = torch.lerp(both.index_select(0, partner), both, own)
    sure = (mixed[:, -1] > threshold).to(clean.dtype).mean()
    distance = (single_precision(logits).softmax(1) - mixed[:, :-1]).square().sum(1)
    return distance.mean() * sure


@register(
    "cowmix",
    paper="Milking CowMask for Semi-Supervised Image Classification, VISIGRAPP 2022",
    arxiv="2003.12022",
    family="masks",
)
class CowMix(Policy):
    """Copy patches of the partner, of random size and shape like a cow's; the label share counts the pixels.

    Args:
        alpha: lam ~ Beta(alpha, alpha), with ``share=None`` alone.
        share: (low, high), 0 <= low <= high <= 1: the own share is uniform between them; (0.2, 0.8) is the paper's
            value. None draws it by ``ratio`` and ``alpha``, which are refused beside a share.
        sigma: (low, high), 0 < low <= high: range of the smoothing in pixels, uniform in its logarithm. (4, 16) is the
            authors' value for CIFAR; larger images want more.
        border: ``"zero"`` or ``"reflect"``: what lies outside the image when it is smoothed.
        ratio: another distribution of lam, with ``share=None`` alone: ``"midpoint"``, ``"uniform"``, ``"bernoulli"``, a
            share, a Ratio.
        pairing, labeling, per: see :class:`mixaug.Policy`; ``labeling="ratio"`` keeps the drawn share.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        share: tuple[float, float] | None = (0.2, 0.8),
        sigma: tuple[float, float] = (4.0, 16.0),
        border: Border = "zero",
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(alpha=alpha, **shared)
        if share is not None and (alpha != 1.0 or shared.get("ratio", "beta") != "beta"):
            given = {"alpha": alpha, "ratio": shared.get("ratio", "beta")}
            plain = {"alpha": 1.0, "ratio": "beta"}
            without = [f"{name}={shown(value)}" for name, value in given.items() if value != plain[name]]
            raise ValueError(
                f"CowMix draws the own share between share={share!r}: leave out {', '.join(without)}, or take "
                "share=None"
            )
        self.share = None if share is None else check_range("CowMix", "share", share, 0, 1)
        self.sigma = check_range("CowMix", "sigma", sigma, positive=True)
        check_choice("CowMix", "border", border, get_args(Border))
        self.border: Border = border

    def sample(self, batch: Batch, partner: Tensor, draws: Draws) -> Plan:
        lam = self.ratio(draws) if self.share is None else draws.uniform(*self.share)
        sigma = draws.uniform(math.log(self.sigma[0]), math.log(self.sigma[1])).exp()
        noise = draws.normal(batch.size)
        # A ratio of one's own may give one share for all.
        lam = lam.to(noise.dtype).expand(len(noise))

        def masks(noise: Tensor, sigma: Tensor, lam: Tensor) -> Tensor:
            return cow_mask(cow_noise(noise, sigma, self.sigma[1], self.border), lam)

        # Beside its image a row has a square matrix for each axis.
        values = max(math.prod(batch.size), max(batch.size) ** 2)
        mask = in_parts(masks, noise, sigma, lam, bytes_per_row=values * noise.element_size())
        return MaskBlend(partner=partner, lam=lam.float(), size=batch.size, mask=mask.squeeze(1))
