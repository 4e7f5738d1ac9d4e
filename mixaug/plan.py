"""Plans: everything that a policy drew for one batch, and how to replay it on a tensor.

A plan holds tensors only, so it pickles, moves between devices and crosses worker processes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from mixaug.axes import SIGNED, Form, channels_back, channels_first
from mixaug.frozen import ConvertibleFields
from mixaug.ops.blend import blend, blend_mask
from mixaug.ops.boxes import area_kept, box_mask, paste, sum_inside
from mixaug.ops.layout import deliver, pick, reads_freely

PlanT = TypeVar("PlanT", bound="Plan")


@dataclass(frozen=True, kw_only=True)
class Plan(ConvertibleFields):
    """What was drawn for a batch of B samples. Subclasses say how it mixes a tensor.

    Tensors of per-sample values have R rows: B, or 1 when one draw serves the whole batch.

    Attributes:
        partner: (B,) int64; sample i receives from row ``partner[i]``.
        lam: (R,) float32, the drawn share of the own sample, before any clipping.
        weights: (B, M) float32 shares of the sources' labels; set by the policy's labeling.
    """

    partner: Tensor
    lam: Tensor
    weights: Tensor | None = None

    #: Spatial size that a replayed tensor must end in; empty when any shape will do.
    size: tuple[int, ...] = ()
    #: Index of the member of a OneOf that drew the plan, and of its member in turn; empty for a plain policy's plan.
    route: tuple[int, ...] = ()
    #: What the images were like that it was drawn for; None for a plan that was made by hand.
    form: Form | None = None

    @property
    def mixes(self) -> bool:
        """Whether anything is mixed at all."""
        return True

    @property
    def is_mean(self) -> bool:
        """Whether what is shown are weighted means of the sources' values, with :meth:`area` for the own share.

        Not so where moments are exchanged or noise is added, say.
        """
        return True

    @property
    def relocates(self) -> bool:
        """Whether content of a source may show at another place than where the source has it."""
        return any(plan.relocates for plan in self.members)

    @property
    def members(self) -> tuple[Plan, ...]:
        """The plans that this one is made of; none for most plans."""
        return ()

    def rejoined(self, members: Sequence[Plan]) -> Plan:
        """The same plan made of other members, one for each of :attr:`members`."""
        raise TypeError(f"{type(self).__name__} is made of no other plans")

    @property
    def sources(self) -> Tensor:
        """(B, M) int64 rows that went into each sample, the sample itself first."""
        return _with_own(self.partner)

    @property
    def rows(self) -> int:
        """Rows of the tensors that :meth:`mix` takes."""
        return self.partner.shape[0]

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the model's modules whose outputs go through :meth:`mix_hidden`; none for most plans."""
        return ()

    @property
    def drawn_stage(self) -> str | None:
        """The one module inside the model where samples are mixed; None for a plan that mixes the inputs.

        Raises:
            ValueError: a plan that mixes some samples here and others there.
        """
        return None

    def mix_hidden(self, stage: str, features: Tensor) -> Tensor:
        """Mix what the module named ``stage`` put out, (B, ...), where the method acts inside the model."""
        return features

    def area(self) -> Tensor:
        """(R,) float32 share of the pixels that the own sample keeps."""
        return self.lam

    def own_mask(self) -> Tensor | None:
        """(R, *size) bool or float share of the own sample per pixel, where the method has a mask."""
        return None

    def shown(self, maps: Tensor) -> Tensor:
        """How much of each source's map the mixed sample shows, for pairs.

        Args:
            maps: (B, *size) floating point, one for each unmixed sample.

        Returns:
            (B, 2) sums over the own pixels that are seen and over the partner's, in the dtype of ``maps``.
        """
        mask = self.own_mask()
        if mask is None:
            own, total = self.area().to(maps.dtype).expand(len(maps)), maps.flatten(1).sum(1)
            return torch.stack([own * total, (1 - own) * total.index_select(0, self.partner)], dim=1)
        own = (maps * mask).flatten(1).sum(1)
        return torch.stack([own, self.mix(maps).flatten(1).sum(1) - own], dim=1)

    def mix(self, tensor: Tensor, *, out: Tensor | None = None, inplace: bool = False) -> Tensor:
        """Mix a tensor (B, ..., *size). No randomness.

        Args:
            tensor: the images, or another tensor that belongs to them.
            out: tensor like ``tensor`` that receives the result and does not overlap it.
            inplace: write the result into ``tensor``.
        """
        raise TypeError(f"{type(self).__name__} does not define mix(tensor, *, out=None, inplace=False)")

    def replay(self, what: str, tensor: Tensor, *, out: Tensor | None = None, inplace: bool = False) -> Tensor:
        """:meth:`mix` for whatever belongs to the images: in their layout, and with label maps that stay label maps.

        uint8 tensors are images where they have shape and dtype of the images that the plan was drawn for. All other
        tensors of unsigned integers are label maps, which are copied and never blended, as those of signed ones.

        Args:
            what: name of the caller, for messages.
            tensor, out, inplace: see :meth:`mix`.
        """
        layout = None if self.form is None else self.form.layout
        given = channels_first(what, tensor, layout)
        target = None if out is None else channels_first(what, out, layout)
        is_image = self.form is None or given.dtype != torch.uint8 or self.form.holds(given)
        word = None if is_image and given.dtype == torch.uint8 else SIGNED.get(given.dtype)
        if word is not None:
            given, target = given.view(word), None if target is None else target.view(word)
        mixed = self.mix(given, out=target, inplace=inplace)
        return channels_back(mixed if word is None else mixed.view(tensor.dtype), layout)

    def mix_label_map(self, label_map: Tensor, num_classes: int) -> Tensor:
        """Per-pixel class shares (B, K, *size) float32 of a label map (B, *size) of class ids.

        Pixels with an id outside [0, num_classes), such as 255 for "ignore", get no share.
        """
        return self.mix(class_planes(label_map, num_classes))

    def map_tensors(self: PlanT, move: Callable[[Tensor], Tensor]) -> PlanT:
        """The same plan with ``move`` applied to every tensor in it."""
        changed = {f.name: _map(getattr(self, f.name), move) for f in dataclasses.fields(self)}
        return dataclasses.replace(self, **changed)


