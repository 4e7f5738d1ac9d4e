"""List the policies, or describe some: mixaug policies; mixaug policies describe cutmix

`mixaug policies` lists all by families. With filters, which may be combined:

    mixaug policies "*mix" --family masks
    mixaug policies --task regression --model-free     labels are numbers, and no model is looked at
    mixaug policies --needs attention --passes 1       look at attention, in one forward pass a step
"""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from mixaug.commands.arguments import STATUSES, status_of

__all__ = ["ACTIONS", "main", "parser"]

ACTIONS = ("list", "describe")


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(
        "mixaug policies",
        description=__doc__,
        epilog=STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("action", nargs="?", choices=ACTIONS, default="list", help="default: list")
    made.add_argument("names", nargs="*", metavar="name", help="patterns to list, or names to describe")
    made.add_argument("--family", help="one family, such as masks")
    made.add_argument("--task", choices=("classification", "regression"), help="labels are classes, or numbers")
    looks = made.add_mutually_exclusive_group()
    looks.add_argument(
        "--needs", metavar="SIGNAL", action="append", help="look at this of the model, such as attention"
    )
    looks.add_argument("--model-free", action="store_true", help="look at nothing of the model")
    made.add_argument("--cost", type=float, metavar="N", help="at most N times the operations of a step without mixing")
    made.add_argument("--passes", type=float, metavar="N", help="at most N forward passes in a training step")
    return made


def main(arguments: Sequence[str]) -> int:
    """Print the list or the cards."""
    given = list(arguments)
    reader = parser()
    # A pattern stands in the place of the action where that is left out.
    first = next((index for index, word in enumerate(given) if not word.startswith("-")), None)
    if first == 0 and given[0] not in ACTIONS:
        given.insert(0, "list")
    chosen = reader.parse_intermixed_args(given)
    filters = {
        "family": chosen.family,
        "task": chosen.task,
        "needs": () if chosen.model_free else chosen.needs,
        "passes": chosen.passes,
        "cost": chosen.cost,
    }
    if chosen.action == "describe" and any(value is not None for value in filters.values()):
        reader.error("describe takes names and no filters")
    if chosen.action == "describe" and not chosen.names:
        reader.error("describe expects at least one name")
    import mixaug

    try:
        if chosen.action == "describe":
            print("\n\n".join(str(mixaug.describe(name)) for name in chosen.names))
            return 0
        names = sorted({name for pattern in chosen.names or ["*"] for name in mixaug.list_policies(pattern, **filters)})
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return status_of(error)
    if not names:
        print("no policy is like that", file=sys.stderr)
        return 1
    print(table([mixaug.describe(name) for name in names]))
    return 0


def table(cards: Sequence[Any]) -> str:
    """Policies by families: name, what is looked at of the model, source, what it does."""
    from mixaug.registry import FAMILIES

    rows = {
        card.name: (card.name, ", ".join(sorted(card.needs)) or "-", card.arxiv or "-", card.summary) for card in cards
    }
    heads = ("policy", "of the model", "arXiv", "what it does")
    widths = [max(len(row[column]) for row in [heads, *rows.values()]) for column in range(3)]
    width = shutil.get_terminal_size((120, 24)).columns
    lines = [_line(heads, widths, width)]
    for family, common in [*FAMILIES.items(), (None, "Of other packages.")]:
        members = [card.name for card in cards if card.family == family]
        if members:
            lines += ["", textwrap.shorten(f"{(family or 'others').capitalize()}. {common}", width, placeholder=" ...")]
            lines += [_line(rows[name], widths, width) for name in members]
    return "\n".join([*lines, "", "mixaug policies describe NAME says more."])


def _line(cells: Sequence[str], widths: Sequence[int], width: int) -> str:
    """One row, the last column cut where the terminal ends."""
    left = "  ".join(cell.ljust(column) for cell, column in zip(cells, widths, strict=False))
    return f"{left}  {textwrap.shorten(cells[-1], max(width - len(left) - 2, 24), placeholder=' ...')}".rstrip()
