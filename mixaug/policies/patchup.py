"""PatchUp (arXiv:2006.07794): blocks of hidden feature maps, each in a channel of its own, are blended or swapped.

    seeds ~ Bernoulli(gamma') for every channel and position,   holes = seeds grown to blocks of b x b
    h' = lam * h + (1 - lam) * h[partner] in holes (soft),   h[partner] in holes (hard),   h elsewhere
    gamma' = gamma * N / (b (N - b + 1)) along each side N, squared for square maps,   lam ~ Beta(2, 2)

At a stage drawn per batch; where that is the input, CutMix in its place. The label share is that of the values:
u + (1 - u) lam (soft) or u (hard), u the share that lies in no hole. The size of the maps is known only in the pass, so
labels are final after it (:class:`mixaug.MixStep`, ``relabel``); before, they are those of a large map, where u =
exp(-gamma).

The authors' loss has three terms, ``u l(y) + (1 - u) l(y in holes) + l(mixed target)``. Every loss that is linear in
the target, as cross-entropy and theirs are, makes of the first two the third once more: their loss is twice that of the
mixed target, so any objective does.

Differs from the authors' code: gamma' is that of the map at hand, there of the first map ever seen. Maps need not be
square. A block is no larger than the map, where theirs divides by zero or worse.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from mixaug.batch import Batch, MixedBatch
from mixaug.checks import check_choice, check_partner, check_positive_share, check_share, check_whole
from mixaug.draws import Draws
from mixaug.labeling.base import two_shares
from mixaug.ops.blend import blend_mask
from mixaug.ops.boxes import area_kept, box_mask, cutmix_boxes, paste
from mixaug.ops.hashing import SEEDS, hashed_uniform
from mixaug.ops.layout import column
from mixaug.plan import Plan
from mixaug.policies.stages import INPUT, Staged, StagePolicy
from mixaug.registry import register
from mixaug.shared_options import SharedOptions
from mixaug.signals import MixedSignals, ModelSignals, backbone

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from mixaug.shared_options import TakesPairing, TakesPartners, TakesPer, TakesRatio

    class Offered(TakesRatio, TakesPairing, TakesPer, TakesPartners, total=False):
        """The shared options without those that ``not_offered`` names."""


__all__ = ["PatchUp", "patchup", "patchup_holes", "patchup_rate"]

Mode = Literal["soft", "hard"]
#: The authors' gamma of each mode, on CIFAR.
GAMMA: dict[Mode, float] = {"soft": 0.75, "hard": 0.5}
POOLS: dict[int, Any] = {1: nn.functional.max_pool1d, 2: nn.functional.max_pool2d, 3: nn.functional.max_pool3d}
#: Where a model without timm's ``feature_info`` has its stem.
STEMS = ("maxpool", "bn1", "conv1")


def patchup_rate(gamma: float, block_size: int, size: Sequence[int]) -> float:
    """Chance of a position to be the seed of a block, so that blocks would cover a share ``gamma`` if none overlapped.

    Args:
        gamma: in (0, 1].
        block_size: odd side of a block; no side of one is larger than the map.
        size: spatial size of the map.
    """
    sides = _blocks(block_size, size)
    return gamma * math.prod(n / (b * (n - b + 1)) for n, b in zip(size, sides, strict=True))


def patchup_holes(seeds: Tensor, block_size: int) -> Tensor:
    """Blocks around seeds, cut at the border.

    Args:
        seeds: (R, C, *size) bool.
        block_size: odd side of a block; no side of one is larger than the map.

    Returns:
        (R, C, *size) bool, True inside a block.

    Raises:
        ValueError: an even block size, or a map of other than one to three spatial axes.
    """
    check_block_size("patchup_holes", block_size)
    axes = seeds.ndim - 2
    if axes not in POOLS:
        raise ValueError(f"patchup_holes expects seeds (R, C, *size) of 1 to 3 axes, got {tuple(seeds.shape)}")
    sides = _blocks(block_size, seeds.shape[2:])
    pooled: Tensor = POOLS[axes](seeds.float(), sides, stride=1, padding=[side // 2 for side in sides])
    return pooled > 0


def patchup(features: Tensor, partner: Tensor, holes: Tensor, lam: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Blend (soft) or swap (hard) the values of every sample and its partner inside holes. Differentiable.

    Args:
        features: (B, C, *size) floating point.
        partner: (B,) int64.
        holes: (B, C, *size) bool, or (1, C, *size) for all.
        lam: (B,) or (1,) share of the own values inside holes, in [0, 1]; None for none.

    Returns:
        Features, dtype and layout of ``features``, and (B,) float32 share of the own values.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: features that are not floating point.
    """
    if not features.is_floating_point():
        raise TypeError(f"patchup expects floating point features, got {features.dtype}")
    check_partner("patchup", partner, features.shape[0])
    if lam is not None:
        check_share("patchup", "lam", lam, features.shape[0])
    if holes.dtype != torch.bool or holes.shape[1:] != features.shape[1:] or len(holes) not in (1, len(features)):
        raise ValueError(
            f"patchup expects bool holes {tuple(features.shape)}, or one row of them, got {tuple(holes.shape)} "
            f"{holes.dtype}"
        )
    return _exchanged(features, partner, holes, lam), _own_share(holes, lam).expand(len(features))


