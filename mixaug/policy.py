"""`Policy`: the base class of every mixing method, and the two ways to combine policies."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from mixaug import labeling as labelings
from mixaug import pairing as pairings
from mixaug import ratio as ratios
from mixaug.batch import Batch, MixedBatch, rebuild
from mixaug.checks import (
    check_generator,
    check_images,
    check_labels,
    check_out,
    check_per,
    check_probability,
)
from mixaug.draws import Draws, Per
from mixaug.labeling import Labeling
from mixaug.ops.precision import full_precision
from mixaug.pairing import Pairing
from mixaug.plan import Plan, Select, Unmixed
from mixaug.preparation import Preparation
from mixaug.ratio import Ratio
from mixaug.registry import create, options_of
from mixaug.signals import ModelSignals, Seen, Signals, is_compiled, resolve
from mixaug.taps import standing, tapping

#: Options that a policy's ``repr`` shows.
PLAIN = (int, float, str, tuple)


class Policy(nn.Module):
    """Draws a plan for a batch (all randomness) and applies it (none).

    A subclass implements :meth:`sample`. It acts whenever it is called, in ``train()`` and ``eval()``
    mode alike: leave it out of validation. Autocast changes nothing of what it draws: it is off in there,
    but for passes of a model.

    Args:
        alpha: own share lam ~ Beta(alpha, alpha), positive.
        ratio: another distribution of lam: ``"midpoint"``, ``"uniform"``, a share, a Ratio.
        pairing: who mixes with whom: a name of :mod:`mixaug.pairing`, a Pairing, or None for a random
            permutation (random pairs with ``per="pair"``).
        labeling: weight of the labels: ``"area"`` (pixels really kept), ``"ratio"`` (as drawn), ``"attention"`` and
            others of :mod:`mixaug.labeling` (through :class:`mixaug.MixStep`), a Labeling.
        per: ``"sample"`` draws for each sample, ``"batch"`` once for all, ``"pair"`` once for two samples
            that mix with each other.

    Raises:
        ValueError: an option out of range or an unknown name.
    """

    #: Signals that the policy asks of the model: "saliency", "cam", "attention", "features", "outputs" of the unmixed
    #: or the mixed images; "hidden" where it mixes inside the model.
    needs: frozenset[str] = frozenset()
    #: What it reads of the mixed pass through hooks: "attention" of the last block, "attentions" of all, "features",
    #: "pooled" (the classifier's input), "outputs". Whatever it reads it needs.
    reads: frozenset[str] = frozenset()
    #: Numbers of spatial axes it can work on; None for any tensor (B, ...).
    spatial: ClassVar[tuple[int, ...] | None] = (1, 2, 3)

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        ratio: str | float | Ratio = "beta",
        pairing: str | Pairing | None = None,
        labeling: str | Labeling = "area",
        per: Per = "sample",
    ) -> None:
        super().__init__()
        check_per(type(self).__name__, per)
        self.alpha = alpha
        self.ratio: Ratio = ratios.make(ratio, alpha)
        self.pairing: Pairing = pairings.make(pairing, per)
        self.labeling: Labeling = labelings.make(labeling)
        self.per: Per = per
        self.needs = self.needs | self.labeling.needs
        self.reads = self.reads | getattr(self.labeling, "reads", frozenset())
        if self.reads and not self.needs:
            raise ValueError(
                f"{type(self).__name__} reads {sorted(self.reads)} of the mixed pass, but its needs are empty: name "
                "there everything it asks of the model"
            )

    def sample(self, batch: Batch, partner: Tensor, draws: Draws) -> Plan:
        """Draw everything but the partners. The one method that a new policy has to write.

        Args:
            batch: images (B, C, *size) and labels, B >= 2.
            partner: (B,) int64.
            draws: the only source of randomness; ``self.ratio(draws)`` gives lam.

        Returns:
            A plan; its ``weights`` are filled in by the labeling when left at None.
        """
        raise TypeError(f"{type(self).__name__} does not define sample(batch, partner, draws)")

    def draw(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        signals: Any = None,
        generator: Generator | None = None,
    ) -> Plan:
        """Draw a plan for these images.

        Args:
            images: (B, C, *size), floating point or uint8.
            labels: (B,) class ids, (B, K) or (B,) float targets, or None.
            signals: for policies with :attr:`needs`: the model, :class:`mixaug.ModelSignals` or
                :class:`mixaug.Signals`.
            generator: on the images' device; None takes torch's default one.

        Raises:
            ValueError: wrong shape, an empty batch, labels of another length, a missing signal.
            TypeError: a dtype that cannot be mixed.
        """
        batch = Batch(images, labels, resolve(type(self).__name__, signals, images, labels, self.needs))
        self.check(batch)
        check_generator(type(self).__name__, generator, images.device)
        with full_precision(images.device):
            return self.plan(batch, generator)

    def plan(self, batch: Batch, generator: Generator | None, partner: Tensor | None = None) -> Plan:
        """:meth:`draw` for a checked batch, with given partners (B,) int64 where the caller shares them."""
        if len(batch) == 1:
            return Unmixed.of(1, batch.device)
        draws = Draws(len(batch), batch.device, generator, self.per)
        if partner is None:
            partner = self.pairing(batch, draws)
        draws.pair_with(partner)
        plan = self.sample(batch, partner, draws)
        if not isinstance(plan, Plan):
            raise TypeError(f"{type(self).__name__}.sample must return a mixaug.plan.Plan, got {type(plan).__name__}")
        if plan.weights is not None:
            return plan
        return dataclasses.replace(plan, weights=self.labeling(plan, batch))

    def apply(self, images: Any, plan: Plan | None = None, *, inplace: bool = False, out: Tensor | None = None) -> Any:
        """Mix images by a plan. No randomness.

        Args:
            images: the tensor the plan was drawn for, or one like it.
            plan: from :meth:`draw`.
            inplace: write the result into ``images``.
            out: tensor like ``images`` that receives the result; must not overlap it.

        Returns:
            Mixed images, dtype and memory format of ``images``. Where nothing was mixed this may be
            ``images`` itself.
        """
        if plan is None:
            # nn.Module.apply(fn) walks over all submodules: a policy inside a model must go along with it.
            if isinstance(images, Tensor) or not callable(images):
                raise TypeError(f"{type(self).__name__}.apply expects (images, plan); draw a plan first")
            return super().apply(images)
        check_out(type(self).__name__, images, out, inplace)
        with full_precision(images.device):
            return plan.mix(images, out=out, inplace=inplace)

    def forward(
        self,
        images: Any,
        labels: Tensor | None = None,
        *,
        signals: Any = None,
        generator: Generator | None = None,
        keys: Sequence[Hashable] | None = None,
        inplace: bool = False,
        out: Tensor | None = None,
    ) -> MixedBatch:
        """Draw and mix.

        Args:
            images: (B, C, *size) floating point or uint8, or a dict, list or tuple that holds such tensors.
            labels: (B,) class ids, (B, K) or (B,) float targets, or None.
            signals: for policies with :attr:`needs`: the model, :class:`mixaug.ModelSignals` or
                :class:`mixaug.Signals`.
            generator: on the images' device; None takes torch's default one. ``torch.compile`` traces this
                call as one graph without a generator only.
            keys: for a dict, list or tuple: the entries to mix, the images first. The others pass
                through untouched.
            inplace: overwrite the images.
            out: tensor like the images that receives the result; must not overlap them.

        Raises:
            ValueError: wrong shape, an empty batch, labels of another length, a missing signal.
            TypeError: a dtype that cannot be mixed.
        """
        if isinstance(images, Tensor):
            if keys is not None:
                raise ValueError(f"keys={list(keys)} names entries of a dict or tuple, but images is a tensor")
            plan = self.draw(images, labels, signals=signals, generator=generator)
            mixed: Any = self.apply(images, plan, inplace=inplace, out=out)
        else:
            tensors = entries(type(self).__name__, images, keys)
            if out is not None:
                raise ValueError("out= takes a single tensor of images, not a dict or tuple")
            primary = next(iter(tensors.values()))
            plan = self.draw(primary, labels, signals=signals, generator=generator)
            _check_same_batch(type(self).__name__, tensors, primary, plan)
            done = {key: self.apply(tensor, plan, inplace=inplace) for key, tensor in tensors.items()}
            mixed = replaced(images, done)
        weights = plan.weights
        if weights is None:
            raise ValueError(f"{type(self).__name__} drew a plan without weights")
        return MixedBatch(inputs=mixed, labels=labels, sources=plan.sources, weights=weights, plan=plan)

    def check(self, batch: Batch) -> None:
        """Raise a clear error for a batch that this policy cannot mix."""
        what = type(self).__name__
        check_images(what, batch.images, self.spatial)
        check_labels(what, batch.labels, batch.images)
        if self.needs and batch.signals is None:
            raise ValueError(
                f"{what} needs {', '.join(sorted(self.needs))} of the model: "
                "train through mixaug.MixStep, or pass signals=model (or mixaug.Signals) and run the model inside "
                "policy.tap"
            )
        if self.needs_labels and batch.labels is None:
            raise ValueError(
                f"{what} pairs by labels: pass labels with the images, or choose another pairing such as "
                'pairing="permutation"'
            )

    @property
    def needs_labels(self) -> bool:
        """Whether the policy looks at labels to choose partners, so that ``labels=None`` is an error."""
        return bool(getattr(self.pairing, "needs_labels", False))

    def attach(self, model: nn.Module | ModelSignals) -> None:
        """Show the policy, and those inside it, the model that it will train with, before an optimizer is made."""
        signals = model if isinstance(model, ModelSignals) else ModelSignals(model)
        for module in self.modules():
            if isinstance(module, Policy):
                module.on_attach(signals)

    def on_attach(self, signals: ModelSignals) -> None:
        """Hook for policies whose parameters have the model's sizes. Does nothing by default."""

    @contextlib.contextmanager
    def tap(self, model: nn.Module | ModelSignals, mixed: MixedBatch, clean: Signals | None = None) -> Iterator[Seen]:
        """Take part in the mixed pass: ``with policy.tap(model, mixed) as seen: logits = model(mixed.inputs)``.

        ``mixed`` comes from ``policy(images, labels, signals=model)``. Forward hooks mix hidden features where the plan
        says so, and record what the policy :attr:`reads`; they are removed on leaving, after an error too. Where
        activation checkpointing calls a module again during the backward pass, the same draw is replayed.
        :class:`mixaug.MixStep` does all this.

        Args:
            model: the model that is about to run, or ModelSignals that say where its parts are.
            mixed: the batch that it will see.
            clean: signals of the unmixed images, for policies that compare both.

        Raises:
            ValueError: the model has no module of a name in the plan, or ran without calling it.
        """
        source = model if isinstance(model, ModelSignals) else ModelSignals(model)
        seen = Seen(source, self.reads, clean)
        what, model = type(self).__name__, source.inner
        looks = bool(self.reads or self.needs - {"hidden"})
        with contextlib.ExitStack() as stack:
            if is_compiled(source.model):
                recorder = seen.recorder if looks else None
                stack.enter_context(standing(what, model, self.hidden_stages(source), mixed.plan, recorder))
            else:
                if mixed.plan is not None and mixed.plan.stages:
                    stack.enter_context(tapping(what, model, mixed.plan))
                if looks:
                    stack.enter_context(seen.recorder.watching())
            yield seen

    def hidden_stages(self, signals: Signals | ModelSignals) -> tuple[str, ...]:
        """Names of all modules of the model whose outputs a plan of this policy may mix; none for most policies."""
        return ()

    def relabel(self, mixed: MixedBatch, seen: Seen) -> MixedBatch:
        """The batch with the weights that only the mixed pass could tell; the same batch for most policies.

        Args:
            mixed: from this policy.
            seen: from :meth:`tap`, after the model has run.
        """
        plan = mixed.plan
        if plan is None or isinstance(plan, Unmixed) or not getattr(self.labeling, "reads", None):
            return mixed
        weights: Tensor = self.labeling.after(plan, mixed, seen)  # type: ignore[attr-defined]
        return dataclasses.replace(mixed, weights=weights)

    def early_loss(self, images: Tensor, mixed: MixedBatch, clean: Signals) -> dict[str, Tensor]:
        """Terms of the loss that do not wait for the mixed pass: scalars, weighted, by the names to log.

        Called before the mixed pass, so that what a term keeps for its gradient can be gone when that pass begins:
        see :func:`mixaug.signals.taken_now`. None by default.

        Args:
            images: (B, C, *size) unmixed.
            mixed: from this policy.
            clean: signals of the unmixed images.
        """
        return {}

    def auxiliary_loss(self, mixed: MixedBatch, seen: Seen) -> dict[str, Tensor]:
        """Terms that the policy adds to the loss of the step: scalars, weighted, by the names to log. None by default.

        Args:
            mixed: from :meth:`relabel`.
            seen: from :meth:`tap`, after the model has run.
        """
        return {}

    def mixer_parameters(self) -> list[nn.Parameter]:
        """Parameters of a learned mixer, which an optimizer may give settings of their own; none for most policies."""
        return []

    #: Whether partners mean anything to it: not to one that never mixes.
    has_partners: ClassVar[bool] = True
    #: Whether ``inplace=True`` and ``out=`` can be asked for.
    writes_in_place: ClassVar[bool] = True

    def prepare(self, preparation: Preparation) -> None:
        """Let the policy, and those inside it, look at the data of a run once, before the first step."""
        for module in self.modules():
            if isinstance(module, Policy):
                module.on_prepare(preparation)

    def on_prepare(self, preparation: Preparation) -> None:
        """Hook for policies that learn from the training data beforehand. Does nothing by default."""

    @property
    def needs_rows(self) -> bool:
        """Whether ``forward`` has to be told which rows of a training set the samples are (:class:`mixaug.Pooled`)."""
        return False

    def set_progress(self, fraction: float) -> None:
        """Tell the policy, and those inside it, how much of training is done: 0 at the start, 1 at the end."""
        fraction = check_probability("set_progress", "fraction", fraction)
        for module in self.modules():
            if isinstance(module, Policy):
                module.on_progress(fraction)

    def on_progress(self, fraction: float) -> None:
        """Hook for policies that change during training. Does nothing by default."""

    def after_step(self, model: nn.Module) -> None:
        """To be called after every optimizer step, with the trained model. By default tells the policies inside."""
        for policy in _inside(self):
            policy.after_step(model)

    def extra_repr(self) -> str:
        shown = []
        options = options_of(type(self))
        for name, default in options.items():
            value = getattr(self, name, default)
            if isinstance(value, PLAIN) and not (isinstance(default, PLAIN) and value == default):
                shown.append(f"{name}={value!r}")
        ratio, labeling = options.get("ratio"), options.get("labeling")
        if isinstance(ratio, str) and repr(self.ratio) != repr(ratios.make(ratio, self.alpha)):
            shown.append(f"ratio={self.ratio!r}")
        if isinstance(labeling, str) and type(self.labeling) is not type(labelings.make(labeling)):
            names = {made: name for name, made in labelings.NAMED.items()}
            shown.append(f"labeling={names.get(type(self.labeling), type(self.labeling).__name__)!r}")
        # Of the plain pairings the name is an option already; the others say what they were made with.
        if type(self.pairing).__repr__ is not object.__repr__:
            shown.append(f"pairing={self.pairing!r}")
        return ", ".join(shown)


