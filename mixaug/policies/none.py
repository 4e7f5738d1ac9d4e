"""No mixing: the baseline of every comparison, and a member of `OneOf` that does nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from mixaug.batch import Batch
from mixaug.draws import Draws
from mixaug.plan import Plan, Unmixed
from mixaug.policy import Policy
from mixaug.registry import register

__all__ = ["NoMix"]


@register("none", paper="no mixing", family="baseline")
class NoMix(Policy):
    """Leaves every sample as it is: weights 1 and 0, the sample its own partner."""

    spatial = None
    has_partners = False
    own_answers: ClassVar[Mapping[str, str]] = {
        "pairing": "Nobody.",
        "ratio": "All of the own sample.",
        "labeling": "The own label.",
    }

    def __init__(self) -> None:
        super().__init__()

    def plan(self, batch: Batch, generator: object, partner: Tensor | None = None) -> Plan:
        return Unmixed.of(len(batch), batch.device)

    def sample(self, batch: Batch, partner: Tensor, draws: Draws) -> Plan:
        return Unmixed.of(len(batch), batch.device)
