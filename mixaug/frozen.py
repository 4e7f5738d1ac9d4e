"""Dataclasses that hold tensors: how they are printed and moved, and how others convert them field by field.

Lightning does the latter for `precision="bf16-true"`.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

FrozenT = TypeVar("FrozenT", bound="ConvertibleFields")

#: Entries of a list or mapping that are printed one by one.
MOST_ENTRIES = 8


class BriefRepr:
    """Base of a dataclass that prints dtype, shape and device of its tensors and none of their values.

    Values of a batch fill a screen, and those on a GPU would have to be waited for. Fields that are None or empty are
    left out.
    """

    def __init_subclass__(cls, **further: Any) -> None:
        super().__init_subclass__(**further)
        if "__repr__" not in vars(cls):
            # The decorator of dataclasses makes one of its own where a class has none itself.
            cls.__repr__ = cls.__repr__  # type: ignore[method-assign]

    def __repr__(self) -> str:
        fields = [each.name for each in dataclasses.fields(self) if each.repr]  # type: ignore[arg-type]
        values = [(name, getattr(self, name)) for name in fields]
        shown = [f"{name}={_brief(value)}" for name, value in values if not _is_nothing(value)]
        return f"{type(self).__name__}({', '.join(shown)})"


def _is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, (Mapping, list, tuple)) and len(value) == 0)


def _brief(value: Any) -> str:
    if isinstance(value, BriefRepr):
        return type(value).__name__
    if isinstance(value, Tensor):
        where = "" if value.device.type == "cpu" else f" {value.device}"
        shape = "nested" if value.is_nested else tuple(value.shape)
        return f"{str(value.dtype).removeprefix('torch.')} {shape}{where}"
    if isinstance(value, (Mapping, list, tuple)) and len(value) > MOST_ENTRIES:
        return f"{type(value).__name__} of {len(value)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_brief(entry)}" for key, entry in value.items()) + "}"
    if type(value) is list or type(value) is tuple:
        inner = ", ".join(map(_brief, value)) + ("," if type(value) is tuple and len(value) == 1 else "")
        return f"[{inner}]" if type(value) is list else f"({inner})"
    return repr(value)


class ConvertibleFields(BriefRepr):
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


BatchT = TypeVar("BatchT", bound="NoTensor")

ROUNDED = (
    "labels and their weights are never rounded; dataclasses.replace(batch, inputs=batch.inputs.to(dtype)) converts "
    "the inputs"
)
#: What a tensor says of itself.
PLACES = ("device", "dtype", "shape", "ndim", "size", "is_cuda")
#: Methods of a tensor that convert it.
DTYPES = ("half", "float", "double", "bfloat16", "type")


class NoTensor:
    """Refuses to stand where a tensor or a tuple is expected, and says what goes there."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.__eq__, Tensor.__ne__):
            return NotImplemented
        name = getattr(func, "__name__", func)
        raise TypeError(f"torch's {name} expects tensors and got a {cls.__name__}: {cls._instead()}")

    def __getattr__(self, name: str) -> Any:
        # Modules such as Flatten and BatchNorm call methods of their input before any function of torch.
        if name.startswith("__") or hasattr(type(self), name) or not hasattr(Tensor, name):
            # Asked again, a property that failed inside says so, and what is not there at all is told as ever.
            return object.__getattribute__(self, name)
        kind = type(self).__name__
        if name in ("cuda", "cpu"):
            raise AttributeError(f"a {kind} is no tensor and has no {name!r}: move it by .to({name!r})")
        if name in PLACES:
            raise AttributeError(f"a {kind} is no tensor and has no {name!r}: that of its inputs is .inputs.{name}")
        if name in DTYPES:
            raise AttributeError(f"a {kind} is no tensor and has no {name!r}: {ROUNDED}")
        raise AttributeError(f"a {kind} is no tensor and has no {name!r}: {self._instead()}")

    def __getitem__(self, index: Any) -> Any:
        # Unpacking ends here too. An __iter__ that raises would make it an iterable to those who ask.
        raise TypeError(f"a {type(self).__name__} is neither indexed nor unpacked: {self._instead()}")

    @classmethod
    def _instead(cls) -> str:
        return "its tensors are .inputs and .labels"

    def to(
        self: BatchT,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        non_blocking: bool = False,
    ) -> BatchT:
        """The same batch on another device.

        Raises:
            TypeError: no device, or a dtype or a tensor in its place or beside it.
        """
        if device is None or dtype is not None or isinstance(device, torch.dtype | Tensor):
            wrong = dtype if dtype is not None else "a tensor" if isinstance(device, Tensor) else device
            raise TypeError(f"{type(self).__name__}.to expects a device alone, got {wrong}: {ROUNDED}")
        return self.map_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self: BatchT) -> BatchT:
        """The same batch in page-locked memory; ``torch.utils.data.DataLoader`` calls this."""
        return self.map_tensors(lambda tensor: tensor.pin_memory())

    def map_tensors(self: BatchT, move: Callable[[Tensor], Tensor]) -> BatchT:
        """The same batch with ``move`` applied to every tensor in it, such as one that copies to a device."""
        raise NotImplementedError
