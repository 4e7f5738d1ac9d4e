"""mixaug in timm's training script: in the place of `Mixup`, of `FastCollateMixup`, and of the task that it trains by.

timm's script mixes with its `FastCollateMixup` while the prefetcher is on, which is the default, and with its `Mixup`
under `--no-prefetcher` alone: :class:`FastCollateMix` stands where the first stands, :class:`MixupFn` where the second
does.

timm's training loop calls `input, target = mixup_fn(input, target)` on the device and trains on the dense
target; to stop mixing at `--mixup-off-epoch` it sets `mixup_fn.mixup_enabled = False`. `MixupFn` keeps that
contract and departs from `timm.data.Mixup` in two ways: the caller's images stay as they were, and any batch
size will do.

Since 1.0.27 timm's script trains by a task, which owns the model and computes the loss; :class:`MixTask` is one whose
forward is a whole `mixaug.MixStep`, for policies that look at the model and for those that learn.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from timm.data import FastCollateMixup
from timm.utils import ModelEmaV3, unwrap_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import default_collate

from mixaug import MixCollate, MixStep, Policy
from mixaug.axes import check_layout
from mixaug.integrations._common import STEP, require_class_count, require_model_free, require_smoothing, unmixed

try:
    from timm.task import TrainingTask
except ImportError:
    # Before 1.0.23 timm has no tasks; all but MixTask works there too.
    TrainingTask = nn.Module  # type: ignore[assignment, misc]

_logger = logging.getLogger(__name__)

INSTEAD = f"train the task MixTask({STEP})"


class MixupFn:
    """A callable `(x, target) -> (x, target)` for timm's training loop.

    Args:
        policy: a model-free policy.
        num_classes: K, the width of the dense targets.
        label_smoothing: in [0, 1], spread evenly over all K classes, as `torch.nn.CrossEntropyLoss` does.
        generator: where the draws come from; default: torch's own for the device.
        layout: where the channels of the images are, such as `"NTCHW"` for clips, see :meth:`mixaug.Policy.forward`.

    Attributes:
        mixup_enabled: set to False, `x` comes back as it is, with its dense (smoothed) target, so that the
            loss need not change.
        policy: the policy; call `policy.set_progress(epoch / epochs)` if it follows the progress of training.

    Raises:
        TypeError: `policy` is not a `mixaug.Policy`.
        ValueError: `policy` needs a model; `num_classes` or `label_smoothing` out of range; a layout that is none.

    Example:
        >>> import mixaug
        >>> import torch
        >>> mixup_fn = MixupFn(mixaug.create("cutmix"), num_classes=10, label_smoothing=0.1)
        >>> images, targets = mixup_fn(torch.rand(8, 3, 32, 32), torch.randint(10, (8,)))
        >>> targets.shape
        torch.Size([8, 10])
    """

    def __init__(
        self,
        policy: Policy,
        num_classes: int,
        label_smoothing: float = 0.0,
        *,
        generator: torch.Generator | None = None,
        layout: str | None = None,
    ) -> None:
        self.policy = require_model_free(policy, "MixupFn", INSTEAD)
        self.num_classes = require_class_count(num_classes, "MixupFn")
        self.label_smoothing = require_smoothing(label_smoothing, "MixupFn")
        self.generator = generator
        self.layout = check_layout("MixupFn", layout)
        self.mixup_enabled = True

    def __call__(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Mix one batch.

        Args:
            x: images (B, C, H, W), unchanged by the call.
            target: class ids (B,) or dense targets (B, K).

        Returns:
            The mixed images, dtype and memory format as in `x`, and dense targets (B, K), float32.
        """
        if self.mixup_enabled:
            mixed = self.policy(x, target, generator=self.generator, layout=self.layout)
        else:
            mixed = unmixed(x, target)
        return mixed.inputs, mixed.targets(self.num_classes, label_smoothing=self.label_smoothing)

    def __repr__(self) -> str:
        return (
            f"MixupFn({self.policy!r}, num_classes={self.num_classes}, "
            f"label_smoothing={self.label_smoothing}, mixup_enabled={self.mixup_enabled})"
        )


