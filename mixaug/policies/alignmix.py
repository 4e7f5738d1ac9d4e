"""AlignMixup (arXiv:2103.15375): mixup of the last features, after moving those of one image onto the other's places.

    R = r * Sinkhorn(|a_i - a'_j|^2, eps)    transport between the r cells of own and partner, rows and columns about 1
    h' = lam * A + (1 - lam) * R A'          direction 0: geometry of the own image
    h' = lam * R^T A + (1 - lam) * A'        direction 1: geometry of the partner

lam ~ Beta(alpha, alpha) is the own label's weight in both directions. A coin per batch decides between this and
ordinary mixup of the images. Gradients flow through both feature maps, not through R.

Differs from the authors' code: Sinkhorn runs a fixed number of iterations, so that a sample does not depend on the
batch it is in; theirs stops once the mean change over the batch is small, usually after two. Before it has converged
the rows of their plan do not sum to 1 (0.1 to 4 where costs are thousands of eps), which scales aligned features in
direction 0; here they are made to, unless ``reference=True``. Distances come from a matrix product, not from all
differences, and in float32. Class tokens and the like have no place and are mixed as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from mixaug.batch import Batch
from mixaug.checks import (
    check_flag,
    check_partner,
    check_positive,
    check_probability,
    check_share,
    check_stage,
    check_whole,
)
from mixaug.draws import Draws
from mixaug.ops.blend import blend
from mixaug.ops.layout import column, reads_freely, single_precision
from mixaug.plan import Blend, Hidden, Plan
from mixaug.policy import Policy, SharedOptions
from mixaug.registry import register
from mixaug.signals import ModelSignals, Signals, backbone
from mixaug.signals.model import model_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["AlignMix", "alignment_cost", "alignmix", "sinkhorn_plan"]

#: Constant by which the authors' code keeps the logarithm of the marginals finite.
TINY = 1e-8
#: Number of entries of plans that a CPU works on at a time.
CHUNK = 2**16
#: Largest number of cells that are aligned: a plan holds their square for each sample, and Sinkhorn goes through it
#: 40 times.
MOST_CELLS = 2048


def alignment_cost(cells: Tensor, others: Tensor) -> Tensor:
    """Squared distances between all cells of two images.

    Args:
        cells, others: (B, r, C) features, any floating dtype.

    Returns:
        (B, r, r) float32 (float64 for float64), >= 0; entry i, j for cell i of ``cells`` and j of ``others``. No
        gradient flows.

    Raises:
        ValueError: another shape.
    """
    if cells.ndim != 3 or cells.shape != others.shape:
        raise ValueError(f"alignment_cost expects two times (B, r, C), got {tuple(cells.shape)}, {tuple(others.shape)}")
    with torch.no_grad(), torch.autocast(cells.device.type, enabled=False):
        own, other = single_precision(cells.detach()), single_precision(others.detach())
        # A common shift changes no distance, but it makes the terms that cancel in the expanded square small.
        centre = own.mean(1, keepdim=True)
        own, other = own - centre, other - centre
        squares = own.square().sum(2)[:, :, None] + other.square().sum(2)[:, None, :]
        return torch.baddbmm(squares, own, other.transpose(1, 2), alpha=-2).clamp_(min=0)


def sinkhorn_plan(cost: Tensor, epsilon: float = 0.1, iterations: int = 20) -> Tensor:
    """Entropic transport between uniform marginals, in the log domain.

    Args:
        cost: (B, r, s) floating point, finite.
        epsilon: weight of the entropy, positive, in the units of ``cost``.
        iterations: of rows, then columns; afterwards the columns sum to 1/s, the rows nearly to 1/r.

    Returns:
        (B, r, s) float32 (float64 for float64) shares of the mass, each plan of sum 1.

    Raises:
        ValueError: another shape, an epsilon that is not positive, fewer than one iteration.
    """
    if cost.ndim != 3:
        raise ValueError(f"sinkhorn_plan expects cost (B, r, s), got {tuple(cost.shape)}")
    _check_sinkhorn("sinkhorn_plan", epsilon, iterations)
    with torch.autocast(cost.device.type, enabled=False):
        gain = -single_precision(cost)
        if not reads_freely(gain):
            return _transport(gain, epsilon, iterations)
        # A CPU works on a few samples at a time, whose numbers stay in its caches.
        parts = gain.split(max(1, CHUNK // max(1, gain.shape[1] * gain.shape[2])))
        return torch.cat([_transport(part, epsilon, iterations) for part in parts])


def _transport(gain: Tensor, epsilon: float, iterations: int) -> Tensor:
    row_mass, column_mass = (math.log(1 / side + TINY) for side in gain.shape[1:])
    rows, columns = torch.zeros_like(gain[:, :, :1]), torch.zeros_like(gain[:, :1])
    for _ in range(iterations):
        # The old potential could be left out on both sides, but so the exponents stay small.
        rows = rows + epsilon * (row_mass - _log_sum((gain + rows + columns).div_(epsilon), 2))
        columns = columns + epsilon * (column_mass - _log_sum((gain + rows + columns).div_(epsilon), 1))
    return ((gain + rows + columns) / epsilon).exp()


def _log_sum(exponents: Tensor, dim: int) -> Tensor:
    """``exponents.logsumexp(dim, keepdim=True)``, which may overwrite them."""
    if not reads_freely(exponents):
        return exponents.logsumexp(dim, keepdim=True)
    # A CPU takes ten times as long for an exponential that underflows, as most do here. What is kept from that adds
    # less than rounding to a sum of at least 1.
    highest = exponents.amax(dim, keepdim=True)
    lowest = math.log(torch.finfo(exponents.dtype).tiny) + 1
    return exponents.sub_(highest).clamp_(min=lowest).exp_().sum(dim, keepdim=True).log_().add_(highest)


def alignmix(
    features: Tensor,
    partner: Tensor,
    lam: Tensor,
    direction: Tensor,
    *,
    epsilon: float = 0.1,
    iterations: int = 20,
    plan: Tensor | None = None,
    reference: bool = False,
    channels_last: bool = False,
    prefix: int = 0,
) -> Tensor:
    """Align the features of every sample and its partner and blend them.

    Args:
        features: (B, C, *size) maps, (B, *size, C) with ``channels_last``, or tokens (B, N, C).
        partner: (B,) int64.
        lam: (B,) or (1,) share of the own sample, in [0, 1].
        direction: (B,) or (1,) int64: 0 moves the partner's cells to the own places, 1 the own to the partner's.
        epsilon, iterations: see :func:`sinkhorn_plan`.
        plan: (B, r, r) transport from own cells to the partner's, where it is known.
        reference: leave the shares that a cell is put together from as Sinkhorn left them, not of sum 1.
        channels_last: of maps.
        prefix: tokens before the image tokens; they are blended without alignment.

    Returns:
        Mixed features, dtype and layout of ``features``. Gradients flow through the features of both.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: features that are not floating point.
    """
    if not features.is_floating_point():
        raise TypeError(f"alignmix expects floating point features, got {features.dtype}")
    if features.ndim < 3 or (features.ndim == 3 and features.shape[1] <= prefix):
        raise ValueError(
            f"alignmix expects maps (B, C, h, w), (B, h, w, C) or more than {prefix} tokens (B, N, C), got "
            f"{tuple(features.shape)}"
        )
    check_partner("alignmix", partner, features.shape[0])
    check_share("alignmix", "lam", lam, features.shape[0])
    if direction.dtype != torch.int64 or direction.ndim != 1 or direction.shape[0] not in (1, features.shape[0]):
        raise ValueError(
            f"alignmix expects direction ({features.shape[0]},) or (1,) int64, got {tuple(direction.shape)} "
            f"{direction.dtype}"
        )
    _check_sinkhorn("alignmix", epsilon, iterations)
    last = features if channels_last or features.ndim == 3 else features.movedim(1, -1)
    cells = features[:, prefix:] if features.ndim == 3 else last.flatten(1, -2)
    others = cells.index_select(0, partner)
    if plan is None:
        plan = sinkhorn_plan(alignment_cost(cells, others), epsilon, iterations)
    elif plan.shape != (*cells.shape[:2], cells.shape[1]):
        raise ValueError(f"alignmix expects plan {(*cells.shape[:2], cells.shape[1])}, got {tuple(plan.shape)}")
    mixed = _mix_cells(cells, others, plan.detach(), lam, direction, reference)
    if features.ndim == 3:
        return torch.cat([blend(features[:, :prefix], partner, lam), mixed], 1) if prefix else mixed
    mixed = mixed.reshape(last.shape)
    if channels_last:
        return mixed
    mixed = mixed.movedim(-1, 1)
    # This copies only where the features were not channels_last themselves.
    return mixed.contiguous() if features.is_contiguous() else mixed


def _mix_cells(cells: Tensor, others: Tensor, plan: Tensor, lam: Tensor, direction: Tensor, reference: bool) -> Tensor:
    """(B, r, C) to the same."""
    to_partner = column(direction, cells) == 1
    # One product serves both directions: the cells that stay, and the way of those that move.
    stay, move = torch.where(to_partner, others, cells), torch.where(to_partner, cells, others)
    way = torch.where(to_partner, plan.transpose(1, 2), plan)
    way = way * cells.shape[1] if reference else way / way.sum(2, keepdim=True)
    own = column(lam, cells).to(way.dtype)
    share = torch.where(to_partner, 1 - own, own)
    with torch.autocast(cells.device.type, enabled=False):
        return torch.lerp(way @ move.to(way.dtype), stay.to(way.dtype), share).to(cells.dtype)


@dataclass(frozen=True, kw_only=True)
class Aligned(Hidden):
    """Features aligned and blended at one stage of a model.

    Attributes:
        direction: (R,) int64, see :func:`alignmix`.
        epsilon, iterations: of Sinkhorn.
        reference: see :func:`alignmix`.
        channels_last: how the model lays out its maps.
        prefix: tokens of the model that are no image tokens; None where the model was not known.
        counted: number of the stage, where there was no model to count on.
    """

    direction: Tensor
    epsilon: float
    iterations: int
    reference: bool = False
    channels_last: bool = False
    prefix: int | None = None
    counted: int | None = None

    @property
    def stages(self) -> tuple[str, ...]:
        if self.counted is not None:
            raise ValueError(
                f"this plan of AlignMix mixes after stage {self.counted} of a model, but was drawn without one: pass "
                'signals=model when drawing, or name a module, stage="layer4"'
            )
        return super().stages

    def mix_hidden(self, stage: str, features: Tensor) -> Tensor:
        if features.ndim == 3 and self.prefix is None:
            raise ValueError(
                "AlignMix must know which tokens are no image tokens: pass signals=model when drawing its plan"
            )
        # Tokens are (B, N, C), maps (B, C, *size) or (B, *size, C).
        places_first = features.ndim == 3 or self.channels_last
        cells = math.prod(features.shape[1:-1] if places_first else features.shape[2:])
        if cells > MOST_CELLS:
            raise ValueError(
                f"AlignMix aligns at most {MOST_CELLS} cells with as many, but the features after {stage!r} are "
                f"{tuple(features.shape)}, {cells} cells: name a deeper stage=, or mix the images alone with "
                "input_probability=1"
            )
        return alignmix(
            features,
            self.partner,
            self.lam,
            self.direction,
            epsilon=self.epsilon,
            iterations=self.iterations,
            reference=self.reference,
            channels_last=self.channels_last,
            prefix=self.prefix or 0,
        )


@register(
    "alignmix",
    paper="AlignMixup: Improving Representations by Interpolating Aligned Features, CVPR 2022",
    arxiv="2103.15375",
    family="hidden features",
)
class AlignMix(Policy):
    """Blend the last features of every sample with its partner's, aligned by transport; or, by a coin, the images.

    Args:
        alpha: lam ~ Beta(alpha, alpha); 2.0 is the paper's value.
        input_probability: chance per batch to mix the images instead, in [0, 1]; 0.5 is the authors', 0 OpenMixup's.
        stage: where to mix: the number of a stage in timm's counting, -1 the last, or the name of a module. A name
            with given Signals instead of a model is for maps (B, C, h, w).
        epsilon: weight of the entropy beside squared distances of features.
        iterations: of Sinkhorn.
        reference: align with a plan whose rows do not sum to 1, as the authors' code does.
        ratio, pairing, labeling: see :class:`mixaug.Policy`.
        per: how often lam and the direction are drawn; the authors draw one of each per batch.

    Raises:
        ValueError: an option out of range; when drawing, a model without that stage; in the mixed pass, features of
            more than 2048 cells, whose alignment would take the square of that for every sample.
    """

    needs = frozenset({"hidden"})
    spatial = None
    has_mask = False
    shared_defaults: ClassVar[SharedOptions] = {"per": "batch"}

    def __init__(
        self,
        alpha: float = 2.0,
        input_probability: float = 0.5,
        stage: int | str = -1,
        epsilon: float = 0.1,
        iterations: int = 20,
        reference: bool = False,
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(alpha=alpha, **shared)
        self.input_probability = check_probability("AlignMix", "input_probability", input_probability)
        self.stage = check_stage("AlignMix", "stage", stage)
        self.epsilon, self.iterations = _check_sinkhorn("AlignMix", epsilon, iterations)
        self.reference = check_flag("AlignMix", "reference", reference)

    def hidden_stages(self, signals: Signals | ModelSignals) -> tuple[str, ...]:
        model = model_of(signals)
        if self.input_probability == 1 or model is None:
            return ()
        return (backbone.stage_name(model, self.stage),)

    def sample(self, batch: Batch, partner: Tensor, draws: Draws) -> Plan:
        chance = self.input_probability
        at_input = chance == 1 or (chance > 0 and draws.host_choice((chance, 1 - chance)) == 0)
        lam = self.ratio(draws).float()
        if at_input:
            return Blend(partner=partner, lam=lam)
        direction = draws.integers(0, 2)
        model = model_of(batch.signals)
        known: dict[str, Any] = {"eligible": (str(self.stage),)}
        if model is None:
            known["counted"] = self.stage if isinstance(self.stage, int) else None
        else:
            known["eligible"] = (backbone.stage_name(model, self.stage),)
            known["channels_last"] = backbone.channels_last(model)
            known["prefix"] = backbone.prefix_tokens(model)
        return Aligned(
            partner=partner,
            lam=lam,
            stage=torch.zeros(1, dtype=torch.int64, device=batch.device),
            direction=direction,
            epsilon=self.epsilon,
            iterations=self.iterations,
            reference=self.reference,
            **known,
        )


def _check_sinkhorn(what: str, epsilon: float, iterations: int) -> tuple[float, int]:
    """Both as plain numbers, or a ValueError."""
    return check_positive(what, "epsilon", epsilon), check_whole(
        what, "iterations", iterations, most=10_000, reason="a larger epsilon converges in far fewer"
    )
