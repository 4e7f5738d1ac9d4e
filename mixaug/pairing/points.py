"""Labels or inputs as points whose distances choose partners."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from mixaug.batch import Batch
from mixaug.ops.kernels import as_points

By = Literal["labels", "inputs"]


#: Largest coordinate: beyond it the square of a distance may overflow.
LARGEST = 1e150


def points_of_batch(what: str, batch: Batch, by: By) -> Tensor:
    if by == "inputs":
        return finite_points(what, "inputs", batch.images)
    if batch.labels is None:
        raise ValueError(
            f'{what} pairs by labels: pass labels to the policy with the images, or choose pairing="permutation"'
        )
    return finite_points(what, "labels", batch.labels)


def finite_points(what: str, name: str, rows: Tensor) -> Tensor:
    if not isinstance(rows, Tensor):
        raise TypeError(f"{what} expects {name} as a torch.Tensor, got {type(rows).__name__}")
    if rows.ndim == 0 or rows.numel() == 0:
        raise ValueError(f"{what} expects at least one row of {name}, got shape {tuple(rows.shape)}")
    if rows.dtype == torch.bool or rows.is_complex():
        raise TypeError(f"{what} pairs by distance of {name}, which must be floating or integer, got {rows.dtype}")
    points = as_points(rows)
    if points.is_floating_point() and readable(points):
        small = points.abs() <= LARGEST
        if not bool(small.all()):
            row = int((~small).any(1).nonzero()[0])
            raise ValueError(
                f"{what} pairs by distance, but row {row} of {name} holds NaN, infinity or a number beyond {LARGEST:g}"
            )
    return points


def points_like_fitted(what: str, by: By, points: Tensor, fitted: Tensor) -> Tensor:
    if points.shape[1:] != fitted.shape[1:]:
        raise ValueError(
            f"{what} was fitted to {by} with {math.prod(fitted.shape[1:])} columns "
            f"({fitted.dtype}), got {math.prod(points.shape[1:])} ({points.dtype})"
        )
    return points


def fitted_points(what: str, by: By, labels: Tensor, inputs: Tensor | None) -> Tensor:
    if by == "labels":
        return labels
    if inputs is None:
        raise ValueError(f'{what}(by="inputs") needs the inputs of the training set: fit(labels, inputs)')
    return inputs


def readable(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()