class OneOf(Policy):
    """Mix with one of several policies, chosen at random: DeiT's and RSB's Mixup/CutMix switch.

    Args:
        policies: policies, or names of the registry.
        probabilities: one weight for each, not negative; equal when None. They are normalised.
        per: ``"batch"`` chooses once for all samples, ``"sample"`` for each, ``"pair"`` for each pair.
        pairing: partners shared by all the policies; None lets each draw its own (``per="pair"``
            always shares, random pairs by default).

    Raises:
        ValueError: no policies, or probabilities that do not fit them.
    """

    def __init__(
        self,
        policies: Sequence[Policy | str] = ("mixup", "cutmix"),
        probabilities: Sequence[float] | None = None,
        *,
        per: Per = "batch",
        pairing: str | Pairing | None = None,
    ) -> None:
        super().__init__(per=per, pairing=pairing)
        if isinstance(policies, str) or not len(policies):
            raise ValueError(f"OneOf expects a sequence of at least one policy, got {policies!r}")
        built = [create(policy) if isinstance(policy, str) else policy for policy in policies]
        for policy in built:
            if not isinstance(policy, Policy):
                raise TypeError(f"OneOf expects policies or their names, got {type(policy).__name__}")
        self.policies = nn.ModuleList(built)
        self.probabilities = _normalised(probabilities, len(built))
        self.shares_partner = pairing is not None or per == "pair"
        self.needs = frozenset().union(*(policy.needs for policy in built))
        self.reads = frozenset().union(*(policy.reads for policy in built))

    @property
    def needs_labels(self) -> bool:
        members = any(policy.needs_labels for policy in self._members()) and not self.shares_partner
        return members or super().needs_labels

    def check(self, batch: Batch) -> None:
        for policy in self._members():
            policy.check(batch)
        if self.needs_labels and batch.labels is None:
            raise ValueError(f"{type(self).__name__} pairs by labels: pass labels with the images")

    def plan(self, batch: Batch, generator: Generator | None, partner: Tensor | None = None) -> Plan:
        if len(batch) == 1:
            return Unmixed.of(1, batch.device)
        draws = Draws(len(batch), batch.device, generator, self.per)
        if partner is None and self.shares_partner:
            partner = self.pairing(batch, draws)
        if partner is not None:
            draws.pair_with(partner)
        if self.needs and self.per == "batch":
            # A policy that was not chosen must not cost a pass of the model.
            return self._chosen(self._index(draws.host_uniform()), batch, generator, partner)
        unit = draws.uniform()
        choice = torch.zeros_like(unit, dtype=torch.int64)
        for passed in self._borders():
            choice = choice + (unit >= passed)
        if choice.shape[0] == 1 and choice.device.type == "cpu" and not torch.compiler.is_compiling():
            # Reading one number is free on a CPU and saves drawing and mixing by every policy.
            return self._chosen(int(choice), batch, generator, partner)
        return Select.of(choice, [policy.plan(batch, generator, partner) for policy in self._members()])

    def relabel(self, mixed: MixedBatch, seen: Seen) -> MixedBatch:
        plan = mixed.plan
        if not self.reads or plan is None:
            return mixed
        if isinstance(plan, Select):
            each = [policy.relabel(_as_drawn(mixed, plan, i), seen) for i, policy in enumerate(self._members())]
            again = [dataclasses.replace(own, weights=m.weights) for own, m in zip(plan.plans, each, strict=True)]
            weights = Select.of(plan.choice, again).weights
            assert weights is not None  # a Select joins the weights of its plans
            return dataclasses.replace(mixed, weights=weights)
        if not plan.route:
            return mixed
        index, *deeper = plan.route
        inner = dataclasses.replace(mixed, plan=dataclasses.replace(plan, route=tuple(deeper)))
        return dataclasses.replace(self._members()[index].relabel(inner, seen), plan=plan)

    def early_loss(self, images: Tensor, mixed: MixedBatch, clean: Signals) -> dict[str, Tensor]:
        plan = mixed.plan
        if isinstance(plan, Select):
            for index, policy in enumerate(self._members()):
                if policy.early_loss(images, _as_drawn(mixed, plan, index), clean):
                    raise _for_whole_batches(policy)
            return {}
        if plan is None or not plan.route:
            return {}
        index, *deeper = plan.route
        inner = dataclasses.replace(mixed, plan=dataclasses.replace(plan, route=tuple(deeper)))
        return self._members()[index].early_loss(images, inner, clean)

    def auxiliary_loss(self, mixed: MixedBatch, seen: Seen) -> dict[str, Tensor]:
        plan = mixed.plan
        if isinstance(plan, Select):
            terms: dict[str, Tensor] = {}
            for index, policy in enumerate(self._members()):
                for name, term in policy.auxiliary_loss(_as_drawn(mixed, plan, index), seen).items():
                    # The clean batch is the same whoever mixes it; every other term is of the mixed samples.
                    if name != "clean_loss":
                        raise _for_whole_batches(policy)
                    terms[name] = term + terms.get(name, 0)
            return terms
        if plan is None:
            return {}
        index, *deeper = plan.route or (-1,)
        terms, idle = {}, [policy for i, policy in enumerate(self._members()) if i != index]
        if plan.route:
            inner = dataclasses.replace(mixed, plan=dataclasses.replace(plan, route=tuple(deeper)))
            terms = self._members()[index].auxiliary_loss(inner, seen)
        unused = [p for policy in idle for p in policy.parameters() if p.requires_grad]
        if unused:
            terms = terms | {"not_drawn": no_change(unused)}
        return terms

    def hidden_stages(self, signals: Signals | ModelSignals) -> tuple[str, ...]:
        every = [name for policy in self._members() for name in policy.hidden_stages(signals)]
        return tuple(dict.fromkeys(every))

    def _borders(self) -> list[float]:
        return list(itertools.accumulate(self.probabilities[:-1]))

    def _index(self, unit: float) -> int:
        return sum(unit >= passed for passed in self._borders())

    def _chosen(self, index: int, batch: Batch, generator: Generator | None, partner: Tensor | None) -> Plan:
        plan = self._members()[index].plan(batch, generator, partner)
        return dataclasses.replace(plan, route=(index, *plan.route))

    def extra_repr(self) -> str:
        return f"probabilities={[round(p, 4) for p in self.probabilities]}, per={self.per!r}"

    def _members(self) -> list[Policy]:
        return [policy for policy in self.policies if isinstance(policy, Policy)]


