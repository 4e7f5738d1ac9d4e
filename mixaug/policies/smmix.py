"""SMMix (arXiv:2212.12977): the partner's most attended square covers the least attended one of the sample.

    x' = x[partner] at its square of largest attention, pasted where x has its smallest, x elsewhere
    lam = (g - r^2) / g for r x r of the g tokens,   r uniform between a quarter and three quarters of the side

Attention is that of the last block to every image token, averaged over heads and image tokens, from a pass of the
model over the clean images, in eval mode and without gradient. Three losses: the class loss of the objective with
weights lam and 1 - lam; the fine-grained one,

    [CE(head(mean of own tokens), y) + CE(head(mean of pasted tokens), y[partner])] / 2

with a linear head of its own; and the consistency one, KL of the mixed outputs to softmax(lam z + (1 - lam) z[partner])
of the clean logits z.

Departures from the authors' code: any partner map, odd batches, images and grids of any shape (theirs are square and
multiples of the patch), and r may be drawn for every sample. Their switch with Mixup is a ``OneOf``. OpenMixup reads
the class token's attention instead, and lets gradients flow to the target of the consistency loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixaug.batch import Batch, MixedBatch
from mixaug.checks import (
    check_boxes,
    check_class_ids,
    check_images,
    check_not_negative,
    check_out,
    check_partner,
    check_probability,
    check_range,
)
from mixaug.draws import Draws
from mixaug.ops.boxes import area_kept, box_mask
from mixaug.ops.layout import (
    channels_last_format,
    deliver,
    each_row,
    over_channels,
    pick,
    prefers_slices,
    single_precision,
    wide_dtype,
)
from mixaug.plan import Plan
from mixaug.policy import Policy, SharedOptions, no_change
from mixaug.registry import register
from mixaug.signals import MixedSignals, ModelSignals, backbone
from mixaug.signals.model import IGNORED

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from mixaug.shared_options import TakesLabeling, TakesPairing, TakesPer

    class Offered(TakesPairing, TakesLabeling, TakesPer, total=False):
        """The shared options without those that ``not_offered`` names."""


__all__ = ["SMMix", "pooled_tokens", "smmix", "smmix_boxes", "smmix_consistency", "smmix_windows"]


def smmix_windows(scores: Tensor, region: Tensor, *, largest: bool) -> Tensor:
    """Where the square of extreme sum lies, of equal ones the first in row-major order.

    Args:
        scores: (B, h, w) floating point; values that are not finite count as 0.
        region: (B,) or (1,) int64 side of the square in cells, between 1 and min(h, w).
        largest: the square of the largest sum, or of the smallest.

    Returns:
        (B, 2) int64 row and column of its first cell.

    Raises:
        ValueError: shapes that do not fit.
    """
    if scores.ndim != 3 or region.ndim != 1 or region.shape[0] not in (1, scores.shape[0]):
        raise ValueError(
            f"smmix_windows expects scores (B, h, w) and region (B,) or (1,), got {tuple(scores.shape)} and "
            f"{tuple(region.shape)}"
        )
    rows, columns = scores.shape[1:]
    # float64 holds sums of float32 values exactly, so that equal windows stay equal.
    values = scores.detach().to(wide_dtype(scores.device))
    values = torch.where(values.isfinite(), values, torch.zeros_like(values))
    summed = F.pad(values.cumsum(1).cumsum(2), (1, 0, 1, 0))
    y, x = (torch.arange(side, device=scores.device) for side in (rows, columns))
    low, right = y + region[:, None], x + region[:, None]
    low_at = low.clamp(max=rows)[:, :, None].expand(len(scores), rows, columns + 1)
    right_at = right.clamp(max=columns)[:, None, :].expand(len(scores), rows, columns)
    strips = summed.gather(1, low_at) - summed[:, :-1]
    sums = strips.gather(2, right_at) - strips[:, :, :-1]
    outside = (low > rows)[:, :, None] | (right > columns)[:, None, :]
    flat = (sums if largest else -sums).masked_fill(outside, -torch.inf).flatten(1)
    # argmax does not promise the first of equal values.
    places = torch.arange(flat.shape[1], device=flat.device)
    first = torch.where(flat == flat.amax(1, keepdim=True), places, flat.shape[1] - 1).amin(1)
    return torch.stack([first // columns, first % columns], dim=1)


def smmix_boxes(
    target: Tensor, source: Tensor, region: Tensor, grid: Sequence[int], size: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Windows of cells in pixels. Where cells do not tile the image, borders are rounded down.

    Args:
        target: (B, 2) int64 first cell of the window that is covered.
        source: (B, 2) int64 first cell of the window of the partner that is shown there.
        region: (B,) or (1,) int64 side of the windows in cells.
        grid: rows and columns of cells.
        size: (H, W) of the images.

    Returns:
        boxes (B, 4) int64 y0, x0, y1, x1, half open, and corners (B, 2) int64 y, x of the partner's windows.
    """
    low = torch.stack([target[:, d] * size[d] // grid[d] for d in range(2)], 1)
    corners = torch.stack([source[:, d] * size[d] // grid[d] for d in range(2)], 1)
    sides = torch.stack([(region * size[d] // grid[d]).expand(len(target)) for d in range(2)], 1)
    return torch.cat([low, low + sides], 1), corners


def smmix(
    images: Tensor,
    partner: Tensor,
    boxes: Tensor,
    corners: Tensor,
    *,
    out: Tensor | None = None,
    inplace: bool = False,
) -> tuple[Tensor, Tensor]:
    """Copy a window of each partner into each sample, to another place. Differentiable.

    Args:
        images: (B, C, H, W) floating point or uint8.
        partner: (B,) int64.
        boxes: (B, 4) int64 y0, x0, y1, x1, half open, where the partner shows.
        corners: (B, 2) int64 y, x where the partner's window begins; it must lie inside the image.
        out: tensor like ``images`` that receives the result and does not overlap it.
        inplace: write the result into ``images``.

    Returns:
        Mixed images, dtype and memory format of ``images``, and lam (B,) float32, the share of own pixels.

    Raises:
        ValueError: shapes that do not fit, boxes outside the image, partners outside the batch.
        TypeError: another dtype.
    """
    check_images("smmix", images, (2,))
    size = images.shape[2:]
    check_partner("smmix", partner, images.shape[0])
    check_boxes("smmix", boxes, images.shape[0], size)
    check_out("smmix", images, out, inplace)
    if boxes.shape[0] != images.shape[0] or corners.shape != (images.shape[0], 2):
        raise ValueError(
            f"smmix expects boxes ({images.shape[0]}, 4) and corners ({images.shape[0]}, 2), got "
            f"{tuple(boxes.shape)} and {tuple(corners.shape)}"
        )
    check_boxes("smmix", torch.cat([corners, corners + boxes[:, 2:] - boxes[:, :2]], 1), len(images), size, "corners")
    mixed = move_windows(images, partner, boxes, corners, size, out=out, inplace=inplace)
    return mixed, area_kept(boxes, size)


def move_windows(
    images: Tensor,
    partner: Tensor,
    boxes: Tensor,
    corners: Tensor,
    size: Sequence[int],
    *,
    out: Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    """:func:`smmix` for any tensor (B, ..., H, W), without checks."""
    if prefers_slices(images):
        return _move_slices(images, partner, boxes, corners, out, inplace)
    height, width = size
    y, x = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    shift = corners - boxes[:, :2]
    from_y = (y + shift[:, :1]).clamp(0, height - 1)
    from_x = (x + shift[:, 1:]).clamp(0, width - 1)
    places = (from_y[:, :, None] * width + from_x[:, None, :]).flatten(1)[:, None]
    flat = images.reshape(images.shape[0], -1, height * width).index_select(0, partner)
    shown = flat.gather(2, places.expand(flat.shape)).reshape(images.shape)
    layout = channels_last_format(images)
    shown = shown if layout is None else shown.contiguous(memory_format=layout)
    return deliver(pick(over_channels(box_mask(boxes, size), images), shown, images), images, out, inplace)


def pooled_tokens(features: Tensor, mask: Tensor) -> Tensor:
    """Mean of the tokens under a mask.

    Args:
        features: (B, C, h, w).
        mask: (B, H, W) or (1, H, W), >= 0, averaged over the cells of ``features`` where it is larger.

    Returns:
        (B, C) float32; zeros where the mask is empty.
    """
    weight = F.adaptive_avg_pool2d(mask.float()[:, None], (features.shape[2], features.shape[3]))
    total = weight.sum((2, 3)).clamp(min=torch.finfo(torch.float32).tiny)
    return (single_precision(features) * weight).sum((2, 3)) / total


def smmix_consistency(mixed_logits: Tensor, clean_logits: Tensor, partner: Tensor, lam: Tensor) -> Tensor:
    """KL of the mixed outputs to the softmax of the mixed clean logits, summed over classes, mean over samples.

    Args:
        mixed_logits: (B, K).
        clean_logits: (B, K) of the unmixed batch; no gradient flows to them.
        partner: (B,) int64.
        lam: (B,) share of the own sample.

    Returns:
        A scalar, float32 (float64 for float64 logits).
    """
    clean = single_precision(clean_logits.detach())
    lam = lam.to(clean.dtype)[:, None]
    target = (lam * clean + (1 - lam) * clean.index_select(0, partner)).softmax(1)
    return F.kl_div(single_precision(mixed_logits).log_softmax(1), target, reduction="batchmean")


@dataclass(frozen=True, kw_only=True)
class MovedWindows(Plan):
    """A window of the partner, pasted at another place.

    Attributes:
        boxes: (B, 4) int64 where it shows, half open.
        corners: (B, 2) int64 where the partner's window begins.
    """

    boxes: Tensor
    corners: Tensor

    @property
    def relocates(self) -> bool:
        return True

    def area(self) -> Tensor:
        return area_kept(self.boxes, self.size)

    def own_mask(self) -> Tensor:
        return ~box_mask(self.boxes, self.size)

    def mix(self, tensor: Tensor, *, out: Tensor | None = None, inplace: bool = False) -> Tensor:
        return move_windows(tensor, self.partner, self.boxes, self.corners, self.size, out=out, inplace=inplace)


@register(
    "smmix",
    paper="SMMix: Self-Motivated Image Mixing for Vision Transformers, ICCV 2023",
    arxiv="2212.12977",
    family="guided by the model",
)
class SMMix(Policy):
    """Cover the least attended square of a sample with the most attended one of its partner.

    Through :class:`mixaug.MixStep` two terms join the loss; the head of the first is a parameter of the policy.

    Args:
        minmax: (low, high) side of the square as fractions of the token grid's shortest side, 0 < low <= high <= 1;
            every whole number of tokens between them is as likely, at least 1.
        fine_grained: weight of the loss of the pooled own and pasted tokens; 0 leaves it out, and the head.
        consistency: weight of the divergence from the mixed clean outputs; 0 leaves it out.
        label_smoothing: of the fine-grained loss, in [0, 1]; 0.1 in the authors' recipe. The class loss is smoothed by
            the objective.
        pairing, labeling: see :class:`mixaug.Policy`; the area is that of the pixels.
        per: how often the side is drawn; once per batch in the authors' code.

    Raises:
        ValueError: an option out of range.
    """

    relocates = True
    needs = frozenset({"attention", "outputs"})
    reads = frozenset({"features", "outputs"})
    spatial = (2,)
    shared_defaults: ClassVar[SharedOptions] = {"per": "batch"}
    not_offered: ClassVar[tuple[str, ...]] = ("alpha", "ratio", "partners")
    own_answers: ClassVar[Mapping[str, str]] = {
        "ratio": "A square of uniform side, between a quarter and three quarters of the image's.",
    }

    def __init__(
        self,
        minmax: tuple[float, float] = (0.25, 0.75),
        fine_grained: float = 1.0,
        consistency: float = 1.0,
        label_smoothing: float = 0.1,
        **shared: Unpack[Offered],
    ) -> None:
        super().__init__(**shared)
        what = type(self).__name__
        self.minmax = check_range(what, "minmax", minmax, 0, 1, positive=True)
        self.fine_grained = check_not_negative(what, "fine_grained", fine_grained)
        self.consistency = check_not_negative(what, "consistency", consistency)
        self.label_smoothing = check_probability(what, "label_smoothing", label_smoothing)
        if not fine_grained:
            self.reads = self.reads - {"features"}
        if not consistency:
            self.needs, self.reads = self.needs - {"outputs"}, self.reads - {"outputs"}
        self.token_head: nn.Linear | None = None

    def on_attach(self, signals: ModelSignals) -> None:
        if self.fine_grained:
            self.token_head = signals.like_classifier(type(self).__name__, self.token_head)

    def sample(self, batch: Batch, partner: Tensor, draws: Draws) -> Plan:
        size = (batch.size[0], batch.size[1])
        scores = batch.ask(type(self).__name__).received(size)
        grid = tuple(scores.shape[1:])
        low = max(int(self.minmax[0] * min(grid)), 1)
        region = draws.integers(low, max(int(self.minmax[1] * min(grid)), low) + 1)
        source = smmix_windows(scores.index_select(0, partner), region, largest=True)
        target = smmix_windows(scores, region, largest=False)
        boxes, corners = smmix_boxes(target, source, region, grid, size)
        cells = grid[0] * grid[1]
        lam = (cells - region.square()).float() / cells
        return MovedWindows(partner=partner, lam=lam, boxes=boxes, corners=corners, size=size)

    def own_share(self, mixed: MixedBatch, plan: Plan) -> Tensor:
        """(B,) share of the clean outputs that is the sample's own, in the consistency loss."""
        return plan.area().expand(plan.rows)

    def auxiliary_loss(self, mixed: MixedBatch, seen: MixedSignals) -> dict[str, Tensor]:
        plan = mixed.plan
        head = self.token_head
        if self.fine_grained and head is None:
            raise ValueError(
                f"{type(self).__name__} has no head for its fine-grained loss yet: train through mixaug.MixStep, call "
                "policy.attach(model), or leave that loss out with fine_grained=0"
            )
        if plan is None or not plan.mixes:
            return {} if head is None else {"fine_grained": no_change(head.parameters())}
        terms: dict[str, Tensor] = {}
        if head is not None and self.fine_grained:
            terms["fine_grained"] = self.fine_grained * self._fine_grained(head, mixed, plan, seen)
        if self.consistency:
            if seen.clean is None:
                raise ValueError(
                    f"{type(self).__name__} compares with the clean outputs: pass them to tap(model, mixed, clean)"
                )
            lam = self.own_share(mixed, plan)
            divergence = smmix_consistency(seen.outputs(grad=True), seen.clean.outputs(), plan.partner, lam)
            terms["consistency"] = self.consistency * divergence
        return terms

    def _fine_grained(self, head: nn.Linear, mixed: MixedBatch, plan: Plan, seen: MixedSignals) -> Tensor:
        labels, own = mixed.labels, plan.own_mask()
        classes = head.out_features
        if labels is None or (
            labels.is_floating_point() and (labels.ndim != 2 or labels.shape[1] != classes or classes < 2)
        ):
            came = None if labels is None else tuple(labels.shape)
            raise ValueError(
                f"{type(self).__name__}'s fine-grained loss expects class ids (B,) or shares (B, {classes}) of the "
                f"classifier's {classes} classes as labels, got {came}; leave it out with fine_grained=0"
            )
        assert own is not None  # a plan of ours has a mask
        features = seen.features(size=(own.shape[1], own.shape[2]), grad=True)
        if seen.model is not None:
            features = backbone.head_norm(seen.model, features)
        if features.shape[1] != head.in_features:
            raise ValueError(
                f"{type(self).__name__} pools the last feature map, but it has {features.shape[1]} channels where the "
                f"classifier takes {head.in_features}: name the map, ModelSignals(model, features=...), or use "
                "fine_grained=0"
            )
        check_class_ids(type(self).__name__, labels, classes, IGNORED)
        total = features.new_zeros((), dtype=torch.float32)
        for mask, target in ((own, labels), (~own, labels.index_select(0, plan.partner))):
            logits = single_precision(head(pooled_tokens(features, mask).to(head.weight.dtype)))
            target = target.to(logits.dtype) if target.is_floating_point() else target.long()
            loss = F.cross_entropy(logits, target, reduction="none", label_smoothing=self.label_smoothing)
            # A window that covers all or no pixels leaves nothing to pool on one side.
            total = total + (loss * mask.flatten(1).any(1)).mean() / 2
        return total


def _move_slices(
    images: Tensor, partner: Tensor, boxes: Tensor, corners: Tensor, out: Tensor | None, inplace: bool
) -> Tensor:
    places = [
        ((..., slice(y0, y1), slice(x0, x1)), (..., slice(y, y + y1 - y0), slice(x, x + x1 - x0)))
        for (y0, x0, y1, x1), (y, x) in zip(boxes.tolist(), corners.tolist(), strict=True)
    ]

    def write(row: int, own: Tensor, other: Tensor, target: Tensor) -> None:
        there, here = places[row]
        # A sample that is its own partner may read where it writes.
        patch = other[here]
        target[there] = patch.clone() if inplace else patch

    if inplace:
        return each_row(images, partner, write, None, True)
    result = torch.clone(images) if out is None else out.copy_(images)
    for row, other in enumerate(partner.tolist()):
        write(row, images[row], images[other], result[row])
    return result
