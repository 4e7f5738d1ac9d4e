"""What a model says of a batch: saliency, class activation, attention, features.

:class:`Signals` are given tensors; :class:`ModelSignals` takes them from a model, lazily and each at most once per
batch; :class:`MixedSignals` is what the mixed pass itself showed, through hooks. A policy asks all of them the same
questions.
"""

import warnings
from typing import Any

from mixaug.signals.backbone import is_compiled
from mixaug.signals.gradients import early_backward, half_scale
from mixaug.signals.mixed import MixedSignals
from mixaug.signals.model import CleanSignals, Loss, ModelSignals, clean_cross_entropy, model_of, resolve
from mixaug.signals.recorder import BlockAttention, Recorder, check_parts
from mixaug.signals.tensors import Mode, Signals, as_grid

__all__ = [
    "BlockAttention",
    "CleanSignals",
    "Loss",
    "MixedSignals",
    "Mode",
    "ModelSignals",
    "Recorder",
    "Signals",
    "as_grid",
    "check_parts",
    "clean_cross_entropy",
    "early_backward",
    "half_scale",
    "is_compiled",
    "model_of",
    "resolve",
]

_RENAMED: dict[str, Any] = {"PassSignals": CleanSignals, "Seen": MixedSignals, "taken_now": early_backward}


def __getattr__(name: str) -> Any:
    if name not in _RENAMED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        f"mixaug.signals.{name} is now called {_RENAMED[name].__name__}; the old name goes in the next release",
        DeprecationWarning,
        stacklevel=2,
    )
    return _RENAMED[name]
