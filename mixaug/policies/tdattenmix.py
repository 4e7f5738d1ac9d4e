"""TdAttenMix (arXiv:2501.15409): SMMix guided by attention that knows the label, for the square and for the labels.

    x' = x[partner] at its square of largest attention, pasted where x has its smallest, x elsewhere
    lam = (area + s) / 2,   s = kept attention of x / (kept attention of x + pasted attention of x[partner])

The attention is top-down: the authors ask a frozen AbSViT with the label as its prompt for a map of cosines, and take
off ``0.7 max + 0.3 min`` of it, so that little but the object is left. Square and losses are those of SMMix.

Departures from the authors' code: the pasted attention is the partner's; theirs reads the sample's own map at the
partner's square, and takes one quotient of the sums over the whole batch for all samples (``reference=True``). Their
switch with Mixup is a ``OneOf``. AbSViT's weights are no part of this package: without a network the attention is that
of the class token of the model in training, our substitute, which no label has told where to look.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from mixaug.batch import Batch, MixedBatch
from mixaug.checks import check_flag, check_images, check_partner, check_probability
from mixaug.draws import Draws
from mixaug.labeling.base import two_shares
from mixaug.ops.boxes import area_kept, box_mask
from mixaug.ops.layout import single_precision
from mixaug.ops.precision import callers_precision
from mixaug.plan import Plan
from mixaug.policies.network import NetworkPolicy
from mixaug.policies.smmix import MovedWindows, SMMix, smmix_boxes, smmix_windows
from mixaug.registry import register
from mixaug.signals.tensors import as_grid

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from mixaug.shared_options import TakesPairing, TakesPer

    class Offered(TakesPairing, TakesPer, total=False):
        """The shared options without those that ``not_offered`` names."""


__all__ = ["TdAttenMix", "attended_share", "attention_above"]


def attention_above(maps: Tensor, floor: float = 0.7) -> Tensor:
    """What of each map rises above ``floor max + (1 - floor) min``.

    Args:
        maps: (B, h, w) floating point; values that are not finite count as 0.
        floor: in [0, 1].

    Returns:
        (B, h, w) float32 (float64 for float64), >= 0.

    Raises:
        ValueError: another shape, floor outside [0, 1].
    """
    floor = check_probability("attention_above", "floor", floor)
    if maps.ndim != 3 or not maps.is_floating_point():
        raise ValueError(f"attention_above expects maps (B, h, w) floating point, got {tuple(maps.shape)} {maps.dtype}")
    maps = single_precision(maps).nan_to_num(0.0, 0.0, 0.0)
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - torch.lerp(low, high, floor)).clamp(min=0)


def attended_share(
    maps: Tensor, partner: Tensor, target: Tensor, source: Tensor, region: Tensor, *, reference: bool = False
) -> Tensor:
    """Share of the own attention in what the mixed image shows of both maps.

    Args:
        maps: (B, h, w) floating point, >= 0.
        partner: (B,) int64.
        target: (B, 2) int64 row and column of the first cell that is covered.
        source: (B, 2) int64 of the first cell of the partner that is shown there.
        region: (B,) or (1,) int64 side of the squares in cells.
        reference: the authors' two slips, see the module.

    Returns:
        (B,) of the dtype of ``maps``, in [0, 1]; NaN where neither map has attention in what is shown.

    Raises:
        ValueError: shapes that do not fit.
    """
    check_partner("attended_share", partner, maps.shape[0])
    pairs = (maps.shape[0], 2)
    if maps.ndim != 3 or target.shape != pairs or source.shape != pairs or region.shape[0] not in (1, maps.shape[0]):
        raise ValueError(
            f"attended_share expects maps (B, h, w), target and source (B, 2) and region (B,) or (1,), got "
            f"{tuple(maps.shape)}, {tuple(target.shape)}, {tuple(source.shape)} and {tuple(region.shape)}"
        )
    grid, side = maps.shape[1:], region[:, None]
    covered = box_mask(torch.cat([target, target + side], 1), grid)
    pasted = box_mask(torch.cat([source, source + side], 1), grid)
    own = (maps * ~covered).sum((1, 2))
    other = ((maps if reference else maps.index_select(0, partner)) * pasted).sum((1, 2))
    if reference:
        own, other = own.sum().expand(len(maps)), other.sum()
    return own / (own + other)


@dataclass(frozen=True, kw_only=True)
class AttendedWindows(MovedWindows):
    """A moved window, and what of both images' attention is seen.

    Attributes:
        attended: (B,) float32 share of the own attention in it.
    """

    attended: Tensor


class AttendedShare:
    """Weigh both images by the attention that is seen, averaged with the area. Plans of TdAttenMix know it.

    Args:
        share: weight of the attention beside the area, in [0, 1].
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, share: float) -> None:
        self.share = check_probability("TdAttenMix", "attention_share", share)

    def __call__(self, plan: Plan, batch: Batch) -> Tensor:
        assert isinstance(plan, AttendedWindows)  # the policy offers no other labeling, and its plans are such
        return two_shares(torch.lerp(plan.area(), plan.attended, self.share), len(batch))


