"""One clear line for what Hydra says, on many, of settings that do not compose."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

from mixaug.engine.errors import ConfigError

__all__ = ["explained", "on_one_line", "read_overrides", "settings_of"]


def on_one_line(error: object) -> str:
    """The text of an error without its line ends; of a file system's error, what was wrong with which path."""
    if isinstance(error, (FileExistsError, NotADirectoryError)) and error.filename:
        return f"cannot write {error.filename}: a folder was expected, and there is a file"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip()) or type(error).__name__


def explained(error: Exception, overrides: Sequence[str], settings: Callable[[], Collection[str]]) -> str:
    """What came and what was expected, on one line.

    Args:
        error: of Hydra or OmegaConf, raised when ``overrides`` were composed.
        overrides: as given.
        settings: gives all settings that there are by their dotted keys; asked only where one is unknown.
    """
    from hydra.errors import MissingConfigException, OverrideParseException

    text = " ".join(f"{error}".split())
    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override!r}: expected key=value, such as policy=cutmix or epochs=10"
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        for parent in _groups(overrides):
            if error.missing_cfg_file.startswith(f"{parent}/"):
                group, choice = parent, error.missing_cfg_file[len(parent) + 1 :]
        known = list(error.options)
        return f"there is no {group}={choice}; {_closest(choice, known) or 'there is ' + ', '.join(known)}"
    for pattern in (
        r"Could not override '([^']+)'\. To append",
        r"Could not delete from config. '([^']+)' does not exist",
    ):
        unknown = re.match(pattern, text)
        if unknown:
            inner = re.search(r"full_key: (\S+)", str(error.__cause__ or ""))
            # A section was given whole, and a part of it does not exist.
            is_whole = inner is not None and inner[1].startswith(f"{unknown[1]}.")
            return _no_setting(inner[1] if inner is not None and is_whole else unknown[1], settings())
    several = re.match(r"(?:Ambiguous value for argument|Sweep parameters) '(.*?)'(?: requires|\s1\.)", text)
    if several:
        key = several[1].partition("=")[0]
        return (
            f"{several[1]} gives several values: add --multirun to train with one after the other, or use "
            f"mixaug benchmark; one list is {key}=[a,b]"
        )
    if isinstance(error, ValueError) and text.startswith("Config group override must be"):
        numbers = [
            override for override in overrides if re.fullmatch(r"[\w/@]*=[-+\d.eE_]*|[\w/@]+=(true|false)", override)
        ]
        return f"cannot read {' or '.join(numbers) or list(overrides)}: a group takes the name of one of its files"
    cause = f" ({' '.join(str(error.__cause__).split())})" if error.__cause__ else ""
    return f"cannot compose the configuration from {list(overrides)}: {text}{cause}"


def settings_of(
    overrides: Sequence[str], groups: Collection[str], by_hydra: Callable[[str, list[str]], Any]
) -> list[str]:
    """All settings by their dotted keys, without their sections, of the config files that the overrides choose."""
    from omegaconf import OmegaConf

    try:
        composed = by_hydra("train", [override for override in overrides if override.partition("=")[0] in groups])
    except Exception:
        composed = by_hydra("train", [])
    keys: list[str] = []
    sections: list[tuple[str, Any]] = [("", OmegaConf.to_container(composed))]
    while sections:
        prefix, section = sections.pop()
        if prefix == "hydra.":
            continue
        keys += [f"{prefix}{key}" for key, value in section.items() if not isinstance(value, dict)]
        sections += [(f"{prefix}{key}.", value) for key, value in section.items() if isinstance(value, dict)]
    return keys


def read_overrides(overrides: Sequence[str]) -> list[Any]:
    """The overrides as Hydra's own parser reads them.

    Raises:
        ConfigError: one that cannot be read.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return list(OverridesParser.create().parse_overrides(list(overrides)))
    except HydraException as error:
        raise ConfigError(explained(error, overrides, tuple)) from None


def _groups(overrides: Sequence[str]) -> list[str]:
    return [override.lstrip("+~").partition("=")[0].partition("@")[0] for override in overrides]


def _no_setting(key: str, known: Collection[str]) -> str:
    parents = [key.rsplit(".", depth)[0] for depth in range(1, key.count(".") + 1)]
    if key in known:
        return f"cannot remove the setting {key}, whose value is null"
    values = [parent for parent in parents if parent in known]
    if values:
        return f"there is no setting {key}: {values[0]} is a value and has no settings of its own"
    sections = {name.rsplit(".", depth)[0] for name in known for depth in range(1, name.count(".") + 1)}
    hint = _closest(key, [*known, *sections])
    siblings = sorted(name for name in known if parents and name.startswith(f"{parents[0]}."))
    if not hint and siblings:
        hint = f"{parents[0]} has {', '.join(siblings)}"
    added = f"; +{key}=... adds one" if siblings else ""
    return f"there is no setting {key}; {hint or 'mixaug train --cfg job prints all'}{added}"


def _closest(given: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(given, known, n=3, cutoff=0.7)
    return f"did you mean {' or '.join(close)}?" if close else ""