@dataclass(frozen=True, kw_only=True)
class Unmixed(Plan):
    """Every sample stays as it is.

    Attributes:
        pairs: (B, 2) int64 sources, where they are there already.
    """

    pairs: Tensor | None = None

    @property
    def mixes(self) -> bool:
        return False

    @property
    def sources(self) -> Tensor:
        return _with_own(self.partner) if self.pairs is None else self.pairs

    def mix(self, tensor: Tensor, *, out: Tensor | None = None, inplace: bool = False) -> Tensor:
        return tensor if inplace else deliver(tensor, tensor, out, False)

    @classmethod
    def of(cls, batch_size: int, device: torch.device) -> Unmixed:
        """The plan that changes nothing: every sample is its own partner, with weight 1 and 0."""
        own = torch.arange(batch_size, device=device)
        # All rows are views of one, 1 and 0: a device launches nothing to repeat them.
        weights = torch.arange(1, -1, -1, dtype=torch.float32, device=device).expand(batch_size, 2)
        return cls(partner=own, lam=weights[:, 0], weights=weights, pairs=own[:, None].expand(batch_size, 2))


@dataclass(frozen=True, kw_only=True)
class Blend(Plan):
    """``lam * x + (1 - lam) * x[partner]`` for any tensor (B, ...)."""

    def mix(self, tensor: Tensor, *, out: Tensor | None = None, inplace: bool = False) -> Tensor:
        return blend(tensor, self.partner, self.lam, out=out, inplace=inplace)


@dataclass(frozen=True, kw_only=True)
class MaskBlend(Plan):
    """``mask * x + (1 - mask) * x[partner]`` per pixel; a boolean mask copies.

    Attributes:
        mask: (R, *size) bool or float32 share of the own image.
        share: (R,) float32 mean of the mask, where the policy knows it without a reduction.
    """

    mask: Tensor
    share: Tensor | None = None

    def area(self) -> Tensor:
        if self.share is not None:
            return self.share.float()
        return self.mask.flatten(1).mean(1, dtype=torch.float32)

    def own_mask(self) -> Tensor:
        return self.mask

    def mix(self, tensor: Tensor, *, out: Tensor | None = None, inplace: bool = False) -> Tensor:
        return blend_mask(tensor, self.partner, self.mask, out=out, inplace=inplace)


@dataclass(frozen=True, kw_only=True)
class Paste(Plan):
    """The partner's pixels inside a box, the own ones outside.

    Attributes:
        boxes: (R, 2 * D) int64, lower corners first, half open, clipped to ``size``.
    """

    boxes: Tensor

    def area(self) -> Tensor:
        return area_kept(self.boxes, self.size)

    def own_mask(self) -> Tensor:
        return ~box_mask(self.boxes, self.size)

    def shown(self, maps: Tensor) -> Tensor:
        own = maps.flatten(1).sum(1) - sum_inside(maps, self.boxes)
        return torch.stack([own, self.partner_shown(maps)], dim=1)

    def partner_shown(self, maps: Tensor) -> Tensor:
        """(B,) sum of the partner's map over what is pasted of it."""
        if self.boxes.shape[0] == 1:
            return sum_inside(maps, self.boxes).index_select(0, self.partner)
        return sum_inside(maps.index_select(0, self.partner), self.boxes)

    def mix(self, tensor: Tensor, *, out: Tensor | None = None, inplace: bool = False) -> Tensor:
        return paste(tensor, self.partner, self.boxes, self.size, out=out, inplace=inplace)


