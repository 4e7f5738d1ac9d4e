"""Read the small files of a run folder that anybody may have made: bounded first, parsed then, checked at last.

JSON and YAML of a few bytes can hold a parser for minutes, exhaust its stack or name values that nothing can be done
with. Whatever a file holds, these functions return plain values within the limits below, or raise `DamagedFile`, which
names the file.
"""

from __future__ import annotations

import json
import math
import os
import stat
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

__all__ = [
    "LARGEST",
    "MOST_BYTES",
    "DamagedFile",
    "clean",
    "is_number",
    "is_text",
    "open_ordinary",
    "parse_json",
    "read_config",
    "read_object",
]

MOST_BYTES = 256 * 1024
"""A larger JSON object or config is not read. The engine writes a few thousand bytes."""

MOST_DEPTH = 32
"""A file may nest this many levels of mappings and lists."""

MOST_VALUES = 5000
"""One file may hold this many mappings, lists, keys and plain values."""

MOST_CHARACTERS = 10_000
"""One text may have this many characters."""

LARGEST = 1e15
"""Numbers beyond this are not results: sums of their squares and the digits behind their point would be lost."""

_INTEGERS = 2**63
# These characters reverse the direction of what stands around them, so that a page says something else than its source.
_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class DamagedFile(ValueError):
    """A file of a run folder that cannot be used as it is; the message names it."""


def open_ordinary(path: Path) -> BinaryIO:
    """An ordinary file, open for reading.

    Raises:
        FileNotFoundError: there is nothing of this name.
        DamagedFile: a folder, a pipe, a device, a link that leads nowhere, or a file that cannot be opened.
    """
    try:
        # A pipe would wait for its writer for ever; opened so, it does not, and is refused below.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        if path.is_symlink():
            raise DamagedFile(f"{path.name} is a link to something that is not there") from None
        raise
    except OSError as error:
        raise DamagedFile(f"{path.name} cannot be read: {error.strerror or error}") from error
    # This comes before anything else: a folder cannot be opened as a file.
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DamagedFile(f"{path.name} is not an ordinary file")
    return os.fdopen(descriptor, "rb")


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """The text of an ordinary file.

    Raises:
        FileNotFoundError: there is nothing of this name.
        DamagedFile: no ordinary file, a link that leads to none, one of more than ``most`` bytes, one that cannot be
            read, or not UTF-8.
    """
    with open_ordinary(path) as file:
        try:
            content = file.read(most + 1)
        except OSError as error:
            raise DamagedFile(f"{path.name} cannot be read: {error.strerror or error}") from error
    if len(content) > most:
        raise DamagedFile(f"{path.name} has more than {most} bytes, which no run writes")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DamagedFile(f"{path.name} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def read_object(path: Path, most: int = MOST_BYTES) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        FileNotFoundError: there is nothing of this name.
        DamagedFile: not a JSON object, or one beyond the limits.
    """
    value = parse_json(read_text(path, most), path.name)
    if not isinstance(value, dict):
        raise DamagedFile(f"{path.name}: expected a JSON object, got {type(value).__name__}")
    return value


def parse_json(text: str, name: str) -> Any:
    """A JSON value within the limits.

    Args:
        text: its source.
        name: what an error calls it.

    Raises:
        DamagedFile: not JSON, or beyond the limits.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "too many levels" if isinstance(error, RecursionError) else str(error)
        raise DamagedFile(f"{name} cannot be read: {reason}") from error
    return _within_limits(value, name)


def read_config(path: Path) -> dict[str, Any]:
    """The content of a run's ``config.yaml``: plain values, as the engine writes them.

    A run writes its config resolved. Interpolations, anchors and tags therefore come from elsewhere, and are refused:
    the first can read the environment of whoever opens the folder, the second multiply without bound.

    Raises:
        FileNotFoundError: there is nothing of this name.
        DamagedFile: not a YAML mapping of plain values with text or numbers as keys, or one beyond the limits.
    """
    import yaml

    text = read_text(path)
    try:
        _check_events(yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)), path.name)
        value = yaml.load(text, Loader=yaml_loader())
        value = {} if value is None else value
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        if isinstance(error, DamagedFile):
            raise
        # YAML's own first line says what it was doing, `problem` what went wrong.
        reason = str(getattr(error, "problem", None) or error) or type(error).__name__
        raise DamagedFile(f"{path.name} cannot be read: {clean(reason.splitlines()[0])}") from error
    if not isinstance(value, dict):
        raise DamagedFile(f"{path.name}: expected a mapping, got {type(value).__name__}")
    checked: dict[str, Any] = _within_limits(value, path.name, config=True)
    return checked


