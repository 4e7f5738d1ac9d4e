"""Image transforms of the published protocols, by name, for sets that are read image by image.

Each takes a PIL image or a (C, H, W) uint8 tensor and gives a (C, size, size) uint8 tensor in 0..255;
normalisation happens later, on the device (`mixaug.DeviceLoader`). All random draws come from torch's default
generator, which PyTorch seeds per worker. `"uint8"` changes nothing but the type.

| name | what it does |
|---|---|
| `uint8` | conversion to a uint8 tensor, any size |
| `cifar10_train` | 4 zero pixels on each side, random crop, flip |
| `cifar100_train` | 4 reflected pixels on each side, random crop, flip |
| `cifar100_randaugment_train` | `cifar100_train`, then `RandAugment` (ConvNeXt at 32 px) |
| `cifar_vit_train` | random resized crop of scale (0.8, 1), bicubic, flip, `RandAugment` (DeiT-S, Swin-T at 224 px) |
| `cifar_vit_test` | bicubic resize |
| `tiny_imagenet_train` | random resized crop of scale (0.08, 1), bicubic, flip |
| `imagenet_train` | the same at 224 px |
| `imagenet_test` | bicubic resize of the shorter side to 8/7 of the size (256 for 224), centre crop |
| `fine_grained_train` | shorter side to 8/7 of the size, random resized crop of scale (0.5, 1), flip; bilinear |
| `fine_grained_test` | shorter side to 8/7 of the size, centre crop; bilinear |

The settings are those of OpenMixup's configurations for CIFAR, Tiny-ImageNet, ImageNet and the fine-grained
sets.
"""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from timm.data import auto_augment as ops
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

__all__ = ["RandAugment", "build", "default_size", "list_transforms"]

ImageTransform = Callable[[Any], Tensor]

_BICUBIC = InterpolationMode.BICUBIC


class _ToPil:
    """PIL images pass; (C, H, W) uint8 tensors with one or three channels become one."""

    def __call__(self, image: Image.Image | Tensor) -> Image.Image:
        if isinstance(image, Image.Image):
            return image
        if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3:
            came = f"{image.dtype} of shape {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
            raise TypeError(f"a transform expected a PIL image or a (C, H, W) uint8 tensor, got {came}")
        if image.shape[0] not in (1, 3):
            raise ValueError(f"a transform expected 1 or 3 channels, got shape {tuple(image.shape)}")
        channels_last = image.permute(1, 2, 0).contiguous().numpy()
        return Image.fromarray(channels_last[:, :, 0] if image.shape[0] == 1 else channels_last)


def _signed(value: float) -> float:
    return -value if torch.rand(()).item() < 0.5 else value


# Each entry turns (image, strength in [0, 1], keyword arguments of a geometric operation) into an image.
# Ranges are those of the protocol; colour changes are factors of 1 +- (0.05 .. 0.95).
def _enhance(op: Callable[..., Image.Image]) -> Callable[..., Image.Image]:
    return lambda image, level, _: op(image, 1.0 + _signed(0.05 + 0.9 * level))


def _geometric(op: Callable[..., Image.Image], most: float) -> Callable[..., Image.Image]:
    return lambda image, level, keywords: op(image, _signed(most * level), **keywords)


_FIXMATCH_OPS: dict[str, Callable[[Image.Image, float, dict[str, Any]], Image.Image]] = {
    "AutoContrast": lambda image, level, _: ops.auto_contrast(image),
    "Brightness": _enhance(ops.brightness),
    "Color": _enhance(ops.color),
    "Contrast": _enhance(ops.contrast),
    "Equalize": lambda image, level, _: ops.equalize(image),
    "Identity": lambda image, level, _: image,
    "Posterize": lambda image, level, _: ops.posterize(image, math.ceil(4 + 4 * level)),
    "Rotate": _geometric(ops.rotate, 30.0),
    "Sharpness": _enhance(ops.sharpness),
    "ShearX": _geometric(ops.shear_x, 0.3),
    "ShearY": _geometric(ops.shear_y, 0.3),
    "Solarize": lambda image, level, _: ops.solarize(image, int(256 - 256 * level)),
    "TranslateX": _geometric(ops.translate_x_rel, 0.3),
    "TranslateY": _geometric(ops.translate_y_rel, 0.3),
}


