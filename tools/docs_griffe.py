"""Docstrings as the site shows them; mkdocs.yml names this file as an extension of griffe, which reads them.

What a terminal shows well is brought into Markdown: names such as :class:`mixaug.MixStep` become links, and examples
that begin with ``>>>`` blocks of code.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import griffe

ROOT = Path(__file__).resolve().parents[1]
ROLE = re.compile(r":(?:class|func|meth|attr|data|mod|exc):`~?([\w.]+)`")
#: An example and what it shows, up to the next empty line.
EXAMPLE = re.compile(r"^( *)>>> .*(?:\n\1\S.*|\n\1 +\S.*)*", flags=re.MULTILINE)


def _public() -> dict[str, str]:
    """``mixaug.MixStep`` and its like to the places where they are defined."""
    tree = ast.parse((ROOT / "mixaug" / "_names.py").read_text(encoding="utf-8"))
    return {
        f"mixaug.{alias.name}": f"{node.module}.{alias.name}"
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


class ForTheSite(griffe.Extension):
    """Rewrites each docstring when it has been read."""

    def __init__(self) -> None:
        super().__init__()
        self.places = _public()

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring is None:
            return
        text = ROLE.sub(lambda found: self._link(found[1], obj), obj.docstring.value)
        obj.docstring.value = EXAMPLE.sub(lambda found: f"{found[1]}```pycon\n{found[0]}\n{found[1]}```", text)

    def _link(self, name: str, obj: Any) -> str:
        """A link to what is meant where the site has it; the name as code otherwise."""
        place = self.places.get(name, name)
        if not place.startswith("mixaug."):
            # A name of the same module, or of the same class.
            holder = obj if obj.is_module or obj.is_class else obj.parent
            while holder is not None and name.split(".")[0] not in holder.members:
                holder = holder.parent
            place = f"{holder.path}.{name}" if holder is not None else name
        return f'<autoref optional identifier="{place}">`{name}`</autoref>'
