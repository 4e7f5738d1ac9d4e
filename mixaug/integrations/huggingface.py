"""Mixing inside the Hugging Face `Trainer`.

A data collator would mix evaluation batches too, for the Trainer has one collator for both. So the mixing
happens in `compute_loss`, on the device and in training only, and the loss goes through the Trainer's
`compute_loss_func`, whose contract also holds under gradient accumulation: the sum over the samples divided
by `num_items_in_batch`, the number of samples of the whole accumulated batch.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mixaug import MixedBatch, Policy
from mixaug.integrations._common import require_model_free, require_smoothing, unmixed
from mixaug.losses import mixed_cross_entropy


class MixedLossFunction:
    """`compute_loss_func` for image classifiers: cross-entropy of `outputs.logits`, mixed or plain.

    Args:
        label_smoothing: in [0, 1], as in `torch.nn.CrossEntropyLoss`.

    Raises:
        ValueError: `label_smoothing` out of range.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = require_smoothing(label_smoothing, "MixedLossFunction")

    def __call__(
        self, outputs: Any, labels: MixedBatch | Tensor | None, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """The loss of one batch.

        Args:
            outputs: the model's output, with `logits` (B, K) as its entry of that name, or as first item of a tuple.
            labels: a `MixedBatch` in training, class ids (B,) in evaluation.
            num_items_in_batch: samples of the whole accumulated batch; None for a plain mean.

        Returns:
            A scalar.

        Raises:
            ValueError: no labels.
        """
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        mixed = labels if isinstance(labels, MixedBatch) else unmixed(logits, labels)
        if mixed.labels is None:
            raise ValueError(f'{type(self).__name__} got a batch without labels; give it an entry "labels"')
        loss = mixed_cross_entropy(
            logits,
            mixed.labels,
            mixed.sources,
            mixed.weights,
            label_smoothing=self.label_smoothing,
            reduction="mean" if num_items_in_batch is None else "sum",
        )
        return loss if num_items_in_batch is None else loss / num_items_in_batch


class MixTrainerMixin:
    """Put before `transformers.Trainer` among the bases, it mixes every training batch.

    Args:
        policy: a model-free policy (keyword).
        label_smoothing: in [0, 1] (keyword); evaluation losses use it too. Leave
            `TrainingArguments.label_smoothing_factor` at 0.
        image_key: the entry of the batch that holds the images (B, C, H, W) (keyword).

    All other arguments go to the Trainer. The labels of a batch are its entry "labels", class ids (B,). Draws come
    from torch's own generator of the device, whose state the Trainer seeds, stores and restores.

    Raises:
        TypeError: `policy` is not a `mixaug.Policy`.
        ValueError: `policy` needs a model; `label_smoothing` out of range; two ways of smoothing asked for.
        KeyError: a training batch lacks the images or the labels.

    Example:
        >>> import mixaug
        >>> import transformers
        >>> class MixTrainer(MixTrainerMixin, transformers.Trainer):
        ...     pass
        >>> def finetune(model, args, train_dataset):
        ...     policy = mixaug.create("cutmix")
        ...     MixTrainer(model=model, args=args, train_dataset=train_dataset, policy=policy).train()
    """

    def __init__(
        self,
        *args: Any,
        policy: Policy,
        label_smoothing: float = 0.0,
        image_key: str = "pixel_values",
        **kwargs: Any,
    ) -> None:
        self.mix_policy = require_model_free(policy, type(self).__name__)
        self.image_key = image_key
        kwargs.setdefault("compute_loss_func", MixedLossFunction(label_smoothing))
        super().__init__(*args, **kwargs)
        factor = getattr(getattr(self, "args", None), "label_smoothing_factor", 0.0)
        if factor:
            raise ValueError(
                f"{type(self).__name__} smooths labels itself: pass label_smoothing={factor} to it and leave "
                "TrainingArguments.label_smoothing_factor at 0"
            )

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The Trainer's method, given the mixed images and a `MixedBatch` as labels while training."""
        if model.training:
            for key in (self.image_key, "labels"):
                if key not in inputs:
                    raise KeyError(
                        f"{type(self).__name__} found no {key!r} in the training batch, only "
                        f"{sorted(inputs)}; name the images with image_key=..., and set "
                        "remove_unused_columns=False if they are made in a transform of the data set"
                    )
            state = self.state  # type: ignore[attr-defined]
            if state.max_steps > 0:
                self.mix_policy.set_progress(min(1.0, state.global_step / state.max_steps))
            mixed = self.mix_policy(inputs[self.image_key], inputs["labels"])
            inputs = {**inputs, self.image_key: mixed.inputs, "labels": mixed}
        return super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]
