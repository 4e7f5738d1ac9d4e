"""A new policy: its four files, with a working example in them."""

from __future__ import annotations

import json
import keyword
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from string import Template

from catalogue import derived
from catalogue.derived import WIDTH
from catalogue.methods import CatalogueError, families, read_modules

TEMPLATES = Path(__file__).parent / "templates"
#: The template's lines hold names of this length.
LONGEST = 30
#: Paths of a policy's files, by their template.
PLACES = {
    "policy": "mixaug/policies/{}.py",
    "config": "configs/policy/{}.yaml",
    "test": "tests/policies/test_{}.py",
    "card": "docs/policies/{}.md",
}
SUMMARY = "Show the partner in the left or in the right columns; the label share counts the own ones."


@dataclass(frozen=True)
class Request:
    """What the author says about a new policy.

    Attributes:
        name: name in the registry; lower case, an identifier.
        cls: name of its class; None makes one of ``name``.
        paper: title and venue of the source.
        arxiv: arXiv id, None where there is none.
        family: one of ``FAMILIES`` in mixaug/registry.py.
    """

    name: str
    cls: str | None = None
    paper: str = "unpublished"
    arxiv: str | None = None
    family: str = "masks"

    @property
    def class_name(self) -> str:
        return self.cls or class_name(self.name)


def class_name(name: str) -> str:
    """``half_mix`` and ``halfmix`` give ``HalfMix``."""
    parts = re.sub(r"(?<=[a-z0-9])(mix|mixup)$", r"_\1", name).split("_")
    return "".join(part[:1].upper() + part[1:] for part in parts)


def new_policy(root: Path, request: Request) -> list[Path]:
    """Write the four files of a new policy, then what is derived from them. All or nothing is written.

    Args:
        root: the checkout.
        request: what the author says about the policy.

    Returns:
        The new files and then the derived ones that changed, below ``root``.

    Raises:
        CatalogueError: a name that cannot be used or is taken, an unknown family, an arXiv id that is none.
    """
    _check(root, request)
    paths = {kind: Path(place.format(request.name)) for kind, place in PLACES.items()}
    texts = {paths[kind]: text for kind, text in _filled(request).items()}
    written = []
    try:
        for path, text in texts.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            # "x" never overwrites, not even what appeared since the check.
            with (root / path).open("x", encoding="utf-8") as file:
                written.append(path)
                file.write(text)
        return [*written, *derived.update(root)]
    except (OSError, CatalogueError):
        for path in written:
            (root / path).unlink(missing_ok=True)
        raise


def _check(root: Path, request: Request) -> None:
    name, cls = request.name, request.class_name
    # The name is checked before it is used, because it may hold a path.
    if not re.fullmatch(rf"[a-z][a-z0-9_]{{0,{LONGEST - 1}}}", name) or keyword.iskeyword(name):
        raise CatalogueError(
            f"a policy is named in lower case by an identifier of at most {LONGEST} letters, got {name!r}"
        )
    if not re.fullmatch(rf"[A-Z][A-Za-z0-9]{{0,{LONGEST - 1}}}", cls) or keyword.iskeyword(cls):
        raise CatalogueError(
            f"a class is named in CamelCase by an identifier of at most {LONGEST} letters, got {cls!r}"
        )
    known = families(root)
    if request.family not in known:
        raise CatalogueError(f"family is one of {', '.join(known)}; got {request.family!r}")
    if request.arxiv is not None and not re.fullmatch(r"\d{4}\.\d{4,5}|[a-z.-]+/\d{7}", request.arxiv):
        raise CatalogueError(f"an arXiv id reads like 1905.04899, got {request.arxiv!r}")
    if not request.paper.strip() or "\n" in request.paper:
        raise CatalogueError(f"paper is a title and a venue in one line, got {request.paper!r}")
    for place in PLACES.values():
        path = Path(place.format(name))
        if (root / path).exists():
            raise CatalogueError(f"{name!r} is taken: {path} exists; choose another name, or remove what is there")
    if (root / "mixaug/policies" / name).exists():
        raise CatalogueError(f"{name!r} is taken: mixaug/policies/{name} exists; choose another name")
    modules = read_modules(root)
    targets = {module.method.target: module.method.name for module in modules if module.method is not None}
    if cls in targets:
        raise CatalogueError(f"class {cls} is taken by policy {targets[cls]!r}; name another with --class")
    taken = {function for module in modules for function in module.functions}
    if f"{name}_mask" in taken:
        raise CatalogueError(f"{name!r} is taken: there is a function {name}_mask; choose another name")


def _filled(request: Request) -> dict[str, str]:
    """The text of each file, by its template."""
    name, arxiv = request.name, request.arxiv
    fields = {
        "name": name,
        "cls": request.class_name,
        "family": request.family,
        "summary": SUMMARY,
        "paper": _paper(request.paper),
        "arxiv": f'    arxiv="{arxiv}",\n' if arxiv else "",
        "origin": f"arXiv:{arxiv}" if arxiv else "no arXiv id",
        "source": f"arXiv:{arxiv}" if arxiv else request.paper,
        "link": f"[arXiv:{arxiv}](https://arxiv.org/abs/{arxiv})" if arxiv else request.paper,
    }
    templates = {kind: Template((TEMPLATES / f"{kind}.txt").read_text(encoding="utf-8")) for kind in PLACES}
    return {kind: template.substitute(fields) for kind, template in templates.items()}


def _paper(text: str) -> str:
    """The argument as the formatter writes it: a long text in several pieces, one a line."""
    pieces = textwrap.wrap(text, WIDTH - 20, drop_whitespace=False)
    quoted = [repr(piece) if '"' in piece else json.dumps(piece, ensure_ascii=False) for piece in pieces]
    return "    paper=" + "\n    ".join(quoted) + ",\n"
