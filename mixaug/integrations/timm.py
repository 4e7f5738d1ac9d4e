"""Any model-free policy in the place of `timm.data.Mixup`.

timm's training loop calls `input, target = mixup_fn(input, target)` on the device and trains on the dense
target; to stop mixing at `--mixup-off-epoch` it sets `mixup_fn.mixup_enabled = False`. `MixupFn` keeps that
contract and departs from `timm.data.Mixup` in two ways: the caller's images stay as they were, and any batch
size will do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixaug import Policy
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
