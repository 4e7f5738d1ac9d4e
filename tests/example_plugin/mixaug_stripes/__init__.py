"""Stripes: every sample gets bands of rows from its partner. A policy in a package of its own.

Written against the public names of mixaug alone; installing the package is enough for
`mixaug.create("stripes", period=8)` to find it.
"""

from __future__ import annotations

import torch

import mixaug
from mixaug.batch import Batch
from mixaug.plan import MaskBlend, Plan


@mixaug.register("stripes", paper="The example of a policy in a package of its own")
class Stripes(mixaug.Policy):
    """Bands of rows from the partner, half of every period.

    Args:
        period: rows from one band to the next, at least 2.

    Raises:
        ValueError: `period` below 2.
    """

    def __init__(self, period: int = 4) -> None:
        super().__init__()
        if period < 2:
            raise ValueError(f"stripes expects a period of at least 2 rows, got {period}")
        self.period = period

    def sample(self, batch: Batch, generator: torch.Generator | None) -> Plan:
        """Draw partners and where the first band starts, for images (B, C, H, W)."""
        if len(batch.size) != 2:
            raise ValueError(f"stripes expects images (B, C, H, W), got shape {tuple(batch.images.shape)}")
        height, width = batch.size
        where = {"generator": generator, "device": batch.device}
        start = torch.randint(self.period, (len(batch), 1), **where)
        rows = torch.arange(height, device=batch.device)
        own = (rows - start) % self.period >= self.period // 2
        mask = own[:, :, None].expand(-1, -1, width)
        return MaskBlend(
            partner=torch.randperm(len(batch), **where),
            lam=mask.float().mean((1, 2)),
            mask=mask,
            size=batch.size,
        )
