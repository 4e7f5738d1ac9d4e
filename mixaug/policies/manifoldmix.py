"""Manifold Mixup (arXiv:1806.05236): mixup of hidden features at a stage drawn anew for every batch.

    h' = lam * h + (1 - lam) * h[partner]   after stage k ~ Uniform(stages),   lam ~ Beta(alpha, alpha)

Acts inside the model, so train through :class:`mixaug.MixStep`; or make ``mixed = policy(images, labels,
signals=model)`` and call the model ``with policy.tap(model, mixed)``. Gradients flow through both halves. The stages
before k see clean data, those after it mixed data, normalisation statistics included, as in the authors' code.

With one stage nothing is drawn. The drawn stage is known to the host, so that the others cost nothing: read on a CPU,
on a GPU computed from the stream's seed and position. Where neither can be done (while ``torch.compile`` traces the
draw, on other devices), every stage is hooked and all but the drawn one mix with lam = 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mixaug.batch import Batch
from mixaug.checks import check_stage, shown
from mixaug.draws import Draws
from mixaug.plan import Hidden, Plan
from mixaug.policy import Policy, SharedOptions
from mixaug.registry import register
from mixaug.signals import ModelSignals, Signals, backbone
from mixaug.signals.model import model_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["ManifoldMix"]

INPUT = "input"


#: Places where the authors mix in ResNets: the input and the first two stages.
OF_RESNETS = (INPUT, "layer1", "layer2")


def manifold_stages(model: nn.Module | None) -> tuple[str, ...]:
    """The input and two stages in the first half of a model: the default of :class:`ManifoldMix`.

    ``layer1`` and ``layer2`` where there are such modules (ResNets). Else of the stages that timm's ``feature_info``
    tells or that are found, the stem left out, the first two of the last four; of models that keep one resolution (ViT,
    MLP-Mixer) the blocks at a quarter and at half of the depth, where ``layer1`` and ``layer2`` end in a ResNet.
    Without a model the names of ResNets.

    Raises:
        ValueError: the model has none of these.
    """
    if model is None or (hasattr(model, "layer1") and hasattr(model, "layer2")):
        return OF_RESNETS
    found = list(dict.fromkeys(backbone.stages_of(model)))
    if not found:
        raise ValueError(
            f"ManifoldMix found no stages in {type(model).__name__}: name modules of it, such as "
            f"stages={[INPUT, *[name for name, _ in model.named_children()][:2]]}"
        )
    if len(found) > 1 and _is_leaf(model, found[0]) and not _is_leaf(model, found[1]):
        del found[0]
    if _keeps_resolution(model):
        chosen = [found[-(-len(found) // 4) - 1], found[-(-len(found) // 2) - 1]]
    else:
        chosen = found[-4:][:2]
    return tuple(dict.fromkeys([INPUT, *chosen]))


@register(
    "manifoldmix",
    paper="Manifold Mixup: Better Representations by Interpolating Hidden States, ICML 2019",
    arxiv="1806.05236",
    family="hidden features",
)
class ManifoldMix(Policy):
    """Blend the hidden features of every sample with its partner's, after a random stage of the model.

    Args:
        alpha: lam ~ Beta(alpha, alpha); 2.0 is the paper's value for CIFAR, 0.2 for Tiny-ImageNet.
        stages: where to mix, one of them drawn per batch: names of the model's modules, as in
            ``model.named_modules()``; numbers of stages in timm's counting, -1 the last; ``"input"``. None takes the
            input and two stages in the model's first half, see :func:`manifold_stages`; for ResNets the authors'
            choice. Outputs that are lists, tuples or dicts of tensors (B, ...) are mixed entry by entry.
        ratio, pairing, labeling: see :class:`mixaug.Policy`.
        per: how often lam is drawn; the authors draw one per batch.

    Raises:
        ValueError: an option out of range; when drawing, a model without a stage of that number, or two names of one
            stage; when training, a model without a module of that name.
    """

    needs = frozenset({"hidden"})
    spatial = None
    shared_defaults: ClassVar[SharedOptions] = {"per": "batch"}

    def __init__(
        self,
        alpha: float = 2.0,
        stages: Sequence[int | str] | None = None,
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(alpha=alpha, **shared)
        self.stages = None if stages is None else check_stages("ManifoldMix", stages)

    def hidden_stages(self, signals: Signals | ModelSignals) -> tuple[str, ...]:
        return tuple(name for name in self.eligible(model_of(signals)) if name != INPUT)

    def eligible(self, model: nn.Module | None) -> tuple[str, ...]:
        """Names of the modules of a model, or ``"input"``, of which one is drawn.

        Raises:
            ValueError: numbers without a model, or without such a stage in it; one stage twice.
        """
        if model is None:
            return self._resolved(None)
        # Looking through a deep model takes longer than a small blend.
        known = _resolved.setdefault(model, {})
        if self.stages not in known:
            known[self.stages] = self._resolved(model)
        return known[self.stages]

    def _resolved(self, model: nn.Module | None) -> tuple[str, ...]:
        if self.stages is None:
            return manifold_stages(model)
        names = tuple(stage if isinstance(stage, str) else _numbered(model, stage) for stage in self.stages)
        if len(set(names)) != len(names):
            raise ValueError(f"ManifoldMix expects each stage once, but stages={list(self.stages)} are {list(names)}")
        return names

    def sample(self, batch: Batch, partner: Tensor, draws: Draws) -> Plan:
        eligible = self.eligible(model_of(batch.signals))
        stage = torch.zeros(1, dtype=torch.int64, device=batch.device)
        if len(eligible) > 1 and batch.device.type == "cuda" and not torch.compiler.is_compiling():
            eligible = (eligible[draws.host_integer(len(eligible))],)
        elif len(eligible) > 1:
            stage = draws.integers(0, len(eligible), per="batch")
        lam = self.ratio(draws).float()
        return Hidden(partner=partner, lam=lam, stage=stage, eligible=eligible)


_resolved: WeakKeyDictionary[nn.Module, dict[tuple[int | str, ...] | None, tuple[str, ...]]] = WeakKeyDictionary()


def check_stages(what: str, stages: Sequence[int | str]) -> tuple[int | str, ...]:
    if isinstance(stages, str) or not isinstance(stages, Sequence) or not len(stages):
        raise ValueError(
            f"{what} expects stages as a sequence of module names, got {shown(stages)}; numbers in it count "
            "timm's stages, None takes the default"
        )
    checked = tuple(check_stage(what, "each of stages", stage) for stage in stages)
    if len(set(checked)) != len(checked):
        raise ValueError(f"{what} expects each of stages once, got {list(stages)}")
    return checked


def _numbered(model: nn.Module | None, stage: int) -> str:
    if model is None:
        raise ValueError(
            f"ManifoldMix counts stage {stage} on a model: train through mixaug.MixStep, pass signals=model, or name "
            "modules"
        )
    return backbone.stage_name(model, stage)


def _keeps_resolution(model: nn.Module) -> bool:
    info: Any = getattr(model, "feature_info", None)
    entries = list(getattr(info, "info", info) or ())
    return len({entry.get("reduction") for entry in entries}) == 1 if entries else backbone.is_plain(model)


def _is_leaf(model: nn.Module, name: str) -> bool:
    return next(model.get_submodule(name).children(), None) is None
