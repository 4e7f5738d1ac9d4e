"""List the policies, or describe some: mixaug policies; mixaug policies describe cutmix

`mixaug policies` lists all by families. With filters, which may be combined:

    mixaug policies "*mix" --family masks
    mixaug policies --task regression --model-free     labels are numbers, and no model is looked at
    mixaug policies cutmix                             no pattern, but names: the same as describe
    mixaug policies --needs attention --passes 1       look at attention, in one forward pass a step
"""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from mixaug.commands import values
from mixaug.commands.arguments import FAILED, STATUSES, status_of

__all__ = ["ACTIONS", "main", "parser"]

ACTIONS = ("list", "describe")
#: Columns below which a text is not worth wrapping beside others.
LEAST_COLUMN = 24


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
    cost = "at most N times the operations of a step without mixing"
    looks = made.add_mutually_exclusive_group()
    looks.add_argument(
        "--needs", metavar="SIGNAL", action="append", help="look at this of the model, such as attention"
    )
    looks.add_argument("--model-free", action="store_true", help="look at nothing of the model")
    made.add_argument("--cost", type=values.number(1), metavar="N", help=cost)
    made.add_argument("--passes", type=values.number(1), metavar="N", help="at most N forward passes in a step")
    return made


def main(arguments: Sequence[str]) -> int:
    """Print the list or the cards."""
    given = list(arguments)
    reader = parser()
    # Patterns and names may stand without an action, also behind options.
    is_named = any(word in ACTIONS for word in given)
    if given and not is_named:
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
    from mixaug.listing import CARD_WIDTH
    from mixaug.near import did_you_mean
    from mixaug.registry import FAMILIES

    if (
        chosen.names
        and not is_named
        and filters == dict.fromkeys(filters)
        and set(chosen.names) <= set(mixaug.list_policies())
    ):
        chosen.action = "describe"
    try:
        if chosen.family is not None and chosen.family not in FAMILIES:
            raise ValueError(
                f"--family expects one of {', '.join(FAMILIES)}, got {chosen.family!r}"
                f"{did_you_mean(chosen.family, FAMILIES)}"
            )
        if chosen.needs:
            known = sorted({need for name in mixaug.list_policies() for need in mixaug.describe(name).needs})
            for need in chosen.needs:
                if need not in known:
                    raise ValueError(
                        f"--needs expects what policies look at, {', '.join(known)}, got {need!r}"
                        f"{did_you_mean(need, known)}"
                    )
        if chosen.action == "describe":
            print("\n\n".join(mixaug.describe(name).text(min(width(), CARD_WIDTH)) for name in chosen.names))
            return 0
        names = sorted({name for pattern in chosen.names or ["*"] for name in mixaug.list_policies(pattern, **filters)})
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return status_of(error)
    if not names:
        # A name may be one of a policy that another option leaves out.
        fits = " and fits the options" if any(mixaug.list_policies(name) for name in chosen.names) else ""
        like = " or ".join(chosen.names) or "that"
        print(f"no policy is like {like}{fits}{meant(chosen.names)}", file=sys.stderr)
        return FAILED
    cards = [mixaug.describe(name) for name in names]
    if chosen.task != "regression":
        print(table(cards))
    else:
        # What cuts images takes numbers as labels too, but no rows of a table: lines name it by its inputs.
        others: dict[str, list[str]] = {}
        for card in cards:
            if not card.any_tensor:
                others.setdefault(card.inputs, []).append(card.name)
        notes = [f"These take numbers as labels too, for {kinds}: {', '.join(n)}." for kinds, n in others.items()]
        print(table([card for card in cards if card.any_tensor], notes))
    unmatched = [pattern for pattern in chosen.names if not mixaug.list_policies(pattern)]
    if unmatched:
        print(f"no policy is like {', '.join(unmatched)}{meant(unmatched)}", file=sys.stderr)
        return FAILED
    return 0


def meant(names: Sequence[str]) -> str:
    """The policies that misspelt names were probably meant for, as the end of a message; patterns are no names."""
    from mixaug.registry import close_names, list_policies

    close = [one for name in names if not list_policies(name) and name.isidentifier() for one in close_names(name)]
    return f"; did you mean {' or '.join(dict.fromkeys(close))}?" if close else ""


def table(cards: Sequence[Any], notes: Sequence[str] = ()) -> str:
    """Policies by families, name, what is looked at of the model, source, what it does; and notes below."""
    from mixaug.listing import filled, plain
    from mixaug.registry import FAMILIES

    rows = {
        card.name: (card.name, ", ".join(sorted(card.needs)) or "-", card.arxiv or "-", plain(card.summary))
        for card in cards
    }
    heads = ("policy", "of the model", "arXiv", "what it does")
    widths = [max(len(row[column]) for row in [heads, *rows.values()]) for column in range(3)]
    lines = [_line(heads, widths)]
    for family, common in [*FAMILIES.items(), (None, "Of other packages.")]:
        members = [card.name for card in cards if card.family == family]
        if members:
            lines += ["", filled("", f"{(family or 'others').capitalize()}. {common}", width())]
            lines += [_line(rows[name], widths) for name in members]
    lines += [line for note in notes for line in ("", filled("", note, width()))]
    return "\n".join([*lines, "", "mixaug policies NAME says more."])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """One row, the last column wrapped where the terminal ends, or below the others where these leave no room."""
    left = "  ".join(cell.ljust(column) for cell, column in zip(cells, widths, strict=False)) + "  "
    if width() - len(left) >= LEAST_COLUMN:
        lines = textwrap.wrap(cells[-1], width() - len(left))
        return f"\n{' ' * len(left)}".join([left + lines[0], *lines[1:]]).rstrip() if lines else left.rstrip()
    return "\n".join([left.rstrip(), textwrap.indent(textwrap.fill(cells[-1], max(width() - 4, LEAST_COLUMN)), "    ")])


def width() -> int:
    """Columns of the terminal; 120 where there is none."""
    return shutil.get_terminal_size((120, 24)).columns
