"""ResizeMix (arXiv:2012.11101): shrink the whole partner and paste it into the sample.

    x' = resize(x[partner]) inside the box, x outside,   lam' = share of pixels outside

The box has sides int(tau H) and int(tau W), a centre uniform over the pixels, and is clipped at the border; the
partner is squeezed into what is left, so nothing of it is lost. No code of the authors is known. How tau is drawn:

    "uniform"  tau ~ Uniform(0.1, 0.8), the paper's rule
    "beta"     tau ~ Beta(alpha, alpha); a draw outside (0.1, 0.8) is replaced by a uniform one within: OpenMixup's
               configs
    "area"     1 - tau^2 = 0.1 + 0.7 Beta(alpha, alpha): mmpretrain; the own area, not the side, is in the scope

Departures: OpenMixup swaps height and width and returns a transposed mask; here images need not be square. A box
below 2 pixels is empty, where that code fails: the sample then stays as it is, with weight 1. With one or three
spatial axes the same holds for every axis. ``per="batch"`` is one box for all, as in both codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from mixaug.batch import Batch
from mixaug.checks import check_boxes, check_choice, check_images, check_out, check_partner, check_range
from mixaug.draws import Draws
from mixaug.ops.boxes import area_kept, centred_boxes, shares_of_sides
from mixaug.ops.layout import (
    deliver,
    prefers_slices,
    reads_freely,
    wide_dtype,
)
from mixaug.ops.resample import Sources, cast_pixels, paste_patches, paste_sampled
from mixaug.plan import Paste, Plan, class_planes
from mixaug.policy import Policy
from mixaug.registry import register

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from mixaug.shared_options import TakesLabeling, TakesPairing, TakesPartners, TakesPer

    class Offered(TakesPairing, TakesLabeling, TakesPer, TakesPartners, total=False):
        """The shared options without those that ``not_offered`` names."""


__all__ = ["ResizeMix", "resizemix", "resizemix_boxes"]

#: "bilinear_corners" is torch's ``align_corners=True``: the corner pixels of the patch are those of the image.
Interpolation = Literal["nearest", "bilinear", "bilinear_corners"]
INTERPOLATIONS = ("nearest", "bilinear", "bilinear_corners")
Rule = Literal["uniform", "beta", "area"]
RULES = ("uniform", "beta", "area")


def resizemix_boxes(tau: Tensor, centers: Tensor, size: Sequence[int]) -> Tensor:
    """Boxes of sides tau times the image's around given centres, clipped to the image.

    Args:
        tau: (R,) floating point in [0, 1]; float64 gives the reference's integers exactly.
        centers: (R, D) int64 pixels: y, x for images.
        size: the D spatial sizes.

    Returns:
        (R, 2 D) int64 boxes, lower corners first, half open. Sides are even before clipping, and a side below
        2 pixels gives an empty box.

    Raises:
        ValueError: centers that do not fit tau and size.
    """
    if tau.ndim != 1 or centers.shape != (tau.shape[0], len(size)) or centers.dtype != torch.int64:
        raise ValueError(
            f"resizemix_boxes expects centers ({tau.shape[0]}, {len(size)}) int64 for tau {tuple(tau.shape)} and "
            f"size {tuple(size)}, got {tuple(centers.shape)} {centers.dtype}"
        )
    tau = tau.to(wide_dtype(tau.device))
    return centred_boxes(centers, shares_of_sides(tau, size), size)


def resizemix(
    images: Tensor,
    partner: Tensor,
    boxes: Tensor,
    *,
    interpolation: Interpolation = "nearest",
    out: Tensor | None = None,
    inplace: bool = False,
) -> tuple[Tensor, Tensor]:
    """Paste each whole partner, shrunk to the box, into each sample. Differentiable.

    Half precision and uint8 are interpolated in float32; uint8 is rounded half to even.

    Args:
        images: (B, C, H, W), or with one or three spatial axes; floating point or uint8.
        partner: (B,) int64.
        boxes: (B, 4), or (1, 4) for all, int64 y0, x0, y1, x1, half open, clipped. An empty box pastes nothing.
        interpolation: ``"nearest"`` or ``"bilinear"``, pixel for pixel as ``torch.nn.functional.interpolate``
            does it (without ``align_corners`` or ``antialias``), or ``"bilinear_corners"``, with ``align_corners``;
            linear along every axis for other shapes.
        out: tensor like ``images`` that receives the result and does not overlap it.
        inplace: write the result into ``images``.

    Returns:
        Mixed images, dtype and memory format of ``images``, and lam (B,) float32, the share of pixels kept.

    Raises:
        ValueError: shapes that do not fit, boxes outside the image, an unknown interpolation.
        TypeError: another dtype.
    """
    check_images("resizemix", images, (1, 2, 3))
    size = images.shape[2:]
    check_partner("resizemix", partner, images.shape[0])
    check_boxes("resizemix", boxes, images.shape[0], size)
    check_out("resizemix", images, out, inplace)
    check_choice("resizemix", "interpolation", interpolation, INTERPOLATIONS)
    mixed = paste_resized(images, partner, boxes, size, interpolation, out=out, inplace=inplace)
    return mixed, area_kept(boxes, size).expand(images.shape[0])


def paste_resized(
    images: Tensor,
    partner: Tensor,
    boxes: Tensor,
    size: Sequence[int],
    interpolation: Interpolation,
    *,
    out: Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    """:func:`resizemix` without checks, for any tensor (B, ..., *size); any dtype for ``"nearest"``."""
    # Two bodies give one result: on a CPU slices for large images and for one box for all, index arithmetic elsewhere.
    if prefers_slices(images, boxes, partner) or (boxes.shape[0] == 1 and reads_freely(images, boxes, partner)):
        return _paste_slices(images, partner, boxes, len(size), interpolation, out, inplace)
    return deliver(_paste_gather(images, partner, boxes, size, interpolation), images, out, inplace)


def _paste_gather(
    images: Tensor, partner: Tensor, boxes: Tensor, size: Sequence[int], interpolation: Interpolation
) -> Tensor:
    dims = len(size)

    def sources(d: int) -> Sources:
        low, high = boxes[:, d, None], boxes[:, dims + d, None]
        place = torch.arange(size[d], device=images.device) - low
        lower, upper, fraction = _sources(place, high - low, size[d], interpolation, images.dtype)
        return lower, upper, None if interpolation == "nearest" else fraction

    return paste_sampled(images, partner, boxes, size, sources)


def _paste_slices(
    images: Tensor,
    partner: Tensor,
    boxes: Tensor,
    dims: int,
    interpolation: Interpolation,
    out: Tensor | None,
    inplace: bool,
) -> Tensor:
    corners = boxes.tolist()

    def patch_of(some: Tensor, row: int) -> Tensor | None:
        box = corners[row]
        return _shrink(some, box, dims, interpolation) if all(box[d] < box[dims + d] for d in range(dims)) else None

    windows = [(..., *(slice(c[d], c[dims + d]) for d in range(dims))) for c in corners]
    return paste_patches(images, partner, windows, patch_of, out, inplace)


def _shrink(images: Tensor, corners: list[int], dims: int, interpolation: Interpolation) -> Tensor:
    """(..., *size) to the size of a non-empty box."""
    size = tuple(corners[dims + d] - corners[d] for d in range(dims))
    stacked = images if images.ndim == dims + 2 else images.reshape(-1, 1, *images.shape[-dims:])
    # torch's kernel is the fastest, and for bilinear computes in the dtype it is given: half precision and uint8 go
    # through float32. For nearest it reads other pixels in other dtypes, so that float32 alone goes there.
    if interpolation != "nearest":
        mode = ("linear", "bilinear", "trilinear")[dims - 1]
        exact = images.dtype in (torch.float32, torch.float64)
        corners_aligned = interpolation == "bilinear_corners"
        values = torch.nn.functional.interpolate(
            stacked if exact else stacked.float(), size, mode=mode, align_corners=corners_aligned
        )
    elif images.dtype == torch.float32:
        values = torch.nn.functional.interpolate(stacked, size, mode="nearest")
    else:
        values = stacked
        for d, length in enumerate(size):
            axis = stacked.ndim - dims + d
            place = torch.arange(length, device=images.device)[None]
            near, _, _ = _sources(place, torch.tensor([[length]]), stacked.shape[axis], "nearest", images.dtype)
            values = values.index_select(axis, near[0])
    return cast_pixels(values, images.dtype).reshape(*images.shape[:-dims], *size)


def _sources(
    place: Tensor, length: Tensor, side: int, interpolation: Interpolation, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Where an axis of ``side`` pixels is read for ``length`` pixels, by torch's own formulas.

    Args:
        place: (R, N) int64 pixel of the box, any integer outside of it.
        length: (R, 1) int64 sides of the boxes.

    Returns:
        Lower and upper pixel (R, N) int64, in the image everywhere, and the weight of the upper one.
    """
    length = length.clamp(min=1)
    place = torch.minimum(place.clamp(min=0), length - 1)
    # This is in the precision of torch's kernels: exact integers would differ from them by a pixel now and then.
    real = torch.float64 if dtype == torch.float64 else torch.float32
    if interpolation == "nearest":
        # torch rounds the product to float32 even for float64 images.
        near = (place.to(real) * _quotient(side, length.to(real))).float().long().clamp(max=side - 1)
        return near, near, place.to(real)
    if interpolation == "bilinear_corners":
        # A single pixel is the first one of the image.
        position = place.to(real) * _quotient(side - 1, (length - 1).clamp(min=1).to(real))
    else:
        position = ((place.to(real) + 0.5) * _quotient(side, length.to(real)) - 0.5).clamp(min=0)
    lower = position.long().clamp(max=side - 1)
    return lower, (lower + 1).clamp(max=side - 1), (position - lower).clamp(0, 1)


