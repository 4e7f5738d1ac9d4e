"""Noisy Feature Mixup (arXiv:2110.02180): manifold mixup, and noise on the mixture.

    m  = lam * h + (1 - lam) * h[partner]        at a stage k ~ Uniform(stages), the input among them
    h' = (1 + b (2 u - 1)) * m + a * n           u uniform in (0, 1), n normal, for every value

a = add_noise_level * Beta(2, 5), b = mult_noise_level * Beta(2, 5), drawn as often as lam. Labels as in mixup. Every
batch is noisy, also the rows that are their own partners. On the input the noise is in units of the images, which are
meant to be normalised; nothing is clipped. For uint8 images the levels are in units of their range, 255, and the result
is rounded and clipped.

The plan holds a seed for every sample, and noise is a function of that and of a value's place: a replay gives the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from mixaug.batch import Batch
from mixaug.checks import check_images, check_not_negative, check_partner, check_share
from mixaug.draws import Draws
from mixaug.ops.blend import blend
from mixaug.ops.hashing import SEEDS, hashed_normal, hashed_uniform
from mixaug.ops.layout import column, deliver, single_precision
from mixaug.plan import Hidden, Plan, class_planes
from mixaug.policies.stages import INPUT, StagePolicy, early_stages
from mixaug.policy import SharedOptions
from mixaug.registry import register

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["NoisyFeatureMixup", "noisy_mixup"]

#: The largest value of an uint8 image.
WHITE = 255


def noisy_mixup(
    features: Tensor,
    partner: Tensor,
    lam: Tensor,
    *,
    normal: Tensor | None = None,
    add_scale: Tensor | None = None,
    uniform: Tensor | None = None,
    mult_scale: Tensor | None = None,
) -> Tensor:
    """Blend every sample with its partner and add noise to the mixture. Differentiable.

    Args:
        features: (B, ...) floating point or uint8.
        partner: (B,) int64.
        lam: (B,) or (1,) share of the own sample, in [0, 1].
        normal: like ``features``, floating point: standard normal numbers; None adds no noise.
        add_scale: (B,) or (1,) factor of ``normal``; of 255 times ``normal`` for uint8.
        uniform: like ``features``, floating point: uniform numbers in (0, 1); None multiplies no noise.
        mult_scale: (B,) or (1,): values are multiplied by ``1 + mult_scale * (2 * uniform - 1)``.

    Returns:
        Mixed tensor, dtype and memory format of ``features``.

    Raises:
        ValueError: shapes that do not fit, noise without its scale.
        TypeError: another dtype.
    """
    check_images("noisy_mixup", features, None)
    check_partner("noisy_mixup", partner, features.shape[0])
    check_share("noisy_mixup", "lam", lam, features.shape[0])
    for name, noise, scale in (("add_scale", normal, add_scale), ("mult_scale", uniform, mult_scale)):
        if (noise is None) != (scale is None):
            raise ValueError(f"noisy_mixup expects {name} beside its noise, and neither alone")
        if noise is not None and noise.shape != features.shape:
            raise ValueError(f"noisy_mixup expects noise {tuple(features.shape)}, got {tuple(noise.shape)}")
    # Half precision rounds once, after the noise.
    values = single_precision(blend(features, partner, lam))
    unit = WHITE if features.dtype == torch.uint8 else 1
    if uniform is not None and mult_scale is not None:
        least, most = column(1 - mult_scale, values), column(1 + mult_scale, values)
        values = values * _like(torch.lerp(least, most, uniform), values)
    if normal is not None and add_scale is not None:
        values = torch.addcmul(values, column(add_scale * unit, values).to(values.dtype), _like(normal, values))
    if features.dtype == torch.uint8:
        values = values.round().clamp(0, WHITE)
    return values.to(features.dtype)


@dataclass(frozen=True, kw_only=True)
class NoisyBlend(Hidden):
    """A blend at one stage, with noise on it.

    Attributes:
        add_scale, mult_scale: (R,) float32, see :func:`noisy_mixup`; None for no such noise.
        normal_seeds, uniform_seeds: (B,) int64 of the noise of every sample; None for no such noise.
    """

    add_scale: Tensor | None
    mult_scale: Tensor | None
    normal_seeds: Tensor | None
    uniform_seeds: Tensor | None

    @property
    def is_mean(self) -> bool:
        return self.add_scale is None and self.mult_scale is None

    def mix_input(self, tensor: Tensor, *, out: Tensor | None = None, inplace: bool = False) -> Tensor:
        return deliver(self._noisy(INPUT, tensor), tensor, out, inplace)

    def mix_hidden(self, stage: str, features: Tensor) -> Tensor:
        return self._noisy(stage, features)

    def mix_label_map(self, label_map: Tensor, num_classes: int) -> Tensor:
        # Classes are blended as the images are, without the noise.
        plain = Hidden(partner=self.partner, lam=self.lam, stage=self.stage, eligible=self.eligible)
        return plain.mix(class_planes(label_map, num_classes))

    def _noisy(self, stage: str, values: Tensor) -> Tensor:
        if values.dtype != torch.uint8 and not values.is_floating_point():
            # A blend says what may be mixed, and how a label map is.
            return blend(values, self.partner, self.lam)
        shape, drawn = values.shape[1:], self.is_drawn(stage)
        add, mult = (
            scale if scale is None or drawn is None else scale * drawn for scale in (self.add_scale, self.mult_scale)
        )
        return noisy_mixup(
            values,
            self.partner,
            self.share_at(stage),
            normal=None if self.normal_seeds is None else hashed_normal(self.normal_seeds, shape),
            add_scale=add,
            uniform=None if self.uniform_seeds is None else hashed_uniform(self.uniform_seeds, shape),
            mult_scale=mult,
        )


@register(
    "nfm",
    paper="Noisy Feature Mixup, ICLR 2022",
    arxiv="2110.02180",
    family="hidden features",
)
class NoisyFeatureMixup(StagePolicy):
    """Blend every sample with its partner, at the input or a random stage of the model, and add noise to the mixture.

    Args:
        alpha: lam ~ Beta(alpha, alpha); 1.0 is the authors' value.
        stages: where, one of them drawn per batch, see :class:`mixaug.policies.ManifoldMix`. None takes the input and
            the first three stages. ``["input"]`` acts on the input alone.
        add_noise_level: largest deviation of the added noise, not negative; 0.4 in the authors' script for CIFAR.
        mult_noise_level: largest relative change by the other noise, not negative; 0.2 there.
        ratio, pairing, labeling: see :class:`mixaug.Policy`.
        per: how often lam and the scales of the noise are drawn; the authors draw one of each per batch. Noise is drawn
            for every value anyway.

    Raises:
        ValueError: an option out of range; when drawing, a model without such stages.
    """

    shared_defaults: ClassVar[SharedOptions] = {"per": "batch"}

    def __init__(
        self,
        alpha: float = 1.0,
        stages: Sequence[int | str] | None = None,
        add_noise_level: float = 0.4,
        mult_noise_level: float = 0.2,
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(alpha=alpha, stages=stages, **shared)
        self.add_noise_level = check_not_negative("NoisyFeatureMixup", "add_noise_level", add_noise_level)
        self.mult_noise_level = check_not_negative("NoisyFeatureMixup", "mult_noise_level", mult_noise_level)

    def default_stages(self, model: nn.Module | None) -> tuple[str, ...]:
        return (INPUT, *early_stages("NoisyFeatureMixup", model, 3))

    def sample(self, batch: Batch, partner: Tensor, draws: Draws) -> Plan:
        stage, eligible = self.draw_stage(batch, draws)
        lam = self.ratio(draws).float()
        add, normal_seeds = self._noise(self.add_noise_level, draws)
        mult, uniform_seeds = self._noise(self.mult_noise_level, draws)
        return NoisyBlend(
            partner=partner,
            lam=lam,
            stage=stage,
            eligible=eligible,
            add_scale=add,
            mult_scale=mult,
            normal_seeds=normal_seeds,
            uniform_seeds=uniform_seeds,
        )

    @staticmethod
    def _noise(level: float, draws: Draws) -> tuple[Tensor | None, Tensor | None]:
        """Scale and seeds of one kind of noise."""
        if not level:
            return None, None
        return level * draws.beta(2.0, 5.0).float(), draws.integers(0, SEEDS, per="sample")


def _like(noise: Tensor, values: Tensor) -> Tensor:
    """The noise in the dtype and memory layout of values, so that what is made of both has that layout too."""
    if noise.dtype == values.dtype and noise.stride() == values.stride():
        return noise
    return torch.empty_like(values, requires_grad=False).copy_(noise)
