"""Partners from earlier batches: the batch before, and a memory of samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from mixaug.batch import Batch, MixedBatch
from mixaug.checks import check_choice, check_whole, whole_ids
from mixaug.draws import Draws
from mixaug.ops.choice import one_of
from mixaug.pairing import Pairing
from mixaug.partners.base import Partners, PartnerSource

#: How a memory takes in samples.
Rule = Literal["reservoir", "recent"]


class Keeping(PartnerSource):
    """A source that keeps samples. They move and are saved with the policy, and no process hands them to another."""

    keeps_state = True
    asks_pairing = False

    def __init__(self) -> None:
        super().__init__()
        # These are no buffers: DistributedDataParallel would give every process those of the first one.
        self.kept: dict[str, Tensor] = {}

    def forget(self) -> None:
        """Begin anew, without any sample."""
        self.kept = {}

    def get_extra_state(self) -> dict[str, Tensor]:
        """What is kept, for a ``state_dict``."""
        return {name: tensor.clone() for name, tensor in self.kept.items()}

    def set_extra_state(self, state: Any) -> None:
        """Go on with what a ``state_dict`` holds."""
        self.kept = {name: tensor.clone() for name, tensor in state.items()}

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Keeping:
        super()._apply(fn, recurse)
        # An integer probe shows where they shall go; half() would round them.
        for name, tensor in self.kept.items():
            device = fn(torch.zeros((), dtype=torch.int64, device=tensor.device)).device
            self.kept[name] = tensor.to(device)
        return self


class PreviousBatch(Keeping):
    """Row i of the batch before, as it was mixed, is the partner of sample i: RecursiveMix (arXiv:2203.06844).

    Labels go along: a sample's label holds shares of all samples that are in it, of the batch before, of the one before
    that, and so on. The first batch is not mixed, nor is a row for which the batch before had none.

    Args:
        depth: batches that a label follows back, at least 1; the share of older ones goes to the oldest sample kept.
            Where a paste covers half of an image at most, that is less than 0.00004 of a label behind 16 batches.

    Raises:
        ValueError: an option out of range.
    """

    labels_own = False
    labels_plain = False
    works_inside = False

    def __init__(self, depth: int = 16) -> None:
        super().__init__()
        self.depth = check_whole("PreviousBatch", "depth", depth, most=1024)
        #: Batches remembered so far.
        self.count = 0

    def forget(self) -> None:
        super().forget()
        self.count = 0

    def check(self, what: str, batch: Batch) -> None:
        inputs = self.kept.get("inputs")
        if inputs is not None and (inputs.shape[1:] != batch.inputs.shape[1:] or inputs.dtype != batch.inputs.dtype):
            raise ValueError(
                f"{what} mixes with the batch before, inputs {tuple(inputs.shape)} {inputs.dtype}; this one is "
                f"{tuple(batch.inputs.shape)} {batch.inputs.dtype}: call policy.partners.forget() between them"
            )
        if self.kept and ("labels" in self.kept) != (batch.labels is not None):
            here, there = ("labels", "none") if batch.labels is not None else ("no labels", "some")
            raise ValueError(f"{what} mixes with the batch before, this one has {here}, that one had {there}")

    def partners(self, batch: Batch, pairing: Pairing, draws: Draws) -> Partners:
        size, device = len(batch), batch.device
        own = torch.arange(size, device=device)
        if not self.kept:
            return Partners(None, None)
        count = min(size, len(self.kept["inputs"]))
        weights = self.kept["weights"][:count].to(device)
        labels = self.kept.get("labels")
        if labels is not None and batch.labels is not None:
            columns = weights.shape[1]
            table = labels[: count * columns].to(device)
            sources = torch.arange(count * columns, device=device).reshape(count, columns)
        else:
            table, sources, weights = None, own[:count, None], weights.new_ones(count, 1)
        further = MixedBatch(self.kept["inputs"][:count].to(device), table, sources, weights)
        return Partners(further, torch.where(own < count, own + size, -1))

    @torch.no_grad()
    def remember(self, batch: Batch, mixed: MixedBatch) -> None:
        self.count += 1
        weights, sources = mixed.weights, mixed.sources
        if weights.shape[1] > self.depth:
            rest = weights[:, self.depth - 1 :].sum(1, keepdim=True)
            weights, sources = torch.cat([weights[:, : self.depth - 1], rest], 1), sources[:, : self.depth]
        self.kept = {"inputs": mixed.inputs.detach().clone(), "weights": weights.detach().clone()}
        if mixed.labels is not None:
            # A row of labels for every source, in the order of the sources, so that nothing older need be kept.
            labels = whole_ids(mixed.labels)
            assert labels is not None  # those of a batch that has some
            self.kept["labels"] = labels[sources.flatten()].detach().clone()

    def get_extra_state(self) -> dict[str, Tensor]:
        return {**super().get_extra_state(), "count": torch.tensor(self.count)}

    def set_extra_state(self, state: Any) -> None:
        self.count = int(state["count"])
        super().set_extra_state({name: tensor for name, tensor in state.items() if name != "count"})

    def extra_repr(self) -> str:
        return f"depth={self.depth}"


class Memory(Keeping):
    """Partners from a memory of earlier samples, unmixed, as replay for continual learning keeps one.

    A partner is drawn uniformly among the samples that the memory holds, or among those that ``label`` allows. Until
    the memory holds one, a sample is not mixed. A batch enters the memory after it was mixed.

    Args:
        size: samples to hold.
        rule: ``"reservoir"``, a uniform sample of all that came (Vitter's algorithm R), or ``"recent"``, the last ones.
        label: ``"any"`` partner, one of the ``"same"`` class or of an ``"other"`` one; for class ids.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(self, size: int, rule: Rule = "reservoir", label: Literal["any", "same", "other"] = "any") -> None:
        super().__init__()
        self.size = check_whole("Memory", "size", size, most=10**9)
        check_choice("Memory", "rule", rule, ("reservoir", "recent"))
        check_choice("Memory", "label", label, ("any", "same", "other"))
        self.rule: Rule = rule
        self.label = label
        self.needs_labels = label != "any"
        self.seen = 0

    def forget(self) -> None:
        super().forget()
        self.seen = 0

    def check(self, what: str, batch: Batch) -> None:
        for name, came in (("inputs", batch.inputs), ("labels", batch.labels)):
            kept = self.kept.get(name)
            unlike = kept is not None and (came is None or kept.shape[1:] != came.shape[1:] or kept.dtype != came.dtype)
            if unlike or (name == "labels" and self.kept and (kept is None) != (came is None)):
                there, here = _described(kept), _described(came)
                raise ValueError(f"{what} holds {name} {there} in its memory, this batch has {here}")
        if self.needs_labels and (batch.labels is None or batch.labels.ndim != 1):
            raise ValueError(f"{what} chooses from its memory by class ids (B,), got labels {_described(batch.labels)}")

    def partners(self, batch: Batch, pairing: Pairing, draws: Draws) -> Partners:
        size = len(batch)
        own = torch.arange(size, device=batch.device)
        if not self.kept:
            return Partners(None, None)
        labels = self.kept.get("labels")
        held = min(self.size, self.seen)
        unit = draws.uniform(per="sample")
        if self.label == "any" or labels is None or batch.labels is None:
            chosen = (unit * held).long().clamp(max=held - 1)
        else:
            same = batch.labels[:, None] == labels[:held].to(batch.device)[None]
            chosen = one_of(same if self.label == "same" else ~same, unit)
        rows = chosen.clamp(min=0)
        taken = self.kept["inputs"].to(batch.device)[rows]
        theirs = None if labels is None or batch.labels is None else labels.to(batch.device)[rows]
        further = MixedBatch(taken, theirs, own[:, None], torch.ones(size, 1, device=batch.device))
        return Partners(further, torch.where(chosen < 0, -1, own + size))

    @torch.no_grad()
    def remember(self, batch: Batch, mixed: MixedBatch) -> None:
        came = {"inputs": batch.inputs.detach()}
        labels = whole_ids(batch.labels)
        if labels is not None:
            came["labels"] = labels.detach()
        places = self._places(len(batch))
        # Of two samples for one place the later one stays, and -1 is no place.
        later = (places[:, None] == places[None]).triu(1).any(1)
        rows = ((places >= 0) & ~later).nonzero().flatten()
        self.seen += len(batch)
        held = min(self.size, self.seen)
        for name, values in came.items():
            room = self.kept.get(name)
            if room is None or len(room) < held or room.device != values.device:
                # Twice the room each time: a copy of all that is kept is rare.
                grown = values.new_empty(min(self.size, max(2 * held, held)), *values.shape[1:])
                if room is not None:
                    grown[: len(room)] = room
                self.kept[name] = room = grown
            room.index_copy_(0, places[rows].to(room.device), values[rows.to(values.device)])

    def _places(self, count: int) -> Tensor:
        """(count,) int64 on the CPU: where each of the next samples goes, -1 for nowhere."""
        numbers = torch.arange(self.seen, self.seen + count)
        if self.rule == "recent":
            return numbers % self.size
        # A hash of the number in place of a draw: the memory is the same in every run, and no stream moves.
        drawn = _scrambled(numbers) % (numbers + 1)
        places = torch.where(numbers < self.size, numbers, drawn)
        return torch.where(places < self.size, places, -1)

    def get_extra_state(self) -> dict[str, Tensor]:
        held = min(self.size, self.seen)
        kept = {name: tensor[:held].clone() for name, tensor in self.kept.items()}
        return {**kept, "seen": torch.tensor(self.seen), "size": torch.tensor(self.size)}

    def set_extra_state(self, state: Any) -> None:
        if int(state["size"]) != self.size:
            raise ValueError(f"Memory has room for {self.size} samples, the state is of one for {int(state['size'])}")
        self.seen = int(state["seen"])
        super().set_extra_state({name: tensor for name, tensor in state.items() if name not in ("seen", "size")})

    def extra_repr(self) -> str:
        return f"size={self.size}, rule={self.rule!r}, label={self.label!r}"


def _described(tensor: Tensor | None) -> str:
    return "none" if tensor is None else f"{tuple(tensor.shape)} {tensor.dtype}"


def _scrambled(numbers: Tensor) -> Tensor:
    """Numbers in [0, 2**63) that look drawn at random (the finaliser of SplitMix64), of int64 numbers from 0 on."""

    def folded(values: Tensor, by: int) -> Tensor:
        # A shift of a negative number brings in ones, which an unsigned one would not have.
        return values ^ ((values >> by) & ((1 << (64 - by)) - 1))

    mixed = folded((numbers + 1) * -0x61C8864680B583EB, 30) * -0x40A7B892E31B1A47
    return folded(folded(mixed, 27) * -0x6B2FB644ECCEEE15, 31) & 0x7FFFFFFFFFFFFFFF
