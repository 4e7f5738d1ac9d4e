"""Mixing inside the Hugging Face `Trainer`.

A data collator would mix evaluation batches too, for the Trainer has one collator for both. So the mixing
happens in `compute_loss`, on the device and in training only, and the loss goes through the Trainer's
`compute_loss_func`, whose contract also holds under gradient accumulation: the sum over the samples divided
by `num_items_in_batch`, the number of samples of the whole accumulated batch.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mixaug import MixedBatch, MixStep, ModelSignals, Policy
from mixaug.axes import check_layout
from mixaug.integrations._common import (
    refuse_mixing_collate,
    require_first,
    require_policy,
    require_smoothing,
)
from mixaug.integrations._trainer_losses import (
    REGRESSION,
    DenseTargets,
    MixedLossFunction,
    OwnLoss,
    are_ids,
    as_the_problem_takes,
    check_loss_of_forward,
    count_of,
    hands_on_count,
)
from mixaug.passes import as_objective

__all__ = ["MixTrainerMixin", "MixedLossFunction"]

#: File in a checkpoint's folder that holds the state of the policy.
STATE_FILE = "mixaug_policy.pt"


class MixTrainerMixin:
    """Put before `transformers.Trainer` among the bases, it mixes every training batch.

    With `mixaug.create("none")` the losses of training and evaluation are those of the Trainer itself, for each
    `problem_type` of the model's config, under gradient accumulation too. Beside class ids (B,),
    `"single_label_classification"` takes shares of classes (B, K). Without a `problem_type`, integers are class ids and
    rows of floats `"multi_label_classification"`, as Transformers takes them; rows that sum to 1 bring a warning.

    The Trainer does not average every loss over the samples of an accumulated step: it adds up the means of the parts
    for regression and several labels, and for models that do not hand `num_items_in_batch` on to their loss function.
    `compute_loss_func=MixedLossFunction(problem_type=...)` is the mean over all samples for every model.

    Policies that look at the model, and objectives, run through :class:`mixaug.MixStep`. The batch then holds the
    images and the labels alone. Parameters of the policy get optimizer groups of their own (`max_grad_norm` clips the
    gradients of the model alone), and its state is stored in the Trainer's checkpoints and taken up by
    `train(resume_from_checkpoint=...)`.

    Args:
        policy: any policy (keyword).
        label_smoothing: in [0, 1] (keyword); evaluation losses use it too. Leave
            `TrainingArguments.label_smoothing_factor` at 0.
        image_key: the entry of the batch that holds the images (B, C, H, W) (keyword).
        compute_loss_func: an own loss, as the Trainer takes it: `(outputs, labels, num_items_in_batch)` to a scalar
            (keyword). In training its labels are the dense mixed targets, (B, K) or those of a regression, in
            evaluation the labels as they came, unless `label_smoothing` makes dense ones of them.
            `num_items_in_batch` counts samples, where the Trainer alone counts entries of rows of labels.
        objective: instead, for training only, what :class:`mixaug.MixStep` takes: a loss `(outputs, MixedBatch)` to
            a mean, or a :class:`mixaug.Objective` (keyword).
        signals: where the parts of the model are, for policies that do not find them (keyword).
        layout: where the channels of the images are (keyword), such as `"NTCHW"` for the clips that video models take,
            see :meth:`mixaug.Policy.forward`; policies that look at the model take channels second alone.

    All other arguments go to the Trainer.

    The labels of a batch are its entry "labels", or the one that `TrainingArguments.label_names` names. Draws come
    from torch's own generator of the device, whose state the Trainer seeds, stores and restores, with the rank folded
    in where there are several processes.

    Raises:
        TypeError: when a class is made, the Trainer stands before the mixin; there is no Trainer; `policy` is not a
            `mixaug.Policy`.
        ValueError: `label_smoothing` out of range; a layout that is none; two ways of smoothing or two losses asked
            for; a model whose own loss is not that of its problem type, found on the first batch where it lies in
            `forward`; a policy that looks at the model, in a run where the model is wrapped by something other than
            DistributedDataParallel or `torch.compile`.
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

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        require_first(cls, MixTrainerMixin, ("transformers.",), "which would take its place and mix nothing")

    def __init__(
        self,
        *args: Any,
        policy: Policy,
        label_smoothing: float = 0.0,
        image_key: str = "pixel_values",
        compute_loss_func: Callable[..., Tensor] | None = None,
        objective: Any = None,
        signals: ModelSignals | None = None,
        layout: str | None = None,
        **kwargs: Any,
    ) -> None:
        name = type(self).__name__
        if not hasattr(super(), "compute_loss"):
            raise TypeError(
                f"{name} has no Trainer behind MixTrainerMixin: class {name}(MixTrainerMixin, transformers.Trainer)"
                if type(self) is not MixTrainerMixin
                else "MixTrainerMixin is no Trainer by itself: class MixTrainer(MixTrainerMixin, transformers.Trainer)"
            )
        self.mix_layout = check_layout(name, layout)
        self.mix_policy = require_policy(policy, name)
        self.image_key = image_key
        require_smoothing(label_smoothing, name)
        if objective is not None and (compute_loss_func is not None or label_smoothing):
            raise ValueError(
                f"{name} takes the loss from `objective`, or from `compute_loss_func` and `label_smoothing`, not both"
            )
        super().__init__(*args, compute_loss_func=_LossOfTrainer(), **kwargs)  # type: ignore[call-arg]
        refuse_mixing_collate(getattr(self, "data_collator", None), name)
        factor = getattr(getattr(self, "args", None), "label_smoothing_factor", 0.0)
        if factor:
            raise ValueError(
                f"{name} smooths labels itself: pass label_smoothing={factor} to it and leave "
                "TrainingArguments.label_smoothing_factor at 0"
            )
        model = getattr(self, "model", None)
        problem_type = _problem_type(model)
        if compute_loss_func is None or isinstance(compute_loss_func, MixedLossFunction):
            if compute_loss_func is not None and label_smoothing:
                raise ValueError(f"{name} got two ways of smoothing: leave it to MixedLossFunction(label_smoothing)")
            if compute_loss_func is None and objective is None:
                _check_own_loss(name, model)
            if compute_loss_func is not None:
                self.mix_loss: Any = compute_loss_func
            elif getattr(model, "loss_function", None) is None:
                self.mix_loss = MixedLossFunction(label_smoothing, problem_type)
            else:
                self.mix_loss = OwnLoss(label_smoothing, problem_type, hands_on_count(model))
        else:
            self.mix_loss = DenseTargets(compute_loss_func, label_smoothing, problem_type)
        self.compute_loss_func.loss = self.mix_loss  # type: ignore[attr-defined]
        # Whether a loss inside the model's forward is yet to be looked at.
        self._is_unseen = compute_loss_func is None and objective is None and _is_foreign(model)
        self._is_own = isinstance(self.mix_loss, OwnLoss) and objective is None
        # The Trainer divides by the number of parts what such models give, but not what a loss function gives.
        self._divides = self._is_own and not getattr(self, "model_accepts_loss_kwargs", True)
        self.mix_step: _TrainerStep | None = None
        if policy.needs or objective is not None:
            if getattr(self, "model_init", None) is not None:
                raise ValueError(f"{name} shows the model to the policy: pass model=, not model_init=")
            if objective is None and signals is None:
                signals = ModelSignals(model, loss=_loss_of_labels(self.mix_loss))  # type: ignore[arg-type]
            objective = objective or _mean_of(self.mix_loss)
            self.mix_step = _TrainerStep(model, policy, objective, signals, self.mix_layout)  # type: ignore[arg-type]
        if self.mix_step is not None or policy.state_dict():
            self.add_callback(_callback(self))  # type: ignore[attr-defined]

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The Trainer's method, given the mixed images and a `MixedBatch` as labels while training."""
        label_key = self._label_key(inputs)
        if self._is_unseen and label_key in inputs:
            taken = inspect.signature(self.model.forward).parameters  # type: ignore[attr-defined]
            if label_key in taken or any(each.kind is each.VAR_KEYWORD for each in taken.values()):
                check_loss_of_forward(type(self).__name__, model, inputs, label_key, self.mix_loss)
            self._is_unseen = False
        inputs = {("labels" if key == label_key else key): value for key, value in inputs.items()}
        if not model.training:
            return super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]
        for key, shown in ((self.image_key, self.image_key), ("labels", label_key)):
            if key not in inputs:
                raise KeyError(
                    f"{type(self).__name__} found no {shown!r} in the training batch, only "
                    f"{sorted(inputs)}; name the images with image_key=..., and set "
                    "remove_unused_columns=False if they are made in a transform of the data set"
                )
        state = self.state  # type: ignore[attr-defined]
        if state.max_steps > 0:
            self.mix_policy.set_progress(min(1.0, state.global_step / state.max_steps))
        inputs["labels"] = as_the_problem_takes(inputs["labels"], getattr(self.mix_loss, "problem_type", None))
        if self.mix_step is None:
            mixed = self.mix_policy(inputs[self.image_key], inputs["labels"], layout=self.mix_layout)
            inputs = {**inputs, self.image_key: mixed.inputs, "labels": mixed}
            return self._part(super().compute_loss(model, inputs, *args, **kwargs))  # type: ignore[misc]
        others = sorted(key for key in inputs if key not in (self.image_key, "labels"))
        if others:
            raise ValueError(
                f"{type(self).__name__} runs the model on images alone where the policy looks at it, but the batch "
                f"has {others} too: leave them out of the data set, or give the model a forward without them"
            )
        images, labels = inputs[self.image_key], inputs["labels"]
        self.mix_step.show(model)
        loss, logs = self.mix_step(images, labels)
        done = _Done(loss, None if self._is_own and self.mix_loss.is_mean(labels) else count_of(labels))
        # The Trainer calls this in the place of the model, and scales the loss as it scales its own.
        return self._part(super().compute_loss(lambda **_: logs, {"labels": done}, *args, **kwargs))  # type: ignore[misc]

    def _part(self, made: Any) -> Any:
        """The loss of one part of an accumulated batch, or that and outputs, as the Trainer scales it."""
        if not self._divides:
            return made
        parts = getattr(self, "current_gradient_accumulation_steps", 1)
        return (made[0] / parts, *made[1:]) if isinstance(made, tuple) else made / parts

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's optimizer, with groups for the parameters of the policy, of the same settings."""
        made = self.optimizer is None  # type: ignore[attr-defined]
        optimizer = super().create_optimizer(*args, **kwargs)  # type: ignore[misc]
        own = [p for p in self.mix_policy.parameters() if p.requires_grad]
        if made and own:
            decay = self.args.weight_decay  # type: ignore[attr-defined]
            for weight_decay, chosen in (
                (decay, [p for p in own if p.ndim > 1]),
                (0.0, [p for p in own if p.ndim <= 1]),
            ):
                if chosen:
                    optimizer.add_param_group({"params": chosen, "weight_decay": weight_decay})
        return optimizer

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's method; the state of the policy is resumed too."""
        if resume_from_checkpoint:
            folder = resume_from_checkpoint
            if folder is True:
                from transformers.trainer_utils import get_last_checkpoint

                folder = get_last_checkpoint(self.args.output_dir)  # type: ignore[attr-defined]
            path = os.path.join(str(folder), STATE_FILE)
            if self.mix_policy.state_dict():
                if not os.path.exists(path):
                    raise FileNotFoundError(
                        f"{type(self).__name__} cannot resume: {folder} holds no {STATE_FILE} with the policy's state"
                    )
                self.mix_policy.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        return super().train(resume_from_checkpoint, *args, **kwargs)  # type: ignore[misc]

    def _label_key(self, inputs: dict[str, Any]) -> str:
        names = list(getattr(self, "label_names", None) or ["labels"])
        there = [name for name in names if name in inputs]
        if len(there) > 1:
            raise ValueError(
                f"{type(self).__name__} mixes one kind of labels, but the batch has {there}: name one of them, "
                "TrainingArguments(label_names=[...])"
            )
        return there[0] if there else names[0] if len(names) == 1 else "labels"

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """The Trainer's count of what a loss is divided by: samples, where the Trainer counts entries of labels."""
        if self._divides:
            return None
        counted = []
        for batch in batch_samples:
            labels = batch.get(self._label_key(batch))
            if not isinstance(labels, Tensor):
                return super()._get_num_items_in_batch(batch_samples, device)  # type: ignore[misc]
            counted.append({"labels": labels if are_ids(labels) else torch.zeros(len(labels), device=labels.device)})
        return super()._get_num_items_in_batch(counted, device)  # type: ignore[misc]


