"""Imports point one way: no circles, deferred and type-checking imports included; a layer knows only those below.

`python tests/test_structure.py` prints the graph of packages.
"""

from __future__ import annotations

import ast
import graphlib
import sys
from functools import cache
from pathlib import Path

import pytest

from helpers import imports_and_classes

ROOT = Path(__file__).resolve().parents[1]
#: Layers from the ground up. A module imports from its own layer and those before it.
LAYERS = [
    ["_version", "axes", "checks", "flops", "frozen", "near", "options", "streams", "wants"],
    ["ops"],
    ["draws", "ratio", "schedule"],
    ["plan"],
    ["signals"],
    ["batch"],
    ["pairing", "partners", "labeling", "losses", "preparation", "regression_metrics"],
    ["shared_options", "shown_options", "policy"],
    ["registry"],
    ["policies"],
    ["networks"],
    ["passes"],
    ["functional", "step", "objectives"],
    ["refreshing"],
    ["listing"],
    ["answers"],
    ["loading"],
    ["models"],
    ["integrations", "gallery", "data", "testing"],
    ["engine"],
    ["leaderboard"],
    ["_names"],
    ["commands"],
    ["cli", "__main__"],
]
#: What the core may import beside the standard library.
CORE_PACKAGES = {"mixaug", "numpy", "torch"}
#: The exact cut, with which the fast one is compared, imports scipy when it is called.
ALSO = {"mixaug.ops.gridcut": {"scipy"}}
CORE = {name for layer in LAYERS[: LAYERS.index(["loading"]) + 1] for name in layer}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted((ROOT / "mixaug").rglob("*.py"))}


def imported(name: str) -> set[str]:
    """Every module of mixaug that a module imports, wherever in the file the import stands."""
    found = set()
    package = name if FILES[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in imports_and_classes(FILES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                start = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*start, *([node.module] if node.module else [])])
            inside = {f"{base}.{alias.name}" for alias in node.names}
            found |= {one if one in FILES else base for one in inside}
    return {one for one in found if one in FILES and one != name}


@cache
def graph() -> dict[str, set[str]]:
    return {name: imported(name) for name in FILES}


def layer_of(name: str) -> int:
    top = name.split(".")[1] if "." in name else ""
    return next((index for index, layer in enumerate(LAYERS) if top in layer), -1)


def test_no_circles():
    try:
        list(graphlib.TopologicalSorter(graph()).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"modules import each other: {' <- '.join(error.args[1])}")


def test_every_module_has_a_layer():
    assert [name for name in FILES if name != "mixaug" and layer_of(name) < 0] == []


def test_imports_point_downwards():
    # `mixaug` itself is the front door, through which nothing of the core comes in.
    upwards = [
        f"{name} imports {other}"
        for name, others in graph().items()
        for other in others
        if name != "mixaug" and (layer_of(other) > layer_of(name) if other != "mixaug" else name.split(".")[1] in CORE)
    ]
    assert upwards == []


def test_the_core_imports_torch_and_numpy_alone():
    foreign = []
    for name in FILES:
        if name != "mixaug" and name.split(".")[1] not in CORE:
            continue
        # These are imported when a kernel is first run on a GPU.
        if name.startswith("mixaug.ops.fused."):
            continue
        for node in imports_and_classes(FILES[name]):
            # Type checkers bring it themselves, and torch needs it: nothing runs what stands under TYPE_CHECKING.
            if isinstance(node, ast.ImportFrom) and node.module == "typing_extensions":
                continue
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            foreign += [
                f"{name} imports {one}"
                for one in names
                if one.split(".")[0] not in CORE_PACKAGES | set(sys.stdlib_module_names) | ALSO.get(name, set())
            ]
    assert foreign == []


def test_no_file_and_no_class_grows_into_a_world_of_its_own():
    # models/small.py is a table of architectures, one after the other.
    reasons = {"mixaug.models.small"}
    long = {name: len(path.read_text().splitlines()) for name, path in FILES.items()}
    assert {name: count for name, count in long.items() if count > 520 and name not in reasons} == {}
    crowded = {
        f"{name}.{node.name}": methods
        for name, path in FILES.items()
        for node in imports_and_classes(path)
        if isinstance(node, ast.ClassDef)
        and (methods := sum(isinstance(item, ast.FunctionDef) for item in node.body)) > 25
    }
    assert crowded == {}


def test_what_fails_for_want_of_a_package_is_skipped_where_the_package_is_not_there(request, monkeypatch):
    lacks = request.config.pluginmanager.get_plugin(str(ROOT / "tests" / "conftest.py")).lacks.__wrapped__
    said = "E   ModuleNotFoundError: No module named 'scipy.stats'"
    # A part that an installed package lacks is a failure, as is a package that no extra brings.
    assert lacks(said) is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert lacks(said) == "Skipped: needs scipy, which is not installed here"
    assert lacks("No module named 'torch'") is None
    assert lacks("assert 1 == 2") is None


if __name__ == "__main__":
    for layer in LAYERS:
        for top in layer:
            uses = sorted(
                {
                    other.split(".")[1]
                    for name, others in graph().items()
                    if name.split(".")[1:2] == [top]
                    for other in others
                    if "." in other and other.split(".")[1] != top
                }
            )
            print(f"{top:20} -> {', '.join(uses) or '-'}")
    order = list(graphlib.TopologicalSorter(graph()).static_order())
    print(f"{len(order)} modules, {sum(map(len, graph().values()))} imports, no circles")
