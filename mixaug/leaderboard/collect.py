"""Run folders to records: what finished, what failed and why, what is still under way, what cannot be read.

A damaged folder never stops the others from being read; it becomes a record with status ``"corrupt"``. Whatever a
folder holds, a record has values of the kinds that the engine writes, so that nothing behind this module asks again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mixaug.engine.identity import fault_of_belonging, identity_of, objective_of
from mixaug.engine.reading import (
    DamagedFile,
    clean,
    parse_json,
    read_config,
    read_object,
    read_text,
)
from mixaug.engine.results import fault_of_result, shown
from mixaug.engine.tasks import TASKS, Task, task_said
from mixaug.options import renamed_of
from mixaug.registry import describe, list_policies

__all__ = ["STATISTICS", "Run", "collect", "is_run", "read_epochs", "read_run"]

STATISTICS = tuple(dict.fromkeys(figure for task in TASKS.values() for figure in task.figures))
"""Ways of taking one number from a run; each task has some of these."""

MARKERS = ("result.json", "failure.json", "config.yaml", "epochs.jsonl")
MOST_BYTES_OF_EPOCHS = 16 * 2**20
MOST_CHARACTERS_OF_AN_EPOCH = 64 * 1024


@dataclass(frozen=True)
class Run:
    """One run folder.

    ``status`` is ``"finished"``, ``"failed"``, ``"unfinished"`` or ``"corrupt"``; ``reason`` says why for all but
    the first.
    ``problems`` names what could not be read beside it (a torn last line of epochs.jsonl, say). ``config_dir`` is the
    folder of the reader's own config files, in which its command may look beside the shipped ones.
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
    config_dir: Path | None = None

    @property
    def name(self) -> str:
        """The folder's name, fit to be shown."""
        return " ".join(clean(self.folder.name).split())

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """Policy, model, data, ... by the keys of result.json; of a failed run what its config says of them.

        Empty for other runs, and where the config of a failed one does not say it.
        """
        if self.status == "finished":
            return self.result
        told = identity_of(self.config) if self.status == "failed" else {}
        return {**told, **_current_options(told)}

    @property
    def objective(self) -> str:
        """Name of the file that the objective was made from; empty where no config says it."""
        return objective_of(self.config)

    @property
    def task(self) -> Task:
        """What a finished or failed run predicts."""
        return task_said(self.identity)

    @property
    def selected_on(self) -> str:
        """The set that chose among the epochs of a finished run, ``"valid"`` or ``"test"``."""
        # Results of earlier versions do not say it.
        usual = "valid" if f"valid_{self.task.result_key('last')}" in self.result else "test"
        return str(self.result.get("selected_on", usual))


