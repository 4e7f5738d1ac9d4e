"""What policies share that act behind stages of a model: which modules these are, and how their outputs lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mixaug.batch import Batch
from mixaug.checks import check_stage, shown
from mixaug.draws import Draws
from mixaug.plan import Hidden
from mixaug.policy import Policy, SharedOptions
from mixaug.signals import ModelSignals, Signals, backbone
from mixaug.signals.model import model_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

#: The name of the model's input among stages.
INPUT = "input"

#: Which modules a policy's stages are, by the policy's class and its option, for every model that was asked about.
_resolved: WeakKeyDictionary[nn.Module, dict[Any, tuple[str, ...]]] = WeakKeyDictionary()


class StagePolicy(Policy):
    """Base of policies that act behind stages of a model.

    Args:
        stages: names of modules, as in ``model.named_modules()``; numbers of stages in timm's counting, -1 the last;
            ``"input"``. None takes the policy's own, :meth:`default_stages`.
        alpha: see :class:`mixaug.Policy`.
        **shared: see :class:`mixaug.policy.SharedOptions`.

    Raises:
        ValueError: an option out of range; when drawing, a model without a stage of that number, or two names of one
            stage; when training, a model without a module of that name.
    """

    needs = frozenset({"hidden"})
    spatial: ClassVar[tuple[int, ...] | None] = None
    has_mask = False

    def __init__(
        self, *, stages: Sequence[int | str] | None = None, alpha: float = 1.0, **shared: Unpack[SharedOptions]
    ) -> None:
        super().__init__(alpha=alpha, **shared)
        self.stages = None if stages is None else check_stages(type(self).__name__, stages)

    def default_stages(self, model: nn.Module | None) -> tuple[str, ...]:
        """Names of the modules of a model that ``stages=None`` stands for; those of a ResNet where there is no model.

        Raises:
            ValueError: the model has none of these.
        """
        raise TypeError(f"{type(self).__name__} does not define default_stages(model)")

    def hidden_stages(self, signals: Signals | ModelSignals) -> tuple[str, ...]:
        return tuple(name for name in self.eligible(model_of(signals)) if name != INPUT)

    def eligible(self, model: nn.Module | None) -> tuple[str, ...]:
        """Names of the modules of a model, or ``"input"``, that the policy's stages are.

        Raises:
            ValueError: numbers without a model, or without such a stage in it; one stage twice.
        """
        if model is None:
            return self._resolve(None)
        # Looking through a deep model takes longer than a small blend.
        known = _resolved.setdefault(model, {})
        key = (type(self), self.stages)
        if key not in known:
            known[key] = self._resolve(model)
        return known[key]

    def _resolve(self, model: nn.Module | None) -> tuple[str, ...]:
        if self.stages is None:
            return self.default_stages(model)
        what = type(self).__name__
        names = tuple(stage if isinstance(stage, str) else _numbered(what, model, stage) for stage in self.stages)
        if len(set(names)) != len(names):
            raise ValueError(f"{what} expects each stage once, but stages={list(self.stages)} are {list(names)}")
        return names

    def draw_stage(self, batch: Batch, draws: Draws) -> tuple[Tensor, tuple[str, ...]]:
        """One of the stages for the whole batch: (1,) int64 index, and the names that it counts.

        Where the host can know the drawn one, without waiting for a device, there is only that one to choose from.
        """
        eligible = self.eligible(model_of(batch.signals))
        stage = torch.zeros(1, dtype=torch.int64, device=batch.device)
        if len(eligible) > 1 and batch.device.type == "cuda" and not torch.compiler.is_compiling():
            return stage, (eligible[draws.host_integer(len(eligible))],)
        if len(eligible) > 1:
            stage = draws.integers(0, len(eligible), per="batch")
        return stage, eligible


@dataclass(frozen=True, kw_only=True)
class Staged(Hidden):
    """A plan that has to know which axis of the outputs of its stages holds channels.

    Attributes:
        channels_last: whether maps are (B, *size, C) and not (B, C, *size).
        sequences: whether outputs of three axes are sequences (B, C, L) and not tokens (B, N, C).
    """

    channels_last: bool = False
    sequences: bool = False

    @staticmethod
    def layout(batch: Batch) -> dict[str, Any]:
        """The attributes for the model of a batch: outputs of three axes are sequences where the inputs are."""
        model = model_of(batch.signals)
        return {
            "channels_last": getattr(model, "output_fmt", None) == "NHWC",
            "sequences": len(batch.size) == 1,
        }

    def channel_axis(self, features: Tensor) -> int:
        """The axis of outputs (B, ...) that holds channels."""
        if features.ndim == 3:
            return 1 if self.sequences else 2
        return features.ndim - 1 if self.channels_last and features.ndim > 3 else 1


def early_stages(what: str, model: nn.Module | None, count: int) -> tuple[str, ...]:
    """Names of modules that the first of a model's four stages end at.

    ``layer1``, ``layer2``, ... where there are such modules (ResNets). Else of the stages that timm's ``feature_info``
    tells or that are found, the stem left out, the first of the last four; of models that keep one resolution (ViT,
    MLP-Mixer) the blocks at a quarter, at half and so on of the depth, where ``layer1`` and ``layer2`` end in a ResNet.
    Without a model those of ResNets.

    Args:
        what: who asks, for messages.
        model: any module, or None.
        count: how many, 1 to 3.

    Raises:
        ValueError: the model has none of these.
    """
    of_resnets = [f"layer{number}" for number in range(1, count + 1)]
    if model is None or (hasattr(model, "layer1") and hasattr(model, "layer2")):
        return tuple(name for name in of_resnets if model is None or hasattr(model, name))
    found = list(dict.fromkeys(backbone.stages_of(model)))
    if not found:
        raise ValueError(
            f"{what} found no stages in {type(model).__name__}: name modules of it, such as "
            f"stages={[name for name, _ in model.named_children()][:count]}"
        )
    if len(found) > 1 and _is_leaf(model, found[0]) and not _is_leaf(model, found[1]):
        del found[0]
    if _keeps_resolution(model):
        chosen = [found[-(-len(found) * quarter // 4) - 1] for quarter in range(1, count + 1)]
    else:
        chosen = found[-4:][:count]
    return tuple(dict.fromkeys(chosen))


def _keeps_resolution(model: nn.Module) -> bool:
    info: Any = getattr(model, "feature_info", None)
    entries = list(getattr(info, "info", info) or ())
    return len({entry.get("reduction") for entry in entries}) == 1 if entries else backbone.is_plain(model)


def _is_leaf(model: nn.Module, name: str) -> bool:
    return next(model.get_submodule(name).children(), None) is None


def check_stages(what: str, stages: Sequence[int | str]) -> tuple[int | str, ...]:
    """``stages`` as a tuple of names and numbers, or a ValueError."""
    if isinstance(stages, (str, bytes, bytearray)) or not isinstance(stages, Sequence) or not len(stages):
        raise ValueError(
            f"{what} expects stages as a sequence of module names, got {shown(stages)}; numbers in it count "
            "timm's stages, None takes the default"
        )
    checked = tuple(check_stage(what, "each of stages", stage) for stage in stages)
    if len(set(checked)) != len(checked):
        raise ValueError(f"{what} expects each of stages once, got {list(stages)}")
    return checked


def _numbered(what: str, model: nn.Module | None, stage: int) -> str:
    if model is None:
        raise ValueError(
            f"{what} counts stage {stage} on a model: train through mixaug.MixStep, pass signals=model, or name modules"
        )
    return backbone.stage_name(model, stage)
