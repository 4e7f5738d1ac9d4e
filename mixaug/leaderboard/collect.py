"""Run folders to records: what finished, what failed and why, what is still under way, what cannot be read.

A damaged folder never stops the others from being read; it becomes a record with status ``"corrupt"``.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixaug.engine.tasks import CLASSIFICATION, TASKS, Task

__all__ = ["STATISTICS", "Run", "collect", "read_epochs", "read_run"]

STATISTICS = tuple(dict.fromkeys(figure for task in TASKS.values() for figure in task.figures))
"""How one number may be taken from a run; each task has some of these."""

MARKERS = ("result.json", "failure.json", "config.yaml", "epochs.jsonl")
TEXT_KEYS = ("policy", "model", "data", "protocol")
NUMBER_KEYS = ("seed", "epochs")
OPTIONAL_NUMBER_KEYS = ("top5_last", "prepare_seconds", "train_seconds", "step_ms", "peak_memory_mb", "params")


@dataclass(frozen=True)
class Run:
    """One run folder.

    ``status`` is ``"finished"``, ``"failed"``, ``"unfinished"`` or ``"corrupt"``; ``reason`` says why for all but
    the first.
    ``problems`` names what could not be read beside it (a torn last line of epochs.jsonl, say).
    """

    folder: Path
    status: str
    reason: str = ""
    result: dict[str, Any] = field(default_factory=dict)
    failure: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    epochs: tuple[dict[str, Any], ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def task(self) -> Task:
        """What a finished run predicts."""
        return TASKS[self.result.get("task", CLASSIFICATION.name)]


def collect(roots: str | Path | Iterable[str | Path]) -> list[Run]:
    """Read every run folder at or below the roots, sorted by path.

    Args:
        roots: one folder or several; each may itself be a run folder.

    Raises:
        ValueError: if a root is not a folder.
    """
    listed = [roots] if isinstance(roots, (str, Path)) else list(roots)
    folders: dict[Path, None] = {}
    for root in map(Path, listed):
        if not root.is_dir():
            raise ValueError(f"collect: expected a folder of runs, got {str(root)!r}, which is not a folder")
        for folder in _run_folders(root):
            folders[folder.resolve()] = None
    return [read_run(folder) for folder in sorted(folders)]


def _run_folders(root: Path) -> Iterator[Path]:
    for current, inner, files in os.walk(root):
        inner.sort()
        if any(marker in files for marker in MARKERS):
            inner.clear()  # nothing below a run is a run of its own
            yield Path(current)


def read_run(folder: str | Path) -> Run:
    """Read one run folder; never raises on damaged content."""
    folder = Path(folder)
    problems: list[str] = []
    config = _read_config(folder / "config.yaml", problems)
    environment = _read_object(folder / "environment.json", problems) or {}
    epochs = read_epochs(folder / "epochs.jsonl", problems)

    def run(status: str, reason: str = "", **extra: Any) -> Run:
        return Run(
            folder=folder,
            status=status,
            reason=reason,
            config=config,
            environment=environment,
            epochs=epochs,
            problems=tuple(problems),
            **extra,
        )

    # A run that failed and was then resumed to its end keeps both files: the result is the later word.
    if (folder / "result.json").exists():
        read: list[str] = []
        result = _read_object(folder / "result.json", read)
        if result is None:
            return run("corrupt", "; ".join(read))
        fault = _result_fault(result)
        if fault:
            return run("corrupt", f"result.json: {fault}", result=result)
        return run("finished", result=result)
    if (folder / "failure.json").exists():
        read = []
        failure = _read_object(folder / "failure.json", read)
        if failure is None:
            return run("corrupt", "; ".join(read))
        return run("failed", str(failure.get("reason") or "no reason recorded"), failure=failure)
    done = f"stopped after epoch {epochs[-1].get('epoch', len(epochs))}" if epochs else "no epoch finished"
    return run("unfinished", done)


def read_epochs(path: str | Path, problems: list[str] | None = None) -> tuple[dict[str, Any], ...]:
    """The epochs of an epochs.jsonl in order; an epoch written twice (after a resume) counts once, the later line.

    Lines that are not JSON objects with an integer ``epoch`` are left out and named in ``problems``.
    """
    path = Path(path)
    said = problems if problems is not None else []
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ()
    except OSError as error:
        said.append(f"{path.name}: {error.strerror or error}")
        return ()
    epochs: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if not isinstance(value, dict) or not isinstance(value.get("epoch"), int):
            said.append(f"{path.name}: line {number} is not an epoch record")
            continue
        epochs[value["epoch"]] = value
    return tuple(epochs[key] for key in sorted(epochs))


def _read_object(path: Path, problems: list[str]) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} cannot be read: {error}")
        return None
    if not isinstance(value, dict):
        problems.append(f"{path.name}: expected a JSON object, got {type(value).__name__}")
        return None
    return value


def _read_config(path: Path, problems: list[str]) -> dict[str, Any]:
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        value = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        problems.append(f"{path.name} cannot be read: {str(error).splitlines()[0]}")
        return {}
    if not isinstance(value, dict) or "seed" not in value:
        problems.append(f"{path.name} is not the config of a run")
        return {}
    return {str(key): item for key, item in value.items()}


def _result_fault(result: dict[str, Any]) -> str:
    for key in TEXT_KEYS:
        if not isinstance(result.get(key), str):
            return f"{key}: expected text, got {result.get(key)!r}"
    task = TASKS.get(str(result.get("task", CLASSIFICATION.name)))
    if task is None:
        return f"task: expected one of {', '.join(TASKS)}, got {result['task']!r}"
    figures = [task.result_key(figure) for figure in task.figures]
    details = [detail.key.format(figure=figure) for detail in task.details for figure in task.figures]
    for key in (*NUMBER_KEYS, *figures):
        if not _is_number(result.get(key)):
            return f"{key}: expected a finite number, got {result.get(key)!r}"
    for key in (*OPTIONAL_NUMBER_KEYS, *details):
        if result.get(key) is not None and not _is_number(result[key]):
            return f"{key}: expected a finite number, got {result[key]!r}"
    for key in ("policy_options", "data_options"):
        if not isinstance(result.get(key) or {}, dict):
            return f"{key}: expected a mapping, got {result[key]!r}"
    return ""


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
