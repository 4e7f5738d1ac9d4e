"""`Pooled`: partners from the whole training set in place of the batch, for any policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import Generator, Tensor

from mixaug.batch import Batch, MixedBatch
from mixaug.pairing import PoolPairing
from mixaug.partners import TrainingSet
from mixaug.plan import Plan
from mixaug.policies.combinations import check_takes_partners, made, pairing_of
from mixaug.policy import Policy
from mixaug.signals import MixedSignals, ModelSignals, Signals

Fetch = Callable[..., Tensor]


class Pooled(Policy):
    """Give a policy partners from the whole training set: what C-Mixup (arXiv:2210.05775) is defined by.

    ``Pooled(policy, inputs, labels)`` is a policy whose ``partners`` are a :class:`mixaug.partners.TrainingSet`. Its
    pairing is fitted to the training set: ``"label_kernel"``, ``"nearest"``, ``"local"``, or the default, which then
    draws any row. Partners are drawn with replacement, one for each sample of the batch. The MixedBatch has B inputs;
    its ``labels`` are the batch's followed by the partners' (2B rows), and ``sources`` are rows of these. A policy that
    mixes inside the model hands on 2B inputs, of which B outputs remain. One that looks at the model looks at the
    partners too.

    Works on a batch of one, and wherever the policy works: in a loop, in :class:`mixaug.MixStep`, in a collate
    function. ``to(device)`` moves the training set along.

    Args:
        policy: any policy that takes ``partners``, or a name of the registry. The members of a OneOf must have the same
            pairing, or OneOf one for all.
        inputs: (N, ...) training inputs; or a function from (B,) int64 rows on ``labels``' device to (B, ...)
            inputs, for sets that are read from disk.
        labels: (N,) or (N, ...) training labels, in the form that the batches have.
        metadata: (N, ...) per-sample tensors by name, for pairings that look at them.
        augmented: whether ``inputs`` is a function of rows and draws, see :class:`mixaug.partners.TrainingSet`.
        candidates: ``"all"`` rows; or ``"batch"``, the cheaper mode of C-Mixup's code (``batch_type 1``): B rows
            are drawn uniformly, and the pairing chooses among them and the batch. That is another, narrower
            distribution.
        both: keep the partner's side of each pair too: 2B mixed samples. C-Mixup's code for PovertyMap does so on half
            batches, with the lam of the pair; take ``per="batch"`` for one lam.

    Raises:
        ValueError: inputs and labels of different length, a pairing that cannot look into a training set, members of
            OneOf that pair differently, a policy that does not take partners from outside, or what the pairing refuses
            (NaN or constant labels, fewer rows than neighbours).

    Example:
        >>> import torch
        >>> from mixaug import Pooled
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
        metadata: Mapping[str, Tensor] | None = None,
        augmented: bool = False,
    ) -> None:
        super().__init__()
        self.policy = made("Pooled", "policy", policy)
        source = TrainingSet(
            inputs, labels, candidates=candidates, both=both, metadata=metadata, augmented=augmented, what="Pooled"
        )
        check_takes_partners("Pooled", self.policy, source)
        self.needs, self.reads = self.policy.needs, self.policy.reads
        self.pairing = pairing_of(self.policy)
        self.partners = source
        self.bind_partners(self.pairing)

    @property
    def source(self) -> TrainingSet:
        """The training set."""
        assert isinstance(self.partners, TrainingSet)  # set in __init__
        return self.partners

    @property
    def inputs(self) -> Tensor | Fetch:
        """Training inputs, or the function that brings them."""
        return self.source.inputs

    @property
    def fitted(self) -> PoolPairing | None:
        """The pairing as it was fitted to the training set; None with ``candidates="batch"``."""
        return self.source.fitted

    @property
    def labels(self) -> Tensor:
        """Training labels."""
        return self.source.labels

    @property
    def members(self) -> tuple[Policy, ...]:
        return (self.policy,)

    def check(self, batch: Batch) -> None:
        super().check(batch)
        self.policy.check(batch)

    def hidden_stages(self, signals: Signals | ModelSignals) -> tuple[str, ...]:
        return self.policy.hidden_stages(signals)

    def plan(self, batch: Batch, generator: Generator | None, partner: Tensor | None = None) -> Plan:
        return self.policy.plan(batch, generator, partner)

    def relabel(self, mixed: MixedBatch, seen: MixedSignals) -> MixedBatch:
        return self.policy.relabel(mixed, seen)

    def early_loss(self, images: Tensor, mixed: MixedBatch, clean: Signals) -> dict[str, Tensor]:
        return self.policy.early_loss(images, mixed, clean)

    def auxiliary_loss(self, mixed: MixedBatch, seen: MixedSignals) -> dict[str, Tensor]:
        return self.policy.auxiliary_loss(mixed, seen)


def with_training_set(policy: Policy, inputs: Tensor | Fetch, labels: Tensor, **options: Any) -> Policy:
    """The policy with partners from a training set, see :class:`Pooled`; itself where partners mean nothing to it."""
    return Pooled(policy, inputs, labels, **options) if policy.has_partners else policy


__all__ = ["Pooled"]