class Sometimes(OneOf):
    """Mix with a probability, and, if asked, only during the first part of training.

    Early-stopped mixup (arXiv:2303.08433) is ``Sometimes(policy, until=0.5)``; CutMix on CIFAR
    (arXiv:1905.04899) is ``Sometimes("cutmix", 0.5)``.

    Args:
        policy: a policy, or a name of the registry.
        probability: chance to mix, in [0, 1].
        until: fraction of training in (0, 1] after which nothing is mixed any more; the training loop
            must then call :meth:`set_progress` (the engine does).
        per: ``"batch"`` decides once for all samples, ``"sample"`` for each, ``"pair"`` for each pair.

    Raises:
        ValueError: a probability or fraction out of range.
        RuntimeError: when drawing, if ``until`` is set and ``set_progress`` was never called.
    """

    def __init__(
        self,
        policy: Policy | str = "mixup",
        probability: float = 1.0,
        until: float | None = None,
        *,
        per: Per = "batch",
    ) -> None:
        probability = check_probability("Sometimes", "probability", probability)
        if until is not None and not 0.0 < until <= 1.0:
            raise ValueError(f"Sometimes expects until in (0, 1], got {until!r}")
        super().__init__([policy, "none"], [probability, 1.0 - probability], per=per)
        self.probability = probability
        self.until = until
        self.active: bool | None = None if until is not None else True

    def on_progress(self, fraction: float) -> None:
        # A flag that flips once, not the fraction: a compiled step would be compiled anew each time.
        self.active = self.until is None or fraction < self.until

    def plan(self, batch: Batch, generator: Generator | None, partner: Tensor | None = None) -> Plan:
        if self.active is None:
            raise RuntimeError(
                f"Sometimes(until={self.until}) does not know how far training is: "
                "call policy.set_progress(step / total_steps) before each step"
            )
        if not self.active:
            return Unmixed.of(len(batch), batch.device)
        return super().plan(batch, generator, partner)

    def extra_repr(self) -> str:
        return f"probability={self.probability:g}, until={self.until}, per={self.per!r}"


