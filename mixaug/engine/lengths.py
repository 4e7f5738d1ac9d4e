"""How long a run lasts under a budget: the rules, and what a config notes of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixaug.engine.reading import is_number

__all__ = ["BUDGETS", "epochs_at_equal_cost", "fault_of_budget"]

BUDGETS = ("equal_epochs", "equal_cost")
KEYS = ("rule", "epochs", "cost")


def epochs_at_equal_cost(epochs: int, cost: float) -> int:
    """Epochs, at least 1, that cost as much as so many without mixing, where a step costs ``cost`` times as much."""
    return max(1, round(epochs / cost))


def fault_of_budget(budget: Any) -> str:
    """What is wrong with the ``budget`` of a config; empty where nothing is.

    Args:
        budget: None, a rule, or what became of it when it was put into effect: rule, epochs that were asked for, and
            the cost of a step.
    """
    expected = f"budget must be null, one of {', '.join(BUDGETS)}, or these with epochs and cost, got {budget!r}"
    if not isinstance(budget, Mapping):
        return "" if budget in (None, *BUDGETS) else expected
    if set(budget) != set(KEYS) or budget["rule"] not in BUDGETS:
        return expected
    epochs, cost = budget["epochs"], budget["cost"]
    whole = isinstance(epochs, int) and not isinstance(epochs, bool) and epochs >= 1
    return "" if whole and is_number(cost) and cost > 0 else expected
