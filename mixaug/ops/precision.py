"""Where autocast has a say: in networks, not in what is drawn of them.

Mixing computes in the dtypes that it names: rounded to half precision, positions and sums over pixels are wrong, and
torch has no transforms of complex bfloat16 numbers at all. So :class:`mixaug.Policy` draws and applies its plans in
:func:`full_precision`, whatever surrounds the call, and the passes of networks inside of that go back to
:func:`callers_precision`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch

# Each thread has its own: two models may train in two threads.
_callers = threading.local()


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Without autocast on this device; nothing, and next to no time, where it is off already."""
    # A device without autocast, such as "meta", refuses the question.
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return contextlib.nullcontext()
    return _without_autocast(device.type)


@contextlib.contextmanager
def _without_autocast(kind: str) -> Iterator[None]:
    before = getattr(_callers, "autocast", None)
    _callers.autocast = (kind, torch.get_autocast_dtype(kind))
    try:
        with torch.autocast(kind, enabled=False):
            yield
    finally:
        _callers.autocast = before


def callers_precision(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The autocast that :func:`full_precision` switched off, for a pass of a network inside of it."""
    found = getattr(_callers, "autocast", None)
    if found is None or found[0] != device.type:
        return contextlib.nullcontext()
    return torch.autocast(found[0], found[1])