@dataclass(frozen=True, kw_only=True)
class Hidden(Plan):
    """A blend inside the model, at one stage drawn from several: manifold mixup.

    Attributes:
        stage: (1,) int64 index into ``eligible``.
        eligible: names of the model's modules, or ``"input"``.
    """

    stage: Tensor
    eligible: tuple[str, ...]

    @property
    def stages(self) -> tuple[str, ...]:
        inside = tuple(name for name in self.eligible if name != "input")
        if self.knows_stage:
            return tuple(name for name in inside if name == self.eligible[self.chosen()])
        return inside

    @property
    def knows_stage(self) -> bool:
        """Whether the drawn stage can be read without waiting for a device."""
        return len(self.eligible) == 1 or reads_freely(self.stage)

    @property
    def drawn_stage(self) -> str | None:
        name = self.eligible[self.chosen()]
        return None if name == "input" else name

    def chosen(self) -> int:
        """Index of the drawn stage; waits for the device where that is not known."""
        return 0 if len(self.eligible) == 1 else int(self.stage)

    def mix(self, tensor: Tensor, *, out: Tensor | None = None, inplace: bool = False) -> Tensor:
        if "input" not in self.eligible or (self.knows_stage and self.eligible[self.chosen()] != "input"):
            return tensor if inplace else deliver(tensor, tensor, out, False)
        return self.mix_input(tensor, out=out, inplace=inplace)

    def mix_input(self, tensor: Tensor, *, out: Tensor | None = None, inplace: bool = False) -> Tensor:
        """Mix a tensor (B, ...) where the input may be the drawn stage."""
        return blend(tensor, self.partner, self.share_at("input"), out=out, inplace=inplace)

    def mix_hidden(self, stage: str, features: Tensor) -> Tensor:
        return blend(features, self.partner, self.share_at(stage))

    def is_drawn(self, stage: str) -> Tensor | None:
        """(1,) bool, whether a stage is the drawn one; None where there is no other."""
        return None if len(self.eligible) == 1 else self.stage == self.eligible.index(stage)

    def share_at(self, stage: str) -> Tensor:
        """lam at the drawn stage, 1 (no mixing) at the others."""
        drawn = self.is_drawn(stage)
        return self.lam if drawn is None else torch.where(drawn, self.lam, torch.ones_like(self.lam))


@dataclass(frozen=True, kw_only=True)
class Select(Plan):
    """One of several plans for every sample.

    Attributes:
        choice: (R,) int64 index into ``plans``.
        plans: the plans to choose from, each for the whole batch and with its weights set.
    """

    choice: Tensor
    plans: tuple[Plan, ...]

    @classmethod
    def of(cls, choice: Tensor, plans: Sequence[Plan]) -> Select:
        """Join plans for one batch. ``choice``: (B,) or (1,) int64."""
        size = next((plan.size for plan in plans if plan.size), ())
        batch_size = plans[0].partner.shape[0]
        columns = max(plan.sources.shape[1] for plan in plans)
        weights = torch.stack([F.pad(_weights(plan), (0, columns - _weights(plan).shape[1])) for plan in plans])
        lam = torch.stack([plan.lam.float().expand(batch_size) for plan in plans])
        partner = torch.stack([plan.partner for plan in plans])
        return cls(
            partner=_pick(partner, choice),
            lam=_pick(lam, choice),
            weights=_pick(weights, choice),
            size=size,
            choice=choice,
            plans=tuple(plans),
        )

    @property
    def members(self) -> tuple[Plan, ...]:
        return self.plans

    @property
    def is_mean(self) -> bool:
        return all(plan.is_mean for plan in self.plans)

    def rejoined(self, members: Sequence[Plan]) -> Select:
        return Select.of(self.choice, members)

    @property
    def sources(self) -> Tensor:
        every = [plan.sources for plan in self.plans]
        columns = max(sources.shape[1] for sources in every)
        # A source that is not there is the sample itself, with weight 0.
        padded = [torch.cat([sources, sources[:, :1].expand(-1, columns - sources.shape[1])], 1) for sources in every]
        return _pick(torch.stack(padded), self.choice)

    def area(self) -> Tensor:
        batch_size = self.partner.shape[0]
        return _pick(torch.stack([plan.area().expand(batch_size) for plan in self.plans]), self.choice)

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(stage for plan in self.plans for stage in plan.stages))

    @property
    def drawn_stage(self) -> str | None:
        if self.stages:
            raise ValueError("a choice per sample between plans of which one mixes inside the model has no one stage")
        return None

    def mix_hidden(self, stage: str, features: Tensor) -> Tensor:
        result = features
        for index, plan in enumerate(self.plans):
            if stage in plan.stages:
                chosen = (self.choice == index).reshape(-1, *([1] * (features.ndim - 1)))
                result = torch.where(chosen, plan.mix_hidden(stage, features), result)
        return result

    def own_mask(self) -> Tensor | None:
        if not self.size:
            return None
        batch_size = self.partner.shape[0]
        masks = []
        for plan in self.plans:
            mask = plan.own_mask()
            if mask is None:
                mask = plan.area().reshape(-1, *([1] * len(self.size)))
            masks.append(mask.float().expand(batch_size, *self.size))
        return _pick(torch.stack(masks), self.choice)

    def mix(self, tensor: Tensor, *, out: Tensor | None = None, inplace: bool = False) -> Tensor:
        result = self.plans[0].mix(tensor)
        for index, plan in enumerate(self.plans[1:], start=1):
            chosen = (self.choice == index).reshape(-1, *([1] * (tensor.ndim - 1)))
            result = pick(chosen, plan.mix(tensor), result)
        return deliver(result, tensor, out, inplace)

    def mix_label_map(self, label_map: Tensor, num_classes: int) -> Tensor:
        result = self.plans[0].mix_label_map(label_map, num_classes)
        for index, plan in enumerate(self.plans[1:], start=1):
            chosen = (self.choice == index).reshape(-1, *([1] * (result.ndim - 1)))
            result = torch.where(chosen, plan.mix_label_map(label_map, num_classes), result)
        return result


