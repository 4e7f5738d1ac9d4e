"""Choosing one of several, for every row at once."""

from __future__ import annotations

import torch
from torch import Tensor


def one_of(allowed: Tensor, unit: Tensor) -> Tensor:
    """One of the allowed columns of each row, uniformly.

    Args:
        allowed: (B, N) bool.
        unit: (B,) in [0, 1).

    Returns:
        (B,) int64, -1 where nothing is allowed.
    """
    reached = allowed.cumsum(1)
    counts = reached[:, -1]
    number = torch.minimum((unit * counts).long(), (counts - 1).clamp(min=0))
    return torch.where(counts > 0, (reached <= number[:, None]).sum(1), -1)
