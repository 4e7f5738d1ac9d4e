"""Runs that start from the weights of a finished one; those of several processes and passes are in test_sources.py."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from helpers import THIN, assert_same, interrupt
from mixaug.engine import checkpoint, run
from mixaug.engine import train as training
from mixaug.engine.assembly import assemble
from mixaug.engine.config import compose, config_hash, plain
from mixaug.engine.distributed import World
from mixaug.engine.errors import CheckpointError, ConfigError
from mixaug.engine.stored import evaluate_checkpoint
from mixaug.engine.train import train

Tiny = Callable[..., DictConfig]
ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on digits that kept averaged weights."""
    root = tmp_path_factory.mktemp("source")
    shown = ("threads=1", "device=cpu", "progress=false", f"root={root}", "ema.decay=0.5")
    config = compose(["data=digits", "data.train_size=50", "batch_size=25", "epochs=1", *THIN, *shown])
    train(config)
    return run.run_folder(config)


@pytest.fixture
def source(finished: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "source"))


def change(folder: Path, name: str = checkpoint.LAST, **entries: Any) -> None:
    checkpoint.save(folder / name, {**checkpoint.load(folder / name), **entries})


def last(config: DictConfig) -> dict[str, Any]:
    return checkpoint.load(run.run_folder(config) / checkpoint.LAST)


def test_the_model_gets_the_weights_that_the_figures_are_of(tiny: Tiny, source: Path) -> None:
    state = checkpoint.load(source / checkpoint.LAST)
    assert not torch.equal(state["ema"]["fc.weight"], state["model"]["fc.weight"])
    # Neither the other run's config nor its data are needed, and nothing that the config names is built.
    (source / "config.yaml").write_text("model: {_target_: os.abort}")
    fresh = assemble(tiny(), ALONE)
    before = torch.get_rng_state()
    parts = assemble(tiny(f"init_from={source}"), ALONE)
    assert_same(parts.step.model.state_dict(), state["ema"])
    # Everything else draws what it would have drawn.
    assert torch.equal(torch.get_rng_state(), before)
    assert fresh.init_from is None
    change(source, checkpoint.BEST, ema=None, model={k: v + 1 for k, v in state["model"].items()})
    best = assemble(tiny(f"init_from={source / checkpoint.BEST}"), ALONE).model.state_dict()
    assert torch.equal(best["fc.weight"], state["model"]["fc.weight"] + 1)


def test_model_and_averaged_weights_begin_with_them(tiny: Tiny, finished: Path) -> None:
    # Steps that are as good as none show where a whole run began.
    still = ("optimizer.lr=1e-9", "schedule.min_lr=0", "epochs=1")
    config = tiny(f"init_from={finished}", "ema.decay=0.9", *still)
    train(config)
    theirs, ours = checkpoint.load(finished / checkpoint.LAST)["ema"]["fc.weight"], last(config)
    for weights in ("model", "ema"):
        torch.testing.assert_close(ours[weights]["fc.weight"], theirs, atol=1e-6, rtol=0.0)
    # Scoring the run reads its own weights alone.
    assert evaluate_checkpoint(run.run_folder(config))["samples"] > 0


def test_it_resumes_to_the_bit_and_from_no_other_weights(
    tiny: Tiny, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("policy=mixup", f"init_from={source}", "checkpoint_every_steps=1")
    whole, broken = tiny(*settings), tiny(*settings, root=tmp_path / "broken")
    train(whole)
    for stop in (2, 3):
        with monkeypatch.context() as patch:
            interrupt(patch, after=stop)
            with pytest.raises(KeyboardInterrupt):
                train(broken)
    shutil.copytree(run.run_folder(broken), kept := tmp_path / "kept")
    train(broken)
    one, other = last(whole), last(broken)
    for key in ("model", "optimizer", "streams", "position", "init_from"):
        assert_same(one[key], other[key], key)

    shutil.rmtree(run.run_folder(broken))
    shutil.copytree(kept, run.run_folder(broken))
    weights = checkpoint.load(source / checkpoint.LAST)["ema"]
    change(source, ema={**weights, "fc.bias": weights["fc.bias"] + 1})
    with pytest.raises(CheckpointError, match=r"began with other weights of init_from=.*SHA-256"):
        train(broken)


def test_the_source_is_part_of_the_runs_name(finished: Path) -> None:
    names = ("null", str(finished), str(finished / checkpoint.BEST), "elsewhere")
    hashes = [config_hash(compose([f"init_from={name}"])) for name in names]
    assert len(set(hashes)) == len(names)
    # Runs from before there was the setting keep their folders.
    before = {key: value for key, value in plain(compose([])).items() if key != "init_from"}
    assert config_hash(OmegaConf.create(before)) == hashes[0]
    for wrong in ("init_from=3", "init_from=''", "init_from=[a]"):
        with pytest.raises(ConfigError, match="init_from must be the folder of a finished run"):
            compose([wrong])


class Evil:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def test_what_cannot_be_started_from_is_named_before_anything_is_created(
    tiny: Tiny, source: Path, tmp_path: Path
) -> None:
    def refused(*overrides: str, match: str) -> None:
        with pytest.raises(ConfigError, match=match):
            train(tiny(*overrides))

    given = f"init_from={source}"
    refused(f"init_from={tmp_path / 'nowhere'}", match=r"init_from=.*nowhere: there is no")
    refused(
        *(given, "data.classes=5"),
        match=r"init_from=.* does not fit model=cifar_resnet8 on data=digits: fc\.weight is \(10, 16\) there and "
        r"\(5, 16\) here, fc\.bias is \(10,\) there and \(5,\) here$",
    )
    refused(given, "model=cifar_resnet20", *THIN, match=r"layer1\.1\.conv1\.weight is not there, .* and \d+ more$")
    state = checkpoint.load(source / checkpoint.LAST)
    change(source, ema={**state["ema"], "head.weight": torch.zeros(1)})
    refused(given, match=r"head\.weight is not here$")
    change(source, ema={"fc.weight": "none"})
    refused(given, match="it holds no weights of a model")
    torch.save({"config_hash": "x", "model": Evil(tmp_path / "executed")}, source / checkpoint.LAST)
    refused(given, match=r"init_from=.*last\.pt cannot be read: Weights only load failed")
    assert not (tmp_path / "executed").exists()
    # Another checkpoint never takes the place of a damaged one.
    (source / checkpoint.LAST).write_bytes(b"torn")
    refused(given, match=r"init_from=.*last\.pt cannot be read")
    (source / "result.json").write_text("{}")
    refused(given, match=r"init_from=.* is no finished run: .*result\.json: policy: expected text, got None")
    (source / "result.json").unlink()
    refused(given, match=r"init_from=.* is no finished run, since it has no result\.json")
    assert not (tmp_path / "runs").exists()


def test_processes_that_read_other_weights_stop(tiny: Tiny, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gathered(value: Any, world: World) -> list[Any]:
        return [value, {**value, "sha256": "0" * 64} if isinstance(value, dict) and "sha256" in value else value]

    monkeypatch.setattr(training.distributed, "gather_objects", gathered)
    with pytest.raises(
        CheckpointError, match=r"the processes read other weights from init_from, SHA-256 .*, 000000000000"
    ):
        train(tiny(f"init_from={finished}"))
