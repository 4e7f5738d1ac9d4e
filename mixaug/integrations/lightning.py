"""Mixing on the device in a LightningModule.

A Lightning callback cannot put another batch in the place of the one it sees; the hook that can is the
module's own `on_after_batch_transfer`, and this mixin fills it in. The batch that reaches `training_step` is
a `mixaug.MixedBatch`; validation, test and prediction batches are left alone.

A policy that looks at the model, or that learns, needs the passes of the model themselves: set `mix_step` to a
`mixaug.MixStep` in the place of `mix_policy`. The mixin then brings a `training_step`, tells the policy how far
training is, and calls `after_step` behind every batch with an optimizer step.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from mixaug import MixedBatch, MixStep, Policy
from mixaug.axes import check_layout
from mixaug.integrations._common import STEP, refuse_mixing_collate, require_first, require_model_free


class MixBatchMixin:
    """Mixes each training batch after it has reached the device.

    Put it before `LightningModule` among the bases and set `mix_policy` in `__init__`. A `MixedBatch` knows
    its labels, so the loss is one line, with no (B, K) target built. Values that are logged know the batch size.

    With `mix_step` set instead, every policy works and `training_step` need not be written: it logs what the step logs,
    each under "train_" and its name.

    Attributes:
        mix_policy: a model-free policy, set by the class that uses the mixin.
        mix_step: a step around the model, for any policy; its parameters are found by `self.parameters()`.
        mix_layout: where the channels of the images are that `mix_policy` mixes, such as `"NHWC"`, or `"NTCHW"` for
            clips, see :meth:`mixaug.Policy.forward`; a `mix_step` has an argument for it.

    Raises:
        TypeError: when a class is made, `LightningModule` stands before the mixin; in training, neither or both of
            `mix_policy` and `mix_step` are set, a batch that cannot be taken apart.
        ValueError: in training, `mix_policy` needs a model, a collate function mixes already, a `mix_layout` that is
            none, or beside a `mix_step`.
        RuntimeError: in training, another hook has taken the place of the mixin's.

    Warns:
        UserWarning: an epoch has ended in which a `training_step` of the class never ran `mix_step`; the module is
            trained as a part of another one, whose hooks alone Lightning calls.

    Example:
        >>> import lightning
        >>> import mixaug
        >>> class Classifier(MixBatchMixin, lightning.LightningModule):
        ...     def __init__(self, model):
        ...         super().__init__()
        ...         self.model, self.mix_policy = model, mixaug.create("cutmix")
        ...         self.loss = mixaug.losses.MixedCrossEntropy()
        ...
        ...     def training_step(self, mixed, index):
        ...         return self.loss(self.model(mixed.inputs), mixed)
    """

    # No defaults: a class attribute would hide the submodule of that name.
    mix_policy: Policy
    mix_step: MixStep
    mix_layout: str | None = None
    #: Optimizer steps before this batch.
    _mix_steps_before: int = 0
    _mix_batch: Any = None
    _mix_batch_ended: bool = False
    _mix_was_asked: bool = False
    #: Whether `mix_step` ran in this epoch; None before the first training_step of one.
    _mix_step_ran: bool | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        lost = "whose hooks would never be called"
        require_first(cls, MixBatchMixin, ("lightning.", "pytorch_lightning."), lost)
        for name, watched in (("training_step", _with_mixing), ("on_train_batch_end", _reaching_the_mixin)):
            found = getattr(cls, name)
            if found is not getattr(MixBatchMixin, name) and not hasattr(found, "_mix_watched"):
                setattr(cls, name, watched(found))

    @property
    def trainer(self) -> Any:
        """Lightning's trainer; as a part of another module, a module gets that one's."""
        return super().trainer  # type: ignore[misc]

    @trainer.setter
    def trainer(self, trainer: Any) -> None:
        super(MixBatchMixin, type(self)).trainer.fset(self, trainer)  # type: ignore[misc]
        trained = getattr(trainer, "lightning_module", None)
        mixes = getattr(self, "mix_policy", None) is not None or self._step() is not None
        if trained is not None and trained is not self and mixes and trainer.state.fn == "fit":
            own, other = type(self).__name__, type(trained).__name__
            warnings.warn(
                f"{own} is a part of {other}, which is what is trained: Lightning calls hooks of {other} alone, so "
                f"that {own} mixes nothing. Put MixBatchMixin before LightningModule in {other}, and set mix_policy or "
                "mix_step there",
                stacklevel=2,
            )

    def split_batch(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Images and labels of a batch: the two items of a tuple or list.

        Override it for batches of another kind.

        Raises:
            TypeError: the batch is anything else.
        """
        if isinstance(batch, (tuple, list)) and len(batch) == 2:
            images, labels = batch
            if isinstance(images, Tensor) and isinstance(labels, Tensor):
                return images, labels
        raise TypeError(
            "MixBatchMixin expected a training batch (images, labels) of two tensors, got "
            f"{type(batch).__name__}; override split_batch() to take such a batch apart"
        )

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Lightning's hook: the mixed batch in training, else `batch` as it came."""
        # `super()` is the next of the bases: a data module or another mixin may define the same hook.
        batch = super().on_after_batch_transfer(batch, dataloader_idx)  # type: ignore[misc]
        if not self.trainer.training:
            return batch
        name = type(self).__name__
        step, policy = self._step(), getattr(self, "mix_policy", None)
        if (policy is None) == (step is None):
            raise TypeError(f"{name} needs one of mix_policy and mix_step, set in its __init__")
        self._mix_steps_before = self.trainer.global_step
        if not self._mix_was_asked:
            for loader in _each_loader(getattr(self.trainer, "train_dataloader", None)):
                refuse_mixing_collate(getattr(loader, "collate_fn", None), name)
            self._mix_was_asked = True
        layout = check_layout(f"{name}.mix_layout", self.mix_layout)
        if step is not None:
            if layout is not None:
                raise ValueError(f"{name}.mix_layout is for a mix_policy: give the step its own, MixStep(..., layout=)")
            self._tell_progress(step)
            self._mix_batch = batch
            return batch
        assert policy is not None  # one of the two is there
        policy = require_model_free(policy, name, f"set mix_step = {STEP} in the place of mix_policy")
        self._tell_progress(policy)
        if isinstance(batch, MixedBatch):
            raise TypeError(f"{name} got a MixedBatch: leave out MixCollate or mix_policy, for it would be mixed twice")
        images, labels = self.split_batch(batch)
        self._mix_batch = policy(images, labels, layout=layout)
        return self._mix_batch

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> Any:
        """Lightning's hook: makes sure that the batch is the one that was mixed."""
        self._require_asked()
        result = super().on_train_batch_start(batch, batch_idx)  # type: ignore[misc]
        if result == -1:
            # The rest of the epoch is skipped, and no end of this batch is told.
            self._mix_batch = None
        return result

    def on_train_start(self) -> None:
        """Lightning's hook: nothing is known yet of this training."""
        self._mix_batch, self._mix_was_asked, self._mix_step_ran = None, False, None
        super().on_train_start()  # type: ignore[misc]

    def on_train_epoch_end(self) -> None:
        """Lightning's hook: warns where `mix_step` never ran in the epoch."""
        super().on_train_epoch_end()  # type: ignore[misc]
        if self._mix_step_ran is False and self._step() is not None:
            warnings.warn(
                f"{type(self).__name__} has a mix_step, but its training_step never called it in this epoch, so that "
                "nothing was mixed: call loss, logs = self.mix_step(images, labels) there, or leave training_step out",
                stacklevel=2,
            )
        self._mix_step_ran = None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One step of `mix_step`; what it logs is logged for the epoch too.

        Raises:
            TypeError: there is no `mix_step`, so that the class has to define its own `training_step`.
        """
        step = self._step()
        if step is None:
            raise TypeError(f"{type(self).__name__} has a mix_policy and must define training_step(mixed, index)")
        images, labels = self.split_batch(batch)
        self._require_asked()
        loss, logs = step(images, labels)
        for key, value in logs.items():
            self.log(f"train_{key}", value, on_step=True, on_epoch=True)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Lightning's hook: after a batch with an optimizer step, `after_step` of the step."""
        self._mix_batch_ended = True
        super().on_train_batch_end(outputs, batch, batch_idx)  # type: ignore[misc]
        self._mix_batch = None
        step = self._step()
        if step is not None and self.trainer.global_step != self._mix_steps_before:
            step.after_step()

    def log(self, name: str, value: Any, *args: Any, batch_size: int | None = None, **kwargs: Any) -> None:
        """Lightning's method, given the batch size while a mixed batch is trained on."""
        if batch_size is None and self._mix_batch is not None:
            mixed = self._mix_batch
            batch_size = len(mixed) if isinstance(mixed, MixedBatch) else len(self.split_batch(mixed)[0])
        super().log(name, value, *args, batch_size=batch_size, **kwargs)  # type: ignore[misc]

    def _require_asked(self) -> None:
        """Raise where training has come to a batch and the mixin has seen none."""
        trainer = getattr(self, "_trainer", None)
        # A step that is called by hand, without a trainer, is the caller's own affair.
        if not self._mix_was_asked and trainer is not None and trainer.training:
            raise RuntimeError(
                f"{type(self).__name__} was not asked to mix: another on_after_batch_transfer, of a "
                "LightningDataModule or of the class itself, has taken its place; call super().on_after_batch_transfer "
                "there, or leave it out. Lightning calls no hooks of a module inside another one, for a "
                "training_step(dataloader_iter), or before the first batch"
            )

    def _mix_step_runs(self, *_: Any) -> None:
        self._mix_step_ran = True

    def _step(self) -> MixStep | None:
        return getattr(self, "mix_step", None)

    def _tell_progress(self, told: Policy | MixStep) -> None:
        trainer = self.trainer
        steps = trainer.estimated_stepping_batches
        # Training without an end (max_steps=-1, or a limit in time) has no progress to follow.
        if math.isfinite(steps) and steps > 0:
            told.set_progress(min(1.0, trainer.global_step / steps))


