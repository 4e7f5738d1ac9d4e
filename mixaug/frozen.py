"""Frozen dataclasses that others convert field by field, as Lightning does for `precision="bf16-true"`."""

from __future__ import annotations

import copy
import dataclasses
import functools
from typing import Any, ClassVar, TypeVar

FrozenT = TypeVar("FrozenT", bound="ConvertibleFields")


class ConvertibleFields:
    """Base of a frozen dataclass whose copy takes converted values of some fields and leaves all others as they are.

    Who converts a dataclass asks for a deep copy that shares all fields, and sets them one after the other.
    """

    #: Names of the fields that may be converted to another dtype.
    convertible: ClassVar[tuple[str, ...]] = ()

    def __deepcopy__(self: FrozenT, memo: dict[int, Any]) -> FrozenT:
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}  # type: ignore[arg-type]
        shares_all = all(id(value) in memo and memo[id(value)] is value for value in values.values())
        kind: Any = type(self)
        made: FrozenT = object.__new__(_open_class(kind) if values and shares_all else kind)
        for name, value in values.items():
            object.__setattr__(made, name, value if shares_all else copy.deepcopy(value, memo))
        return made


@functools.cache
def _open_class(frozen: Any) -> Any:
    """The class of a copy that is being filled: with its last field set it is frozen again."""
    last = dataclasses.fields(frozen)[-1].name

    def set_field(self: Any, name: str, value: Any) -> None:
        if name in frozen.convertible:
            object.__setattr__(self, name, value)
        if name == last:
            object.__setattr__(self, "__class__", frozen)

    return type(frozen.__name__, (frozen,), {"__setattr__": set_field})
