"""CutMix (arXiv:1905.04899): paste one rectangle of the partner into the sample.

    x' = x[partner] inside the box, x outside,   lam' = share of pixels outside

The box has the image's aspect ratio, side sqrt(1 - lam) with lam ~ Beta(alpha, alpha), a centre uniform over
the pixels, and is clipped at the border; lam' counts the pixels really kept. The authors draw one box per
batch: ``per="batch"``. With one or three spatial axes the side is the first or third root.

``minmax`` is timm's other box: sides uniform between two fractions of the image's sides, always inside
(older versions of timm never let such a box touch the far border; here every place is equally likely).

``sources=k`` pastes a box of each of k - 1 samples, of side sqrt(w) for its share w ~ Dirichlet(alpha, ..., alpha).
Later boxes cover earlier ones, and the label shares count the pixels that each sample really shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mixaug.batch import Batch
from mixaug.checks import check_boxes, check_images, check_out, check_partner, check_range, shown
from mixaug.draws import Draws
from mixaug.ops.boxes import area_kept, box_mask, cutmix_boxes, paste
from mixaug.plan import Paste, Plan
from mixaug.policies.several import Regions, check_sources, rows_of, shares_of_regions
from mixaug.policy import Policy, SharedOptions
from mixaug.registry import register

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["CutMix", "cutmix"]


def cutmix(
    images: Tensor, partner: Tensor, boxes: Tensor, *, out: Tensor | None = None, inplace: bool = False
) -> tuple[Tensor, Tensor]:
    """Paste each partner's box into each sample. Differentiable.

    Args:
        images: (B, C, H, W), or with one or three spatial axes; floating point or uint8.
        partner: (B,) int64; sample i receives from ``images[partner[i]]``.
        boxes: (B, 4), or (1, 4) for all, int64 y0, x0, y1, x1, half open, clipped.
        out: tensor like ``images`` that receives the result and does not overlap it.
        inplace: write the result into ``images``.

    Returns:
        Mixed images, dtype and memory format of ``images``, and lam (B,) float32, the share of pixels kept.

    Raises:
        ValueError: shapes that do not fit, boxes outside the image, partners outside the batch.
        TypeError: another dtype.
    """
    check_images("cutmix", images, (1, 2, 3))
    size = images.shape[2:]
    check_partner("cutmix", partner, images.shape[0])
    check_boxes("cutmix", boxes, images.shape[0], size)
    check_out("cutmix", images, out, inplace)
    lam = area_kept(boxes, size).expand(images.shape[0])
    return paste(images, partner, boxes, size, out=out, inplace=inplace), lam


@register(
    "cutmix",
    paper="CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features, ICCV 2019",
    arxiv="1905.04899",
    family="cut and paste",
)
class CutMix(Policy):
    """Paste one rectangle of the partner into the sample; the label share is the area really kept.

    Args:
        alpha: lam ~ Beta(alpha, alpha); 1.0 is the paper's value for CIFAR and ImageNet.
        minmax: (low, high) fractions of the sides, 0 <= low < high <= 1: boxes of independent uniform
            sides, always inside the image, in place of the ones above (timm's ``cutmix_minmax``).
            ``alpha`` and ``ratio`` are refused then.
        sources: samples in each mixture, the sample itself among them, 2 to 64; from 3 on shares ~ Dirichlet(alpha)
            and the others come from the batch, so that ``minmax`` and options about pairs are refused.
        ratio, pairing, labeling, per: see :class:`mixaug.Policy`; ``labeling="ratio"`` keeps the drawn lam.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        minmax: tuple[float, float] | None = None,
        sources: int = 2,
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(alpha=alpha, **shared)
        self.minmax = None if minmax is None else check_range("CutMix", "minmax", minmax, 0, 1, strict=True)
        if minmax is not None and (alpha != 1.0 or shared.get("ratio", "beta") != "beta"):
            given = {"alpha": alpha, "ratio": shared.get("ratio", "beta")}
            without = [f"{name}={shown(value)}" for name, value in given.items() if value not in (1.0, "beta")]
            raise ValueError(
                f"CutMix draws the sides between minmax={minmax!r}, not from lam: leave out {' and '.join(without)}, "
                "or minmax"
            )

        self.sources = check_sources(self, sources, shared)
        self.labels_as_drawn = shared.get("labeling") == "ratio"
        if minmax is not None and self.sources > 2:
            raise ValueError(
                f"CutMix draws the box of one partner between minmax={minmax!r}: leave out sources={sources}"
            )

    def sample(self, batch: Batch, partner: Tensor, draws: Draws) -> Plan:
        if self.sources > 2:
            return self._several(batch, partner, draws)
        if self.minmax is None:
            lam = self.ratio(draws)
            boxes = cutmix_boxes(lam, draws.pixels(batch.size), batch.size)
        else:
            boxes = _minmax_boxes(self.minmax, batch.size, draws)
            lam = area_kept(boxes, batch.size)
        return Paste(partner=partner, lam=lam.float(), boxes=boxes, size=batch.size)

    def _several(self, batch: Batch, partner: Tensor, draws: Draws) -> Plan:
        rows = rows_of(self, self.sources, batch, partner, draws)
        drawn = draws.dirichlet(self.alpha, self.sources)
        regions = torch.zeros(len(drawn), *batch.size, dtype=torch.int64, device=batch.device)
        for column in range(1, self.sources):
            boxes = cutmix_boxes(1 - drawn[:, column], draws.pixels(batch.size), batch.size)
            regions = regions.masked_fill(box_mask(boxes, batch.size), column)
        shares = drawn.float() if self.labels_as_drawn else shares_of_regions(regions, self.sources)
        weights = shares.expand(len(batch), self.sources)
        return Regions(
            partner=partner, lam=drawn[:, 0].float(), weights=weights, size=batch.size, rows_in=rows, regions=regions
        )


def _minmax_boxes(minmax: tuple[float, float], size: Sequence[int], draws: Draws) -> Tensor:
    low, high = [], []
    for side in size:
        # The upper bound is at least one more than the lower: a tiny image still has a box.
        least = int(side * minmax[0])
        cut = draws.integers(least, max(int(side * minmax[1]), least + 1))
        start = (draws.uniform() * (side - cut + 1)).long()
        low.append(start)
        high.append(start + cut)
    return torch.stack(low + high, dim=1)
