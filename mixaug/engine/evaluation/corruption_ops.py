"""The common corruptions as functions without randomness: every draw is an argument.

Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019
(arXiv:1903.12261), in the form of the CIFAR generator. Images are (B, 3, H, W) uint8 in and out; between, numbers are
float64 in [0, 1], and results are cut to 8 bits, not rounded, as in the published files.

Glass blur exchanges pixels in the paper; the published code copies one over the other instead, and so does this,
because the published files are made so. Motion blur and snow go without ImageMagick, whose kernel `motion_blur`
repeats.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mixaug.engine.evaluation.inputs import check_images

__all__ = [
    "brightness",
    "contrast",
    "defocus_blur",
    "disk_kernel",
    "elastic_transform",
    "fog",
    "frost",
    "gaussian_blur",
    "gaussian_noise",
    "glass_blur",
    "impulse_noise",
    "jpeg_compression",
    "motion_blur",
    "pixelate",
    "plasma_fractal",
    "saturate",
    "shot_noise",
    "snow",
    "speckle_noise",
    "zoom_blur",
]


def _unit(images: Tensor) -> Tensor:
    check_images("a corruption", images, (torch.uint8,))
    if images.shape[1] != 3:
        raise ValueError(f"a corruption expects images of 3 channels, got {tuple(images.shape)}")
    return images.double() / 255


def _bytes(values: Tensor) -> Tensor:
    return (values.clamp(0, 1) * 255).to(torch.uint8)


# -- noise -------------------------------------------------------------------------------------------------------


def gaussian_noise(images: Tensor, normal: Tensor, std: float) -> Tensor:
    """Add ``std`` times a standard normal, (B, 3, H, W)."""
    return _bytes(_unit(images) + normal * std)


def speckle_noise(images: Tensor, normal: Tensor, std: float) -> Tensor:
    """Add ``std`` times a standard normal, (B, 3, H, W), times the pixel."""
    x = _unit(images)
    return _bytes(x + x * (normal * std))


def shot_noise(images: Tensor, counts: Tensor, photons: float) -> Tensor:
    """Counts (B, 3, H, W) from Poisson(pixel * photons) in place of the pixels."""
    check_images("a corruption", images, (torch.uint8,))
    return _bytes(counts.double() / photons)


def impulse_noise(images: Tensor, uniform: Tensor, salt: Tensor, share: float) -> Tensor:
    """Pixels become white where ``salt`` (B, 3, H, W) bool, else black, where ``uniform`` is at most ``share``."""
    return _bytes(torch.where(uniform <= share, salt.double(), _unit(images)))


# -- blur --------------------------------------------------------------------------------------------------------


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian of standard deviation ``sigma`` pixels, cut at four of them; the border's pixels are repeated."""
    return _bytes(_smoothed(_unit(images), sigma, 4.0, "replicate"))


def glass_blur(images: Tensor, shifts: Tensor, sigma: float) -> Tensor:
    """Blur, let pixels move by one, blur.

    Args:
        images: (B, 3, H, W) uint8.
        shifts: (rounds, B, H, W, 2) int64 in {-1, 0}: how far up and to the left a pixel looks. Those of the first two
            rows and columns are not used.
        sigma: standard deviation of both blurs in pixels.
    """
    blurred = _bytes(_smoothed(_unit(images), sigma, 4.0, "replicate"))
    count, _, height, width = images.shape
    rows = torch.arange(height, device=images.device)[:, None].expand(height, width)
    columns = torch.arange(width, device=images.device).expand(height, width)
    moves = (rows >= 2) & (columns >= 2)
    for shift in shifts:
        # Copies run from the last pixel to the first and look back, so that none of them sees the result of another.
        y, x = (torch.where(moves, place + shift[..., axis], place) for axis, place in enumerate((rows, columns)))
        index = (y * width + x).flatten(1)[:, None].expand(count, 3, -1)
        blurred = blurred.flatten(2).gather(2, index).view_as(blurred)
    return _bytes(_smoothed(blurred.double() / 255, sigma, 4.0, "replicate"))


