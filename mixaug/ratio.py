"""How much of each sample: distributions of the own share ``lam``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from mixaug.draws import Draws
from mixaug.ops.layout import wide_dtype


@runtime_checkable
class Ratio(Protocol):
    """Draws the own share of every sample: (R,) floats in [0, 1], R as in :class:`mixaug.draws.Draws`."""

    def __call__(self, draws: Draws) -> Tensor: ...


class Beta:
    """lam ~ Beta(alpha, beta); ``beta`` defaults to ``alpha`` (mixup, arXiv:1710.09412).

    Raises:
        ValueError: a parameter that is not positive and finite.
    """

    def __init__(self, alpha: float = 1.0, beta: float | None = None) -> None:
        self.alpha = positive("alpha", alpha)
        self.beta = self.alpha if beta is None else positive("beta", beta)

    def __call__(self, draws: Draws) -> Tensor:
        return draws.beta(self.alpha, self.beta)

    def __repr__(self) -> str:
        return f"Beta({self.alpha:g}, {self.beta:g})"


class Uniform:
    """lam ~ Uniform(low, high) within [0, 1].

    Raises:
        ValueError: unless 0 <= low <= high <= 1.
    """

    def __init__(self, low: float = 0.0, high: float = 1.0) -> None:
        if not 0.0 <= low <= high <= 1.0:
            raise ValueError(f"Uniform expects 0 <= low <= high <= 1, got low={low!r}, high={high!r}")
        self.low, self.high = float(low), float(high)

    def __call__(self, draws: Draws) -> Tensor:
        return draws.uniform(self.low, self.high)

    def __repr__(self) -> str:
        return f"Uniform({self.low:g}, {self.high:g})"


class Constant:
    """The same share for all; 0.5 is Midpoint Mixup (arXiv:2210.13512).

    Raises:
        ValueError: a value outside [0, 1].
    """

    def __init__(self, value: float = 0.5) -> None:
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"Constant expects a share in [0, 1], got {value!r}")
        self.value = float(value)

    def __call__(self, draws: Draws) -> Tensor:
        rows = 1 if draws.per == "batch" else draws.batch_size
        return torch.full((rows,), self.value, device=draws.device, dtype=wide_dtype(draws.device))

    def __repr__(self) -> str:
        return f"Constant({self.value:g})"


NAMED: dict[str, Callable[[], Ratio]] = {"midpoint": Constant, "uniform": Uniform}


def make(ratio: str | float | Ratio, alpha: float) -> Ratio:
    """The :class:`Ratio` that a policy's options ask for.

    Args:
        ratio: ``"beta"`` for Beta(alpha, alpha), ``"midpoint"``, ``"uniform"``, a constant share in
            [0, 1], or a :class:`Ratio`.
        alpha: concentration of the Beta; always checked, used by ``"beta"`` alone.

    Raises:
        ValueError: unknown name, or a parameter out of its range.
        TypeError: anything else.
    """
    beta = Beta(alpha)
    if isinstance(ratio, str):
        if ratio == "beta":
            return beta
        if ratio in NAMED:
            return NAMED[ratio]()
        raise ValueError(f"unknown ratio {ratio!r}; expected one of {['beta', *NAMED]} or a Ratio object")
    if isinstance(ratio, (int, float)) and not isinstance(ratio, bool):
        return Constant(float(ratio))
    if callable(ratio):
        return ratio
    raise TypeError(f"ratio expects a name, a share in [0, 1] or a Ratio, got {type(ratio).__name__}")


def positive(name: str, value: float) -> float:
    """``value`` as a float, or a ValueError that names the argument."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} expects a number, got {value!r}")
    # Not math.isfinite: a traced number can only be compared.
    if not 0 < value < math.inf:
        raise ValueError(f"{name} expects a positive finite number, got {value!r}")
    return float(value)
