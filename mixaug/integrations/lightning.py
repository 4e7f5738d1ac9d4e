"""Mixing on the device in a LightningModule.

A Lightning callback cannot put another batch in the place of the one it sees; the hook that can is the
module's own `on_after_batch_transfer`, and this mixin fills it in. The batch that reaches `training_step` is
a `mixaug.MixedBatch`; validation, test and prediction batches are left alone.

A policy that looks at the model, or that learns, needs the passes of the model themselves: set `mix_step` to a
`mixaug.MixStep` in the place of `mix_policy`. The mixin then brings a `training_step`, tells the policy how far
training is, and calls `after_step` behind every optimizer step.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from mixaug import MixedBatch, MixStep, Policy
from mixaug.integrations._common import require_model_free


class MixBatchMixin:
    """Mixes each training batch after it has reached the device.

    Put it before `LightningModule` among the bases and set `mix_policy` in `__init__`. A `MixedBatch` knows
    its labels, so the loss is one line, with no (B, K) target built. Values that are logged know the batch size.

    With `mix_step` set instead, every policy works and `training_step` need not be written: it logs what the step logs,
    each under "train_" and its name.

    Attributes:
        mix_policy: a model-free policy, set by the class that uses the mixin.
        mix_step: a step around the model, for any policy; its parameters are found by `self.parameters()`.

    Raises:
        TypeError: when a class is made, `LightningModule` stands before the mixin; in training, neither or both of
            `mix_policy` and `mix_step` are set, a batch that cannot be taken apart.
        ValueError: in training, `mix_policy` needs a model.
        RuntimeError: in training, another `on_after_batch_transfer` has taken the place of the mixin's.

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
    #: Optimizer steps that `after_step` was called for.
    _mix_steps_seen: int = 0
    _mix_batch: Any = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        order = cls.__mro__
        for base in order[: order.index(MixBatchMixin)]:
            if base.__module__.startswith(("lightning.", "pytorch_lightning.")):
                raise TypeError(
                    f"{cls.__name__} names {base.__name__} before MixBatchMixin, whose hooks would never be called: "
                    f"class {cls.__name__}(MixBatchMixin, {base.__name__})"
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
        if not self.trainer.training:  # type: ignore[attr-defined]
            return batch
        name = type(self).__name__
        step, policy = self._step(), getattr(self, "mix_policy", None)
        if (policy is None) == (step is None):
            raise TypeError(f"{name} needs one of mix_policy and mix_step, set in its __init__")
        if step is not None:
            self._tell_progress(step)
            self._mix_batch = batch
            return batch
        assert policy is not None  # one of the two is there
        policy = require_model_free(policy, name)
        self._tell_progress(policy)
        if isinstance(batch, MixedBatch):
            raise TypeError(f"{name} got a MixedBatch: leave out MixCollate or mix_policy, for it would be mixed twice")
        images, labels = self.split_batch(batch)
        self._mix_batch = policy(images, labels)
        return self._mix_batch

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> Any:
        """Lightning's hook: makes sure that the batch is the one that was mixed."""
        if self._mix_batch is None:
            raise RuntimeError(
                f"{type(self).__name__} was not asked to mix: another on_after_batch_transfer, of a "
                "LightningDataModule or of the class itself, has taken its place; call super().on_after_batch_transfer "
                "there, or leave it out"
            )
        return super().on_train_batch_start(batch, batch_idx)  # type: ignore[misc]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One step of `mix_step`; what it logs is logged for the epoch too.

        Raises:
            TypeError: there is no `mix_step`, so that the class has to define its own `training_step`.
        """
        step = self._step()
        if step is None:
            raise TypeError(f"{type(self).__name__} has a mix_policy and must define training_step(mixed, index)")
        images, labels = self.split_batch(batch)
        loss, logs = step(images, labels)
        for key, value in logs.items():
            self.log(f"train_{key}", value, on_step=True, on_epoch=True)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Lightning's hook: after every optimizer step, `after_step` of the step."""
        super().on_train_batch_end(outputs, batch, batch_idx)  # type: ignore[misc]
        self._mix_batch = None
        taken = self.trainer.global_step  # type: ignore[attr-defined]
        step = self._step()
        if step is not None and taken != self._mix_steps_seen:
            step.after_step()
        self._mix_steps_seen = taken

    def on_train_start(self) -> None:
        """Lightning's hook: a resumed run goes on counting where it stopped."""
        super().on_train_start()  # type: ignore[misc]
        self._mix_steps_seen = self.trainer.global_step  # type: ignore[attr-defined]

    def log(self, name: str, value: Any, *args: Any, batch_size: int | None = None, **kwargs: Any) -> None:
        """Lightning's method, given the batch size while a mixed batch is trained on."""
        if batch_size is None and self._mix_batch is not None:
            mixed = self._mix_batch
            batch_size = len(mixed) if isinstance(mixed, MixedBatch) else len(self.split_batch(mixed)[0])
        super().log(name, value, *args, batch_size=batch_size, **kwargs)  # type: ignore[misc]

    def _step(self) -> MixStep | None:
        return getattr(self, "mix_step", None)

    def _tell_progress(self, told: Policy | MixStep) -> None:
        trainer = self.trainer  # type: ignore[attr-defined]
        steps = trainer.estimated_stepping_batches
        # Training without an end (max_steps=-1, or a limit in time) has no progress to follow.
        if math.isfinite(steps) and steps > 0:
            told.set_progress(min(1.0, trainer.global_step / steps))
