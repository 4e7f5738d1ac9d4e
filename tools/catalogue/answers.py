"""The page that writes every method as its answers to five questions, made of what the code says of itself."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from catalogue.derived import between, cell
from catalogue.methods import read_methods

PAGE = Path("docs/answers.md")
HEADS = ("method", "needs", "labels", "passes", "cost")


def update(root: Path) -> list[Path]:
    """Write the page where it is out of date, and say so. A step of every method is run."""
    text, path = (root / PAGE).read_text(encoding="utf-8"), root / PAGE
    wanted = render(root, text)
    if wanted == text:
        return []
    path.write_text(wanted, encoding="utf-8")
    return [PAGE]


def render(root: Path, text: str) -> str:
    """The page with its table written anew."""
    # The checkout's own package is imported, whatever is installed beside it, and only once its lists are whole.
    sys.path.insert(0, str(root))
    from mixaug import answers

    policies = [answers.answers_of(method.name) for method in read_methods(root)]
    objectives = [answers.answers_of_objective(name) for name in answers.objective_names()]
    cards = {one.name: f"policies/{one.name}.md" for one in policies}
    cards |= {one.name: f"objectives/{one.name.lower()}.md" for one in objectives}
    heads = [HEADS[0], *answers.QUESTIONS, *HEADS[1:]]
    rows = [f"| {' | '.join(heads)} |", "|" + "---|" * (len(heads) - 2) + "--:|--:|"]
    rows += [row(one, cards[one.name]) for one in [*policies, *objectives]]
    return between(PAGE, text, "\n".join(rows) + "\n")


def row(one: Any, card: str) -> str:
    """A line of the table."""
    words = {"classification": "classes", "regression": "numbers"}
    cells: Iterable[str] = (
        f"[{one.name}]({card})",
        *(cell(text) for text in (one.who, one.how_much, one.inputs, one.labels, one.run)),
        ", ".join(one.needs) or "–",
        ", ".join(words[task] for task in one.tasks) or "–",
        "–" if one.passes is None else f"{one.passes:g}",
        "–" if one.cost is None else f"{one.cost:.2f}",
    )
    return f"| {' | '.join(cells)} |"
