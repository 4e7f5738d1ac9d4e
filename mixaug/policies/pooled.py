"""`Pooled`: partners from the whole training set in place of the batch, for any policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor

from mixaug.batch import Batch, MixedBatch
from mixaug.checks import check_choice, check_flag, check_generator
from mixaug.draws import Draws
from mixaug.ops.layout import reads_freely
from mixaug.ops.nested import entries, replaced
from mixaug.ops.precision import full_precision
from mixaug.pairing import Pairing
from mixaug.pairing.base import PoolPairing
from mixaug.plan import Plan
from mixaug.policies.combinations import made
from mixaug.policy import Policy
from mixaug.signals import ModelSignals, Signals, resolve

Fetch = Callable[[Tensor], Tensor]


@runtime_checkable
class Fittable(Protocol):
    """A pairing that can look for partners in a training set."""

    def fit(self, labels: Tensor, inputs: Tensor | None = None) -> PoolPairing: ...


@dataclass(frozen=True, kw_only=True)
class PooledPlan(Plan):
    """A plan for the batch's own B rows followed by B partners, of which the first ``keep`` results count.

    Attributes:
        inner: plan for the 2B rows.
        pool_rows: (B,) int64 rows of the training set that were drawn.
        keep: B, or 2B where both members of a pair are kept.
    """

    inner: Plan
    pool_rows: Tensor
    keep: int

    @property
    def mixes(self) -> bool:
        return self.inner.mixes

    @property
    def is_mean(self) -> bool:
        return self.inner.is_mean

    @property
    def members(self) -> tuple[Plan, ...]:
        return (self.inner,)

    @property
    def drawn_stage(self) -> str | None:
        return _drawn_stage(self.inner)

    @property
    def sources(self) -> Tensor:
        return self.inner.sources[: self.keep]

    @property
    def rows(self) -> int:
        return self.inner.rows

    @property
    def stages(self) -> tuple[str, ...]:
        # Rows are dropped where they are mixed, so no other stage may be hooked: the drawn one is read.
        stage = _drawn_stage(self.inner)
        return () if stage is None else (stage,)

    def area(self) -> Tensor:
        return self._kept(self.inner.area())

    def own_mask(self) -> Tensor | None:
        mask = self.inner.own_mask()
        return None if mask is None else self._kept(mask)

    def mix(self, tensor: Tensor, *, out: Tensor | None = None, inplace: bool = False) -> Tensor:
        if out is not None or inplace:
            raise ValueError("a batch joined with partners of a training set has no place to write into")
        mixed = self.inner.mix(tensor)
        # What is mixed inside the model has to get there first.
        return mixed if _drawn_stage(self.inner) is not None else mixed[: self.keep]

    def mix_label_map(self, label_map: Tensor, num_classes: int) -> Tensor:
        return self.inner.mix_label_map(label_map, num_classes)[: self.keep]

    def mix_hidden(self, stage: str, features: Tensor) -> Tensor:
        return self.inner.mix_hidden(stage, features)[: self.keep]

    def _kept(self, values: Tensor) -> Tensor:
        return values if values.shape[0] == 1 else values[: self.keep]


class Pooled(Policy):
    """Give a policy partners from the whole training set: what C-Mixup (arXiv:2210.05775) is defined by.

    The policy's pairing is fitted to the training set: ``"label_kernel"``, ``"nearest"``, ``"local"``, or the
    default, which then draws any row. Partners are drawn with replacement, one for each sample of the batch. The
    MixedBatch has B inputs; its ``labels`` are the batch's followed by the partners' (2B rows), and ``sources`` are
    rows of these. A policy that mixes inside the model hands on 2B inputs, of which B outputs remain.

    Works on a batch of one, and wherever the policy works: in a loop, in :class:`mixaug.MixStep`, in a collate
    function. ``to(device)`` moves the training set along.

    Args:
        policy: any policy, or a name of the registry. The members of a OneOf must have the same pairing, or OneOf
            one for all.
        inputs: (N, ...) training inputs; or a function from (B,) int64 rows on ``labels``' device to (B, ...)
            inputs, for sets that are read from disk or augmented.
        labels: (N,) or (N, ...) training labels, in the form that the batches have.
        candidates: ``"all"`` rows; or ``"batch"``, the cheaper mode of C-Mixup's code (``batch_type 1``): B rows
            are drawn uniformly, and the pairing chooses among them and the batch. That is another, narrower
            distribution.
        both: keep the partner's side of each pair too: 2B mixed samples. C-Mixup's code for PovertyMap does so on half
            batches, with the lam of the pair; take ``per="batch"`` for one lam.

    Raises:
        ValueError: inputs and labels of different length, a pairing that cannot look into a training set, members of
            OneOf that pair differently, or what the pairing refuses (NaN or constant labels, fewer rows than
            neighbours).

    Example:
        >>> inputs, labels = torch.randn(100, 5), torch.randn(100, 1)
        >>> policy = Pooled("cmixup", inputs, labels)
        >>> mixed = policy(inputs[:8], labels[:8])
        >>> mixed.inputs.shape, mixed.labels.shape, mixed.targets().shape
        (torch.Size([8, 5]), torch.Size([16, 1]), torch.Size([8, 1]))
    """

    spatial = None
    writes_in_place = False

    def __init__(
        self,
        policy: Policy | str,
        inputs: Tensor | Fetch,
        labels: Tensor,
        *,
        candidates: Literal["all", "batch"] = "all",
        both: bool = False,
    ) -> None:
        super().__init__()
        self.policy = made("Pooled", "policy", policy)
        if self.policy.reads:
            raise ValueError(
                "Pooled drops the partners' rows inside the model, and cannot say what they showed there, but "
                f"{type(self.policy).__name__} reads {sorted(self.policy.reads)}"
            )
        if self.policy.needs - {"hidden"}:
            raise ValueError(
                f"Pooled cannot ask the model about partners from outside the batch, but {type(self.policy).__name__} "
                f"needs {sorted(self.policy.needs)}"
            )
        if not isinstance(inputs, Tensor) and not callable(inputs):
            raise TypeError(f"Pooled expects inputs as a tensor or a function of rows, got {type(inputs).__name__}")
        if not isinstance(labels, Tensor) or labels.ndim == 0 or not len(labels):
            raise ValueError(f"Pooled expects labels (N, ...) with N >= 1, got {getattr(labels, 'shape', labels)!r}")
        if isinstance(inputs, Tensor) and len(inputs) != len(labels):
            raise ValueError(f"Pooled got {len(inputs)} inputs but {len(labels)} labels")
        check_choice("Pooled", "candidates", candidates, ("all", "batch"))
        if both and candidates == "batch":
            raise ValueError("Pooled: both=True swaps each sample with its own partner, so it needs candidates='all'")
        self.needs = self.policy.needs
        self.inputs = inputs
        self.labels = labels
        self.candidates = candidates
        self.both = check_flag("Pooled", "both", both)
        self.pairing = _pairing_of(self.policy)
        self.fitted = self._fit() if candidates == "all" else None

    @property
    def members(self) -> tuple[Policy, ...]:
        return (self.policy,)

    @property
    def needs_labels(self) -> bool:
        return True

    @property
    def needs_rows(self) -> bool:
        return self.fitted is not None and self.fitted.wants_rows

    def check(self, batch: Batch) -> None:
        super().check(batch)
        self.policy.check(batch)
        labels = batch.labels
        if labels is None or labels.shape[1:] != self.labels.shape[1:] or labels.dtype != self.labels.dtype:
            came = "none" if labels is None else f"{tuple(labels.shape)} {labels.dtype}"
            raise ValueError(
                f"Pooled expects labels like those of the training set, (B, {str(tuple(self.labels.shape[1:]))[1:]} "
                f"{self.labels.dtype}, got {came}"
            )
        if labels.device != self.labels.device:
            raise ValueError(
                f"Pooled holds its training set on {self.labels.device}, the batch is on {labels.device}: "
                f"policy.to({str(labels.device)!r})"
            )

    def draw(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        signals: Any = None,
        generator: Generator | None = None,
        rows: Tensor | None = None,
    ) -> PooledPlan:
        """Draw partners and a plan for :meth:`apply`; arguments and errors as of :meth:`forward`."""
        batch = self._batch(images, labels, signals)
        with full_precision(batch.device):
            return self._draw(batch, generator, rows)[0]

    def hidden_stages(self, signals: Signals | ModelSignals) -> tuple[str, ...]:
        return self.policy.hidden_stages(signals)

    def plan(self, batch: Batch, generator: Generator | None, partner: Tensor | None = None) -> Plan:
        raise ValueError("Pooled draws its own partners: put it around OneOf or Sometimes, not inside them")

    def apply(self, images: Any, plan: Plan | None = None, *, inplace: bool = False, out: Tensor | None = None) -> Any:
        if plan is None:
            return super().apply(images)
        if inplace or out is not None:
            raise ValueError("Pooled makes new tensors: inplace= and out= have no meaning")
        if not isinstance(plan, PooledPlan):
            raise TypeError(f"Pooled.apply expects a plan that it drew, got {type(plan).__name__}")
        with full_precision(images.device):
            return plan.mix(torch.cat([images, self._fetch(plan.pool_rows, images)]))

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
    ) -> MixedBatch:
        """Draw partners and mix.

        Args:
            images: (B, ...) like the training inputs, or a dict, list or tuple that holds such a tensor.
            labels: (B, ...) like the training labels.
            signals, generator: see :class:`mixaug.Policy`.
            keys: for a dict, list or tuple: its one entry to mix; the others pass through untouched.
            inplace, out: not supported.
            rows: (B,) int64 rows of the training set that the samples are; needed by pairings with
                ``include_self=False``.

        Raises:
            ValueError: inputs or labels unlike the training set's, or on another device.
        """
        if inplace or out is not None:
            raise ValueError("Pooled mixes into a new tensor: inplace= and out= have no meaning")
        if isinstance(images, Tensor):
            if keys is not None:
                raise ValueError(f"keys={list(keys)} names entries of a dict or tuple, but images is a tensor")
            tensors = {0: images}
        else:
            tensors = entries("Pooled", images, keys)
            if len(tensors) > 1:
                raise ValueError(f"Pooled has one training input for each row, so it mixes one entry, got keys={keys}")
        [(key, tensor)] = tensors.items()
        batch = self._batch(tensor, labels, signals)
        with full_precision(batch.device):
            plan, joined = self._draw(batch, generator, rows)
            if plan.weights is None:
                raise ValueError(f"{type(self.policy).__name__} drew a plan without weights")
            mixed: Any = plan.mix(joined.images)
        if not isinstance(images, Tensor):
            mixed = replaced(images, {key: mixed})
        return MixedBatch(inputs=mixed, labels=joined.labels, sources=plan.sources, weights=plan.weights, plan=plan)

    def _batch(self, images: Tensor, labels: Tensor | None, signals: Any) -> Batch:
        return Batch(images, labels, resolve("Pooled", signals, images, labels, self.needs))

    def _draw(self, batch: Batch, generator: Generator | None, rows: Tensor | None) -> tuple[PooledPlan, Batch]:
        self.check(batch)
        check_generator("Pooled", generator, batch.device)
        size, device = len(batch), batch.device
        if rows is not None and not isinstance(rows, Tensor):
            raise TypeError(f"Pooled expects rows as an int64 tensor, got {type(rows).__name__}")
        if rows is not None and (rows.dtype != torch.int64 or rows.shape != (size,)):
            raise ValueError(f"Pooled expects rows ({size},) int64, got {tuple(rows.shape)} {rows.dtype}")
        if rows is not None and reads_freely(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(self.labels):
            raise ValueError(
                f"Pooled expects rows in [0, {len(self.labels)}), got {int(rows.min())} to {int(rows.max())}"
            )
        draws = Draws(size, device, generator)
        own = torch.arange(size, device=device)
        if self.fitted is None:
            pool_rows = draws.integers(0, len(self.labels), per="sample")
            joined = self._join(batch, pool_rows)
            partner = self.pairing(joined, Draws(2 * size, device, generator))
        else:
            drawn = self.fitted.draw(batch, draws, rows)
            alone = drawn < 0
            pool_rows = drawn.clamp(min=0)
            joined = self._join(batch, pool_rows)
            # Both members of a pair point at each other: so a policy may share draws between them.
            partner = torch.cat([torch.where(alone, own, own + size), torch.where(alone, own + size, own)])
        inner = self.policy.plan(joined, generator, partner)
        keep = 2 * size if self.both else size
        weights = None if inner.weights is None else inner.weights[:keep]
        lam = inner.lam if inner.lam.shape[0] == 1 else inner.lam[:keep]
        return PooledPlan(
            partner=inner.partner[:keep],
            lam=lam,
            weights=weights,
            size=inner.size,
            inner=inner,
            pool_rows=pool_rows,
            keep=keep,
        ), joined

    def _join(self, batch: Batch, pool_rows: Tensor) -> Batch:
        images = torch.cat([batch.images, self._fetch(pool_rows, batch.images)])
        if batch.labels is None:
            raise ValueError("Pooled needs labels: pass them with the inputs")
        return dataclasses.replace(batch, inputs=images, labels=torch.cat([batch.labels, self.labels[pool_rows]]))

    def _fetch(self, pool_rows: Tensor, like: Tensor) -> Tensor:
        found = self.inputs[pool_rows] if isinstance(self.inputs, Tensor) else self.inputs(pool_rows)
        if not isinstance(found, Tensor):
            raise TypeError(f"Pooled expects a tensor from its function of inputs, got {type(found).__name__}")
        if found.shape != (len(pool_rows), *like.shape[1:]) or found.dtype != like.dtype:
            raise ValueError(
                f"Pooled: the training set gives inputs {tuple(found.shape)} {found.dtype} for {len(pool_rows)} rows, "
                f"the batch is {tuple(like.shape)} {like.dtype}"
            )
        return found.to(like.device, non_blocking=True)

    def _fit(self) -> PoolPairing:
        if not isinstance(self.pairing, Fittable):
            raise ValueError(
                f"Pooled needs a pairing that can look into a training set; {type(self.pairing).__name__} only orders "
                'a batch. Choose "label_kernel", "nearest", "local" or the default'
            )
        if not isinstance(self.inputs, Tensor) and getattr(self.pairing, "by", "labels") == "inputs":
            raise ValueError(
                f"Pooled: {self.pairing!r} needs the training inputs as one tensor, got a function of rows; "
                'pair by="labels", or give candidates="batch"'
            )
        return self.pairing.fit(self.labels, self.inputs if isinstance(self.inputs, Tensor) else None)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Pooled:
        super()._apply(fn, recurse)
        # These are no buffers: DistributedDataParallel would broadcast them every step, and half() would round them.
        # An integer probe shows where they shall go.
        device = fn(torch.zeros((), dtype=torch.int64, device=self.labels.device)).device
        if device != self.labels.device:
            self.labels = self.labels.to(device)
            if isinstance(self.inputs, Tensor):
                self.inputs = self.inputs.to(device)
            self.fitted = None if self.fitted is None else self._fit()
        return self

    def extra_repr(self) -> str:
        return f"rows={len(self.labels)}, candidates={self.candidates!r}, both={self.both}"


def with_training_set(
    policy: Policy, inputs: Tensor | Fetch, labels: Tensor, *, candidates: Literal["all", "batch"] = "all"
) -> Policy:
    """The policy with partners from a training set, see :class:`Pooled`; itself where partners mean nothing to it."""
    return Pooled(policy, inputs, labels, candidates=candidates) if policy.has_partners else policy


def _pairing_of(policy: Policy) -> Pairing:
    """The pairing that draws a policy's partners; of several policies to choose from, the one that they share."""
    if not policy.members or policy.shares_partner:
        return policy.pairing
    found = [_pairing_of(member) for member in policy.members if member.has_partners]
    if any(_described(other) != _described(found[0]) for other in found):
        raise ValueError(
            "Pooled draws partners before it is known which of several policies mixes, but theirs differ: "
            f"{', '.join(map(_described, found))}. Give OneOf one for all with pairing="
        )
    return found[0] if found else policy.pairing


def _described(pairing: Pairing) -> str:
    """A pairing with its options; the name of one that has none."""
    plain = type(pairing).__repr__ is object.__repr__
    return type(pairing).__name__ if plain else repr(pairing)


def _drawn_stage(plan: Plan) -> str | None:
    """The module of the model behind which a plan mixes; None where it mixes inputs."""
    try:
        return plan.drawn_stage
    except ValueError as error:
        raise ValueError(
            "Pooled keeps B of 2B rows where they are mixed, so it cannot hold a choice per sample, or on a GPU, "
            "between a policy that mixes inside the model and another one"
        ) from error


__all__ = ["Pooled", "PooledPlan"]
