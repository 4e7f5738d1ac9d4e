"""`Policy`: the base class of every mixing method."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from mixaug import labeling as labelings
from mixaug import pairing as pairings
from mixaug import partners as sources_of_partners
from mixaug import ratio as ratios
from mixaug.axes import channels_first
from mixaug.batch import Batch, MixedBatch
from mixaug.checks import (
    check_dense,
    check_images,
    check_labels,
    check_out,
    check_per,
    check_positive,
    check_probability,
)
from mixaug.draws import Draws, Per
from mixaug.labeling import Labeling
from mixaug.ops.nested import entries, replaced
from mixaug.ops.precision import full_precision
from mixaug.options import Offering, is_chosen, shared_defaults_of
from mixaug.pairing import Pairing
from mixaug.partners import PartnerSource, PartnersPlan
from mixaug.partners.joining import check_one_new_tensor, with_partners
from mixaug.partners.taking import TakesPartners
from mixaug.plan import Plan, Unmixed
from mixaug.preparation import Inspection, Preparation
from mixaug.ratio import Ratio
from mixaug.schedule import Schedule, at_start, is_schedule
from mixaug.shared_options import SharedOptions
from mixaug.shown_options import chosen_options
from mixaug.signals import MixedSignals, ModelSignals, Signals, backbone, is_compiled
from mixaug.signals.hooks import hooked

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Policy(TakesPartners, Offering, nn.Module):
    """Draws a plan for a batch (all randomness) and applies it (none).

    A subclass implements :meth:`sample`. It acts whenever it is called, in ``train()`` and ``eval()``
    mode alike: leave it out of validation. Autocast changes nothing of what it draws: it is off in there,
    but for passes of a model.

    Args:
        alpha: own share lam ~ Beta(alpha, alpha), positive; or a :mod:`mixaug.schedule`, and then the training loop
            must call :meth:`set_progress`.
        ratio: another distribution of lam: ``"midpoint"``, ``"uniform"``, ``"bernoulli"``, a share, a Ratio.
        pairing: who mixes with whom: a name of :mod:`mixaug.pairing`, a Pairing, or None for a random
            permutation (random pairs with ``per="pair"``).
        labeling: weight of the labels: ``"area"`` (pixels really kept), ``"ratio"`` (as drawn), a Labeling; where
            there is a mask ``"attention"`` and others of :mod:`mixaug.labeling` (through :class:`mixaug.MixStep`).
        per: ``"sample"`` draws for each sample, ``"batch"`` once for all, ``"pair"`` once for two samples
            that mix with each other.
        partners: where partners come from: None for the batch, a source of :mod:`mixaug.partners`, or its name.

    Raises:
        ValueError: an option out of range or an unknown name.
        TypeError: an option that the policy does not offer, an object that is no Ratio, Pairing, Labeling or source.
    """

    #: Signals that the policy asks of the model: "saliency", "cam", "attention", "features", "outputs" of the unmixed
    #: or the mixed images; "hidden" where it mixes inside the model.
    needs: frozenset[str] = frozenset()
    #: Values that the policy reads of the mixed pass through hooks: "attention" of the last block, "attentions" of
    #: all, "features", "pooled" (the classifier's input), "outputs", "shapes" of what was mixed inside. A policy that
    #: reads has :attr:`needs`.
    reads: frozenset[str] = frozenset()
    #: Numbers of spatial axes that the policy can work on; None for any tensor (B, ...).
    spatial: ClassVar[tuple[int, ...] | None] = (1, 2, 3)
    #: Whether content of a sample may show at another place than where the sample has it.
    relocates: bool = False
    #: Whether places may differ in the share of each source, which some labelings weigh; else those are refused.
    has_mask: ClassVar[bool] = True
    #: Whether ``alpha`` has an effect with every ratio; otherwise it is refused beside one that is not "beta".
    alpha_acts_always: ClassVar[bool] = False

    #: Defaults of its bases that a class changes, by the names of :class:`SharedOptions`.
    shared_defaults: ClassVar[SharedOptions] = {
        "ratio": "beta",
        "pairing": None,
        "labeling": "area",
        "per": "sample",
        "partners": None,
    }
    #: Options of its bases that a class does not offer because they would have no effect.
    not_offered: ClassVar[tuple[str, ...]] = ()
    #: What the class does in place of a "pairing", "ratio" or "labeling" that it does not offer, a sentence each.
    own_answers: ClassVar[Mapping[str, str]] = {}

    def __init__(self, *, alpha: float | Schedule = 1.0, **shared: Unpack[SharedOptions]) -> None:
        super().__init__()
        what = type(self).__name__
        #: Options that change over training, by name.
        self.schedules: dict[str, Schedule] = {}
        #: Part of training that is done; None until :meth:`set_progress` says so.
        self.progress: float | None = None
        options: Any = {**shared_defaults_of(type(self)), **shared}
        given = alpha
        alpha = self.scheduled("alpha", alpha, check_positive)
        check_per(what, options["per"])
        self.ratio: Ratio = ratios.make(options["ratio"], alpha, what)
        if not self.alpha_acts_always and is_chosen(self, "alpha", given):
            own = "" if type(self).__module__.startswith("mixaug.") else "; a class that reads it has alpha_acts_always"
            ratios.check_alpha_acts(what, given, options["ratio"], own)
        self.alpha = float(alpha)
        self.pairing: Pairing = pairings.make(options["pairing"], options["per"], what)
        self.labeling: Labeling = labelings.make(options["labeling"], what, has_mask=self.has_mask)
        self.per: Per = options["per"]
        self.needs = self.needs | self.labeling.needs
        self.reads = self.reads | getattr(self.labeling, "reads", frozenset())
        if self.reads and not self.needs:
            raise ValueError(
                f"{type(self).__name__} reads {sorted(self.reads)} of the mixed pass, but its needs are empty: name "
                "there everything it asks of the model"
            )
        self.partners: PartnerSource | None = sources_of_partners.make(options["partners"], what)
        if self.partners is not None and not self.binds_late:
            self.bind_partners(self.pairing)

    def scheduled(self, name: str, value: float | Schedule, check: Callable[[str, str, float], float]) -> float:
        """The first value of an option that may be a schedule, which is then followed from :meth:`set_progress` on."""
        if not is_schedule(value):
            return value  # type: ignore[return-value]  # a number, or what the check of the option refuses
        self.schedules[name] = value  # type: ignore[assignment]  # it can be called, and is looked at next
        return at_start(type(self).__name__, name, self.schedules[name], check)

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
        images: Tensor | Batch,
        labels: Tensor | None = None,
        *,
        signals: Any = None,
        generator: Generator | None = None,
        rows: Tensor | None = None,
        layout: str | None = None,
    ) -> Plan:
        """Draw a plan for these images; arguments and errors as of :meth:`forward`."""
        return self.drawn(_batch(self, images, labels, rows), signals, generator, layout).replayable(self.partners)

    def plan(self, batch: Batch, generator: Generator | None, partner: Tensor | None = None) -> Plan:
        """:meth:`draw` for a checked batch, with given partners (B,) int64 where the caller shares them."""
        if self.schedules and self.progress is None:
            raise RuntimeError(
                f"{type(self).__name__} follows a schedule of {', '.join(self.schedules)}, but does not know how far "
                "training is: call policy.set_progress(step / total_steps) before each step"
            )
        if len(batch) == 1:
            return Unmixed.of(1, batch.device)
        draws = Draws(len(batch), batch.device, generator, self.per)
        if partner is None:
            partner = self.pairing(batch, draws)
        draws.pair_with(partner, batch)
        plan = self.sample(batch, partner, draws)
        if not isinstance(plan, Plan):
            raise TypeError(f"{type(self).__name__}.sample must return a mixaug.plan.Plan, got {type(plan).__name__}")
        if plan.weights is not None:
            return plan
        drawing = getattr(self.labeling, "draw", None)
        weights = self.labeling(plan, batch) if drawing is None else drawing(plan, batch, draws)
        return dataclasses.replace(plan, weights=weights)

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
        if isinstance(plan, PartnersPlan):
            images = with_partners(type(self).__name__, self.partners, images, plan, inplace or out is not None)
        check_out(type(self).__name__, images, out, inplace)
        with full_precision(images.device):
            return plan.replay(type(self).__name__, images, out=out, inplace=inplace)

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
        rows: Tensor | None = None,
        layout: str | None = None,
    ) -> MixedBatch:
        """Draw and mix.

        Args:
            images: (B, C, *size) floating point or uint8, or a dict, list or tuple that holds such tensors; or a whole
                :class:`mixaug.Batch`, with what partners, pairings and labelings want beside the images.
            labels: (B,) class ids, (B, K) or (B,) float targets, or None.
            signals: for policies with :attr:`needs`: the model, :class:`mixaug.ModelSignals` or
                :class:`mixaug.Signals`.
            generator: on the images' device; None takes torch's default one. ``torch.compile`` traces this
                call as one graph without a generator only.
            keys: for a dict, list or tuple: the entries to mix, the images first. The others pass
                through untouched.
            inplace: overwrite the images.
            out: tensor like the images that receives the result; must not overlap them.
            rows: (B,) int64 rows of the training set that the samples are, for a policy that ``needs_rows``.
            layout: axes by letters, such as ``"NHWC"``, or ``"NTCHW"`` for clips, whose boxes then span frames, rows
                and columns; the result has the same. None expects the channels second and refuses shapes of which that
                seems wrong; ``"NCHW"`` says that it is right.

        Raises:
            ValueError: wrong shape, an empty batch, labels of another length, a missing signal, partners that the
                batch does not bring, channels that seem to be at another place than ``layout`` says.
            TypeError: a dtype that cannot be mixed.
        """
        what = type(self).__name__
        batch = _batch(self, images, labels, rows)
        if isinstance(batch.inputs, Tensor):
            if keys is not None:
                raise ValueError(f"keys={list(keys)} names entries of a dict or tuple, but images is a tensor")
            container, tensors = None, {0: batch.inputs}
        else:
            container, tensors = batch.inputs, entries(what, batch.inputs, keys)
            if out is not None:
                raise ValueError("out= takes a single tensor of images, not a dict or tuple")
        primary = next(iter(tensors.values()))
        if self.partners is not None:
            check_one_new_tensor(what, tensors, inplace or out is not None)
        if batch.inputs is not primary:
            batch = dataclasses.replace(batch, inputs=primary)
        drawn = self.drawn(batch, signals, generator, layout)
        if drawn.further is None:
            _check_same_batch(what, tensors, primary, drawn.plan)
            done = {key: self.apply(one, drawn.plan, inplace=inplace, out=out) for key, one in tensors.items()}
        else:
            done = {key: self.apply(drawn.batch.inputs, drawn.plan) for key in tensors}
        mixed = drawn.labelled(what, self.partners, batch, next(iter(done.values())))
        if self.partners is not None and not self.partners.paused:
            self.partners.remember(batch, mixed)
        return mixed if container is None else dataclasses.replace(mixed, inputs=replaced(container, done))

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
        for name in self.wants_metadata:
            if name not in batch.metadata:
                raise ValueError(
                    f"{what} looks at {name!r} of each sample, the batch has metadata {sorted(batch.metadata)}: pass "
                    f"Batch(images, labels, metadata={{{name!r}: ...}})"
                )
        if self.partners is not None:
            self.partners.check(what, batch)

    @property
    def members(self) -> tuple[Policy, ...]:
        """The policies that this one is made of; none for most policies."""
        return ()

    def attach(self, model: nn.Module | ModelSignals) -> None:
        """Show the policy, and those inside it, the model that it will train with, before an optimizer is made.

        Raises:
            ValueError: a model without the stages that the policy may mix after, or without what else it needs of it.
        """
        signals = model if isinstance(model, ModelSignals) else ModelSignals(model)
        for module in self.modules():
            if isinstance(module, Policy):
                module.on_attach(signals)
                # A stage that is not there shall be known now, not when it is drawn.
                for name in module.hidden_stages(signals):
                    backbone.stage_name(signals.inner, name)

    def on_attach(self, signals: ModelSignals) -> None:
        """Hook for policies whose parameters have the model's sizes. Does nothing by default."""

    @contextlib.contextmanager
    def tap(
        self, model: nn.Module | ModelSignals, mixed: MixedBatch, clean: Signals | None = None
    ) -> Iterator[MixedSignals]:
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
        seen = MixedSignals(source, self.reads, clean)
        compiled = is_compiled(source.model)
        with hooked(
            type(self).__name__,
            source.inner,
            plan=mixed.plan,
            recorder=seen.recorder if self.reads or self.needs - {"hidden"} else None,
            persistent=compiled,
            stages=self.hidden_stages(source) if compiled else (),
        ):
            yield seen

    def hidden_stages(self, signals: Signals | ModelSignals) -> tuple[str, ...]:
        """Names of all modules of the model whose outputs a plan of this policy may mix; none for most policies."""
        return ()

    def relabel(self, mixed: MixedBatch, seen: MixedSignals) -> MixedBatch:
        """The batch with the weights that only the mixed pass could tell; the same batch for most policies.

        Args:
            mixed: from this policy.
            seen: from :meth:`tap`, after the model has run.
        """
        plan = mixed.plan
        if plan is None or not plan.mixes or not getattr(self.labeling, "reads", None):
            return mixed
        weights: Tensor = self.labeling.after(plan, mixed, seen)  # type: ignore[attr-defined]
        return dataclasses.replace(mixed, weights=weights)

    def early_loss(self, images: Tensor, mixed: MixedBatch, clean: Signals) -> dict[str, Tensor]:
        """Terms of the loss that do not wait for the mixed pass: scalars, weighted, by the names to log.

        Called before the mixed pass, so that what a term keeps for its gradient can be gone when that pass begins:
        see :func:`mixaug.signals.early_backward`. None by default.

        Args:
            images: (B, C, *size) unmixed.
            mixed: from this policy.
            clean: signals of the unmixed images.
        """
        return {}

    def auxiliary_loss(self, mixed: MixedBatch, seen: MixedSignals) -> dict[str, Tensor]:
        """Terms that the policy adds to the loss of the step: scalars, weighted, by the names to log. None by default.

        Args:
            mixed: from :meth:`relabel`.
            seen: from :meth:`tap`, after the model has run.
        """
        return {}

    def mixer_parameters(self) -> list[nn.Parameter]:
        """Parameters of a learned mixer, which an optimizer may give settings of their own; none for most policies."""
        return []

    #: Whether the policy's own pairing serves all its members.
    shares_partner: bool = False
    #: Whether it draws further partners by its own pairing where the first one is given.
    pairs_again: bool = False
    #: Whether the policy uses partners: one that never mixes does not.
    has_partners: ClassVar[bool] = True
    #: Whether the policy takes ``inplace=True`` and ``out=``.
    writes_in_place: ClassVar[bool] = True

    def prepare(self, preparation: Preparation) -> None:
        """Let the policy, and those inside it, look at the data of a run once, before the first step."""
        for module in self.modules():
            if isinstance(module, Policy):
                module.on_prepare(preparation)
                if hasattr(module.labeling, "on_prepare"):
                    module.labeling.on_prepare(preparation)

    def on_prepare(self, preparation: Preparation) -> None:
        """Hook for policies that learn from the training data beforehand. Does nothing by default."""

    #: Optimizer steps between two calls of :meth:`on_refresh`; None for policies that ask for none.
    refresh_every: int | None = None
    #: The set that it looks at: ``"valid"`` or ``"train"``.
    refresh_split: str = "valid"

    def on_refresh(self, inspection: Inspection) -> None:
        """Hook for policies that look at a whole validation set again and again. Does nothing by default."""

    def sampling(self, labels: Tensor) -> Tensor | None:
        """(N,) floating weights with which the samples of a training set are to be drawn; None leaves them as they are.

        Args:
            labels: (N, ...) of the training set.
        """
        return None

    def set_progress(self, fraction: float) -> None:
        """Tell the policy, and those inside it, how much of training is done: 0 at the start, 1 at the end."""
        fraction = check_probability("set_progress", "fraction", fraction)
        for module in self.modules():
            if isinstance(module, Policy):
                if module.schedules:
                    module.progress = fraction
                for name, schedule in module.schedules.items():
                    setattr(module, name, schedule(fraction))
                    if name == "alpha" and isinstance(module.ratio, ratios.Beta):
                        module.ratio = ratios.Beta(module.alpha)
                module.on_progress(fraction)

    def on_progress(self, fraction: float) -> None:
        """Hook for policies that change during training. Does nothing by default."""

    #: Whether it does another thing later in training, schedules of its options apart.
    changes_later: bool = False

    def after_step(self, model: nn.Module) -> None:
        """To be called after every optimizer step, with the trained model. By default tells the policies inside."""
        for policy in _inside(self):
            policy.after_step(model)

    def extra_repr(self) -> str:
        return ", ".join(chosen_options(self))