def disk_kernel(radius: float, alias_sigma: float) -> Tensor:
    """(17, 17) float64 kernel of a defocused point: a disk of ``radius`` pixels, softened by a 3x3 Gaussian."""
    axis = torch.arange(-8, 9, dtype=torch.float64)
    disk = (axis[:, None] ** 2 + axis**2 <= radius**2).double()
    soft = _gaussian_weights(alias_sigma, 1)
    kernel = (soft[:, None] * soft)[None, None]
    return F.conv2d((disk / disk.sum())[None, None], kernel, padding=1)[0, 0]


def defocus_blur(images: Tensor, kernel: Tensor) -> Tensor:
    """Correlate with a kernel (n, n), n odd; the image is mirrored at its border's pixels."""
    held = (kernel != 0).nonzero()
    middle = len(kernel) // 2
    reach = int((held - middle).abs().max())
    own = kernel[middle - reach : middle + reach + 1, middle - reach : middle + reach + 1].double()
    x = F.pad(_unit(images), (reach,) * 4, mode="reflect")
    return _bytes(F.conv2d(x.flatten(0, 1)[:, None], own[None, None]).view(images.shape))


def motion_blur(images: Tensor, angle: Tensor, radius: int, sigma: float) -> Tensor:
    """One-sided Gaussian along a line.

    Args:
        images: (B, 3, H, W) uint8.
        angle: (B,) float64 degrees, clockwise from the row.
        radius: the kernel has 2 radius + 1 steps of one pixel.
        sigma: standard deviation of its weights in pixels.
    """
    return _moved(_unit(images), angle, radius, sigma).mul(255).round().to(torch.uint8)


def zoom_blur(images: Tensor, zooms: Sequence[float]) -> Tensor:
    """Mean of the image and of its enlargements about the centre by these factors, each at least 1."""
    x = _unit(images)
    total = x.clone()
    for zoom in zooms:
        total += _enlarged(x, zoom)
    return _bytes(total / (len(zooms) + 1))


# -- weather -----------------------------------------------------------------------------------------------------


def fog(images: Tensor, plasma: Tensor, strength: float) -> Tensor:
    """Add ``strength`` times a map (B, 1, H, W) or (B, H, W) in [0, 1], then bring the brightest value back."""
    x = _unit(images)
    brightest = x.amax((1, 2, 3), keepdim=True)
    cloud = plasma.double() if plasma.ndim == 4 else plasma.double()[:, None]
    return _bytes((x + strength * cloud) * brightest / (brightest + strength))


def plasma_fractal(uniform: Tensor, decay: float) -> Tensor:
    """Clouds by diamonds and squares on a torus.

    Args:
        uniform: (B, S, S) in [0, 1), S a power of two: each point's own draw; that of [0, 0] is not used.
        decay: each halving of the step divides the amplitude, 100 for the largest, by the square of this.

    Returns:
        (B, S, S) float64, each map from 0 to 1.
    """
    side = uniform.shape[-1]
    if uniform.ndim != 3 or uniform.shape[1] != side or side < 2 or side & (side - 1):
        raise ValueError(f"plasma_fractal expects uniform (B, S, S), S a power of two, got {tuple(uniform.shape)}")
    noise = 2 * uniform.double() - 1
    heights = torch.zeros_like(noise)
    step, amplitude = side, 100.0
    while step >= 2:
        half, scale = step // 2, amplitude**2
        corners = heights[:, ::step, ::step]
        pairs = corners + corners.roll(-1, 1)
        centres = (pairs + pairs.roll(-1, 2)) / 4 + scale * noise[:, half::step, half::step]
        heights[:, half::step, half::step] = centres
        across = centres + centres.roll(1, 1) + corners + corners.roll(-1, 2)
        heights[:, ::step, half::step] = across / 4 + scale * noise[:, ::step, half::step]
        down = centres + centres.roll(1, 2) + corners + corners.roll(-1, 1)
        heights[:, half::step, ::step] = down / 4 + scale * noise[:, half::step, ::step]
        step, amplitude = half, amplitude / decay
    low, high = heights.amin((1, 2), keepdim=True), heights.amax((1, 2), keepdim=True)
    return (heights - low) / (high - low)


