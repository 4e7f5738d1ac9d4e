"""MoEx (arXiv:2002.11102): hidden features of one sample take over the moments of another's.

    h' = (h - m) / s * s[partner] + m[partner]      m, s = mean and deviation of the features, by a norm
    label = lam * y + (1 - lam) * y[partner]        lam = 0.9, a constant

The own label goes with the normalised features, the partner's with the moments. Gradients flow through both, moments
included. The default norm takes moments over the channels at every position. Moments are computed in float32.

With ``before``, another policy mixes the images first, by the same partners: the label of a mixed sample then is lam
times its own mixture and 1 - lam times that of its partner. The authors train so with CutMix.

Differs from the authors' code: their CIFAR networks run the stem twice, so that its batch statistics move twice in a
step; here the moments of the partner are those that are there. Their norm ``bn`` has no moments of a sample to exchange
and is not offered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import torch
from torch import Tensor, nn

from mixaug import labeling as labelings
from mixaug.batch import Batch
from mixaug.checks import check_choice, check_flag, check_partner, check_positive, check_stage, check_whole
from mixaug.draws import Draws
from mixaug.ops.layout import deliver
from mixaug.ops.moments import Norm, grouped, moments, with_moments
from mixaug.plan import Plan
from mixaug.policies.combinations import made
from mixaug.policies.stages import INPUT, Staged, StagePolicy
from mixaug.policy import Policy
from mixaug.registry import register
from mixaug.shared_options import SharedOptions
from mixaug.signals import backbone

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from mixaug.shared_options import TakesLabeling, TakesPairing, TakesPartners, TakesRatio

    class Offered(TakesRatio, TakesPairing, TakesLabeling, TakesPartners, total=False):
        """The shared options without those that ``not_offered`` names."""


__all__ = ["MoEx", "exchange_moments"]

#: Places where the authors exchange moments, in the order in which a model is asked for them: behind the first max
#: pooling of ResNets and DenseNets, and behind the first normalisation of networks for small images.
PLACES = ("maxpool", "features.pool0", "bn1")
#: Norms that have groups of channels.
GROUPED = ("gn", "gpono")


def exchange_moments(
    features: Tensor,
    partner: Tensor,
    norm: Norm = "pono",
    groups: int = 1,
    *,
    epsilon: float = 1e-5,
    positive_only: bool = False,
) -> Tensor:
    """Normalise the features of every sample and give them the moments of its partner's. Differentiable.

    Args:
        features: (B, C, *size) floating point.
        partner: (B,) int64.
        norm: what moments are taken over: ``"pono"`` the channels at every position, ``"in"`` the positions of every
            channel, ``"ln"`` both, ``"gn"`` positions and channels of a group, ``"gpono"`` the channels of a group at
            every position.
        groups: number of groups for ``"gn"`` and ``"gpono"``, divides C.
        epsilon: added to variances, positive.
        positive_only: take moments of the values above zero alone, as where a ReLU stands before.

    Returns:
        Features, dtype and layout of ``features``; gradients flow through the moments of both.

    Raises:
        ValueError: shapes that do not fit, moments that would be those of a single value.
        TypeError: features that are not floating point.
    """
    if not features.is_floating_point():
        raise TypeError(f"exchange_moments expects floating point features, got {features.dtype}")
    if features.ndim < 2:
        raise ValueError(f"exchange_moments expects features (B, C, *size), got {tuple(features.shape)}")
    check_partner("exchange_moments", partner, features.shape[0])
    check_positive("exchange_moments", "epsilon", epsilon)
    with torch.autocast(features.device.type, enabled=False):
        view, axes = grouped(features, norm, groups)
        own = moments(view, axes, epsilon, positive_only=positive_only)
        wanted = (own[0].index_select(0, partner), own[1].index_select(0, partner))
        return with_moments(view, own, wanted).flatten(1, 2)


@dataclass(frozen=True, kw_only=True)
class MomentExchange(Staged):
    """Moments exchanged behind one stage of a model.

    Attributes:
        norm, epsilon, positive_only: see :func:`exchange_moments`.
        groups: number of groups; None where ``group_size`` says how many channels one has.
        before: the plan that mixes the images first, or None.
    """

    norm: Norm
    groups: int | None
    group_size: int | None
    epsilon: float
    positive_only: bool
    before: Plan | None = None

    @property
    def is_mean(self) -> bool:
        return False

    @property
    def sources(self) -> Tensor:
        if self.before is None:
            return super().sources
        mixed = self.before.sources
        return torch.cat([mixed, mixed.index_select(0, self.partner)], 1)

    def area(self) -> Tensor:
        return self.lam if self.before is None else self.lam * self.before.area()

    def own_mask(self) -> Tensor | None:
        return None if self.before is None else self.before.own_mask()

    def mix(self, tensor: Tensor, *, out: Tensor | None = None, inplace: bool = False) -> Tensor:
        if self.before is not None:
            return self.before.mix(tensor, out=out, inplace=inplace)
        return tensor if inplace else deliver(tensor, tensor, out, False)

    def mix_label_map(self, label_map: Tensor, num_classes: int) -> Tensor:
        if self.before is not None:
            return self.before.mix_label_map(label_map, num_classes)
        return super().mix_label_map(label_map, num_classes)

    def mix_hidden(self, stage: str, features: Tensor) -> Tensor:
        axis = self.channel_axis(features)
        channels, size = features.shape[axis], self.group_size
        if size is not None and channels % size:
            raise ValueError(f"MoEx expects group_size to divide the {channels} channels behind {stage!r}, got {size}")
        groups = channels // size if size is not None else self.groups or 1
        exchanged = exchange_moments(
            features.movedim(axis, 1),
            self.partner,
            self.norm,
            groups,
            epsilon=self.epsilon,
            positive_only=self.positive_only,
        )
        return exchanged.movedim(1, axis)


@register(
    "moex",
    paper="On Feature Normalization and Data Augmentation, CVPR 2021",
    arxiv="2002.11102",
    family="hidden features",
)
class MoEx(StagePolicy):
    """Give the features of every sample the moments of its partner's; the partner's label weighs a tenth.

    Args:
        stage: where: name of a module, or number of a stage in timm's counting. None is the authors' place: behind the
            first max pooling of ResNets and DenseNets, the first normalisation of networks for small images; of
            other models behind timm's stage 0.
        norm: see :func:`mixaug.functional.exchange_moments`.
        groups: number of groups of channels, for the norms ``"gn"`` and ``"gpono"`` alone.
        group_size: channels of a group, in place of ``groups``.
        positive_only: take moments of the values above zero alone.
        epsilon: added to variances, positive.
        before: a policy, or its name, that mixes the images first, by the same partners; for policies that ask nothing
            of a model.
        ratio: share of the own label: 0.9, or what :class:`mixaug.Policy` takes, then drawn for each sample.
        pairing, labeling: see :class:`mixaug.Policy`. With ``before`` that policy's labeling counts, and none is taken
            here.

    Raises:
        ValueError: an option out of range, or one that would have no effect beside another; when drawing, a model
            without that stage.
    """

    shared_defaults: ClassVar[SharedOptions] = {"ratio": 0.9, "labeling": "ratio"}
    not_offered = ("alpha", "per", "stages")

    def __init__(
        self,
        stage: int | str | None = None,
        norm: Norm = "pono",
        groups: int | None = None,
        group_size: int | None = None,
        positive_only: bool = False,
        epsilon: float = 1e-5,
        before: Policy | str | None = None,
        **shared: Unpack[Offered],
    ) -> None:
        super().__init__(stages=None if stage is None else (check_stage("MoEx", "stage", stage),), **shared)
        if stage == INPUT:
            raise ValueError("MoEx expects stage as a module or stage of the model, got 'input': it acts inside")
        self.stage = stage
        check_choice("MoEx", "norm", norm, get_args(Norm))
        self.norm: Norm = norm
        self.groups = None if groups is None else check_whole("MoEx", "groups", groups)
        self.group_size = None if group_size is None else check_whole("MoEx", "group_size", group_size)
        if (norm in GROUPED) != ((groups is None) != (group_size is None)):
            raise ValueError(
                f"MoEx expects one of groups and group_size with norm 'gn' or 'gpono', and neither with others, got "
                f"norm={norm!r}, groups={groups}, group_size={group_size}"
            )
        self.positive_only = check_flag("MoEx", "positive_only", positive_only)
        self.epsilon = check_positive("MoEx", "epsilon", epsilon)
        self.before = None if before is None else made("MoEx", "before", before)
        if self.before is not None and self.before.needs:
            raise ValueError(
                f"MoEx expects before as a policy that asks nothing of the model, got {type(self.before).__name__}, "
                f"which needs {sorted(self.before.needs)}"
            )
        if self.before is not None and not isinstance(self.labeling, labelings.Drawn):
            raise ValueError("MoEx with before= takes the labels of that policy: give labeling= to it")

    def default_stages(self, model: nn.Module | None) -> tuple[str, ...]:
        if model is None:
            return PLACES[:1]
        modules = dict(model.named_modules())
        # Networks for small images have a place for max pooling with nothing in it.
        found = [place for place in PLACES if _does_something(modules.get(place))]
        return (found[0] if found else backbone.stage_name(model, 0),)

    @property
    def needs_labels(self) -> bool:
        return self._pairs_by_labels() or (self.before is not None and self.before.needs_labels)

    def check(self, batch: Batch) -> None:
        super().check(batch)
        if self.before is not None:
            self.before.check(batch)

    def sample(self, batch: Batch, partner: Tensor, draws: Draws) -> Plan:
        stage, eligible = self.draw_stage(batch, draws)
        lam = self.ratio(draws).float()
        more: dict[str, Any] = {}
        if self.before is not None:
            before = self.before.plan(batch, draws.generator, partner)
            own = lam[:, None]
            shares = before.weights
            assert shares is not None  # plans come with the weights of their labeling
            more = {
                "before": before,
                "size": before.size,
                "weights": torch.cat([own * shares, (1 - own) * shares.index_select(0, partner)], 1),
            }
        return MomentExchange(
            partner=partner,
            lam=lam,
            stage=stage,
            eligible=eligible,
            norm=self.norm,
            groups=self.groups,
            group_size=self.group_size,
            epsilon=self.epsilon,
            positive_only=self.positive_only,
            **Staged.layout(batch),
            **more,
        )


def _does_something(module: nn.Module | None) -> bool:
    idle = isinstance(module, nn.Identity) or (isinstance(module, nn.Sequential) and not len(module))
    return module is not None and not idle
