"""What a learned mixer has learned: its masks and its loss on a batch, at given shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mixaug.batch import MixedBatch
from mixaug.losses import MixedCrossEntropy
from mixaug.policies.learned.pairs import PairMixer
from mixaug.policy import Policy


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


def batch_reports(
    policy: Policy, images: Tensor, labels: Tensor, lambdas: Sequence[float], *, fresh: bool = False
) -> list[MaskReport]:
    """Look at the masks of AutoMix or SAMix for random pairs of a batch, with statistics of this batch, as in training.

    Draws partners, and the fresh block, from torch's own generator. Modes of block and slow copy change.

    Args:
        policy: the mixer, or a policy that holds one.
        images: (B, C, H, W) as the model takes them.
        labels: (B,) class ids.
        lambdas: own shares to ask for, each in [0, 1].
        fresh: whether a newly drawn block takes the place of the trained one meanwhile.

    Raises:
        ValueError: the policy is neither AutoMix nor one of its kind.
    """
    mixer = _mixer_of(policy)
    network, trained = mixer.slow_network(), mixer.block
    partner = torch.randperm(len(images)).to(images.device)
    try:
        if fresh:
            mixer.block = mixer.make_block(mixer.channels or 0).to(images.device)
        if not mixer.frozen and mixer.block is not None:
            # The block runs as in training: batch norm then removes what running statistics leave in its values.
            mixer.block.train()
            network.train()
        features = network.features(images).float()
        return [_report(mixer, network, images, labels, features, partner, lam) for lam in lambdas]
    finally:
        mixer.block = trained


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
