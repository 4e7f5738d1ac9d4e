"""Options of policies: what a class or a function takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def options_of(target: Callable[..., Any]) -> dict[str, Any]:
    """Options of a class or function and their defaults; ``inspect.Parameter.empty`` where there is none.

    A class whose ``__init__`` ends in ``**shared`` hands that on to its base: what the base has defaults for are its
    own options too.
    """
    makers: list[Callable[..., Any]] = [target]
    if inspect.isclass(target):
        makers = [vars(base)["__init__"] for base in target.__mro__ if "__init__" in vars(base)]
    found: dict[str, Any] = {}
    for maker in makers:
        known = list(inspect.signature(maker).parameters.values())[1 if inspect.isclass(target) else 0 :]
        for parameter in known:
            named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            if named and (maker is makers[0] or parameter.default is not parameter.empty):
                found.setdefault(parameter.name, parameter.default)
        if not any(parameter.kind is parameter.VAR_KEYWORD and parameter.name == "shared" for parameter in known):
            break
    return found
