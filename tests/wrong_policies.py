"""Policies that break one promise each, beside an honest twin: a contract is tested by what it rejects."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import torch

import mixaug
from mixaug.plan import Blend, MaskBlend, Unmixed


class Honest(mixaug.Policy):
    """The partner shows in a band of rows, as high as 1 - lam says, at a random height."""

    spatial = (2,)

    def __init__(self, **shared: Any) -> None:
        super().__init__(**shared)

    def sample(self, batch, partner, draws):
        lam = self.ratio(draws).float()
        return MaskBlend(partner=partner, lam=lam, mask=self.mask(batch, lam, draws), size=batch.size)

    def mask(self, batch, lam, draws):
        height, width = batch.size
        start = draws.integers(0, height)
        rows = (torch.arange(height, device=batch.device) + start[:, None]) % height
        own = rows < (lam[:, None] * height).round()
        return own[:, :, None].expand(-1, -1, width)


def weights_of(own, count):
    return torch.stack([own, 1 - own], 1).expand(count, 2)


class InvertedLabels(Honest):
    def sample(self, batch, partner, draws):
        plan = super().sample(batch, partner, draws)
        return dataclasses.replace(plan, weights=weights_of(1 - plan.area(), len(batch)))


class InvertedAreas(Honest):
    """Obeys every labeling, but says that the partner's pixels are its own."""

    def sample(self, batch, partner, draws):
        plan = super().sample(batch, partner, draws)
        return dataclasses.replace(plan, share=1 - plan.area())


class OneMaskForAll(Honest):
    def mask(self, batch, lam, draws):
        return super().mask(batch, lam, draws)[:1]


class AlwaysHalf(Honest):
    def sample(self, batch, partner, draws):
        lam = torch.full_like(self.ratio(draws), 0.5).float()
        return MaskBlend(partner=partner, lam=lam, mask=self.mask(batch, lam, draws), size=batch.size)


class DeadLabeling(Honest):
    def sample(self, batch, partner, draws):
        plan = super().sample(batch, partner, draws)
        return dataclasses.replace(plan, weights=weights_of(plan.area(), len(batch)))


class Stateful(Honest):
    """From its second call on: a loop on the host, no plan, three sources."""

    def __init__(self, **shared: Any) -> None:
        super().__init__(**shared)
        self.calls = 0

    def forward(self, images, labels=None, **known):
        self.calls += 1
        mixed = super().forward(images, labels, **known)
        if self.calls == 1:
            return mixed
        rows = torch.stack([images[row] for row in range(len(images))])
        sources = torch.cat([mixed.sources, mixed.sources[:, 1:].roll(1)], 1)
        weights = torch.cat([mixed.weights / 2, mixed.weights[:, :1] * 0 + 0.5], 1)
        return mixaug.MixedBatch(inputs=rows, labels=labels, sources=sources, weights=weights, plan=None)


class Remembers(Honest):
    """Keeps a share from one call to the next, and so draws what its generator does not say."""

    def sample(self, batch, partner, draws):
        plan = super().sample(batch, partner, draws)
        before, self.before = getattr(self, "before", plan.mask), plan.mask
        return plan if before.shape != plan.mask.shape else dataclasses.replace(plan, mask=before)


class OwnForward(Honest):
    """Mixes in ``forward``, which nothing calls inside OneOf."""

    def forward(self, images, labels=None, **known):
        mixed = super().forward(images, labels, **known)
        if not isinstance(images, torch.Tensor) or isinstance(mixed.plan, Unmixed):
            return mixed
        plan = Blend(partner=mixed.partner, lam=mixed.lam)
        return dataclasses.replace(mixed, inputs=plan.mix(images), plan=plan)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WritingPlan(MaskBlend):
    def mix(self, tensor, *, out=None, inplace=False):
        return super().mix(tensor, inplace=True) if out is None else super().mix(tensor, out=out)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FloatPlan(MaskBlend):
    def mix(self, tensor, *, out=None, inplace=False):
        mixed = super().mix(tensor, out=out, inplace=inplace)
        return mixed if out is not None or inplace else mixed.float()


