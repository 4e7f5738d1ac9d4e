"""Any model-free policy as a torchvision transforms-v2 transform of a batch.

It stands where `v2.CutMix` and `v2.MixUp` stand: after `default_collate` in a collate function, or in the
training loop; alone, or inside `v2.RandomChoice` and `v2.Compose`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torchvision import tv_tensors
from torchvision.transforms import v2

from mixaug import Policy
from mixaug.axes import check_layout
from mixaug.checks import check_dense, shown
from mixaug.integrations._common import STEP, require_class_count, require_model_free, require_smoothing
from mixaug.ops.nested import mapping_like

#: Names under which dictionaries hold their labels, by the convention of torchvision.
NAMES = ("label", "labels", "target", "targets")


class MixTransform(v2.Transform):
    """`transform(images, labels) -> (mixed images, dense targets)`, as `v2.CutMix` gives them.

    A batch of another structure, a dictionary or a longer tuple, comes back in that structure: its images mixed, its
    labels dense, everything else as it was.

    Args:
        policy: a model-free policy.
        num_classes: K, the width of the dense targets.
        label_smoothing: in [0, 1], spread evenly over all K classes before mixing.
        labels_getter: finds the labels in a batch, as for `v2.CutMix`: a function of the batch that returns the very
            tensor that is in it. `"default"` takes the second item of a pair, or the one entry of a dictionary, also of
            one inside a tuple, that is called label, labels, target or targets, in any case.
        generator: where the draws come from; default: torch's own for the device. Leave it out in a collate
            function: a `DataLoader` seeds torch's own afresh in every worker, but copies a generator to all.
        layout: where the channels of the images are, such as `"NHWC"`, see :meth:`mixaug.Policy.forward`. None is
            `"NTCHW"` for a `tv_tensors.Video` (B, T, C, H, W).

    Raises:
        TypeError: `policy` is not a `mixaug.Policy`, `labels_getter` is neither "default" nor callable.
        ValueError: `policy` needs a model; `num_classes` or `label_smoothing` out of range; a layout that is none.

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
        labels_getter: Callable[[Any], Tensor] | str = "default",
        generator: torch.Generator | None = None,
        layout: str | None = None,
    ) -> None:
        super().__init__()
        self.policy = require_model_free(policy, "MixTransform", f"train through {STEP} in the loop")
        self.num_classes = require_class_count(num_classes, "MixTransform")
        self.label_smoothing = require_smoothing(label_smoothing, "MixTransform")
        if labels_getter != "default" and not callable(labels_getter):
            raise TypeError(
                f'MixTransform expects labels_getter as a function or "default", got {shown(labels_getter)}'
            )
        self.labels_getter = labels_getter
        self.generator = generator
        self.layout = check_layout("MixTransform", layout)

    def forward(self, *inputs: Any) -> Any:
        """Mix one batch.

        Args:
            inputs: images (B, C, H, W), a tensor or `tv_tensors.Image`, or clips (B, T, C, H, W), a `tv_tensors.Video`;
                and class ids (B,) or dense targets (B, K); as two arguments or as one pair, or in a dictionary or tuple
                that holds them.

        Returns:
            The mixed images, of the type that came in, and dense targets (B, K), float32, in the structure that came
            in; a pair as a tuple.

        Raises:
            TypeError: no labels or no images were found, or several images; masks, boxes or points beside the images,
                which would no longer fit them; no dense tensor.
        """
        batch = inputs[0] if len(inputs) == 1 else inputs
        if isinstance(batch, list):
            batch = tuple(batch)
        leaves, structure = pytree.tree_flatten(batch)
        # A mapping that is no dict, such as a BatchFeature, is no structure to torch.
        foreign = batch if isinstance(batch, Mapping) and len(leaves) == 1 and leaves[0] is batch else None
        if foreign is not None:
            leaves, structure = pytree.tree_flatten(dict(foreign))
        for leaf in leaves:
            if isinstance(leaf, tv_tensors.TVTensor) and not isinstance(leaf, (tv_tensors.Image, tv_tensors.Video)):
                raise TypeError(
                    "MixTransform mixes images and labels, as v2.CutMix does, but the batch holds "
                    f"{type(leaf).__name__}, which would no longer fit them: mix by the policy itself, and a mask "
                    "with it by mixed.apply(mask.as_subclass(torch.Tensor))"
                )
        labels = self._labels(batch)
        label_at = next((place for place, leaf in enumerate(leaves) if leaf is labels), None)
        if label_at is None:
            raise TypeError("MixTransform expects labels_getter to return a tensor of the batch itself, not a new one")
        image_at = self._images(batch, leaves, label_at)
        images = leaves[image_at]
        is_of_one = labels.is_floating_point() or len(labels) == 1
        if images.ndim == 3 and labels.ndim == 1 and is_of_one and len(images) != len(labels):
            # One image (C, H, W), and its label or the row of its shares.
            raise TypeError(_no_batch(batch))
        check_dense("MixTransform", "images", images)
        check_dense("MixTransform", "labels", labels)
        is_clip = isinstance(images, tv_tensors.Video) and images.ndim == 5
        layout = "NTCHW" if is_clip and self.layout is None else self.layout
        pixels, ids = images.as_subclass(Tensor), labels.as_subclass(Tensor)
        mixed = self.policy(pixels, ids, generator=self.generator, layout=layout)
        output = mixed.inputs
        if isinstance(images, tv_tensors.TVTensor):
            output = tv_tensors.wrap(output, like=images)
        leaves[image_at] = output
        leaves[label_at] = mixed.targets(self.num_classes, label_smoothing=self.label_smoothing)
        made = pytree.tree_unflatten(leaves, structure)
        return made if foreign is None else mapping_like(foreign, made)

    def extra_repr(self) -> str:
        """What `print(transform)` shows between the brackets."""
        return f"num_classes={self.num_classes}, label_smoothing={self.label_smoothing}"

    def _labels(self, batch: Any) -> Tensor:
        if callable(self.labels_getter):
            found: Any = self.labels_getter(batch)
        elif isinstance(batch, tuple) and len(batch) == 2 and not isinstance(batch[1], Mapping):
            found = batch[1]
        else:
            parts = batch if isinstance(batch, tuple) else (batch,)
            named = [
                value
                for part in parts
                if isinstance(part, Mapping)
                for key, value in part.items()
                if isinstance(key, str) and key.lower() in NAMES
            ]
            found = named[0] if len(named) == 1 else None
        if not isinstance(found, Tensor) or found.ndim == 0:
            raise TypeError(_no_batch(batch))
        return found

    def _images(self, batch: Any, leaves: list[Any], label_at: int) -> int:
        """The place of the images: the one `tv_tensors.Image` or `Video`, else the one tensor with spatial axes."""
        marked = [at for at, leaf in enumerate(leaves) if isinstance(leaf, (tv_tensors.Image, tv_tensors.Video))]
        plain = [
            at
            for at, leaf in enumerate(leaves)
            if isinstance(leaf, Tensor) and not isinstance(leaf, tv_tensors.TVTensor) and at != label_at
        ]
        found = marked or ([at for at in plain if leaves[at].ndim >= 3] if len(plain) > 1 else plain)
        if not found:
            raise TypeError(_no_batch(batch))
        if len(found) > 1:
            raise TypeError(
                "MixTransform expected a batch of images and its labels, with one tensor of images, found "
                f"{len(found)} of them; mark the one to mix as tv_tensors.Image"
            )
        return found[0]


def _no_batch(batch: Any) -> str:
    return (
        "MixTransform expected a batch, images (B, C, H, W) and their labels (B,) or (B, K) as two tensors, or a "
        f"dictionary or longer tuple with labels_getter=..., got {_outline(batch)}; it stands behind default_collate, "
        "in a collate function or in the training loop, not among the transforms of single samples"
    )


def _outline(batch: Any) -> str:
    return f"({', '.join(map(_part, batch if isinstance(batch, tuple) else (batch,)))})"


def _part(part: Any) -> str:
    if isinstance(part, Mapping):
        return f"{{{', '.join(sorted(f'{key!r}: {_part(value)}' for key, value in part.items()))}}}"
    return f"{type(part).__name__} {tuple(part.shape)}" if isinstance(part, Tensor) else type(part).__name__
