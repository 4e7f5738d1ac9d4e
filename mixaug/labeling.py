"""How much of each label: from what a policy drew to the weights of the sources."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mixaug.batch import Batch
    from mixaug.plan import Plan


@runtime_checkable
class Labeling(Protocol):
    """Weights of the sources' labels: (B, M) float32, column 0 for the sample itself.

    ``needs`` names the signals it reads (see ``Policy.needs``).
    """

    needs: frozenset[str]

    def __call__(self, plan: Plan, batch: Batch) -> Tensor: ...


class Area:
    """The share of pixels that each source really covers."""

    needs: frozenset[str] = frozenset()

    def __call__(self, plan: Plan, batch: Batch) -> Tensor:
        return _two_shares(plan.area(), len(batch))


class Drawn:
    """The share that was drawn, whatever clipping and rounding made of it."""

    needs: frozenset[str] = frozenset()

    def __call__(self, plan: Plan, batch: Batch) -> Tensor:
        return _two_shares(plan.lam, len(batch))


def _two_shares(lam: Tensor, batch_size: int) -> Tensor:
    lam = lam.float()
    return torch.stack([lam, 1 - lam], dim=1).expand(batch_size, 2)


NAMED: dict[str, Callable[[], Labeling]] = {"area": Area, "ratio": Drawn}


def make(labeling: str | Labeling) -> Labeling:
    """The :class:`Labeling` that a policy's options ask for: ``"area"``, ``"ratio"`` or an object.

    Raises:
        ValueError: unknown name.
        TypeError: neither a name nor a Labeling.
    """
    if isinstance(labeling, str):
        if labeling not in NAMED:
            raise ValueError(f"unknown labeling {labeling!r}; expected one of {list(NAMED)} or a Labeling object")
        return NAMED[labeling]()
    if not callable(labeling):
        raise TypeError(f"labeling expects a name or a Labeling, got {type(labeling).__name__}")
    return labeling
