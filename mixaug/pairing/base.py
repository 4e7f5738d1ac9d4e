"""Who is mixed with whom: what a pairing is."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from mixaug.batch import Batch
from mixaug.draws import Draws


@runtime_checkable
class Pairing(Protocol):
    """Chooses a partner for every sample: (B,) int64; sample i receives from row ``partner[i]``.

    ``involution`` says that the partner of the partner is the sample itself, which ``per="pair"`` needs.
    """

    involution: bool

    def __call__(self, batch: Batch, draws: Draws) -> Tensor: ...


@runtime_checkable
class PoolPairing(Protocol):
    """A pairing fitted to a training set: (B,) int64 rows of that set, -1 for the sample itself.

    Attributes:
        wants_rows: whether the rows that the samples themselves have in the training set matter.
    """

    wants_rows: bool

    def draw(self, batch: Batch, draws: Draws, rows: Tensor | None = None) -> Tensor: ...
