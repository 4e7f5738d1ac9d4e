"""Checkpoints: tensors and plain containers only, written whole, read with ``weights_only=True``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from mixaug.engine.errors import CheckpointError
from mixaug.engine.run import write_atomic

__all__ = ["last_good", "load", "load_latest", "save"]

LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"


def save(path: Path, state: dict[str, Any], previous: Path | None = None) -> None:
    """Write a checkpoint; the one it replaces is kept at ``previous`` if given.

    Raises:
        RunFolderError: the disk is full or the folder cannot be written; earlier checkpoints stay.
    """

    def write(file: BinaryIO) -> None:
        torch.save(state, file)

    write_atomic(path, write, previous)


def load(path: Path) -> dict[str, Any]:
    """Read one checkpoint onto the CPU.

    Raises:
        CheckpointError: the file is damaged or is not a checkpoint.
        FileNotFoundError: there is no such file.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        # Torn bytes make the unpickler fail in any way at all, IndexError and KeyError included.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"checkpoint {path} cannot be read: {reason}") from error
    if not isinstance(state, dict) or "config_hash" not in state:
        raise CheckpointError(f"checkpoint {path} is not one of a mixaug run")
    return state


def load_latest(folder: Path, say: Callable[[str], None]) -> dict[str, Any] | None:
    """The newest readable checkpoint of a run folder, or None where there is none yet.

    Args:
        folder: the run folder.
        say: told when ``last.pt`` is damaged and ``previous.pt`` is taken instead.

    Raises:
        CheckpointError: there are checkpoints, but none can be read.
    """
    damaged = []
    for name in (LAST, PREVIOUS):
        try:
            state = load(folder / name)
        except FileNotFoundError:
            continue
        except CheckpointError as error:
            damaged.append(str(error))
            continue
        if damaged:
            say(f"{damaged[0]}; falling back to {folder / name}")
        return state
    if damaged:
        raise CheckpointError("; ".join(damaged) + f"; remove the damaged files from {folder} to start the run anew")
    return None


def last_good(folder: Path) -> str | None:
    """Path of the newest checkpoint file, for messages."""
    for name in (LAST, PREVIOUS):
        if (folder / name).is_file():
            return str(folder / name)
    return None
