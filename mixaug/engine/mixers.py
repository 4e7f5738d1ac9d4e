"""What a learned mixer has learned: its masks and its loss beside those of a fresh one."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mixaug.engine.pictures import OpenRun, some_samples
from mixaug.gallery import undisturbed
from mixaug.policies.learned.report import MaskReport, batch_reports

__all__ = ["MaskReport", "mask_reports"]

LAMBDAS = (0.2, 0.35, 0.5, 0.65, 0.8)


def mask_reports(
    run: OpenRun, samples: int = 200, lambdas: Sequence[float] = LAMBDAS, *, fresh: bool = False, seed: int = 0
) -> list[MaskReport]:
    """Look at the masks of a run's AutoMix or SAMix on test images, with statistics of this batch, as in training.

    Args:
        run: from :func:`mixaug.engine.pictures.open_run`.
        samples: how many test images.
        lambdas: own shares to ask for.
        fresh: whether a newly drawn block takes the place of the trained one.
        seed: seed of the images, their partners and the fresh block.

    Raises:
        ValueError: the policy of the run is neither AutoMix nor one of its kind.
    """
    with undisturbed(run.step):
        torch.manual_seed(seed)
        images, labels, _ = some_samples(run.batches, "test", samples, seed)
        return batch_reports(run.step.policy, images, labels, lambdas, fresh=fresh)
