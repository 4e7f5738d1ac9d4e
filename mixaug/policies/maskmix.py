"""MaskMix, the image half of MixPro (arXiv:2304.12043): random cells as large as several tokens of a ViT.

    x' = x in own cells, x[partner] elsewhere,   ceil(T lam) of the T = ceil(H / P) ceil(W / P) cells are own

lam ~ Beta(alpha, alpha). With P a multiple of the ViT's token every token comes from one image alone. Rounding up
favours the own image: with 16 cells and alpha 1 its mean share is 0.53.

``per="batch"`` is the published code, OpenMixup's (the authors' repository has no mixing code): one lam for the
batch, hence one number of own cells, but different cells in every sample. Departures: that code knows square
images alone; it labels with the share of the cells, c / T, which differs from that of the pixels where cells do
not tile the image (64 pixels in 224). The default here counts pixels; ``reference_labels=True`` counts cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mixaug.batch import Batch
from mixaug.checks import check_flag
from mixaug.draws import Draws
from mixaug.labeling import Area
from mixaug.ops.cells import mix_cells, patch_sides, patch_size_option
from mixaug.ops.masks import cells_to_pixels, grid_size, random_cells, share_of_cells
from mixaug.plan import MaskBlend, Plan
from mixaug.policy import Policy, SharedOptions
from mixaug.registry import register

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["MaskMix", "maskmix"]


def maskmix(
    images: Tensor,
    partner: Tensor,
    cells: Tensor,
    patch_size: int | Sequence[int],
    *,
    out: Tensor | None = None,
    inplace: bool = False,
) -> tuple[Tensor, Tensor]:
    """Copy the partner's pixels into the cells that are not the sample's own. Differentiable.

    Args:
        images: (B, C, H, W), or with one or three spatial axes; floating point or uint8.
        partner: (B,) int64.
        cells: (B, 1, *grid), or (1, 1, *grid) for all, bool, True where the own image shows; the grid has
            ceil(side / patch) cells along each axis. Random ones come from ``random_cells``.
        patch_size: pixels of a cell, one number or one for each axis.
        out: tensor like ``images`` that receives the result and does not overlap it.
        inplace: write the result into ``images``.

    Returns:
        Mixed images, dtype and memory format of ``images``, and lam (B,) float32, the share of own pixels.

    Raises:
        ValueError: shapes that do not fit, partners outside the batch.
        TypeError: another dtype.
    """
    return mix_cells("maskmix", images, partner, cells, patch_size, out, inplace)


@register(
    "maskmix",
    paper="MixPro: Data Augmentation with MaskMix and Progressive Attention Labeling for Vision Transformer, ICLR 2023",
    arxiv="2304.12043",
    family="masks",
)
class MaskMix(Policy):
    """Show the partner in random cells of a few tokens each; the label share counts the pixels.

    Args:
        alpha: lam ~ Beta(alpha, alpha); 1.0 is the authors' value.
        patch_size: pixels of a cell, one number or one for each axis. None takes the smallest power of two that
            is not below a quarter of the image's shortest side: 8 at 32 pixels, 16 at 64, 64 (the paper's) at 224.
        reference_labels: weigh labels by the number of cells, as OpenMixup does, not of pixels; needs
            ``labeling="area"``.
        ratio, pairing, labeling, per: see :class:`mixaug.Policy`. With ``per="batch"`` lam alone is shared, the
            cells are drawn for every sample. ``labeling="ratio"`` keeps the drawn lam.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        patch_size: int | Sequence[int] | None = None,
        reference_labels: bool = False,
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(alpha=alpha, **shared)
        self.reference_labels = check_flag(type(self).__name__, "reference_labels", reference_labels)
        if self.reference_labels and not isinstance(self.labeling, Area):
            raise ValueError(
                f"MaskMix counts cells with reference_labels=True; it cannot use labeling={shared.get('labeling')!r}"
            )
        self.patch_size = patch_size_option(type(self).__name__, patch_size, spatial=self.spatial)

    def check(self, batch: Batch) -> None:
        super().check(batch)
        if self.patch_size is not None:
            patch_sides(type(self).__name__, self.patch_size, batch.size)

    def sample(self, batch: Batch, partner: Tensor, draws: Draws) -> Plan:
        size = batch.size
        # bit_length: the smallest power of two that is not below a quarter of the side, 1 for tiny images.
        automatic = 1 << (-(-min(size) // 4) - 1).bit_length()
        sides = patch_sides(type(self).__name__, automatic if self.patch_size is None else self.patch_size, size)
        lam = self.ratio(draws)
        scores = draws.uniform(shape=grid_size(sides, size), per="sample" if self.per == "batch" else None)
        cells = random_cells(scores, lam).squeeze(1)
        weights = None
        if self.reference_labels:
            counted = cells.flatten(1).float().mean(1)
            weights = torch.stack([counted, 1 - counted], dim=1).expand(len(batch), 2)
        return MaskBlend(
            partner=partner,
            lam=lam.float(),
            weights=weights,
            size=size,
            mask=cells_to_pixels(cells, sides, size),
            share=share_of_cells(cells, sides, size),
        )
