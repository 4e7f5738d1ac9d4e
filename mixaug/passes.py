"""`Passes` and `Objective`: what is run in a training step, and what is minimised.

An objective is a short piece of ordinary PyTorch. It gets a :class:`Passes`, asks for the batches and passes that it
needs, and returns the weighted terms of the loss. Whatever is asked for twice is drawn or run once, whoever asks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, overload

import torch
from torch import Generator, Tensor, nn

from mixaug.batch import Batch, MixedBatch, unmixed
from mixaug.draws import as_default_stream
from mixaug.frozen import BriefRepr
from mixaug.losses import MixedCrossEntropy
from mixaug.networks import network_in
from mixaug.ops.nested import concatenated, map_tensors
from mixaug.ops.precision import full_precision
from mixaug.plan import JoinedPlan, Plan, Unmixed
from mixaug.policy import Policy
from mixaug.preparation import Inspection
from mixaug.signals import CleanSignals, MixedSignals, Mode, ModelSignals, is_compiled
from mixaug.signals.hooks import hooked
from mixaug.signals.model import in_mode
from mixaug.wants import Wants, check_there

__all__ = ["Objective", "OnePass", "Outcome", "Passes", "Wants", "as_objective", "check_there"]

#: Names of the step's own policy among draws and of its model among networks.
POLICY, MODEL = "policy", "model"


@dataclass(frozen=True)
class Outcome(BriefRepr):
    """What one pass gave.

    Attributes:
        outputs: of the network for these rows, such as logits (B, K).
        batch: that was run, with the labels that only the pass could tell (``Policy.relabel``).
        seen: what the pass showed at the places that were asked for (``reads``); None where nothing was.
    """

    outputs: Any
    batch: MixedBatch
    seen: MixedSignals | None = None


class StepLike(Protocol):
    """What :class:`Passes` needs of a step."""

    model: nn.Module
    policy: Policy
    networks: nn.ModuleDict

    def signals(self) -> ModelSignals: ...


@dataclass(frozen=True)
class _Run:
    """A pass that has been run for one batch, and how."""

    batch: MixedBatch
    group: tuple[MixedBatch, ...]
    network: str
    grad: bool
    mode: Mode
    reads: frozenset[str]
    outcome: Outcome

    def serves(self, batch: MixedBatch, group: tuple[MixedBatch, ...], how: _How) -> bool:
        """Whether it answers another question for the same batch."""
        together = len(group) == len(self.group) and all(a is b for a, b in zip(group, self.group, strict=True))
        same = (self.network, self.grad, self.mode) == (how.network, how.grad, how.mode)
        return self.batch is batch and together and same and how.reads <= self.reads


@dataclass(frozen=True)
class _How:
    """How a pass is run."""

    network: str
    grad: bool
    mode: Mode
    reads: frozenset[str]


class Passes:
    """The batches and passes of one step, made when they are first asked for.

    Args:
        step: the model, the policy and the networks beside them.
        batch: as the loader brought it.
        generator: of all draws; None takes torch's default one.
        wants: what the objective may ask for; None allows everything that is there.
        keys, layout: entries of dictionary inputs to mix, and where the channels are, see
            :meth:`mixaug.Policy.forward`.
        extent_keys: entries of the inputs that say how far they reach, see :meth:`mixaug.MixedBatch.with_extents`.
    """

    def __init__(
        self,
        step: StepLike,
        batch: Batch,
        generator: Generator | None = None,
        wants: Wants | None = None,
        keys: Any = None,
        layout: str | None = None,
        extent_keys: Any = (),
    ) -> None:
        self.step = step
        self.batch = batch
        self.generator = generator
        self.wants = wants
        self.keys = keys
        self.layout = layout
        self.extent_keys = extent_keys
        self.source = step.signals()
        self.signals: CleanSignals = self.source.of(batch.inputs, batch.labels, step.policy.needs)
        self._clean: MixedBatch | None = None
        self._draws: list[MixedBatch] = []
        self._named: dict[tuple[str, str], MixedBatch] = {}
        self._runs: list[_Run] = []
        self._terms: list[dict[str, Tensor]] = []

    @property
    def clean(self) -> MixedBatch:
        """The batch that nothing is mixed into."""
        if self._clean is None:
            self._clean = dataclasses.replace(
                unmixed(self.batch.inputs, self.batch.labels), metadata=self.batch.metadata
            )
        return self._clean

    @property
    def mixed(self) -> MixedBatch:
        """The policy's draw."""
        return self.draw()

    def draw(self, policy: str = POLICY, index: int = 1) -> MixedBatch:
        """A draw of the policy; draws of other numbers are independent of it.

        Args:
            policy: name of the policy; a step has one, ``"policy"``.
            index: 1, 2, ...: which draw. Draws are made in the order of their numbers.

        Raises:
            ValueError: another name, or a number below 1.
        """
        if policy != POLICY:
            raise ValueError(f"the step has no policy {policy!r}; it has {[POLICY]}")
        if index < 1:
            raise ValueError(f"draw expects index as a number from 1 on, got {index!r}")
        while len(self._draws) < index:
            self._draws.append(self._draw())
        return self._draws[index - 1]

    def view(self, name: str) -> MixedBatch:
        """Another augmentation of the same samples, unmixed.

        Raises:
            ValueError: the objective does not name it in ``wants``, or the batch lacks it.
        """
        return self._unmixed("views", name, self.batch.views, lambda inputs: unmixed(inputs, self.batch.labels))

    def stream(self, name: str) -> MixedBatch:
        """The batch of another source, unmixed.

        Raises:
            ValueError: the objective does not name it in ``wants``, or the batch lacks it.
        """
        return self._unmixed("streams", name, self.batch.streams, lambda other: unmixed(other.inputs, other.labels))

    def metadata(self, name: str) -> Tensor:
        """(B, ...) what is known of each sample.

        Raises:
            ValueError: the objective does not name it in ``wants``, or the batch lacks it.
        """
        self._check_wanted("metadata", name, self.batch.metadata)
        return self.batch.metadata[name]

    @overload
    def run(
        self,
        batch: MixedBatch,
        /,
        *,
        network: str = ...,
        joined: bool = ...,
        grad: bool = ...,
        mode: Mode = ...,
        reads: tuple[str, ...] = ...,
    ) -> Outcome: ...

    @overload
    def run(
        self,
        first: MixedBatch,
        second: MixedBatch,
        /,
        *others: MixedBatch,
        network: str = ...,
        joined: bool = ...,
        grad: bool = ...,
        mode: Mode = ...,
        reads: tuple[str, ...] = ...,
    ) -> tuple[Outcome, ...]: ...

    def run(
        self,
        *batches: MixedBatch,
        network: str = MODEL,
        joined: bool = False,
        grad: bool = True,
        mode: Mode = "train",
        reads: tuple[str, ...] = (),
    ) -> Outcome | tuple[Outcome, ...]:
        """Run a network on one or more batches.

        Args:
            *batches: what to run on.
            network: ``"model"``, or the name of a network of the step.
            joined: one forward for all of them, so that batch norm sees all; each alone otherwise.
            grad: keep what a gradient needs.
            mode: ``"train"`` runs the network as the user left it, ``"eval"`` with its statistics and dropout as in
                evaluation.
            reads: what to record of the pass, see :attr:`mixaug.Policy.reads`; for the model only.

        Returns:
            An :class:`Outcome` for one batch, a tuple of them for more.

        Raises:
            ValueError: no batch, an unknown network or mode, ``reads`` of another network than the model.
        """
        if not batches:
            raise ValueError("run expects at least one batch")
        if mode not in ("train", "eval"):
            raise ValueError(f"run expects mode 'train' or 'eval', got {mode!r}")
        if reads and network != MODEL:
            raise ValueError(f"run records what the model shows; network={network!r} cannot be read")
        how = _How(network, grad and torch.is_grad_enabled(), mode, frozenset(reads))
        groups = [batches] if joined else [(batch,) for batch in batches]
        outcomes = [outcome for group in groups for outcome in self._run_group(group, how)]
        return outcomes[0] if len(batches) == 1 else tuple(outcomes)

    @property
    def terms(self) -> dict[str, Tensor]:
        """The policy's own terms of the loss by name. Where it learns from several draws, their mean."""
        each: dict[str, list[Tensor]] = {}
        for terms in self._terms:
            for name, term in terms.items():
                each.setdefault(name, []).append(term)
        return {name: values[0] if len(values) == 1 else torch.stack(values).mean(0) for name, values in each.items()}

    @property
    def shown(self) -> Outcome | None:
        """What the model made of the first mixed batch it saw, or of the first batch of all: for logs."""
        of_model = [run for run in self._runs if run.network == MODEL]
        mixed = [run for run in of_model if self._is_drawn(run.batch)]
        return (mixed or of_model)[0].outcome if of_model else None

    def _draw(self) -> MixedBatch:
        more: dict[str, Any] = {} if self.keys is None else {"keys": self.keys}
        if self.layout is not None:
            more["layout"] = self.layout
        policy, generator = self.step.policy, self.generator
        source = policy.partners
        if source is not None:
            source.paused = True
        try:
            return self._drawn_by(policy, generator, more)
        finally:
            if source is not None:
                source.paused = False

    def _drawn_by(self, policy: Policy, generator: Generator | None, more: dict[str, Any]) -> MixedBatch:
        # A policy that replaces forward(inputs, labels) need not know of batches with more in them.
        batch = self.batch
        more_than_pairs = batch.metadata or batch.views or batch.streams or batch.signals is not None
        whole = policy.partners is not None or more_than_pairs
        given = (batch,) if whole else (batch.inputs, batch.labels)
        if generator is not None and policy._compiled_call_impl is not None:
            # What is compiled draws from the default stream alone, and asks no model that it would have to trace.
            with as_default_stream(generator):
                mixed: MixedBatch = policy(*given, **more)
        else:
            mixed = policy(*given, signals=self.signals, generator=generator, **more)
        return mixed.with_extents(self.extent_keys) if self.extent_keys else mixed

    def finish(self) -> None:
        """Let partners that are kept from batch to batch take in the step's first draw."""
        source = self.step.policy.partners
        if source is not None and self._draws:
            source.remember(self.batch, self._draws[0])

    def _is_drawn(self, batch: MixedBatch) -> bool:
        return any(batch is drawn for drawn in self._draws)

    def _run_group(self, group: tuple[MixedBatch, ...], how: _How) -> list[Outcome]:
        kept = [next((r.outcome for r in self._runs if r.serves(batch, group, how)), None) for batch in group]
        if all(outcome is not None for outcome in kept):
            return [outcome for outcome in kept if outcome is not None]
        # The policy acts around the first training pass of each of its draws.
        learning = [
            batch
            for batch in group
            if (how.network, how.grad, how.mode) == (MODEL, torch.is_grad_enabled(), "train")
            and self._is_drawn(batch)
            and not any(run.batch is batch and run.network == MODEL for run in self._runs)
        ]
        policy = self.step.policy
        # What a term keeps for its gradient can be gone when the pass begins.
        early = [policy.early_loss(self.batch.inputs, batch, self.signals) for batch in learning]
        outcomes = []
        run = self._shared if self._is_shared(group, how) else self._forward
        for batch, outputs, seen in run(group, how):
            done = batch
            for term, drawn in zip(early, learning, strict=True):
                if drawn is batch and seen is not None:
                    with full_precision(batch.weights.device):
                        done = policy.relabel(batch, seen)
                    self._terms.append(term | policy.auxiliary_loss(done, seen))
            outcome = Outcome(outputs, done, seen)
            self._runs.append(_Run(batch, group, how.network, how.grad, how.mode, how.reads, outcome))
            outcomes.append(outcome)
        return outcomes

    def _is_shared(self, group: tuple[MixedBatch, ...], how: _How) -> bool:
        """Whether a pass is one that the policy's signals may have run, or may ask for: the clean batch alone."""
        looks = bool(self.step.policy.needs - {"hidden"}) and self.signals.shares_passes
        return looks and how.network == MODEL and len(group) == 1 and group[0] is self._clean

    def _shared(self, group: tuple[MixedBatch, ...], how: _How) -> list[tuple[MixedBatch, Any, MixedSignals | None]]:
        # Where the policy has drawn, it has asked for the saliency by now, or does without.
        saliency = "saliency" in self.step.policy.needs and not self._draws
        recorder = self.signals.shared_pass(how.mode, how.reads, how.grad, saliency)
        outputs = recorder.shown["outputs"]
        seen = MixedSignals(self.source, how.reads, self.signals)
        seen.recorder = recorder
        return [(group[0], outputs if how.grad else map_tensors(outputs, torch.Tensor.detach), seen)]

    def _forward(self, group: tuple[MixedBatch, ...], how: _How) -> list[tuple[MixedBatch, Any, MixedSignals | None]]:
        """One forward for a group: each batch with its outputs and with what the model showed of it."""
        module = self.network(how.network)
        inputs = group[0].inputs if len(group) == 1 else concatenated([batch.inputs for batch in group])
        plan = group[0].plan if len(group) == 1 else JoinedPlan.of([_plan_of(batch) for batch in group])
        seen: MixedSignals | None = None
        contexts: list[Any] = []
        if how.network == MODEL:
            policy, compiled = self.step.policy, is_compiled(self.source.model)
            drawn = any(self._is_drawn(batch) for batch in group)
            seen = MixedSignals(self.source, how.reads | (policy.reads if drawn else frozenset()), self.signals)
            looks = bool(seen.recorder.wanted) or (drawn and bool(policy.needs - {"hidden"}))
            if looks or (plan is not None and plan.stages) or compiled:
                contexts.append(
                    hooked(
                        type(policy).__name__,
                        self.source.inner,
                        plan=plan,
                        recorder=seen.recorder if looks else None,
                        persistent=compiled,
                        stages=policy.hidden_stages(self.source) if compiled else (),
                    )
                )
        elif plan is not None and plan.stages:
            contexts.append(hooked(f"network {how.network!r}", network_in(module), plan=plan))
        if how.mode == "eval":
            contexts.append(in_mode(module, how.mode))
        with torch.set_grad_enabled(how.grad):
            outputs = _called(module, inputs, contexts)
        if len(group) == 1:
            return [(group[0], outputs, seen)]
        parts, start = [], 0
        for batch in group:
            rows = slice(start, start + len(batch))
            own = map_tensors(outputs, operator.itemgetter(rows))
            parts.append((batch, own, None if seen is None else seen.part(rows, sum(map(len, group)))))
            start = rows.stop
        return parts

    def network(self, name: str) -> nn.Module:
        """The model, or a network of the step by its name, to ask it for more than its outputs.

        Raises:
            ValueError: the objective does not name it in ``wants``, or the step lacks it.
        """
        if name == MODEL:
            return self.step.model
        self._check_wanted("networks", name, dict(self.step.networks.items()))
        return self.step.networks[name]

    def _unmixed(self, kind: str, name: str, there: Mapping[str, Any], make: Callable[[Any], MixedBatch]) -> MixedBatch:
        self._check_wanted(kind, name, there)
        if (kind, name) not in self._named:
            self._named[kind, name] = make(there[name])
        return self._named[kind, name]

    def _check_wanted(self, kind: str, name: str, there: Mapping[str, Any]) -> None:
        if self.wants is not None and name not in getattr(self.wants, kind):
            raise ValueError(
                f"the objective asks for {name!r} of {kind}, which it does not name in its wants: "
                f"wants = Wants({kind}=({name!r},))"
            )
        check_there(kind, name, there)