def _exchanged(features: Tensor, partner: Tensor, holes: Tensor, lam: Tensor | None) -> Tensor:
    if lam is None:
        return blend_mask(features, partner, ~holes)
    return blend_mask(features, partner, torch.where(holes, column(lam.float(), holes), 1.0))


def _own_share(holes: Tensor, lam: Tensor | None) -> Tensor:
    """(R,) float32 share of the own values."""
    kept = 1 - holes.flatten(1).mean(1, dtype=torch.float32)
    return kept if lam is None else kept + (1 - kept) * lam.float()


@dataclass(frozen=True, kw_only=True)
class Blocks(Staged):
    """Blocks of hidden maps, or a box of the input, at one stage of several.

    Attributes:
        seeds: (R,) int64, of which the holes are a function.
        boxes: (R, 2 * D) int64 for the input; None where that is not among the stages.
        mode, gamma, block_size: see :class:`PatchUp`.
    """

    seeds: Tensor
    boxes: Tensor | None
    mode: Mode
    gamma: float
    block_size: int

    @property
    def is_mean(self) -> bool:
        return self.boxes is not None and self.knows_stage and self.drawn_stage is None

    def area(self) -> Tensor:
        # Of a large map; the pass tells what its own is.
        kept = math.exp(-self.gamma)
        inside = self.lam if self.mode == "soft" else torch.zeros_like(self.lam)
        hidden = kept + (1 - kept) * inside
        if self.boxes is None:
            return hidden
        of_box, drawn = area_kept(self.boxes, self.size), self.is_drawn(INPUT)
        return of_box if drawn is None else torch.where(drawn, of_box, hidden)

    def own_mask(self) -> Tensor | None:
        if self.boxes is None or (self.knows_stage and self.drawn_stage is not None):
            return None
        return ~box_mask(self._drawn_boxes(self.boxes), self.size)

    def mix_input(self, tensor: Tensor, *, out: Tensor | None = None, inplace: bool = False) -> Tensor:
        assert self.boxes is not None  # there is one where the input is among the stages
        return paste(tensor, self.partner, self._drawn_boxes(self.boxes), self.size, out=out, inplace=inplace)

    def mix_hidden(self, stage: str, features: Tensor) -> Tensor:
        axis = self.channel_axis(features)
        if features.ndim == 2 or (features.ndim == 3 and not self.sequences):
            raise ValueError(
                f"PatchUp mixes blocks of maps, but module {stage!r} puts out {tuple(features.shape)}: name modules of "
                "the model, stages=..., whose outputs are (B, C, *size)"
            )
        maps = features.movedim(axis, 1)
        holes, drawn = self.holes(maps.shape[1:]), self.is_drawn(stage)
        if drawn is not None:
            holes = holes & drawn
        return _exchanged(maps, self.partner, holes, self._inside()).movedim(1, axis)

    def holes(self, shape: Sequence[int]) -> Tensor:
        """(R, C, *size) bool for maps (B, C, *size) of the shape (C, *size)."""
        chance = patchup_rate(self.gamma, self.block_size, shape[1:])
        return patchup_holes(hashed_uniform(self.seeds, shape) < chance, self.block_size)

    def own_share(self, shapes: dict[str, tuple[int, ...]]) -> Tensor:
        """(R,) float32 share of the own values at the drawn stage, by the shapes (...) of the stages' outputs."""
        found = self.area()
        for stage, shape in shapes.items():
            channels_first = shape[-1:] + shape[:-1] if self.channels_last and len(shape) > 2 else shape
            share = _own_share(self.holes(channels_first), self._inside())
            drawn = self.is_drawn(stage)
            found = share if drawn is None else torch.where(drawn, share, found)
        return found

    def _inside(self) -> Tensor | None:
        """Share of the own values inside holes; None for none."""
        return self.lam if self.mode == "soft" else None

    def _drawn_boxes(self, boxes: Tensor) -> Tensor:
        """The boxes where the input is drawn, and empty ones where it is not."""
        drawn = self.is_drawn(INPUT)
        return boxes if drawn is None else boxes * drawn


