"""Blur of maps, smoothing by a sigma of each map's own, and the spectral residual of images."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mixaug.checks import check_images, check_positive, check_whole
from mixaug.ops.layout import single_precision

# Weights of red, green and blue, as torchvision has them.
GREY_WEIGHTS = (0.2989, 0.587, 0.114)


LARGEST_SIDE = 128

Border = Literal["zero", "reflect"]


TINY = 1e-10


def gaussian_blur(maps: Tensor, kernel_size: int = 7, sigma: float = 3.0) -> Tensor:
    """Separable Gaussian blur. The border is mirrored about its last pixel, or repeated where a side is too short.

    Args:
        maps: (B, H, W) floating point.
        kernel_size: odd; 1 leaves the maps as they are.
        sigma: in pixels, positive.

    Returns:
        (B, H, W) float32 (float64 for float64).

    Raises:
        ValueError: another shape, an even kernel, a sigma that is not positive.
    """
    if maps.ndim != 3 or not maps.is_floating_point():
        raise ValueError(f"gaussian_blur expects maps (B, H, W) floating point, got {tuple(maps.shape)} {maps.dtype}")
    kernel_size, sigma = check_blur("gaussian_blur", kernel_size, sigma)
    reach = kernel_size // 2
    blurred = single_precision(maps)[:, None]
    weights = [math.exp(-0.5 * (place / sigma) ** 2) for place in range(-reach, reach + 1)]
    for axis, padding in ((2, (0, 0, reach, reach)), (3, (reach, reach, 0, 0))):
        side = blurred.shape[axis]
        wide = F.pad(blurred, padding, mode="reflect" if side > reach else "replicate")
        # This is no convolution, which would round to TF32 on a GPU.
        blurred = wide.narrow(axis, 0, side) * (weights[0] / sum(weights))
        for place, weight in enumerate(weights[1:], start=1):
            blurred.add_(wide.narrow(axis, place, side), alpha=weight / sum(weights))
    return blurred[:, 0]


def gaussian_smooth(maps: Tensor, sigma: Tensor, largest: float, border: Border = "zero") -> Tensor:
    """Gaussian smoothing along every axis, with a sigma for each map.

    Args:
        maps: (R, *size) float32 or float64.
        sigma: (R,) floating point, in pixels.
        largest: an upper bound of sigma, which says how far a mirrored border reaches; a plain number, so that no value
            is read back.
        border: ``"zero"`` adds values of a density with zeros around the image, so that sums fall towards the border;
            ``"reflect"`` mirrors the image about its edge and takes the mean over whole pixels up to 4 sigma, as
            scipy's ``gaussian_filter`` does.

    Returns:
        (R, *size) of the dtype of ``maps``.
    """
    for axis, side in enumerate(maps.shape[1:], start=1):
        matrix = _smoothing_matrix(sigma.to(maps.dtype), side, largest, border)
        lines = maps.movedim(axis, -1)
        # One matrix product serves every sigma; a kernel may be many times wider than the image.
        maps = (lines.reshape(maps.shape[0], -1, side) @ matrix.transpose(1, 2)).reshape(lines.shape).movedim(-1, axis)
    return maps


def _smoothing_matrix(sigma: Tensor, side: int, largest: float, border: Border) -> Tensor:
    """(R, side, side) weight of every pixel of a line in every pixel of the smoothed line."""
    place = torch.arange(side, device=sigma.device, dtype=sigma.dtype)
    width = sigma[:, None, None]
    if border == "zero":
        return torch.exp(-0.5 * ((place - place[:, None]) / width) ** 2) / (width * math.sqrt(2 * math.pi))
    reach = (4 * width + 0.5).floor()
    weight = torch.zeros(sigma.shape[0], side, side, device=sigma.device, dtype=sigma.dtype)
    turns = int(4 * largest + 0.5) // (2 * side) + 1
    for turn in range(-turns, turns + 1):
        # Pixel p of the line is also seen at p + 2 side turn, and mirrored at 2 side turn - 1 - p.
        for seen in (place + 2 * side * turn, 2 * side * turn - 1 - place):
            distance = seen - place[:, None]
            weight = weight + torch.exp(-0.5 * (distance / width) ** 2) * (distance.abs() <= reach)
    return weight / weight.sum(2, keepdim=True)


def spectral_residual(images: Tensor, kernel_size: int = 7, sigma: float = 3.0) -> Tensor:
    """Saliency without a model: what stands out of the smooth part of an image's log spectrum (Hou and Zhang, 2007).

    The amplitude becomes exp(log amplitude - its 3 x 3 mean), the phase stays; the magnitude of the inverse transform
    is blurred. Sides above 128 pixels are computed at 128; the authors shrink only images more than 128 pixels high,
    and then both sides.

    Args:
        images: (B, C, H, W) floating point or uint8. Three channels become grey by the usual weights, any other
            number is averaged.
        kernel_size, sigma: of the blur.

    Returns:
        (B, H, W) float32 (float64 for float64) >= 0. No gradient flows.

    Raises:
        ValueError: another shape.
    """
    check_images("spectral_residual", images, (2,))
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        pixels = single_precision(images.detach())
        grey = pixels.mean(1)
        if images.shape[1] == 3:
            grey = sum(weight * pixels[:, c] for c, weight in enumerate(GREY_WEIGHTS))  # type: ignore[assignment]
        size, small = grey.shape[1:], [min(side, LARGEST_SIDE) for side in grey.shape[1:]]
        if list(size) != small:
            grey = _resized(grey, small)
        spectrum = torch.fft.fft2(grey)
        amplitude = (spectrum.real.square() + spectrum.imag.square() + TINY).sqrt()
        logarithm = amplitude.log()
        smooth = F.avg_pool2d(F.pad(logarithm[:, None], (1, 1, 1, 1), mode="replicate"), 3, stride=1)[:, 0]
        maps = gaussian_blur(
            torch.fft.ifft2(spectrum * ((logarithm - smooth).exp() / amplitude)).abs(), kernel_size, sigma
        )
        return maps if list(size) == small else _resized(maps, size).clamp_(min=0)


def _resized(maps: Tensor, size: list[int] | torch.Size) -> Tensor:
    return F.interpolate(maps[:, None], tuple(size), mode="bilinear", antialias=True, align_corners=False)[:, 0]


def check_blur(
    what: str, kernel_size: int, sigma: float, size_name: str = "kernel_size", sigma_name: str = "sigma"
) -> tuple[int, float]:
    """Pixels and sigma of a blur as plain numbers, or a ValueError."""
    pixels = check_whole(what, size_name, kernel_size, most=2**14, reason="pixels of an image")
    if pixels % 2 == 0:
        raise ValueError(f"{what} expects {size_name} as an odd number of pixels to blur over, got {kernel_size!r}")
    return pixels, check_positive(what, sigma_name, sigma)
