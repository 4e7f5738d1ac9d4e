"""Stripes: every sample gets bands of rows from its partner. A policy in a package of its own.

Written against the public names of mixaug alone; installing the package is enough for
`mixaug.create("stripes", period=8)` to find it.
"""

from __future__ import annotations

import torch
from torch import Tensor

import mixaug
from mixaug.batch import Batch
from mixaug.draws import Draws, Per
from mixaug.plan import MaskBlend, Plan


@mixaug.register("stripes", paper="The example of a policy in a package of its own")
class Stripes(mixaug.Policy):
    """Bands of rows from the partner, half of every period.

    Args:
        period: rows from one band to the next, at least 2.
        per: how often the place of the bands is drawn, see `mixaug.Policy`.

    Raises:
        ValueError: `period` below 2.
    """

    spatial = (2,)

    def __init__(self, period: int = 4, *, per: Per = "sample") -> None:
        super().__init__(per=per)
        if period < 2:
            raise ValueError(f"stripes expects a period of at least 2 rows, got {period}")
        self.period = period

    def sample(self, batch: Batch, partner: Tensor, draws: Draws) -> Plan:
        height, width = batch.size
        start = draws.integers(0, self.period)[:, None]
        rows = torch.arange(height, device=batch.device)
        own = (rows - start) % self.period >= self.period // 2
        mask = own[:, :, None].expand(-1, -1, width)
        return MaskBlend(partner=partner, lam=mask.float().mean((1, 2)), mask=mask, size=batch.size)