def no_change(parameters: Iterable[Tensor]) -> Tensor:
    """0, with a gradient of 0 to every parameter: DistributedDataParallel wants one for each of them in every step."""
    return torch.stack([0 * parameter.float().sum() for parameter in parameters]).sum()


def _for_whole_batches(policy: Policy) -> ValueError:
    return ValueError(
        f"{type(policy).__name__} adds a loss for whole batches, so it cannot be one of several for each sample: "
        'OneOf(per="batch")'
    )


def _inside(module: nn.Module) -> Iterator[Policy]:
    """The nearest policies below a module."""
    for child in module.children():
        if isinstance(child, Policy):
            yield child
        else:
            yield from _inside(child)


def _as_drawn(mixed: MixedBatch, plan: Select, index: int) -> MixedBatch:
    """The batch as the member ``index`` of a OneOf alone had drawn it."""
    own = plan.plans[index]
    weights = mixed.weights if own.weights is None else own.weights
    return dataclasses.replace(mixed, plan=own, sources=own.sources, weights=weights)


def _normalised(probabilities: Sequence[float] | None, count: int) -> list[float]:
    if probabilities is None:
        return [1.0 / count] * count
    values = [float(p) for p in probabilities]
    if len(values) != count or not sum(values) > 0 or not all(0 <= p < float("inf") for p in values):
        raise ValueError(
            f"OneOf expects {count} probabilities, not negative and not all zero, got {list(probabilities)}"
        )
    return [p / sum(values) for p in values]


