"""The examples in the docstrings of mixaug run and give what they show."""

from __future__ import annotations

import doctest
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

PACKAGE = Path(__file__).resolve().parents[1] / "mixaug"
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
}


# Stand-ins for packages that mixaug does not depend on, where they are not installed.
OTHERS = {
    "lightning": SimpleNamespace(LightningModule=torch.nn.Module),
    "transformers": SimpleNamespace(Trainer=object),
}


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_a_module(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for other, stand_in in OTHERS.items():
        if importlib.util.find_spec(other) is None:
            monkeypatch.setitem(sys.modules, other, stand_in)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE, verbose=False)
    found = [test for test in doctest.DocTestFinder().find(importlib.import_module(name)) if test.examples]
    said: list[str] = []
    for test in found:
        runner.run(test, out=said.append)
    assert not said, "".join(said)
    # None is overlooked: each prompt of the file has run, here or in the module that it is copied from.
    assert sum(len(test.examples) for test in found) >= MODULES[name].read_text(encoding="utf-8").count(">>> ")


def test_there_are_examples() -> None:
    assert MODULES
