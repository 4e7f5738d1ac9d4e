"""`LearnedMixer`: what policies share whose mask is made by a network that learns beside the classifier.

Three things happen in a step, each before the next so that their activations do not add up: the loss of the unmixed
images, the loss that the mixer learns from (through a frozen momentum copy of the model), and the mixed pass itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import torch
from torch import Tensor, nn

from mixaug.batch import Batch, MixedBatch
from mixaug.checks import (
    check_choice,
    check_flag,
    check_not_negative,
    check_positive_share,
    check_probability,
    check_stage,
    check_whole,
    shown,
)
from mixaug.policies.learned.blocks import Upsampling
from mixaug.policies.learned.clean import clean_classifier, clean_loss
from mixaug.policies.learned.loop import LoopWatch
from mixaug.policies.learned.momentum import MomentumNetwork, MomentumSchedule
from mixaug.policies.learned.storage import as_bytes, load_mixer_state, mixer_state, of_bytes
from mixaug.policy import Policy, SharedOptions, no_change
from mixaug.shared_options import TakesLabeling, TakesPairing, TakesPer, TakesRatio
from mixaug.signals import MixedSignals, ModelSignals, Signals, backbone

if TYPE_CHECKING:
    from typing_extensions import Unpack

    class Offered(TakesRatio, TakesPairing, TakesLabeling, TakesPer, total=False):
        """The shared options without those that ``not_offered`` names."""


class MixerOptions(TakesRatio, TakesPairing, TakesLabeling, TakesPer, total=False):
    """Options that learned mixers share, beside ``alpha`` and those whose defaults differ between them."""

    stage: int | str | None
    channels: int | None
    clean_weight: float
    clean_share: float
    clean_head: bool
    momentum: float
    momentum_end: float | None
    scope: Sequence[float]
    generator_share: float
    generator_probability: float
    mixer: str | Path | None
    encoder: nn.Module | None
    frozen: bool | None
    reference: bool


class LearnedOptions(MixerOptions, total=False):
    """All options of :class:`LearnedMixer`."""

    alpha: float
    upsampling: Upsampling
    min_lam: float


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
        clean_weight: weight of the loss of the unmixed images, not negative; 0 spares that pass.
        clean_share: part of the batch that this loss is taken over, in (0, 1]: the first samples with a label, two at
            least, which are all that batch norm sees of that pass.
        clean_head: give the unmixed images a classifier of their own, a parameter of the policy, as in the released
            code; without it they share the model's.
        min_lam: the classifier gets a plain blend where lam, or 1 - lam, is not above this.
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

    shared_defaults: ClassVar[SharedOptions] = {"labeling": "ratio", "per": "batch"}
    # The block learns from pairs within the batch, whose features the model has just shown.
    not_offered = ("partners",)
    renamed: ClassVar[Mapping[str, str]] = {"clean_lam": "clean_weight", "lam_margin": "min_lam"}

    def __init__(
        self,
        *,
        alpha: float = 2.0,
        stage: int | str | None = None,
        channels: int | None = None,
        upsampling: Upsampling = "nearest",
        clean_weight: float = 1.0,
        clean_share: float = 1.0,
        clean_head: bool = True,
        min_lam: float = 0.08,
        momentum: float = 0.999,
        momentum_end: float | None = 0.999999,
        scope: Sequence[float] = (0.1, 1.0),
        generator_share: float = 1.0,
        generator_probability: float = 1.0,
        mixer: str | Path | None = None,
        encoder: nn.Module | None = None,
        frozen: bool | None = None,
        reference: bool = False,
        **shared: Unpack[Offered],
    ) -> None:
        super().__init__(alpha=alpha, **shared)
        what = type(self).__name__
        check_choice(what, "upsampling", upsampling, get_args(Upsampling))
        self.stage = None if stage is None else check_stage(what, "stage", stage)
        self.upsampling: Upsampling = upsampling
        self.min_lam = check_not_negative(what, "min_lam", min_lam)
        self.reference = check_flag(what, "reference", reference)
        self.clean_weight = check_not_negative(what, "clean_weight", clean_weight)
        self.clean_head_wanted = check_flag(what, "clean_head", clean_head) and self.clean_weight > 0
        self.schedule = MomentumSchedule(what, momentum, momentum_end, scope)
        self.momentum, self.momentum_end, self.scope = self.schedule.start, self.schedule.end, self.schedule.scope
        self.generator_probability = check_probability(what, "generator_probability", generator_probability)
        self.clean_share = check_positive_share(what, "clean_share", clean_share, "clean_weight=0 spares that loss")
        self.generator_share = check_positive_share(
            what, "generator_share", generator_share, "frozen=True never trains the mixer"
        )
        if encoder is not None and (mixer is None or frozen is False or not isinstance(encoder, nn.Module)):
            raise ValueError(
                f"{what} expects encoder as the torch.nn.Module that a mixer was trained with, beside that mixer, "
                f"which stays frozen; got encoder={type(encoder).__name__}, mixer={mixer!r}, frozen={frozen!r}"
            )
        if mixer is not None and not isinstance(mixer, (str, Path)):
            raise ValueError(f"{what} expects mixer as the path of a file, a folder or None, got {shown(mixer)}")
        self.mixer = None if mixer is None else str(mixer)
        self.frozen = self.mixer is not None if frozen is None else check_flag(what, "frozen", frozen)
        self.channels = None if channels is None else check_channels(what, channels)
        self.progress: float | None = None
        self.block: nn.Module | None = None
        self.network: MomentumNetwork | None = None
        self.clean_head: nn.Linear | None = None
        # The encoder is hidden from the submodules: the policy keeps the copy that is made when it is attached.
        self._encoder = None if encoder is None else (encoder,)
        self.has_encoder = encoder is not None
        self.loop = LoopWatch(what)

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
        values = of_bytes(state)
        if values is None:
            raise ValueError(f"{type(self).__name__}: the state was written by another version of mixaug")
        self.recall(values)

    def remembered(self) -> dict[str, Any]:
        """Numbers that a resumed run needs beside weights."""
        return {}

    def recall(self, state: dict[str, Any]) -> None:
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
            self.clean_head = clean_classifier(what, signals, self.clean_head)
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
            # The policy must not stay half attached: another call would take the untrained mixer for the wanted one.
            self.network, self.block, self.channels = None, block, known
            raise
        self._encoder = None
        self.train(self.training)

    def features_of(self, batch: Batch) -> Tensor:
        """(B, C, h, w) in the block's dtype: given ones, or those of the momentum network."""
        what = type(self).__name__
        signals = batch.ask(what)
        if signals.model is None:
            height, width = batch.size
            features = signals.features(self.stage, size=(height, width))
        else:
            features = self.network_in_modes_of(signals.model).features(batch.images)
        return self.checked_features(features)

    def checked_features(self, features: Tensor) -> Tensor:
        """The features in the block's dtype, if it can make masks of them."""
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
        self.loop.early_loss()
        learning = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if mixed.plan is None or not mixed.plan.mixes:
            return {"not_mixed": no_change(learning)} if learning else {}
        source = getattr(clean, "source", None)
        if not isinstance(source, ModelSignals):
            raise ValueError(f"{type(self).__name__} learns with a model: train through mixaug.MixStep")
        if self.training and not self.frozen and torch.is_grad_enabled():
            self.loop.learning_batch()
        terms: dict[str, Tensor] = {}
        if self.clean_weight > 0:
            terms["clean_loss"] = self.clean_weight * clean_loss(
                images, mixed, source, head=self.clean_head, share=self.clean_share
            )
        if not self.frozen:
            terms |= self.generator_loss(images, mixed, source)
        return terms

    def auxiliary_loss(self, mixed: MixedBatch, seen: MixedSignals) -> dict[str, Tensor]:
        self.loop.auxiliary_loss(torch.is_grad_enabled() and mixed.plan is not None and mixed.plan.mixes)
        return {}

    def on_progress(self, fraction: float) -> None:
        self.progress = fraction

    def after_step(self, model: nn.Module) -> None:
        super().after_step(model)
        self.loop.after_step(self.mixer_parameters())
        if self.frozen or self.network is None:
            return
        if self.progress is None and self.schedule.rises:
            self.loop.missing_progress(self.momentum)
        self.network.follow(model, self.schedule.at(self.progress or 0.0))

    def mixer_state(self) -> dict[str, Tensor]:
        """Weights of a trained mixer: the block, and the network that it looks through without its classifier.

        Raises:
            ValueError: the policy has not been attached to a model.
        """
        return mixer_state(self.slow_network(), self.mixing_block())

    def save_mixer(self, path: str | Path) -> None:
        """Write :meth:`mixer_state` and :meth:`settings` to a file, for ``mixer=`` of another policy."""
        torch.save({**self.mixer_state(), "_extra_state": self.get_extra_state()}, path)

    def load_mixer(self, path: str | Path) -> None:
        """Take the weights of a trained mixer: a file of :meth:`save_mixer` or a checkpoint of the engine.

        Raises:
            ValueError: the file holds no mixer, or one of another kind, stage or size; nothing has been changed.
            FileNotFoundError: no such file.
        """
        load_mixer_state(type(self).__name__, path, self.mixer_state(), self.settings())

    def network_in_modes_of(self, model: nn.Module) -> MomentumNetwork:
        """:meth:`slow_network`, in training or evaluation mode part by part like the model, unless it is frozen."""
        network = self.slow_network()
        if not self.frozen and not self.has_encoder:
            network.take_modes(model)
        return network

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


def check_channels(what: str, channels: int) -> int:
    """The number of channels.

    Raises:
        ValueError: not an integer of at least 2.
    """
    return check_whole(what, "channels", channels, 2, 2**14, reason="the block has channels squared weights")


def _check_same_sizes(what: str, existing: nn.Module, model: nn.Module) -> None:
    ours = {name: tuple(p.shape) for name, p in existing.named_parameters()}
    theirs = {name: tuple(p.shape) for name, p in model.named_parameters()}
    if ours != theirs:
        names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
        raise ValueError(
            f"{what} is attached to another model already, which differs in {names[:3]}: make one policy for each model"
        )
