"""The run folder: its name, its files and how they are written.

A folder holds ``config.yaml``, ``environment.json``, ``epochs.jsonl``, ``last.pt``, ``previous.pt``, ``best.pt``
and, once finished, ``result.json``; a failed run has ``failure.json``, one that was told to stop ``stops.jsonl``.
docs/engine.md describes each. Whole files are written beside their place, flushed to the disk and renamed, so that none
is ever half there.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import subprocess
from collections.abc import Callable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import torch
from omegaconf import DictConfig, OmegaConf

from mixaug.engine import lock
from mixaug.engine.config import config_hash
from mixaug.engine.errors import ConfigError, RunFolderError
from mixaug.engine.reading import DamagedFile, parse_json, read_object, read_text
from mixaug.engine.writing import appended, fresh

__all__ = [
    "STOPS",
    "environment",
    "prepare",
    "read_json",
    "read_stops",
    "run_folder",
    "run_name",
    "status",
    "write_atomic",
    "write_json",
]

STOPS = "stops.jsonl"
"""This file has a line for each epoch after which a command was told to stop, with the scores there."""

WRITTEN = (
    *("config.yaml", "environment.json", "epochs.jsonl", STOPS, "last.pt", "previous.pt", "best.pt"),
    *("result.json", "failure.json"),
)
"""A run writes files of these names."""

BESIDE = ".part"
"""This suffix stands behind the name of a file while it is written."""

_PACKAGES = ("mixaug", "torch", "timm", "torchvision", "torchmetrics", "numpy", "hydra-core")


def run_name(config: DictConfig) -> str:
    """``<policy>-<model>-<data>-s<seed>-<hash>``.

    Raises:
        ConfigError: the config's budget has not been put into effect, so that its length is not known.
    """
    if isinstance(config.get("budget"), str):
        raise ConfigError(f"budget={config.budget} is to be put into effect first, by mixaug.engine.budget.settle")
    model = str(config.model.name).replace("/", "_")
    return f"{config.choices.policy}-{model}-{config.data.name}-s{config.seed}-{config_hash(config)}"


def run_folder(config: DictConfig) -> Path:
    """Where the run of this composed config lies, whether or not it exists yet."""
    return Path(config.root) / run_name(config)


def status(folder: Path | str) -> str:
    """``"finished"``, ``"failed"``, ``"unfinished"``, or ``"absent"`` when there is no such folder.

    The names of the files decide; one that cannot be read, a link that leads nowhere included, counts none the less.
    """
    folder = Path(folder)
    if os.path.lexists(folder / "result.json"):
        return "finished"
    if os.path.lexists(folder / "failure.json"):
        return "failed"
    return "unfinished" if folder.is_dir() else "absent"


def prepare(folder: Path, config: DictConfig, device: torch.device, world_size: int) -> None:
    """Create the folder with its config and environment; clear the mark of an earlier failure.

    Raises:
        RunFolderError: the folder cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _explained(folder, error) from error
    for name in WRITTEN:
        path = folder / name
        # A folder cannot be replaced by a file: the run would learn that when its result is to be written.
        if path.is_dir() and not path.is_symlink():
            raise RunFolderError(f"cannot write {path}: it is a folder; remove it")
    if (folder / "tensorboard").is_symlink():
        raise RunFolderError(f"cannot write {folder / 'tensorboard'}: it is a link, which no run makes")
    text = OmegaConf.to_yaml(config, resolve=True)
    write_atomic(folder / "config.yaml", lambda file: file.write(text.encode()))
    write_json(folder / "environment.json", environment(device, world_size))
    (folder / "failure.json").unlink(missing_ok=True)


def write_atomic(path: Path, write: Callable[[BinaryIO], object], previous: Path | None = None) -> None:
    """Write a whole file beside ``path``, flush it to the disk, then rename it into place.

    Args:
        path: the file.
        write: writes the content to an open binary file.
        previous: where the file that ``path`` replaces is kept, if anywhere.

    Raises:
        RunFolderError: a full disk, missing rights or another fault of the file system. ``path`` is then as it
            was, or, had the fault come between the renames, at ``previous``. Also where another process may have taken
            the folder from this one.
    """
    lock.check(path.parent)
    beside = path.with_name(path.name + BESIDE)
    try:
        try:
            with fresh(beside) as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            if previous is not None and path.exists():
                os.replace(path, previous)
            os.replace(beside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
            raise
        flush_folder(path.parent)
    except OSError as error:
        raise _explained(path, error) from error


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object as a whole file; see `write_atomic`."""
    write_atomic(path, lambda file: file.write((json.dumps(content, indent=2) + "\n").encode()))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        DamagedFile: the file is cut, too large or something else; names it.
    """
    try:
        return read_object(path)
    except DamagedFile as error:
        raise DamagedFile(f"{path}: {error}") from error


def read_stops(folder: Path | str) -> dict[int, dict[str, Any]]:
    """The scores of the validation set by the epochs after which commands were told to stop.

    Lines that cannot be read are left out: the run can be taken there again as long as it is not past it.
    """
    try:
        lines = read_text(Path(folder) / STOPS).split("\n")
    except (FileNotFoundError, DamagedFile):
        return {}
    stops = {}
    for line in lines:
        try:
            record = parse_json(line, STOPS)
        except DamagedFile:
            continue
        epoch = record.get("epoch") if isinstance(record, dict) else None
        if isinstance(epoch, int) and not isinstance(epoch, bool):
            stops[epoch] = record
    return stops


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON object as a line and flush it to the disk.

    Raises:
        RunFolderError: the file cannot be written, or another process may have taken its folder from this one.
    """
    lock.check(path.parent)
    try:
        with appended(path) as file:
            file.write((json.dumps(record) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _explained(path, error) from error


def environment(device: torch.device, world_size: int) -> dict[str, Any]:
    """Versions, device, threads and source commit behind a run's numbers."""
    versions = {"python": platform.python_version(), **{package: _version(package) for package in _PACKAGES}}
    versions["cuda"] = torch.version.cuda
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "versions": versions,
        "device": {"type": device.type, "name": name},
        "threads": torch.get_num_threads(),
        "world_size": world_size,
        "git_commit": _git_commit(),
    }


@cache
def _version(package: str) -> str | None:
    # Of a process, in which a package stays what it was when it was imported; a search through all that is installed.
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The checkout's commit, marked when files differ from it; None outside a checkout."""
    try:
        shown = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return shown.stdout.strip() or None


def flush_folder(folder: Path) -> None:
    """Make a rename last through a power failure, where the system lets a folder be opened and flushed."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _explained(path: Path, error: OSError) -> RunFolderError:
    return RunFolderError(f"cannot write {path}: {error.strerror or error}; what was written before is untouched")
