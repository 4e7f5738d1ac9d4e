"""Mixup (arXiv:1710.09412): the weighted mean of a sample and its partner.

    x' = lam * x + (1 - lam) * x[partner],   lam ~ Beta(alpha, alpha)

The authors draw one lam and one permutation per batch: ``per="batch"``. ``ratio="midpoint"`` fixes lam at
1/2 (Midpoint Mixup, arXiv:2210.13512; use ``pairing="derangement"`` with it, so that no sample meets itself
and no two samples come out equal).

``sources=k`` takes the weighted mean of k samples, shares ~ Dirichlet(alpha, ..., alpha).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from mixaug.batch import Batch
from mixaug.checks import check_images, check_out, check_partner, check_share
from mixaug.draws import Draws
from mixaug.ops.blend import blend
from mixaug.plan import Blend, Plan
from mixaug.policies.several import WeightedSources, check_sources, rows_of
from mixaug.policy import Policy, SharedOptions
from mixaug.registry import register

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Mixup", "mixup"]


def mixup(images: Tensor, partner: Tensor, lam: Tensor, *, out: Tensor | None = None, inplace: bool = False) -> Tensor:
    """Blend every sample with its partner.

    Half precision and uint8 are blended in float32; uint8 is rounded half to even. Differentiable.

    Args:
        images: (B, ...) floating point or uint8.
        partner: (B,) int64.
        lam: (B,) or (1,) floating point in [0, 1], share of the own sample.
        out: tensor like ``images`` that receives the result and does not overlap it.
        inplace: write the result into ``images``.

    Returns:
        (B, ...) mixed tensor, dtype and memory format of ``images``.

    Raises:
        ValueError: shapes that do not fit, lam outside [0, 1], partners outside the batch.
        TypeError: another dtype.
    """
    check_images("mixup", images, None)
    check_partner("mixup", partner, images.shape[0])
    check_share("mixup", "lam", lam, images.shape[0])
    check_out("mixup", images, out, inplace)
    return blend(images, partner, lam, out=out, inplace=inplace)


@register("mixup", paper="mixup: Beyond Empirical Risk Minimization, ICLR 2018", arxiv="1710.09412", family="blends")
class Mixup(Policy):
    """Blend every sample with its partner, lam ~ Beta(alpha, alpha). Works on any tensor (B, ...).

    Args:
        alpha: concentration; 1.0 is the paper's CIFAR value, 0.2 its ImageNet value.
        sources: samples in each mixture, the sample itself among them, 2 to 64; from 3 on shares ~ Dirichlet(alpha)
            and the others come from the batch, so that options about pairs are refused.
        ratio, pairing, labeling, per: see :class:`mixaug.Policy`.

    Raises:
        ValueError: an option out of range, or one about pairs with more sources.
    """

    spatial = None
    has_mask = False

    def __init__(
        self,
        alpha: float = 1.0,
        sources: int = 2,
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(alpha=alpha, **shared)
        self.sources = check_sources(self, sources, shared)

    def sample(self, batch: Batch, partner: Tensor, draws: Draws) -> Plan:
        if self.sources > 2:
            rows = rows_of(self, self.sources, batch, partner, draws)
            shares = draws.dirichlet(self.alpha, self.sources).float()
            weights = shares.expand(len(batch), self.sources)
            return WeightedSources(partner=partner, lam=shares[:, 0], weights=weights, rows_in=rows, shares=shares)
        return Blend(partner=partner, lam=self.ratio(draws).float())