@dataclasses.dataclass(frozen=True, kw_only=True)
class OtherMaskPlan(MaskBlend):
    def own_mask(self):
        return self.mask.flip(1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawnAreaPlan(MaskBlend):
    def area(self):
        return self.lam


@dataclasses.dataclass(frozen=True, kw_only=True)
class OtherSourcesPlan(MaskBlend):
    @property
    def sources(self):
        return torch.stack([super().sources[:, 0], self.partner.roll(1)], 1)


class OfAnotherPlan(Honest):
    plan_class: Any = MaskBlend

    def sample(self, batch, partner, draws):
        lam = self.ratio(draws).float()
        return self.plan_class(partner=partner, lam=lam, mask=self.mask(batch, lam, draws), size=batch.size)


class WritesToItsInput(OfAnotherPlan):
    plan_class = WritingPlan


class FloatsForHalf(OfAnotherPlan):
    plan_class = FloatPlan


class OtherMask(OfAnotherPlan):
    plan_class = OtherMaskPlan


class DrawnArea(OfAnotherPlan):
    plan_class = DrawnAreaPlan


class OtherSources(OfAnotherPlan):
    plan_class = OtherSourcesPlan


class UnderAutocast(Honest):
    """Goes round :meth:`mixaug.Policy.drawn`, which keeps autocast out of a plan."""

    def drawn(self, batch, signals, generator, layout=None):
        drawn = super().drawn(batch, signals, generator, layout)
        plan, images = drawn.plan, batch.inputs
        if isinstance(plan, Unmixed):
            return drawn
        columns = torch.full((images.shape[-1], 1), 1 / images.shape[-1], device=images.device)
        share = (plan.mask.float() @ columns)[..., 0].float().mean(1) * 0.999
        mask = plan.mask.float() * share[:, None, None]
        changed = dataclasses.replace(plan, mask=mask, weights=weights_of(mask.flatten(1).mean(1), len(images)))
        return drawn._replace(plan=changed)


class GlobalRandom(Honest):
    def mask(self, batch, lam, draws):
        return super().mask(batch, lam, draws).roll(int(torch.randint(batch.size[0], ())), 1)


class PythonRandom(Honest):
    def mask(self, batch, lam, draws):
        return super().mask(batch, lam, draws).roll(random.randrange(batch.size[0]), 1)


class AlwaysPerSample(Honest):
    def sample(self, batch, partner, draws):
        draws.per = "sample"
        return super().sample(batch, partner, draws)


class DriftingDtype(Honest):
    def forward(self, images, labels=None, **known):
        self.called = getattr(self, "called", 0) + 1
        mixed = super().forward(images, labels, **known)
        return mixed if self.called < 3 else dataclasses.replace(mixed, weights=mixed.weights.double())


class InvertedRatio(Honest):
    """Mask and labels agree with each other, but lam is the partner's share."""

    def mask(self, batch, lam, draws):
        return super().mask(batch, 1 - lam, draws)


class OwnPartners(Honest):
    def sample(self, batch, partner, draws):
        return super().sample(batch, torch.arange(len(batch), device=batch.device).roll(2), draws)


class ReadsBack(Honest):
    def mask(self, batch, lam, draws):
        return super().mask(batch, lam, draws).roll(int(draws.integers(0, 3)[0].item()), 1)


class LoopsOverSamples(Honest):
    def mask(self, batch, lam, draws):
        mask = super().mask(batch, lam, draws)
        return torch.stack([mask[row % len(mask)] for row in range(len(batch))]) if len(mask) > 1 else mask


class OtherwiseCompiled(Honest):
    def mask(self, batch, lam, draws):
        mask = super().mask(batch, lam, draws)
        return mask.roll(1, 1) if torch.compiler.is_compiling() else mask


class DeadPeriod(Honest):
    """An option of its own without effect."""

    def __init__(self, period: int = 4, **shared: Any) -> None:
        super().__init__(**shared)
        self.period = period


class Unpicklable(Honest):
    def sample(self, batch, partner, draws):
        class Local(MaskBlend):
            pass

        plan = super().sample(batch, partner, draws)
        return Local(partner=plan.partner, lam=plan.lam, mask=plan.mask, size=plan.size)


class TooMuchLabel(Honest):
    """Weights that do not sum to one, and no labeling that says so."""

    def sample(self, batch, partner, draws):
        plan = super().sample(batch, partner, draws)
        return dataclasses.replace(plan, weights=weights_of(plan.area(), len(batch)) * 0.9)
