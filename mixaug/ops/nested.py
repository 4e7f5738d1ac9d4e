"""Batches that are dicts, lists or tuples: what is done to the tensors in them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor


def map_tensors(inputs: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """``change`` applied to every tensor of a dict, list or (named) tuple; the rest stays."""
    if isinstance(inputs, Tensor):
        return change(inputs)
    if isinstance(inputs, Mapping):
        changed = {key: map_tensors(value, change) for key, value in inputs.items()}
        # The outputs of Hugging Face models are both a dict and a dataclass.
        return type(inputs)(**changed) if dataclasses.is_dataclass(inputs) else mapping_like(inputs, changed)
    if isinstance(inputs, (list, tuple)):
        return rebuild(inputs, [map_tensors(value, change) for value in inputs])
    return inputs


def mapping_like(like: Mapping[Any, Any], values: dict[Any, Any]) -> Any:
    """``values`` in a mapping of the type of ``like``, with whatever else it holds.

    A type that can neither be changed nor made of a dict, such as a proxy of one, gives a dict.
    """
    if type(like) is dict:
        return values
    if isinstance(like, MutableMapping):
        # A copy keeps what a new one would not have, such as the default of a defaultdict.
        made = copy.copy(like)
        for key in [key for key in like if key not in values]:
            del made[key]
        made.update(values)
        return made
    try:
        return type(like)(values)  # type: ignore[call-arg]
    except TypeError:
        return values


def first_tensor(inputs: Any) -> Tensor:
    """The first tensor of a dict, list or tuple; a tensor itself.

    Raises:
        TypeError: there is none.
    """
    if isinstance(inputs, Tensor):
        return inputs
    values = inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, (list, tuple)) else ()
    for value in values:
        if isinstance(value, Tensor):
            return value
    raise TypeError(
        f"expected a tensor, or a dict, list or tuple that holds one, got {type(inputs).__name__}; nested inputs are "
        "not supported"
    )


def logits_of(outputs: Any) -> Any:
    """The entry or attribute ``logits`` of a model's outputs; outputs without one, such as a tensor, as they are."""
    if isinstance(outputs, (Tensor, tuple, list)):
        return outputs
    if isinstance(outputs, Mapping):
        return outputs.get("logits", outputs)
    return getattr(outputs, "logits", outputs)


def concatenated(parts: Sequence[Any]) -> Any:
    """Tensors, or dicts, lists or tuples of tensors of one structure, joined along the first axis."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    if isinstance(first, Mapping):
        return mapping_like(first, {key: concatenated([part[key] for part in parts]) for key in first})
    if isinstance(first, (list, tuple)):
        return rebuild(first, [concatenated(values) for values in zip(*parts, strict=True)])
    raise TypeError(f"inputs of several batches are joined where they are tensors, got {type(first).__name__}")


def rebuild(like: Any, values: list[Any]) -> Any:
    """``values`` in a list, tuple or named tuple of the type of ``like``."""
    if hasattr(like, "_fields"):
        return type(like)(*values)
    return type(like)(values)


def entries(what: str, inputs: Any, keys: Sequence[Any] | None) -> dict[Any, Tensor]:
    """The tensors that ``keys`` names in a dict, list or tuple, the images first."""
    if not isinstance(inputs, (Mapping, list, tuple)):
        raise TypeError(f"{what} expects a tensor, dict, list or tuple of tensors, got {type(inputs).__name__}")
    known = list(inputs) if isinstance(inputs, Mapping) else list(range(len(inputs)))
    if not keys or isinstance(keys, str):
        tensors = [key for key in known if isinstance(inputs[key], Tensor)]
        if not tensors:
            held = sorted({type(inputs[key]).__name__ for key in known})
            raise TypeError(
                f"{what} expects a tensor, dict, list or tuple of tensors, got {type(inputs).__name__} of "
                f"{' and '.join(held) or 'nothing'}; nested inputs are not supported"
            )
        raise ValueError(f"{what}: name the entries to mix, images first, as in keys={tensors[:1]}; got keys={keys!r}")
    missing = [key for key in keys if key not in known]
    if missing:
        raise ValueError(f"{what}: keys names {missing[0]!r}, but the batch has {known}")
    found = {key: inputs[key] for key in keys}
    for key, value in found.items():
        if not isinstance(value, Tensor):
            nested = "; nested inputs are not supported" if isinstance(value, (Mapping, list, tuple)) else ""
            raise TypeError(f"{what} expects entry {key!r} as a tensor, got {type(value).__name__}{nested}")
    return found


def replaced(inputs: Any, done: dict[Any, Tensor]) -> Any:
    """A dict, list or tuple with some of its entries replaced."""
    if isinstance(inputs, Mapping):
        return mapping_like(inputs, {key: done.get(key, value) for key, value in inputs.items()})
    return rebuild(inputs, [done.get(index, value) for index, value in enumerate(inputs)])
