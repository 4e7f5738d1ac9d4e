"""Policies made of policies: one of several, or one with a probability."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Generator, Tensor, nn

from mixaug.batch import Batch, MixedBatch
from mixaug.checks import check_numbers, check_positive_share, check_probability, shown
from mixaug.draws import Draws
from mixaug.options import options_of
from mixaug.pairing import Pairing
from mixaug.partners import PartnerSource
from mixaug.plan import Plan, Select, Unmixed
from mixaug.policy import Policy, SharedOptions, no_change
from mixaug.registry import create
from mixaug.schedule import Schedule, at_start
from mixaug.shown_options import pairing_shared_by, shared_pairing
from mixaug.signals import MixedSignals, ModelSignals, Signals

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from mixaug.shared_options import TakesPairing, TakesPartners, TakesPer

    class Offered(TakesPairing, TakesPer, TakesPartners, total=False):
        """The shared options without those that ``OneOf.not_offered`` names."""

    class OfferedSometimes(TakesPer, TakesPartners, total=False):
        """The shared options without those that ``not_offered`` of ``OneOf`` and ``Sometimes`` names."""


def made(what: str, option: str, policy: Policy | str) -> Policy:
    """The policy that an option of ``what`` names, or is."""
    if isinstance(policy, str):
        try:
            return create(policy)
        except ValueError as error:
            raise ValueError(f"{what} expects {option} as a policy or its name, got an {error}") from None
    if not isinstance(policy, Policy):
        raise TypeError(f"{what} expects {option} as a policy or its name, got {shown(policy)}")
    return policy


class OneOf(Policy):
    """Mix with one of several policies, chosen at random: DeiT's and RSB's Mixup/CutMix switch.

    Args:
        policies: policies, or names of the registry.
        probabilities: one weight for each, not negative; equal when None. They are normalised.
        per: ``"batch"`` chooses once for all samples, ``"sample"`` for each, ``"pair"`` for each pair.
        pairing: partners shared by all the policies, in place of those of their own pairings; None lets each draw its
            own (``per="pair"`` always shares, random pairs by default).

    Raises:
        ValueError: no policies, or probabilities that do not fit them.
    """

    shared_defaults: ClassVar[SharedOptions] = {"per": "batch"}
    not_offered = ("alpha", "ratio", "labeling")
    binds_late = True

    def __init__(
        self,
        policies: Sequence[Policy | str] = ("mixup", "cutmix"),
        probabilities: Sequence[float] | None = None,
        **shared: Unpack[Offered],
    ) -> None:
        super().__init__(**shared)
        if isinstance(policies, str) or not isinstance(policies, (Sequence, nn.ModuleList)) or not len(policies):
            raise ValueError(f"OneOf expects policies as a sequence of at least one policy, got {shown(policies)}")
        built = [made("OneOf", "each of policies", policy) for policy in policies]
        self.policies = nn.ModuleList(built)
        self.probabilities = _normalised(probabilities, len(built))
        self.shares_partner = shared.get("pairing") is not None or self.per == "pair"
        self.needs = frozenset().union(*(policy.needs for policy in built))
        self.reads = frozenset().union(*(policy.reads for policy in built))
        for policy in built:
            if policy.partners is not None:
                raise ValueError(
                    f"{type(self).__name__} got {type(policy).__name__} with partners of its own: give them to "
                    f"{type(self).__name__}"
                )
        if self.partners is not None:
            self.bind_partners(pairing_of(self))

    @property
    def members(self) -> tuple[Policy, ...]:
        return tuple(policy for policy in self.policies if isinstance(policy, Policy))

    @property
    def needs_labels(self) -> bool:
        members = any(policy.needs_labels for policy in self.members) and not self.shares_partner
        return members or self._pairs_by_labels()

    def check_partners(self, source: PartnerSource) -> None:
        # The policies inside are not there yet while the base is made.
        for policy in self.members if "policies" in self._modules else ():
            check_takes_partners(type(self).__name__, policy, source)
            if self.per != "batch" and "hidden" in policy.needs:
                raise ValueError(
                    f"{type(self).__name__}(per={self.per!r}) cannot choose for each sample between "
                    f"{type(policy).__name__}, which mixes inside the model, and others, with partners from outside"
                )

    def check(self, batch: Batch) -> None:
        for policy in self.members:
            policy.check(batch)
        if self.partners is not None:
            self.partners.check(type(self).__name__, batch)
        if self.needs_labels and batch.labels is None:
            raise ValueError(f"{type(self).__name__} pairs by labels: pass labels with the images")

    def plan(self, batch: Batch, generator: Generator | None, partner: Tensor | None = None) -> Plan:
        if len(batch) == 1:
            return Unmixed.of(1, batch.device)
        draws = Draws(len(batch), batch.device, generator, self.per)
        if partner is None and self.shares_partner:
            partner = self.pairing(batch, draws)
        if partner is not None:
            draws.pair_with(partner, batch)
        if self.per == "batch" and (self.needs or draws.choices_are_given):
            # A policy that was not chosen must not cost a pass of the model.
            return self._chosen(draws.host_choice(self.probabilities), batch, generator, partner)
        unit = draws.uniform()
        choice = torch.zeros_like(unit, dtype=torch.int64)
        for passed in self._borders():
            choice = choice + (unit >= passed)
        if choice.shape[0] == 1 and choice.device.type == "cpu" and not torch.compiler.is_compiling():
            # Reading one number is free on a CPU and saves drawing and mixing by every policy.
            return self._chosen(int(choice), batch, generator, partner)
        return Select.of(choice, [policy.plan(batch, generator, partner) for policy in self.members])

    def relabel(self, mixed: MixedBatch, seen: MixedSignals) -> MixedBatch:
        plan = mixed.plan
        if plan is None or not self.reads:
            return mixed
        if plan.route:
            policy, inner = self._chosen_member(mixed, plan)
            return dataclasses.replace(policy.relabel(inner, seen), plan=plan)
        if not plan.members:
            return mixed
        each = [policy.relabel(_as_drawn(mixed, plan, i), seen) for i, policy in enumerate(self.members)]
        again = [dataclasses.replace(own, weights=m.weights) for own, m in zip(plan.members, each, strict=True)]
        weights = plan.rejoined(again).weights
        assert weights is not None  # joined plans have the weights of their members
        return dataclasses.replace(mixed, weights=weights)

    def early_loss(self, images: Tensor, mixed: MixedBatch, clean: Signals) -> dict[str, Tensor]:
        plan = mixed.plan
        if plan is not None and plan.route:
            policy, inner = self._chosen_member(mixed, plan)
            return policy.early_loss(images, inner, clean)
        if plan is not None and plan.members:
            for index, policy in enumerate(self.members):
                if policy.early_loss(images, _as_drawn(mixed, plan, index), clean):
                    raise _for_whole_batches(policy)
        return {}

    def auxiliary_loss(self, mixed: MixedBatch, seen: MixedSignals) -> dict[str, Tensor]:
        plan = mixed.plan
        if plan is None:
            return {}
        terms: dict[str, Tensor] = {}
        if plan.members and not plan.route:
            for index, policy in enumerate(self.members):
                for name, term in policy.auxiliary_loss(_as_drawn(mixed, plan, index), seen).items():
                    # The clean batch is the same whoever mixes it; every other term is of the mixed samples.
                    if name != "clean_loss":
                        raise _for_whole_batches(policy)
                    terms[name] = term + terms.get(name, 0)
            return terms
        idle = list(self.members)
        if plan.route:
            policy, inner = self._chosen_member(mixed, plan)
            idle.remove(policy)
            terms = policy.auxiliary_loss(inner, seen)
        unused = [p for policy in idle for p in policy.parameters() if p.requires_grad]
        if unused:
            terms = terms | {"not_drawn": no_change(unused)}
        return terms

    def _chosen_member(self, mixed: MixedBatch, plan: Plan) -> tuple[Policy, MixedBatch]:
        """The member that drew the batch, and the batch as it alone had drawn it."""
        index, *deeper = plan.route
        return self.members[index], dataclasses.replace(mixed, plan=dataclasses.replace(plan, route=tuple(deeper)))

    def hidden_stages(self, signals: Signals | ModelSignals) -> tuple[str, ...]:
        every = [name for policy in self.members for name in policy.hidden_stages(signals)]
        return tuple(dict.fromkeys(every))

    def _borders(self) -> list[float]:
        return list(itertools.accumulate(self.probabilities[:-1]))

    def _chosen(self, index: int, batch: Batch, generator: Generator | None, partner: Tensor | None) -> Plan:
        plan = self.members[index].plan(batch, generator, partner)
        return dataclasses.replace(plan, route=(index, *plan.route))

    def extra_repr(self) -> str:
        shares = f"probabilities={[round(p, 4) for p in self.probabilities]}, per={self.per!r}"
        return ", ".join([shares, *shared_pairing(self)])

    def __repr__(self) -> str:
        with pairing_shared_by(self) if self.shares_partner else contextlib.nullcontext():
            return super().__repr__()


class Sometimes(OneOf):
    """Mix with a probability, and, if asked, only during the first part of training.

    Early-stopped mixup (arXiv:2303.08433) is ``Sometimes(policy, until=0.5)``; CutMix on CIFAR
    (arXiv:1905.04899) is ``Sometimes("cutmix", 0.5)``.

    Args:
        policy: a policy, or a name of the registry.
        probability: chance to mix, in [0, 1], or a :mod:`mixaug.schedule` of it.
        until: fraction of training in (0, 1] after which nothing is mixed any more; the training loop
            must then call :meth:`set_progress` (the engine does).
        per: ``"batch"`` decides once for all samples, ``"sample"`` for each, ``"pair"`` for each pair.

    Raises:
        ValueError: a probability or fraction out of range.
        RuntimeError: when drawing, if ``until`` is set and ``set_progress`` was never called.
    """

    not_offered = ("policies", "probabilities", "pairing")

    def __init__(
        self,
        policy: Policy | str = "mixup",
        probability: float | Schedule = 1.0,
        until: float | None = None,
        **shared: Unpack[OfferedSometimes],
    ) -> None:
        # The base, which would keep a schedule, comes after what it is made of.
        first = at_start("Sometimes", "probability", probability, check_probability) if callable(probability) else None
        start = check_probability("Sometimes", "probability", probability if first is None else first)
        super().__init__([made("Sometimes", "policy", policy), "none"], [start, 1.0 - start], **shared)
        self.probability = self.scheduled("probability", probability, check_probability)
        self.until = None if until is None else check_positive_share("Sometimes", "until", until)
        self.changes_later = until is not None
        self.active: bool | None = None if until is not None else True

    def on_progress(self, fraction: float) -> None:
        # A flag that flips once, not the fraction: a compiled step would be compiled anew each time.
        self.active = self.until is None or fraction < self.until
        self.probabilities = [self.probability, 1.0 - self.probability]

    def plan(self, batch: Batch, generator: Generator | None, partner: Tensor | None = None) -> Plan:
        if self.active is None:
            raise RuntimeError(
                f"Sometimes(until={self.until}) does not know how far training is: "
                "call policy.set_progress(step / total_steps) before each step"
            )
        if self.schedules and self.progress is None:
            raise RuntimeError(
                "Sometimes follows a schedule of its probability, but does not know how far training is: "
                "call policy.set_progress(step / total_steps) before each step"
            )
        if not self.active:
            return Unmixed.of(len(batch), batch.device)
        return super().plan(batch, generator, partner)

    def extra_repr(self) -> str:
        told = f"probability={self.probability:g}, until={self.until}, per={self.per!r}"
        return ", ".join([told, *shared_pairing(self)])


def check_takes_partners(what: str, policy: Policy, source: PartnerSource) -> None:
    """Raise a ValueError for a policy that cannot be mixed with samples from this source."""
    if policy.partners is not None:
        raise ValueError(
            f"{what} got {type(policy).__name__} with partners of its own: give them to {what}, or to what stands "
            "around it"
        )
    # One without partners that asks nothing of the model leaves the samples as they are.
    if "partners" not in options_of(type(policy)) and (policy.has_partners or policy.needs):
        raise ValueError(f"{what}: {type(policy).__name__} takes no partners from outside the batch")
    policy.check_partners(source)


def pairing_of(policy: Policy) -> Pairing:
    """The pairing that draws a policy's partners; of several policies to choose from, the one that they share.

    Raises:
        ValueError: they do not share one.
    """
    if not policy.members or policy.shares_partner:
        return policy.pairing
    found = [pairing_of(member) for member in policy.members if member.has_partners]
    if any(_described(other) != _described(found[0]) for other in found):
        raise ValueError(
            "partners from outside the batch are drawn before it is known which of several policies mixes, but their "
            f"pairings differ: {', '.join(map(_described, found))}. Give OneOf one for all with pairing="
        )
    return found[0] if found else policy.pairing


def _described(pairing: Pairing) -> str:
    """A pairing with its options; the name of one that has none."""
    plain = type(pairing).__repr__ is object.__repr__
    return type(pairing).__name__ if plain else repr(pairing)


def _for_whole_batches(policy: Policy) -> ValueError:
    return ValueError(
        f"{type(policy).__name__} adds a loss for whole batches, so it cannot be one of several for each sample: "
        'OneOf(per="batch")'
    )


def _as_drawn(mixed: MixedBatch, plan: Plan, index: int) -> MixedBatch:
    """The batch as the member ``index`` of a OneOf alone had drawn it."""
    own = plan.members[index]
    weights = mixed.weights if own.weights is None else own.weights
    return dataclasses.replace(mixed, plan=own, sources=own.sources, weights=weights)


def _normalised(probabilities: Sequence[float] | None, count: int) -> list[float]:
    if probabilities is None:
        return [1.0 / count] * count
    values = check_numbers("OneOf", "probabilities", probabilities)
    if len(values) != count or not sum(values) > 0:
        raise ValueError(
            f"OneOf expects {count} probabilities, not negative and not all zero, got {shown(probabilities)}"
        )
    return [p / sum(values) for p in values]
