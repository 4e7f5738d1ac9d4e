"""The plan of a batch whose partners come from outside."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from mixaug.plan import Plan


@dataclass(frozen=True, kw_only=True)
class PartnersPlan(Plan):
    """A plan for the batch's own B rows followed by R rows of partners, of which the first ``keep`` results count.

    Attributes:
        inner: plan for all B + R rows.
        keep: B, or 2B where both members of a pair are kept.
        own: B.
        pool_rows: (B,) int64 rows of the training set that the partners are; None for partners of another source.
        further: (R, ...) inputs of the partners; None where their source brings them again, or nothing is replayed.
    """

    inner: Plan
    keep: int
    own: int
    pool_rows: Tensor | None = None
    further: Tensor | None = None

    @classmethod
    def of(cls, inner: Plan, keep: int, own: int, pool_rows: Tensor | None = None) -> PartnersPlan:
        """The plan that keeps the first results of another one."""
        return cls(
            partner=inner.partner[:keep],
            lam=inner.lam if inner.lam.shape[0] == 1 else inner.lam[:keep],
            weights=None if inner.weights is None else inner.weights[:keep],
            size=inner.size,
            form=inner.form,
            route=inner.route,
            inner=inner,
            keep=keep,
            own=own,
            pool_rows=pool_rows,
        )

    @property
    def mixes(self) -> bool:
        return self.inner.mixes

    @property
    def is_mean(self) -> bool:
        return self.inner.is_mean

    @property
    def relocates(self) -> bool:
        return self.inner.relocates

    @property
    def members(self) -> tuple[Plan, ...]:
        return tuple(self._around(member) for member in self.inner.members)

    def rejoined(self, members: Sequence[Plan]) -> Plan:
        inside = []
        for member, whole in zip(members, self.inner.members, strict=True):
            weights = whole.weights
            if weights is not None and member.weights is not None:
                # Results that are not kept keep the weights that they were drawn with.
                weights = weights.clone()
                weights[: self.keep] = member.weights
            inside.append(dataclasses.replace(whole, weights=weights))
        return self._around(self.inner.rejoined(inside))

    @property
    def sources(self) -> Tensor:
        return self.inner.sources[: self.keep]

    @property
    def rows(self) -> int:
        return self.inner.rows

    @property
    def stages(self) -> tuple[str, ...]:
        # Rows are dropped where they are mixed, so no other stage may be hooked: the drawn one is read.
        stage = self.drawn_stage
        return () if stage is None else (stage,)

    @property
    def drawn_stage(self) -> str | None:
        try:
            return self.inner.drawn_stage
        except ValueError as error:
            raise ValueError(
                "with partners from outside the batch only its own rows are kept where they are mixed, so there "
                "cannot be a choice per sample, or on a GPU, between a policy that mixes inside the model and another "
                "one"
            ) from error

    def area(self) -> Tensor:
        return self._kept(self.inner.area())

    def own_mask(self) -> Tensor | None:
        mask = self.inner.own_mask()
        return None if mask is None else self._kept(mask)

    def mix(self, tensor: Tensor, *, out: Tensor | None = None, inplace: bool = False) -> Tensor:
        if out is not None or inplace:
            raise ValueError("a batch joined with partners from outside has no place to write into")
        mixed = self.inner.mix(tensor)
        # What is mixed inside the model has to get there first.
        return mixed if self.drawn_stage is not None else mixed[: self.keep]

    def mix_label_map(self, label_map: Tensor, num_classes: int) -> Tensor:
        return self.inner.mix_label_map(label_map, num_classes)[: self.keep]

    def mix_hidden(self, stage: str, features: Tensor) -> Tensor:
        return self.inner.mix_hidden(stage, features)[: self.keep]

    def _around(self, inner: Plan) -> PartnersPlan:
        return PartnersPlan.of(inner, self.keep, self.own, self.pool_rows)

    def _kept(self, values: Tensor) -> Tensor:
        return values if values.shape[0] == 1 else values[: self.keep]
