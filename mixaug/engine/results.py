"""The content of a finished run's ``result.json``: what it must have, and how it is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixaug.engine.identity import digest_of, fault_of_belonging, identity_of
from mixaug.engine.reading import LARGEST, DamagedFile, is_number, is_text, read_config, read_object
from mixaug.engine.tasks import FIGURES_OF_LAST_EPOCHS, SPLIT_TITLES, task_said

__all__ = ["digest_beside", "fault_of_result", "read_result", "shown"]

TEXT_KEYS = ("policy", "model", "data", "protocol")
INTEGER_KEYS = {"seed": 0, "epochs": 1}  # each with its smallest value
COST_KEYS = ("test_samples", "prepare_seconds", "train_seconds", "step_ms", "peak_memory_mb", "params")
OPTIONAL_NUMBER_KEYS = ("top5_last", *COST_KEYS)


def read_result(path: Path) -> dict[str, Any]:
    """The result of a finished run.

    Raises:
        FileNotFoundError: there is nothing of this name.
        DamagedFile: not the result of a finished run, or that of another one than the config beside it; names the file.
    """
    try:
        result = read_object(path)
    except DamagedFile as error:
        raise DamagedFile(f"{path}: {error}") from error
    fault = fault_of_result(result, is_ranked=False) or fault_of_belonging(result, _config_of(path.parent))
    if fault:
        raise DamagedFile(f"{path}: {path.name}: {fault}")
    return result


def digest_beside(folder: Path) -> str | None:
    """`digest_of` the config of a run's folder, by which its result is known; None where it cannot be read."""
    config = _config_of(folder)
    return digest_of(config) if identity_of(config) else None


def _config_of(folder: Path) -> dict[str, Any]:
    """The config of a folder; empty where it cannot be read, which is said where the run is opened."""
    try:
        return read_config(folder / "config.yaml")
    except (FileNotFoundError, DamagedFile):
        return {}


def fault_of_result(result: Mapping[str, Any], *, is_ranked: bool = True) -> str:
    """What is wrong with the content of a result.json, by the first key that is; empty for a finished run's.

    Args:
        result: the content.
        is_ranked: the figures must be numbers. A run in regression whose model gave no numbers at the end is finished
            with figures that are null, and has no place in a table.
    """
    for key in TEXT_KEYS:
        if not isinstance(result.get(key), str):
            return f"{key}: expected text, got {shown(result.get(key))}"
        if not is_text(result[key]):
            return f"{key}: expected a printable name of at most 200 characters, got {shown(result[key])}"
    try:
        task = task_said(result)
    except ValueError as error:
        return str(error)
    figures = [task.result_key(figure) for figure in task.figures]
    details = [task.detail_key(detail, figure) for detail in task.details for figure in task.figures]
    # The last ten epochs need not all have been scored.
    gaps = [task.result_key(figure) for figure in FIGURES_OF_LAST_EPOCHS if figure in task.figures]
    gaps += figures if task.unit != "%" and not is_ranked else []
    gaps = [key for key in gaps if key in result and result[key] is None]
    figures = [key for key in figures if key not in gaps]
    if result.get("selected_on", "test") not in list(SPLIT_TITLES):
        return f"selected_on: expected one of {', '.join(SPLIT_TITLES)}, got {shown(result['selected_on'])}"
    if result.get("status", "finished") != "finished":
        return f"status: expected 'finished', got {shown(result['status'])}"
    optional = [key for key in (*OPTIONAL_NUMBER_KEYS, *details) if result.get(key) is not None]
    for key in (*INTEGER_KEYS, *figures, *optional):
        if not _is_finite(result.get(key)):
            return f"{key}: expected a finite number, got {shown(result.get(key))}"
    for key, least in INTEGER_KEYS.items():
        # Half a seed would be cut to a whole one, and take the place of the run that has it.
        if not isinstance(result[key], int) or result[key] < least:
            return f"{key}: expected an integer of at least {least}, got {shown(result[key])}"
    for key in figures:
        if task.unit == "%" and not 0 <= result[key] <= 100:
            return f"{key}: expected percent, from 0 to 100, got {shown(result[key])}"
    for key in (*INTEGER_KEYS, *figures, *optional):
        if not is_number(result[key]):
            return f"{key}: expected a number from {-LARGEST:g} to {LARGEST:g}, got {shown(result[key])}"
    for key in COST_KEYS:
        if result.get(key) is not None and result[key] < 0:
            return f"{key}: expected a number that is not negative, got {shown(result[key])}"
    for key in ("policy_options", "data_options"):
        if not isinstance(result.get(key) or {}, dict):
            return f"{key}: expected a mapping, got {shown(result[key])}"
    return ""


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def shown(value: object) -> str:
    """A value as an error shows it, of a long one its beginning."""
    told = repr(value)
    return told if len(told) <= 80 else f"{told[:80]} ..."