def frost(images: Tensor, texture: Tensor, keep: float, amount: float) -> Tensor:
    """``keep`` of the image and ``amount`` of a texture (B, 3, H, W) in [0, 1]."""
    return _bytes(keep * _unit(images) + amount * texture)


def snow(
    images: Tensor, flakes: Tensor, angle: Tensor, zoom: float, threshold: float, radius: int, sigma: float, keep: float
) -> Tensor:
    """Bleach the image and let flakes fall over it.

    Args:
        images: (B, 3, H, W) uint8.
        flakes: (B, H, W) float64, normal draws; what lies below ``threshold`` after an enlargement by ``zoom`` is none.
        angle, radius, sigma: of the motion blur of the flakes.
        zoom, threshold: see ``flakes``.
        keep: share of the image that is not bleached.
    """
    layer = _enlarged(flakes.double()[:, None], zoom)
    layer = torch.where(layer < threshold, 0.0, layer)
    fallen = _moved(_bytes(layer).double() / 255, angle, radius, sigma).mul(255).round() / 255
    x = _unit(images)
    grey = (x * x.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    bleached = keep * x + (1 - keep) * torch.maximum(x, grey * 1.5 + 0.5)
    return _bytes(bleached + fallen + fallen.flip(2, 3))


# -- digital -----------------------------------------------------------------------------------------------------


def brightness(images: Tensor, added: float) -> Tensor:
    """Add to the value (V of HSV)."""
    hue, saturation, value = _to_hsv(_unit(images))
    return _bytes(_to_rgb(hue, saturation, (value + added).clamp(0, 1)))


def saturate(images: Tensor, scale: float, shift: float) -> Tensor:
    """Scale and shift the saturation (S of HSV)."""
    hue, saturation, value = _to_hsv(_unit(images))
    return _bytes(_to_rgb(hue, (saturation * scale + shift).clamp(0, 1), value))


def contrast(images: Tensor, factor: float) -> Tensor:
    """Pull each channel towards its mean over the image."""
    x = _unit(images)
    means = x.mean((2, 3), keepdim=True)
    return _bytes((x - means) * factor + means)


def pixelate(images: Tensor, side: int) -> Tensor:
    """Shrink to ``side`` pixels and enlarge again, both with Pillow's box filter in its fixed-point arithmetic."""
    _unit(images)
    height, width = images.shape[2:]
    small = _box_resized(images, side, side)
    return _box_resized(small, height, width)


def jpeg_compression(images: Tensor, quality: int) -> Tensor:
    """Through a JPEG file of this quality, by Pillow, image by image on the CPU."""
    from PIL import Image

    _unit(images)
    out = []
    for pixels in images.permute(0, 2, 3, 1).cpu().numpy():
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality)
        with Image.open(file) as decoded:
            out.append(np.asarray(decoded))
    return torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2).contiguous().to(images.device)


