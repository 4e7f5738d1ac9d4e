"""Objectives of several passes in runs of the engine: trained, resumed to the bit, taught by a finished run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from helpers import interrupt
from mixaug.engine import checkpoint, run
from mixaug.engine.errors import CheckpointError, ConfigError
from mixaug.engine.train import train

Tiny = Callable[..., DictConfig]


def weights(config: DictConfig) -> dict[str, torch.Tensor]:
    state = checkpoint.load(run.run_folder(config) / checkpoint.LAST)
    return {**state["model"], **{f"momentum {i}": s["momentum_buffer"] for i, s in state["optimizer"]["state"].items()}}


# RegMixup has the clean pass of RankMixup.
@pytest.mark.parametrize("objective", [pytest.param("regmixup", marks=pytest.mark.slow), "rankmixup", "decoupled"])
def test_a_run_with_an_objective_resumes_to_the_bit(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    overrides = ["policy=mixup", f"objective={objective}"]
    whole, broken = tiny(*overrides), tiny(*overrides, "checkpoint_every_steps=3", root=tmp_path / "broken")
    result = train(whole)
    with monkeypatch.context() as patch:
        interrupt(patch, after=6)
        with pytest.raises(KeyboardInterrupt):
            train(broken)
    train(broken)
    one, other = weights(whole), weights(broken)
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
    assert result["status"] == "finished"
    record = json.loads((run.run_folder(whole) / "epochs.jsonl").read_text().splitlines()[0])
    assert ("train_clean" in record) == (objective != "decoupled")


def test_a_student_learns_from_the_run_of_a_teacher(tiny: Tiny, tmp_path: Path) -> None:
    teacher = tiny("policy=none", root=tmp_path / "teacher")
    train(teacher)
    folder = run.run_folder(teacher)
    student = tiny("policy=mixup", "objective=mixkd", f"+networks.teacher={folder}", root=tmp_path / "student")
    assert train(student)["status"] == "finished"
    plain = tiny("policy=mixup", root=tmp_path / "plain")
    train(plain)
    # The student starts from the weights that it would have without a teacher, and draws the same mixtures.
    one, other = weights(student), weights(plain)
    assert one.keys() == other.keys()
    assert not all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_teacher_that_is_missing_or_does_not_fit_is_named(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"objective=mixkd: the objective wants 'teacher' of networks"):
        train(tiny("policy=mixup", "objective=mixkd"))
    with pytest.raises(ConfigError, match=r"networks\.teacher=.*nowhere"):
        train(tiny("policy=mixup", "objective=mixkd", f"+networks.teacher={tmp_path / 'nowhere'}"))
    assert not (tmp_path / "runs").exists()


def test_a_teacher_that_was_changed_in_between_stops_the_run(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = tiny("policy=none", root=tmp_path / "teacher")
    train(teacher)
    folder = run.run_folder(teacher)
    student = tiny("policy=mixup", "objective=mixkd", f"+networks.teacher={folder}", "checkpoint_every_steps=1")
    with monkeypatch.context() as patch:
        interrupt(patch, after=3)
        with pytest.raises(KeyboardInterrupt):
            train(student)
    state = checkpoint.load(folder / checkpoint.LAST)
    state["model"]["fc.bias"] += 1
    checkpoint.save(folder / checkpoint.LAST, state)
    with pytest.raises(CheckpointError, match="frozen network of other weights"):
        train(student)
