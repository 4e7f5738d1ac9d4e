"""Partners from the whole training set: what C-Mixup (arXiv:2210.05775) is defined by."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from mixaug.batch import Batch, MixedBatch, unmixed
from mixaug.checks import check_choice, check_flag, whole_ids
from mixaug.draws import Draws
from mixaug.ops.layout import reads_freely
from mixaug.pairing import Pairing
from mixaug.pairing.base import PoolPairing
from mixaug.partners.base import Partners, PartnerSource, joined
from mixaug.partners.plan import PartnersPlan

Fetch = Callable[..., Tensor]


@runtime_checkable
class Fittable(Protocol):
    """A pairing that can look for partners in a training set.

    One that names ``metadata`` gets it as a third argument, by name.
    """

    def fit(self, labels: Tensor, inputs: Tensor | None = None) -> PoolPairing: ...


class TrainingSet(PartnerSource):
    """Partners from a training set, drawn by the policy's pairing, which is fitted to the set.

    Partners are drawn with replacement, one for each sample of the batch. ``to(device)`` moves the set along.

    Args:
        inputs: (N, ...) training inputs; or a function from (B,) int64 rows on ``labels``' device to (B, ...)
            inputs, for sets that are read from disk.
        augmented: whether ``inputs`` is a function of rows and :class:`mixaug.draws.Draws`, which gives other inputs
            every time: another crop, say. All its randomness must come from the draws.
        labels: (N,) or (N, ...) training labels, in the form that the batches have.
        candidates: ``"all"`` rows; or ``"batch"``, the cheaper mode of C-Mixup's code (``batch_type 1``): B rows
            are drawn uniformly, and the pairing chooses among them and the batch. That is another, narrower
            distribution.
        both: keep the partner's side of each pair too: 2B mixed samples.
        metadata: (N, ...) per-sample tensors by name, for pairings that look at them.

    Raises:
        ValueError: tensors of different length, an unknown mode; with :meth:`bind` a pairing that cannot look into a
            training set.
    """

    needs_labels = True

    def __init__(
        self,
        inputs: Tensor | Fetch,
        labels: Tensor,
        *,
        candidates: Literal["all", "batch"] = "all",
        both: bool = False,
        metadata: Mapping[str, Tensor] | None = None,
        augmented: bool = False,
        what: str = "TrainingSet",
    ) -> None:
        super().__init__()
        self.augmented = check_flag(what, "augmented", augmented)
        if augmented and isinstance(inputs, Tensor):
            raise ValueError(
                f"{what} got augmented=True with a tensor of inputs: pass a function of rows and draws that augments"
            )
        if not isinstance(inputs, Tensor) and not callable(inputs):
            raise TypeError(f"{what} expects inputs as a tensor or a function of rows, got {type(inputs).__name__}")
        if not isinstance(labels, Tensor) or labels.ndim == 0 or not len(labels):
            raise ValueError(f"{what} expects labels (N, ...) with N >= 1, got {getattr(labels, 'shape', labels)!r}")
        if isinstance(inputs, Tensor) and len(inputs) != len(labels):
            raise ValueError(f"{what} got {len(inputs)} inputs but {len(labels)} labels")
        for name, values in (metadata or {}).items():
            if not isinstance(values, Tensor) or values.shape[:1] != labels.shape[:1]:
                came = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
                raise ValueError(f"{what} expects metadata[{name!r}] with {len(labels)} rows, got {came}")
        check_choice(what, "candidates", candidates, ("all", "batch"))
        if both and candidates == "batch":
            raise ValueError(f"{what}: both=True swaps each sample with its own partner, so it needs candidates='all'")
        self.what = what
        self.inputs = inputs
        self.labels: Tensor = whole_ids(labels)  # type: ignore[assignment]  # a tensor stays one
        self.candidates = candidates
        self.both = check_flag(what, "both", both)
        self.metadata = dict(metadata or {})
        self.pairing: Pairing | None = None
        self.fitted: PoolPairing | None = None

    @property
    def needs_rows(self) -> bool:
        return self.fitted is not None and self.fitted.wants_rows

    def bind(self, what: str, pairing: Pairing) -> None:
        if self.pairing is not None and self.pairing is not pairing and repr(self.pairing) != repr(pairing):
            raise ValueError(
                f"{what}: this training set serves another policy already, whose pairing is {self.pairing!r}; make a "
                "TrainingSet for each policy"
            )
        self.pairing = pairing
        self.fitted = self._fit() if self.candidates == "all" else None

    def check(self, what: str, batch: Batch) -> None:
        labels = batch.labels
        if labels is None or labels.shape[1:] != self.labels.shape[1:] or labels.dtype != self.labels.dtype:
            came = "none" if labels is None else f"{tuple(labels.shape)} {labels.dtype}"
            raise ValueError(
                f"{what} expects labels like those of the training set, (B, {str(tuple(self.labels.shape[1:]))[1:]} "
                f"{self.labels.dtype}, got {came}"
            )
        if labels.device != self.labels.device:
            raise ValueError(
                f"{what} holds its training set on {self.labels.device}, the batch is on {labels.device}: "
                f"policy.to({str(labels.device)!r})"
            )
        rows = batch.rows
        if rows is None:
            return
        if not isinstance(rows, Tensor):
            raise TypeError(f"{what} expects rows as an int64 tensor, got {type(rows).__name__}")
        if rows.dtype != torch.int64 or rows.shape != (len(batch),):
            raise ValueError(f"{what} expects rows ({len(batch)},) int64, got {tuple(rows.shape)} {rows.dtype}")
        if reads_freely(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(self.labels):
            raise ValueError(
                f"{what} expects rows in [0, {len(self.labels)}), got {int(rows.min())} to {int(rows.max())}"
            )

    def partners(self, batch: Batch, pairing: Pairing, draws: Draws) -> Partners:
        size = len(batch)
        own = torch.arange(size, device=batch.device)
        if self.fitted is None:
            pool_rows = draws.integers(0, len(self.labels), per="sample")
            further = self._taken(pool_rows, batch.inputs, draws)
            both = joined(self.what, batch, further)
            return Partners(further, pairing(both, Draws(2 * size, batch.device, draws.generator)), pool_rows)
        drawn = self.fitted.draw(batch, draws, batch.rows)
        pool_rows = drawn.clamp(min=0)
        return Partners(self._taken(pool_rows, batch.inputs, draws), torch.where(drawn < 0, -1, own + size), pool_rows)

    def inputs_again(self, plan: PartnersPlan, like: Tensor) -> Tensor | None:
        # Read again, an augmented sample would be another one.
        return None if plan.pool_rows is None or self.augmented else self._fetch(plan.pool_rows, like)

    def _taken(self, rows: Tensor, like: Tensor, draws: Draws) -> MixedBatch:
        taken = unmixed(self._fetch(rows, like, *([draws] if self.augmented else [])), self.labels[rows])
        return dataclasses.replace(taken, metadata={name: values[rows] for name, values in self.metadata.items()})

    def _fetch(self, rows: Tensor, like: Tensor, *draws: Draws) -> Tensor:
        found = self.inputs[rows] if isinstance(self.inputs, Tensor) else self.inputs(rows, *draws)
        if not isinstance(found, Tensor):
            raise TypeError(f"{self.what} expects a tensor from its function of inputs, got {type(found).__name__}")
        if found.shape != (len(rows), *like.shape[1:]) or found.dtype != like.dtype:
            raise ValueError(
                f"{self.what}: the training set gives inputs {tuple(found.shape)} {found.dtype} for {len(rows)} rows, "
                f"the batch is {tuple(like.shape)} {like.dtype}"
            )
        return found.to(like.device, non_blocking=True)

    def _fit(self) -> PoolPairing:
        if not isinstance(self.pairing, Fittable):
            raise ValueError(
                f"{self.what} needs a pairing that can look into a training set; {type(self.pairing).__name__} only "
                'orders a batch. Choose "label_kernel", "nearest", "local" or the default'
            )
        if not isinstance(self.inputs, Tensor) and getattr(self.pairing, "by", "labels") == "inputs":
            raise ValueError(
                f"{self.what}: {self.pairing!r} needs the training inputs as one tensor, got a function of rows; "
                'pair by="labels", or give candidates="batch"'
            )
        more: dict[str, Any] = {}
        if getattr(self.pairing, "metadata", ()):
            more["metadata"] = self.metadata
        return self.pairing.fit(self.labels, self.inputs if isinstance(self.inputs, Tensor) else None, **more)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> TrainingSet:
        super()._apply(fn, recurse)
        # These are no buffers: DistributedDataParallel would broadcast them every step, and half() would round them.
        # An integer probe shows where they shall go.
        device = fn(torch.zeros((), dtype=torch.int64, device=self.labels.device)).device
        if device != self.labels.device:
            self.labels = self.labels.to(device)
            self.metadata = {name: values.to(device) for name, values in self.metadata.items()}
            if isinstance(self.inputs, Tensor):
                self.inputs = self.inputs.to(device)
            self.fitted = None if self.fitted is None else self._fit()
        return self

    def extra_repr(self) -> str:
        return f"rows={len(self.labels)}, candidates={self.candidates!r}, both={self.both}"