class FastCollateMix(FastCollateMixup):
    """A collate function for timm's prefetching loader: uint8 images and dense targets, mixed in the workers.

    Args:
        policy: a model-free policy.
        num_classes: K, the width of the dense targets.
        label_smoothing: in [0, 1], spread evenly over all K classes.
        seed: see :class:`mixaug.MixCollate`.

    Attributes:
        mixup_enabled: set to False, as `loader.mixup_enabled = False` at `--mixup-off-epoch` does, images come as they
            are, with their dense (smoothed) targets. Workers see it, persistent ones too.

    Raises:
        TypeError: `policy` is not a `mixaug.Policy`; in a batch, images that are not uint8.
        ValueError: `policy` needs a model; `num_classes` or `label_smoothing` out of range.

    Example:
        >>> import mixaug
        >>> import numpy as np
        >>> collate = FastCollateMix(mixaug.create("cutmix"), num_classes=10)
        >>> images, targets = collate([(np.zeros((3, 8, 8), np.uint8), label) for label in range(4)])
        >>> images.dtype, targets.shape
        (torch.uint8, torch.Size([4, 10]))
    """

    def __init__(
        self, policy: Policy, num_classes: int, label_smoothing: float = 0.0, *, seed: int | None = None
    ) -> None:
        # Nothing of timm's class is used but its name, which timm's loader asks for before it switches mixing off.
        require_model_free(policy, "FastCollateMix", INSTEAD)
        self.num_classes = require_class_count(num_classes, "FastCollateMix")
        self.label_smoothing = require_smoothing(label_smoothing, "FastCollateMix")
        self.mix = MixCollate(policy, num_classes, label_smoothing, _stacked, seed=seed)
        self._enabled = torch.ones(1, dtype=torch.bool).share_memory_()

    @property
    def mixup_enabled(self) -> bool:
        """Whether batches are mixed."""
        return bool(self._enabled[0])

    @mixup_enabled.setter
    def mixup_enabled(self, enabled: bool) -> None:
        self._enabled.fill_(enabled)

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """With a seed, before each epoch: see :class:`mixaug.MixCollate`."""
        self.mix.set_epoch(epoch, first_batch)

    def set_progress(self, fraction: float) -> None:
        """Tell the policy, in every worker, how much of training is done, in [0, 1]."""
        self.mix.set_progress(fraction)

    def __call__(self, batch: list[Any], _: Any = None) -> tuple[Tensor, Tensor]:
        """Mix one batch.

        Args:
            batch: samples (image, label): uint8 (C, H, W), an array or a tensor, and a class id or a row (K,).

        Returns:
            Images (B, C, H, W) uint8 and targets (B, K) float32.
        """
        if self.mixup_enabled:
            images, targets = self.mix(batch)
            return images, targets
        images, labels = _stacked(batch)
        return images, unmixed(images, labels).targets(self.num_classes, self.label_smoothing)


def _stacked(batch: list[Any]) -> tuple[Tensor, Tensor]:
    """Images (B, C, H, W) uint8 and labels of samples as timm's data sets give them for its prefetcher."""
    first = batch[0][0]
    if isinstance(first, np.ndarray):
        images = torch.from_numpy(np.stack([image for image, _ in batch]))
    elif isinstance(first, Tensor):
        images = torch.stack([image for image, _ in batch])
    else:
        raise TypeError(f"FastCollateMix expects images as arrays or tensors, got {type(first).__name__}")
    if images.dtype != torch.uint8:
        raise TypeError(f"FastCollateMix expects uint8 images, got {images.dtype}; MixCollate takes others")
    labels: Tensor = default_collate([label for _, label in batch])
    return images, labels


