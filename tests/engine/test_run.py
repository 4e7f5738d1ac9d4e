"""The run folder: whole files or none, plain states, errors that leave earlier checkpoints alone."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from mixaug.engine import checkpoint, run
from mixaug.engine.errors import CheckpointError, RunFolderError
from mixaug.engine.train import train


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_failed_write_leaves_the_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"config_hash": "a", "x": torch.ones(3)})
    before = path.read_bytes()
    with pytest.raises(RunFolderError, match="No space left") as caught:
        run.write_atomic(path, full_disk)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_torch_save_on_a_full_disk_is_a_run_folder_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/full accepts an open and refuses every write, as a full disk does."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"config_hash": "a", "x": torch.ones(3)})
    monkeypatch.setattr(run, "fresh", lambda beside: io.FileIO("/dev/full", "w"))
    with pytest.raises(RunFolderError, match=r"last\.pt: No space left"):
        checkpoint.save(path, {"config_hash": "b", "x": torch.ones(100_000)})
    assert checkpoint.load(path)["config_hash"] == "a"


@pytest.mark.parametrize("dies_at", [1, 2])
def test_dying_between_renames_leaves_a_readable_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: int
) -> None:
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    for number in (1, 2):
        checkpoint.save(last, {"config_hash": "a", "number": number}, previous)
    calls, really = [0], os.replace

    def replace(source: Any, target: Any) -> None:
        calls[0] += 1
        if calls[0] == dies_at:
            raise SystemExit
        really(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(SystemExit):
        checkpoint.save(last, {"config_hash": "a", "number": 3}, previous)
    state = checkpoint.load_latest(tmp_path, lambda text: pytest.fail(text))
    assert state is not None
    assert state["number"] == 2


def test_full_disk_during_a_run_is_told_and_the_run_goes_on_later(
    tiny: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny()
    folder = run.run_folder(config)
    really, calls = torch.save, [0]

    def save(*arguments: Any, **keywords: Any) -> None:
        calls[0] += 1
        # Each of the two epochs writes best.pt and last.pt: let the first epoch through.
        if calls[0] > 2:
            full_disk()
        really(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save)
        with pytest.raises(RunFolderError, match="No space left"):
            train(config)
    assert checkpoint.load(folder / "last.pt")["epoch"] == 1
    failure = run.read_json(folder / "failure.json")
    assert run.status(folder) == "failed"
    assert "No space left" in failure["reason"]
    assert failure["last_good_checkpoint"] == str(folder / "last.pt")
    assert train(config)["status"] == "finished"
    assert run.status(folder) == "finished"
    assert not (folder / "failure.json").exists()


def test_a_root_that_is_a_file_is_an_error_before_training(tiny: Callable[..., DictConfig], tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(RunFolderError, match="taken"):
        train(tiny(root=tmp_path / "taken"))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission_is_an_error(tiny: Callable[..., DictConfig], tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    with pytest.raises(RunFolderError, match="Permission denied"):
        train(tiny(root=locked))


def test_a_damaged_checkpoint_falls_back_and_says_so(tmp_path: Path) -> None:
    for number in (1, 2):
        state = {"config_hash": "a", "number": number}
        checkpoint.save(tmp_path / "last.pt", state, tmp_path / "previous.pt")
    whole = (tmp_path / "last.pt").read_bytes()
    for damaged in (b"", b"no checkpoint", whole[: len(whole) // 2], bytes(len(whole))):
        (tmp_path / "last.pt").write_bytes(damaged)
        said: list[str] = []
        found = checkpoint.load_latest(tmp_path, said.append)
        assert found is not None
        assert found["number"] == 1
        assert len(said) == 1
        assert "last.pt" in said[0]
        assert "falling back" in said[0]
    (tmp_path / "previous.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="remove the damaged files"):
        checkpoint.load_latest(tmp_path, said.append)


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    torch.save({"config_hash": "a", "payload": Payload(tmp_path / "made")}, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.load(tmp_path / "last.pt")
    assert not (tmp_path / "made").exists()


def test_status_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert run.status(folder) == "absent"
    folder.mkdir()
    assert run.status(folder) == "unfinished"
    run.write_json(folder / "failure.json", {})
    assert run.status(folder) == "failed"
    run.write_json(folder / "result.json", {})
    assert run.status(folder) == "finished"
