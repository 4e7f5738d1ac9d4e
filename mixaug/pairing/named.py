"""Pairings by name."""

from __future__ import annotations

from collections.abc import Callable

from mixaug.checks import check_callable, shown
from mixaug.near import did_you_mean
from mixaug.pairing.base import Pairing
from mixaug.pairing.kernel import LabelKernel
from mixaug.pairing.nearest import Local, Nearest
from mixaug.pairing.within_batch import Derangement, Halves, Permutation, RandomPairs, Reversed, Shift

NAMED: dict[str, Callable[[], Pairing]] = {
    "permutation": Permutation,
    "derangement": Derangement,
    "reversed": Reversed,
    "shift": Shift,
    "random_pairs": RandomPairs,
    "halves": Halves,
    "label_kernel": LabelKernel,
    "nearest": Nearest,
    "local": Local,
}


def make(pairing: str | Pairing | None, per: str, what: str = "pairing.make") -> Pairing:
    """The :class:`Pairing` that a policy's options ask for.

    Args:
        pairing: a name of ``NAMED``, a :class:`Pairing`, or None for the default: a random permutation,
            and random pairs for ``per="pair"``.
        per: ``"sample"``, ``"batch"`` or ``"pair"``.
        what: who asks, for messages.

    Raises:
        ValueError: unknown name, or ``per="pair"`` with a pairing that is not mutual.
        TypeError: neither a name nor a Pairing.
    """
    if pairing is None:
        return RandomPairs() if per == "pair" else Permutation()
    if isinstance(pairing, str):
        if pairing not in NAMED:
            raise ValueError(
                f"{what} got an unknown pairing {shown(pairing)}; expected one of {list(NAMED)} or a Pairing object"
                f"{did_you_mean(pairing, NAMED)}"
            )
        pairing = NAMED[pairing]()
    check_callable(what, "pairing", pairing, ["batch", "draws"], "Pairing")
    if per == "pair" and not getattr(pairing, "involution", False):
        mutual = [name for name, made in NAMED.items() if made().involution]
        raise ValueError(
            f'{what}: per="pair" shares draws between two samples that mix with each other, but '
            f"pairing {type(pairing).__name__} is not mutual; use one of {mutual}"
        )
    return pairing