def collect(roots: str | Path | Iterable[str | Path], *, config_dir: str | Path | None = None) -> list[Run]:
    """Read every run folder at or below the roots, sorted by path.

    Args:
        roots: one folder or several; each may itself be a run folder.
        config_dir: folder of config files of one's own, from which some of the runs were made; never taken from a run.

    Raises:
        ValueError: if a root, or ``config_dir``, is not a folder.
    """
    if config_dir is not None and not Path(config_dir).is_dir():
        raise ValueError(f"collect: expected config_dir as a folder of config files, got {str(config_dir)!r}")
    listed = [roots] if isinstance(roots, (str, Path)) else list(roots)
    folders: dict[Path, None] = {}
    for root in map(Path, listed):
        if not root.is_dir():
            raise ValueError(f"expected a folder of runs, got {str(root)!r}, which is not a folder")
        for folder in _run_folders(root):
            folders[folder.resolve()] = None
    own = None if config_dir is None else Path(config_dir)
    return [replace(read_run(folder), config_dir=own) for folder in sorted(folders)]


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, finished or not."""
    return any(os.path.lexists(folder / marker) for marker in MARKERS)


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
    environment = _read_environment(folder / "environment.json", problems)
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
    if os.path.lexists(folder / "result.json"):
        read: list[str] = []
        result = _read_object(folder / "result.json", read)
        if result is None:
            return run("corrupt", "; ".join(read))
        fault = fault_of_result(result) or fault_of_belonging(result, config)
        if fault:
            return run("corrupt", f"result.json: {fault}", result=result)
        return run("finished", result={**result, **_current_options(result)})
    if os.path.lexists(folder / "failure.json"):
        read = []
        failure = _read_object(folder / "failure.json", read)
        if failure is None:
            return run("corrupt", "; ".join(read))
        reason = failure.get("reason")
        told = " ".join(reason.split()) if isinstance(reason, str) else ""
        return run("failed", told or "no reason recorded", failure=failure)
    done = f"stopped after epoch {epochs[-1]['epoch']}" if epochs else "no epoch finished"
    return run("unfinished", done)


def read_epochs(path: str | Path, problems: list[str] | None = None) -> tuple[dict[str, Any], ...]:
    """The epochs of an epochs.jsonl in order; an epoch written twice (after a resume) counts once, the later line.

    Lines that are not JSON objects with an ``epoch`` from 1 are left out and named in ``problems``.
    """
    path = Path(path)
    said = problems if problems is not None else []
    try:
        text = read_text(path, MOST_BYTES_OF_EPOCHS)
    except FileNotFoundError:
        return ()
    except DamagedFile as error:
        said.append(str(error))
        return ()
    epochs: dict[int, dict[str, Any]] = {}
    damaged = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        value = None
        if len(line) <= MOST_CHARACTERS_OF_AN_EPOCH:
            try:
                value = parse_json(line, path.name)
            except DamagedFile:
                value = None  # the problem is reported below, with the line's number
        epoch = value.get("epoch") if isinstance(value, dict) else None
        if not isinstance(epoch, int) or isinstance(epoch, bool) or not 1 <= epoch <= 10**9:
            damaged.append(number)
            continue
        epochs[epoch] = value or {}
    said += [f"{path.name}: line {number} is not an epoch record" for number in damaged[:3]]
    if len(damaged) > 3:
        said.append(f"{path.name}: {len(damaged) - 3} more lines are not epoch records")
    return tuple(epochs[key] for key in sorted(epochs))


def _read_object(path: Path, problems: list[str]) -> dict[str, Any] | None:
    try:
        return read_object(path)
    except FileNotFoundError:
        return None
    except DamagedFile as error:
        problems.append(str(error))
        return None


def _read_config(path: Path, problems: list[str]) -> dict[str, Any]:
    from mixaug.engine.config import GROUPS

    try:
        value = read_config(path)
    except FileNotFoundError:
        return {}
    except DamagedFile as error:
        problems.append(str(error))
        return {}
    if "seed" not in value:
        problems.append(f"{path.name} is not the config of a run")
        return {}
    for section in (*GROUPS, "choices", "mixer"):
        if value.get(section) is not None and not isinstance(value[section], dict):
            problems.append(f"{path.name}: {section}: expected a mapping, got {shown(value[section])}")
            return {}
    # Numbers that are keys are texts to a page, as they are in a result.
    return dict(json.loads(json.dumps(value)))


# A page asks an environment for these keys; the types are those that this and earlier versions of the engine write.
_ENVIRONMENT: Mapping[str, type | tuple[type, ...]] = {
    "versions": dict,
    "device": (str, dict),
    "threads": int,
    "world_size": int,
    "git_commit": str,
}


def _read_environment(path: Path, problems: list[str]) -> dict[str, Any]:
    value = _read_object(path, problems) or {}
    for key, kind in _ENVIRONMENT.items():
        found = value.get(key)
        if found is not None and (not isinstance(found, kind) or isinstance(found, bool)):
            problems.append(f"{path.name}: {key}: unexpected {shown(found)}")
            del value[key]
    return value


def _current_options(result: dict[str, Any]) -> dict[str, Any]:
    """The policy's options by their present names, so that runs from before a change of name stay comparable."""
    policy, options = result.get("policy"), result.get("policy_options")
    if not options or policy not in list_policies():
        return {}
    renamed = renamed_of(describe(policy).target)
    return {"policy_options": {renamed.get(name, name): value for name, value in options.items()}}