def check_joins(what: str, step: Any) -> None:
    """Raise a ValueError where the policy's batch cannot share a pass with another one, as ``what`` would have it."""
    if step.policy.partners is not None and "hidden" in step.policy.needs:
        raise ValueError(
            f"{what} joins or changes what the model gets, but {type(step.policy).__name__} hands partners from "
            "outside on into the model, which mixes them: choose partners of the batch, or a policy that mixes inputs"
        )


class Objective(nn.Module):
    """What is run in a step and what is minimised. A subclass defines :meth:`forward`.

    Args:
        loss: of one pass, (outputs, MixedBatch) to a scalar; None takes the cross-entropy.

    Example:
        >>> class Both(Objective):
        ...     def forward(self, passes):
        ...         clean, mixed = passes.run(passes.clean, passes.mixed)
        ...         return {
        ...             "clean": self.loss(clean.outputs, clean.batch),
        ...             "mixed": self.loss(mixed.outputs, mixed.batch),
        ...         }
    """

    #: The plain loss, (outputs, MixedBatch) to a scalar, also for policies that take a loss of their own passes.
    loss: Callable[[Any, MixedBatch], Tensor]
    #: What the labels are: "classification", "regression", or None for either.
    task: str | None = "classification"
    #: Needs of the objective beside the batch; one that is not met is an error when the step is made.
    wants: Wants = Wants()
    #: The policy that its source trains with, by name, and that policy's options where they are not the defaults.
    usual_policy: ClassVar[tuple[str, Mapping[str, Any]]] = ("none", {})

    def __init__(self, loss: Callable[[Any, MixedBatch], Tensor] | None = None) -> None:
        super().__init__()
        self.loss = MixedCrossEntropy() if loss is None else loss

    def forward(self, passes: Passes) -> Tensor | Mapping[str, Tensor]:
        """The loss: a scalar, or weighted terms by the names to log, which are added up."""
        raise TypeError(f"{type(self).__name__} does not define forward(passes)")

    #: Optimizer steps between two calls of :meth:`on_refresh`, or ``"epoch"``; None for objectives that ask for none.
    refresh_every: int | Literal["epoch"] | None = None
    #: The set that they look at: ``"valid"`` or ``"train"``.
    refresh_split: str = "valid"

    def attach(self, step: Any) -> None:
        """Called when a step is made of it: raises a ValueError where the step's parts do not go with it."""

    def prepare_batch(self, batch: Batch, generator: Generator | None = None) -> Batch:
        """The batch that a step is made of, from the one that came: with pseudo-labels, say, or replayed samples."""
        return batch

    def on_refresh(self, inspection: Inspection) -> None:
        """Hook for objectives that look at a whole set again and again. Does nothing by default."""

    def after_step(self, step: Any) -> None:
        """To be called after every optimizer step, for queues and running values. Does nothing by default."""


