"""A batch and its partners as one: drawn for together, mixed together, and only the batch's own results kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from mixaug.batch import Batch, MixedBatch
from mixaug.checks import whole_ids
from mixaug.draws import Draws
from mixaug.pairing import Pairing
from mixaug.partners.base import PartnerSource, joined
from mixaug.partners.plan import PartnersPlan
from mixaug.plan import Plan, Unmixed
from mixaug.signals import CleanSignals, Signals, resolve


class Drawn(NamedTuple):
    """A plan and what it was drawn for.

    Attributes:
        plan: the plan.
        batch: all rows that it was drawn for.
        further: those of them that came from outside; None for none.
    """

    plan: Plan
    batch: Batch
    further: MixedBatch | None = None

    def replayable(self, source: PartnerSource | None) -> Plan:
        """The plan, with the partners' inputs where their source cannot bring them again."""
        if source is None or self.further is None or not isinstance(self.plan, PartnersPlan):
            return self.plan
        if source.inputs_again(self.plan, self.further.inputs) is not None:
            return self.plan
        return dataclasses.replace(self.plan, further=self.further.inputs)

    def labelled(self, what: str, source: PartnerSource | None, own: Batch, inputs: Any) -> MixedBatch:
        """The mixed batch, of inputs mixed by the plan."""
        weights = self.plan.weights
        if weights is None:
            raise ValueError(f"{what} drew a plan without weights")
        further, labels = self.further, self.batch.labels
        plain = source is None or further is None or (source.labels_own and further.importance is None)
        if plain or labels is None or further is None:
            # Labels of the batch alone go on as they came.
            labels = own.labels if further is None else labels
            metadata = self.batch.metadata
            return MixedBatch(inputs, labels, self.plan.sources, weights, self.plan, metadata=metadata)
        return MixedBatch(inputs, plan=self.plan, **spread_labels(own, further, self.plan.sources, weights))


def draw_with(
    what: str,
    source: PartnerSource,
    pairing: Pairing,
    batch: Batch,
    generator: Generator | None,
    resolved: Callable[[Batch], Batch],
    plan: Callable[[Batch, Tensor], Plan],
) -> Drawn:
    """Ask a source for partners, and draw a plan for batch and partners.

    Args:
        what: the policy's name, for messages.
        source, pairing: bring and choose.
        batch: checked.
        generator: of all draws.
        resolved: gives a joined batch the signals that the policy needs.
        plan: draws for a batch with known partners.
    """
    answer = source.partners(batch, pairing, Draws(len(batch), batch.device, generator))
    if answer.index is None:
        return Drawn(Unmixed.of(len(batch), batch.device), batch)
    if answer.further is None:
        return Drawn(plan(batch, all_partners(answer.index, len(batch), len(batch))), batch)
    whole = resolved(joined(what, batch, answer.further))
    inner = plan(whole, all_partners(answer.index, len(batch), len(whole)))
    keep = len(whole) if source.both else len(batch)
    return Drawn(PartnersPlan.of(inner, keep, len(batch), answer.rows), whole, answer.further)


def with_partners(what: str, source: PartnerSource | None, images: Tensor, plan: PartnersPlan, writes: bool) -> Tensor:
    """The images with the partners of a plan behind them.

    Raises:
        ValueError: nobody brings the partners, or the result was to be written in place.
    """
    check_new_tensor(what, writes)
    if images.shape[0] == plan.rows:
        return images
    further = plan.further
    if further is None and source is not None:
        further = source.inputs_again(plan, images)
    if further is None:
        raise ValueError(
            f"{what}.apply expects {plan.rows} rows, the batch's own and behind them their partners, got "
            f"{images.shape[0]}; a plan of {what}.draw knows the partners"
        )
    return torch.cat([images, further.to(images.device)])


def check_new_tensor(what: str, writes: bool) -> None:
    """Raise a ValueError where the result was to be written in place."""
    if writes:
        raise ValueError(
            f"{what} mixes with partners from outside the batch, into a new tensor: inplace= and out= have no meaning"
        )


