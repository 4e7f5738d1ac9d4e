"""Options of policies: what a class or a function takes, and how a class says so."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, ClassVar

from mixaug.near import did_you_mean

_GIVEN = "_given_options"
"""Where an object keeps the names of the options that it was made with."""


class Offering:
    """Base of a family of classes whose options are known before an object is made.

    What ``__init__`` takes by name are a class's options. Where it ends in ``**shared``, by this name, and hands that
    on, the options of its base count too, up to the root of the family, whose own ``**shared`` are the entries of
    ``shared_defaults``. A class says in ``shared_defaults`` which of those defaults it changes, and in ``not_offered``
    which options of its bases it does not offer, because they would have no effect. Both add to what the bases say.

    An option and its attribute get a new name by an entry in ``renamed``, old to new. The old name then still works,
    as an argument and as an attribute, with a DeprecationWarning; it is not among the options.

    Raises:
        TypeError: when an object is made, an option that is not offered, or one that comes under both its names.
    """

    #: Old names of options and attributes, and their present ones; a subclass keeps those of its bases.
    renamed: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls, **further: Any) -> None:
        super().__init_subclass__(**further)
        for old, new in vars(cls).get("renamed", {}).items():
            setattr(cls, old, _renamed_attribute(old, new))
        if "__init__" in vars(cls) and renamed_of(cls):
            cls.__init__ = _with_current_names(cls, cls.__init__)  # type: ignore[method-assign]

    def __new__(cls, *positional: Any, **options: Any) -> Any:
        offered, takes_more = _options_of_class(cls)
        renamed = renamed_of(cls)
        unknown = [name for name in options if name not in offered and renamed.get(name) not in offered]
        if unknown and not takes_more:
            raise TypeError(unknown_option(cls.__name__, unknown[0], offered))
        made = super().__new__(cls)
        key: Any = cls
        # Not as an attribute: modules take none before their own `__init__`.
        vars(made)[_GIVEN] = {*options, *_names_of_positional(key)[: len(positional)]}
        return made


def options_of(target: Callable[..., Any]) -> dict[str, Any]:
    """Options of a class or function and their defaults; ``inspect.Parameter.empty`` where there is none.

    See :class:`Offering` for what counts as an option of a class.
    """
    if inspect.isclass(target):
        return dict(_options_of_class(target)[0])
    return {one.name: one.default for one in inspect.signature(target).parameters.values() if _named(one)}


def documented_options(target: Callable[..., Any]) -> dict[str, str]:
    """What the docstrings say of each option: of the class itself first, then of its bases, on one line each.

    Only sections ``Args:`` are read, as this project writes them: ``name: text``, further lines indented deeper.
    """
    said: dict[str, str] = {}
    pointers: dict[str, str] = {}
    for one in getattr(target, "__mro__", (target,)):
        if not vars(one).get("__doc__") and one is not target:
            continue
        entries: list[str] = []
        for line in (inspect.getdoc(one) or "").partition("\nArgs:\n")[2].splitlines():
            if line and not line.startswith(" "):
                # The next section begins.
                break
            if line.startswith(" " * 5) and entries:
                entries[-1] += f" {line.strip()}"
            elif line.strip():
                entries.append(line.strip())
        for entry in entries:
            names, _, text = entry.partition(": ")
            # What is said elsewhere is read there, where a base says it.
            where = pointers if text.startswith("see ") else said
            for name in names.split(", "):
                where.setdefault(name, text)
    return {**pointers, **said}


def is_chosen(made: object, name: str, value: Any) -> bool:
    """Whether who made an object chose this value of an option.

    The default says nothing, for configs spell it out, and neither does a value that a subclass hands to its base.
    """
    if name not in vars(made).get(_GIVEN, ()):
        return False
    try:
        return callable(value) or bool(value != options_of(type(made)).get(name, inspect.Parameter.empty))
    except (ValueError, RuntimeError):
        # An array or tensor of several numbers is none of the defaults.
        return True


def check_read(made: object, reason: str, **values: Any) -> None:
    """Refuse options that somebody chose though nothing reads them, see :func:`is_chosen`.

    Args:
        made: the object that has the options.
        reason: why nothing reads them, as the end of a sentence that begins with its class.
        values: by the names of the options.

    Raises:
        ValueError: a value that was chosen.
    """
    chosen = [f"{name}={value!r}" for name, value in values.items() if is_chosen(made, name, value)]
    if chosen:
        have = "has" if len(chosen) == 1 else "have"
        raise ValueError(f"{type(made).__name__} {reason}, so {' and '.join(chosen)} {have} no effect: leave it out")


def takes_any_option(target: Callable[..., Any]) -> bool:
    """Whether a class or function takes options beyond those of :func:`options_of`."""
    if inspect.isclass(target):
        return _options_of_class(target)[1]
    return any(one.kind is one.VAR_KEYWORD for one in inspect.signature(target).parameters.values())


def unknown_option(what: str, name: str, offered: Iterable[str]) -> str:
    """What to say of an option that ``what`` does not have: the one that was probably meant, and all that there are."""
    names = list(offered)
    meant = did_you_mean(name, names)
    return f"{what} has no option {name!r}{f'{meant} Its' if meant else '; its'} options are {names}"


def shared_defaults_of(cls: type) -> dict[str, Any]:
    """The ``shared_defaults`` of a class and its bases in one; a class goes before its bases."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        found.update(vars(base).get("shared_defaults", {}))
    return found


