"""AutoMix (arXiv:2103.13027): masks made by a small attention block that learns from the classification loss itself.

The block sees features of both images, taken from a momentum copy of the model, and says for every cell how much of the
partner shows there. It learns through that frozen copy: the mixed image must be classified as both of its classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixaug.batch import Batch, MixedBatch
from mixaug.checks import check_probability
from mixaug.draws import Draws
from mixaug.mixer import LearnedMixer, Upsampling, not_negative, objective_parameters
from mixaug.plan import MaskBlend
from mixaug.registry import register
from mixaug.signals import ModelSignals, half_scale, taken_now


def attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """``softmax(query key^T / sqrt(D)) value``.

    Args:
        query, key: (B, N, D) floating point.
        value: (B, N, V).

    Returns:
        (B, N, V).
    """
    # On a CPU torch has no kernel for values narrower than the keys that would spare the (N, N) weights.
    if value.device.type == "cpu":
        scores = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
        return torch.softmax(scores, -1) @ value
    return fused_attention(query, key, value)


def fused_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """:func:`attended` by torch's fused kernels, which never write the (N, N) weights."""
    width = value.shape[-1]
    # They take values of whole groups of 8 only.
    value = F.pad(value, (0, -width % 8))
    found = F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])
    return found[:, 0, :, :width]


def learned_mask(logits: Tensor, size: Sequence[int], upsampling: Upsampling = "nearest") -> Tensor:
    """Own share of every pixel from the logits of the partner's share at the cells.

    Args:
        logits: (B, h, w).
        size: (H, W) of the images.
        upsampling: of the logits, before the sigmoid.

    Returns:
        (B, H, W) in (0, 1).
    """
    return torch.sigmoid(-upsampled(logits, size, upsampling))


def upsampled(logits: Tensor, size: Sequence[int], upsampling: Upsampling) -> Tensor:
    """(..., h, w) to (..., H, W), without aligned corners."""
    planes = logits.reshape(1, -1, *logits.shape[-2:])
    options = {} if upsampling == "nearest" else {"align_corners": False}
    return F.interpolate(planes, size=tuple(size), mode=upsampling, **options).reshape(*logits.shape[:-2], *size)


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


