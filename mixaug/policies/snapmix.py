"""SnapMix (arXiv:2012.04846): paste a box of the partner into another box, weigh the labels by class activation.

    x' = x[partner] in box P, resized to box D, inside D;  x outside
    w_own = 1 - S inside D,   w_partner = S[partner] inside P

S is the class activation map of the true label, of sum 1. D and P are CutMix boxes of two independent draws
lam ~ Beta(alpha, alpha). The weights do not sum to one: a box over the background takes little of the own label and
gives little of the partner's. Samples of the same label count both weights for each of the two, so up to 2; where a
map is constant the area of D decides; where a box is empty the sample stays as it is, with weights 1 and 0.

``per="batch"`` and the clean pass in training mode (batch statistics see the clean images as well) are the authors'
code. Departures: a map is taken as constant by its range, not only where rounding left exact zeros; labels (B, K) are
the same where their rows are equal.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import torch
from torch import Tensor

from mixaug.batch import Batch
from mixaug.checks import check_boxes, check_choice, check_images, check_labels, check_out, check_partner
from mixaug.draws import Draws
from mixaug.labeling import ClassActivation
from mixaug.ops.activation import check_activation_maps, check_not_negative
from mixaug.ops.boxes import area_kept, cutmix_boxes, sum_inside
from mixaug.ops.layout import (
    deliver,
    prefers_slices,
    reads_freely,
    single_precision,
)
from mixaug.ops.resample import Sources, cast_pixels, paste_patches, paste_sampled
from mixaug.plan import Paste, Plan, class_planes
from mixaug.policy import Policy, SharedOptions
from mixaug.registry import register
from mixaug.signals import Mode

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["SnapMix", "snapmix", "snapmix_weights"]


def snapmix(
    images: Tensor,
    partner: Tensor,
    boxes: Tensor,
    partner_boxes: Tensor,
    cam: Tensor,
    labels: Tensor | None = None,
    *,
    out: Tensor | None = None,
    inplace: bool = False,
) -> tuple[Tensor, Tensor]:
    """Paste a box of each partner, resized, into a box of each sample. Differentiable.

    Half precision and uint8 are interpolated in float32; uint8 is rounded half to even.

    Args:
        images: (B, C, H, W) floating point or uint8.
        partner: (B,) int64.
        boxes: (B, 4), or (1, 4) for all, int64 y0, x0, y1, x1, half open, clipped: where to paste.
        partner_boxes: the same of the partners: what to paste, resized as ``torch.nn.functional.interpolate`` does it
            with ``mode="bilinear", align_corners=True``.
        cam, labels: see :func:`snapmix_weights`.
        out: tensor like ``images`` that receives the result and does not overlap it.
        inplace: write the result into ``images``.

    Returns:
        Mixed images, dtype and memory format of ``images``, and weights (B, 2) float32. Where one of the two boxes is
        empty nothing is pasted and the weights are 1 and 0.

    Raises:
        ValueError: shapes that do not fit, boxes outside the image, partners outside the batch, negative maps.
        TypeError: another dtype.
    """
    check_images("snapmix", images, (2,))
    size = tuple(images.shape[2:])
    check_partner("snapmix", partner, images.shape[0])
    check_boxes("snapmix", boxes, images.shape[0], size)
    check_boxes("snapmix", partner_boxes, images.shape[0], size, "partner_boxes")
    check_labels("snapmix", labels, images)
    check_out("snapmix", images, out, inplace)
    check_activation_maps("snapmix", cam, (images.shape[0], *size))
    check_not_negative("snapmix", cam)
    weights = _weights(cam, partner, boxes, partner_boxes, labels)
    targets = pasted_boxes(boxes, partner_boxes)
    return paste_box(images, partner, targets, partner_boxes, size, out=out, inplace=inplace), weights


def snapmix_weights(
    cam: Tensor, partner: Tensor, boxes: Tensor, partner_boxes: Tensor, labels: Tensor | None = None
) -> Tensor:
    """Share of the class activation that stays of the sample and that comes with the partner's box.

    Args:
        cam: (B, H, W) floating point, >= 0, of any scale, at the size of the images. A row with NaN, infinity or
            nothing but zeros says nothing: the area of the box takes its place.
        partner: (B,) int64.
        boxes, partner_boxes: (B, 4) or (1, 4) int64, see :func:`snapmix`; the same twice for a plain CutMix.
        labels: (B,) class ids or (B, K) rows of targets. Samples whose partner has the same label count the sum of
            both weights for each of the two; None leaves this out.

    Returns:
        (B, 2) float32 for the sample and its partner, each in [0, 1], or [0, 2] for the same label.

    Raises:
        ValueError: shapes that do not fit, boxes outside the map, partners outside the batch, negative maps.
        TypeError: maps that are not floating point.
    """
    check_activation_maps("snapmix_weights", cam, None)
    check_not_negative("snapmix_weights", cam)
    check_partner("snapmix_weights", partner, cam.shape[0])
    check_boxes("snapmix_weights", boxes, cam.shape[0], cam.shape[1:])
    check_boxes("snapmix_weights", partner_boxes, cam.shape[0], cam.shape[1:], "partner_boxes")
    check_labels("snapmix_weights", labels, cam)
    return _weights(cam, partner, boxes, partner_boxes, labels)


def pasted_boxes(boxes: Tensor, partner_boxes: Tensor) -> Tensor:
    """``boxes``, empty also where the partner's box is: (R, 4), R the larger number of rows of the two."""
    empty = (partner_boxes[:, 2:] <= partner_boxes[:, :2]).any(1, keepdim=True)
    return boxes.masked_fill(empty, 0)


