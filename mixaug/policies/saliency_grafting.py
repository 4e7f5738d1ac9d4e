"""Saliency Grafting (arXiv:2112.08796): salient cells of the partner, drawn at random, grafted onto the sample.

    q = softmax(s / temperature) over the cells,   s = the partner's saliency in a cell over its mean
    P(cell shows the partner) = (1 - lam) min(1, q / (threshold mean q)),   every cell for itself
    labels: the share of its own saliency that is still seen of each of the two images, made to sum to one

Methods that paste where saliency is largest always paste the same; here every cell above the threshold has the same
chance, and lam ~ Beta(alpha, alpha) thins them out. The labels count what is seen, not what was drawn:
``labeling="saliency"``, for any other mask too.

This is the idea of the paper and no reproduction: no code was released, and its text could not be read beyond the first
pages. How saliency becomes a chance, the grid, and the values of ``temperature``, ``threshold`` and ``alpha`` are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mixaug.batch import Batch
from mixaug.checks import check_positive, check_share, check_whole_numbers
from mixaug.draws import Draws
from mixaug.labeling import VisibleSaliency
from mixaug.ops.layout import single_precision
from mixaug.ops.masks import cells_to_size
from mixaug.plan import MaskBlend, Plan
from mixaug.policies.saliency import SaliencyPolicy
from mixaug.policy import SharedOptions
from mixaug.registry import register

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["SaliencyGrafting", "graft_chances"]


def graft_chances(
    saliency: Tensor, lam: Tensor, grid: Sequence[int], temperature: float = 1.0, threshold: float = 1.0
) -> Tensor:
    """Chance of every cell of a grid to be grafted.

    Args:
        saliency: (R, H, W) floating point; negative and non-finite values count as 0.
        lam: (R,) or (1,) floating point in [0, 1]; 1 - lam is the chance of the most salient cells.
        grid: rows and columns of cells; a cell that lies across pixels has the mean over all it touches.
        temperature: of the softmax over cells, positive: a large one makes all cells alike, a small one takes the most
            salient cell alone.
        threshold: share of the mean from which on a cell is as likely as the most salient one, positive.

    Returns:
        (R, rows, columns) float32 in [0, 1]. A map without saliency has the same chance everywhere.

    Raises:
        ValueError: an option out of range, shapes that do not fit.
    """
    temperature = check_positive("graft_chances", "temperature", temperature)
    threshold = check_positive("graft_chances", "threshold", threshold)
    if saliency.ndim != 3 or not saliency.is_floating_point():
        raise ValueError(
            f"graft_chances expects saliency (R, H, W) floating point, got {tuple(saliency.shape)} {saliency.dtype}"
        )
    check_share("graft_chances", "lam", lam, saliency.shape[0])
    maps = single_precision(saliency.detach()).float().nan_to_num(0.0, 0.0, 0.0).clamp(min=0)
    # The division by the largest comes first: neither tiny nor huge gradients may leave the range of float32.
    maps = maps / maps.flatten(1).amax(1).clamp(min=torch.finfo(maps.dtype).tiny)[:, None, None]
    cells = F.adaptive_avg_pool2d(maps[:, None], (grid[0], grid[1])).flatten(1)
    mean = cells.mean(1, keepdim=True)
    share = torch.where(mean > 0, cells / mean.clamp(min=torch.finfo(cells.dtype).tiny), torch.ones_like(cells))
    likely = (share / temperature).softmax(1) * (cells.shape[1] / threshold)
    return ((1 - lam.float())[:, None] * likely.clamp(max=1)).unflatten(1, (grid[0], grid[1]))


@register(
    "saliency_grafting",
    paper="Saliency Grafting: Innocuous Attribution-Guided Mixup with Calibrated Label Mixing, AAAI 2022",
    arxiv="2112.08796",
    family="guided by the model",
)
class SaliencyGrafting(SaliencyPolicy):
    """Graft randomly drawn salient cells of the partner onto the sample; labels count the saliency that is seen.

    Args:
        alpha: lam ~ Beta(alpha, alpha); 1 - lam is the chance of a salient cell.
        grid: rows and columns of cells, or one number for both; at most the image's pixels along each axis.
        temperature, threshold: see :func:`graft_chances`.
        clean_weight: weight of the clean images' loss, whose gradients the saliency pass has computed, as a part of the
            step; the model is in training mode in that pass then. 0 discards them, in evaluation mode.
        ratio, pairing, per: see :class:`mixaug.Policy`.
        labeling: ``"saliency"`` that is seen; ``"area"`` counts pixels, ``"ratio"`` is the drawn lam.

    Raises:
        ValueError: an option out of range; when drawing, saliency of another size than the images.
    """

    shared_defaults: ClassVar[SharedOptions] = {"labeling": "saliency"}

    def __init__(
        self,
        alpha: float = 1.0,
        grid: int | Sequence[int] = 8,
        temperature: float = 1.0,
        threshold: float = 1.0,
        clean_weight: float = 0.0,
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(alpha=alpha, **shared)
        sides = check_whole_numbers("SaliencyGrafting", "grid", grid)
        if len(sides) > 2:
            raise ValueError(f"SaliencyGrafting expects grid as a number or (rows, columns), got {grid!r}")
        self.grid = sides[0], sides[-1]
        self.temperature = check_positive("SaliencyGrafting", "temperature", temperature)
        self.threshold = check_positive("SaliencyGrafting", "threshold", threshold)
        self.keep_clean(clean_weight)
        if self.clean_weight and isinstance(self.labeling, VisibleSaliency):
            # Cells and labels look at the same maps, from the one pass whose loss is kept.
            self.labeling = VisibleSaliency("train")

    def sample(self, batch: Batch, partner: Tensor, draws: Draws) -> Plan:
        lam = self.ratio(draws)
        grid = [min(cells, side) for cells, side in zip(self.grid, batch.size, strict=True)]
        saliency = self.saliency_of(batch).index_select(0, partner)
        chances = graft_chances(saliency, lam, grid, self.temperature, self.threshold)
        own = draws.uniform(shape=grid) >= chances
        return MaskBlend(partner=partner, lam=lam.float(), size=batch.size, mask=cells_to_size(own, batch.size))
