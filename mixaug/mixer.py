"""`LearnedMixer`: what policies share whose mask is made by a network that learns beside the classifier.

Three things happen in a step, each before the next so that their activations do not add up: the loss of the unmixed
images, the loss that the mixer learns from (through a frozen momentum copy of the model), and the mixed pass itself.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mixaug import backbone
from mixaug.batch import Batch, MixedBatch, unmixed
from mixaug.checks import check_probability
from mixaug.draws import Draws, Per
from mixaug.labeling import Labeling
from mixaug.ops.precision import callers_precision
from mixaug.pairing import Pairing
from mixaug.plan import Unmixed
from mixaug.policy import Policy, no_change
from mixaug.ratio import Ratio
from mixaug.signals import ModelSignals, Seen, Signals, half_scale, taken_now

__all__ = ["LearnedMixer", "MomentumNetwork", "Upsampling", "check_channels", "momentum_at", "not_negative"]

Upsampling = Literal["nearest", "bilinear"]

#: Steps of training without ``after_step`` after which a loop that never calls it is told so.
PATIENCE = 256
#: Steps in which no optimizer touches the mixer, after which the loop is told.
STILL = 16
#: Of the settings in a state.
BYTES = 1024


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

    def features(self, images: Tensor) -> Tensor:
        """(B, C, h, w) behind the stage, without gradients; what follows the stage is not run."""
        return self._features(images, self._leaving)[0]

    def features_and_outputs(self, images: Tensor) -> tuple[Tensor, Any]:
        """:meth:`features` and the outputs, from one whole pass."""
        return self._features(images, self._watching)

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

    def _as_weights(self, images: Tensor) -> Tensor:
        if not images.is_floating_point():
            raise TypeError(
                f"a learned mixer needs a pass of the model, which does not take images of {images.dtype}: normalise "
                "them before mixing (DeviceLoader does), or pass finished Signals(features=...)"
            )
        return images

    def _features(self, images: Tensor, running: Any) -> tuple[Tensor, Any]:
        found: list[Tensor] = []
        outputs = None
        with torch.no_grad(), callers_precision(images.device), running(found):
            outputs = self.model(self._as_weights(images))
        if not found:
            raise ValueError(f"{type(self.model).__name__} ran without calling its module {self.stage!r}")
        value = found[0][0] if isinstance(found[0], (list, tuple)) else found[0]
        if not isinstance(value, Tensor):
            raise ValueError(
                f"stage {self.stage!r} of {type(self.model).__name__} gives {type(value).__name__}, no map"
            )
        return backbone.as_map(self.model, value, images.shape[2:], self.channels), outputs

    @contextlib.contextmanager
    def _watching(self, found: list[Any]) -> Iterator[None]:
        hook = self.model.get_submodule(self.stage).register_forward_hook(
            lambda module, inputs, output: found.append(output)
        )
        try:
            yield
        finally:
            hook.remove()

    @contextlib.contextmanager
    def _leaving(self, found: list[Any]) -> Iterator[None]:
        def leave(module: nn.Module, inputs: Any, output: Any) -> None:
            found.append(output)
            raise _Arrived

        hook = self.model.get_submodule(self.stage).register_forward_hook(leave)
        try:
            yield
        except _Arrived:
            pass
        finally:
            hook.remove()


class _Followed(nn.Module):
    """A model and what is done with its outputs, as one call."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, then: Callable[[Any], Tensor]) -> Tensor:
        return then(self.model(images))


class _Arrived(Exception):  # not an error: the way out of a pass that has shown what was asked
    pass