def _quotient(side: int, length: Tensor) -> Tensor:
    # A number divided by a tensor is its product with a reciprocal in torch: rounded twice, 41 / 41 below 1.
    return torch.full_like(length, side) / length


@dataclass(frozen=True, kw_only=True)
class ResizePaste(Paste):
    """The whole partner, shrunk, inside a box; the own pixels outside.

    Label maps are shrunk by nearest neighbour whatever the images got: tensors of any integer dtype but uint8,
    and uint8 tensors without a channel axis.

    Attributes:
        interpolation: ``"nearest"``, ``"bilinear"`` or ``"bilinear_corners"``.
    """

    interpolation: Interpolation

    @property
    def relocates(self) -> bool:
        return True

    def mix(self, tensor: Tensor, *, out: Tensor | None = None, inplace: bool = False) -> Tensor:
        picture = tensor.is_floating_point() or (tensor.dtype == torch.uint8 and tensor.ndim > 1 + len(self.size))
        return paste_resized(
            tensor,
            self.partner,
            self.boxes,
            self.size,
            self.interpolation if picture else "nearest",
            out=out,
            inplace=inplace,
        )

    def partner_shown(self, maps: Tensor) -> Tensor:
        # The box holds the whole partner, however small.
        total = maps.flatten(1).sum(1).index_select(0, self.partner)
        return torch.where(self.area() < 1, total, torch.zeros_like(total))

    def mix_label_map(self, label_map: Tensor, num_classes: int) -> Tensor:
        mixed = paste_resized(label_map, self.partner, self.boxes, self.size, "nearest")
        return class_planes(mixed, num_classes)


