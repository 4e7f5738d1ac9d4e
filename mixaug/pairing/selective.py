"""Partners by class and group: selective mixup (arXiv:2305.16817), LISA (arXiv:2201.00299), class pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from mixaug.batch import Batch
from mixaug.checks import check_choice, check_class_ids, shown
from mixaug.draws import Draws
from mixaug.ops.choice import one_of
from mixaug.ops.layout import wide_dtype

Relation = Literal["same", "other", "any"]
#: Combinations of class and group of a training set for which a table of pairs is made.
MOST_CELLS = 4096


class Selective:
    """A partner of the same or of another class, in the same or in another group, chosen uniformly among those.

    Selective mixup (arXiv:2305.16817) for every combination; LISA's two kinds of pairs (arXiv:2201.00299) are
    ``Selective("same", ("domain", "other"))`` and ``Selective("other", ("domain", "same"))``. Nobody is their own
    partner; a sample for which there is none stays as it is. Over a training set
    (:class:`mixaug.partners.TrainingSet`) partners are drawn with replacement, and all of the set counts.

    Args:
        label: ``"same"`` class, an ``"other"`` one, or ``"any"``.
        group: name of the metadata that hold each sample's group, integers (B,), and ``"same"``, ``"other"`` or
            ``"any"``; None looks at no group.

    Raises:
        ValueError: an unknown word; when drawing, groups that are no integers (B,), labels of another shape.
    """

    involution = False

    def __init__(self, label: Relation = "any", group: tuple[str, Relation] | None = None) -> None:
        check_choice("Selective", "label", label, get_args(Relation))
        # A configuration file gives a list.
        pair = tuple(group) if isinstance(group, list | tuple) else group
        if pair is not None and (not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[0], str)):
            raise ValueError(f'Selective expects group as a name and a word, ("domain", "other"), got {shown(group)}')
        self.label: Relation = label
        self.group: str | None = None
        self.relation: Relation = "any"
        if pair is not None:
            check_choice("Selective", f"group[1] for {pair[0]!r}", pair[1], get_args(Relation))
            self.group, self.relation = pair[0], pair[1]  # type: ignore[assignment]  # checked above
        self.needs_labels = label != "any"
        #: Metadata that it looks at.
        self.metadata: tuple[str, ...] = () if self.group is None or self.relation == "any" else (self.group,)

    def __call__(self, batch: Batch, draws: Draws) -> Tensor:
        own = torch.arange(len(batch), device=batch.device)
        allowed = own[:, None] != own
        for values, relation in self._looked_at(batch.labels, batch.metadata):
            same = values[:, None] == values
            allowed = allowed & (same if relation == "same" else ~same)
        chosen = one_of(allowed, draws.uniform(per="sample"))
        return torch.where(chosen < 0, own, chosen)

    def fit(
        self, labels: Tensor, inputs: Tensor | None = None, metadata: Mapping[str, Tensor] | None = None
    ) -> FittedSelective:
        """The same choice over a whole training set.

        Args:
            labels: (N,) class ids.
            inputs: not used.
            metadata: (N,) integers by name; the group's must be there.

        Raises:
            ValueError: no such metadata, or values that are no integers.
        """
        return FittedSelective(self, labels, metadata or {})

    def _looked_at(self, labels: Tensor | None, metadata: Mapping[str, Tensor]) -> list[tuple[Tensor, Relation]]:
        found: list[tuple[Tensor, Relation]] = []
        if self.label != "any":
            found.append((classes_of(labels), self.label))
        for name in self.metadata:
            found.append((_integers(f"metadata {name!r}", metadata.get(name)), self.relation))
        return found

    def __repr__(self) -> str:
        return f"Selective(label={self.label!r}, group={None if self.group is None else (self.group, self.relation)})"


class WithinGroup(Selective):
    """A partner of the same group, such as another crop of the same image (FerKD's SelfMix, arXiv:2312.17473).

    Args:
        name: of the metadata that hold each sample's group, integers (B,).
    """

    def __init__(self, name: str) -> None:
        super().__init__("any", (name, "same"))


class FittedSelective:
    """Draws partners by class and group from a training set; made by ``Selective.fit``."""

    def __init__(self, pairing: Selective, labels: Tensor, metadata: Mapping[str, Tensor]) -> None:
        self.pairing = pairing
        looked_at = pairing._looked_at(labels, metadata)
        # Whoever may be their own partner by class and group must be left out by their row.
        self.wants_rows = all(relation == "same" for _, relation in looked_at)
        device = labels.device
        #: Whether partners are those of the own class and group, which need no table of all.
        self.alike = self.wants_rows and bool(looked_at)
        cell = torch.zeros(len(labels), dtype=torch.int64, device=device)
        allowed = torch.ones(1, 1, dtype=torch.bool, device=device)
        self.known: list[Tensor] = []
        cells = combinations = 1
        for values, relation in looked_at:
            known, index = values.unique(return_inverse=True)
            self.known.append(known)
            # One more stands for values that the set does not have, whose others are all of it.
            cell = cell * (len(known) + 1) + index
            cells *= len(known) + 1
            combinations *= len(known)
            if not self.alike:
                if combinations > MOST_CELLS:
                    raise ValueError(
                        f"{pairing!r} looks at more than {MOST_CELLS} combinations of class and group, too many for "
                        "partners of another one"
                    )
                same = torch.eye(len(known) + 1, dtype=torch.bool, device=device)
                one = same if relation == "same" else ~same
                allowed = (allowed[:, None, :, None] & one[None, :, None, :]).reshape(cells, cells)
        #: Rows in the order of their cells (a cell is a combination of class and group), and where each cell begins.
        self.order = cell.argsort(stable=True)
        self.counts = torch.bincount(cell, minlength=cells)
        self.start = self.counts.cumsum(0) - self.counts
        #: (C, C) partners that an anchor of each cell finds in the cells up to each one.
        self.reached = None if self.alike else (allowed * self.counts).cumsum(1)
        self.place = torch.empty_like(self.order).scatter_(0, self.order, torch.arange(len(cell), device=device))

    def draw(self, batch: Batch, draws: Draws, rows: Tensor | None = None) -> Tensor:
        """(B,) int64 rows of the training set, -1 where there is no partner.

        An anchor of a class or group that the training set lacks has no partner of the same one, and finds all of the
        set where another one is asked for.

        Args:
            batch: the anchors.
            draws: source of randomness.
            rows: (B,) int64 rows that the anchors have in the training set; needed where a sample could be its own
                partner.
        """
        if self.wants_rows and rows is None:
            raise ValueError(
                f"{self.pairing!r} needs to know which rows of the training set the samples are, so that nobody is "
                "their own partner: pass rows="
            )
        cell = torch.zeros(len(batch), dtype=torch.int64, device=batch.device)
        looked_at = self.pairing._looked_at(batch.labels, batch.metadata)
        for (values, _), known in zip(looked_at, self.known, strict=True):
            index = torch.searchsorted(known, values.to(known.dtype)).clamp(max=len(known) - 1)
            index = torch.where(known[index] == values, index, len(known))
            cell = cell * (len(known) + 1) + index
        unit = draws.uniform(per="sample")
        if self.reached is None:
            return self._of_own_cell(cell, rows, unit)
        reached = self.reached[cell]
        total = reached[:, -1]
        if self.wants_rows and rows is not None:
            # The anchor's own place among its partners is left out.
            number = (unit * (total - 1)).long().clamp(min=0)
            number = number + (number >= self.place[rows] - self.start[cell] + self._before(reached, cell))
            total = total - 1
        else:
            number = torch.minimum((unit * total).long(), (total - 1).clamp(min=0))
        chosen = (reached <= number[:, None]).sum(1).clamp(max=reached.shape[1] - 1)
        row = self.start[chosen] + number - self._before(reached, chosen)
        found = self.order[row.clamp(0, len(self.order) - 1)]
        return torch.where(total <= 0, -1, found)

    def _of_own_cell(self, cell: Tensor, rows: Tensor | None, unit: Tensor) -> Tensor:
        assert rows is not None  # asked for above
        others = self.counts[cell] - 1
        number = torch.minimum((unit * others).long(), (others - 1).clamp(min=0))
        number = number + (number >= self.place[rows] - self.start[cell])
        found = self.order[(self.start[cell] + number).clamp(0, len(self.order) - 1)]
        return torch.where(others <= 0, -1, found)

    @staticmethod
    def _before(reached: Tensor, cell: Tensor) -> Tensor:
        """(B,) partners in the cells before one."""
        before = reached.gather(1, (cell - 1).clamp(min=0)[:, None])[:, 0]
        return torch.where(cell > 0, before, torch.zeros_like(before))


class ClassPairs:
    """A partner's class is drawn by the own class, and the partner uniformly within that class: SelMix's pairs.

    In a batch only the classes that are there can be drawn, by their shares; a sample stays as it is where none of them
    has any. Over a training set the shares hold exactly.

    Args:
        matrix: (K, K) floating, not negative: row own class, column partner's class; rows need not sum to 1. Or a
            function that returns such a tensor, for one that changes while training goes on.

    Raises:
        ValueError: another shape, a negative or non-finite entry.
    """

    involution = False
    needs_labels = True

    def __init__(self, matrix: Tensor | Callable[[], Tensor]) -> None:
        self._matrix = matrix if callable(matrix) else check_matrix("ClassPairs", matrix)

    @property
    def matrix(self) -> Tensor:
        """(K, K) shares as they are now."""
        return self._matrix if isinstance(self._matrix, Tensor) else self._matrix()

    def __call__(self, batch: Batch, draws: Draws) -> Tensor:
        labels = _integers("labels", batch.labels)
        own = torch.arange(len(batch), device=batch.device)
        matrix = self.matrix.to(batch.device)
        check_class_ids("ClassPairs", labels, len(matrix))
        counts = matrix.new_zeros(len(matrix)).index_add_(0, labels, matrix.new_ones(len(batch)))
        # Nobody is their own partner, so of the own class there is one less.
        others = counts - (labels[:, None] == torch.arange(len(matrix), device=batch.device)).to(counts.dtype)
        share = matrix[labels] / others.clamp(min=1)
        weights = share.gather(1, labels[None].expand(len(batch), -1)).masked_fill(own[:, None] == own, 0.0)
        reached = weights.to(wide_dtype(batch.device)).cumsum(1)
        number = draws.uniform(per="sample") * reached[:, -1]
        chosen = (reached <= number[:, None]).sum(1).clamp(max=len(batch) - 1)
        return torch.where(reached[:, -1] > 0, chosen, own)

    def fit(self, labels: Tensor, inputs: Tensor | None = None) -> FittedClassPairs:
        """The same choice over a whole training set of class ids (N,)."""
        return FittedClassPairs(self, _integers("labels", labels))

    def __repr__(self) -> str:
        return "ClassPairs()"


class FittedClassPairs:
    """Draws partners by class from a training set; made by ``ClassPairs.fit``."""

    wants_rows = False

    def __init__(self, pairing: ClassPairs, labels: Tensor) -> None:
        self.pairing = pairing
        self.order = labels.argsort(stable=True)
        self.counts = torch.bincount(labels)
        self.start = self.counts.cumsum(0) - self.counts

    def draw(self, batch: Batch, draws: Draws, rows: Tensor | None = None) -> Tensor:
        """(B,) int64 rows of the training set, -1 where no class can be drawn."""
        labels = _integers("labels", batch.labels)
        matrix = self.pairing.matrix.to(batch.device)
        check_class_ids("ClassPairs", labels, len(matrix))
        if len(matrix) < len(self.counts):
            raise ValueError(f"ClassPairs has {len(matrix)} classes, the training set {len(self.counts)}")
        counts = torch.nn.functional.pad(self.counts, (0, len(matrix) - len(self.counts)))
        shares = matrix[labels] * (counts > 0)
        reached = shares.to(wide_dtype(batch.device)).cumsum(1)
        number = draws.uniform(per="sample") * reached[:, -1]
        chosen = (reached <= number[:, None]).sum(1).clamp(max=len(self.counts) - 1)
        count = self.counts[chosen]
        within = torch.minimum((draws.uniform(per="sample") * count).long(), (count - 1).clamp(min=0))
        return torch.where(reached[:, -1] > 0, self.order[self.start[chosen] + within], -1)


def check_matrix(what: str, matrix: object) -> Tensor:
    """Shares of pairs of classes, or an error that names ``what``."""
    if not isinstance(matrix, Tensor) or not matrix.is_floating_point():
        raise TypeError(f"{what} expects matrix as a floating tensor (K, K), got {shown(matrix)}")
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise ValueError(f"{what} expects matrix (K, K), got {tuple(matrix.shape)}")
    if not bool((matrix.isfinite() & (matrix >= 0)).all()):
        raise ValueError(f"{what} expects shares in matrix, finite and not negative")
    return matrix


def classes_of(labels: Tensor | None) -> Tensor:
    """(B,) what stands for the class: ids, the largest share of dense labels, numbers as they are."""
    if labels is None or labels.ndim not in (1, 2):
        came = "none" if labels is None else tuple(labels.shape)
        raise ValueError(f"a pairing by class expects labels (B,) or (B, K), got {came}")
    if labels.ndim == 2:
        return labels[:, 0] if labels.shape[1] == 1 else labels.argmax(1)
    return labels if labels.is_floating_point() else labels.long()


def _integers(what: str, values: Tensor | None) -> Tensor:
    if what == "labels" and values is not None and values.ndim == 2:
        return values.argmax(1)
    if values is None or values.is_floating_point() or values.ndim != 1:
        came = "none" if values is None else f"{tuple(values.shape)} {values.dtype}"
        raise ValueError(f"a pairing by class or group expects {what} as integers (B,), got {came}")
    return values.long()


__all__ = ["ClassPairs", "FittedClassPairs", "FittedSelective", "Selective", "WithinGroup"]
