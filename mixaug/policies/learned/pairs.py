"""Pairs of images under a mask that a block makes of their features: what AutoMix and SAMix share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from mixaug.batch import Batch, MixedBatch
from mixaug.checks import check_not_negative, check_probability
from mixaug.draws import Draws
from mixaug.plan import MaskBlend
from mixaug.policies.learned.base import LearnedMixer, LearnedOptions, MixerOptions
from mixaug.policies.learned.blocks import learned_mask
from mixaug.policies.learned.branch import block_draws, block_learns
from mixaug.policies.learned.clean import rows_of
from mixaug.policies.learned.objective import objective_of, objective_parameters, with_early_gradients
from mixaug.signals import ModelSignals, early_backward, half_scale

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["adjusted_mask", "mask_loss"]


def mask_loss(mask: Tensor, lam: Tensor, margin: float = 0.1, variance: float = 0.0) -> Tensor:
    """How far the mean of the masks of a batch lies from lam, beyond a margin; minus a reward for masks that vary.

    ``max(0, |mean - mean lam| - margin) - variance * mean((mask - mean)^2)``, both means over the whole batch.

    Args:
        mask: (B, H, W) own shares.
        lam: (R,) shares that were drawn.
        margin: not negative.
        variance: factor of the reward: 2 in SAMix.

    Returns:
        Scalar.
    """
    mean = mask.mean()
    loss = ((mean - lam.to(mask.dtype).mean()).abs() - margin).clamp(min=0)
    return loss - variance * (mask - mean).square().mean() if variance else loss


def adjusted_mask(mask: Tensor, lam: Tensor) -> Tensor:
    """Masks whose mean is lam: own shares scaled down where there is too much of them, partners' where too little.

    Args:
        mask: (B, H, W) own shares in [0, 1].
        lam: (B,) or (1,) in [0, 1].

    Returns:
        (B, H, W) in [0, 1].
    """
    tiny = 1e-8
    own = mask.clamp(tiny, 1 - tiny)
    mean, lam = own.mean((1, 2), keepdim=True), lam.to(mask.dtype).reshape(-1, 1, 1)
    other = (1 - own) * ((1 - lam) / (1 - mean).clamp(min=tiny))
    return torch.where(mean > lam, own * (lam / mean), 1 - other)


@dataclass(frozen=True, kw_only=True)
class LearnedBlend(MaskBlend):
    """A soft mask, and what was drawn for the branch that the mixer learns from.

    Attributes:
        features: (B, C, h, w) of the unmixed images.
        generator_partner: (B,) int64.
        generator_lam: (R,) float32.
        learns: whether the mixer learns in this step.
    """

    features: Tensor
    generator_partner: Tensor
    generator_lam: Tensor
    learns: bool = True


class PairOptions(MixerOptions, total=False):
    """Options that mixers of pairs share, beside ``alpha`` and those whose defaults differ between them."""

    min_lam: float
    mask_weight: float
    mask_weight_end: float | None
    mask_margin: float


class PairMixer(LearnedMixer):
    """Pairs of images under a mask whose block makes logits of the partner's share: AutoMix and SAMix.

    Args:
        mask_weight: weight of :func:`mask_loss`, not negative.
        mask_weight_end: its weight at the end of training, reached by a cosine; None keeps it constant.
        mask_margin: see :func:`mask_loss`.
        mask_adjust: chance in [0, 1] that the classifier's masks are given the mean lam.
        reference: adjust masks to the lambda of the other branch, as the released code does.
        **shared: see :class:`mixaug.policies.learned.base.LearnedMixer`.

    Raises:
        ValueError: an option out of range.
    """

    renamed: ClassVar[Mapping[str, str]] = {"mask_lam": "mask_weight", "mask_lam_end": "mask_weight_end"}

    def __init__(
        self,
        *,
        mask_weight: float = 0.1,
        mask_weight_end: float | None = None,
        mask_margin: float = 0.1,
        mask_adjust: float = 0.0,
        **shared: Unpack[LearnedOptions],
    ) -> None:
        super().__init__(**shared)
        what = type(self).__name__
        self.mask_weight = check_not_negative(what, "mask_weight", mask_weight)
        self.mask_weight_end = (
            None if mask_weight_end is None else check_not_negative(what, "mask_weight_end", mask_weight_end)
        )
        self.mask_margin = check_not_negative(what, "mask_margin", mask_margin)
        self.mask_adjust = check_probability(what, "mask_adjust", mask_adjust)

    #: Factor of the variance in :func:`mask_loss`.
    variance: float = 0.0

    def sample(self, batch: Batch, partner: Tensor, draws: Draws) -> LearnedBlend:
        features = self.features_of(batch)
        lam = generator_lam = self.ratio(draws).float()
        generator_partner = partner
        if not self.frozen:
            others, generator_partner = block_draws(self.pairing, batch, draws)
            generator_lam = self.ratio(others).float()
        learns = block_learns(self.generator_probability, draws, frozen=self.frozen)
        adjusts = draws.uniform(per="batch") < self.mask_adjust if self.mask_adjust > 0 else None
        with torch.no_grad():
            mask = self.masks(features, features.index_select(0, partner), lam, batch.size)
            if adjusts is not None:
                to = generator_lam if self.reference else lam
                mask = torch.where(adjusts[:, None, None], adjusted_mask(mask, to), mask)
            share = lam[:, None, None]
            mask = torch.where(torch.minimum(share, 1 - share) <= self.min_lam, share, mask)
        return LearnedBlend(
            partner=partner,
            lam=lam,
            mask=mask,
            size=batch.size,
            features=features,
            generator_partner=generator_partner,
            generator_lam=generator_lam,
            learns=learns,
        )

    def masks(self, own: Tensor, other: Tensor, lam: Tensor, size: Sequence[int]) -> Tensor:
        """(B, H, W) own shares, with gradients to the block.

        Args:
            own, other: (B, C, h, w) features of the samples and of their partners.
            lam: (B,) or (1,) own shares.
            size: (H, W) of the images.
        """
        block = self.mixing_block()
        # The scores are sums over many cells, which overflow in half precision.
        with torch.autocast(own.device.type, enabled=False):
            return learned_mask(block(own, other, lam.to(own.dtype)), size, self.upsampling)

    def generator_loss(self, images: Tensor, mixed: MixedBatch, source: ModelSignals) -> dict[str, Tensor]:
        plan = mixed.plan
        if not isinstance(plan, LearnedBlend):
            raise ValueError(f"{type(self).__name__} expects a batch of its own, got a plan {type(plan).__name__}")
        count = rows_of(self.generator_share, len(images))
        partner, lam = plan.generator_partner[:count], plan.generator_lam[:count]
        mask = self.masks(plan.features[:count], plan.features.index_select(0, partner), lam, images.shape[2:])
        terms = {"mask_loss": self.mask_weight_now() * mask_loss(mask, lam, self.mask_margin, self.variance)}
        if plan.learns:
            blended = torch.lerp(images.index_select(0, partner), images[:count], mask[:, None].to(images.dtype))
            own = torch.arange(count, device=partner.device)
            pair = MixedBatch(
                inputs=blended,
                labels=mixed.labels,
                sources=torch.stack([own, partner], 1),
                weights=torch.stack([lam, 1 - lam], 1).expand(count, 2),
            )
            loss = self.generator_objective(self.slow_network()(blended), pair, source)
            # The pass goes only as far as the mask: the network is done with before the block's own backward pass.
            terms["generator_loss"] = early_backward(loss, [mask, *objective_parameters(source)], half_scale(images))
        return with_early_gradients(terms, [*self.mixer_parameters(), *objective_parameters(source)])

    def generator_objective(self, outputs: Tensor, pair: MixedBatch, source: ModelSignals) -> Tensor:
        """What the block wants of the momentum copy's outputs for its own mixture: the loss of the step."""
        return objective_of(source)(outputs, pair)

    def mask_weight_now(self) -> float:
        """Weight of the mask's loss at this point of training."""
        if self.mask_weight_end is None:
            return self.mask_weight
        part = (math.cos(math.pi * (self.progress or 0.0)) + 1) / 2
        return self.mask_weight_end + (self.mask_weight - self.mask_weight_end) * part
