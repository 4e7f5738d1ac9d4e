"""Any model-free policy in the place of `timm.data.Mixup` and `timm.data.FastCollateMixup`.

timm's script mixes with its `FastCollateMixup` while the prefetcher is on, which is the default, and with its `Mixup`
under `--no-prefetcher` alone: :class:`FastCollateMix` stands where the first stands, :class:`MixupFn` where the second
does.

timm's training loop calls `input, target = mixup_fn(input, target)` on the device and trains on the dense
target; to stop mixing at `--mixup-off-epoch` it sets `mixup_fn.mixup_enabled = False`. `MixupFn` keeps that
contract and departs from `timm.data.Mixup` in two ways: the caller's images stay as they were, and any batch
size will do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from timm.data import FastCollateMixup
from torch import Tensor
from torch.utils.data import default_collate

from mixaug import MixCollate, Policy
from mixaug.integrations._common import require_class_count, require_model_free, require_smoothing, unmixed


class MixupFn:
    """A callable `(x, target) -> (x, target)` for timm's training loop.

    Args:
        policy: a model-free policy.
        num_classes: K, the width of the dense targets.
        label_smoothing: in [0, 1], spread evenly over all K classes, as `torch.nn.CrossEntropyLoss` does.
        generator: where the draws come from; default: torch's own for the device.

    Attributes:
        mixup_enabled: set to False, `x` comes back as it is, with its dense (smoothed) target, so that the
            loss need not change.
        policy: the policy; call `policy.set_progress(epoch / epochs)` if it follows the progress of training.

    Raises:
        TypeError: `policy` is not a `mixaug.Policy`.
        ValueError: `policy` needs a model; `num_classes` or `label_smoothing` out of range.

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
    ) -> None:
        self.policy = require_model_free(policy, "MixupFn")
        self.num_classes = require_class_count(num_classes, "MixupFn")
        self.label_smoothing = require_smoothing(label_smoothing, "MixupFn")
        self.generator = generator
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
            mixed = self.policy(x, target, generator=self.generator)
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
        require_model_free(policy, "FastCollateMix")
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