def check_one_new_tensor(what: str, tensors: dict[Any, Tensor], writes: bool) -> None:
    """Raise a ValueError unless partners from outside fit what is to be mixed."""
    check_new_tensor(what, writes)
    if len(tensors) > 1:
        raise ValueError(
            f"{what} takes partners from outside the batch, which have one input each, so it mixes one entry, got "
            f"keys={list(tensors)}"
        )


def resolved(what: str, batch: Batch, signals: Any, needs: frozenset[str]) -> Batch:
    """The batch with the signals that a policy needs, from whatever a user passed."""
    return dataclasses.replace(batch, signals=resolve(what, signals, batch.inputs, batch.labels, needs))


def askable(what: str, signals: Any, needs: frozenset[str]) -> Any:
    """What can be asked about partners from outside as well as about the batch.

    Raises:
        ValueError: finished signals, which know nothing of the partners.
    """
    if isinstance(signals, CleanSignals):
        return signals.source
    if needs and isinstance(signals, Signals):
        raise ValueError(
            f"{what} needs {sorted(needs)} of partners from outside the batch too: pass signals=model in place of "
            "finished Signals"
        )
    return signals


def all_partners(index: Tensor, own: int, count: int) -> Tensor:
    """(N,) partners of all joined rows, from those of the batch's own rows.

    Args:
        index: (B,) int64 rows among the N joined ones, -1 for none; or (N,).
        own: B.
        count: N.
    """
    rows = torch.arange(count, device=index.device)
    if index.shape[0] == count:
        return torch.where(index < 0, rows, index)
    further = rows[own:]
    if count == 2 * own:
        # Where row i's partner is further row i they point at each other, so that a policy may share draws.
        further = torch.where(index == further, rows[:own], further)
    return torch.cat([torch.where(index < 0, rows[:own], index), further])


def spread_labels(batch: Batch, further: MixedBatch, sources: Tensor, weights: Tensor) -> dict[str, Any]:
    """Labels, sources and weights of mixed samples whose partners are themselves mixtures, or have no label.

    Args:
        batch: the own B rows, with labels.
        further: the R rows behind them.
        sources: (B, M) int64 rows among all B + R, the sample itself first.
        weights: (B, M).

    Returns:
        Fields of a :class:`mixaug.MixedBatch`: ``labels``, ``sources`` (B, 1 + (M - 1) * M'), ``weights``, and
        ``uniform`` and ``importance`` where the partners have them.
    """
    own, labels = len(batch), batch.labels
    outside = sources[:, 1:] >= own
    row = (sources[:, 1:] - own).clamp(min=0)
    share = weights[:, 1:, None]
    if further.labels is None:
        # Nothing of the partners' labels is known but what is spread evenly: the sample itself stands in, weight 0.
        theirs, inner = sources[:, :1, None].expand(-1, row.shape[1], 1), torch.zeros_like(share)
    else:
        known = whole_ids(further.labels)
        labels = known if labels is None or known is None else torch.cat([whole_ids(labels), known])  # type: ignore[list-item]
        theirs, inner = further.sources[row] + own, further.weights[row].to(weights.dtype)
    mine = torch.zeros_like(inner)
    mine[..., 0] = 1.0
    inner = torch.where(outside[..., None], inner, mine) * share
    theirs = torch.where(outside[..., None], theirs, sources[:, 1:, None])
    fields: dict[str, Any] = {
        "labels": labels,
        "sources": torch.cat([sources[:, :1], theirs.flatten(1)], 1),
        "weights": torch.cat([weights[:, :1], inner.flatten(1)], 1),
    }
    if further.uniform is not None:
        fields["uniform"] = (weights[:, 1:] * torch.where(outside, further.uniform[row].to(weights.dtype), 0.0)).sum(1)
    if further.importance is not None:
        each = torch.where(outside, further.importance[row].to(weights.dtype), 1.0)
        total = weights.sum(1).clamp(min=torch.finfo(weights.dtype).tiny)
        fields["importance"] = (weights[:, 0] + (weights[:, 1:] * each).sum(1)) / total
    return fields
