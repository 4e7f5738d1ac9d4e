"""Small runs on real digits, a second or two each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("hydra", reason="the engine needs the train extra")
pytest.importorskip("timm", reason="the engine needs the train extra")

from omegaconf import DictConfig

from helpers import THIN
from mixaug.engine.config import compose

TINY = (
    *("data=digits", "data.train_size=100", "batch_size=25", "epochs=2", "threads=1", "device=cpu", "progress=false"),
)


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., DictConfig]:
    """`tiny("policy=mixup", ...)`: the config of a run of 2 epochs with 4 batches each.

    Unless the overrides choose a model, it is a ResNet-8 of a quarter of its width.
    """

    def make(*overrides: str, root: Path | None = None) -> DictConfig:
        chosen = any(override.lstrip("+~").startswith(("model=", "experiment=", "protocol=")) for override in overrides)
        return compose([*TINY, *(() if chosen else THIN), f"root={root or tmp_path / 'runs'}", *overrides])

    return make
