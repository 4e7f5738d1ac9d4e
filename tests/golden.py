"""Replay golden vectors, computed with the authors' code, through mixaug's public functions.

``replay(path)`` picks the adapter by the method that the file's name starts with, so any further file of the
same kind, of another size or seed, replays without new code. tests/golden/README.md names the references.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path

import numpy as np

sys.path[:0] = [path for path in [str(Path(__file__).parent)] if path not in sys.path]

import golden_adapters  # noqa: E402
from golden_adapters import ADAPTERS, Comparison, adapter  # noqa: E402

GOLDEN = Path(__file__).parent / "golden"

for module in pkgutil.iter_modules(golden_adapters.__path__):
    importlib.import_module(f"golden_adapters.{module.name}")


def replay(path: str | Path) -> list[Comparison]:
    """Replay one file.

    Returns:
        A list of (what, got, expected, tolerance): ``got`` must lie within ``tolerance`` of ``expected``
        everywhere, in absolute terms. Both are plain values, without a graph.

    Raises:
        LookupError: no adapter for a file of this name.
    """
    path = Path(path)
    fitting = [prefix for prefix in ADAPTERS if path.stem == prefix or path.stem.startswith(prefix + "_")]
    if not fitting:
        raise LookupError(f"no adapter for {path.name}; there are adapters for {sorted(ADAPTERS)}")
    with np.load(path, allow_pickle=False) as arrays:
        found = ADAPTERS[max(fitting, key=len)](dict(arrays), path.stem)
    return [(what, got.detach(), expected.detach(), tolerance) for what, got, expected, tolerance in found]


__all__ = ["GOLDEN", "adapter", "replay"]
