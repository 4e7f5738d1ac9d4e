"""Backbones by name: every timm model, the small-image variants of `mixaug.models.small`, and models for other inputs.

Importing this module registers the variants with timm, so `timm.create_model("cifar_resnet18")` works from
then on. `mlp` (tables) and `lstnet` (series) are known to `create` alone.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable
from typing import Any

from torch import nn

try:
    import timm
except ModuleNotFoundError as error:
    if error.name != "timm":
        raise
    told = "No module named 'timm', which mixaug.models needs: pip install 'mixaug[train]'"
    raise ModuleNotFoundError(told, name="timm") from error

from mixaug.models import small
from mixaug.models.lstnet import LSTNet
from mixaug.models.tabular import MLP

__all__ = ["MLP", "LSTNet", "create", "list_models", "projector", "small"]

# timm's conventions (features of images, channels, pretrained weights) do not fit these.
_OTHERS: dict[str, Callable[..., nn.Module]] = {"lstnet": LSTNet, "mlp": MLP}


def list_models(pattern: str = "*") -> list[str]:
    """Names of the models that mixaug adds to timm's, sorted: small-image variants, `mlp` and `lstnet`.

    Args:
        pattern: shell-style pattern, e.g. `"cifar_wrn*"`. For timm's own names use `timm.list_models`.
    """
    return sorted(fnmatch.filter([*small.default_cfgs, *_OTHERS], pattern))


def create(name: str, num_classes: int, in_chans: int = 3, **options: Any) -> nn.Module:
    """Builds a classifier or a regression model by its name: timm's, a small-image variant, `"mlp"` or `"lstnet"`.

    Nothing is downloaded unless `pretrained=True` is given.

    Args:
        name: a registered timm architecture, optionally with a pretrained tag (`"resnet50.a1_in1k"`), or a name of
            `list_models`.
        num_classes: size of the output, >= 1: logits, or columns of a real-valued label (0 gives timm's headless
            model, whose output is the pooled feature).
        in_chans: channels of the input images, columns of a table or number of series, >= 1.
        **options: handed to `timm.create_model` (`pretrained`, `drop_rate`, `drop_path_rate`,
            `features_only`, ...), or to `mixaug.models.tabular.MLP` or `mixaug.models.lstnet.LSTNet`.

    Returns:
        A module that maps (B, in_chans, H, W) floats to (B, num_classes); `mlp` maps (B, in_chans), and `lstnet`
        (B, in_chans, steps).

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
    if name in _OTHERS:
        return _OTHERS[name](num_classes=num_classes, in_chans=in_chans, **options)
    if not timm.is_model(name):
        # The small-image variants are among timm's models, too.
        known = dict.fromkeys([*list_models(), *timm.list_models()])
        close = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
        own = f"beside those of timm there are {', '.join(list_models())}"
        hint = f"closest names: {', '.join(close)}" if close else own
        raise ValueError(f"there is no model {name!r}; {hint}")
    return timm.create_model(name, num_classes=num_classes, in_chans=in_chans, **options)


def projector(name: str = "cifar_resnet8", dim: int = 128, hidden: int = 512, **options: Any) -> nn.Sequential:
    """A backbone with a projection head of two layers, as contrastive losses take it: inputs to (B, dim) floats.

    The head is that of supervised contrastive learning (arXiv:2004.11362): linear, ReLU, linear.

    Args:
        name: the backbone, as for `create`.
        dim: width of the embedding, >= 1.
        hidden: width of the head's inner layer, >= 1.
        **options: handed to `create`, such as `in_chans`.

    Raises:
        ValueError: an unknown backbone, or a width out of range.
        TypeError: an option that the backbone does not know.
    """
    if not isinstance(dim, int) or dim < 1:
        raise ValueError(f"mixaug.models.projector expected dim >= 1, got {dim!r}")
    # A backbone's classifier is a linear layer of any width, so it serves as the head's first one.
    return nn.Sequential(create(name, num_classes=hidden, **options), nn.ReLU(), nn.Linear(hidden, dim))