@register(
    "resizemix",
    paper="ResizeMix: Mixing Data with Preserved Object Information and True Labels, 2020",
    arxiv="2012.11101",
    family="cut and paste",
)
class ResizeMix(Policy):
    """Paste the whole partner, shrunk, into the sample; the label share is the area really kept.

    Args:
        alpha: concentration of the Beta in the rules ``"beta"`` and ``"area"``; refused in ``"uniform"``.
        rule: how the box is drawn: ``"uniform"`` (side, the paper), ``"beta"`` (side, OpenMixup's configs) or
            ``"area"`` (mmpretrain), see the module.
        scope: (low, high), 0 <= low < high <= 1: the side of the box as a share of the image's, and for ``"area"``
            the own area as a share of the image's; (0.1, 0.8) in the paper and both codes.
        interpolation: ``"nearest"`` (OpenMixup's convolutional configs), ``"bilinear"`` (its transformer configs,
            mmpretrain) or ``"bilinear_corners"`` (RecursiveMix's code).
        pairing, labeling, per: see :class:`mixaug.Policy`; ``labeling="ratio"`` keeps the share before clipping.

    Raises:
        ValueError: an option out of range.
    """

    relocates = True
    not_offered = ("ratio",)

    def __init__(
        self,
        alpha: float = 1.0,
        rule: Rule = "uniform",
        scope: tuple[float, float] = (0.1, 0.8),
        interpolation: Interpolation = "nearest",
        **shared: Unpack[Offered],
    ) -> None:
        super().__init__(alpha=alpha, **shared)
        check_choice("ResizeMix", "rule", rule, RULES)
        check_choice("ResizeMix", "interpolation", interpolation, INTERPOLATIONS)
        if rule == "uniform" and alpha != 1.0:
            raise ValueError(
                f"ResizeMix draws nothing from a Beta with rule='uniform': leave out alpha={alpha!r}, or choose "
                "rule='beta' or 'area'"
            )
        self.rule: Rule = rule
        self.scope = check_range("ResizeMix", "scope", scope, 0, 1, strict=True)
        self.interpolation: Interpolation = interpolation

    def sample(self, batch: Batch, partner: Tensor, draws: Draws) -> Plan:
        low, high = self.scope
        dims = len(batch.size)
        if self.rule == "area":
            lam = low + (high - low) * self.ratio(draws)
            tau = (1 - lam).sqrt() if dims == 2 else (1 - lam) ** (1 / dims)
        else:
            tau = draws.uniform(low, high)
            if self.rule == "beta":
                drawn = self.ratio(draws)
                tau = torch.where((drawn >= low) & (drawn <= high), drawn, tau)
            lam = 1 - tau**dims
        boxes = resizemix_boxes(tau, draws.pixels(batch.size), batch.size)
        return ResizePaste(
            partner=partner, lam=lam.float(), size=batch.size, boxes=boxes, interpolation=self.interpolation
        )
