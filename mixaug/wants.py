"""What an objective asks for beside the batch, and who can bring it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Wants", "check_there"]


@dataclass(frozen=True)
class Wants:
    """What an objective asks for beside the batch, by name.

    Attributes:
        views: other augmentations of the same samples.
        streams: batches from other sources.
        networks: networks beside the model.
        metadata: per-sample tensors.
        trained: those of the networks that a term of the objective trains; a frozen one is refused.
    """

    views: tuple[str, ...] = ()
    streams: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    metadata: tuple[str, ...] = ()
    trained: tuple[str, ...] = ()


def check_there(kind: str, name: str, there: Mapping[str, Any]) -> None:
    """Raise where nobody brings what an objective wants, and say who can."""
    if name in there:
        return
    way_out = {
        "networks": f"MixStep(..., networks={{{name!r}: ...}}) with one of mixaug.networks",
        "views": f"step(Batch(inputs, labels, views={{{name!r}: ...}})), another augmentation of the same samples",
        "streams": f"step(Batch(inputs, labels, streams={{{name!r}: Batch(...)}})), a batch of another source",
        "metadata": f"step(Batch(inputs, labels, metadata={{{name!r}: ...}})), a tensor with a row for each sample",
    }[kind]
    raise ValueError(f"the objective wants {name!r} of {kind}, there are {sorted(there)}: pass {way_out}")
