"""Small things that many tests use."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import mixaug


def seeded(seed: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator of its own, so that no test depends on what ran before it."""
    return torch.Generator(device).manual_seed(seed)


def index_images(count: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Images (count, *shape) whose every value is the image's index: a mixed pixel names its parent."""
    ramp = torch.arange(count, dtype=dtype).view(count, *(1,) * len(shape))
    return ramp.expand(count, *shape).contiguous()


@cache
def imports_and_classes(path: Path) -> list[ast.Import | ast.ImportFrom | ast.ClassDef]:
    """The imports and classes of a Python file, those inside functions included; each file is read once."""
    found, waiting = [], [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        for node in ast.iter_child_nodes(waiting.pop()):
            # Expressions, nine tenths of a file, hold none.
            if isinstance(node, ast.stmt | ast.ExceptHandler | ast.match_case):
                waiting.append(node)
            if isinstance(node, ast.Import | ast.ImportFrom | ast.ClassDef):
                found.append(node)
    return found


def ours(names: Iterable[str] | None = None) -> list[str]:
    """Policies of mixaug itself: a package may register others, of which there are no config, card, picture or test.

    Args:
        names: of the registry; None takes all.
    """
    every = mixaug.list_policies() if names is None else names
    return [name for name in every if mixaug.describe(name).target.__module__.startswith("mixaug.")]


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Let a training run die when it asks for the batch after this many."""
    from mixaug.engine.batches import Batches

    really, given = Batches.epoch, [0]

    def epoch(self: Batches, number: int, first: int = 0) -> Iterator[Any]:
        for batch in really(self, number, first):
            if given[0] == after:
                raise KeyboardInterrupt
            given[0] += 1
            yield batch

    monkeypatch.setattr(Batches, "epoch", epoch)


#: Overrides for a ResNet-8 of a quarter of its width: most of a run's time is the model's, and hardly a test asks how
#: wide it is.
THIN = ("+model.channels=[4,8,16]", "+model.stem_width=4")

#: All integer dtypes of torch.
INTEGERS = (
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint16, torch.uint32, torch.uint64),
)


def assert_same(one: Any, two: Any, where: str = "") -> None:
    """Equal bit for bit, all the way down."""
    assert type(one) is type(two), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two), where
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            assert_same(one[key], two[key], f"{where}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(two), where
        for number, (a, b) in enumerate(zip(one, two, strict=True)):
            assert_same(a, b, f"{where}[{number}]")
    else:
        assert one == two, where


def timeless(state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint without what the clock wrote into it."""
    wall = ("seconds", "samples_per_second", "step_ms", "peak_memory_mb")
    history = [{k: v for k, v in record.items() if k not in wall} for record in state["history"]]
    return {**state, "history": history, "meters": None, "prepare_seconds": None}


#: The least that the ``result.json`` of a finished run holds.
FINISHED = json.dumps(
    {
        "policy": "none",
        "model": "m",
        "data": "digits",
        "protocol": "default",
        "seed": 0,
        "epochs": 1,
        **dict.fromkeys(("top1_last", "top1_best", "top1_median10", "top1_best10"), 50.0),
    }
)
