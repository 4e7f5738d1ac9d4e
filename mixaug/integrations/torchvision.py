"""Any model-free policy as a torchvision transforms-v2 transform of a batch.

It stands where `v2.CutMix` and `v2.MixUp` stand: after `default_collate` in a collate function, or in the
training loop; alone, or inside `v2.RandomChoice` and `v2.Compose`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from mixaug import Policy
from mixaug.integrations._common import require_class_count, require_model_free, require_smoothing


class MixTransform(v2.Transform):
    """`transform(images, labels) -> (mixed images, dense targets)`, as `v2.CutMix` gives them.

    Args:
        policy: a model-free policy.
        num_classes: K, the width of the dense targets.
        label_smoothing: in [0, 1], spread evenly over all K classes before mixing.
        generator: where the draws come from; default: torch's own for the device. Leave it out in a collate
            function: a `DataLoader` seeds torch's own afresh in every worker, but copies a generator to all.

    Raises:
        TypeError: `policy` is not a `mixaug.Policy`.
        ValueError: `policy` needs a model; `num_classes` or `label_smoothing` out of range.

    Example:
        >>> import mixaug
        >>> import torch
        >>> from torch.utils.data import DataLoader, default_collate
        >>> mix = MixTransform(mixaug.create("deit"), num_classes=1000)
        >>> dataset = [(torch.rand(3, 32, 32), label) for label in range(8)]
        >>> loader = DataLoader(dataset, 4, collate_fn=lambda samples: mix(*default_collate(samples)))
        >>> images, targets = next(iter(loader))
        >>> targets.shape
        torch.Size([4, 1000])
    """

    def __init__(
        self,
        policy: Policy,
        num_classes: int,
        label_smoothing: float = 0.0,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.policy = require_model_free(policy, "MixTransform")
        self.num_classes = require_class_count(num_classes, "MixTransform")
        self.label_smoothing = require_smoothing(label_smoothing, "MixTransform")
        self.generator = generator

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Mix one batch.

        Args:
            inputs: images (B, C, H, W), a tensor or `tv_tensors.Image`, and class ids (B,) or dense targets
                (B, K), as two arguments or as one pair.

        Returns:
            The mixed images, of the type that came in, and dense targets (B, K), float32.

        Raises:
            TypeError: anything but the two tensors came in.
        """
        pair = inputs[0] if len(inputs) == 1 and isinstance(inputs[0], (tuple, list)) else inputs
        if len(pair) != 2 or not all(isinstance(value, Tensor) for value in pair):
            raise TypeError(
                "MixTransform expected a batch of images and its labels, two tensors, got "
                f"({', '.join(type(value).__name__ for value in pair)}); apply it after default_collate"
            )
        images, labels = pair
        mixed = self.policy(images.as_subclass(Tensor), labels.as_subclass(Tensor), generator=self.generator)
        output = mixed.inputs
        if isinstance(images, tv_tensors.TVTensor):
            output = tv_tensors.wrap(output, like=images)
        return output, mixed.targets(self.num_classes, label_smoothing=self.label_smoothing)

    def extra_repr(self) -> str:
        """What `print(transform)` shows between the brackets."""
        return f"num_classes={self.num_classes}, label_smoothing={self.label_smoothing}"
