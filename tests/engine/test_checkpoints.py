"""Checkpoints outlast flipped bytes, kills between any two file operations and a disk of any fullness."""

from __future__ import annotations

import builtins
import copy
import errno
import hashlib
import io
import json
import os
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor

import mixaug
from mixaug.engine import checkpoint, run, writing
from mixaug.engine.distributed import World
from mixaug.engine.errors import CheckpointError, ConfigError, RunFolderError
from mixaug.engine.log import Log
from mixaug.engine.state import Meters, Streams, TrainingState
from mixaug.engine.train import train

Tiny = Callable[..., DictConfig]


def state(number: int) -> dict[str, Any]:
    """A small checkpoint that says which one it is in every part."""
    return {
        "config_hash": "a",
        "model": {"weight": torch.full((30, 10), float(number)), "bias": torch.arange(5) + number},
        "position": {"epoch": 0, "batch": number, "step": number, "update": number},
        "history": [{"epoch": number, "train_loss": number / 7}],
    }


def same(one: Any, two: Any) -> bool:
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    return torch.equal(one, two) if isinstance(one, Tensor) else bool(one == two)


def saved(folder: Path, *numbers: int) -> None:
    for number in numbers:
        checkpoint.save(folder / "last.pt", state(number), folder / "previous.pt")


def latest(folder: Path, said: list[str] | None = None) -> int:
    """Number of the checkpoint that a run would go on from, which is whole; 0 where there is none."""
    found = checkpoint.load_latest(folder, (said if said is not None else []).append)
    number = 0 if found is None else int(found["position"]["step"])
    assert found is None or same(found, state(number))
    return number


# -- flipped bytes --------------------------------------------------------------------------------------------------


def test_the_checksum_is_that_of_all_bytes_before_it_and_torch_reads_the_file(tmp_path: Path) -> None:
    saved(tmp_path, 3)
    path = tmp_path / "last.pt"
    with zipfile.ZipFile(path) as archive:
        comment = archive.comment.decode()
    words = comment.split()
    assert words[:2] == ["mixaug", "sha256"]
    assert words[2] == hashlib.sha256(path.read_bytes()[: -len(comment) - 2]).hexdigest()
    assert same(torch.load(path, weights_only=True), state(3))
    assert same(torch.load(path, weights_only=True, mmap=True), state(3))
    plain = io.BytesIO()
    torch.save(state(3), plain)
    assert path.stat().st_size == len(plain.getvalue()) + len(comment)


@pytest.mark.parametrize("sealed", [True, False], ids=["with checksum", "of an earlier version"])
def test_flipped_bits_never_pass_for_good(tmp_path: Path, sealed: bool) -> None:
    saved(tmp_path, 1, 2)
    path = tmp_path / "last.pt"
    if not sealed:
        torch.save(state(2), path)
    whole = path.read_bytes()
    chance = random.Random(0)
    # Damage is tried at the archive's head, its directory, its end, and places all over.
    places = [*range(0, 40, 5), *range(len(whole) - 160, len(whole), 4), *chance.sample(range(len(whole)), 60)]
    fell_back = 0
    for place in places:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << chance.randrange(8)
        path.write_bytes(flipped)
        said: list[str] = []
        number = latest(tmp_path, said)
        fell_back += number == 1
        # Bytes that mean nothing may change where nothing but the entries is verified.
        assert number == 1 or not sealed or "has no SHA-256" in said[0], place
        assert number == 2 or f"checkpoint {path} cannot be read" in said[0], place
        assert number == 2 or f"falling back to {tmp_path / 'previous.pt'}" in said[0], place
    assert fell_back >= (len(places) - 14 if sealed else 25)


def test_a_checkpoint_without_a_checksum_is_taken_with_a_note(tmp_path: Path) -> None:
    torch.save(state(4), tmp_path / "last.pt")
    said: list[str] = []
    assert latest(tmp_path, said) == 4
    assert len(said) == 1
    assert "has no SHA-256" in said[0]