def elastic_transform(images: Tensor, corners: Tensor, field: Tensor, strength: float, sigma: float) -> Tensor:
    """A random affine map, then a smooth displacement of each pixel.

    Args:
        images: (B, 3, H, W) uint8.
        corners: (B, 3, 2) float64 pixels (x, y): how far the affine map moves three points about the centre.
        field: (B, 2, H, W) float64 in [-1, 1]: rows, then columns.
        strength: the smoothed field is multiplied by this, in pixels.
        sigma: standard deviation of its smoothing in pixels; 0 leaves it as it is.
    """
    x = _unit(images)
    height, width = images.shape[2:]
    middle = x.new_tensor([height // 2, width // 2])
    reach = min(height, width) // 3
    offsets = x.new_tensor([[reach, reach], [reach, -reach], [-reach, -reach]])
    points = torch.cat([middle + offsets, x.new_ones(3, 1)], 1).expand(len(x), 3, 3)
    moved = torch.cat([points[..., :2] + corners, points[..., 2:]], 2)
    # Rows are points: a pixel of the result looks where the inverse of the map says.
    back = torch.linalg.solve(moved, points)
    ys, xs = torch.meshgrid(
        torch.arange(height, dtype=x.dtype, device=x.device),
        torch.arange(width, dtype=x.dtype, device=x.device),
        indexing="ij",
    )
    places = torch.stack([xs, ys, torch.ones_like(xs)], -1).flatten(0, 1) @ back
    x = _sampled(x, places[..., 1].view(-1, height, width), places[..., 0].view(-1, height, width), edge_twice=False)
    smooth = (_smoothed(field, sigma, 3.0, "symmetric") if sigma > 0 else field) * strength
    return _bytes(_sampled(x, ys + smooth[:, 0], xs + smooth[:, 1], edge_twice=True))


# -- what they share ---------------------------------------------------------------------------------------------


def _gaussian_weights(sigma: float, radius: int) -> Tensor:
    """(2 radius + 1,) float64, sum one."""
    weights = np.exp(-0.5 / (sigma * sigma) * np.arange(-radius, radius + 1) ** 2)
    return torch.from_numpy(weights / weights.sum())


def _smoothed(x: Tensor, sigma: float, truncate: float, border: str) -> Tensor:
    """Gaussian along rows, then columns, of (B, C, H, W); added up in the order of SciPy, bit for bit."""
    radius = int(truncate * sigma + 0.5)
    weights = _gaussian_weights(sigma, radius).tolist()
    for axis in (2, 3):
        length = x.shape[axis]
        if border == "replicate":
            sides = [radius] * 2
            padded = F.pad(x, [0, 0, *sides] if axis == 2 else [*sides, 0, 0], mode="replicate")
        else:
            places = _folded(torch.arange(-radius, length + radius, device=x.device), length, edge_twice=True)
            padded = x.index_select(axis, places)
        total = x * weights[radius]
        for away in range(radius, 0, -1):
            around = padded.narrow(axis, radius - away, length) + padded.narrow(axis, radius + away, length)
            total = total + around.mul_(weights[radius - away])
        x = total
    return x


def _folded(places: Tensor, length: int, *, edge_twice: bool) -> Tensor:
    """Mirror whole places into [0, length): cba|abc with the edge twice, cb|abc without."""
    if length == 1:
        return torch.zeros_like(places)
    period = 2 * length if edge_twice else 2 * length - 2
    places = places.remainder(period)
    return torch.minimum(places, (period - 1 if edge_twice else period) - places)


def _sampled(x: Tensor, rows: Tensor, columns: Tensor, *, edge_twice: bool) -> Tensor:
    """(B, C, H, W) at places (B, H, W), bilinear, mirrored beyond the border."""
    count, channels, height, width = x.shape
    top, left = rows.floor(), columns.floor()
    down, right = rows - top, columns - left
    total = torch.zeros_like(x)
    for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
        y = _folded(top.long() + dy, height, edge_twice=edge_twice)
        z = _folded(left.long() + dx, width, edge_twice=edge_twice)
        index = (y * width + z).flatten(1)[:, None].expand(count, channels, -1)
        weight = (down if dy else 1 - down) * (right if dx else 1 - right)
        total += weight[:, None] * x.flatten(2).gather(2, index).view_as(x)
    return total


def _moved(x: Tensor, angle: Tensor, radius: int, sigma: float) -> Tensor:
    """Motion blur of (B, C, H, W) in [0, 1] as ImageMagick has it; pixels of the border are repeated."""
    count, channels, height, width = x.shape
    steps = torch.arange(2 * radius + 1, dtype=x.dtype, device=x.device)
    weights = torch.exp(-steps.square() / (2 * sigma**2))
    weights = weights / weights.sum()
    turn = angle.double()[:, None] * (math.pi / 180)
    right, down = (torch.ceil(steps * direction - 0.5).long() for direction in (turn.cos(), turn.sin()))
    rows = torch.arange(height, device=x.device)[:, None]
    columns = torch.arange(width, device=x.device)
    total = torch.zeros_like(x)
    for step in range(len(steps)):
        y = (rows + down[:, step, None, None]).clamp(0, height - 1)
        z = (columns + right[:, step, None, None]).clamp(0, width - 1)
        index = (y * width + z).flatten(1)[:, None].expand(count, channels, -1)
        total += weights[step] * x.flatten(2).gather(2, index).view_as(x)
    return total


def _enlarged(x: Tensor, zoom: float) -> Tensor:
    """The middle of square images (B, C, S, S), enlarged to their size."""
    side = x.shape[-1]
    crop = math.ceil(side / zoom)
    top = (side - crop) // 2
    target = round(crop * zoom)
    whole = x[:, :, top : top + crop, top : top + crop]
    whole = F.interpolate(whole, size=(target, target), mode="bilinear", align_corners=True)
    trim = (target - side) // 2
    return whole[:, :, trim : trim + side, trim : trim + side]


def _to_hsv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, 3, H, W) to hue, saturation and value, each (B, H, W) in [0, 1]."""
    red, green, blue = x.unbind(1)
    value, span = x.amax(1), x.amax(1) - x.amin(1)
    safe = torch.where(span == 0, 1.0, span)
    hue = torch.where(red == value, (green - blue) / safe, torch.zeros_like(value))
    hue = torch.where(green == value, 2 + (blue - red) / safe, hue)
    hue = torch.where(blue == value, 4 + (red - green) / safe, hue)
    hue = torch.where(span == 0, 0.0, (hue / 6).remainder(1.0))
    return hue, torch.where(span == 0, 0.0, span / torch.where(value == 0, 1.0, value)), value


def _to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    sector = (hue * 6).floor()
    rest = hue * 6 - sector
    low = value * (1 - saturation)
    falls, rises = value * (1 - rest * saturation), value * (1 - (1 - rest) * saturation)
    choices = torch.stack(
        [
            torch.stack(channels)
            for channels in (
                (value, rises, low),
                (falls, value, low),
                (low, value, rises),
                (low, falls, value),
                (rises, low, value),
                (value, low, falls),
            )
        ]
    )
    index = sector.long().remainder(6)[None, None].expand(1, 3, *hue.shape)
    return choices.gather(0, index)[0].movedim(0, 1)


_BITS = 22  # Pillow's weights are whole numbers of 2**-22.


def _box_resized(images: Tensor, height: int, width: int) -> Tensor:
    """uint8 (B, C, H, W), rows first: weighted sums of whole numbers, so float64 has them exactly."""
    x = images.double()
    for axis, length in ((3, width), (2, height)):
        weights = _box_weights(x.shape[axis], length).to(x.device)
        summed = (x.movedim(axis, -1) @ weights.T + 2.0 ** (_BITS - 1)).div(2.0**_BITS).floor()
        x = summed.clamp(0, 255).movedim(-1, axis)
    return x.to(torch.uint8)


def _box_weights(length: int, target: int) -> Tensor:
    """(target, length) float64 of whole numbers: how much of each pixel lies in each box."""
    scale = length / target
    stretch = max(scale, 1.0)
    places = np.arange(length)
    rows = []
    for box in range(target):
        centre = (box + 0.5) * scale
        first, last = max(int(centre - stretch / 2 + 0.5), 0), min(int(centre + stretch / 2 + 0.5), length)
        away = (places - centre + 0.5) / stretch
        row = ((away > -0.5) & (away <= 0.5) & (places >= first) & (places < last)).astype(np.float64)
        rows.append(np.floor(row / row.sum() * 2**_BITS + 0.5))
    return torch.from_numpy(np.stack(rows))
