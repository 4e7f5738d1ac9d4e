"""One module per method: how to replay that method's golden files through public functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from torch import Tensor

#: What was compared, what we compute, what the reference computed, and the largest allowed difference.
Comparison = tuple[str, Tensor, Tensor, float]
Adapter = Callable[[Mapping[str, np.ndarray], str], list[Comparison]]

ADAPTERS: dict[str, Adapter] = {}


def adapter(prefix: str) -> Callable[[Adapter], Adapter]:
    """Register an adapter for all files whose names start with ``prefix`` and an underscore."""

    def decorate(function: Adapter) -> Adapter:
        ADAPTERS[prefix] = function
        return function

    return decorate