def test_a_flipped_checkpoint_costs_an_epoch_and_nothing_else(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, other = (tiny("epochs=2", "policy=mixup", root=tmp_path / name) for name in ("whole", "other"))
    expected = train(whole)
    folder = run.run_folder(other)
    shutil.copytree(run.run_folder(whole), folder)
    (folder / "result.json").unlink()
    damaged = bytearray((folder / "last.pt").read_bytes())
    damaged[len(damaged) // 2] ^= 16
    (folder / "last.pt").write_bytes(damaged)
    capsys.readouterr()
    got = train(other)
    said = capsys.readouterr().out
    assert "its SHA-256 does not hold" in said
    assert "resumed at epoch 1" in said
    assert got["nll_last"] == expected["nll_last"]
    for name in ("last.pt", "previous.pt", "best.pt"):
        models = [checkpoint.load(run.run_folder(config) / name)["model"] for config in (whole, other)]
        assert same(*models), name


@pytest.mark.parametrize("torn", [b'{"status": "fini', b"[" * 100_000])
def test_a_result_that_cannot_be_read_is_made_again(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], torn: bytes
) -> None:
    config = tiny("epochs=1", "schedule.warmup_lr=0.1", "schedule.min_lr=0.01")
    folder = run.run_folder(config)
    folder.mkdir(parents=True)
    (folder / "result.json").write_bytes(torn)
    result = train(config, {"schedule.warmup_lr", "schedule.min_lr"})
    said, warned = capsys.readouterr()
    # Settings that do nothing are told, too, once.
    assert warned.startswith("warning: schedule.warmup_lr=0.1 does nothing without a warm-up: ")
    assert warned.count("warning") == 1 and "min_lr" not in warned
    assert str(folder / "result.json") in said and "it is made again from the start" in said
    assert run.read_json(folder / "result.json") == result
    if torn.startswith(b"{"):
        return
    # So is one that was copied from the folder of another run, which its settings alone tell.
    run.write_json(folder / "result.json", {**result, "config": "0123456789", "top1_last": 99.0})
    assert train(config)["top1_last"] == result["top1_last"]
    said = capsys.readouterr().out
    assert "it is the result of another run" in said and "it is made again from the newest checkpoint" in said


def test_a_run_of_an_earlier_version_with_settings_that_are_refused_now_is_told_as_such(tiny: Tiny) -> None:
    config = tiny("policy=mixup", "policy.alpha=0.2", "policy.ratio=uniform")
    folder = run.run_folder(config)
    with pytest.raises(ConfigError, match=r"so alpha=0.2 has no effect") as refused:
        train(config)
    assert "earlier version" not in str(refused.value) and not folder.exists()
    folder.mkdir(parents=True)
    (folder / "last.pt").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"so alpha=0.2 has no effect.*; the unfinished run in .* an earlier version"):
        train(config)


# -- kills ----------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Raised by every file operation from the kill on, so that no clean-up does anything either."""


def open_by(opened: Callable[..., Any], patch: pytest.MonkeyPatch) -> None:
    """Let what a run writes be opened by a function that is called as `open` is."""
    patch.setattr(writing, "open", opened, raising=False)
    patch.setattr(run, "appended", lambda path: opened(path, "ab"))