class _TrainerStep(MixStep):
    """A step whose training passes go through the Trainer's wrapper around the model, if there is one."""

    def __init__(
        self, model: nn.Module, policy: Policy, objective: Any, signals: ModelSignals | None, layout: str | None
    ) -> None:
        # A list, so that the model is not registered twice.
        self._looked_at = [model]
        super().__init__(model, policy, objective, signals, layout=layout)

    def show(self, model: nn.Module) -> None:
        """Take the model as the Trainer runs it."""
        if model is self.model:
            return
        inner = getattr(model, "_orig_mod", model)
        if isinstance(inner, nn.parallel.DistributedDataParallel) and inner is model:
            if any(parameter.requires_grad for parameter in self.policy.parameters()):
                raise ValueError(
                    f"{type(self.policy).__name__} has parameters of its own, which the Trainer does not average "
                    "over processes: wrap mixaug.MixStep in DistributedDataParallel in a loop of your own"
                )
            inner = model.module
        if inner is not self._looked_at[0] and inner is not getattr(self._looked_at[0], "_orig_mod", None):
            raise ValueError(
                f"{type(self.policy).__name__} looks at the model, which the Trainer has wrapped in "
                f"{type(model).__name__}: train on one device, or under DistributedDataParallel"
            )
        if inner is getattr(model, "_orig_mod", None):
            self._looked_at[0] = model
        self.model = model

    def signals(self) -> ModelSignals:
        signals = ModelSignals(self._looked_at[0], **self.sources)
        signals.objective = as_objective(self.objective).loss
        return signals


