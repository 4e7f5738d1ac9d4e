"""Labelings by name."""

from __future__ import annotations

from collections.abc import Callable

from mixaug.checks import check_callable, shown
from mixaug.labeling.attention import Attention
from mixaug.labeling.base import Labeling
from mixaug.labeling.cam import ClassActivation
from mixaug.labeling.content import Content
from mixaug.labeling.object import VisibleObject
from mixaug.labeling.progressive import Progressive
from mixaug.labeling.remix import Remix
from mixaug.labeling.saliency import VisibleSaliency
from mixaug.labeling.separate import Separate
from mixaug.labeling.shares import Area, Drawn, Own, Partner
from mixaug.labeling.token_labels import TokenLabels
from mixaug.near import did_you_mean

NAMED: dict[str, Callable[[], Labeling]] = {
    "area": Area,
    "ratio": Drawn,
    "own": Own,
    "partner": Partner,
    "attention": Attention,
    "progressive": Progressive,
    "token_labels": TokenLabels,
    "cam": ClassActivation,
    "content": Content,
    "saliency": VisibleSaliency,
    "object": VisibleObject,
    "separate": Separate,
    "remix": Remix,
}


def make(labeling: str | Labeling, what: str = "labeling.make", *, has_mask: bool = True) -> Labeling:
    """The :class:`Labeling` that a policy's options ask for.

    Args:
        labeling: a name of ``NAMED``, or an object.
        what: who asks, for messages.
        has_mask: whether pixels may differ in the share of each source.

    Raises:
        ValueError: unknown name, or a labeling that weighs what a mask shows where there is none.
        TypeError: neither a name nor a Labeling.
    """
    made = _made(labeling, what)
    if not has_mask and getattr(made, "weighs_mask", False):
        raise ValueError(
            f"{what} has no mask, all places show the same share, so labeling={shown(labeling)} has nothing to weigh: "
            "leave it out, or choose a policy that cuts"
        )
    return made


def _made(labeling: str | Labeling, what: str) -> Labeling:
    if isinstance(labeling, str):
        if labeling not in NAMED:
            raise ValueError(
                f"{what} got an unknown labeling {shown(labeling)}; expected one of {list(NAMED)} or a Labeling object"
                f"{did_you_mean(labeling, NAMED)}"
            )
        return NAMED[labeling]()
    check_callable(what, "labeling", labeling, ["plan", "batch"], "Labeling", attribute="needs")
    return labeling