@register(
    "patchup",
    paper="PatchUp: A Feature-Space Block-Level Regularization Technique for Convolutional Neural Networks, AAAI 2022",
    arxiv="2006.07794",
    family="hidden features",
)
class PatchUp(StagePolicy):
    """Blend or swap blocks of feature maps, each in a channel of its own, at a random stage; at the input, CutMix.

    Args:
        alpha: lam ~ Beta(alpha, alpha) inside the blocks of the mode ``"soft"``; 2.0 as in the authors' code.
        mode: ``"soft"`` blends the blocks with the partner's, ``"hard"`` takes the partner's.
        gamma: share of a map that blocks would cover if none overlapped, in (0, 1]; None is 0.75 for ``"soft"`` and 0.5
            for ``"hard"``, as the authors.
        block_size: side of a block, odd; on a smaller map the largest odd side that fits.
        stages: where, one of them drawn per batch: names of modules, numbers in timm's counting, ``"input"``. None
            takes the input, the stem and the first stage.
        ratio: of lam, for ``"soft"``; see :class:`mixaug.Policy`.
        pairing: see :class:`mixaug.Policy`.
        per: how often blocks, boxes and lam are drawn; the authors draw once per batch.

    Raises:
        ValueError: an option out of range, ``alpha`` or ``ratio`` with ``"hard"``; when drawing, a model without such
            stages; in the mixed pass, outputs that are no maps.
    """

    spatial = (1, 2, 3)
    reads = frozenset({"shapes"})
    shared_defaults: ClassVar[SharedOptions] = {"per": "batch"}
    not_offered = ("labeling",)
    relabels = True
    own_answers: ClassVar[Mapping[str, str]] = {
        "labeling": "The share of the values of the feature map.",
    }

    def __init__(
        self,
        alpha: float = 2.0,
        mode: Mode = "soft",
        gamma: float | None = None,
        block_size: int = 7,
        stages: Sequence[int | str] | None = None,
        **shared: Unpack[Offered],
    ) -> None:
        super().__init__(alpha=alpha, stages=stages, **shared)
        check_choice("PatchUp", "mode", mode, get_args(Mode))
        self.mode: Mode = mode
        self.gamma = GAMMA[mode] if gamma is None else check_positive_share("PatchUp", "gamma", gamma)
        self.block_size = check_block_size("PatchUp", block_size)
        ratio = shared.get("ratio", "beta")
        if mode == "hard" and (alpha != 2.0 or ratio != "beta"):
            raise ValueError(
                f"PatchUp swaps the blocks of mode='hard' and draws no share: leave out alpha={alpha!r} and "
                f"ratio={ratio!r}, or take mode='soft'"
            )

    def default_stages(self, model: nn.Module | None) -> tuple[str, ...]:
        if model is None:
            return INPUT, "maxpool", "layer1"
        if getattr(model, "feature_info", None):
            return INPUT, backbone.stage_name(model, 0), backbone.stage_name(model, 1)
        names = {name for name, _ in model.named_children()}
        stem = next((name for name in STEMS if name in names), None)
        if stem is None or "layer1" not in names:
            raise ValueError(
                f"PatchUp found no stem and stages in {type(model).__name__}: name modules of it, such as "
                f"stages={[INPUT, *sorted(names)[:2]]}"
            )
        return INPUT, stem, "layer1"

    def on_attach(self, signals: ModelSignals) -> None:
        # Which stage is drawn is a coin: one of tokens shall be known before the first step.
        model = signals.inner
        if backbone.prefix_tokens(model) == 0 and not backbone.is_plain(model):
            return
        for stage in self.hidden_stages(signals):
            if any(block.startswith(f"{stage}.") for block in backbone.attention_blocks(model)):
                raise ValueError(
                    f"PatchUp mixes blocks of maps, but module {stage!r} of {type(model).__name__} puts out tokens: "
                    f"name modules whose outputs are (B, C, *size), or mix the images alone with stages=[{INPUT!r}]"
                )

    def sample(self, batch: Batch, partner: Tensor, draws: Draws) -> Plan:
        stage, eligible = self.draw_stage(batch, draws)
        lam = self.ratio(draws).float()
        boxes = None
        if INPUT in eligible:
            boxes = cutmix_boxes(draws.uniform(), draws.pixels(batch.size), batch.size)
        return Blocks(
            partner=partner,
            lam=lam,
            size=() if boxes is None else batch.size,
            stage=stage,
            eligible=eligible,
            seeds=draws.integers(0, SEEDS),
            boxes=boxes,
            mode=self.mode,
            gamma=self.gamma,
            block_size=self.block_size,
            **Staged.layout(batch),
        )

    def relabel(self, mixed: MixedBatch, seen: MixedSignals) -> MixedBatch:
        plan = mixed.plan
        # Around a batch that partners from outside joined there is a plan that keeps the first of its rows.
        blocks = plan if isinstance(plan, Blocks) else getattr(plan, "inner", None)
        if plan is None or not isinstance(blocks, Blocks) or not plan.stages:
            return mixed
        own = blocks.own_share({stage: seen.mixed_shape(stage) for stage in plan.stages})
        return dataclasses.replace(mixed, weights=two_shares(own[: len(mixed)], len(mixed)))


def check_block_size(what: str, block_size: int) -> int:
    """``block_size`` as an odd int, or a ValueError."""
    checked = check_whole(what, "block_size", block_size)
    if checked % 2 == 0:
        raise ValueError(f"{what} expects block_size as an odd integer, got {block_size}: a block has a middle")
    return checked


def _blocks(block_size: int, size: Sequence[int]) -> list[int]:
    """Odd sides of a block along each axis, none larger than the map."""
    return [min(block_size, side - 1 + side % 2) for side in size]
