"""MixStyle (arXiv:2107.02053): early features of a sample take over a blend of its own and another's statistics.

    h' = (h - m) / s * (lam s + (1 - lam) s[partner]) + lam m + (1 - lam) m[partner]

m and s are mean and deviation over the positions of every channel, computed in float32; no gradient flows through
them, so dh'/dh is the quotient of the deviations. The label is the sample's own. Behind every stage a coin per batch
decides whether anything is mixed there, and partners and lam are drawn anew. The authors place it behind the first two
stages of ResNets, never behind the last.

Across domains: ``pairing="halves"`` for batches whose halves are of one domain each, as the authors' sampler makes.
Differs from the authors' code: in an odd batch one sample keeps its statistics there; theirs drops one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from mixaug.batch import Batch
from mixaug.checks import check_partner, check_positive, check_probability, check_share
from mixaug.draws import Draws
from mixaug.ops.layout import column, deliver, reads_freely
from mixaug.ops.moments import grouped, moments, with_moments
from mixaug.plan import Plan, Unmixed
from mixaug.policies.stages import INPUT, Staged, StagePolicy, early_stages
from mixaug.registry import register
from mixaug.shared_options import SharedOptions
from mixaug.signals.model import model_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from mixaug.shared_options import TakesLabeling, TakesPairing, TakesPer, TakesRatio

    class Offered(TakesRatio, TakesPairing, TakesLabeling, TakesPer, total=False):
        """The shared options without those that ``not_offered`` names."""


__all__ = ["MixStyle", "mix_styles"]


def mix_styles(features: Tensor, partner: Tensor, lam: Tensor, *, epsilon: float = 1e-6) -> Tensor:
    """Normalise the features of every sample and give them a blend of its own and its partner's statistics.

    Args:
        features: (B, C, *size) floating point, at least two positions.
        partner: (B,) int64.
        lam: (B,) or (1,) share of the own statistics, in [0, 1].
        epsilon: added to variances, positive.

    Returns:
        Features, dtype and layout of ``features``; no gradient flows through the statistics.

    Raises:
        ValueError: shapes that do not fit, a single position.
        TypeError: features that are not floating point.
    """
    if not features.is_floating_point():
        raise TypeError(f"mix_styles expects floating point features, got {features.dtype}")
    if features.ndim < 2:
        raise ValueError(f"mix_styles expects features (B, C, *size), got {tuple(features.shape)}")
    check_partner("mix_styles", partner, features.shape[0])
    check_share("mix_styles", "lam", lam, features.shape[0])
    check_positive("mix_styles", "epsilon", epsilon)
    with torch.autocast(features.device.type, enabled=False):
        view, axes = grouped(features, "in")
        with torch.no_grad():
            own = moments(view, axes, epsilon)
            share = column(lam, own[0]).to(own[0].dtype)
            mean, deviation = (torch.lerp(value.index_select(0, partner), value, share) for value in own)
        return with_moments(view, own, (mean, deviation)).flatten(1, 2)


@dataclass(frozen=True, kw_only=True)
class StyleMix(Staged):
    """Statistics blended behind several stages of a model, each with draws of its own.

    Attributes:
        partners: (B,) int64 for every stage of ``eligible``; ``partner`` is the first of them.
        shares: (R,) float32 lam for every stage; ``lam`` is the first of them.
        active: (S,) bool, where anything is mixed; None where that is behind every stage.
        epsilon: see :func:`mix_styles`.
    """

    partners: tuple[Tensor, ...]
    shares: tuple[Tensor, ...]
    active: Tensor | None
    epsilon: float

    @property
    def is_mean(self) -> bool:
        return False

    @property
    def stages(self) -> tuple[str, ...]:
        return self.eligible

    @property
    def drawn_stage(self) -> str | None:
        if len(self.eligible) > 1:
            raise ValueError(f"MixStyle mixes behind {list(self.eligible)}, and not behind one stage alone")
        return self.eligible[0]

    def mix(self, tensor: Tensor, *, out: Tensor | None = None, inplace: bool = False) -> Tensor:
        return tensor if inplace else deliver(tensor, tensor, out, False)

    def mix_hidden(self, stage: str, features: Tensor) -> Tensor:
        index, axis = self.eligible.index(stage), self.channel_axis(features)
        mixed = mix_styles(
            features.movedim(axis, 1), self.partners[index], self.shares[index], epsilon=self.epsilon
        ).movedim(1, axis)
        return mixed if self.active is None else torch.where(self.active[index], mixed, features)


@register(
    "mixstyle",
    paper="Domain Generalization with MixStyle, ICLR 2021, and its extension of the same year",
    arxiv="2107.02053",
    family="hidden features",
)
class MixStyle(StagePolicy):
    """Blend the statistics of early features with those of a partner's; the label stays the sample's own.

    Args:
        alpha: lam ~ Beta(alpha, alpha), the share of the own statistics; 0.1 is the authors' value.
        probability: chance to mix, in [0, 1], tossed for every stage and batch; 0.5 is the authors'.
        stages: where: names of modules, or numbers of stages in timm's counting, all of them. None takes ``layer1`` and
            ``layer2`` of ResNets, and two stages in the first half of other models.
        epsilon: added to variances, positive.
        ratio, pairing, labeling, per: see :class:`mixaug.Policy`. ``pairing="halves"`` mixes across the two halves of a
            batch, of one domain each.

    Raises:
        ValueError: an option out of range; when drawing, a model without such stages; in the mixed pass, features of a
            single position.
    """

    shared_defaults: ClassVar[SharedOptions] = {"labeling": "own"}
    # Every stage that is drawn has partners of its own, in the batch.
    not_offered = ("partners",)

    def __init__(
        self,
        alpha: float = 0.1,
        probability: float = 0.5,
        stages: Sequence[int | str] | None = None,
        epsilon: float = 1e-6,
        **shared: Unpack[Offered],
    ) -> None:
        super().__init__(alpha=alpha, stages=stages, **shared)
        if INPUT in (self.stages or ()):
            raise ValueError("MixStyle expects stages of the model, got 'input' among them: it acts inside")
        self.probability = check_probability("MixStyle", "probability", probability)
        self.epsilon = check_positive("MixStyle", "epsilon", epsilon)

    def default_stages(self, model: nn.Module | None) -> tuple[str, ...]:
        return early_stages("MixStyle", model, 2)

    def sample(self, batch: Batch, partner: Tensor, draws: Draws) -> Plan:
        names = self.eligible(model_of(batch.signals))
        coins, active = self._toss(len(names), draws)
        names = tuple(name for name, mixes in zip(names, coins, strict=True) if mixes)
        if not names:
            return Unmixed(partner=partner, lam=torch.ones(len(batch), device=batch.device))
        partners, shares = [partner], []
        for index in range(len(names)):
            if index:
                partners.append(self.pairing(batch, draws))
                draws.pair_with(partners[-1])
            shares.append(self.ratio(draws).float())
        return StyleMix(
            partner=partner,
            lam=shares[0],
            stage=torch.zeros(1, dtype=torch.int64, device=batch.device),
            eligible=names,
            partners=tuple(partners),
            shares=tuple(shares),
            active=active,
            epsilon=self.epsilon,
            **Staged.layout(batch),
        )

    def _toss(self, count: int, draws: Draws) -> tuple[list[bool], Tensor | None]:
        """Which of the stages may mix, and (S,) bool which do, where the host cannot know that without waiting."""
        if draws.device.type == "cuda" and not torch.compiler.is_compiling():
            return [draws.host_uniform() < self.probability for _ in range(count)], None
        active = draws.uniform(shape=(count,), per="batch")[0] < self.probability
        return (active.tolist(), None) if reads_freely(active) else ([True] * count, active)
