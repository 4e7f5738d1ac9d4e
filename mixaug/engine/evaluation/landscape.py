"""What a network decides in the plane of three images, and its loss around its weights: numbers behind two pictures.

The plane is that of Somepalli et al., CVPR 2022 (arXiv:2203.08124). The landscape is that of Li et al., NeurIPS 2018
(arXiv:1712.09913): along two random directions whose filters have the length of the network's own, so that networks of
other scales can be compared; biases and the parameters of norms stay where they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from mixaug.checks import check_not_negative, check_whole
from mixaug.engine.evaluation.inputs import check_images, check_labels
from mixaug.frozen import BriefRepr

__all__ = ["Plane", "filter_normalised_direction", "loss_surface", "plane_through"]


@dataclass(frozen=True, eq=False)
class Plane(BriefRepr):
    """Images on a grid in the plane of three others.

    Attributes:
        images: (R * R, C, H, W), row by row from the bottom; values may leave the range of the three.
        across, up: (R,) coordinates of columns and rows, in the distance of images.
        corners: (3, 2) coordinates (across, up) of the three images.
    """

    images: Tensor
    across: Tensor
    up: Tensor
    corners: Tensor


def plane_through(images: Tensor, resolution: int = 50, margin: float = 0.3) -> Plane:
    """The plane through three images: the first is the origin, the second lies to its right.

    Args:
        images: (3, C, H, W) floating point, not on one line.
        resolution: R, points of a side of the grid.
        margin: how far the grid goes beyond the three, in parts of their extent.

    Raises:
        TypeError, ValueError: other shapes, dtypes or options, or images on one line.
    """
    check_images("plane_through", images, (torch.float32, torch.float64))
    if len(images) != 3:
        raise ValueError(f"plane_through expects three images (3, C, H, W), got {tuple(images.shape)}")
    side = check_whole("plane_through", "resolution", resolution, least=2)
    beyond = check_not_negative("plane_through", "margin", margin)
    origin, second, third = images.double().flatten(1)
    right = second - origin
    width = right.norm()
    right = right / width
    over = (third - origin) @ right
    upward = third - origin - over * right
    height = upward.norm()
    if not bool((width > 1e-6) & (height > 1e-6 * width)):
        raise ValueError("plane_through expects three images that are not on one line")
    upward = upward / height
    zero = width.new_zeros(())
    corners = torch.stack([torch.stack([zero, zero]), torch.stack([width, zero]), torch.stack([over, height])])
    low, high = corners.amin(0), corners.amax(0)
    low, high = low - beyond * (high - low), high + beyond * (high - low)
    part = torch.linspace(0, 1, side, dtype=torch.float64, device=images.device)
    across, up = (low[axis] + part * (high[axis] - low[axis]) for axis in (0, 1))
    points = origin + up[:, None, None] * upward + across[None, :, None] * right
    return Plane(points.flatten(0, 1).view(-1, *images.shape[1:]).to(images.dtype), across, up, corners)


def filter_normalised_direction(model: nn.Module, generator: Generator) -> dict[str, Tensor]:
    """A random direction in the space of the weights, each filter as long as the network's own.

    Args:
        model: any module. Parameters of fewer than two axes get zeros.
        generator: of the CPU.

    Returns:
        A tensor like each parameter, by its name.
    """
    direction = {}
    for name, parameter in model.named_parameters():
        weight = parameter.detach()
        if weight.ndim < 2:
            direction[name] = torch.zeros_like(weight)
            continue
        drawn = torch.randn(weight.shape, generator=generator).to(weight)
        own, length = weight.flatten(1).norm(dim=1), drawn.flatten(1).norm(dim=1)
        scale = own / length.clamp_min(torch.finfo(weight.dtype).tiny)
        direction[name] = drawn * scale.view(-1, *[1] * (weight.ndim - 1))
    return direction


@torch.no_grad()
def loss_surface(
    model: nn.Module,
    directions: Sequence[Mapping[str, Tensor]],
    steps: Sequence[float],
    images: Tensor,
    labels: Tensor,
    batch_size: int = 500,
) -> Tensor:
    """Mean cross-entropy with the weights moved along two directions.

    Args:
        model: on the device of the images, in the mode it is to be run in. Its own parameters are not touched.
        directions: two, each a tensor like a parameter by its name.
        steps: R multiples of the directions; 0 is the network itself.
        images: (N, C, H, W) as the model takes them.
        labels: (N,) int64.
        batch_size: images that are run together.

    Returns:
        (R, R) float64 on the CPU: row i, column j has steps[i] of the second and steps[j] of the first direction.

    Raises:
        TypeError, ValueError: other shapes, dtypes, or another number of directions.
    """
    check_images("loss_surface", images, (torch.float32, torch.float64))
    check_labels("loss_surface", labels, len(images), int(labels.max()) + 1)
    if len(directions) != 2:
        raise ValueError(f"loss_surface expects two directions, got {len(directions)}")
    first, second = directions
    own = {name: parameter.detach() for name, parameter in model.named_parameters()}
    surface = images.new_zeros(len(steps), len(steps), dtype=torch.float64)
    for row, upward in enumerate(steps):
        for column, across in enumerate(steps):
            moved = {name: value + across * first[name] + upward * second[name] for name, value in own.items()}
            for part, classes in zip(images.split(batch_size), labels.split(batch_size), strict=True):
                logits = torch.func.functional_call(model, moved, (part,))
                surface[row, column] += F.cross_entropy(logits.double(), classes, reduction="sum")
    return surface.cpu() / len(images)