def renamed_of(target: Callable[..., Any]) -> dict[str, str]:
    """The ``renamed`` of a class and its bases in one; empty for a function."""
    renamed: dict[str, str] = {}
    for base in reversed(getattr(target, "__mro__", ())):
        renamed.update(vars(base).get("renamed", {}))
    return renamed


def current_options(
    what: str, options: Mapping[str, Any], renamed: Mapping[str, str], *, stacklevel: int = 3
) -> dict[str, Any]:
    """Options under their present names, with a DeprecationWarning for each old one.

    Args:
        what: named in messages.
        options: by their old or present names.
        renamed: old names to present ones, see :func:`renamed_of`.
        stacklevel: of the warning, counted from here; 3 is the caller of the caller.

    Raises:
        TypeError: an option that comes under both its names.
    """
    current: dict[str, Any] = {}
    for name, value in options.items():
        new = renamed.get(name, name)
        if new != name:
            if new in options:
                raise TypeError(f"{what} got {new!r} and {name!r}, which is its old name: leave out {name!r}")
            warnings.warn(
                f"{what}: the option {name!r} is now called {new!r}; the old name goes in the next release",
                DeprecationWarning,
                stacklevel=stacklevel,
            )
        current[new] = value
    return current


def _with_current_names(cls: type, init: Callable[..., None]) -> Callable[..., None]:
    # A subclass that takes an old name itself means its own option by it.
    own = inspect.signature(init).parameters
    renamed = {old: new for old, new in renamed_of(cls).items() if old not in own}

    @functools.wraps(init)
    def wrapper(self: Any, *positional: Any, **options: Any) -> None:
        init(self, *positional, **current_options(cls.__name__, options, renamed))

    return wrapper


def _renamed_attribute(old: str, new: str) -> property:
    def warn(what: Any) -> None:
        warnings.warn(
            f"{type(what).__name__}.{old} is now called {new}; the old name goes in the next release",
            DeprecationWarning,
            stacklevel=3,
        )

    def read(self: Any) -> Any:
        warn(self)
        return getattr(self, new)

    def write(self: Any, value: Any) -> None:
        warn(self)
        setattr(self, new, value)

    return property(read, write, doc=f"The old name of ``{new}``.")


def _options_of_class(cls: type) -> tuple[dict[str, Any], bool]:
    key: Any = cls
    return _read_options(key)


@lru_cache(maxsize=512)
def _read_options(cls: Any) -> tuple[dict[str, Any], bool]:
    """Options of a class by name, and whether its ``__init__`` takes more than can be known."""
    found: dict[str, Any] = {}
    hidden: set[str] = set()
    first = True
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
        for one in parameters:
            if _named(one) and one.name not in hidden and (first or one.default is not one.empty):
                found.setdefault(one.name, one.default)
        further = next((one.name for one in parameters if one.kind is one.VAR_KEYWORD), None)
        if further != "shared":
            return found, further is not None
        # What a class takes by name it offers, whatever its bases do not.
        hidden = {name for one in cls.__mro__ for name in vars(one).get("not_offered", ())} - set(found)
        first = False
        if Offering in base.__bases__:
            break
    shared = {name: value for name, value in shared_defaults_of(cls).items() if name not in hidden}
    return {**found, **{name: value for name, value in shared.items() if name not in found}}, False


@lru_cache(maxsize=512)
def _names_of_positional(cls: Any) -> tuple[str, ...]:
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    return tuple(one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD)


def _named(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