class LearnedMixer(Policy):
    """A policy whose masks come from a network of its own. Train through :class:`mixaug.MixStep`.

    A subclass makes the network in :meth:`make_block`, ends its ``__init__`` with :meth:`make_known_block`, draws masks
    in ``sample``, and says in :meth:`generator_loss` what the block learns from. After every optimizer step call
    ``policy.after_step(model)``, and ``policy.set_progress(step / steps)`` before it; the engine does both.

    Args:
        alpha, ratio, pairing, labeling, per: see :class:`mixaug.Policy`.
        stage: of the model, whose features the block sees: a module's name or a number in timm's counting; None takes
            the last but one, and of a plain transformer the middle block.
        channels: of that stage; None finds it when the policy is attached to a model.
        upsampling: of the masks' logits, ``"nearest"`` or ``"bilinear"``.
        clean_lam: weight of the loss of the unmixed images, not negative; 0 spares that pass.
        clean_share: part of the batch that this loss is taken over, in (0, 1]: the first samples with a label, two at
            least, which are all that batch norm sees of that pass.
        clean_head: give the unmixed images a classifier of their own, a parameter of the policy, as in the released
            code; without it they share the model's.
        lam_margin: the classifier gets a plain blend where lam, or 1 - lam, is not above this.
        momentum: of the slow copy at the start of training, in [0, 1].
        momentum_end: at the end; None keeps it constant.
        scope: parts of training between which the momentum rises.
        generator_share: part of the batch that the block learns from, in (0, 1].
        generator_probability: chance in [0, 1] that it learns in a step.
        mixer: a trained one: a file of :meth:`save_mixer`, or a checkpoint of the engine. It is then frozen.
        encoder: the network that the trained mixer looks through, if it is not one like the model.
        frozen: never train the mixer; None freezes one that was loaded.
        reference: do as the released code does where it has a fault; each subclass says which.

    Raises:
        ValueError: an option out of range.
    """

    needs = frozenset({"features"})
    spatial = (2,)

    def __init__(
        self,
        *,
        alpha: float = 2.0,
        stage: int | str | None = None,
        channels: int | None = None,
        upsampling: Upsampling = "nearest",
        clean_lam: float = 1.0,
        clean_share: float = 1.0,
        clean_head: bool = True,
        lam_margin: float = 0.08,
        momentum: float = 0.999,
        momentum_end: float | None = 0.999999,
        scope: Sequence[float] = (0.1, 1.0),
        generator_share: float = 1.0,
        generator_probability: float = 1.0,
        mixer: str | Path | None = None,
        encoder: nn.Module | None = None,
        frozen: bool | None = None,
        reference: bool = False,
        ratio: str | float | Ratio = "beta",
        pairing: str | Pairing | None = None,
        labeling: str | Labeling = "ratio",
        per: Per = "batch",
    ) -> None:
        super().__init__(alpha=alpha, ratio=ratio, pairing=pairing, labeling=labeling, per=per)
        what = type(self).__name__
        if upsampling not in ("nearest", "bilinear"):
            raise ValueError(f"{what} expects upsampling 'nearest' or 'bilinear', got {upsampling!r}")
        self.stage = stage
        self.upsampling: Upsampling = upsampling
        self.lam_margin = not_negative(what, "lam_margin", lam_margin)
        self.reference = bool(reference)
        self.clean_lam = not_negative(what, "clean_lam", clean_lam)
        self.clean_head_wanted = bool(clean_head) and self.clean_lam > 0
        self.momentum = check_probability(what, "momentum", momentum)
        self.momentum_end = None if momentum_end is None else check_probability(what, "momentum_end", momentum_end)
        self.scope = _scope(what, scope)
        self.generator_probability = check_probability(what, "generator_probability", generator_probability)
        self.clean_share = check_probability(what, "clean_share", clean_share)
        if self.clean_share == 0:
            raise ValueError(f"{what} expects clean_share in (0, 1], got 0; clean_lam=0 spares that loss")
        self.generator_share = check_probability(what, "generator_share", generator_share)
        if self.generator_share == 0:
            raise ValueError(f"{what} expects generator_share in (0, 1], got 0; frozen=True never trains the mixer")
        if encoder is not None and (mixer is None or frozen is False or not isinstance(encoder, nn.Module)):
            raise ValueError(
                f"{what} expects encoder as the torch.nn.Module that a mixer was trained with, beside that mixer, "
                f"which stays frozen; got encoder={type(encoder).__name__}, mixer={mixer!r}, frozen={frozen!r}"
            )
        if frozen is not None and not isinstance(frozen, bool):
            raise ValueError(f"{what} expects frozen as True, False or None, got {frozen!r}")
        if stage is not None and (isinstance(stage, bool) or not isinstance(stage, (int, str))):
            raise ValueError(f"{what} expects stage as the name of a module, a number or None, got {stage!r}")
        self.mixer = None if mixer is None else str(mixer)
        self.frozen = self.mixer is not None if frozen is None else bool(frozen)
        self.channels = None if channels is None else check_channels(what, channels)
        self.progress: float | None = None
        self.unanswered = 0
        self.block: nn.Module | None = None
        self.network: MomentumNetwork | None = None
        self.clean_head: nn.Linear | None = None
        # Hidden from the submodules: what the policy keeps of it is the copy that is made when it is attached.
        self._encoder = None if encoder is None else (encoder,)
        self.has_encoder = encoder is not None
        self._early = False
        self._version, self._still = -1, 0

    def make_known_block(self) -> None:
        """Make the block now if the number of channels was given, else when the policy is attached to a model."""
        if self.channels is not None:
            block = self.make_block(self.channels)
            self.block = block.requires_grad_(False) if self.frozen else block

    def make_block(self, channels: int) -> nn.Module:
        """The network that makes masks of features (B, channels, h, w), freshly initialised."""
        raise TypeError(f"{type(self).__name__} does not define make_block(channels)")

    def generator_loss(self, images: Tensor, mixed: MixedBatch, source: ModelSignals) -> dict[str, Tensor]:
        """Terms that the block learns from. Called within a step, with gradients enabled.

        Args:
            images: (B, C, H, W) unmixed.
            mixed: the batch that the classifier gets; its plan says what was drawn for the block.
            source: of the model, with the objective of the step.
        """
        raise TypeError(f"{type(self).__name__} does not define generator_loss(images, mixed, source)")

    def _mirror(self, model: nn.Module | None) -> None:
        """The slow copy in the modes of the model, part by part: what is frozen there is frozen here."""
        if self.frozen or self.has_encoder or model is None or self.network is None:
            return
        for theirs, ours in zip(model.modules(), self.network.model.modules(), strict=False):
            ours.training = theirs.training

    def settings(self) -> dict[str, Any]:
        """What a trained mixer cannot be used without: its kind, the stage that it looks at, settings of its block."""
        stage = None if self.network is None else self.network.stage
        return {"kind": type(self).__name__, "stage": stage, **self.block_settings()}

    def block_settings(self) -> dict[str, Any]:
        """Options of the block that its weights belong to."""
        return {}

    def get_extra_state(self) -> Tensor:
        """:meth:`settings` and what else a subclass remembers, as bytes: a tensor like all else in a ``state_dict``."""
        return as_bytes({"settings": self.settings(), **self.remembered()})

    def set_extra_state(self, state: Any) -> None:
        """Take up what :meth:`remembered` gave; the settings are those that the policy was made with."""
        known = of_bytes(state)
        if known is None:
            raise ValueError(f"{type(self).__name__}: the state was written by another version of mixaug")
        self.recall(known)

    def remembered(self) -> dict[str, Any]:
        """Numbers that a resumed run needs beside weights."""
        return {}

    def recall(self, known: dict[str, Any]) -> None:
        """Take up :meth:`remembered`."""

    def mixer_parameters(self) -> list[nn.Parameter]:
        return [] if self.block is None or self.frozen else list(self.block.parameters())

    def train(self, mode: bool = True) -> LearnedMixer:
        super().train(mode)
        if self.frozen:
            for part in (self.block, self.network):
                if part is not None:
                    part.eval()
        return self

    def on_attach(self, signals: ModelSignals) -> None:
        what = type(self).__name__
        model = signals.inner
        if self.clean_head_wanted:
            self.clean_head = self._own_head(signals)
        if self.network is not None:
            if not self.has_encoder:
                _check_same_sizes(what, self.network.model, model)
            return
        seen = model if self._encoder is None else backbone.bare(self._encoder[0])
        stage = backbone.middle_stage(seen) if self.stage is None else backbone.stage_name(seen, self.stage)
        block, known = self.block, self.channels
        if block is None:
            channels = backbone.stage_channels(seen, stage)
            if channels is None:
                raise ValueError(
                    f"{what} cannot tell how many channels stage {stage!r} of {type(seen).__name__} has: pass channels="
                )
            self.channels = channels
            self.make_known_block()
        self.network = MomentumNetwork(seen, stage, self.channels)
        parameter = next(model.parameters(), None)
        if parameter is not None:
            self.to(parameter.device)
        try:
            if self.mixer is not None:
                self.load_mixer(self.mixer)
        except Exception:
            # Not half attached: another call would take the untrained mixer for the one that was asked for.
            self.network, self.block, self.channels = None, block, known
            raise
        self._encoder = None
        self.train(self.training)

    def _own_head(self, signals: ModelSignals) -> nn.Linear:
        what, way_out = type(self).__name__, "clean_head=False lets the unmixed images share the model's own"
        try:
            head = signals.like_classifier(what, self.clean_head)
        except ValueError as error:
            raise ValueError(f"{error}; {way_out}") from error
        if nn.utils.parametrize.is_parametrized(signals.inner.get_submodule(signals.classifier())):
            raise ValueError(f"{what} cannot copy a classifier with parametrized weights: {way_out}")
        return head

    def features_of(self, batch: Batch) -> Tensor:
        """(B, C, h, w) in the block's dtype: given ones, or those of the momentum network."""
        what = type(self).__name__
        signals = batch.ask(what)
        if signals.model is None:
            height, width = batch.size
            features = signals.features(self.stage, size=(height, width))
        else:
            self._mirror(signals.model)
            features = self.slow_network().features(batch.images)
        return self._checked(features)

    def _checked(self, features: Tensor) -> Tensor:
        what = type(self).__name__
        block = self.mixing_block()
        stage = self.stage if self.network is None else self.network.stage
        if features.shape[1] != self.channels:
            raise ValueError(
                f"{what} has a mixer for {self.channels} channels, but the features of stage {stage!r} have "
                f"{features.shape[1]}"
            )
        if features.shape[2:].numel() == 1:
            raise ValueError(
                f"{what} got a feature map of 1x1 from stage {stage!r}, of which no mask can be made: name an earlier "
                "stage or use larger images that fit"
            )
        return features.to(next(block.parameters()).dtype)

    def mixing_block(self) -> nn.Module:
        """The block.

        Raises:
            ValueError: it has not been made yet.
        """
        if self.block is None:
            raise ValueError(
                f"{type(self).__name__} has no mixer yet: train through mixaug.MixStep, call policy.attach(model), or "
                "say channels="
            )
        return self.block

    def early_loss(self, images: Tensor, mixed: MixedBatch, clean: Signals) -> dict[str, Tensor]:
        self._early = True
        learning = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if mixed.plan is None or isinstance(mixed.plan, Unmixed):
            return {"not_mixed": no_change(learning)} if learning else {}
        source = getattr(clean, "source", None)
        if not isinstance(source, ModelSignals):
            raise ValueError(f"{type(self).__name__} learns with a model: train through mixaug.MixStep")
        self._remind()
        terms: dict[str, Tensor] = {}
        if self.clean_lam > 0:
            terms["clean_loss"] = self.clean_lam * self._clean_loss(images, mixed, source)
        if not self.frozen:
            terms |= self.generator_loss(images, mixed, source)
        return terms

    def taken(self, terms: dict[str, Tensor], source: ModelSignals) -> dict[str, Tensor]:
        """The same terms, with the gradients of the block computed at once: the first term carries those of all."""
        learning = [*self.mixer_parameters(), *objective_parameters(source)]
        handed = taken_now(torch.stack(list(terms.values())).sum(), learning)
        first, *others = terms
        values = {name: term.detach() for name, term in terms.items()}
        return {first: handed - sum(values[name] for name in others), **{name: values[name] for name in others}}

    def auxiliary_loss(self, mixed: MixedBatch, seen: Seen) -> dict[str, Tensor]:
        if not self._early and torch.is_grad_enabled() and not isinstance(mixed.plan, Unmixed | None):
            warnings.warn(
                f"{type(self).__name__} learns from policy.early_loss(images, mixed, clean), which was not called: add "
                "its terms to the loss, or train through mixaug.MixStep",
                RuntimeWarning,
                stacklevel=2,
            )
        self._early = False
        return {}

    def _clean_loss(self, images: Tensor, mixed: MixedBatch, source: ModelSignals) -> Tensor:
        """Loss of the unmixed images in training mode; its graph is gone when this returns."""
        count = _rows_of(self.clean_share, len(images))
        labels = None if mixed.labels is None else mixed.labels[: len(images)]
        if count < len(images):
            images, labels = _first_labelled(images, labels, count)
        objective = source.step_objective()
        model, learning = source.model, [*source.model.parameters(), *objective_parameters(source)]
        head: dict[str, Tensor] = {}
        if self.clean_head is not None:
            name = source.classifier()
            prefix = "" if model is source.inner else "_orig_mod."
            head = {f"model.{prefix}{name}.{key}": p for key, p in self.clean_head.named_parameters()}
            learning += list(self.clean_head.parameters())

        def learn(outputs: Any) -> Tensor:
            return taken_now(objective(outputs, unmixed(images, labels)), learning, half_scale(images))

        # The model's own forward with another classifier: no hook, so a compiled model stays compiled. The gradient is
        # taken inside, where a checkpoint that runs the model again still meets that classifier.
        loss: Tensor = functional_call(_Followed(model), head, (images, learn))
        return loss

    def learns_now(self, draws: Draws) -> bool:
        """Whether the block learns in this step; draws where that is left to chance."""
        if self.frozen or self.generator_probability >= 1:
            return not self.frozen
        return draws.host_uniform() < self.generator_probability

    def other_branch(self, batch: Batch, draws: Draws) -> tuple[Draws, Tensor]:
        """Draws for the block's own mixtures, and their partners (B,) int64."""
        others = Draws(len(batch), batch.device, draws.generator, draws.per)
        partner = self.pairing(batch, others)
        others.pair_with(partner)
        return others, partner

    def generator_rows(self, count: int) -> int:
        """How many samples, from the first on, the block learns from in a batch of ``count``."""
        return _rows_of(self.generator_share, count)

    def on_progress(self, fraction: float) -> None:
        self.progress = fraction

    def momentum_now(self) -> float:
        """Momentum of the slow copy at this point of training."""
        if self.momentum_end is None:
            return self.momentum
        return momentum_at(self.progress or 0.0, self.momentum, self.momentum_end, self.scope)

    def after_step(self, model: nn.Module) -> None:
        super().after_step(model)
        self._look_for_optimizer()
        self.unanswered = 0
        if self.frozen or self.network is None:
            return
        if self.progress is None and self.momentum_end is not None:
            warnings.warn(
                f"{type(self).__name__} does not know how far training is, so its momentum stays at {self.momentum}: "
                "call policy.set_progress(step / steps) before each step",
                RuntimeWarning,
                stacklevel=2,
            )
            self.progress = 0.0
        self.network.follow(model, self.momentum_now())

    def _look_for_optimizer(self) -> None:
        version = sum(parameter._version for parameter in self.mixer_parameters())
        self._still = self._still + 1 if version == self._version and self.unanswered else 0
        self._version = version
        if self._still == STILL and self.mixer_parameters():
            warnings.warn(
                f"the mixer of {type(self).__name__} has not changed in {STILL} steps: give the optimizer the "
                "parameters of the policy too, as in step.parameters()",
                RuntimeWarning,
                stacklevel=3,
            )

    def _remind(self) -> None:
        if not self.training or self.frozen or not torch.is_grad_enabled():
            return
        self.unanswered += 1
        if self.unanswered == PATIENCE:
            warnings.warn(
                f"{type(self).__name__} has seen {PATIENCE} batches and its slow copy has not moved: call "
                "policy.after_step(model) after each optimizer step",
                RuntimeWarning,
                stacklevel=4,
            )

    def mixer_state(self) -> dict[str, Tensor]:
        """Weights of a trained mixer: the block, and the network that it looks through without its classifier.

        Raises:
            ValueError: the policy has not been attached to a model.
        """
        every = {**_named("network.model", self.slow_network().model), **_named("block", self.mixing_block())}
        classifier = self._of_classifier()
        return {name: value for name, value in every.items() if name not in classifier}

    def save_mixer(self, path: str | Path) -> None:
        """Write :meth:`mixer_state` and :meth:`settings` to a file, for ``mixer=`` of another policy."""
        torch.save({**self.mixer_state(), "_extra_state": self.get_extra_state()}, path)

    def load_mixer(self, path: str | Path) -> None:
        """Take the weights of a trained mixer: a file of :meth:`save_mixer` or a checkpoint of the engine.

        Raises:
            ValueError: the file holds no mixer, or one of another kind, stage or size; nothing has been changed.
            FileNotFoundError: no such file.
        """
        what = type(self).__name__
        own = self.mixer_state()
        found, settings = _read_mixer(what, path)
        for name, value in self.settings().items():
            if settings.get(name) != value:
                raise ValueError(
                    f"{what} has {name}={value!r}, but the mixer in {path} was trained with {name}="
                    f"{settings.get(name)!r}"
                )
        missing = [name for name in own if name not in found]
        if missing:
            raise ValueError(
                f"{what} found in {path} a mixer of another kind or of another network: it lacks {missing[:3]}; the "
                "network that it was trained with can be given as encoder="
            )
        for name, value in own.items():
            if found[name].shape != value.shape:
                raise ValueError(
                    f"{what} has {name} of {tuple(value.shape)}, but the mixer in {path} of "
                    f"{tuple(found[name].shape)}: it was trained at a stage of another width"
                )
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(found[name])

    def _of_classifier(self) -> set[str]:
        network = self.slow_network().model
        try:
            head = backbone.classifier_name(network)
        except ValueError:
            return set()
        return {f"network.model.{head}.weight", f"network.model.{head}.bias"}

    def slow_network(self) -> MomentumNetwork:
        """The momentum copy of the model.

        Raises:
            ValueError: the policy has not been attached to a model.
        """
        if self.network is None:
            raise ValueError(
                f"{type(self).__name__} has no momentum network yet: train through mixaug.MixStep, or call "
                "policy.attach(model)"
            )
        return self.network


