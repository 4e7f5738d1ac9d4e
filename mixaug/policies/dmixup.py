"""d-Mixup (arXiv:2306.00740): a weighted mean of several samples, whose shares are drawn from a Dirichlet distribution.

    x' = sum_m w_m x[p_m],   y' = sum_m w_m y[p_m],   w ~ Dirichlet(alpha, ..., alpha) over ``points`` samples

The sample itself is the first of them, and each of the others comes from a permutation of its own. Two points with
alpha 1 are mixup with Beta(1, 1). The paper shows that models which interpolate labels of pairs alone calibrate badly
where classes overlap, and that more points constrain them between.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from mixaug.batch import Batch
from mixaug.checks import check_images, check_out, check_whole, shown
from mixaug.draws import Draws
from mixaug.ops.layout import deliver
from mixaug.plan import Plan
from mixaug.policies.several import WeightedSources, rows_of, weighted_mean
from mixaug.policy import Policy
from mixaug.registry import register
from mixaug.shared_options import SharedOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from mixaug.shared_options import TakesPairing, TakesPer

    class Offered(TakesPairing, TakesPer, total=False):
        """The shared options without those that ``not_offered`` names."""


__all__ = ["DMixup", "dmixup"]


def dmixup(
    images: Tensor, sources: Tensor, shares: Tensor, *, out: Tensor | None = None, inplace: bool = False
) -> tuple[Tensor, Tensor]:
    """Weighted means of several rows. Half precision and uint8 are computed in float32. Differentiable.

    Args:
        images: (B, ...) floating point or uint8.
        sources: (B, M) int64 rows of ``images``.
        shares: (B, M), or (1, M) for all, floating, rows sum to 1.
        out: tensor like ``images`` that receives the result and does not overlap it.
        inplace: write the result into ``images``.

    Returns:
        Mixed images like ``images``, and the shares (B, M) float32.

    Raises:
        ValueError: shapes that do not fit, or, on a CPU, sources outside the batch.
        TypeError: another dtype.
    """
    check_images("dmixup", images, None)
    check_out("dmixup", images, out, inplace)
    batch = images.shape[0]
    if not isinstance(sources, Tensor) or sources.dtype != torch.int64 or sources.ndim != 2 or len(sources) != batch:
        raise ValueError(f"dmixup expects sources ({batch}, M) int64, got {shown(sources)}")
    if sources.device.type == "cpu" and not torch.compiler.is_compiling() and sources.numel():
        low, high = (int(value) for value in sources.aminmax())
        if low < 0 or high >= batch:
            raise ValueError(f"dmixup expects sources in [0, {batch}), got values from {low} to {high}")
    if shares.shape not in {(batch, sources.shape[1]), (1, sources.shape[1])} or not shares.is_floating_point():
        raise ValueError(
            f"dmixup expects shares ({batch}, {sources.shape[1]}) or (1, {sources.shape[1]}) floating, got "
            f"{tuple(shares.shape)} {shares.dtype}"
        )
    mixed = weighted_mean(images, sources, shares)
    return deliver(mixed, images, out, inplace), shares.float().expand(batch, -1)


@register(
    "dmixup",
    paper="On the Limitations of Temperature Scaling for Distributions with Overlaps, ICLR 2024",
    arxiv="2306.00740",
    family="blends",
)
class DMixup(Policy):
    """Blend several samples, shares ~ Dirichlet(alpha) over ``points`` of them. Works on any tensor (B, ...).

    Args:
        alpha: concentration of the Dirichlet distribution, positive; 1 is uniform over all shares.
        points: samples in each mixture, the sample itself among them, 2 to 64.
        pairing: draws the others, anew for each of them.
        per: "sample" draws for each sample, "batch" once for all, as the authors' code does.

    Raises:
        ValueError: an option out of range.
    """

    spatial = None
    shared_defaults: ClassVar[SharedOptions] = {"per": "batch"}
    not_offered = ("ratio", "labeling", "partners")
    own_answers: ClassVar[Mapping[str, str]] = {
        "ratio": "Dirichlet(alpha) over the samples of a mixture.",
        "labeling": "As the inputs.",
    }

    def __init__(self, alpha: float = 1.0, points: int = 3, **shared: Unpack[Offered]) -> None:
        super().__init__(alpha=alpha, **shared)
        if self.per == "pair":
            raise ValueError("DMixup mixes more than pairs: per expects 'sample' or 'batch', got 'pair'")
        self.points = check_whole("DMixup", "points", points, least=2, most=64)

    def draw_shares(self, draws: Draws) -> Tensor:
        """(R, points) float32 shares, rows sum to 1."""
        return draws.dirichlet(self.alpha, self.points).float()

    def sample(self, batch: Batch, partner: Tensor, draws: Draws) -> Plan:
        rows = rows_of(self, self.points, batch, partner, draws)
        shares = self.draw_shares(draws)
        return WeightedSources(
            partner=partner,
            lam=shares[:, 0],
            weights=shares.expand(len(batch), self.points),
            rows_in=rows,
            shares=shares,
        )
