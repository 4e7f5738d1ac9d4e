"""AdAutoMix (arXiv:2312.11954): masks over several images, made by a block that learns against the classifier.

    u_i = softmax(relu(q_i) (sum over j != i of relu(k_j))^T / sqrt(D)) v_i
    masks = softmax over i of the enlarged u_i

The block sees features of all images of a mixture, taken from a momentum copy of the model. In every other step it
makes mixtures that the copy gets wrong, yet whose outputs stay near those of their images; in the steps between it
makes mixtures that the copy gets right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixaug.batch import Batch, MixedBatch
from mixaug.checks import check_flag, check_probability, check_whole
from mixaug.draws import Draws
from mixaug.labeling import Area, Drawn
from mixaug.ops.layout import check_blends, deliver, over_channels, single_precision, take_rows
from mixaug.ops.nested import logits_of
from mixaug.plan import Plan
from mixaug.policies.learned.base import LearnedMixer, MixerOptions
from mixaug.policies.learned.blocks import Upsampling, attended, start_small, tokens, upsampled
from mixaug.policies.learned.branch import block_draws, block_learns
from mixaug.policies.learned.clean import rows_of
from mixaug.policies.learned.objective import objective_of, objective_parameters, with_early_gradients
from mixaug.policy import no_change
from mixaug.registry import register
from mixaug.signals import ModelSignals, Signals, early_backward, half_scale

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["AdAutoMix", "adautomix", "adautomix_masks", "adautomix_similarity"]


def adautomix(
    images: Tensor, sources: Tensor, masks: Tensor, *, out: Tensor | None = None, inplace: bool = False
) -> Tensor:
    """``sum over i of masks[:, i] * images[sources[:, i]]``.

    Half precision and uint8 are computed in float32; uint8 is rounded half to even.

    Args:
        images: (B, ..., *size) floating point or uint8.
        sources: (n, N) int64 rows of the images.
        masks: (n, N, *size) or (1, N, *size) shares of the images per pixel, of sum 1 over N; or without ``*size``,
            shares of whole images.
        out: tensor like the result that receives it and does not overlap the images.
        inplace: write the result into ``images``, where n is B.

    Returns:
        (n, ..., *size), dtype and memory format of the images.

    Raises:
        TypeError: integers other than uint8.
    """
    check_blends(images)
    dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
    rows, weights = sources.unbind(1), masks.to(dtype).unbind(1)
    result = take_rows(images, rows[0]).to(dtype) * over_channels(weights[0], images)
    for row, weight in zip(rows[1:], weights[1:], strict=True):
        result.addcmul_(take_rows(images, row).to(dtype), over_channels(weight, images))
    if images.dtype == torch.uint8:
        result.round_()
    return deliver(result.to(images.dtype), images, out, inplace)


def adautomix_masks(logits: Tensor, size: Sequence[int], upsampling: Upsampling = "bilinear") -> Tensor:
    """Share of every image at every pixel from logits at the cells.

    Args:
        logits: (n, N, h, w).
        size: (H, W) of the images.
        upsampling: of the logits, before the softmax over the images.

    Returns:
        (n, N, H, W) in (0, 1), of sum 1 over N.
    """
    return upsampled(logits, size, upsampling).softmax(1)


def adautomix_similarity(outputs: Tensor, source_outputs: Tensor, sources: Tensor, shares: Tensor) -> Tensor:
    """Mean over the mixtures of the weighted cosines between their outputs and those of their images.

    Args:
        outputs: (n, K) of the mixtures.
        source_outputs: (B, K) of the unmixed images.
        sources: (n, N) int64 rows of the images.
        shares: (n, N) or (1, N) weights of sum 1 over N.

    Returns:
        Scalar in [-1, 1], float32 (float64 for float64 outputs).

    Raises:
        ValueError: outputs that are not (n, K).
    """
    outputs, source_outputs = logits_of(outputs), logits_of(source_outputs)
    if not isinstance(outputs, Tensor) or outputs.ndim != 2:
        came = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(f"adautomix compares outputs (B, K) of the model, got {came}; beta=1 leaves this out")
    of_sources = single_precision(source_outputs)[sources]
    cosines = F.cosine_similarity(single_precision(outputs)[:, None], of_sources, dim=2)
    return (shares.to(cosines.dtype) * cosines).sum(1).mean()


class AdaptiveMask(nn.Module):
    """AdAutoMix's block: the cells of each image ask what the other images show there, and answer with their own value.

    Three 1x1 convolutions, shared by the images: queries and keys, both through a ReLU, and values. The bias of the
    values is the same for all images and drops out of the softmax over them: its gradient is zero up to rounding.

    Args:
        channels: C of the features.
        lam_channel: append the share of an image to its map as one more channel. Without it the masks do not depend on
            the shares.
        reduction: C divided by the channels of queries and keys.
    """

    def __init__(self, channels: int, lam_channel: bool = True, reduction: int = 2) -> None:
        super().__init__()
        self.lam_channel = bool(lam_channel)
        half = max(channels // reduction, 1)
        self.query = nn.Conv2d(channels + self.lam_channel, half, 1)
        self.key = nn.Conv2d(channels + self.lam_channel, half, 1)
        self.value = nn.Conv2d(channels + self.lam_channel, 1, 1)
        start_small(self)

    def forward(self, features: Tensor, sources: Tensor, shares: Tensor) -> Tensor:
        """Logits (n, N, h, w) of the shares of the images.

        Args:
            features: (B, C, h, w) float32.
            sources: (n, N) int64 rows of the features.
            shares: (n, N) or (1, N) of the images.
        """
        query = self._of_sources(self.query, features, sources, shares).relu()
        key = self._of_sources(self.key, features, sources, shares).relu()
        value = self._of_sources(self.value, features, sources, shares)
        others = key.sum(1, keepdim=True) - key
        found = attended(*(tokens(maps.flatten(0, 1)) for maps in (query, others, value)))
        return found.reshape(*sources.shape, *features.shape[2:])

    def _of_sources(self, layer: nn.Conv2d, features: Tensor, sources: Tensor, shares: Tensor) -> Tensor:
        """(n, N, D, h, w): the layer applied to the maps of all images of each mixture."""
        # The layer comes before the gathering: each map is in N mixtures and wider than what the layer makes of it.
        channels = features.shape[1]
        every = F.conv2d(features, layer.weight[:, :channels], layer.bias)
        # Rows are gathered column by column: no row comes twice in a permutation, so that gradients add up in one
        # order on any device.
        found = torch.stack([every.index_select(0, rows) for rows in sources.unbind(1)], 1)
        if self.lam_channel:
            found = found + shares[:, :, None, None, None] * layer.weight[:, channels]
        return found


@dataclass(frozen=True, kw_only=True)
class LearnedShares(Plan):
    """Soft masks over several images, and what was drawn for the branch that the mixer learns from.

    Attributes:
        inputs: (B, N) int64 rows that go into each sample, the sample itself first.
        shares: (R, N) float32 as drawn, of sum 1.
        masks: (B, N, H, W) float32, of sum 1 over N.
        features: (B, C, h, w) of the unmixed images.
        outputs: (B, K) of the momentum network for the unmixed images, where the branch asks for them.
        generator_inputs, generator_shares: (B, N) and (R, N) for the mixer's branch.
        learns: whether the mixer learns in this step.
        adversarial: whether it learns against the classifier then.
    """

    inputs: Tensor
    shares: Tensor
    masks: Tensor
    features: Tensor
    outputs: Any = None
    generator_inputs: Tensor
    generator_shares: Tensor
    learns: bool = True
    adversarial: bool = True

    @property
    def sources(self) -> Tensor:
        return self.inputs

    def area(self) -> Tensor:
        return self.own_mask().mean((1, 2))

    def own_mask(self) -> Tensor:
        return self.masks[:, 0]

    def mix(self, tensor: Tensor, *, out: Tensor | None = None, inplace: bool = False) -> Tensor:
        return adautomix(tensor, self.inputs, self.masks, out=out, inplace=inplace)


@register(
    "adautomix",
    paper="Adversarial AutoMixup, ICLR 2024",
    arxiv="2312.11954",
    family="learned",
)
class AdAutoMix(LearnedMixer):
    """Mix two or more images by masks that learn against the classifier. Train through MixStep.

    Labels keep the drawn shares; ``labeling="area"`` takes the masks'.

    Args:
        alpha, per: see :class:`mixaug.Policy`.
        ratio: of each image's share before they are divided by their sum, for three or more images; of lam for two:
            ``"beta"``, ``"midpoint"``, ``"uniform"``, ``"bernoulli"``, a share, a Ratio.
        pairing: see :class:`mixaug.Policy`. Each further image comes from a pairing of its own, so that one that is not
            random gives the same image again.
        labeling: weight of the labels: ``"ratio"`` (as drawn) or ``"area"`` (the means of the masks); for two images
            others of :mod:`mixaug.labeling` too, a Labeling.
        n_images: N, in every mixture, the sample itself among them. Two are mixed as by
            :class:`mixaug.policies.AutoMix`: one lambda for the classifier, one for the block.
        lam_channel: let the masks depend on the shares, see :class:`AdaptiveMask`; off in the published CIFAR settings.
        upsampling: of the masks' logits, ``"nearest"`` or ``"bilinear"``.
        beta: weight in [0, 1] of the mixtures' loss in the steps against the classifier; that of the cosines between
            outputs is 1 - beta.
        clean_weight: weight of the loss of the unmixed images and of their plain blends together, not negative; 0
            spares both passes.
        mixup_ratio: part in [0, 1) of it that is the blends', for three or more images; 0 spares that pass.
        min_lam: the classifier gets a plain blend where the sample's share, or 1 minus the share, is not above this.
        reference: the released code's two faults: push the mixtures' outputs away from those of their images, and, of
            three or more images, give the classifier a plain blend wherever 1 minus the sample's share is above
            ``min_lam``, which is nearly always.
        **shared: all others: see :class:`mixaug.policies.learned.base.LearnedMixer`.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        n_images: int = 3,
        lam_channel: bool = True,
        upsampling: Upsampling = "bilinear",
        beta: float = 0.3,
        mixup_ratio: float = 0.5,
        min_lam: float = 0.03,
        **shared: Unpack[MixerOptions],
    ) -> None:
        what = type(self).__name__
        n_images = check_whole(what, "n_images", n_images, 2, 256, reason="each of them is a row of the batch")
        super().__init__(alpha=alpha, upsampling=upsampling, min_lam=min_lam, **shared)
        if n_images > 2 and not isinstance(self.labeling, (Area, Drawn)):
            raise ValueError(
                f"{what} expects labeling 'ratio' or 'area' for {n_images} images, got "
                f"{shared.get('labeling', self.labeling)!r}; n_images=2 takes any"
            )
        self.n_images = n_images
        self.beta = check_probability(what, "beta", beta)
        self.mixup_ratio = check_probability(what, "mixup_ratio", mixup_ratio)
        if self.mixup_ratio == 1:
            raise ValueError(f"{what} expects mixup_ratio in [0, 1), got 1: the unmixed images would have no weight")
        self.lam_channel = check_flag(what, "lam_channel", lam_channel)
        #: Number of optimizer steps so far: the block learns against the classifier in even ones.
        self.steps = 0
        self.make_known_block()

    def make_block(self, channels: int) -> nn.Module:
        return AdaptiveMask(channels, self.lam_channel)

    @property
    def adversarial(self) -> bool:
        """Whether the block learns against the classifier in this step."""
        return self.steps % 2 == 0

    def after_step(self, model: nn.Module) -> None:
        super().after_step(model)
        self.steps += 1

    def block_settings(self) -> dict[str, Any]:
        return {"lam_channel": self.lam_channel}

    def remembered(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def recall(self, state: dict[str, Any]) -> None:
        self.steps = int(state["steps"])

    def sample(self, batch: Batch, partner: Tensor, draws: Draws) -> LearnedShares:
        inputs = generator_inputs = self._rows(batch, partner, draws)
        shares = generator_shares = self._shares(draws)
        learns = block_learns(self.generator_probability, draws, frozen=self.frozen)
        if not self.frozen:
            others, other = block_draws(self.pairing, batch, draws)
            generator_inputs = self._rows(batch, other, others)
            if self.n_images == 2:
                generator_shares = self._shares(others)
        features, outputs = self._seen(batch, learns and self.adversarial and self.beta < 1)
        with torch.no_grad():
            masks = self.masks(features, inputs, shares, batch.size)
            masks = torch.where(self._plain(shares)[:, None, None, None], shares[:, :, None, None], masks)
        return LearnedShares(
            partner=partner,
            lam=shares[:, 0],
            size=batch.size,
            inputs=inputs,
            shares=shares,
            masks=masks,
            features=features,
            outputs=outputs,
            generator_inputs=generator_inputs,
            generator_shares=generator_shares,
            learns=learns,
            adversarial=self.adversarial,
            weights=self._weights(shares, masks),
        )

    def _rows(self, batch: Batch, partner: Tensor, draws: Draws) -> Tensor:
        """(B, N) int64, the sample itself first."""
        # The authors permute all N images. With the rows of the batch in the order of the first of them the sample
        # itself is the first image and the others are again independent random permutations: the same mixtures.
        own = torch.arange(len(batch), device=batch.device)
        others = [Draws(len(batch), batch.device, draws.generator, draws.per) for _ in range(self.n_images - 2)]
        return torch.stack([own, partner, *(self.pairing(batch, other) for other in others)], 1)

    def _shares(self, draws: Draws) -> Tensor:
        """(R, N) float32 of sum 1."""
        if self.n_images == 2:
            lam = self.ratio(draws).float()
            return torch.stack([lam, 1 - lam], 1)
        drawn = torch.stack([self.ratio(draws) for _ in range(self.n_images)], 1)
        total = drawn.sum(1, keepdim=True)
        even = torch.full_like(drawn, 1 / self.n_images)
        return torch.where(total > 0, drawn / total, even).float()

    def _plain(self, shares: Tensor) -> Tensor:
        """(R,) bool: where the classifier gets a plain blend."""
        own = shares[:, 0]
        if self.reference and self.n_images > 2:
            return (own <= self.min_lam) | (1 - own > self.min_lam)
        return torch.minimum(own, 1 - own) <= self.min_lam

    def _weights(self, shares: Tensor, masks: Tensor) -> Tensor | None:
        """(B, N) weights of the labels; None leaves those of two images to the labeling."""
        if self.n_images == 2:
            return None
        if isinstance(self.labeling, Area):
            return masks.mean((2, 3))
        return shares.expand(len(masks), self.n_images)

    def _seen(self, batch: Batch, with_outputs: bool) -> tuple[Tensor, Any]:
        """Features, and the momentum network's outputs of the same pass where they are asked for."""
        model = batch.ask(type(self).__name__).model
        if not with_outputs or model is None:
            return self.features_of(batch), None
        features, outputs = self.network_in_modes_of(model).features_and_outputs(batch.images)
        return self.checked_features(features), outputs

    def masks(self, features: Tensor, sources: Tensor, shares: Tensor, size: Sequence[int]) -> Tensor:
        """(n, N, H, W) shares of sum 1 over N, with gradients to the block.

        Args:
            features: (B, C, h, w) of the unmixed images.
            sources: (n, N) int64 rows of the features.
            shares: (n, N) or (1, N) of sum 1.
            size: (H, W) of the images.
        """
        block = self.mixing_block()
        # The scores are sums over many cells, which overflow in half precision.
        with torch.autocast(features.device.type, enabled=False):
            return adautomix_masks(block(features, sources, shares.to(features.dtype)), size, self.upsampling)

    def early_loss(self, images: Tensor, mixed: MixedBatch, clean: Signals) -> dict[str, Tensor]:
        terms = super().early_loss(images, mixed, clean)
        plan, source = mixed.plan, getattr(clean, "source", None)
        blends = self.n_images > 2 and self.mixup_ratio > 0 and self.clean_weight > 0
        if blends and isinstance(plan, LearnedShares) and isinstance(source, ModelSignals):
            # One weight is divided between both losses.
            terms["clean_loss"] = (1 - self.mixup_ratio) * terms["clean_loss"]
            factor = self.mixup_ratio * self.clean_weight
            terms["linear_loss"] = factor * _linear_loss(images, mixed.labels, plan, source)
        return terms

    def generator_loss(self, images: Tensor, mixed: MixedBatch, source: ModelSignals) -> dict[str, Tensor]:
        plan = mixed.plan
        if not isinstance(plan, LearnedShares):
            raise ValueError(f"{type(self).__name__} expects a batch of its own, got a plan {type(plan).__name__}")
        if not plan.learns:
            return {"not_learned": no_change(self.mixer_parameters())}
        count = rows_of(self.generator_share, len(images))
        sources, shares = plan.generator_inputs[:count], plan.generator_shares[:count]
        masks = self.masks(plan.features, sources, shares, images.shape[2:])
        blended = adautomix(images, sources, masks)
        outputs = self.slow_network()(blended)
        loss = objective_of(source)(outputs, _mixture(blended, mixed.labels, sources, shares))
        if plan.adversarial:
            loss = -self.beta * loss
            if self.beta < 1:
                similarity = adautomix_similarity(outputs, plan.outputs, sources, shares)
                loss = loss + (1 - self.beta) * (similarity if self.reference else -similarity)
        # The pass goes only as far as the masks: the network is done with before the block's own backward pass.
        learning = [masks, *objective_parameters(source)]
        terms = {"generator_loss": early_backward(loss, learning, half_scale(images))}
        return with_early_gradients(terms, [*self.mixer_parameters(), *objective_parameters(source)])


def _linear_loss(images: Tensor, labels: Tensor | None, plan: LearnedShares, source: ModelSignals) -> Tensor:
    """Loss of the plain blend of the same images in training mode; its graph is gone when this returns."""
    with torch.no_grad():
        blended = adautomix(images, plan.inputs, plan.shares)
    model = source.model
    mixture = _mixture(blended, labels, plan.inputs, plan.shares)
    learning = [*model.parameters(), *objective_parameters(source)]
    return early_backward(objective_of(source)(model(blended), mixture), learning, half_scale(images))


def _mixture(blended: Tensor, labels: Tensor | None, sources: Tensor, shares: Tensor) -> MixedBatch:
    return MixedBatch(inputs=blended, labels=labels, sources=sources, weights=shares.expand(sources.shape))