@cache
def yaml_loader() -> Any:
    """OmegaConf's loader, which takes 1e-05 for a number, as it was before it was written.

    It reads by libyaml where that is there: OmegaConf's own is written in Python and takes seven times as long.
    """
    import yaml
    from omegaconf._utils import get_yaml_loader

    rules = get_yaml_loader()
    fast = getattr(yaml, "CSafeLoader", None)
    if fast is None:
        return rules

    class Loader(fast):  # type: ignore[misc,valid-type]
        yaml_implicit_resolvers = rules.yaml_implicit_resolvers
        yaml_constructors = rules.yaml_constructors

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key, _ in node.value:
                if key.tag == yaml.resolver.BaseResolver.DEFAULT_SCALAR_TAG:
                    if key.value in seen:
                        said = f"found duplicate key {key.value}"
                        raise yaml.constructor.ConstructorError("", node.start_mark, said, key.start_mark)
                    seen.add(key.value)
            return super().construct_mapping(node, deep=deep)

    return Loader


def _check_events(events: Any, name: str) -> None:
    """Refuse what would take long to build, before anything is built."""
    import yaml

    depth = 0
    for count, event in enumerate(events):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise DamagedFile(f"{name} has an anchor or alias, which no run writes")
        if getattr(event, "tag", None) is not None:
            raise DamagedFile(f"{name} has the tag {clean(str(event.tag))}, which no run writes")
        if depth == 0 and isinstance(event, (yaml.ScalarEvent, yaml.SequenceStartEvent)):
            raise DamagedFile(f"{name}: expected a mapping, got something else")
        if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            depth += 1
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            depth -= 1
        if depth > MOST_DEPTH or count > 2 * MOST_VALUES:
            raise DamagedFile(f"{name} has too many {'levels' if depth > MOST_DEPTH else 'values'}")


def _within_limits(value: Any, name: str, *, config: bool = False) -> Any:
    """The value with every text made fit to be shown; without recursion up to the depth that is allowed.

    Raises:
        DamagedFile: names the file and the limit.
    """
    counted = 0

    def checked(value: Any, depth: int) -> Any:
        nonlocal counted
        counted += 1
        if depth > MOST_DEPTH:
            raise DamagedFile(f"{name} has too many levels: at most {MOST_DEPTH}")
        if counted > MOST_VALUES:
            raise DamagedFile(f"{name} has too many values: at most {MOST_VALUES}")
        if isinstance(value, dict):
            return {known(key, depth): checked(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list):
            return [checked(item, depth + 1) for item in value]
        if isinstance(value, str):
            return text(value)
        if value is None or isinstance(value, (bool, float)):
            return value
        if isinstance(value, int):
            if abs(value) >= _INTEGERS:
                raise DamagedFile(f"{name} has an integer of more than 64 bits")
            return value
        raise DamagedFile(f"{name} has a value of the type {type(value).__name__}, which no run writes")

    def known(key: Any, depth: int) -> Any:
        # A setting may have numbers as keys, as a schedule has for the places of its values.
        if config and depth > 0 and isinstance(key, int | float) and not isinstance(key, bool) and abs(key) <= LARGEST:
            return key
        if not isinstance(key, str):
            raise DamagedFile(f"{name}: expected text{' or numbers' if config and depth else ''} as keys, got {key!r}")
        return text(key)

    def text(value: str) -> str:
        nonlocal counted
        counted += 1
        if len(value) > MOST_CHARACTERS:
            raise DamagedFile(f"{name} has a text of {len(value)} characters: at most {MOST_CHARACTERS}")
        if config and ("${" in value or value == "???"):
            raise DamagedFile(f"{name} has the interpolation {clean(value)[:80]!r}; a run writes its config resolved")
        return clean(value)

    return checked(value, 0)


def clean(text: str) -> str:
    r"""The text with what cannot be shown written out: ``\x1b`` for an escape, ``\ud800`` for half a character.

    Line ends and tabs stay; whoever shows a text in one line joins its words.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character
        if character in "\n\t"
        or (unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp") and character not in _DIRECTIONS)
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def is_number(value: object) -> bool:
    """Whether this is a finite number that can be calculated with; truth values are none."""
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and abs(value) <= LARGEST
        and math.isfinite(value)
    )


def is_text(value: object) -> bool:
    """Whether this can be a name: printable, on one line, neither empty nor longer than 200 characters."""
    return isinstance(value, str) and value.isprintable() and 0 < len(value.strip()) <= len(value) <= 200
