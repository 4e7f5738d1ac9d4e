"""Accuracy of every group of samples by itself: of classes, that is recall, or of domains."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["GroupAccuracy"]


class GroupAccuracy(Metric):
    """Share of right answers in each group, over all batches and processes.

    Args:
        groups: G; groups are numbered 0..G-1, and not every number needs to occur.
    """

    right: Tensor
    count: Tensor

    def __init__(self, groups: int) -> None:
        super().__init__()
        for name in ("right", "count"):
            self.add_state(name, torch.zeros(groups, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, is_right: Tensor, group: Tensor) -> None:
        """Count a batch.

        Args:
            is_right: (B,) bool.
            group: (B,) int64.
        """
        self.right += torch.bincount(group[is_right], minlength=len(self.right))
        self.count += torch.bincount(group, minlength=len(self.count))

    def compute(self) -> Tensor:
        """(G',) float64 in [0, 1] of the groups that have samples."""
        there = self.count > 0
        return self.right[there].double() / self.count[there]
