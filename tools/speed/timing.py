"""Interleaved timing: every case once per round, so that a slow moment of the machine hits all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of one call in each round, in the order of the rounds."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def ratios_to(self, other: Timing) -> list[float]:
        """Ratio to another case, round by round."""
        return [own / theirs for own, theirs in zip(self.rounds, other.rounds, strict=True)]


@dataclass(frozen=True)
class Ratio:
    """Median of a ratio over the rounds, with its smallest and largest value."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, timing: Timing, reference: Timing) -> Ratio:
        values = timing.ratios_to(reference)
        return cls(statistics.median(values), min(values), max(values))


def interleaved(
    cases: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 7,
    round_seconds: float = 0.02,
    device: torch.device | None = None,
) -> dict[str, Timing]:
    """Time every case in every round.

    In a round a case is called until ``round_seconds`` are over, twice at least, and the fastest call
    counts on a CPU; on a GPU the calls are queued and their mean counts.

    Args:
        cases: functions without arguments, by name; each is called twice before the first round.
        rounds: number of rounds, positive.
        round_seconds: seconds given to a case in a round.
        device: where the work runs; a CUDA device is synchronised around each measurement.

    Returns:
        A :class:`Timing` for every case.
    """
    if rounds < 1:
        raise ValueError(f"interleaved expects rounds of at least 1, got {rounds}")
    measure = _queued if device is not None and device.type == "cuda" else _fastest
    for case in cases.values():
        case()
        case()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            seconds[name].append(measure(case, round_seconds))
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def once_a_round(cases: Mapping[str, Callable[[], object]], *, rounds: int, device: torch.device) -> dict[str, Timing]:
    """Time cases that take long, such as a pass over a loader: one call a round each, in turn.

    Args:
        cases: functions without arguments, by name; each is called once before the first round.
        rounds, device: as for :func:`interleaved`.
    """
    if rounds < 1:
        raise ValueError(f"once_a_round expects rounds of at least 1, got {rounds}")
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, case in cases.items():
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            start = time.perf_counter()
            case()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number > 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def _fastest(case: Callable[[], object], budget: float) -> float:
    best, calls, began = float("inf"), 0, time.perf_counter()
    while calls < 2 or time.perf_counter() - began < budget:
        start = time.perf_counter()
        case()
        best = min(best, time.perf_counter() - start)
        calls += 1
    return best


def _queued(case: Callable[[], object], budget: float) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    case()
    torch.cuda.synchronize()
    calls = max(5, min(1000, int(budget / max(time.perf_counter() - start, 1e-6))))
    start = time.perf_counter()
    for _ in range(calls):
        case()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / calls
