"""What the files of the policies say of themselves, read without running them."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POLICIES = Path("mixaug/policies")
REGISTRY = Path("mixaug/registry.py")

Definition = ast.FunctionDef | ast.ClassDef


class CatalogueError(ValueError):
    """A file that cannot be listed, or a policy that cannot be made; the message says the way out."""


@dataclass(frozen=True)
class Method:
    """A registered policy.

    Attributes:
        name: its name in the registry, and of its file.
        target: the class, or the function that builds a preset.
        paper: title and venue of the source.
        arxiv: arXiv id, None where there is none.
        family: one of ``FAMILIES`` in mixaug/registry.py.
        summary: first line of the target's documentation.
    """

    name: str
    target: str
    paper: str
    arxiv: str | None
    family: str
    summary: str

    @property
    def url(self) -> str | None:
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else None


@dataclass(frozen=True)
class Module:
    """A file of ``mixaug/policies``.

    Attributes:
        name: dotted, as it is imported.
        functions: pure functions that its ``__all__`` names, sorted.
        method: the policy that it registers, None for a file that serves several.
    """

    name: str
    functions: tuple[str, ...]
    method: Method | None


def families(root: Path) -> dict[str, str]:
    """The families of methods in their order, and what is common to the members of each."""
    call = _assigned(_parsed(root / REGISTRY), "FAMILIES")
    if not isinstance(call, ast.Call):
        raise CatalogueError(f"{REGISTRY}: FAMILIES is expected to be MappingProxyType({{...}})")
    members: dict[str, str] = ast.literal_eval(call.args[0])
    return members


def read_modules(root: Path) -> list[Module]:
    """Every file below ``mixaug/policies`` that offers a policy or pure functions, by its dotted name.

    Args:
        root: the checkout.

    Raises:
        CatalogueError: a file that does not parse, or that says nothing of what lists need.
    """
    family_names = families(root)
    modules = [_read(path, root, family_names) for path in sorted((root / POLICIES).rglob("*.py"))]
    return sorted((m for m in modules if m.functions or m.method), key=lambda module: module.name)


def methods_of(modules: Iterable[Module], root: Path) -> list[Method]:
    """The policies that these files register, by family and then by name."""
    order = list(families(root))
    methods = [module.method for module in modules if module.method is not None]
    return sorted(methods, key=lambda method: (order.index(method.family), method.name))


def read_methods(root: Path) -> list[Method]:
    """The policies of mixaug itself, by family and then by name."""
    return methods_of(read_modules(root), root)


def _read(path: Path, root: Path, family_names: Iterable[str]) -> Module:
    where = path.relative_to(root)
    tree = _parsed(path)
    dotted = ".".join(where.with_suffix("").parts)
    if path.name == "__init__.py":
        return Module(dotted.removesuffix(".__init__"), (), None)
    defined = {node.name: node for node in tree.body if isinstance(node, Definition)}
    registered = {name: call for name, node in defined.items() if (call := _registration(node)) is not None}
    listed = _assigned(tree, "__all__")
    if listed is None:
        if registered:
            raise CatalogueError(f"{where}: name the policy and its pure functions in __all__ = [...]")
        return Module(dotted, (), None)
    names: list[str] = ast.literal_eval(listed)
    for name in names:
        if name not in defined:
            raise CatalogueError(f"{where}: __all__ names {name!r}, which the file does not define")
    if len(registered) > 1:
        raise CatalogueError(f"{where}: one policy a file, got {', '.join(registered)}")
    functions = tuple(sorted(n for n in names if n not in registered and isinstance(defined[n], ast.FunctionDef)))
    if not registered:
        return Module(dotted, functions, None)
    ((target, call),) = registered.items()
    if target not in names:
        raise CatalogueError(f"{where}: __all__ does not name {target!r}, the policy that the file registers")
    return Module(dotted, functions, _method(where, defined[target], call, family_names))


def _method(where: Path, target: Definition, call: ast.Call, family_names: Iterable[str]) -> Method:
    fields: dict[str, Any] = {}
    for key, value in [("name", call.args[0] if call.args else None), *((k.arg, k.value) for k in call.keywords)]:
        if key in ("name", "paper", "arxiv", "family") and value is not None:
            try:
                fields[key] = ast.literal_eval(value)
            except ValueError:
                raise CatalogueError(f"{where}: @register expects {key} written out as text") from None
    if fields.get("name") != where.stem:
        raise CatalogueError(f"{where}: a policy is registered by the name of its file, got {fields.get('name')!r}")
    if not fields.get("paper"):
        raise CatalogueError(f"{where}: @register expects paper, the title and venue of the source")
    if fields.get("family") not in family_names:
        raise CatalogueError(
            f"{where}: @register expects family as one of {list(family_names)}, got {fields.get('family')!r}"
        )
    summary = (ast.get_docstring(target) or "").split("\n", 1)[0]
    if not summary:
        raise CatalogueError(f"{where}: {target.name} needs a docstring, whose first line is its summary in lists")
    return Method(fields["name"], target.name, fields["paper"], fields.get("arxiv"), fields["family"], summary)


def _registration(node: Definition) -> ast.Call | None:
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call):
            name = decorator.func.attr if isinstance(decorator.func, ast.Attribute) else decorator.func
            if name == "register" or (isinstance(name, ast.Name) and name.id == "register"):
                return decorator
    return None


def _assigned(tree: ast.Module, name: str) -> ast.expr | None:
    """The value that a module gives a name at its top level."""
    for node in tree.body:
        if isinstance(node, ast.Assign):
            targets: list[ast.expr] = node.targets
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        else:
            continue
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return node.value
    return None


def _parsed(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except SyntaxError as error:
        raise CatalogueError(f"{path}: {error}") from None