@register(
    "tdattenmix",
    paper="TdAttenMix: Top-Down Attention Guided Mixup, AAAI 2025",
    arxiv="2501.15409",
    family="guided by the model",
)
class TdAttenMix(NetworkPolicy, SMMix):
    """Cover the least attended square of a sample with the partner's most attended one; labels follow both.

    Through :class:`mixaug.MixStep` SMMix's two terms join the loss.

    Args:
        minmax: (low, high) side of the square as fractions of the grid's shortest side, 0 < low <= high <= 1.
        fine_grained: weight of SMMix's loss of the pooled own and pasted tokens; 0 leaves it out, as the authors do for
            models other than their ViT.
        consistency: weight of the divergence from the mixed clean outputs, in the labels' shares; 0 leaves it out.
        label_smoothing: of the fine-grained loss, in [0, 1].
        attention_share: weight of the attention's share beside the area's in the labels, in [0, 1]; 0.5 in the paper.
        floor: of the attention, see :func:`attention_above`; 0.7 in the authors' code. None takes maps as they are.
        network: the top-down attention: a module that is called with (images, labels) and gives maps (B, h, w), or
            (B, tokens). It is frozen in place and always runs in ``eval()`` mode; it moves with the policy, but is no
            part of its parameters, its ``state_dict`` or its submodules. None asks the model in training for the
            class token's attention: our substitute.
        reference: the authors' two slips in the labels, see the module.
        pairing: see :class:`mixaug.Policy`.
        per: how often the side is drawn; once per batch in the authors' code.

    Raises:
        ValueError: an option out of range.
        TypeError: ``network`` is no module.
    """

    needs = frozenset({"attention", "outputs"})
    not_offered: ClassVar[tuple[str, ...]] = ("labeling",)
    own_answers: ClassVar[Mapping[str, str]] = {
        "ratio": "A square of uniform side, between a quarter and three quarters of the image's.",
        "labeling": "Half the area, half the attention that is seen of each.",
    }

    def __init__(
        self,
        minmax: tuple[float, float] = (0.25, 0.75),
        fine_grained: float = 1.0,
        consistency: float = 1.0,
        label_smoothing: float = 0.1,
        attention_share: float = 0.5,
        floor: float | None = 0.7,
        network: nn.Module | None = None,
        reference: bool = False,
        **shared: Unpack[Offered],
    ) -> None:
        labeling = AttendedShare(attention_share)
        super().__init__(minmax, fine_grained, consistency, label_smoothing, labeling=labeling, **shared)
        self.attention_share = float(attention_share)
        self.floor = None if floor is None else check_probability("TdAttenMix", "floor", floor)
        self.reference = check_flag("TdAttenMix", "reference", reference)
        self.hold_network(network, "attention")

    def check(self, batch: Batch) -> None:
        super().check(batch)
        if self.network is not None and batch.labels is None:
            raise ValueError("TdAttenMix tells its network the labels: pass labels with the images")

    def sample(self, batch: Batch, partner: Tensor, draws: Draws) -> Plan:
        size = (batch.size[0], batch.size[1])
        maps = self._attention(batch, size)
        if self.floor is not None:
            maps = attention_above(maps, self.floor)
        grid = tuple(maps.shape[1:])
        low = max(int(self.minmax[0] * min(grid)), 1)
        region = draws.integers(low, max(int(self.minmax[1] * min(grid)), low) + 1)
        source = smmix_windows(maps.index_select(0, partner), region, largest=True)
        target = smmix_windows(maps, region, largest=False)
        boxes, corners = smmix_boxes(target, source, region, grid, size)
        cells = grid[0] * grid[1]
        lam = (cells - region.square()).float() / cells
        attended = attended_share(maps, partner, target, source, region, reference=self.reference).float()
        # Where nothing that is attended is seen, of either image, the area says all there is.
        attended = torch.where(attended.isfinite(), attended, area_kept(boxes, size))
        return AttendedWindows(partner=partner, lam=lam, boxes=boxes, corners=corners, size=size, attended=attended)

    def own_share(self, mixed: MixedBatch, plan: Plan) -> Tensor:
        return mixed.lam

    def _attention(self, batch: Batch, size: tuple[int, int]) -> Tensor:
        """(B, h, w) finite maps."""
        if self.network is None:
            maps = batch.ask("TdAttenMix").attention(size)
        else:
            check_images("TdAttenMix", batch.images, (2,))
            with torch.no_grad(), callers_precision(batch.device):
                maps = as_grid(self.network(batch.images.detach(), batch.labels), size)
            if len(maps) != len(batch) or not maps.is_floating_point():
                raise ValueError(
                    f"TdAttenMix expects its network to give maps ({len(batch)}, h, w) floating point, got "
                    f"{tuple(maps.shape)} {maps.dtype}"
                )
        return single_precision(maps.detach()).nan_to_num(0.0, 0.0, 0.0)
