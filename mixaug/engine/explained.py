"""One clear line for what Hydra says, on many, of settings that do not compose."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from mixaug.engine.elsewhere import ELSEWHERE
from mixaug.engine.errors import ConfigError
from mixaug.near import SYNONYMS, near

__all__ = ["explained", "no_setting", "on_one_line", "read_overrides", "settings_of"]

#: Arguments of what config files build that the engine hands over itself.
OF_THE_ENGINE = ("num_epochs", "updates_per_epoch", "num_classes", "in_chans")


def on_one_line(error: object) -> str:
    """The text of an error without its line ends; of a file system's error, what was wrong with which path."""
    if isinstance(error, (FileExistsError, NotADirectoryError)) and error.filename:
        return f"cannot write {error.filename}: a folder was expected, and there is a file"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip()) or type(error).__name__


def explained(error: Exception, overrides: Sequence[str], settings: Callable[[], Mapping[str, Any]]) -> str:
    """What came and what was expected, on one line.

    Args:
        error: of Hydra or OmegaConf, raised when ``overrides`` were composed.
        overrides: as given.
        settings: gives all settings that there are, see :func:`settings_of`; asked only where one is unknown.
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
        return f"there is no {group}={choice}; {_question(near(choice, known)) or 'there is ' + ', '.join(known)}"
    for pattern in (
        r"Could not override '([^']+)'\. To append",
        r"Could not delete from config. '([^']+)' does not exist",
    ):
        unknown = re.match(pattern, text)
        if unknown:
            inner = re.search(r"full_key: (\S+)", str(error.__cause__ or ""))
            # A section was given whole, and a part of it does not exist.
            is_whole = inner is not None and inner[1].startswith(f"{unknown[1]}.")
            return no_setting(inner[1] if inner is not None and is_whole else unknown[1], settings())
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
    overrides: Sequence[str],
    groups: Collection[str],
    by_hydra: Callable[[str, list[str]], Any],
    name: str = "train",
) -> dict[str, Any]:
    """All settings of the config files that the overrides choose, by their dotted keys; an empty section is ``{}``."""
    from omegaconf import OmegaConf

    given = [override.partition("=") for override in overrides]
    chosen = ["".join(parts) for parts in given if parts[0] in groups and not parts[2].startswith("{")]
    try:
        composed = by_hydra(name, chosen)
    except Exception:
        composed = by_hydra(name, [])
    settings: dict[str, Any] = {}
    sections: list[tuple[str, Any]] = [("", OmegaConf.to_container(composed))]
    while sections:
        prefix, section = sections.pop()
        if prefix == "hydra.":
            continue
        settings.update(
            {f"{prefix}{key}": value for key, value in section.items() if not (value and _is_section(value))}
        )
        sections += [(f"{prefix}{key}.", value) for key, value in section.items() if value and _is_section(value)]
    return settings


def _is_section(value: Any) -> bool:
    return isinstance(value, dict)


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
        raise ConfigError(explained(error, overrides, dict)) from None


def _groups(overrides: Sequence[str]) -> list[str]:
    return [override.lstrip("+~").partition("=")[0].partition("@")[0] for override in overrides]


def no_setting(key: str, known: Mapping[str, Any]) -> str:
    """What to say of a key that no setting has: the one that was probably meant, or those that there are.

    Args:
        key: dotted.
        known: all settings by their dotted keys, see :func:`settings_of`.
    """
    parents = [key.rsplit(".", depth)[0] for depth in range(1, key.count(".") + 1)]
    if key in known:
        return f"cannot remove the setting {key}, whose value is null"
    values = [parent for parent in parents if parent in known and not _is_section(known[parent])]
    if values:
        return f"there is no setting {key}: {values[0]} is a value and has no settings of its own"
    sections = {name.rsplit(".", depth)[0] for name in known for depth in range(1, name.count(".") + 1)}
    sections |= {name for name, value in known.items() if _is_section(value)}
    section = next((parent for parent in parents if parent in sections), None)
    said = f"there is no setting {key}"
    if section is None:
        first, dot, rest = key.partition(".")
        names = [
            name for name in {**known, **dict.fromkeys(sections)} if "." not in name and (not dot or name in sections)
        ]
        close = [f"{name}{dot}{rest}" for name in near(first, names)]
        meant = ELSEWHERE.get(first) or (_question(close) if close else _elsewhere(key, known))
        return f"{said}; {meant or 'mixaug train --cfg job prints all'}"
    first = key[len(section) + 1 :].partition(".")[0]
    own = {name[len(section) + 1 :].partition(".")[0] for name in known if name.startswith(f"{section}.")}
    further, is_open = _addable(section, known)
    if first in further:
        return f"{said} in the config file; +{key}=... adds it"
    own.discard("_target_")
    # One of the section's own goes before what is not in it.
    told = "" if own.intersection(SYNONYMS.get(first, ())) else ELSEWHERE.get(first, "")
    if f" {section}." in told:
        return f"{said}; {told}"
    names = [*sorted(own), *sorted(further - own)]
    begun = [name for name in names if name.startswith(f"{first}_")][:3]
    misspelt, longer, alike = (
        _question([f"{'' if name in own else '+'}{section}.{name}" for name in found])
        for found in (near(first, names, words=False), begun, near(first, names))
    )
    if hint := misspelt or longer or _elsewhere(first, known) or alike:
        return f"{said}; {hint}"
    shown = ", ".join(f"{section}.{name}" for name in sorted(own))
    target = known.get(f"{section}._target_")
    added = f"+{key}=... " + (f"hands it to {target}" if target else "adds it")
    there = f"{section} has {shown}" if own else "" if is_open else f"the chosen {section} has no settings"
    return "; ".join([said, *filter(None, [there, added if is_open else ""])])


def _addable(section: str, known: Mapping[str, Any]) -> tuple[set[str], bool]:
    """Options that a section's target takes beside those in its file, and whether it may take ones nobody knows of.

    A section that is there to be filled, as that of networks beside the model, takes any name.
    """
    target = known.get(f"{section}._target_")
    if target is None:
        return set(), _is_section(known.get(section))
    settings = {name[len(section) + 1 :]: value for name, value in known.items() if name.startswith(f"{section}.")}
    try:
        offered, is_open = _offered(str(target), settings)
    except Exception:
        # A target that cannot be imported is told of where it is built.
        return set(), True
    return offered - {name.partition(".")[0] for name in settings} - set(OF_THE_ENGINE), is_open


def _offered(target: str, settings: Mapping[str, Any]) -> tuple[set[str], bool]:
    """Names of the options of what a config file builds, without the engine's own, and whether it takes others too."""
    import inspect

    from hydra.utils import get_object

    from mixaug.options import options_of, takes_any_option

    if target == "mixaug.data.load":
        from mixaug.data import options_of_set

        return set(options_of_set(settings["name"])), False
    built = get_object(target)
    options = {name for name, default in options_of(built).items() if default is not inspect.Parameter.empty}
    return options, takes_any_option(built)


def _elsewhere(name: str, known: Mapping[str, Any]) -> str:
    """Settings of the same name in other sections, or in none, as a question."""
    same = [key for key in known if key.rpartition(".")[2] == name]
    return _question(sorted(same)[:3])


def _question(names: Sequence[str]) -> str:
    return f"did you mean {' or '.join(names)}?" if names else ""
