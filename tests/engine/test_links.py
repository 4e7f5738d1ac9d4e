"""Links, pipes and folders in the places of a run's files: nothing outside is written, nothing waits or reads on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mixaug.engine import checkpoint, lock, run
from mixaug.engine.config import compose
from mixaug.engine.errors import CheckpointError, RunFolderError
from mixaug.engine.reading import DamagedFile, read_text
from mixaug.engine.writing import place

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs links and pipes")

STATE = {"config_hash": "x", "position": {"step": 1}}


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A file of the user's, outside of the run folder."""
    path = tmp_path / "mine"
    path.write_text("precious")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    return path


def test_a_whole_file_replaces_links_and_follows_none(folder: Path, mine: Path) -> None:
    for write in (lambda path: run.write_json(path, {}), lambda path: place(path, "{}")):
        for name in ("a.json", "a.json.part", f"a.json.{os.getpid()}.part"):
            (folder / name).symlink_to(mine)
        write(folder / "a.json")
        assert not (folder / "a.json").is_symlink()
        assert (folder / "a.json").read_text().strip() == "{}"
        for path in folder.iterdir():
            path.unlink()
    assert mine.read_text() == "precious"


def test_a_checkpoint_beside_its_place_follows_no_link(folder: Path, mine: Path) -> None:
    (folder / "last.pt.part").symlink_to(mine)
    checkpoint.save(folder / "last.pt", STATE)
    assert checkpoint.load(folder / "last.pt") == STATE
    assert mine.read_text() == "precious"


def test_curves_are_not_written_through_a_link(tmp_path: Path) -> None:
    config = compose(["data=digits", "data.train_size=20", f"root={tmp_path}", "device=cpu"])
    folder = run.run_folder(config)
    folder.mkdir()
    (folder / "tensorboard").symlink_to(tmp_path)
    with pytest.raises(RunFolderError, match=r"tensorboard: it is a link"):
        run.prepare(folder, config, torch.device("cpu"), 1)


def test_a_line_is_not_appended_through_a_link(folder: Path, mine: Path) -> None:
    (folder / run.STOPS).symlink_to(mine)
    with pytest.raises(RunFolderError, match=r"stops\.jsonl: it is a link"):
        run.append_line(folder / run.STOPS, {"epoch": 1})
    assert mine.read_text() == "precious"


def test_the_lock_is_an_ordinary_file(folder: Path, mine: Path) -> None:
    spoiled: dict[str, Callable[[Path], None]] = {
        "it is a link": lambda path: path.symlink_to(mine),
        "it is not an ordinary file": os.mkfifo,
    }
    for said, make in spoiled.items():
        make(folder / lock.NAME)
        with lock.RunLock(folder) as own, pytest.raises(RunFolderError, match=rf"\.lock: {said}"):
            own.take()
        assert lock.holder(folder) is None
        (folder / lock.NAME).unlink()
    assert mine.read_text() == "precious"


SPOILED = {
    "pipe": (os.mkfifo, "is not an ordinary file"),
    "device": (lambda path: os.symlink("/dev/zero", path), "is not an ordinary file"),
    "folder": (os.mkdir, "is not an ordinary file"),
    "loop": (lambda path: os.symlink(path.name, path), "Too many levels of symbolic links"),
    "nowhere": (lambda path: os.symlink("nowhere", path), "is a link to something that is not there"),
}


@pytest.mark.parametrize("kind", SPOILED)
def test_what_is_no_ordinary_file_is_not_read(kind: str, folder: Path) -> None:
    make, said = SPOILED[kind]
    make(folder / "last.pt")
    make(folder / "result.json")
    with pytest.raises(DamagedFile, match=rf"result\.json .*{said}"):
        read_text(folder / "result.json")
    with pytest.raises(CheckpointError, match=rf"last\.pt cannot be read: .*{said}"):
        checkpoint.load(folder / "last.pt")
    # The name counts, so that the run says what is wrong and is not taken for one that was never finished.
    assert run.status(folder) == "finished"
    checkpoint.save(folder / "previous.pt", STATE)
    lines: list[str] = []
    assert checkpoint.load_latest(folder, lines.append) == STATE
    assert said in lines[0]