class MixTask(TrainingTask):
    """A task for timm's training script whose forward mixes, runs the model and computes the loss.

    It stands where the script makes its `ClassificationTask`. Everything that the script does with a task goes on:
    optimizer groups, gradient clipping, a moving average, compilation, several processes, checkpoints. These hold the
    model as ever, and what the policy, the objective and networks have learned beside it.

    After each optimizer step the script calls `task.update_ema(step)`, with a moving average or without; that is where
    :meth:`mixaug.MixStep.after_step` is called and the policy is told how much of training is done.

    Args:
        step: the training forward, made of the model.
        total_updates: optimizer steps of the whole training, for policies that follow its progress; without it these
            raise when they are to mix. An epoch has as many as the loader has batches, divided by
            `--grad-accum-steps` and rounded up.
        device: where the step is moved to, as timm's tasks move their loss; None leaves it where it is.
        dtype: of the task's own tensors, as for timm's tasks.
        verbose: log one line that says what is trained.
        soft_targets: the data's targets are rows (B, K) on purpose, as for distillation and for several labels an
            image. Without it floating rows of two columns or more give a warning, once: in timm's script they come of
            its own mixing, and every batch is mixed twice.

    Raises:
        TypeError: `step` is no `mixaug.MixStep`.
        ValueError: `total_updates` is no positive whole number.
        ImportError: a timm whose tasks do not own the model, before 1.0.27.

    Example:
        >>> import mixaug
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 10))
        >>> step = mixaug.MixStep(model, mixaug.create("puzzlemix"), mixaug.losses.MixedCrossEntropy())
        >>> task = MixTask(step)
        >>> result = task(torch.rand(4, 3, 8, 8), torch.randint(10, (4,)))
        >>> sorted(result)
        ['accuracy', 'loss']
        >>> result["loss"].backward()
    """

    def __init__(
        self,
        step: MixStep,
        *,
        total_updates: int | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        verbose: bool = True,
        soft_targets: bool = False,
    ) -> None:
        if not hasattr(TrainingTask, "get_trainable_module"):
            raise ImportError("MixTask needs timm 1.0.27 or later, whose training tasks own the model")
        if not isinstance(step, MixStep):
            raise TypeError(f"MixTask expects a mixaug.MixStep, got {type(step).__name__}")
        whole = isinstance(total_updates, int) and not isinstance(total_updates, bool)
        if total_updates is not None and not (whole and total_updates > 0):
            raise ValueError(f"MixTask expects total_updates as a positive whole number, got {total_updates!r}")
        super().__init__(device=device, dtype=dtype, verbose=verbose)
        self.trainable_module: nn.Module = step if device is None else step.to(device=device)
        self.total_updates = total_updates
        self.soft_targets = soft_targets
        self._updates = 0
        self._tell_progress()
        if verbose:
            policy, objective = type(step.policy).__name__, step.objective
            name = getattr(objective, "__name__", type(objective).__name__)
            _logger.info(f"{type(self).__name__}: policy={policy}, objective={name}")

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Loss of one mixed batch, and beside it what the step logs.

        Args:
            input: images (B, C, H, W).
            target: class ids (B,), or what else the objective understands.
        """
        if not self.soft_targets and _are_like_timms_mixed(target):
            self.soft_targets = True
            warnings.warn(
                f"MixTask got targets {tuple(target.shape)} as floating rows, which is what timm's own mixing makes of "
                "class ids: every batch is mixed twice then. Switch it off (--mixup 0 --cutmix 0, no --cutmix-minmax), "
                "or say that the data's targets are rows (soft_targets=True)",
                stacklevel=2,
            )
        loss, logs = self.trainable_module(input, target)
        return {**logs, "loss": loss}

    def prepare_distributed(self, device_ids: list[Any] | None = None, **ddp_kwargs: Any) -> MixTask:
        """Wrap the whole step in `DistributedDataParallel`."""
        self.trainable_module = DistributedDataParallel(self.trainable_module, device_ids=device_ids, **ddp_kwargs)
        return self

    def compile(  # type: ignore[override]
        self, backend: str = "inductor", mode: str | None = None, **compile_kwargs: Any
    ) -> nn.Module:
        """Compile the model in place, for training and validation alike; mixing stays as it is."""
        model = self._step().model
        model.compile(backend=backend, mode=mode, **compile_kwargs)
        return model

    def setup_ema(self, *args: Any, **kwargs: Any) -> nn.Module:
        """A moving average of the model alone, with the arguments of timm's `ModelEmaV3`."""
        self.trainable_module_ema: ModelEmaV3 = ModelEmaV3(self._step().model, *args, **kwargs)
        return self.trainable_module_ema

    def update_ema(self, step: int | None = None) -> None:
        """After an optimizer step: the moving average, if there is one, `after_step` of the step, and progress."""
        inner = self._step()
        if self.has_ema():
            self.trainable_module_ema.update(unwrap_model(inner.model), step=step)
        inner.after_step()
        self._updates = self._updates + 1 if step is None else step
        self._tell_progress()

    def get_clip_parameters(self, exclude_head: bool = False) -> Iterable[nn.Parameter]:
        """Parameters whose gradients are clipped; the head that may be left out is the model's."""
        every = list(self.trainable_module.parameters())
        head = {id(parameter) for parameter in list(self._step().model.parameters())[-2:]} if exclude_head else set()
        return [parameter for parameter in every if id(parameter) not in head]

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module | None:
        """The model, without mixing, which is what is validated and stored."""
        found = super().get_eval_model(module=module, ema=ema)
        inner = found if found is None or isinstance(found, ModelEmaV3) else unwrap_model(found)
        return inner.model if isinstance(inner, MixStep) else found

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """What the step holds beside the model; nothing for the moving average, which is of the model alone."""
        if ema:
            return {}
        beside = {name: value for name, value in self._step().state_dict().items() if not name.startswith("model.")}
        return {"step": beside, "updates": self._updates}

    def load_checkpoint_state(
        self,
        state_dict: dict[str, Any],
        task_state: dict[str, Any] | None = None,
        ema: bool = False,
        strict: bool = True,
    ) -> None:
        """Take up a checkpoint of the model, and of what stands beside it where there is any.

        A checkpoint of the model alone, from training without mixaug, leaves policy, objective and networks as they
        are: what copies the model was made of the model as it was before. Load such weights before the step is made.

        Raises:
            ValueError: the checkpoint was written by another task, or by one with another policy, objective or
                networks; before anything is changed.
        """
        if not ema and task_state:
            self._beside(task_state)
        super().load_checkpoint_state(state_dict, task_state, ema=ema, strict=strict)

    def load_task_state(
        self, state: dict[str, Any] | None, strict: bool = True, module: nn.Module | None = None, ema: bool = False
    ) -> None:
        """Take up what :meth:`get_task_state` gave; errors as of :meth:`load_checkpoint_state`."""
        if ema or not state:
            return
        beside, step = self._beside(state), self._step()
        kept = {name: value for name, value in step.state_dict().items() if name.startswith("model.")}
        step.load_state_dict({**kept, **beside}, strict=strict)
        self._updates = int(state["updates"])
        self._tell_progress()

    def _beside(self, state: dict[str, Any]) -> dict[str, Any]:
        """What stands beside the model in a stored state, checked against the step."""
        if set(state) != {"step", "updates"}:
            raise ValueError(
                f"MixTask got a checkpoint of another task, whose state has {sorted(state)}: load the model's weights "
                "alone, before the step is made"
            )
        beside: dict[str, Any] = state["step"]
        own = {name for name in self._step().state_dict() if not name.startswith("model.")}
        if set(beside) != own:
            only = [sorted(names)[:3] for names in (set(beside) - own, own - set(beside))]
            raise ValueError(
                "MixTask got a checkpoint of a step with another policy, objective or networks: it alone has "
                f"{only[0]}, the step alone {only[1]}"
            )
        return beside

    def _step(self) -> MixStep:
        step: MixStep = unwrap_model(self.trainable_module)
        return step

    def _tell_progress(self) -> None:
        if self.total_updates is not None:
            self._step().set_progress(min(1.0, self._updates / self.total_updates))


def _are_like_timms_mixed(target: Any) -> bool:
    """Whether targets are what timm's Mixup and FastCollateMixup make of the class ids of timm's data sets.

    A single column is no row of classes, but numbers to predict.
    """
    return isinstance(target, Tensor) and target.ndim == 2 and target.shape[1] > 1 and target.is_floating_point()
