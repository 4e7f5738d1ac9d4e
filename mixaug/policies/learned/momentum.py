"""The slow copy of a model that a learned mixer looks through."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mixaug.checks import check_probability, check_range
from mixaug.ops.precision import callers_precision
from mixaug.signals import backbone
from mixaug.signals.hooks import hooked


def momentum_at(progress: float, start: float, end: float, scope: Sequence[float] = (0.1, 1.0)) -> float:
    """Momentum of the slow copy after a part of training: constant, then a cosine towards ``end``.

    The cosine is that of the whole of training up to ``scope[1]``, entered at ``scope[0]``: the value jumps there a
    little, as in the released code of AutoMix.

    Args:
        progress: part of training that is done, in [0, 1].
        start, end: in [0, 1].
        scope: parts of training between which it rises.
    """
    if progress < scope[0]:
        return start
    return end - (end - start) * (math.cos(math.pi * min(progress / scope[1], 1.0)) + 1) / 2


class MomentumSchedule:
    """Momentum over training, see :func:`momentum_at`.

    Args:
        what: name of the policy, for messages.
        momentum: at the start of training, in [0, 1].
        momentum_end: at the end; None keeps it constant.
        scope: parts of training between which it rises.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self, what: str, momentum: float, momentum_end: float | None, scope: Sequence[float] = (0.1, 1.0)
    ) -> None:
        self.start = check_probability(what, "momentum", momentum)
        self.end = None if momentum_end is None else check_probability(what, "momentum_end", momentum_end)
        self.scope = check_range(what, "scope", scope, 0, 1)
        if self.scope[1] == 0:
            raise ValueError(f"{what} expects scope as two parts of training, the second above 0, got {scope!r}")

    @property
    def rises(self) -> bool:
        """Whether it depends on how far training is."""
        return self.end is not None

    def at(self, progress: float) -> float:
        """Momentum after a part of training, in [0, 1]."""
        return self.start if self.end is None else momentum_at(progress, self.start, self.end, self.scope)


class MomentumNetwork(nn.Module):
    """A slow copy of a model, without gradients to its own weights.

    Args:
        model: what to copy.
        stage: name of the module behind which its features are read.
        channels: of these features, where they are known.
    """

    def __init__(self, model: nn.Module, stage: str, channels: int | None = None) -> None:
        super().__init__()
        self.channels = channels
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.stage = stage

    def forward(self, images: Tensor) -> Any:
        """Outputs, with gradients to the images."""
        return self.model(self._as_weights(images))

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """(B, C, h, w) behind the stage, without gradients.

        A model of timm's conventions runs as far as the stage. Any other model runs to its end, so that batch
        statistics behind the stage see these images too, as in the released code of AutoMix.
        """
        number = backbone.stage_number(self.model, self.stage)
        if number is None:
            return self.features_and_outputs(images)[0]
        with callers_precision(images.device):
            (maps,) = self.model.forward_intermediates(  # type: ignore[operator]
                self._as_weights(images), indices=[number], stop_early=True, intermediates_only=True, output_fmt="NCHW"
            )
        found: Tensor = maps
        return found

    @torch.no_grad()
    def features_and_outputs(self, images: Tensor) -> tuple[Tensor, Any]:
        """:meth:`features` and the outputs, from one whole pass."""
        what = type(self.model).__name__
        recorder = StageRecorder(self.stage)
        with hooked(what, self.model, recorder=recorder), callers_precision(images.device):
            outputs = self.model(self._as_weights(images))
        if recorder.shown is None:
            raise ValueError(f"{what} ran without calling its module {self.stage!r}")
        value = recorder.shown[0] if isinstance(recorder.shown, (list, tuple)) else recorder.shown
        if not isinstance(value, Tensor):
            raise ValueError(f"stage {self.stage!r} of {what} gives {type(value).__name__}, no map")
        return backbone.as_map(self.model, value, images.shape[2:], self.channels), outputs

    @torch.no_grad()
    def follow(self, model: nn.Module, momentum: float) -> None:
        """Move every weight towards that of ``model``: ``k <- momentum * k + (1 - momentum) * q``. Buffers stay.

        Raises:
            ValueError: a model with other parameters.
        """
        theirs = dict(backbone.bare(model).named_parameters())
        ours = dict(self.model.named_parameters())
        if theirs.keys() != ours.keys():
            different = sorted(theirs.keys() ^ ours.keys())[:3]
            raise ValueError(
                "after_step expects the model that the policy was attached to, without wrappers such as "
                f"DistributedDataParallel; its parameters differ in {different}"
            )
        torch._foreach_lerp_(list(ours.values()), [theirs[name] for name in ours], 1 - momentum)

    def take_modes(self, model: nn.Module) -> None:
        """Take the modes of the model, part by part: what is frozen there is frozen here."""
        for theirs, ours in zip(model.modules(), self.model.modules(), strict=False):
            ours.training = theirs.training

    def _as_weights(self, images: Tensor) -> Tensor:
        if not images.is_floating_point():
            raise TypeError(
                f"a learned mixer needs a pass of the model, which does not take images of {images.dtype}: normalise "
                "them before mixing (DeviceLoader does), or pass finished Signals(features=...)"
            )
        return images


class StageRecorder:
    """Keeps what the module of one stage put out."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.shown: Any = None

    def places(self) -> list[tuple[str, str, str]]:
        return [(self.stage, "output", "features")]

    def record(self, key: str, value: Any) -> None:
        # A module behind the stage may change its output in place.
        self.shown = value.clone() if isinstance(value, Tensor) else value