def no_change(parameters: Iterable[Tensor]) -> Tensor:
    """0, with a gradient of 0 to every parameter: DistributedDataParallel wants one for each of them in every step."""
    return torch.stack([0 * parameter.float().sum() for parameter in parameters]).sum()


def _batch(policy: Policy, images: Any, labels: Tensor | None, rows: Tensor | None) -> Batch:
    if not isinstance(images, Batch):
        return Batch(images, labels, rows=rows)
    if labels is not None or rows is not None:
        raise ValueError(
            f"{type(policy).__name__} got a Batch, which holds labels and rows, and labels or rows beside it"
        )
    return images


def _inside(module: nn.Module) -> Iterator[Policy]:
    """The nearest policies below a module."""
    for child in module.children():
        if isinstance(child, Policy):
            yield child
        else:
            yield from _inside(child)


def _check_same_batch(what: str, tensors: dict[Any, Tensor], primary: Tensor, plan: Plan) -> None:
    layout = None if plan.form is None else plan.form.layout
    for key, given in tensors.items():
        check_dense(what, f"entry {key!r}", given)
        tensor = channels_first(f"{what}: entry {key!r}", given, layout) if given.ndim > 1 else given
        if tensor.ndim == 0 or tensor.shape[0] != primary.shape[0]:
            raise ValueError(
                f"{what}: entry {key!r} has shape {tuple(tensor.shape)}, the images {primary.shape[0]} rows"
            )
        if plan.size and tuple(tensor.shape[-len(plan.size) :]) != plan.size:
            raise ValueError(
                f"{what}: entry {key!r} has shape {tuple(tensor.shape)}, but must end in the images' size {plan.size}"
            )
