"""Checkpoints: tensors and plain containers only, written whole, verified and read with ``weights_only=True``.

A checkpoint is what ``torch.save`` writes, a zip archive, with a SHA-256 of all bytes before it in the archive's
comment. ``torch.load`` reads it as any other; it looks at no checksum, so `load` does before it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch

from mixaug.engine.errors import CheckpointError
from mixaug.engine.reading import open_ordinary
from mixaug.engine.run import BESIDE, flush_folder, write_atomic

__all__ = ["last_good", "load", "load_latest", "save", "settle"]

LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"

# A zip archive ends with a record of 22 bytes, whose last two are the length of the comment behind it.
_END, _LENGTH = 22, 2
_COMMENT = re.compile(rb"mixaug sha256 (.{64})", re.DOTALL)
_SEAL = _LENGTH + len(b"mixaug sha256 ") + 64

#: Checkpoint files that were verified, by path: the identity of the file (inode, size, time) and whether it was whole.
_verified: dict[Path, tuple[tuple[int, int, int], bool]] = {}


def save(path: Path, state: dict[str, Any], previous: Path | None = None) -> None:
    """Write a checkpoint; the one it replaces is kept at ``previous`` if given, unless it is damaged.

    Raises:
        RunFolderError: the disk is full or the folder cannot be written; earlier checkpoints stay.
    """

    def write(file: BinaryIO) -> None:
        sealed = _Sealed(file)
        torch.save(state, cast(IO[bytes], sealed))
        sealed.finish()

    # A damaged file would take the place of the last one that can be read.
    keep = previous is not None and _is_whole(path)
    write_atomic(path, write, previous if keep else None)
    _remember(path, True)


def load(path: Path) -> dict[str, Any]:
    """Read one checkpoint onto the CPU.

    Raises:
        CheckpointError: the file is damaged or is not a checkpoint.
        FileNotFoundError: there is no such file.
    """
    return _load(path)[0]


def _load(path: Path) -> tuple[dict[str, Any], bool]:
    """The content, and whether it had a checksum of its own."""
    try:
        with open_ordinary(path) as file:
            sealed = _verify(file)
            file.seek(0)
            state = torch.load(file, map_location="cpu", weights_only=True)
    except (FileNotFoundError, MemoryError):
        raise
    except Exception as error:
        # Torn bytes make the unpickler fail in any way at all, IndexError and KeyError included.
        _remember(path, False)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"checkpoint {path} cannot be read: {reason}") from error
    if not isinstance(state, dict) or "config_hash" not in state:
        _remember(path, False)
        raise CheckpointError(f"checkpoint {path} is not one of a mixaug run")
    _remember(path, True)
    return state, sealed


def load_latest(folder: Path, say: Callable[[str], None]) -> dict[str, Any] | None:
    """The newest readable checkpoint of a run folder, or None where there is none yet.

    A kill may leave a new checkpoint that is whole but not yet in its place; it counts.

    Args:
        folder: the run folder.
        say: called with a line when the newest checkpoint is damaged and an older one is taken instead, and when the
            one taken has no checksum of its own.

    Raises:
        CheckpointError: there are checkpoints, but none can be read.
    """
    chosen, damaged = _choose(folder)
    if chosen is None:
        if damaged:
            raise CheckpointError(
                "; ".join(damaged) + f"; remove the damaged files from {folder} to start the run anew"
            )
        return None
    path, state, sealed = chosen
    if damaged:
        say(f"{damaged[0]}; falling back to {path}")
    if not sealed:
        say(
            f"{path} was written by an earlier version and has no SHA-256; the CRC-32 of everything in it was verified "
            "instead"
        )
    return state


def settle(folder: Path, say: Callable[[str], None]) -> None:
    """Finish or undo what a kill interrupted while it was being written; only for the process that holds the folder.

    Raises:
        RunFolderError: the folder cannot be written.
    """
    last, beside = folder / LAST, folder / (LAST + BESIDE)
    if beside.exists():
        chosen, _ = _choose(folder)
        if chosen is not None and chosen[0] == beside:
            if _is_whole(last):
                os.replace(last, folder / PREVIOUS)
            os.replace(beside, last)
            flush_folder(folder)
            _remember(last, True)
            say(f"{last} had been written before the run was killed and was put in its place")
    for part in folder.glob("*" + BESIDE):
        with contextlib.suppress(OSError):
            part.unlink()


def last_good(folder: Path) -> str | None:
    """Path of the newest checkpoint that is whole, for messages."""
    for name in (LAST, PREVIOUS):
        if _is_whole(folder / name):
            return str(folder / name)
    return None


def _choose(folder: Path) -> tuple[tuple[Path, dict[str, Any], bool] | None, list[str]]:
    """Path, content and seal of the newest checkpoint that can be read, and what is wrong with newer ones."""
    found: list[tuple[Path, dict[str, Any], bool]] = []
    damaged: list[str] = []
    for name in (LAST + BESIDE, LAST, PREVIOUS):
        try:
            found.append((folder / name, *_load(folder / name)))
        except FileNotFoundError:
            continue
        except CheckpointError as error:
            # A file beside its place may well be torn: it was being written.
            damaged += [str(error)] if name != LAST + BESIDE else []
            continue
        if name != LAST + BESIDE:
            break
    # Between equal steps, the file that is in its place wins.
    return max(reversed(found), key=lambda entry: _step(entry[1]), default=None), damaged


def _step(state: dict[str, Any]) -> int:
    position = state.get("position")
    step = position.get("step") if isinstance(position, dict) else None
    # What else it may be is refused where the run goes on from it.
    return step if isinstance(step, int) else 0


def _is_whole(path: Path) -> bool:
    """Whether a checkpoint is there and undamaged; read only if this process has neither written nor read it."""
    try:
        verdict = _verified.get(path)
        if verdict is not None and verdict[0] == _identity(os.stat(path)):
            return verdict[1]
        with open_ordinary(path) as file:
            _verify(file)
    except Exception:
        _remember(path, False)
        return False
    _remember(path, True)
    return True


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _remember(path: Path, whole: bool) -> None:
    try:
        _verified[path] = _identity(os.stat(path)), whole
    except OSError:
        _verified.pop(path, None)


def _verify(file: BinaryIO) -> bool:
    """Check every byte of a checkpoint against its SHA-256; without one against the CRC-32 of the archive's entries.

    Returns:
        Whether it had a SHA-256.

    Raises:
        ValueError: something was changed.
        zipfile.BadZipFile: it is not a whole archive.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - _SEAL, 0))
    end = file.read()
    sealed = _COMMENT.fullmatch(end[_LENGTH:])
    file.seek(0)
    if sealed is None:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"the CRC-32 of {damaged} in it does not hold: it was changed after it was written")
        return False
    digest, left = hashlib.sha256(), size - _SEAL
    while left:
        piece = file.read(min(left, 2**20))
        if not piece:
            raise ValueError("it became shorter while it was read")
        digest.update(piece)
        left -= len(piece)
    if digest.hexdigest().encode() != sealed[1] or end[:_LENGTH] != struct.pack("<H", _SEAL - _LENGTH):
        raise ValueError("its SHA-256 does not hold: it was changed after it was written")
    return True


class _Sealed:
    """A file for ``torch.save`` that adds the checksum, and keeps the first error for `finish`.

    torch's writer must not see the error: it goes on to close its archive, and reports the length that it misses then
    ("unexpected pos 64 vs 0") in place of the full disk.

    Args:
        file: open for writing.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        # These are the last bytes written: the archive's last record, once it is complete.
        self._end = b""
        self._error: BaseException | None = None

    def write(self, data: Any) -> int:
        """Write bytes."""
        if self._error is None:
            try:
                self._push(bytes(data))
            except BaseException as error:
                self._error = error
        return len(data)

    def _push(self, data: bytes) -> None:
        whole = self._end + data
        ready, self._end = whole[:-_END], whole[-_END:]
        self._digest.update(ready)
        self._file.write(ready)

    def flush(self) -> None:
        """Nothing; the file is flushed when it is complete."""

    def finish(self) -> None:
        """Write the checksum, or raise the first error."""
        if self._error is not None:
            raise self._error
        record = self._end[:-_LENGTH]
        self._digest.update(record)
        comment = b"mixaug sha256 " + self._digest.hexdigest().encode()
        self._file.write(record + struct.pack("<H", len(comment)) + comment)
