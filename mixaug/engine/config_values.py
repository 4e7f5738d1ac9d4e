"""Checks of single values of a composed config; their errors name the key, what came and what was expected."""

from __future__ import annotations

import math
from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from mixaug.engine.errors import ConfigError

__all__ = ["check_choice_of", "check_integer", "check_number", "is_device", "shown"]


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
        raise ConfigError(f"{key} must be one of {', '.join(map(shown, allowed))}, got {value!r}")
