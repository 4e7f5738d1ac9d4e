"""Means and deviations of features, and features that take over those of others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from mixaug.ops.layout import single_precision

__all__ = ["Norm", "grouped", "moments", "with_moments"]

#: What the moments of a normalisation are taken over.
Norm = Literal["pono", "in", "ln", "gn", "gpono"]


def grouped(features: Tensor, norm: Norm, groups: int = 1) -> tuple[Tensor, tuple[int, ...]]:
    """Features with a separate axis of groups, and the axes that the moments of a norm are taken over.

    Args:
        features: (B, C, *size).
        norm: ``"pono"`` takes moments over the channels at every position; ``"in"`` over the positions of every
            channel; ``"ln"`` over both; ``"gn"`` over the positions and channels of a group; ``"gpono"`` over the
            channels of a group at every position.
        groups: number of groups for ``"gn"`` and ``"gpono"``; divides C.

    Returns:
        A view (B, groups, C / groups, *size), and axes of it.

    Raises:
        ValueError: another norm, or one that would take the moments of a single value.
    """
    if norm not in get_args(Norm):
        raise ValueError(f"grouped expects norm in {list(get_args(Norm))}, got {norm!r}")
    split = groups if norm in ("gn", "gpono") else 1
    if split < 1 or features.shape[1] % split:
        raise ValueError(f"norm {norm!r} expects groups that divide the {features.shape[1]} channels, got {split}")
    view = features.unflatten(1, (split, features.shape[1] // split))
    places = tuple(range(3, view.ndim))
    axes = {"pono": (2,), "gpono": (2,), "in": places}.get(norm, (2, *places))
    if torch.Size(view.shape[axis] for axis in axes).numel() < 2:
        raise ValueError(
            f"moments {norm!r} of features {tuple(features.shape)} would be those of a single value each: take "
            "another norm, or an earlier stage"
        )
    return view, axes


def moments(
    values: Tensor, axes: Sequence[int], epsilon: float, *, positive_only: bool = False
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, in float32 for narrower values. Differentiable.

    Args:
        values: (B, ...) floating point.
        axes: to reduce.
        epsilon: added to the variance, which is the unbiased one.
        positive_only: of the values above zero alone, with the biased variance; both 0 where there is none.

    Returns:
        Mean and ``sqrt(variance + epsilon)``, of the shape of ``values`` with 1 at ``axes``.
    """
    values, axes = single_precision(values), tuple(axes)
    if not positive_only:
        variance, mean = torch.var_mean(values, axes, keepdim=True)
        return mean, (variance + epsilon).sqrt()
    positive = values > 0
    count = positive.sum(axes, keepdim=True).clamp(min=1)
    kept = torch.where(positive, values, torch.zeros_like(values))
    mean = kept.sum(axes, keepdim=True) / count
    # As the authors' code: with one positive value the variance is zero up to rounding, and epsilon decides.
    square = kept.square().sum(axes, keepdim=True) / count
    return mean, ((square - mean.square()).clamp(min=0) + epsilon).sqrt()


def with_moments(values: Tensor, own: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> Tensor:
    """``(values - mean) / deviation * wanted deviation + wanted mean``, in the dtype of ``values``."""
    (mean, deviation), (target, spread) = own, wanted
    scale = spread / deviation
    return torch.addcmul(target - mean * scale, single_precision(values), scale).to(values.dtype)
