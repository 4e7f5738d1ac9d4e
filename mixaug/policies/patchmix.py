"""PatchMix (Patch Mixing, arXiv:2306.17848): random patches of a regular grid show the partner.

    x' = x where the patch is own, x[partner] elsewhere,   k = floor(G (1 - lam)) of the G patches are the partner's

lam ~ Beta(alpha, alpha); the label share counts the pixels, which is 1 - k / G where patches tile the image.

The authors released no code: the distribution of lam and the size of the patches are options here. The golden
files come from a method of the same rule ("What Makes a Good Data Augmentation in Knowledge Distillation",
NeurIPS 2022), whose lambda is the share of the partner, whose patches always have 4 pixels, and which draws one
set of patches for all samples: ``per="batch"``. Where patches do not tile the image, that code fails; here the
last ones are cut off at the border. (Kornia's PatchMix, one square for each sample, is another method.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from mixaug.batch import Batch
from mixaug.draws import Draws
from mixaug.ops.cells import mix_cells, patch_sides, patch_size_option
from mixaug.ops.masks import cells_to_pixels, grid_size, random_cells, share_of_cells
from mixaug.plan import MaskBlend, Plan
from mixaug.policy import Policy, SharedOptions
from mixaug.registry import register

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["PatchMix", "patchmix"]


def patchmix(
    images: Tensor,
    partner: Tensor,
    patches: Tensor,
    patch_size: int | Sequence[int],
    *,
    out: Tensor | None = None,
    inplace: bool = False,
) -> tuple[Tensor, Tensor]:
    """Copy the partner's pixels into the patches that are not the sample's own. Differentiable.

    Args:
        images: (B, C, H, W), or with one or three spatial axes; floating point or uint8.
        partner: (B,) int64.
        patches: (B, 1, *grid), or (1, 1, *grid) for all, bool, True where the own image shows; the grid has
            ceil(side / patch) patches along each axis. Random ones come from ``random_cells``.
        patch_size: pixels of a patch, one number or one for each axis.
        out: tensor like ``images`` that receives the result and does not overlap it.
        inplace: write the result into ``images``.

    Returns:
        Mixed images, dtype and memory format of ``images``, and lam (B,) float32, the share of own pixels.

    Raises:
        ValueError: shapes that do not fit, partners outside the batch.
        TypeError: another dtype.
    """
    return mix_cells("patchmix", images, partner, patches, patch_size, out, inplace)


@register(
    "patchmix",
    paper="Hardwiring ViT Patch Selectivity into CNNs using Patch Mixing, 2023",
    arxiv="2306.17848",
    family="masks",
)
class PatchMix(Policy):
    """Show the partner in random patches of a regular grid; the label share counts the pixels.

    Args:
        alpha: lam ~ Beta(alpha, alpha); 1.0, uniform, is a suggestion: the authors name none.
        patch_size: pixels of a patch, one number or one for each axis. None takes the largest power of two that
            fits eight times into the image's shortest side: 4 at 32 pixels, 8 at 64, 16 (a ViT's token) at 224.
        ratio, pairing, labeling, per: see :class:`mixaug.Policy`; ``labeling="ratio"`` keeps the drawn lam.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        patch_size: int | Sequence[int] | None = None,
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(alpha=alpha, **shared)
        self.patch_size = patch_size_option("PatchMix", patch_size, spatial=self.spatial)

    def check(self, batch: Batch) -> None:
        super().check(batch)
        if self.patch_size is not None:
            patch_sides("PatchMix", self.patch_size, batch.size)

    def sample(self, batch: Batch, partner: Tensor, draws: Draws) -> Plan:
        size = batch.size
        # bit_length: the largest power of two that is not above an eighth of the side, 1 for tiny images.
        automatic = 1 << max(0, (min(size) // 8).bit_length() - 1)
        sides = patch_sides("PatchMix", automatic if self.patch_size is None else self.patch_size, size)
        lam = self.ratio(draws)
        patches = random_cells(draws.uniform(shape=grid_size(sides, size)), lam).squeeze(1)
        return MaskBlend(
            partner=partner,
            lam=lam.float(),
            size=size,
            mask=cells_to_pixels(patches, sides, size),
            share=share_of_cells(patches, sides, size),
        )