class RandAugment:
    """RandAugment (Cubuk et al. 2020, arXiv:1909.13719) with the 14 operations of FixMatch
    (arXiv:2001.07685).

    `num_ops` operations are drawn with replacement; each acts with probability `probability`, at a magnitude
    drawn from N(`magnitude`, `magnitude_std`^2) and clipped to 0..10. The pixel operations are timm's
    (Pillow). Departures from timm's own `rand-m7` policy: the list of operations with the identity in it,
    symmetric ranges for colour, and draws from torch's generator in place of `random` and NumPy. Departure
    from OpenMixup, whose settings the defaults are: Pillow in place of OpenCV, so interpolated pixels differ
        by rounding. As there, posterising grows weaker with the
    magnitude (4 bits kept at 0, 8 at 10).

    Args:
        num_ops: operations per image, >= 0.
        magnitude: mean strength, 0..10.
        magnitude_std: its standard deviation, >= 0.
        probability: chance of each drawn operation to act, 0..1.
        fill: RGB colour of pixels from outside the image; grey images get its mean.
    """

    def __init__(
        self,
        num_ops: int = 2,
        magnitude: float = 7.0,
        magnitude_std: float = 0.5,
        probability: float = 0.5,
        fill: tuple[int, int, int] = (114, 123, 125),
    ) -> None:
        if num_ops < 0:
            raise ValueError(f"RandAugment expected num_ops >= 0, got {num_ops}")
        if not 0 <= magnitude <= 10:
            raise ValueError(f"RandAugment expected magnitude in [0, 10], got {magnitude}")
        if magnitude_std < 0:
            raise ValueError(f"RandAugment expected magnitude_std >= 0, got {magnitude_std}")
        if not 0 <= probability <= 1:
            raise ValueError(f"RandAugment expected probability in [0, 1], got {probability}")
        self.num_ops = num_ops
        self.magnitude = magnitude
        self.magnitude_std = magnitude_std
        self.probability = probability
        self.fill = fill

    def __call__(self, image: Image.Image) -> Image.Image:
        fill: Any = self.fill if image.mode == "RGB" else round(sum(self.fill) / 3)
        names = list(_FIXMATCH_OPS)
        for index in torch.randint(len(names), (self.num_ops,)).tolist():
            if torch.rand(()).item() >= self.probability:
                continue
            magnitude = self.magnitude + self.magnitude_std * torch.randn(()).item()
            level = min(max(magnitude, 0.0), 10.0) / 10.0
            keywords = {"fillcolor": fill, "resample": Image.Resampling.BICUBIC}
            image = _FIXMATCH_OPS[names[index]](image, level, keywords)
        return image

    def __repr__(self) -> str:
        return (
            f"RandAugment(num_ops={self.num_ops}, magnitude={self.magnitude}, magnitude_std={self.magnitude_std}, "
            f"probability={self.probability}, fill={self.fill})"
        )


def _crop_flip(size: int, padding_mode: str) -> list[Any]:
    return [v2.RandomCrop(size, padding=4, padding_mode=padding_mode), v2.RandomHorizontalFlip()]


def _resized_crop_flip(size: int, scale: tuple[float, float], mode: InterpolationMode = _BICUBIC) -> list[Any]:
    return [v2.RandomResizedCrop(size, scale=scale, interpolation=mode), v2.RandomHorizontalFlip()]


def _shorter_side(size: int) -> int:
    return round(size * 8 / 7)


def _resize_crop(size: int, mode: InterpolationMode) -> list[Any]:
    return [v2.Resize(_shorter_side(size), interpolation=mode), v2.CenterCrop(size)]


# Each entry maps a name to (default size, function from a size to the transform's steps).
_BUILDERS: dict[str, tuple[int | None, Callable[[int], list[Any]]]] = {
    "uint8": (None, lambda size: []),
    "cifar10_train": (32, lambda size: _crop_flip(size, "constant")),
    "cifar100_train": (32, lambda size: _crop_flip(size, "reflect")),
    "cifar100_randaugment_train": (32, lambda size: [*_crop_flip(size, "reflect"), RandAugment()]),
    "cifar_vit_train": (224, lambda size: [*_resized_crop_flip(size, (0.8, 1.0)), RandAugment()]),
    "cifar_vit_test": (224, lambda size: [v2.Resize((size, size), interpolation=_BICUBIC)]),
    "tiny_imagenet_train": (64, lambda size: _resized_crop_flip(size, (0.08, 1.0))),
    "imagenet_train": (224, lambda size: _resized_crop_flip(size, (0.08, 1.0))),
    "imagenet_test": (224, lambda size: _resize_crop(size, _BICUBIC)),
    "fine_grained_train": (
        224,
        lambda size: [
            v2.Resize(_shorter_side(size), interpolation=InterpolationMode.BILINEAR),
            *_resized_crop_flip(size, (0.5, 1.0), InterpolationMode.BILINEAR),
        ],
    ),
    "fine_grained_test": (224, lambda size: _resize_crop(size, InterpolationMode.BILINEAR)),
}


def list_transforms(pattern: str = "*") -> list[str]:
    """Names that `build` knows and that match a shell-style pattern, sorted."""
    return sorted(fnmatch.filter(_BUILDERS, pattern))


def _entry(name: str) -> tuple[int | None, Callable[[int], list[Any]]]:
    if name not in _BUILDERS:
        close = difflib.get_close_matches(str(name), _BUILDERS, n=3, cutoff=0.4) or list_transforms()
        raise ValueError(f"unknown transform {name!r}; closest names: {', '.join(close)}")
    return _BUILDERS[name]


def default_size(name: str) -> int | None:
    """Side in pixels of what the named transform gives unless told otherwise; None if it keeps the image's
    size."""
    return _entry(name)[0]


def build(name: str, size: int | None = None) -> ImageTransform:
    """Builds a transform of the table above.

    Args:
        name: one of `list_transforms()`.
        size: side of the result in pixels, >= 1; default: the protocol's. `"uint8"` takes none.

    Returns:
        A picklable callable from a PIL image or (C, H, W) uint8 tensor to a (C, size, size) uint8 tensor. Its
        `keeps_size` says whether images stay of the size that they have.

    Raises:
        ValueError: unknown name (closest names suggested) or size out of range.
    """
    usual, steps = _entry(name)
    if size is not None and (usual is None or size < 1):
        raise ValueError(
            f"transform {name!r} got size={size}; " + ("it takes none" if usual is None else "expected >= 1")
        )
    made = v2.Compose([_ToPil(), *steps(size or usual or 0), v2.PILToTensor()])
    made.keeps_size = usual is None
    return made