class OnePass:
    """A plain loss ``(outputs, MixedBatch) -> Tensor`` as an objective: one pass of the mixed batch."""

    def __init__(self, loss: Callable[[Any, MixedBatch], Tensor]) -> None:
        self.loss = loss
        self.wants = Wants()

    def prepare_batch(self, batch: Batch, generator: Generator | None = None) -> Batch:
        return batch

    def __call__(self, passes: Passes) -> Tensor:
        outcome = passes.run(passes.mixed)
        return self.loss(outcome.outputs, outcome.batch)


def as_objective(objective: Any) -> Objective | OnePass:
    """The objective itself, or a plain loss as one.

    Raises:
        TypeError: it cannot be called.
    """
    if isinstance(objective, Objective):
        return objective
    if not callable(objective):
        raise TypeError(
            "MixStep expects objective as a mixaug.Objective or a loss (outputs, MixedBatch) -> Tensor, got "
            f"{type(objective).__name__}"
        )
    return OnePass(objective)


def _called(module: nn.Module, inputs: Any, contexts: list[Any]) -> Any:
    # Without contexts this is a plain call: torch.compile traces no stack of them.
    if not contexts:
        return module(inputs)
    with contextlib.ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        return module(inputs)


def _plan_of(batch: MixedBatch) -> Plan:
    # A plan that does not act inside the model has no part in the pass.
    if batch.plan is None or not batch.plan.stages:
        return Unmixed.of(len(batch), batch.sources.device)
    return batch.plan