@dataclass(frozen=True)
class _Done:
    """A loss that has been computed: its mean over ``count`` samples, or what the Trainer takes as it is."""

    loss: Tensor
    count: Tensor | int | None


class _LossOfTrainer:
    """What the Trainer calls as its `compute_loss_func`."""

    loss: Callable[..., Tensor]

    def __call__(self, outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Tensor:
        if isinstance(labels, _Done):
            if num_items_in_batch is None or labels.count is None:
                return labels.loss
            return labels.loss * labels.count / num_items_in_batch
        return self.loss(outputs, labels, num_items_in_batch=num_items_in_batch)


def _loss_of_labels(loss: Callable[..., Tensor]) -> Callable[[Any, Tensor], Tensor]:
    return lambda outputs, labels: loss(outputs, labels)


def _mean_of(loss: Callable[..., Tensor]) -> Callable[[Any, MixedBatch], Tensor]:
    return lambda outputs, mixed: loss(outputs, mixed, num_items_in_batch=None)


def _problem_type(model: Any) -> str | None:
    """The problem type that a model's config names or, with one output, implies."""
    config = getattr(model, "config", None)
    named = getattr(config, "problem_type", None)
    if named is None and getattr(config, "num_labels", None) == 1:
        return REGRESSION
    return named


def _check_own_loss(name: str, model: Any) -> None:
    """Raise where the loss of a Hugging Face model is another one than its problem type says."""
    own = getattr(model, "loss_function", None)
    if own is not None and getattr(own, "__name__", "") != "ForSequenceClassificationLoss":
        raise ValueError(
            f"{name} knows the losses of classifiers and regression models, but {type(model).__name__} has "
            f"{getattr(own, '__name__', type(own).__name__)}: pass compute_loss_func= or objective="
        )


def _is_foreign(model: Any) -> bool:
    """Whether a model is not of Transformers: what it minimises is then known to its `forward` alone."""
    return isinstance(model, nn.Module) and getattr(model, "loss_function", None) is None


def _callback(trainer: Any) -> Any:
    """What the Trainer calls at the end of a step and when it saves."""
    from transformers import TrainerCallback

    class StepCallback(TrainerCallback):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if trainer.mix_step is None:
                trainer.mix_policy.after_step(trainer.model)
            else:
                trainer.mix_step.after_step()
            # The Trainer empties the gradients of its model alone.
            trainer.mix_policy.zero_grad()

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            kept = trainer.mix_policy.state_dict()
            if kept and args.should_save:
                folder = os.path.join(args.output_dir, f"checkpoint-{state.global_step}")
                part = os.path.join(folder, f"{STATE_FILE}.part")
                torch.save(kept, part)
                os.replace(part, os.path.join(folder, STATE_FILE))

    return StepCallback()
