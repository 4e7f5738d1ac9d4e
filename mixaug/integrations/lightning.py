"""Mixing on the device in a LightningModule.

A Lightning callback cannot put another batch in the place of the one it sees; the hook that can is the
module's own `on_after_batch_transfer`, and this mixin fills it in. The batch that reaches `training_step` is
a `mixaug.MixedBatch`; validation, test and prediction batches are left alone.

A module that wraps `mixaug.MixStep` in its `training_step` needs nothing from here.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from mixaug import MixedBatch, Policy
from mixaug.integrations._common import require_model_free


class MixBatchMixin:
    """Mixes each training batch after it has reached the device.

    Put it before `LightningModule` among the bases and set `mix_policy` in `__init__`. A `MixedBatch` knows
    its labels, so the loss is one line, with no (B, K) target built.

    Attributes:
        mix_policy: a model-free policy, set by the class that uses the mixin.

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

    mix_policy: Policy

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
        """Lightning's hook: the mixed batch in training, else `batch` as it came.

        Raises:
            TypeError: `mix_policy` is not a `mixaug.Policy`, or the batch cannot be taken apart.
            ValueError: `mix_policy` needs a model.
        """
        # `super()` is the next of the bases: a data module or another mixin may define the same hook.
        batch = super().on_after_batch_transfer(batch, dataloader_idx)  # type: ignore[misc]
        trainer = self.trainer  # type: ignore[attr-defined]
        if not trainer.training:
            return batch
        policy = require_model_free(self.mix_policy, type(self).__name__)
        steps = trainer.estimated_stepping_batches
        # Training without an end (max_steps=-1, or a limit in time) has no progress to follow.
        if math.isfinite(steps) and steps > 0:
            policy.set_progress(min(1.0, trainer.global_step / steps))
        images, labels = self.split_batch(batch)
        mixed: MixedBatch = policy(images, labels)
        return mixed
