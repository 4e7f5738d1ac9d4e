"""What a section is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch


class Row(NamedTuple):
    """One figure: the empty value stands for one that could not be taken, which the note explains."""

    section: str
    what: str
    variant: str
    value: float | str
    unit: str
    note: str = ""


@dataclass(frozen=True)
class Setting:
    """Where and how a section runs.

    Attributes:
        device: cuda, or cpu in a rehearsal.
        rehearse: the smallest sizes, so that every line of the section runs in seconds.
        out: folder for figures and logs.
        data: folder with CIFAR-100 as sheets.
        earlier: figures of the sections before, of this call or of an earlier one.
        seconds: after which the section is ended.
    """

    device: torch.device
    rehearse: bool
    out: Path
    data: Path
    earlier: tuple[Row, ...] = ()
    seconds: float = 600.0

    def pick(self, real: int, tiny: int) -> int:
        """A size for a GPU, or one for a rehearsal."""
        return tiny if self.rehearse else real

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Section:
    """A part of the run in a process of its own.

    Attributes:
        part: 1 or 2, the call it belongs to.
        seconds: after which it is ended; what it has given by then stays.
        timed: whether it takes times, and so runs alone. Those that do not run at once, before all others.
    """

    name: str
    part: int
    seconds: float
    run: Callable[[Setting], Iterator[Row]]
    timed: bool = True
