"""The files that are made of the policies' files: both lists of names, the README's rows, the index of cards."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from catalogue.methods import CatalogueError, Method, Module, families, methods_of, read_methods, read_modules

FUNCTIONAL = Path("mixaug/functional.py")
PACKAGE = Path("mixaug/policies/__init__.py")
README = Path("README.md")
INDEX = Path("docs/policies/README.md")
STRIPS = Path("docs/images/policies")

#: The text behind this line of a Python file is written anew each time.
BEGIN = "# `make policies` writes what follows, from `__all__` in the files of the policies."
#: The text between these lines of a Markdown file is written anew each time.
FIRST, LAST = "<!-- `make policies` writes what follows, from the files of the policies -->", "<!-- end of policies -->"
WIDTH = 120


def render(root: Path) -> dict[Path, str]:
    """What each derived file of a checkout ought to hold, by its path below the checkout.

    Raises:
        CatalogueError: a policy's file that cannot be listed, or a derived file without its markers.
    """
    modules, common = read_modules(root), families(root)
    methods = methods_of(modules, root)
    grouped = {family: [m for m in methods if m.family == family] for family in common}
    grouped = {family: members for family, members in grouped.items() if members}
    return {
        FUNCTIONAL: _functional(_text(root, FUNCTIONAL), modules),
        PACKAGE: _package(_text(root, PACKAGE), modules),
        README: between(README, _text(root, README), _readme_rows(grouped, common)),
        INDEX: between(INDEX, _text(root, INDEX), _index(grouped, common)),
    }


def stale(root: Path) -> list[Path]:
    """Derived files that do not hold what they ought to."""
    return [path for path, text in render(root).items() if _text(root, path) != text]


def update(root: Path) -> list[Path]:
    """Write the derived files that are out of date, and say which; nothing is written if one cannot be made."""
    texts = render(root)
    changed = [path for path, text in texts.items() if _text(root, path) != text]
    for path in changed:
        (root / path).write_text(texts[path], encoding="utf-8")
    return changed


def missing_strips(root: Path) -> list[str]:
    """Policies that have no picture yet."""
    return sorted(m.name for m in read_methods(root) if not (root / STRIPS / f"{m.name}.png").is_file())


def _functional(text: str, modules: Sequence[Module]) -> str:
    head = _head(FUNCTIONAL, text)
    names = [alias.asname or alias.name for node in ast.parse(head).body if isinstance(node, ast.ImportFrom)
             for alias in node.names]  # fmt: skip
    lines = []
    for module in modules:
        if module.functions:
            lines.append(_imported(module.name, module.functions))
            names += module.functions
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CatalogueError(f"{FUNCTIONAL}: two files offer a function {twice[0]!r}; rename one of them")
    return _python(head, lines, names)


def _package(text: str, modules: Sequence[Module]) -> str:
    registered = [(module.name, module.method.target) for module in modules if module.method is not None]
    lines = [_imported(name, [target]) for name, target in registered]
    return _python(_head(PACKAGE, text), lines, [target for _, target in registered])


def _head(path: Path, text: str) -> str:
    head, marker, _ = text.partition(BEGIN)
    if not marker:
        raise CatalogueError(f"{path} has lost the line {BEGIN!r}")
    return head


def _python(head: str, imports: Iterable[str], names: Iterable[str]) -> str:
    listed = "".join(f'    "{name}",\n' for name in sorted(names, key=_isort_key))
    return f"{head}{BEGIN}\n{''.join(imports)}\n__all__ = [\n{listed}]\n"


def _imported(module: str, names: Sequence[str]) -> str:
    """An import as the formatter writes it."""
    line = f"from {module} import {', '.join(names)}\n"
    if len(line) <= WIDTH + 1:
        return line
    return f"from {module} import (\n" + "".join(f"    {name},\n" for name in names) + ")\n"


def _isort_key(name: str) -> tuple[bool, list[tuple[int, str]]]:
    """Classes before functions, numbers in names by their value, as the linter wants it."""
    parts = re.split(r"(\d+)", name)
    return not name[0].isupper(), [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def between(path: Path, text: str, content: str) -> str:
    """A text with new content between its two markers.

    Raises:
        CatalogueError: it has lost one of them.
    """
    before, first, rest = text.partition(FIRST)
    _, last, after = rest.partition(LAST)
    if not first or not last:
        raise CatalogueError(f"{path} has lost the line {FIRST if not first else LAST!r}")
    return f"{before}{FIRST}\n\n{content}\n{LAST}{after}"


def _readme_rows(grouped: dict[str, list[Method]], common: dict[str, str]) -> str:
    """A row for each family."""
    rows = ["| family | what its members have in common | policies |\n|---|---|---|\n"]
    for family, members in grouped.items():
        anchor = family.replace(" ", "-")
        names = ", ".join(f"[{m.name}](docs/policies/{m.name}.md)" for m in members)
        rows.append(f"| [{family}](docs/policies/README.md#{anchor}) | {common[family]} | {names} |\n")
    return "".join(rows)


def _index(grouped: dict[str, list[Method]], common: dict[str, str]) -> str:
    """A section for each family, with a row for each policy."""
    parts = []
    for family, members in grouped.items():
        rows = [f"## {family.capitalize()}\n\n{common[family]}\n\n| policy | what it does | paper |\n|---|---|---|\n"]
        for m in members:
            rows.append(f"| [{m.name}]({m.name}.md) | {cell(m.summary)} | {_link(cell(m.paper), m.url)} |\n")
        parts.append("".join(rows))
    return "\n".join(parts)


def _link(text: str, url: str | None) -> str:
    return f"[{text}]({url})" if url else text


def cell(text: str) -> str:
    """A text as a cell of a Markdown table."""
    return text.replace("|", "\\|")


def _text(root: Path, path: Path) -> str:
    return (root / path).read_text(encoding="utf-8")
