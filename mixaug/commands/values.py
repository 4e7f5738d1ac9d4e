"""Kinds of values on a command line: what reads one says what was expected, before anything is run."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

__all__ = ["device", "dotted_name", "number", "path", "seed", "text", "whole"]

#: torch's generators take seeds below this.
SEEDS = 2**63


def text(given: str) -> str:
    """Anything but an empty text, which an unset variable of a shell leaves."""
    if not given.strip():
        raise argparse.ArgumentTypeError(f"expected a value, got {given!r}")
    return given


def path(given: str) -> Path:
    """The path of a file or folder; an empty one would stand for the folder that the command is called in."""
    if not given.strip():
        raise argparse.ArgumentTypeError(f"expected a path, got {given!r}; the present folder is .")
    return Path(given)


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """Whole numbers from one to another, None for no end."""

    def number(given: str) -> int:
        try:
            value = int(given)
        except ValueError:
            value = least - 1
        if value < least or (most is not None and value > most):
            to = "of at least" if most is None else "from"
            end = "" if most is None else f" to {most}"
            raise argparse.ArgumentTypeError(f"expected a whole number {to} {least}{end}, got {given!r}")
        return value

    return number


def number(least: float) -> Callable[[str], float]:
    """Finite numbers from one on."""

    def read(given: str) -> float:
        try:
            value = float(given)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= least):
            raise argparse.ArgumentTypeError(f"expected a number of at least {least:g}, got {given!r}")
        return value

    return read


def seed(given: str) -> int:
    """A seed that every generator takes."""
    return whole(0, SEEDS - 1)(given)


def device(given: str) -> str:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:<index>``."""
    from mixaug.engine.config_values import is_device

    if is_device(given):
        return given
    raise argparse.ArgumentTypeError(f"expected auto, cpu, cuda or cuda:<index>, got {given!r}")


def dotted_name(given: str) -> str:
    """The full name of a class or function, such as ``my_package.MyModel``."""
    parts = given.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise argparse.ArgumentTypeError(f"expected a full name such as my_package.MyModel, got {given!r}")
    return given