def killed_before(operation: int, action: Callable[[], object]) -> bool:
    """Do something that dies before its file operation of this number: an open, write, fsync, rename or removal.

    Returns:
        Whether it died; otherwise it had fewer operations.
    """
    done = [0]

    def counted(really: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            if done[0] >= operation:
                raise Killed
            done[0] += 1
            return really(*arguments, **keywords)

        return call

    class Raw(io.FileIO):
        write = counted(io.FileIO.write)

    def opened(path: Any, mode: str, **keywords: Any) -> Any:
        if "b" not in mode:
            return builtins.open(path, mode, **keywords)
        return io.BufferedWriter(Raw(path, mode.replace("b", "")), buffer_size=2**22)

    with pytest.MonkeyPatch.context() as patch:
        open_by(counted(opened), patch)
        for name in ("replace", "fsync", "unlink"):
            patch.setattr(os, name, counted(getattr(os, name)))
        try:
            action()
        except Killed:
            return True
    return False


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


def nothing(folder: Path) -> None:
    """No checkpoint yet."""


def one(folder: Path) -> None:
    saved(folder, 1)


def two(folder: Path) -> None:
    saved(folder, 1, 2)


def last_is_torn(folder: Path) -> None:
    saved(folder, 2, 1)
    torn(folder / "last.pt")


def between_the_renames(folder: Path) -> None:
    saved(folder, 1, 2)
    os.replace(folder / "last.pt", folder / "last.pt.part")


def before_the_first_rename(folder: Path) -> None:
    saved(folder, 2)
    os.replace(folder / "last.pt", folder / "new")
    saved(folder, 1)
    os.replace(folder / "new", folder / "last.pt.part")


def all_but_the_new_one_are_torn(folder: Path) -> None:
    saved(folder, 1, 2)
    (folder / "last.pt.part").write_bytes((folder / "last.pt").read_bytes())
    torn(folder / "last.pt")
    torn(folder / "previous.pt")


def the_new_one_is_torn(folder: Path) -> None:
    saved(folder, 1, 2)
    (folder / "last.pt.part").write_bytes((folder / "last.pt").read_bytes())
    torn(folder / "last.pt.part")


NEWEST = {
    nothing: 0,
    one: 1,
    two: 2,
    last_is_torn: 2,
    between_the_renames: 2,
    before_the_first_rename: 2,
    all_but_the_new_one_are_torn: 2,
    the_new_one_is_torn: 2,
}


def go_on(folder: Path, number: int) -> None:
    """What a run does with its checkpoints between its start and its next one."""
    checkpoint.settle(folder, lambda text: None)
    checkpoint.load_latest(folder, lambda text: None)
    checkpoint.save(folder / "last.pt", state(number), folder / "previous.pt")


@pytest.mark.parametrize("before", NEWEST, ids=lambda before: before.__name__)
def test_a_kill_between_any_two_file_operations_loses_no_checkpoint(
    tmp_path: Path, before: Callable[[Path], None]
) -> None:
    newest = NEWEST[before]
    for first in range(40):
        folder = tmp_path / str(first)
        folder.mkdir()
        before(folder)
        assert latest(folder) == newest
        if not killed_before(first, lambda folder=folder: go_on(folder, newest + 1)):
            break
        reached = latest(folder)
        assert reached in (newest, newest + 1), first
        # A second kill comes while the first one is mended, and then a third.
        for second in (0, 3, 6):
            if not killed_before(second, lambda folder=folder, number=reached + 1: go_on(folder, number)):
                break
            again = latest(folder)
            assert again in (reached, reached + 1), (first, second)
            reached = again
        go_on(folder, 9)
        assert latest(folder) == 9
        assert not list(folder.glob("*.part"))
    assert first > 4
    assert latest(folder) == newest + 1
    kept = checkpoint.load(folder / "previous.pt") if newest else None
    assert kept is None or kept["position"]["step"] == newest


def test_what_could_not_be_read_never_replaces_what_can(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    torn(tmp_path / "last.pt")
    saved(tmp_path, 3)  # the damage counts even where nobody has tried to read the file
    assert checkpoint.load(tmp_path / "previous.pt")["position"]["step"] == 1
    assert checkpoint.load(tmp_path / "last.pt")["position"]["step"] == 3
    saved(tmp_path, 4)
    assert checkpoint.load(tmp_path / "previous.pt")["position"]["step"] == 3


def test_messages_name_the_checkpoint_that_is_whole(tmp_path: Path) -> None:
    assert checkpoint.last_good(tmp_path) is None
    saved(tmp_path, 1, 2)
    assert checkpoint.last_good(tmp_path) == str(tmp_path / "last.pt")
    torn(tmp_path / "last.pt")
    assert checkpoint.last_good(tmp_path) == str(tmp_path / "previous.pt")
    torn(tmp_path / "previous.pt")
    assert checkpoint.last_good(tmp_path) is None
    with pytest.raises(
        CheckpointError, match=r"last\.pt cannot be read.*previous\.pt cannot be read.*start the run anew"
    ):
        latest(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "every"), [("mixup", 1), ("automix", 4)])
def test_a_run_killed_before_any_file_operation_ends_bit_identical(
    tiny: Tiny, tmp_path: Path, policy: str, every: int
) -> None:
    ways = (f"policy={policy}", "+model.drop_rate=0.1", "checkpoint_every_steps=2", "ema.decay=0.9")
    whole = tiny(*ways, root=tmp_path / "whole")
    expected = train(whole)
    kept = checkpoint.load(run.run_folder(whole) / "last.pt")
    for operation in range(0, 400, every):
        config = tiny(*ways, root=tmp_path / str(operation))
        died = killed_before(operation, lambda config=config: train(config))
        result = train(config)
        got = checkpoint.load(run.run_folder(config) / "last.pt")
        for part in ("model", "ema", "policy", "streams", "position"):
            assert same(got[part], kept[part]), (operation, part)
        assert result["nll_last"] == expected["nll_last"], operation
        lines = (run.run_folder(config) / "epochs.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
        # A kill behind the result may leave the file of the lock, which nothing holds.
        assert {path.name for path in run.run_folder(config).iterdir()} - {".lock"} == {
            path.name for path in run.run_folder(whole).iterdir()
        }
        if not died:
            break
    assert operation > 40


# -- a full disk ----------------------------------------------------------------------------------------------------


class Disk:
    """Files opened through it share so many bytes; what is removed or cut off comes free again."""

    def __init__(self, free: int) -> None:
        self.free = free

    def open(self, path: Any, mode: str = "r", **keywords: Any) -> Any:
        if "r" in mode:
            return builtins.open(path, mode, **keywords)
        disk = self

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:
                room = min(len(data), disk.free)
                if room == 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                disk.free -= room
                return super().write(bytes(data)[:room])

        raw = Raw(path, mode.replace("b", ""))
        buffered = io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding="utf-8")


def test_a_full_disk_is_told_at_every_size_and_spoils_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, 1, 2)
    size = (tmp_path / "last.pt").stat().st_size
    for free in [*range(0, size, 61), size - 1]:
        with monkeypatch.context() as patch:
            open_by(Disk(free).open, patch)
            with pytest.raises(RunFolderError) as caught:
                saved(tmp_path, 3)
        assert str(caught.value) == (
            f"cannot write {tmp_path / 'last.pt'}: No space left on device; what was written before is untouched"
        )
        assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pt", "previous.pt"]
        assert latest(tmp_path) == 2
    open_by(Disk(size).open, monkeypatch)
    saved(tmp_path, 3)
    assert latest(tmp_path) == 3


