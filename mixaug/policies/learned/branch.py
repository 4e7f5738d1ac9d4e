"""What a learned mixer draws for itself, beside what it draws for the classifier."""

from __future__ import annotations

from torch import Tensor

from mixaug.batch import Batch
from mixaug.draws import Draws
from mixaug.pairing import Pairing


def block_draws(pairing: Pairing, batch: Batch, draws: Draws) -> tuple[Draws, Tensor]:
    """Draws for the block's own mixtures, and their partners (B,) int64."""
    others = Draws(len(batch), batch.device, draws.generator, draws.per)
    partner = pairing(batch, others)
    others.pair_with(partner)
    return others, partner


def block_learns(probability: float, draws: Draws, *, frozen: bool) -> bool:
    """Whether the block learns in this step; draws where that is left to chance."""
    if frozen or probability >= 1:
        return not frozen
    return draws.host_choice((probability, 1 - probability)) == 0