def _each_loader(loaders: Any) -> Iterator[Any]:
    """The loaders of a trainer, which takes one, or several in lists and mappings."""
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    elif hasattr(loaders, "iterables"):
        loaders = [loaders.iterables]
    if not isinstance(loaders, (list, tuple)):
        yield loaders
        return
    for loader in loaders:
        yield from _each_loader(loader)


def _reaching_the_mixin(function: Callable[..., Any]) -> Callable[..., Any]:
    """An `on_train_batch_end` of a class that raises where it leaves out the mixin's, and `after_step` with it."""

    @functools.wraps(function)
    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        self._mix_batch_ended = False
        result = function(self, *args, **kwargs)
        if not self._mix_batch_ended:
            if self._step() is not None:
                raise RuntimeError(
                    f"{type(self).__name__}.on_train_batch_end has taken the place of the mixin's, so that no "
                    "after_step would be called: call super().on_train_batch_end(outputs, batch, batch_idx) there"
                )
            self._mix_batch = None
        return result

    watched._mix_watched = True  # type: ignore[attr-defined]
    return watched


def _with_mixing(function: Callable[..., Any]) -> Callable[..., Any]:
    """A `training_step` of a class that looks whether `mix_step` runs."""

    @functools.wraps(function)
    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(self, MixBatchMixin):
            return function(self, *args, **kwargs)
        self._require_asked()
        step = self._step()
        if step is None or self._mix_step_ran:
            return function(self, *args, **kwargs)
        self._mix_step_ran = False
        # The hook goes again at once: a step that kept it would be saved and copied with the module.
        handle = step.register_forward_pre_hook(self._mix_step_runs)
        try:
            return function(self, *args, **kwargs)
        finally:
            handle.remove()

    watched._mix_watched = True  # type: ignore[attr-defined]
    return watched
