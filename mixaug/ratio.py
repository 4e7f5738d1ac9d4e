"""How much of each sample: distributions of the own share ``lam``."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from mixaug.checks import check_callable, check_positive, check_probability, check_range, shown
from mixaug.draws import Draws
from mixaug.near import did_you_mean
from mixaug.ops.layout import wide_dtype
from mixaug.schedule import Cosine, Linear, Schedule, Steps, is_schedule


@runtime_checkable
class Ratio(Protocol):
    """Draws the own share of every sample: (R,) floats in [0, 1], R as in :class:`mixaug.draws.Draws`.

    One that goes by the pair finds the batch in ``draws.batch`` and the (B,) rows of the partners in
    ``draws.partner``, and gives R = B values.
    """

    def __call__(self, draws: Draws) -> Tensor: ...


class Beta:
    """lam ~ Beta(alpha, beta); ``beta`` defaults to ``alpha`` (mixup, arXiv:1710.09412).

    Raises:
        ValueError: a parameter that is not positive, or so small or large that float32 draws no number.
    """

    def __init__(self, alpha: float = 1.0, beta: float | None = None) -> None:
        self.alpha = check_positive("Beta", "alpha", alpha)
        self.beta = self.alpha if beta is None else check_positive("Beta", "beta", beta)

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
        self.low, self.high = check_range("Uniform", "shares", (low, high), 0, 1)

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
        self.value = check_probability("Constant", "value", value)

    def __call__(self, draws: Draws) -> Tensor:
        rows = 1 if draws.per == "batch" else draws.batch_size
        return torch.full((rows,), self.value, device=draws.device, dtype=wide_dtype(draws.device))

    def __repr__(self) -> str:
        return f"Constant({self.value:g})"


class Bernoulli:
    """A coin for every sample: the own one whole with a probability, else the partner.

    With an inner stage and labels of the own sample this is prior mixup (DDDM-VC, arXiv:2305.15816).

    Raises:
        ValueError: a probability outside [0, 1].
    """

    def __init__(self, probability: float = 0.5) -> None:
        self.probability = check_probability("Bernoulli", "probability", probability)

    def __call__(self, draws: Draws) -> Tensor:
        return (draws.uniform() < self.probability).to(wide_dtype(draws.device))

    def __repr__(self) -> str:
        return f"Bernoulli({self.probability:g})"


NAMED: dict[str, Callable[[], Ratio]] = {"midpoint": Constant, "uniform": Uniform, "bernoulli": Bernoulli}


def make(ratio: str | float | Ratio, alpha: float, what: str = "ratio.make") -> Ratio:
    """The :class:`Ratio` that a policy's options ask for.

    Args:
        ratio: ``"beta"`` for Beta(alpha, alpha), ``"midpoint"``, ``"uniform"``, ``"bernoulli"``, a constant share in
            [0, 1], or a :class:`Ratio`.
        alpha: concentration of the Beta; always checked, used by ``"beta"`` alone.
        what: who asks, for messages.

    Raises:
        ValueError: unknown name, or a parameter out of its range.
        TypeError: anything else.
    """
    if isinstance(alpha, numbers.Real) and not isinstance(alpha, bool) and alpha == 0:
        raise ValueError(
            f"{what} expects alpha as a positive finite number, got {alpha}: to mix nothing take policy 'none'"
        )
    beta = Beta(check_positive(what, "alpha", alpha))
    if isinstance(ratio, str):
        if ratio == "beta":
            return beta
        if ratio in NAMED:
            return NAMED[ratio]()
        raise ValueError(
            f"{what} got an unknown ratio {shown(ratio)}; expected one of {['beta', *NAMED]}, a share in [0, 1] or a "
            f"Ratio object{did_you_mean(ratio, ['beta', *NAMED])}"
        )
    if isinstance(ratio, Linear | Cosine | Steps):
        raise TypeError(f"{what} expects ratio as a distribution of lam, got the schedule {ratio!r}: alpha takes one")
    if callable(ratio):
        check_callable(what, "ratio", ratio, ["draws"], "share in [0, 1] or a Ratio")
        return ratio
    if not isinstance(ratio, numbers.Real) or isinstance(ratio, bool):
        raise TypeError(f"{what} expects ratio as a name, a share in [0, 1] or a Ratio, got {shown(ratio)}")
    return Constant(check_probability(what, "ratio as a share", ratio))


def check_alpha_acts(what: str, alpha: float | Schedule, ratio: str | float | Ratio, hint: str = "") -> None:
    """Refuse an alpha that somebody chose beside a ratio that draws nothing from Beta(alpha, alpha).

    Raises:
        ValueError: ratio is not ``"beta"``; ``hint`` ends the message.
    """
    if not (isinstance(ratio, str) and ratio == "beta"):
        raise ValueError(
            f"{what} draws nothing from Beta(alpha, alpha) with ratio={shown(ratio)}, so alpha={shown(alpha)} has no "
            f'effect: leave one of them out, or say ratio="beta"{hint}'
        )


def alpha_or_ratio(what: str, alpha: float | Schedule, default: float, ratio: str | float | Ratio) -> dict[str, Any]:
    """The one that acts of both, for a function that makes a policy; errors as of :func:`check_alpha_acts`."""
    if isinstance(ratio, str) and ratio == "beta":
        return {"alpha": alpha}
    if is_schedule(alpha) or check_positive(what, "alpha", alpha) != default:
        check_alpha_acts(what, alpha, ratio)
    return {"ratio": ratio}
