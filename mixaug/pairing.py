"""Who is mixed with whom: partner maps over a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor

from mixaug.draws import Draws
from mixaug.neighbours import LabelKernel, Local, Nearest, PoolPairing

if TYPE_CHECKING:
    from mixaug.batch import Batch


@runtime_checkable
class Pairing(Protocol):
    """Chooses a partner for every sample: (B,) int64; sample i receives from row ``partner[i]``.

    ``involution`` says that the partner of the partner is the sample itself, which ``per="pair"`` needs.
    """

    involution: bool

    def __call__(self, batch: Batch, draws: Draws) -> Tensor: ...


class AnyRow:
    """Any row of a training set of ``count`` rows, with replacement."""

    wants_rows = False

    def __init__(self, count: int) -> None:
        self.count = count

    def draw(self, batch: Batch, draws: Draws, rows: Tensor | None = None) -> Tensor:
        """(B,) int64 rows of the training set."""
        return draws.integers(0, self.count, per="sample")


class Permutation:
    """A uniformly random permutation, as in most published code. On average one sample meets itself."""

    involution = False

    def fit(self, labels: Tensor, inputs: Tensor | None = None) -> PoolPairing:
        """Over a training set of N labels: any of its rows, with replacement."""
        return AnyRow(labels.shape[0])

    def __call__(self, batch: Batch, draws: Draws) -> Tensor:
        return draws.permutation()


class Derangement:
    """A random permutation that is one single cycle: nobody meets itself, and, in a batch of three or
    more, no two samples meet each other. Uniform over such permutations.

    What Midpoint Mixup (arXiv:2210.13512) wants, where mutual pairs would be identical samples.
    """

    involution = False

    def __call__(self, batch: Batch, draws: Draws) -> Tensor:
        order = draws.permutation()
        return torch.empty_like(order).scatter_(0, order, order.roll(-1))


class Reversed:
    """Sample i with sample B - 1 - i, as timm does. The middle sample of an odd batch meets itself."""

    involution = True

    def __call__(self, batch: Batch, draws: Draws) -> Tensor:
        return torch.arange(draws.batch_size - 1, -1, -1, device=draws.device)


class Shift:
    """Sample i with sample i - 1, as torchvision does: as good as random behind a shuffled loader."""

    involution = False

    def __call__(self, batch: Batch, draws: Draws) -> Tensor:
        return torch.arange(draws.batch_size, device=draws.device).roll(1)


class RandomPairs:
    """A uniformly random matching: the batch falls into pairs that mix with each other.

    In an odd batch one sample meets itself.
    """

    involution = True

    def __call__(self, batch: Batch, draws: Draws) -> Tensor:
        order = draws.permutation()
        return torch.empty_like(order).scatter_(0, order, order.flip(0))


NAMED: dict[str, Callable[[], Pairing]] = {
    "permutation": Permutation,
    "derangement": Derangement,
    "reversed": Reversed,
    "shift": Shift,
    "random_pairs": RandomPairs,
    "label_kernel": LabelKernel,
    "nearest": Nearest,
    "local": Local,
}


def make(pairing: str | Pairing | None, per: str) -> Pairing:
    """The :class:`Pairing` that a policy's options ask for.

    Args:
        pairing: a name of ``NAMED``, a :class:`Pairing`, or None for the default: a random permutation,
            and random pairs for ``per="pair"``.
        per: ``"sample"``, ``"batch"`` or ``"pair"``.

    Raises:
        ValueError: unknown name, or ``per="pair"`` with a pairing that is not mutual.
        TypeError: neither a name nor a Pairing.
    """
    if pairing is None:
        return RandomPairs() if per == "pair" else Permutation()
    if isinstance(pairing, str):
        if pairing not in NAMED:
            raise ValueError(f"unknown pairing {pairing!r}; expected one of {list(NAMED)} or a Pairing object")
        pairing = NAMED[pairing]()
    if not callable(pairing):
        raise TypeError(f"pairing expects a name or a Pairing, got {type(pairing).__name__}")
    if per == "pair" and not pairing.involution:
        mutual = [name for name, made in NAMED.items() if made().involution]
        raise ValueError(
            f'per="pair" shares draws between two samples that mix with each other, but '
            f"{type(pairing).__name__} is not mutual; use one of {mutual}"
        )
    return pairing
