"""GridMix (Pattern Recognition 2021, no arXiv id): a lattice of holes that show the partner.

    x' = x[partner] in the holes, x elsewhere,   lam' = share of pixels outside the holes

A crop of random area and aspect is laid on the image and divided into n_holes columns of cells, with as many rows
of the same cells as fit. The upper left part of every cell, sqrt(1 - lam) of its sides and at least one pixel less
than the cell, is a hole. lam ~ Beta(alpha, alpha) is only loosely the own share; lam' counts the pixels.

This is the method of the public code (the GridMixup package and OpenMixup's copy of it). The paper of this name
also predicts the label of every cell with a second head; that is not part of it.

Departures, all where the code's own draws leave the image (half of them, with OpenMixup's ranges): the crop is
clamped to the image, where the code's negative start indices wrap around and lose holes; n_holes is clamped to
half of the crop's width and to at least one, where the code raises; a cell is at least one pixel high. Height and
width are never swapped. ``per="batch"`` is one lattice for all, as in the code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mixaug.batch import Batch
from mixaug.checks import check_images, check_out, check_partner, check_range, check_share
from mixaug.draws import Draws
from mixaug.ops.blend import blend_mask
from mixaug.ops.layout import wide_dtype
from mixaug.plan import MaskBlend, Plan
from mixaug.policy import Policy, SharedOptions
from mixaug.registry import register

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["GridMix", "gridmix", "gridmix_mask"]


def gridmix_mask(
    lam: Tensor,
    size: Sequence[int],
    *,
    n_holes: Tensor,
    hole_aspect: Tensor,
    crop_area_ratio: Tensor,
    crop_aspect_ratio: Tensor,
    u_y: Tensor,
    u_x: Tensor,
) -> tuple[Tensor, Tensor]:
    """Where the own image shows: everywhere but in the holes.

    All draws are (R,); float64 gives the reference's integers exactly.

    Args:
        lam: in [0, 1]; a hole has sides sqrt(1 - lam) times those of its cell.
        size: (H, W).
        n_holes: int64, cells along the width of the crop; clamped to 1, ..., width of the crop // 2.
        hole_aspect: height by width of a cell, positive.
        crop_area_ratio: area of the crop by area of the image, in [0, 1].
        crop_aspect_ratio: height by width of the crop, positive. The crop is clamped to the image.
        u_y, u_x: place of the crop, in [0, 1): 0 is the upper left.

    Returns:
        Mask (R, 1, H, W) bool, and lam (R,) float32, its mean.

    Raises:
        ValueError: draws of other shapes, a size that is not (H, W).
    """
    floats = {
        "lam": lam,
        "hole_aspect": hole_aspect,
        "crop_area_ratio": crop_area_ratio,
        "crop_aspect_ratio": crop_aspect_ratio,
        "u_y": u_y,
        "u_x": u_x,
    }
    for name, value in floats.items():
        if value.shape != lam.shape or value.ndim != 1 or not value.is_floating_point():
            raise ValueError(
                f"gridmix_mask expects {name} {tuple(lam.shape)} floating point like lam, "
                f"got {tuple(value.shape)} {value.dtype}"
            )
    if n_holes.shape != lam.shape or n_holes.dtype != torch.int64:
        raise ValueError(
            f"gridmix_mask expects n_holes {tuple(lam.shape)} int64, got {tuple(n_holes.shape)} {n_holes.dtype}"
        )
    if len(size) != 2:
        raise ValueError(f"gridmix_mask expects size (H, W), got {tuple(size)}")
    height, width = size
    area = (height * width * crop_area_ratio).floor()
    crop_w = (area / crop_aspect_ratio).sqrt().long()
    crop_h = (crop_w * crop_aspect_ratio).long().clamp(1, height)
    crop_w = crop_w.clamp(1, width)
    columns = torch.minimum(n_holes, crop_w // 2).clamp(min=1)
    cell_w = (crop_w + columns - 1) // columns
    cell_h = (cell_w * hole_aspect).long().clamp(min=1)
    root = (1 - lam).sqrt()
    rows = _holes(height, crop_h, cell_h, root, u_y)
    cols = _holes(width, crop_w, cell_w, root, u_x)
    holes = rows.sum(1) * cols.sum(1)
    total = height * width
    own = ~(rows[:, None, :, None] & cols[:, None, None, :])
    return own, ((total - holes).to(wide_dtype(holes.device)) / total).float()


def _holes(side: int, crop: Tensor, cell: Tensor, root: Tensor, unit: Tensor) -> Tensor:
    """(R, side) bool: which lines along one axis hold holes."""
    start = ((side - crop) * unit).long()
    hole = torch.minimum((cell * root).long().clamp(min=1), cell - 1)
    place = torch.arange(side, device=crop.device) - start[:, None]
    return (place >= 0) & (place < crop[:, None]) & (place.remainder(cell[:, None]) < hole[:, None])


def gridmix(
    images: Tensor,
    partner: Tensor,
    lam: Tensor,
    *,
    n_holes: Tensor,
    hole_aspect: Tensor,
    crop_area_ratio: Tensor,
    crop_aspect_ratio: Tensor,
    u_y: Tensor,
    u_x: Tensor,
    out: Tensor | None = None,
    inplace: bool = False,
) -> tuple[Tensor, Tensor]:
    """Show each partner through a lattice of holes in each sample. Differentiable.

    Args:
        images: (B, C, H, W) floating point or uint8.
        partner: (B,) int64.
        lam, n_holes, hole_aspect, crop_area_ratio, crop_aspect_ratio, u_y, u_x: (B,), or (1,) for all, see
            :func:`gridmix_mask`.
        out: tensor like ``images`` that receives the result and does not overlap it.
        inplace: write the result into ``images``.

    Returns:
        Mixed images, dtype and memory format of ``images``, and lam (B,) float32, the share of pixels kept.

    Raises:
        ValueError: shapes that do not fit, lam outside [0, 1], partners outside the batch.
        TypeError: another dtype.
    """
    check_images("gridmix", images, (2,))
    check_partner("gridmix", partner, images.shape[0])
    check_share("gridmix", "lam", lam, images.shape[0])
    check_out("gridmix", images, out, inplace)
    mask, kept = gridmix_mask(
        lam,
        images.shape[2:],
        n_holes=n_holes,
        hole_aspect=hole_aspect,
        crop_area_ratio=crop_area_ratio,
        crop_aspect_ratio=crop_aspect_ratio,
        u_y=u_y,
        u_x=u_x,
    )
    mixed = blend_mask(images, partner, mask.squeeze(1), out=out, inplace=inplace)
    return mixed, kept.expand(images.shape[0])


@register(
    "gridmix",
    paper="GridMix: Strong regularization through local context mapping, Pattern Recognition 2021",
    family="masks",
)
class GridMix(Policy):
    """Show the partner through a lattice of holes; the label share is the area really kept.

    The ranges are those of OpenMixup's configs, the same for all data sets. Images (B, C, H, W) only.

    Args:
        alpha: lam ~ Beta(alpha, alpha); OpenMixup takes 0.2 for ResNets and 1.0 for vision transformers.
        n_holes: (fewest, most) holes along the width of the crop, at least 1.
        hole_aspect: range of the height by the width of a cell, positive.
        crop_area: range of the area of the crop as a share of the image, in (0, 1].
        crop_aspect: range of the height by the width of the crop, positive.
        ratio, pairing, labeling, per: see :class:`mixaug.Policy`; ``labeling="ratio"`` keeps the drawn lam.

    Raises:
        ValueError: an option out of range.
    """

    spatial = (2,)

    def __init__(
        self,
        alpha: float = 1.0,
        n_holes: tuple[int, int] = (2, 6),
        hole_aspect: tuple[float, float] = (1.0, 1.0),
        crop_area: tuple[float, float] = (0.5, 1.0),
        crop_aspect: tuple[float, float] = (0.5, 2.0),
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(alpha=alpha, **shared)
        fewest, most = check_range("GridMix", "n_holes", n_holes, 1, 2**16)
        if fewest % 1 or most % 1:
            raise ValueError(f"GridMix expects n_holes as whole numbers (fewest, most), got {n_holes!r}")
        self.n_holes = (int(fewest), int(most))
        self.hole_aspect = check_range("GridMix", "hole_aspect", hole_aspect, positive=True)
        self.crop_area = check_range("GridMix", "crop_area", crop_area, 0, 1, positive=True)
        self.crop_aspect = check_range("GridMix", "crop_aspect", crop_aspect, positive=True)

    def sample(self, batch: Batch, partner: Tensor, draws: Draws) -> Plan:
        lam = self.ratio(draws)
        mask, kept = gridmix_mask(
            lam,
            batch.size,
            n_holes=draws.integers(self.n_holes[0], self.n_holes[1] + 1),
            hole_aspect=draws.uniform(*self.hole_aspect),
            crop_area_ratio=draws.uniform(*self.crop_area),
            crop_aspect_ratio=draws.uniform(*self.crop_aspect),
            u_y=draws.uniform(),
            u_x=draws.uniform(),
        )
        return MaskBlend(partner=partner, lam=lam.float(), size=batch.size, mask=mask.squeeze(1), share=kept)
