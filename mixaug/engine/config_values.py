"""Checks of single values of a composed config; their errors name the key, what came and what was expected."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from mixaug.engine.errors import ConfigError
from mixaug.near import did_you_mean

__all__ = [
    "check_choice_of",
    "check_integer",
    "check_number",
    "check_numbers",
    "from_text",
    "is_device",
    "shown",
    "to_text",
]


def to_text(settings: Mapping[str, Any]) -> str:
    """Plain settings as a text, the same one for equal settings; :func:`from_text` makes them of it again.

    JSON alone would make texts of the numbers that a mapping may have as its keys, as that of a schedule has.
    """

    def listed(value: Any) -> Any:
        if isinstance(value, Mapping):
            # Keys of several types have no order among themselves.
            pairs = sorted(value.items(), key=lambda pair: (isinstance(pair[0], str), str(pair[0])))
            return {"pairs": [[key, listed(item)] for key, item in pairs]}
        return [listed(item) for item in value] if isinstance(value, list | tuple) else value

    return json.dumps(listed(settings))


def from_text(text: str) -> Any:
    """The settings that :func:`to_text` made a text of."""
    return json.loads(text, object_hook=lambda mapping: dict(mapping["pairs"]))


def check_numbers(config: DictConfig, key: str, *, positive: bool = False, below: float | None = None) -> None:
    """Raise a ConfigError where the setting of a dotted key is neither null nor a list of finite numbers.

    ``below`` is for shares, which are not negative.
    """
    values = OmegaConf.select(config, key)
    if values is None:
        return
    listed = list(values) if isinstance(values, ListConfig) else [None]
    numbers = [float(v) for v in listed if isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)]
    if (
        len(numbers) < len(listed)
        or (positive and min(numbers, default=1.0) <= 0)
        or (below is not None and not all(0 <= number < below for number in numbers))
    ):
        expected = f"null or a list of {'positive ' if positive else ''}numbers"
        expected += "" if below is None else f" from 0, below {below}"
        raise ConfigError(f"{key} must be {expected}, got {shown(values)}")


def is_device(value: object) -> bool:
    """Whether this names a device, ``auto``, ``cpu``, ``cuda`` or ``cuda:<index>``, be it there or not."""
    if not isinstance(value, str):
        return False
    kind, _, index = value.partition(":")
    return value in ("auto", "cpu", "cuda") or (kind == "cuda" and index.isdecimal())


def check_integer(config: DictConfig, key: str, *, minimum: int, optional: bool = False) -> None:
    """Raise a ConfigError where the setting of a dotted key is no integer of at least ``minimum``."""
    value = OmegaConf.select(config, key)
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigError(f"{key} must be an integer of at least {minimum}, got {value!r}")


def check_number(
    config: DictConfig,
    key: str,
    *,
    minimum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    optional: bool = False,
) -> None:
    """Raise a ConfigError where the setting of a dotted key is no finite number within the bounds."""
    value = OmegaConf.select(config, key)
    if value is None and optional:
        return
    bounds = [("at least", minimum), ("above", above), ("below", below)]
    expected = " and ".join(f"{word} {bound}" for word, bound in bounds if bound is not None)
    right_type = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if (
        not right_type
        or (minimum is not None and value < minimum)
        or (above is not None and value <= above)
        or (below is not None and value >= below)
    ):
        raise ConfigError(f"{key} must be a number {expected}, got {value!r}")


def shown(value: object) -> str:
    """A value as a config file writes it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def check_choice_of(config: DictConfig, key: str, allowed: Sequence[str | None]) -> None:
    """Raise a ConfigError where the setting of a dotted key is none of ``allowed``."""
    value = OmegaConf.select(config, key)
    if value not in allowed:
        raise ConfigError(
            f"{key} must be one of {', '.join(map(shown, allowed))}, got {value!r}"
            f"{did_you_mean(value, [one for one in allowed if one])}"
        )
