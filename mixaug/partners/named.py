"""Sources of partners by name."""

from __future__ import annotations

from collections.abc import Callable

from mixaug.checks import shown
from mixaug.near import did_you_mean
from mixaug.partners.base import InBatch, PartnerSource
from mixaug.partners.history import PreviousBatch

#: Sources that need nothing told; "batch" stands for the batch itself.
NAMED: dict[str, Callable[[], PartnerSource | None]] = {"batch": lambda: None, "previous": PreviousBatch}


def make(partners: str | PartnerSource | None, what: str = "partners.make") -> PartnerSource | None:
    """The :class:`PartnerSource` that a policy's options ask for, None for the batch.

    Args:
        partners: a name of ``NAMED``, a source, or None.
        what: who asks, for messages.

    Raises:
        ValueError: unknown name.
        TypeError: neither a name nor a source.
    """
    if isinstance(partners, str):
        if partners not in NAMED:
            raise ValueError(
                f"{what} got unknown partners {shown(partners)}; expected one of {list(NAMED)} or an object of "
                f"mixaug.partners{did_you_mean(partners, NAMED)}"
            )
        return NAMED[partners]()
    if partners is None or isinstance(partners, InBatch):
        return None
    if not isinstance(partners, PartnerSource):
        raise TypeError(f"{what} expects partners as a name or an object of mixaug.partners, got {shown(partners)}")
    return partners
