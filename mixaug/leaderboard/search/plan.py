"""The rungs of a search from what trials cost: pure arithmetic, no clock and no run.

With n trials and ``eta``, the rungs have n, n / eta, n / eta^2, ... trials (rounded up), down to the first that has no
more than ``eta``. The last one trains in full, to R epochs; the others lie a constant factor apart,

    r_k = R * ratio^-(K - 1 - k),   k = 0 ... K - 1,

with the smallest ratio of at least 1 that the budget has room for. At ``eta`` all rungs cost about the same, which is
successive halving as published. At a ratio of 1 all are trained in full, which is the whole grid; rungs between
would train nothing, so there are two: every trial with one seed, then as many of the best as there is room for with
the seeds of the last rung. Nor is there a rung of one seed to an epoch where all of its trials have been.

Before the rungs, a reserve for the final comparison is set aside. Where the budget has no room for a ratio of ``eta``
or less, first the seeds of the last rung become fewer, down to one, then those of the final comparison, down to two,
then the ratio grows.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = [
    "BudgetTooSmall",
    "Cost",
    "Plan",
    "Rung",
    "affordable",
    "in_seconds",
    "make_plan",
    "needed_at_least",
    "seconds_of",
    "whole_grid",
]

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}

#: A ratio beyond this leaves the first rungs where the probe has stopped.
LARGEST_RATIO = 1e6

#: No command that trains a run is done in fewer seconds than these, on any machine.
LEAST_OF_A_RUN = 0.05

#: Least seeds of a row in the final comparison.
LEAST_SEEDS = 2


class BudgetTooSmall(ValueError):
    """The budget has no room for the smallest search and its final comparison; the message says what they need.

    Attributes:
        begun: whether runs had been trained by then.
    """

    begun = False


@dataclass(frozen=True)
class Cost:
    """What a trial costs, in seconds of one run: to start (and stop and score) it once, and for each epoch."""

    start: float
    epoch: float

    def of(self, epochs: float) -> float:
        """Seconds of one command that trains so many epochs."""
        return self.start + epochs * self.epoch


@dataclass(frozen=True)
class Rung:
    """So many trials are brought to this epoch, each with so many seeds, the first of which went through all rungs."""

    trials: int
    epochs: int
    seeds: int = 1


@dataclass(frozen=True)
class Plan:
    """Rungs and seeds of the final comparison.

    Attributes:
        rungs: in order.
        final_seeds: seeds of each row of the final comparison.
        ratio: the epochs of a rung over those of the one before.
        rung_seconds, final_seconds: what both are expected to cost.
    """

    rungs: tuple[Rung, ...]
    final_seeds: int
    ratio: float
    rung_seconds: float
    final_seconds: float


def seconds_of(budget: str | int | float) -> float:
    """The seconds of a budget: ``1800``, ``"90s"``, ``"30m"``, ``"1.5h"``.

    Raises:
        ValueError: anything else, or nothing above zero.
    """
    told = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", str(budget).strip())
    seconds = float(told[1]) * _UNITS[told[2]] if told else 0.0
    if not 0 < seconds < math.inf:
        raise ValueError(f"budget: expected seconds of training, or a time such as 30m or 1.5h, got {budget!r}")
    return seconds


def counts_of(trials: int, eta: int) -> list[int]:
    """How many trials are on each rung: ``[16, 6, 2]`` of 16 with ``eta=3``."""
    counts = [trials]
    while counts[-1] > eta:
        counts.append(-(-counts[-1] // eta))
    return counts


def make_plan(
    costs: Sequence[Cost],
    final: Sequence[Cost],
    *,
    available: float,
    epochs: int,
    done: int,
    eta: int,
    last_seeds: int,
    final_seeds: int,
) -> Plan:
    """Rungs that fit into what is left of a budget.

    Args:
        costs: of the trials, in any order. Later rungs are taken to cost what trials cost on average.
        final: of the rows of the final comparison; the winner's is not known and should be a dear one's.
        available: seconds left of the budget.
        epochs: epochs R of a whole run.
        done: epochs that all trials have been trained already.
        eta: one of so many trials goes on, at least 2.
        last_seeds, final_seeds: most seeds of a trial on the last rung and of a row in the final comparison.

    Raises:
        BudgetTooSmall: names the seconds that are missing.
    """
    counts = counts_of(len(costs), eta)
    mean = Cost(statistics.fmean(cost.start for cost in costs), statistics.fmean(cost.epoch for cost in costs))
    a_final_seed = sum(cost.of(epochs) for cost in final)

    def rungs_at(ratio: float, seeds: int) -> list[Rung]:
        return _rungs_at(counts, ratio, seeds, epochs, done)

    def cost_of(rungs: Sequence[Rung]) -> float:
        return cost_of_rungs(rungs, mean, done)

    tries = [(final_seeds, seeds) for seeds in range(last_seeds, 0, -1)]
    tries += [(finals, 1) for finals in range(final_seeds - 1, 1, -1)]
    for finals, seeds in tries:
        room = available - finals * a_final_seed
        if cost_of(rungs_at(eta, seeds)) <= room:
            low, high = 1.0, float(eta)
            break
    else:
        finals, seeds = tries[-1]
        room = available - finals * a_final_seed
        least = cost_of(rungs_at(LARGEST_RATIO, seeds))
        if least > room:
            # Whole seconds, rounded so that they add up and that what is missing is enough.
            have, search, compared = -_up(-available), _up(least), _up(finals * a_final_seed)
            left = f"{have} s are" if have >= 0 else f"the probe took {-have} s too much, nothing is"
            error = BudgetTooSmall(
                f"budget: {left} left for {len(costs)} trials, but the shortest search takes "
                f"{search} s and a final comparison of {finals} seeds {compared} s: "
                f"{search + compared - have} s are missing; give more, or fewer trials or epochs"
            )
            # The costs are those of runs.
            error.begun = True
            raise error
        low, high = float(eta), LARGEST_RATIO
    if cost_of(rungs_at(low, seeds)) <= room:
        high = low
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if cost_of(rungs_at(middle, seeds)) <= room else (middle, high)
    rungs = rungs_at(high, seeds)
    if high == 1 and len(counts) > 1:
        grid = Rung(len(costs), epochs)
        further = (seeds - 1) * mean.of(epochs)
        fitting = math.floor((room - cost_of([grid])) / further) if further > 0 else len(costs)
        rungs = [grid, Rung(max(counts[-1], min(len(costs), fitting)), epochs, seeds)] if seeds > 1 else [grid]
    return Plan(tuple(rungs), finals, high, cost_of(rungs), finals * a_final_seed)


def needed_at_least(
    known: Mapping[str, Cost],
    left: Sequence[str],
    rows: Sequence[str],
    *,
    plain: Cost | None,
    epochs: int,
    done: int,
    eta: int,
) -> float:
    """Seconds that the shortest search takes for certain, beside those that were spent.

    A trial that has not been measured may be far cheaper than one that has been: it is taken to cost half of what
    training without mixing costs for each epoch, and what no run is done in while that is not known.

    Args:
        known: what trials have been measured to cost.
        left: trials that have not failed; those without a cost are still to be probed.
        rows: of the final comparison, the winner apart.
        plain: what training without mixing costs, or less; None while it has not been measured.
        epochs, done, eta: as in :func:`make_plan`.
    """
    # The first command to start is the slowest to do so: files and code are not in memory yet.
    least = Cost(LEAST_OF_A_RUN, 0.0 if plain is None else plain.epoch / 2)
    if not left:
        return 0.0
    costs = [known.get(label, least) for label in left]
    mean = Cost(statistics.fmean(cost.start for cost in costs), statistics.fmean(cost.epoch for cost in costs))
    rungs = _rungs_at(counts_of(len(costs), eta), LARGEST_RATIO, 1, epochs, done)
    final = LEAST_SEEDS * sum(known.get(label, least).of(epochs) for label in rows)
    return len(set(left) - set(known)) * least.of(done) + cost_of_rungs(rungs, mean, done) + final


def in_seconds(seconds: float) -> str:
    """Seconds as they are told: whole ones from ten on, three digits of less."""
    return f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.3g}"


def _up(seconds: float) -> int:
    """Rounded up, but for what computing with floating point has added."""
    return math.ceil(round(seconds, 6))


def _rungs_at(counts: Sequence[int], ratio: float, seeds: int, epochs: int, done: int) -> list[Rung]:
    """Rungs a factor apart, the last one with so many seeds."""
    last = len(counts) - 1
    lengths = [max(done, min(epochs, math.ceil(epochs / ratio ** (last - k) - 1e-9))) for k in range(last + 1)]
    every = enumerate(zip(counts, lengths, strict=True))
    rungs = [Rung(n, length, seeds if k == last else 1) for k, (n, length) in every]
    # Where lengths are rounded to one epoch, the later rung would rank fewer trials by what is known already.
    return [rung for k, rung in enumerate(rungs) if k == 0 or rung.epochs > rungs[k - 1].epochs or rung.seeds > 1]


def cost_of_rungs(rungs: Sequence[Rung], cost: Cost, done: int) -> float:
    """Seconds of all rungs, if each trial has this cost and ``done`` epochs behind it with one seed."""
    total, seeds = 0.0, 1
    for rung in rungs:
        total += rung.trials * seeds * (cost.of(rung.epochs - done) if rung.epochs > done else 0.0)
        total += rung.trials * max(0, rung.seeds - seeds) * cost.of(rung.epochs)
        done, seeds = max(done, rung.epochs), max(seeds, rung.seeds)
    return total


def affordable(costs: Sequence[Cost], *, room: float, epochs: int, done: int, seeds: int) -> tuple[int, int]:
    """How many of the first trials a rung has room for, and with how many seeds; (0, 0) where it has none.

    A rung that trains further gets fewer seeds before it gets fewer trials. One that brings seeds alone gets fewer
    trials first, and at least two of each: with one seed it would say what is known. One that brings neither, since
    both its epoch and its seed have been there, costs nothing.

    Args:
        costs: of the trials that are to go on, the best first; each has been trained with one seed.
        room: seconds that the rung may take.
        epochs, done: to which epoch, and from which.
        seeds: most seeds of each.
    """
    goes_on = epochs > done
    if not goes_on and seeds == 1:
        return len(costs), 1
    fewest, least_seeds = (1, 1) if goes_on else (2, 2)
    counts, numbers = range(len(costs), fewest - 1, -1), range(seeds, least_seeds - 1, -1)
    if goes_on:
        choices = [(count, number) for count in counts for number in numbers]
    else:
        choices = [(count, number) for number in numbers for count in counts]
    for count, number in choices:
        needed = (number - 1) * sum(cost.of(epochs) for cost in costs[:count])
        if goes_on:
            needed += sum(cost.of(epochs - done) for cost in costs[:count])
        if needed <= room:
            return count, number
    return 0, 0


def whole_grid(costs: Sequence[Cost], epochs: int, seeds: int = 1) -> float:
    """Seconds that all trials would take in full, with so many seeds each."""
    return seeds * sum(cost.of(epochs) for cost in costs)