@pytest.mark.parametrize("free", [0, 40_000, 1_500_000])
def test_a_run_on_a_full_disk_ends_with_one_clear_error_and_goes_on_later(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    # A disk that holds a few checkpoints of this width is full before the run ends.
    config = tiny("policy=mixup", "model=cifar_resnet8", "checkpoint_every_steps=2")
    folder = run.run_folder(config)
    with monkeypatch.context() as patch:
        open_by(Disk(free).open, patch)
        with pytest.raises(RunFolderError, match=rf"^cannot write {folder}/\S+: No space left on device") as caught:
            train(config)
    failure = folder / "failure.json"
    assert not failure.exists() or json.loads(failure.read_text())["reason"] == str(caught.value)
    assert not list(folder.glob("*.part"))
    assert train(config)["status"] == "finished"


def test_an_interrupt_while_a_checkpoint_is_written_is_an_interrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, 1)

    class Interrupted(io.BytesIO):
        def write(self, data: Any) -> int:
            raise KeyboardInterrupt

    open_by(lambda *arguments, **keywords: Interrupted(), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        saved(tmp_path, 2)
    assert latest(tmp_path) == 1


def test_reports_that_cannot_be_written_name_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "print", full)
        with pytest.raises(RunFolderError, match=r"cannot write the standard output.*: No space left on device"):
            Log("run", active=True, progress=False).say("a line")
    log = Log("run", active=True, progress=False)
    log.start(1, 0, tmp_path / "tensorboard")
    with monkeypatch.context() as patch:
        patch.setattr(log._writer, "add_scalar", full)
        with pytest.raises(RunFolderError, match=rf"cannot write {tmp_path}/tensorboard: No space left on device"):
            log.curves({"loss": 1.0}, 1)
    log._writer.close()


# -- whole files that hold something else ---------------------------------------------------------------------------


def test_values_of_other_kinds_are_no_state_of_a_run(tmp_path: Path) -> None:
    world = World(0, 1, torch.device("cpu"))
    step = mixaug.MixStep(torch.nn.Linear(4, 2), mixaug.create("mixup"), mixaug.losses.MixedCrossEntropy())
    optimizer = torch.optim.SGD(step.parameters(), lr=0.1)

    def fresh() -> TrainingState:
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        return TrainingState(step, optimizer, None, scaler, None, Streams(0, world), Meters(world.device), "a")

    kept = {**fresh().state_dict(), "history": [{"epoch": 1}], "position": {"epoch": 1, "batch": 0, "step": 3}}
    state = fresh()
    state.load_state_dict(copy.deepcopy(kept))
    assert (state.position.epoch, state.position.step, state.history) == (1, 3, [{"epoch": 1}])
    for key in ("model", "policy", "optimizer", "streams", "position", "meters", "history", "prepare_seconds"):
        for other in (None, [None], "x", {"x": 1}):
            with pytest.raises(CheckpointError, match="something else than the state of this run"):
                fresh().load_state_dict({**copy.deepcopy(kept), key: other})
    for position in ({"epoch": -1}, {"epoch": 1.0}, {"epoch": 2}, {"step": True}, {"step": "3"}):
        crafted = {**copy.deepcopy(kept), "position": {**kept["position"], **position}}
        with pytest.raises(CheckpointError, match="something else than the state of this run"):
            fresh().load_state_dict(crafted)
        # It is also what the newest of several is chosen by.
        checkpoint.save(tmp_path / "last.pt", crafted)
        assert checkpoint.load_latest(tmp_path, print) is not None
