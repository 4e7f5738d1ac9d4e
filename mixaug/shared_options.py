"""Options that policies share, one typed dictionary each, so that type checkers know which ones a policy offers.

A policy that offers all of them ends its ``__init__`` in ``**shared: Unpack[SharedOptions]``. One whose ``not_offered``
names some of them unpacks a dictionary of the others:

    class Offered(TakesPairing, TakesPer, total=False): ...
"""

from __future__ import annotations

from typing import TypedDict

from mixaug.draws import Per
from mixaug.labeling import Labeling
from mixaug.pairing import Pairing
from mixaug.partners import PartnerSource
from mixaug.ratio import Ratio

__all__ = ["SharedOptions", "TakesLabeling", "TakesPairing", "TakesPartners", "TakesPer", "TakesRatio"]


class TakesRatio(TypedDict, total=False):
    """``ratio``: the distribution of lam, see :class:`mixaug.Policy`."""

    ratio: str | float | Ratio


class TakesPairing(TypedDict, total=False):
    """``pairing``: who mixes with whom."""

    pairing: str | Pairing | None


class TakesLabeling(TypedDict, total=False):
    """``labeling``: how much of each label."""

    labeling: str | Labeling


class TakesPer(TypedDict, total=False):
    """``per``: how often is drawn."""

    per: Per


class TakesPartners(TypedDict, total=False):
    """``partners``: where partners come from."""

    partners: str | PartnerSource | None


class SharedOptions(TakesRatio, TakesPairing, TakesLabeling, TakesPer, TakesPartners, total=False):
    """Options that policies share, beside ``alpha``, which a policy that has it takes first and by position as well.

    The one place that lists them: a policy ends its ``__init__`` in ``**shared: Unpack[SharedOptions]`` and hands all
    of that on. Its class attributes ``shared_defaults`` and ``not_offered`` say where it differs.
    """
