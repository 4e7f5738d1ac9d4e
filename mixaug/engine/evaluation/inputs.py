"""Checks that the families share. Each error names the argument, what came and what was expected."""

from __future__ import annotations

import torch
from torch import Tensor

from mixaug.checks import check_class_ids

__all__ = ["check_features", "check_images", "check_labels", "check_logits"]


def check_labels(what: str, labels: Tensor, samples: int, classes: int) -> None:
    """Raise unless ``labels`` are (N,) integer class ids in [0, K) of N >= 1 samples."""
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dtype == torch.bool:
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"{what} expects labels as integer class ids (N,), got {kind}")
    if tuple(labels.shape) != (samples,):
        raise ValueError(f"{what} expects labels ({samples},) beside {samples} samples, got {tuple(labels.shape)}")
    check_class_ids(what, labels, classes)


def check_logits(what: str, logits: Tensor, labels: Tensor | None = None, name: str = "logits") -> None:
    """Raise unless ``logits`` are finite (N, K) floating point with N >= 1, and ``labels`` fit them."""
    check_features(what, logits, name)
    if labels is not None:
        check_labels(what, labels, len(logits), logits.shape[1])


def check_features(what: str, features: Tensor, name: str = "features") -> None:
    """Raise unless ``features`` are finite (N, D) floating point with N, D >= 1."""
    if not isinstance(features, Tensor) or not features.is_floating_point():
        kind = features.dtype if isinstance(features, Tensor) else type(features).__name__
        raise TypeError(f"{what} expects {name} as a floating-point tensor (N, D), got {kind}")
    if features.ndim != 2 or features.numel() == 0:
        raise ValueError(f"{what} expects {name} (N, D) with at least one sample, got shape {tuple(features.shape)}")
    if not bool(features.isfinite().all()):
        raise ValueError(f"{what} expects finite {name}, got NaN or infinity in {_rows(features)} samples")


def check_images(what: str, images: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    """Raise unless ``images`` are a non-empty batch (B, C, H, W) of one of the dtypes."""
    if not isinstance(images, Tensor) or images.dtype not in dtypes:
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{what} expects images of dtype {names}, got {kind}")
    if images.ndim != 4 or images.numel() == 0:
        raise ValueError(f"{what} expects images (B, C, H, W) with at least one sample, got {tuple(images.shape)}")


def _rows(values: Tensor) -> int:
    return int((~values.isfinite()).any(1).sum())
