"""What a learned mixer has learned: its masks and its loss beside those of a fresh one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mixaug.batch import MixedBatch
from mixaug.engine.pictures import OpenRun, some_samples
from mixaug.gallery import undisturbed
from mixaug.losses import MixedCrossEntropy
from mixaug.policies.learned.pairs import PairMixer
from mixaug.policy import Policy

__all__ = ["MaskReport", "mask_reports"]

LAMBDAS = (0.2, 0.35, 0.5, 0.65, 0.8)


@dataclass(frozen=True)
class MaskReport:
    """Masks of one block at one lambda, over many pairs of images.

    Attributes:
        lam: own share that was asked for.
        mean: mean of the masks' own shares, in [0, 1].
        within: standard deviation of the own share over the pixels of an image, averaged over images.
        loss: loss of the slow copy on the mixed images, against both labels.
    """

    lam: float
    mean: float
    within: float
    loss: float


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
    policy = _mixer_of(run.step.policy)
    network, trained = policy.slow_network(), policy.block
    with undisturbed(run.step):
        torch.manual_seed(seed)
        images, labels, _ = some_samples(run.batches, "test", samples, seed)
        partner = torch.randperm(len(images)).to(images.device)
        try:
            if fresh:
                policy.block = policy.make_block(policy.channels or 0).to(images.device)
            if not policy.frozen and policy.block is not None:
                # The block runs as in training: batch norm then removes what running statistics leave in its values.
                policy.block.train()
                network.train()
            features = network.features(images).float()
            return [_report(policy, network, images, labels, features, partner, lam) for lam in lambdas]
        finally:
            policy.block = trained


def _report(
    policy: PairMixer, network: nn.Module, images: Tensor, labels: Tensor, features: Tensor, partner: Tensor, lam: float
) -> MaskReport:
    share = images.new_full((1,), lam)
    mask = policy.masks(features, features.index_select(0, partner), share, images.shape[2:])
    mixed = torch.lerp(images.index_select(0, partner), images, mask[:, None].to(images.dtype))
    rows = torch.arange(len(images), device=images.device)
    weights = torch.stack([share, 1 - share], 1).expand(len(images), 2)
    pair = MixedBatch(mixed, labels, torch.stack([rows, partner], 1), weights)
    loss = MixedCrossEntropy()(network(mixed), pair)
    return MaskReport(lam, float(mask.mean()), float(mask.flatten(1).std(1).mean()), float(loss))


def _mixer_of(policy: Policy) -> PairMixer:
    for module in policy.modules():
        if isinstance(module, PairMixer):
            return module
    raise ValueError(f"{type(policy).__name__} has no mixer of AutoMix's kind to look at")
