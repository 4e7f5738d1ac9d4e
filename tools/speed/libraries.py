"""Other libraries doing the same job, where they are installed. Each mixes its labels as it always does."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from speed.setting import Setting

Mixer = Callable[[Tensor, Tensor], object]


def other_libraries(policy: str, per: str, setting: Setting) -> Iterator[tuple[str, Mixer]]:
    """(name, function of images and labels) of every installed library that offers this policy."""
    for library in (_torchvision, _timm, _kornia):
        yield from library(policy, per, setting)


def installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def _torchvision(policy: str, per: str, setting: Setting) -> Iterator[tuple[str, Mixer]]:
    if not installed("torchvision") or per != "batch" or policy not in ("mixup", "cutmix"):
        return
    if policy == "mixup" and setting.dtype == "uint8":
        return  # torchvision's mixup raises on integers
    from torchvision.transforms import v2

    kind = {"mixup": v2.MixUp, "cutmix": v2.CutMix}[policy]
    yield "torchvision", kind(num_classes=setting.num_classes)


def _timm(policy: str, per: str, setting: Setting) -> Iterator[tuple[str, Mixer]]:
    if not installed("timm") or policy not in ("mixup", "cutmix") or setting.shape[0] % 2:
        return
    if policy == "mixup" and setting.dtype == "uint8":
        return  # timm raises, or truncates without a word
    from timm.data import Mixup

    mixer = Mixup(
        mixup_alpha=1.0 if policy == "mixup" else 0.0,
        cutmix_alpha=1.0 if policy == "cutmix" else 0.0,
        mode={"batch": "batch", "pair": "pair", "sample": "elem"}[per],
        label_smoothing=0.0,
        num_classes=setting.num_classes,
    )
    yield "timm", mixer


def _kornia(policy: str, per: str, setting: Setting) -> Iterator[tuple[str, Mixer]]:
    if not installed("kornia") or per != "sample" or policy not in ("mixup", "cutmix") or setting.dtype == "uint8":
        return
    augmentation = importlib.import_module("kornia.augmentation")
    if policy == "mixup":
        mixer = augmentation.RandomMixUpV2(p=1.0, data_keys=["input", "class"])
    else:
        mixer = augmentation.RandomCutMixV2(p=1.0, data_keys=["input", "class"], use_correct_lambda=True)
    yield "kornia", mixer


def dense_targets(result: object) -> Tensor:
    """The dense (B, K) targets that torchvision and timm return beside the images."""
    if not isinstance(result, (tuple, list)) or not isinstance(result[1], torch.Tensor):
        raise TypeError(f"expected (images, targets), got {type(result).__name__}")
    return result[1]
