"""Options that change over training: a number as a function of how much of it is done.

>>> import mixaug
>>> from mixaug.schedule import Cosine
>>> policy = mixaug.create("mixup", alpha=Cosine(1.0, 0.2))
>>> policy.set_progress(0.5)
>>> round(policy.alpha, 3)
0.6
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

from mixaug.checks import check_callable, check_whole, shown

__all__ = ["Cosine", "Linear", "Schedule", "Steps", "at_start", "is_schedule"]

#: Places of training at which the values of a schedule are checked when a policy is made of it.
PLACES = 101


@runtime_checkable
class Schedule(Protocol):
    """The value of an option when a fraction of training in [0, 1] is done."""

    def __call__(self, fraction: float) -> float: ...


class _Between:
    """From one value to another, in equal steps of time: a compiled step is compiled anew for every new value."""

    def __init__(self, start: float, end: float, steps: int = 100) -> None:
        what = type(self).__name__
        for name, value in (("start", start), ("end", end)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{what} expects {name} as a finite number, got {shown(value)}")
        self.start, self.end = float(start), float(end)
        self.steps = check_whole(what, "steps", steps)

    def __call__(self, fraction: float) -> float:
        place = math.floor(min(max(fraction, 0.0), 1.0) * self.steps) / self.steps
        return self.start + (self.end - self.start) * self.part(place)

    def part(self, place: float) -> float:
        """Part of the way that lies behind, in [0, 1]."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.start:g}, {self.end:g})"


class Linear(_Between):
    """Along a line from one value to another.

    Args:
        start, end: values at the start and at the end of training.
        steps: changes of the value on the way, at least 1.

    Raises:
        ValueError: values that are not finite numbers.
    """

    def part(self, place: float) -> float:
        return place


class Cosine(_Between):
    """Along half a cosine from one value to another; arguments as of :class:`Linear`."""

    def part(self, place: float) -> float:
        return (1 - math.cos(math.pi * place)) / 2


class Steps:
    """One value after another.

    Args:
        values: fraction of training, in [0, 1], to the value from there on; one of them from 0 on.

    Raises:
        ValueError: no value from 0 on, a fraction out of range.

    Example:
        >>> Steps({0.0: 1.0, 0.8: 0.1})(0.9)
        0.1
    """

    def __init__(self, values: Mapping[float, float]) -> None:
        try:
            # A config that went through JSON has its numbers as text where they are keys.
            places = sorted((float(place), float(value)) for place, value in dict(values).items())
        except (TypeError, ValueError):
            raise ValueError(
                f"Steps expects values as a mapping of fractions to numbers, got {shown(values)}"
            ) from None
        if not all(math.isfinite(number) for pair in places for number in pair):
            raise ValueError(f"Steps expects values of finite numbers, got {shown(values)}")
        if not places or places[0][0] != 0.0 or places[-1][0] > 1.0:
            raise ValueError(f"Steps expects values from fractions 0, ..., 1 on, the first from 0 on, got {values!r}")
        self.values = places

    def __call__(self, fraction: float) -> float:
        return [value for place, value in self.values if place <= fraction or place == 0.0][-1]

    def __repr__(self) -> str:
        return f"Steps({dict(self.values)})"


def is_schedule(value: object) -> bool:
    """Whether an option's value is a schedule and not a number."""
    return callable(value)


def at_start(what: str, name: str, schedule: Schedule, check: Callable[[str, str, float], float]) -> float:
    """The first value of a schedule, all of whose values pass ``check``.

    Raises:
        TypeError: it does not take one number.
        ValueError: it has a value that the option may not have.
    """
    check_callable(what, name, schedule, ["fraction"], "number or a schedule")
    fractions = [place / (PLACES - 1) for place in range(PLACES)]
    first, *_ = [check(what, f"{name} at {done:.0%} of training", schedule(done)) for done in fractions]
    return first
