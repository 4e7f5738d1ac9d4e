"""Options of policies: what a class or a function takes, and how a class says so."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any


class Offering:
    """Base of a family of classes whose options are known before an object is made.

    What ``__init__`` takes by name are a class's options. Where it ends in ``**shared``, by this name, and hands that
    on, the options of its base count too, up to the root of the family, whose own ``**shared`` are the entries of
    ``shared_defaults``. A class says in ``shared_defaults`` which of those defaults it changes, and in ``not_offered``
    which options of its bases it does not offer, because they would have no effect. Both add to what the bases say.

    Raises:
        TypeError: when an object is made, an option that is not offered.
    """

    def __new__(cls, *positional: Any, **options: Any) -> Any:
        offered, takes_more = _options_of_class(cls)
        unknown = [name for name in options if name not in offered]
        if unknown and not takes_more:
            raise TypeError(f"{cls.__name__} has no option {unknown[0]!r}; its options are {list(offered)}")
        return super().__new__(cls)


def options_of(target: Callable[..., Any]) -> dict[str, Any]:
    """Options of a class or function and their defaults; ``inspect.Parameter.empty`` where there is none.

    See :class:`Offering` for what counts as an option of a class.
    """
    if inspect.isclass(target):
        return dict(_options_of_class(target)[0])
    return {one.name: one.default for one in inspect.signature(target).parameters.values() if _named(one)}


def shared_defaults_of(cls: type) -> dict[str, Any]:
    """The ``shared_defaults`` of a class and its bases in one; a class goes before its bases."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        found.update(vars(base).get("shared_defaults", {}))
    return found


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


def _named(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