def paste_box(
    images: Tensor,
    partner: Tensor,
    boxes: Tensor,
    partner_boxes: Tensor,
    size: Sequence[int],
    *,
    nearest: bool = False,
    out: Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    """The images of :func:`snapmix` without checks, for any tensor (B, ..., H, W).

    Args:
        boxes: from :func:`pasted_boxes`.
        nearest: copy the nearest pixel, of any dtype, instead of interpolating.
    """
    # Two bodies give one result: on a CPU slices for large images and for one box for all, index arithmetic elsewhere.
    shared = boxes.shape[0] == partner_boxes.shape[0] == 1
    if prefers_slices(images) or (shared and reads_freely(images)):
        return _paste_slices(images, partner, boxes, partner_boxes, nearest, out, inplace)
    return deliver(_paste_gather(images, partner, boxes, partner_boxes, size, nearest), images, out, inplace)


def _weights(cam: Tensor, partner: Tensor, boxes: Tensor, partner_boxes: Tensor, labels: Tensor | None) -> Tensor:
    maps = single_precision(cam)
    boxes = pasted_boxes(boxes, partner_boxes)
    total = maps.sum((1, 2))
    total = torch.where((total > 0) & total.isfinite(), total, torch.full_like(total, torch.nan))
    own = 1 - (sum_inside(maps, boxes) / total).clamp(0, 1)
    if partner_boxes.shape[0] == 1:
        inside = sum_inside(maps, partner_boxes).index_select(0, partner)
    else:
        inside = sum_inside(maps.index_select(0, partner), partner_boxes)
    other = (inside / total.index_select(0, partner)).clamp(0, 1)
    if labels is not None:
        same = (labels == labels.index_select(0, partner)).reshape(len(labels), -1).all(1)
        both = own + other
        own, other = torch.where(same, both, own), torch.where(same, both, other)
    kept = area_kept(boxes, maps.shape[1:])
    # The test comes after the sums: with one constant map or two, the area stands for both labels, once.
    own = torch.where(own.isnan(), kept, own)
    other = torch.where(other.isnan(), 1 - kept, other)
    pasted = kept < 1
    own = torch.where(pasted, own, torch.ones_like(own))
    return torch.stack([own, torch.where(pasted, other, torch.zeros_like(other))], dim=1).float()


def _paste_gather(
    images: Tensor, partner: Tensor, boxes: Tensor, partner_boxes: Tensor, size: Sequence[int], nearest: bool
) -> Tensor:
    square = size[0] == size[1]

    def sources_of(axes: Any, side: int) -> tuple[Tensor, Tensor, Tensor]:
        low, high = boxes[:, :2][:, axes], boxes[:, 2:][:, axes]
        ends = partner_boxes.unflatten(1, (2, 2))[:, :, axes].movedim(1, -1)
        place = torch.arange(side, device=images.device) - low[..., None]
        return _sources(place, (high - low)[..., None], ends, side, nearest, images.dtype)

    # Sides of one length are computed together: on a GPU the number of operations is the cost.
    both = sources_of(slice(None), size[0]) if square else None

    def sources(d: int) -> Sources:
        lower, upper, fraction = sources_of(d, size[d]) if both is None else [part[:, d] for part in both]
        return lower, upper, None if nearest else fraction

    return paste_sampled(images, partner, boxes, size, sources)


def _paste_slices(
    images: Tensor,
    partner: Tensor,
    boxes: Tensor,
    partner_boxes: Tensor,
    nearest: bool,
    out: Tensor | None,
    inplace: bool,
) -> Tensor:
    targets, crops = boxes.tolist(), partner_boxes.tolist()
    # One box of two may serve the whole batch.
    count = max(len(targets), len(crops))
    targets = [targets[row % len(targets)] for row in range(count)]

    def patch_of(some: Tensor, row: int) -> Tensor | None:
        return _resized(some, crops[row % len(crops)], targets[row], nearest)

    return paste_patches(images, partner, [_window(box) for box in targets], patch_of, out, inplace)


def _window(corners: list[int]) -> tuple[Any, ...]:
    return (..., slice(corners[0], corners[2]), slice(corners[1], corners[3]))


def _resized(images: Tensor, source: list[int], target: list[int], nearest: bool) -> Tensor | None:
    """The box ``source`` of (..., H, W) at the size of the box ``target``; None where one of them is empty."""
    size = (target[2] - target[0], target[3] - target[1])
    crop = images[_window(source)]
    if min(size) < 1 or not crop.numel():
        return None
    if nearest:
        for axis, length in zip((-2, -1), size, strict=True):
            ends = torch.tensor([[0, crop.shape[axis]]], device=images.device)
            place = torch.arange(length, device=images.device)[None]
            lines, _, _ = _sources(place, torch.tensor([[length]]), ends, crop.shape[axis], True, images.dtype)
            crop = crop.index_select(axis, lines[0])
        return crop
    stacked = crop.reshape(-1, 1, *crop.shape[-2:]) if crop.ndim != 4 else crop
    # torch's kernel computes in the dtype that it is given.
    exact = images.dtype in (torch.float32, torch.float64)
    values = torch.nn.functional.interpolate(
        stacked if exact else stacked.float(), size, mode="bilinear", align_corners=True
    )
    return cast_pixels(values, images.dtype).reshape(*images.shape[:-2], *size)


def _sources(
    place: Tensor, length: Tensor, ends: Tensor, side: int, nearest: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Where an axis of ``side`` pixels is read so that the ends of two boxes meet, by torch's own formulas.

    Args:
        place: (R, ..., N) int64 pixel of the box that is filled, any integer outside of it.
        length: (R, ..., 1) int64 sides of that box.
        ends: (R, ..., 2) int64 first and past-the-last pixel of the box that is read.

    Returns:
        Lower and upper pixel (R, ..., N) int64, in the image everywhere, and the weight of the upper one.
    """
    low, last = ends[..., :1], (ends[..., 1:] - 1 - ends[..., :1]).clamp(min=0)
    length = length.clamp(min=1)
    place = torch.minimum(place.clamp(min=0), length - 1)
    real = torch.float64 if dtype == torch.float64 else torch.float32
    # A side of one pixel reads the first pixel of the other box, a box of one pixel fills any side.
    position = place.to(real) * (last.to(real) / (length - 1).clamp(min=1).to(real))
    if nearest:
        lines = (low + torch.minimum((position + 0.5).long(), last)).clamp(max=side - 1)
        return lines, lines, position
    lower = torch.minimum(position.long(), last)
    upper = torch.minimum(lower + 1, last)
    weight = (position - lower).clamp(0, 1)
    return (low + lower).clamp(max=side - 1), (low + upper).clamp(max=side - 1), weight


@dataclass(frozen=True, kw_only=True)
class SnapPaste(Paste):
    """A box of the partner, resized, inside another box; the own pixels outside.

    Label maps are resized by nearest neighbour: tensors of any integer dtype but uint8, and uint8 tensors without a
    channel axis.

    Attributes:
        boxes: where to paste, from :func:`pasted_boxes`.
        partner_boxes: (R, 4) int64, what to paste.
    """

    partner_boxes: Tensor

    def mix(self, tensor: Tensor, *, out: Tensor | None = None, inplace: bool = False) -> Tensor:
        picture = tensor.is_floating_point() or (tensor.dtype == torch.uint8 and tensor.ndim > 1 + len(self.size))
        return self._paste(tensor, not picture, out=out, inplace=inplace)

    def partner_shown(self, maps: Tensor) -> Tensor:
        if self.partner_boxes.shape[0] == 1:
            shown = sum_inside(maps, self.partner_boxes).index_select(0, self.partner)
        else:
            shown = sum_inside(maps.index_select(0, self.partner), self.partner_boxes)
        # Where there is no place to paste nothing is shown.
        return shown.masked_fill((self.boxes[:, 2:] <= self.boxes[:, :2]).any(1), 0)

    def mix_label_map(self, label_map: Tensor, num_classes: int) -> Tensor:
        return class_planes(self._paste(label_map, True), num_classes)

    def _paste(self, tensor: Tensor, nearest: bool, *, out: Tensor | None = None, inplace: bool = False) -> Tensor:
        return paste_box(
            tensor, self.partner, self.boxes, self.partner_boxes, self.size, nearest=nearest, out=out, inplace=inplace
        )


@register(
    "snapmix",
    paper="SnapMix: Semantically Proportional Mixing for Augmenting Fine-grained Data, AAAI 2021",
    arxiv="2012.04846",
    family="guided by the model",
)
class SnapMix(Policy):
    """Paste a box of the partner, resized, into another box; class activation in the boxes weighs the labels.

    Args:
        alpha: both lam ~ Beta(alpha, alpha), one for each box; 5.0 is the paper's value for fine-tuning, 1.0 the
            authors' default otherwise.
        mode: how the model stands during the pass over the unmixed images that the maps are taken from: ``"train"``
            as in the authors' code, so that batch statistics count them, or ``"eval"``.
        ratio, pairing, per: see :class:`mixaug.Policy`; two independent draws of ``ratio``. The authors draw the two
            boxes once per batch.
        labeling: None for ``"cam"``, see :class:`mixaug.labeling.ClassActivation`; ``"area"`` (of the filled box) and
            ``"ratio"`` (its lam) need nothing of the model.

    Raises:
        ValueError: an option out of range; when mixing, a model without a class activation map.
    """

    needs = frozenset({"cam"})
    spatial = (2,)
    shared_defaults: ClassVar[SharedOptions] = {"labeling": None, "per": "batch"}  # type: ignore[typeddict-item]

    def __init__(
        self,
        alpha: float = 5.0,
        mode: Mode = "train",
        **shared: Unpack[SharedOptions],
    ) -> None:
        check_choice("SnapMix", "mode", mode, get_args(Mode))
        # The name stands for the maps of this policy's own mode.
        labeling = shared.get("labeling")
        if labeling is None or (isinstance(labeling, str) and labeling == "cam"):
            shared["labeling"] = ClassActivation(mode)
        super().__init__(alpha=alpha, **shared)
        self.mode: Mode = mode
        # The images need nothing of the model: another labeling frees the policy of it.
        self.needs = self.labeling.needs

    def sample(self, batch: Batch, partner: Tensor, draws: Draws) -> Plan:
        size = batch.size
        lam = self.ratio(draws)
        boxes = cutmix_boxes(lam, draws.pixels(size), size)
        partner_boxes = cutmix_boxes(self.ratio(draws), draws.pixels(size), size)
        return SnapPaste(
            partner=partner,
            lam=lam.float(),
            size=size,
            boxes=pasted_boxes(boxes, partner_boxes),
            partner_boxes=partner_boxes,
        )


def __getattr__(name: str) -> Any:
    if name != "ActivationShare":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        "mixaug.policies.snapmix.ActivationShare is now mixaug.labeling.ClassActivation, or labeling='cam'; the old "
        "name goes in the next release",
        DeprecationWarning,
        stacklevel=2,
    )
    return ClassActivation