def entries(what: str, inputs: Any, keys: Sequence[Any] | None) -> dict[Any, Tensor]:
    """The tensors that ``keys`` names in a dict, list or tuple, the images first."""
    if not isinstance(inputs, (dict, list, tuple)):
        raise TypeError(f"{what} expects a tensor, dict, list or tuple of tensors, got {type(inputs).__name__}")
    known = list(inputs) if isinstance(inputs, dict) else list(range(len(inputs)))
    if not keys or isinstance(keys, str):
        raise ValueError(f"{what}: name the entries to mix, images first, as in keys={known[:1]}; got keys={keys!r}")
    missing = [key for key in keys if key not in known]
    if missing:
        raise ValueError(f"{what}: keys names {missing[0]!r}, but the batch has {known}")
    found = {key: inputs[key] for key in keys}
    for key, value in found.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{what}: entry {key!r} is a {type(value).__name__}, not a tensor")
    return found


def _check_same_batch(what: str, tensors: dict[Any, Tensor], primary: Tensor, plan: Plan) -> None:
    for key, tensor in tensors.items():
        if tensor.ndim == 0 or tensor.shape[0] != primary.shape[0]:
            raise ValueError(
                f"{what}: entry {key!r} has shape {tuple(tensor.shape)}, the images {primary.shape[0]} rows"
            )
        if plan.size and tuple(tensor.shape[-len(plan.size) :]) != plan.size:
            raise ValueError(
                f"{what}: entry {key!r} has shape {tuple(tensor.shape)}, but must end in the images' size {plan.size}"
            )


def replaced(inputs: Any, done: dict[Any, Tensor]) -> Any:
    """A dict, list or tuple with some of its entries replaced."""
    if isinstance(inputs, dict):
        return {key: done.get(key, value) for key, value in inputs.items()}
    return rebuild(inputs, [done.get(index, value) for index, value in enumerate(inputs)])
