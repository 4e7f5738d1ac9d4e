"""`MixStep`: a whole training forward (mixing, the passes, the loss) as one module."""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from torch import Generator, Tensor, nn

from mixaug.axes import check_layout
from mixaug.batch import Batch
from mixaug.checks import check_keys
from mixaug.losses import mixed_accuracy
from mixaug.networks import Frozen, Momentum, check_network
from mixaug.ops.nested import logits_of
from mixaug.passes import Outcome, Passes, as_objective, check_there
from mixaug.policy import Policy
from mixaug.signals import ModelSignals, check_parts
from mixaug.signals.hooks import check_stages


class MixStep(nn.Module):
    """Mix a batch, run the model on it and compute the loss, in one ``forward``.

    Because every call of the model happens inside, wrapping this module in DistributedDataParallel or
    placing it in a Lightning module needs nothing further. timm's ``create_optimizer_v2(step)`` finds what the model
    says of weight decay and layers. After every optimizer step call :meth:`after_step`.

    Args:
        model: maps mixed inputs to outputs, such as logits (B, K).
        policy: any policy of the registry.
        objective: a loss, (outputs, MixedBatch) to a scalar, such as :class:`mixaug.losses.MixedCrossEntropy`; or a
            :class:`mixaug.Objective`, which says itself what is run.
        signals: where the parts of the model are that a policy with ``needs`` looks at, for models of which
            :class:`mixaug.ModelSignals` does not find them by itself.
        networks: networks beside the model by name, see :mod:`mixaug.networks`.
        keys: for inputs that are a dict, list or tuple: the entries to mix, the images first.
        layout: where the channels of the inputs are, such as ``"NHWC"``, see :meth:`mixaug.Policy.forward`.
        extent_keys: for inputs that are a dict, list or tuple: entries that say how far padded inputs reach, lengths or
            masks of valid positions; the model gets the largest of each sample's sources,
            :meth:`mixaug.MixedBatch.with_extents`.

    Raises:
        TypeError: ``model`` or a network is no module, ``policy`` is not a Policy, ``objective`` cannot be called.
        ValueError: ``signals`` of another model, a network that the objective wants and nobody brings, a layout that is
            none, a model that lacks what the policy looks at, or that is wrapped where the step is to be wrapped;
            ``extent_keys`` with partners from outside the batch; a frozen network that is also trained.
    """

    def __init__(
        self,
        model: nn.Module,
        policy: Policy,
        objective: Any,
        signals: ModelSignals | None = None,
        *,
        networks: Mapping[str, nn.Module] | nn.ModuleDict | None = None,
        keys: Sequence[Hashable] | None = None,
        layout: str | None = None,
        extent_keys: Sequence[Hashable] = (),
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            swapped = isinstance(model, ModelSignals)
            raise TypeError(
                f"MixStep expects model as a torch.nn.Module, got {type(model).__name__}"
                + ("; signals go beside their model: MixStep(model, policy, objective, signals=...)" if swapped else "")
            )
        if not isinstance(policy, Policy):
            raise TypeError(
                f"MixStep expects policy as a mixaug.Policy, got {type(policy).__name__}; "
                "make one with mixaug.create(name)"
            )
        if signals is not None and not isinstance(signals, ModelSignals):
            raise TypeError(f"MixStep expects signals as mixaug.ModelSignals, got {type(signals).__name__}")
        if signals is not None and signals.model is not model:
            raise ValueError("MixStep expects signals made of its own model: ModelSignals(model, ...)")
        if networks is not None and not isinstance(networks, Mapping | nn.ModuleDict):
            raise TypeError(f"MixStep expects networks as a mapping of names, got {type(networks).__name__}")
        beside = {} if networks is None else dict(networks.items())
        for name, network in beside.items():
            check_network(name, network)
        self.networks = nn.ModuleDict(beside)
        for name in as_objective(objective).wants.networks:
            check_there("networks", name, beside)
        self.model = model
        self.policy = policy
        self.objective = objective
        # timm's optimizers ask the module that they are given for these.
        if callable(getattr(model, "no_weight_decay", None)):
            self.no_weight_decay = functools.partial(_no_weight_decay, self)
        if callable(getattr(model, "group_matcher", None)):
            self.group_matcher = functools.partial(_group_matcher, self)
        self.keys = keys
        self.layout = check_layout("MixStep", layout)
        self.extent_keys = check_keys("MixStep", "extent_keys", extent_keys)
        # Only the names are kept: the model may yet be replaced, for one by its form with synchronised batch norm.
        self.sources = {} if signals is None else signals.places()
        _check_extents(self.extent_keys, policy)
        _check_frozen(self)
        _check_wrapper(model, policy)
        policy.attach(self.signals())
        policy.attach_networks(dict(self.networks.items()))
        self._check_parts()
        attach = getattr(objective, "attach", None)
        if callable(attach):
            attach(self)
        for network in self.networks.values():
            if isinstance(network, Momentum):
                network.attach(model)

    def signals(self) -> ModelSignals:
        """What the policy may ask of the model."""
        signals = ModelSignals(self.model, **self.sources)
        signals.objective = as_objective(self.objective).loss
        return signals

    def _check_parts(self) -> None:
        """Raise for a policy that would look at parts that the model lacks, be it by a coin or in every step."""
        signals = self.signals()
        for policy in self.policy.modules():
            if isinstance(policy, Policy):
                what = type(policy).__name__
                check_parts(what, signals, policy.needs, policy.reads)
                check_stages(what, signals.inner, policy.hidden_stages(signals))

    def forward(
        self,
        inputs: Any,
        labels: Tensor | None = None,
        generator: Generator | None = None,
        rows: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One training forward.

        Args:
            inputs: (B, C, *size), or what else the model and the policy take, on the model's device; or a whole
                :class:`mixaug.Batch`, with views, streams and metadata for objectives that want them.
            labels: (B,) class ids, or float targets that the objective understands.
            generator: of the mixing, on the inputs' device; None takes torch's default one.
            rows: (B,) int64 rows of the training set that the samples are, for a policy that ``needs_rows``.

        Returns:
            The scalar loss, and detached scalars to log: ``loss``, ``accuracy`` (lambda-weighted, in [0, 1]) where
            the outputs are class scores, counted as the loss counts labels, and terms of the loss by their names.

        Raises:
            ValueError: a Batch, and labels or rows beside it; what the policy and the loss refuse; parts of the model
                that are sharded by themselves, where the policy runs some of them more than once.
        """
        if isinstance(inputs, Batch) and (labels is not None or rows is not None):
            raise ValueError("MixStep got a Batch, and labels or rows beside it: put them into the Batch")
        batch = inputs if isinstance(inputs, Batch) else Batch(inputs, labels, rows=rows)
        objective = as_objective(self.objective)
        batch = objective.prepare_batch(batch, generator)
        passes = Passes(self, batch, generator, objective.wants, self.keys, self.layout, self.extent_keys)
        try:
            value = objective(passes)
            passes.finish()
        except RuntimeError as error:
            _explain_sharded_parts(error, self)
            raise
        terms = {**(value if isinstance(value, Mapping) else {}), **passes.terms}
        loss: Tensor = functools.reduce(operator.add, value.values()) if isinstance(value, Mapping) else value
        for term in passes.terms.values():
            loss = loss + term
        logs = {"loss": loss.detach(), **_scores(passes.shown, self.objective)}
        return loss, logs | {name: term.detach() for name, term in terms.items()}

    def set_progress(self, fraction: float) -> None:
        """Tell the policy how much of training is done: 0 at the start, 1 at the end."""
        self.policy.set_progress(fraction)

    def after_step(self) -> None:
        """To be called after every optimizer step: slow copies follow, queues and learned mixers are kept up."""
        self.policy.after_step(self.model)
        for network in self.networks.values():
            if isinstance(network, Momentum):
                network.after_step(self.model)
        after = getattr(self.objective, "after_step", None)
        if callable(after):
            after(self)


def _check_extents(keys: Sequence[Hashable], policy: Policy) -> None:
    """Raise where the entries of the batch cannot say how far partners from outside it reach."""
    if keys and policy.partners is not None and not policy.partners.within_batch:
        raise ValueError(
            f"MixStep got extent_keys={list(keys)}, entries of the batch, but partners of {type(policy).__name__} come "
            "from outside it, and nobody says how far those reach: bring lengths or masks as metadata of batch and "
            "partners, and take mixed.extent(mixed.metadata[name]) in an objective"
        )


def _check_frozen(step: MixStep) -> None:
    """Raise where a frozen network is also one that is trained: freezing it has frozen that one."""
    trained = {id(p) for part in (step.model, step.policy, step.objective) for p in _parameters(part)}
    for name, network in step.networks.items():
        if isinstance(network, Frozen) and any(id(p) in trained for p in network.network.parameters()):
            raise ValueError(
                f"MixStep got networks[{name!r}] frozen, but it shares parameters with what is to be trained, which "
                "are frozen with it: make it of a copy, networks.Frozen(copy.deepcopy(model))"
            )
    for name in as_objective(step.objective).wants.trained:
        if not any(parameter.requires_grad for parameter in step.networks[name].parameters()):
            raise ValueError(
                f"MixStep got networks[{name!r}] as {type(step.networks[name]).__name__}, which nothing trains, but "
                f"{type(step.objective).__name__} trains it along: wrap it in networks.Auxiliary"
            )


def _parameters(part: Any) -> list[nn.Parameter]:
    return list(part.parameters()) if isinstance(part, nn.Module) else []


def _no_weight_decay(step: MixStep) -> set[str]:
    """The model's parameters that are not to decay, by their names in the step."""
    return {f"model.{name}" for name in step.model.no_weight_decay()}  # type: ignore[operator]


def _group_matcher(step: MixStep, coarse: bool = False) -> Any:
    """timm's rule of which layer a parameter belongs to, for names in the step; all but the model's are of the last."""
    rule = step.model.group_matcher(coarse=coarse)  # type: ignore[operator]
    if callable(rule):
        return lambda name: rule(name.removeprefix("model.")) if name.startswith("model.") else float("inf")
    return {
        group: [(_below_model(one), suffix) for one, suffix in found]
        if isinstance(found, (tuple, list))
        else found and _below_model(found)
        for group, found in rule.items()
    }


def _below_model(pattern: str) -> str:
    # timm matches at the start of a name, whether a pattern says so or not; "[^" is no anchor.
    without_anchor = re.sub(r"(?<!\[)\^", "", pattern)
    return rf"^model\.(?:{without_anchor})"


def _check_wrapper(model: nn.Module, policy: Policy) -> None:
    """Raise for a wrapper around the model that a policy which looks at the model cannot look through."""
    inner = getattr(model, "_orig_mod", model)
    # A policy that looks at the model meets whole tensors inside the step's own forward alone.
    if policy.needs and _is_sharded(inner):
        raise ValueError(
            f"MixStep got a model with sharded parameters, but {type(policy).__name__} looks at the model itself: "
            "shard the step, not the model, as in fully_shard(MixStep(model, ...))"
        )
    # Asked by its name, for importing it takes long.
    wrapped = isinstance(inner, (nn.parallel.DistributedDataParallel, nn.DataParallel))
    if policy.needs and (wrapped or type(inner).__name__ == "FullyShardedDataParallel"):
        way_out = ", with DistributedDataParallel" if isinstance(inner, nn.DataParallel) else ""
        raise ValueError(
            f"MixStep got a model wrapped in {type(inner).__name__}, but {type(policy).__name__} looks at the model "
            f"itself: wrap the step, not the model{way_out}"
        )


def _is_sharded(model: nn.Module) -> bool:
    return any(type(parameter).__name__ == "DTensor" for parameter in model.parameters())


def _explain_sharded_parts(error: RuntimeError, step: MixStep) -> None:
    """Raise in the place of torch's message about parts of the model that were sharded after the step was made."""
    if step.policy.needs and "DTensor" in str(error) and _is_sharded(step.model):
        raise ValueError(
            f"{type(step.policy).__name__} runs parts of the model more than once within a step, which FSDP2 does not "
            "allow to parts that are sharded by themselves: shard the step alone, fully_shard(step)"
        ) from error


def _scores(shown: Outcome | None, objective: Any) -> dict[str, Tensor]:
    """Accuracy where outputs are class scores, as the loss counts labels."""
    outputs = None if shown is None else logits_of(shown.outputs)
    if shown is None or not isinstance(outputs, Tensor) or outputs.ndim != 2 or shown.batch.labels is None:
        return {}
    labels = shown.batch.labels
    # Rows of numbers are classes only to an objective that takes them for such.
    dense = getattr(objective, "task", None) == "classification" and labels.shape[1:] == outputs.shape[1:]
    if labels.is_floating_point() and not dense:
        return {}
    loss = as_objective(objective).loss
    counted = getattr(loss, "counted", None)
    options = counted() if callable(counted) else {}
    try:
        return {"accuracy": mixed_accuracy(outputs.detach(), shown.batch, **options)}
    except ValueError:
        # Outputs without a place for the labels' classes, such as embeddings, are no class scores; the loss took them.
        return {}