def not_negative(what: str, name: str, value: float) -> float:
    """The value as a float.

    Raises:
        ValueError: negative or not finite.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError(f"{what} expects {name} as a number that is not negative, got {value!r}")
    return float(value)


def check_channels(what: str, channels: int) -> int:
    """The number of channels.

    Raises:
        ValueError: not an integer of at least 2.
    """
    if isinstance(channels, bool) or not isinstance(channels, int) or channels < 2:
        raise ValueError(f"{what} expects channels as an integer of at least 2, got {channels!r}")
    return channels


def _read_mixer(what: str, path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Weights and settings of the one mixer in a file."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError) as error:
        raise ValueError(f"{what} cannot read {path} as a mixer: {type(error).__name__}") from error
    found = found.get("policy", found) if isinstance(found, dict) else {}
    end = "_extra_state"
    # Inside of other policies the names of its parts start with theirs.
    known = {name.removesuffix(end): of_bytes(value) for name, value in found.items() if str(name).endswith(end)}
    starts = [start for start, value in known.items() if value is not None and "settings" in value]
    if len(starts) != 1:
        raise ValueError(
            f"{what} found {len(starts) or 'no'} mixer{'s' if len(starts) > 1 else ''} in {path}: expected a file of "
            "save_mixer or a checkpoint of a run with one"
        )
    (start,) = starts
    return {name.removeprefix(start): value for name, value in found.items()}, (known[start] or {})["settings"]


def as_bytes(known: dict[str, Any]) -> Tensor:
    """(1024,) uint8: a dict of plain values as JSON, padded, so that every state of a policy has the same shape.

    Raises:
        ValueError: more than 1024 bytes.
    """
    text = json.dumps(known).encode()
    if len(text) > BYTES:
        raise ValueError(f"the settings of a mixer take {len(text)} bytes, more than {BYTES}")
    return torch.frombuffer(bytearray(text.ljust(BYTES)), dtype=torch.uint8).clone()


def of_bytes(state: Any) -> dict[str, Any] | None:
    """What :func:`as_bytes` was given; None for anything else."""
    if not isinstance(state, Tensor) or state.dtype != torch.uint8 or state.ndim != 1:
        return None
    try:
        known = json.loads(bytes(state.tolist()))
    except ValueError:
        return None
    return known if isinstance(known, dict) else None


def objective_parameters(source: ModelSignals) -> list[nn.Parameter]:
    """Parameters of the loss of the step, such as a temperature."""
    objective = source.step_objective()
    return list(objective.parameters()) if isinstance(objective, nn.Module) else []


def _rows_of(share: float, count: int) -> int:
    """Rows in a part of a batch of ``count``: rounded up, and two where there are two, for batch statistics."""
    return min(count, max(2, math.ceil(share * count)))


def _first_labelled(images: Tensor, labels: Tensor | None, count: int) -> tuple[Tensor, Tensor | None]:
    """The first ``count`` samples; those whose class id is negative, as that of ignored ones is, come last."""
    if labels is None or labels.ndim != 1 or labels.is_floating_point():
        return images[:count], None if labels is None else labels[:count]
    rows = (labels < 0).to(torch.uint8).argsort(stable=True)[:count]
    return images.index_select(0, rows), labels.index_select(0, rows)


def _scope(what: str, scope: Sequence[float]) -> tuple[float, float]:
    if not isinstance(scope, Sequence) or isinstance(scope, str):
        raise ValueError(f"{what} expects scope as two parts of training, got {scope!r}")
    ends = tuple(float(end) for end in scope)
    if len(ends) != 2 or not 0 <= ends[0] <= ends[1] <= 1 or ends[1] == 0:
        raise ValueError(f"{what} expects scope as two parts of training in order, in [0, 1], got {tuple(scope)}")
    return ends[0], ends[1]


def _named(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in module.state_dict().items()}


def _check_same_sizes(what: str, known: nn.Module, model: nn.Module) -> None:
    ours = {name: tuple(p.shape) for name, p in known.named_parameters()}
    theirs = {name: tuple(p.shape) for name, p in model.named_parameters()}
    if ours != theirs:
        names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
        raise ValueError(
            f"{what} is attached to another model already, which differs in {names[:3]}: make one policy for each model"
        )
