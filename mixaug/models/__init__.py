"""Backbones by name: every timm model, and the small-image variants of `mixaug.models.small`.

Importing this module registers the variants with timm, so `timm.create_model("cifar_resnet18")` works from
then on.
"""

from __future__ import annotations

import difflib
import fnmatch
from typing import Any

import timm
from torch import nn

from mixaug.models import small

__all__ = ["create", "list_models", "small"]


def list_models(pattern: str = "*") -> list[str]:
    """Names of the small-image variants that mixaug adds to timm, sorted.

    Args:
        pattern: shell-style pattern, e.g. `"cifar_wrn*"`. For timm's own names use `timm.list_models`.
    """
    return sorted(fnmatch.filter(small.default_cfgs, pattern))


def create(name: str, num_classes: int, in_chans: int = 3, **options: Any) -> nn.Module:
    """Builds a classifier by its timm name, small-image variants included.

    Nothing is downloaded unless `pretrained=True` is given.

    Args:
        name: a registered timm architecture, optionally with a pretrained tag (`"resnet50.a1_in1k"`).
        num_classes: size of the logits, >= 1 (0 gives timm's headless model, whose output is the pooled
            feature).
        in_chans: channels of the input images, >= 1.
        **options: handed to `timm.create_model` (`pretrained`, `drop_rate`, `drop_path_rate`,
        `features_only`, ...).

    Returns:
        A module that maps (B, in_chans, H, W) floats to (B, num_classes) logits.

    Raises:
        ValueError: the name is not registered (the closest names are suggested), or a number is out of range.
        TypeError: a number is not an int, or the model's constructor does not know an option.
    """
    for argument, value, least in (("num_classes", num_classes, 0), ("in_chans", in_chans, 1)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"mixaug.models.create expected {argument} to be an int, got {value!r}")
        if value < least:
            raise ValueError(f"mixaug.models.create expected {argument} >= {least}, got {value}")
    if not isinstance(name, str):
        raise TypeError(f"mixaug.models.create expected name to be a str, got {name!r}")
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, [*list_models(), *timm.list_models()], n=5, cutoff=0.5)
        hint = (
            f"closest names: {', '.join(close)}" if close else "see mixaug.models.list_models() and timm.list_models()"
        )
        raise ValueError(f"mixaug.models.create got the unknown model name {name!r}; {hint}")
    return timm.create_model(name, num_classes=num_classes, in_chans=in_chans, **options)