@dataclass(frozen=True, kw_only=True)
class JoinedPlan(Plan):
    """Plans of several batches that go through the model as one: each acts on its own rows inside the model.

    Attributes:
        plans: in the order of the batches.
    """

    plans: tuple[Plan, ...]

    @classmethod
    def of(cls, plans: Sequence[Plan]) -> JoinedPlan:
        """Join plans of batches.

        Raises:
            ValueError: a plan that hands more rows to the model than remain.
        """
        for plan in plans:
            if plan.rows != plan.sources.shape[0]:
                raise ValueError(
                    "a batch that hands partners from outside on into the model, where they are mixed, cannot share a "
                    "pass with another batch: run each alone, joined=False"
                )
        starts = [sum(plan.rows for plan in plans[:index]) for index in range(len(plans))]
        return cls(
            partner=torch.cat([plan.partner + start for plan, start in zip(plans, starts, strict=True)]),
            lam=torch.cat([plan.lam.float().expand(plan.rows) for plan in plans]),
            plans=tuple(plans),
        )

    @property
    def members(self) -> tuple[Plan, ...]:
        return self.plans

    @property
    def mixes(self) -> bool:
        return any(plan.mixes for plan in self.plans)

    @property
    def is_mean(self) -> bool:
        return all(plan.is_mean for plan in self.plans)

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(stage for plan in self.plans for stage in plan.stages))

    def mix_hidden(self, stage: str, features: Tensor) -> Tensor:
        parts = features.split([plan.rows for plan in self.plans])
        return torch.cat(
            [
                plan.mix_hidden(stage, part) if stage in plan.stages else part
                for plan, part in zip(self.plans, parts, strict=True)
            ]
        )


def class_planes(label_map: Tensor, num_classes: int) -> Tensor:
    """(B, *size) class ids to (B, K, *size) float32 planes; ids outside [0, K) give no plane a 1."""
    ids = torch.arange(num_classes, device=label_map.device).reshape(1, -1, *([1] * (label_map.ndim - 1)))
    return (label_map.long().unsqueeze(1) == ids).float()


def _weights(plan: Plan) -> Tensor:
    if plan.weights is None:
        raise ValueError(f"{type(plan).__name__} has no weights yet: draw it through Policy.draw")
    return plan.weights


def _pick(stacked: Tensor, choice: Tensor) -> Tensor:
    """(N, B, ...) and (B,) or (1,) choices to (B, ...)."""
    batch_size = stacked.shape[1]
    rows = torch.arange(batch_size, device=stacked.device)
    return stacked[choice.expand(batch_size), rows]


def _with_own(partner: Tensor) -> Tensor:
    """(B, 2) int64 rows: of each sample itself, and of its partner."""
    own = torch.arange(partner.shape[0], device=partner.device)
    return torch.stack([own, partner], dim=1)


def _map(value: Any, move: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return move(value)
    if isinstance(value, Plan):
        return value.map_tensors(move)
    if isinstance(value, tuple):
        return tuple(_map(item, move) for item in value)
    return value