class MixBlock(nn.Module):
    """AutoMix's block: cross attention from the own cells to the partner's.

    One 1x1 convolution makes queries of the own map and keys of the partner's, another the values of the partner's.

    Args:
        channels: C of the features.
        lam_channel: append lam to the own map and 1 - lam to the partner's as one more channel. Without it the mask
            does not depend on lam.
        reduction: C divided by the channels of queries and keys.
    """

    def __init__(self, channels: int, lam_channel: bool = True, reduction: int = 2) -> None:
        super().__init__()
        self.lam_channel = bool(lam_channel)
        self.query = nn.Conv2d(channels + self.lam_channel, max(channels // reduction, 1), 1)
        self.value = nn.Conv2d(channels + self.lam_channel, 1, 1)
        start_small(self)

    def forward(self, own: Tensor, other: Tensor, lam: Tensor) -> Tensor:
        """Logits (B, h, w) of the partner's share.

        Args:
            own, other: (B, C, h, w) float32 features of the sample and of its partner.
            lam: (B,) or (1,) own share.
        """
        if self.lam_channel:
            own, other = with_channel(own, lam), with_channel(other, 1 - lam)
        query, key = tokens(self.query(own)), tokens(self.query(other))
        return attended(query, key, tokens(self.value(other))).reshape(len(own), *own.shape[2:])


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


class PairMixer(LearnedMixer):
    """Pairs of images under a mask whose block makes logits of the partner's share: AutoMix and SAMix.

    Args:
        mask_lam: weight of :func:`mask_loss`, not negative.
        mask_lam_end: its weight at the end of training, reached by a cosine; None keeps it constant.
        mask_margin: see :func:`mask_loss`.
        mask_adjust: chance in [0, 1] that the classifier's masks are given the mean lam.
        reference: adjust masks to the lambda of the other branch, as the released code does.
        **shared: see :class:`mixaug.mixer.LearnedMixer`.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        *,
        mask_lam: float = 0.1,
        mask_lam_end: float | None = None,
        mask_margin: float = 0.1,
        mask_adjust: float = 0.0,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        what = type(self).__name__
        self.mask_lam = not_negative(what, "mask_lam", mask_lam)
        self.mask_lam_end = None if mask_lam_end is None else not_negative(what, "mask_lam_end", mask_lam_end)
        self.mask_margin = not_negative(what, "mask_margin", mask_margin)
        self.mask_adjust = check_probability(what, "mask_adjust", mask_adjust)

    #: Factor of the variance in :func:`mask_loss`.
    variance: float = 0.0

    def sample(self, batch: Batch, partner: Tensor, draws: Draws) -> LearnedBlend:
        features = self.features_of(batch)
        lam = generator_lam = self.ratio(draws).float()
        generator_partner = partner
        if not self.frozen:
            others, generator_partner = self.other_branch(batch, draws)
            generator_lam = self.ratio(others).float()
        learns = self.learns_now(draws)
        adjusts = draws.uniform(per="batch") < self.mask_adjust if self.mask_adjust > 0 else None
        with torch.no_grad():
            mask = self.masks(features, features.index_select(0, partner), lam, batch.size)
            if adjusts is not None:
                to = generator_lam if self.reference else lam
                mask = torch.where(adjusts[:, None, None], adjusted_mask(mask, to), mask)
            share = lam[:, None, None]
            mask = torch.where(torch.minimum(share, 1 - share) <= self.lam_margin, share, mask)
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
        # Sums over many cells: in half precision the scores overflow.
        with torch.autocast(own.device.type, enabled=False):
            return learned_mask(block(own, other, lam.to(own.dtype)), size, self.upsampling)

    def generator_loss(self, images: Tensor, mixed: MixedBatch, source: ModelSignals) -> dict[str, Tensor]:
        plan = mixed.plan
        if not isinstance(plan, LearnedBlend):
            raise ValueError(f"{type(self).__name__} expects a batch of its own, got a plan {type(plan).__name__}")
        count = self.generator_rows(len(images))
        partner, lam = plan.generator_partner[:count], plan.generator_lam[:count]
        mask = self.masks(plan.features[:count], plan.features.index_select(0, partner), lam, images.shape[2:])
        terms = {"mask_loss": self.mask_weight() * mask_loss(mask, lam, self.mask_margin, self.variance)}
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
            # Only as far as the mask: the network is done with before the block's own backward pass.
            terms["generator_loss"] = taken_now(loss, [mask, *objective_parameters(source)], half_scale(images))
        return self.taken(terms, source)

    def generator_objective(self, outputs: Tensor, pair: MixedBatch, source: ModelSignals) -> Tensor:
        """What the block wants of the momentum copy's outputs for its own mixture: the loss of the step."""
        return source.step_objective()(outputs, pair)

    def mask_weight(self) -> float:
        """Weight of the mask's loss at this point of training."""
        if self.mask_lam_end is None:
            return self.mask_lam
        part = (math.cos(math.pi * (self.progress or 0.0)) + 1) / 2
        return self.mask_lam_end + (self.mask_lam - self.mask_lam_end) * part


@register(
    "automix",
    paper="AutoMix: Unveiling the Power of Mixup for Stronger Classifiers, ECCV 2022",
    arxiv="2103.13027",
)
class AutoMix(PairMixer):
    """Masks from a mixing block that learns beside the classifier. Train through MixStep.

    Labels keep the drawn share; ``labeling="area"`` takes the mask's.

    Args:
        alpha: of Beta(alpha, alpha). Two lambdas and two pairings are drawn, one for the classifier, one for the block.
        lam_channel: let the mask depend on lam, see :class:`MixBlock`; off in the published CIFAR settings.
        **shared: mask_lam, mask_lam_end, mask_margin, mask_adjust, reference: see :class:`PairMixer`; all others: see
            :class:`mixaug.mixer.LearnedMixer`.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(self, alpha: float = 2.0, *, lam_channel: bool = True, **shared: Any) -> None:
        super().__init__(alpha=alpha, **shared)
        self.lam_channel = bool(lam_channel)
        self.make_known_block()

    def make_block(self, channels: int) -> nn.Module:
        return MixBlock(channels, self.lam_channel)

    def block_settings(self) -> dict[str, Any]:
        return {"lam_channel": self.lam_channel}


def start_small(block: nn.Module) -> None:
    """Weights of all convolutions from normal(0, 0.01), biases 0: a mask of one half nearly everywhere."""
    for layer in block.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.01)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def with_channel(maps: Tensor, values: Tensor) -> Tensor:
    """(B, C, h, w) with one more channel that holds ``values`` (B,) or (1,)."""
    channel = values.to(maps.dtype).reshape(-1, 1, 1, 1).expand(len(maps), 1, *maps.shape[2:])
    return torch.cat([maps, channel], 1)


def tokens(maps: Tensor) -> Tensor:
    """(B, C, h, w) as (B, h * w, C)."""
    return maps.flatten(2).transpose(1, 2)
