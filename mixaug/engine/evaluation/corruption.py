"""The fifteen corruptions of CIFAR-C in five severities: made from a test set and kept, or read from published files.

Constants are those of the CIFAR generator (arXiv:1903.12261), for images of 32x32. Fourteen of the fifteen follow it in
everything but their random draws. Frost is not the same: the authors lay photographs of frost over the images, which
are not part of this package; here a texture of branching crystals is drawn. Mean errors therefore compare with those of
other runs evaluated so, and with published ones only where the published files are read.

A kept set has the layout of the published one: ``<corruption>.npy``, uint8 (5 N, H, W, 3), severity 1 first, and
``labels.npy``.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from mixaug.checks import check_choice, check_whole
from mixaug.engine.distributed import stream_seed
from mixaug.engine.errors import RunFolderError
from mixaug.engine.evaluation import corruption_ops as ops
from mixaug.engine.evaluation.inputs import check_images
from mixaug.engine.run import BESIDE

__all__ = ["CONSTANTS", "CORRUPTIONS", "EXTRA", "SEVERITIES", "corrupt", "kept_folder", "make_set", "open_set"]

SEVERITIES = 5
CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
"""Those that a mean corruption error is taken over, in the order of the paper."""

EXTRA = ("speckle_noise", "gaussian_blur", "saturate")
"""Further ones of the paper, meant for choosing; its fourth, spatter, is not here."""

CONSTANTS: Mapping[str, tuple[Any, ...]] = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),  # std
    "shot_noise": (500, 250, 100, 75, 50),  # photons
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),  # share
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),  # radius, alias sigma
    "glass_blur": ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2)),  # sigma, rounds
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),  # radius, sigma
    "zoom_blur": (1.06, 1.11, 1.16, 1.21, 1.26),  # end of a range from 1 in steps of 0.01
    # mean, std, zoom, threshold, radius, sigma, keep
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    "frost": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),  # keep, amount
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),  # strength, decay
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),  # added to V
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),  # factor
    # strength, sigma and affine reach, in parts of the side
    "elastic_transform": ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),  # part of the side
    "jpeg_compression": (80, 65, 58, 50, 40),  # quality
    "speckle_noise": (0.06, 0.1, 0.12, 0.16, 0.2),  # std
    "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1),  # sigma
    "saturate": ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),  # scale and shift of S
}
"""Each corruption's constants at severities 1 to 5."""

# The draws of a set depend on this number of images being drawn for at a time.
_CHUNK = 500


def corrupt(images: Tensor, name: str, severity: int, generator: Generator) -> Tensor:
    """Corrupt images.

    Args:
        images: (B, 3, S, S) uint8 on the CPU. The constants are meant for S = 32.
        name: one of `CORRUPTIONS` or `EXTRA`.
        severity: 1 to 5.
        generator: of the CPU, so that a set is the same wherever it is made.

    Returns:
        Images like ``images``.

    Raises:
        TypeError, ValueError: other shapes, dtypes, names or severities.
    """
    check_images("corrupt", images, (torch.uint8,))
    if images.shape[1] != 3 or images.shape[2] != images.shape[3]:
        raise ValueError(f"corrupt expects square images of 3 channels (B, 3, S, S), got {tuple(images.shape)}")
    check_choice("corrupt", "name", name, CONSTANTS)
    level = check_whole("corrupt", "severity", severity, most=SEVERITIES)
    return _APPLIED[name](images, CONSTANTS[name][level - 1], generator)


def make_set(images: Tensor, name: str, seed: int = 0) -> Tensor:
    """A corruption at all severities: (N, 3, S, S) uint8 to (5, N, 3, S, S) uint8, the same for the same seed."""
    made = []
    for severity in range(1, SEVERITIES + 1):
        for number, chunk in enumerate(images.split(_CHUNK)):
            generator = Generator().manual_seed(stream_seed(seed, f"corruption/{name}/{severity}/{number}"))
            made.append(corrupt(chunk, name, severity, generator))
    return torch.cat(made).view(SEVERITIES, *images.shape)


def kept_folder(root: Path, name: str, images: Tensor, labels: Tensor, seed: int = 0) -> Path:
    """Where the corrupted form of a test set is kept: a folder below ``root``, named by a hash of its content."""
    content = hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes() + f"{seed}/{_VERSION}".encode())
    return root / f"{name}-{content.hexdigest()[:12]}"


def open_set(folder: Path, name: str, labels: Tensor, images: Tensor | None = None, seed: int = 0) -> Iterator[Tensor]:
    """The five severities of a corruption, read from a folder, or made and kept there.

    Args:
        folder: with ``<name>.npy`` and ``labels.npy`` as CIFAR-C has them.
        name: the corruption.
        labels: (N,) int64 of the clean test set, in its order.
        images: (N, 3, S, S) uint8 of the clean test set, to make what is not there; None reads only.
        seed: of the draws.

    Yields:
        (N, 3, S, S) uint8, severity 1 first.

    Raises:
        FileNotFoundError: the file is not there and ``images`` is None.
        ValueError: files of another shape or with other labels.
        RunFolderError: what was made cannot be written.
    """
    path = folder / f"{name}.npy"
    if not path.exists():
        if images is None:
            raise FileNotFoundError(
                f"{folder} has no {path.name}; expected the files of CIFAR-C: {', '.join(CORRUPTIONS)}"
            )
        made = make_set(images, name, seed).flatten(0, 1).permute(0, 2, 3, 1).contiguous().numpy()
        _keep(folder / "labels.npy", np.tile(labels.numpy(), SEVERITIES))
        _keep(path, made)
    stored = _read(path)
    found = _read(folder / "labels.npy")
    samples = len(labels)
    if stored.dtype != np.uint8 or stored.ndim != 4 or len(stored) != SEVERITIES * samples or stored.shape[3] != 3:
        raise ValueError(f"{path} expected uint8 ({SEVERITIES * samples}, H, W, 3), got {stored.dtype} {stored.shape}")
    # The published file of labels holds those of all severities, and so does ours.
    if len(found) != len(stored) or not np.array_equal(found[:samples], labels.numpy()):
        raise ValueError(f"{folder / 'labels.npy'} does not have the labels of the clean test set, in its order")
    for severity in range(SEVERITIES):
        block = np.array(stored[severity * samples : (severity + 1) * samples])
        yield torch.from_numpy(block).permute(0, 3, 1, 2).contiguous()


_VERSION = 1
"""Counts up where a corruption's draws or arithmetic change, so that kept sets are made anew."""


def _keep(path: Path, array: Any) -> None:
    """Write a whole array, then rename it into place; other processes may be making the same one."""
    beside = path.with_name(f"{path.name}.{uuid.uuid4().hex}{BESIDE}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(beside, "wb") as file:
                np.save(file, array)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise RunFolderError(f"cannot write {path}: {error.strerror or error}") from error


def _read(path: Path) -> Any:
    try:
        # Nothing pickled is ever loaded from a file that may come from anybody.
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{path} is no array of numbers: {error}") from error


# -- draws -------------------------------------------------------------------------------------------------------


def _normal(shape: tuple[int, ...], generator: Generator) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def _uniform(shape: tuple[int, ...], generator: Generator, low: float = 0.0, high: float = 1.0) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=generator) * (high - low) + low


def _with_normal(function: Callable[..., Tensor], x: Tensor, std: float, g: Generator) -> Tensor:
    return function(x, _normal(tuple(x.shape), g), std)


def _shot(x: Tensor, photons: float, g: Generator) -> Tensor:
    return ops.shot_noise(x, torch.poisson(x.double() / 255 * photons, generator=g), photons)


def _impulse(x: Tensor, share: float, g: Generator) -> Tensor:
    shape = tuple(x.shape)
    return ops.impulse_noise(x, _uniform(shape, g), _uniform(shape, g) < 0.5, share)


@functools.cache
def _disk(radius: float, sigma: float) -> Tensor:
    return ops.disk_kernel(radius, sigma)


def _glass(x: Tensor, constants: tuple[float, int], g: Generator) -> Tensor:
    sigma, rounds = constants
    return ops.glass_blur(x, torch.randint(-1, 1, (rounds, len(x), *x.shape[2:], 2), generator=g), sigma)


def _motion(x: Tensor, constants: tuple[int, float], g: Generator) -> Tensor:
    return ops.motion_blur(x, _uniform((len(x),), g, -45, 45), *constants)


def _zoom(x: Tensor, end: float, g: Generator) -> Tensor:
    # The last digit of a factor decides a rounded size, so the factors come from where the authors' come from.
    return ops.zoom_blur(x, np.arange(1, end, 0.01).tolist())


def _snow(x: Tensor, constants: tuple[float, ...], g: Generator) -> Tensor:
    mean, std, zoom, threshold, radius, sigma, keep = constants
    flakes = mean + std * _normal((len(x), *x.shape[2:]), g)
    return ops.snow(x, flakes, _uniform((len(x),), g, -135, -45), zoom, threshold, int(radius), sigma, keep)


def _plasma(x: Tensor, decay: float, g: Generator) -> Tensor:
    side = 2 ** max(math.ceil(math.log2(x.shape[-1])), 1)
    return ops.plasma_fractal(_uniform((len(x), side, side), g), decay)[:, : x.shape[2], : x.shape[3]]


def _fog(x: Tensor, constants: tuple[float, float], g: Generator) -> Tensor:
    strength, decay = constants
    return ops.fog(x, _plasma(x, decay, g), strength)


def _frost(x: Tensor, constants: tuple[float, float], g: Generator) -> Tensor:
    """Needles of ice stand where a cloud crosses its middle height; the whole has the cold grey of the photographs."""
    coarse, fine = _plasma(x, 2.0, g), _plasma(x, 1.6, g)
    needles = (1 - (2 * coarse - 1).abs() * 3).clamp_min(0) ** 2 + (1 - (2 * fine - 1).abs() * 3).clamp_min(0) ** 2
    light = (0.35 + 0.2 * coarse + 0.4 * needles).clamp(0, 1)
    tint = torch.tensor([0.88, 0.95, 1.0], dtype=torch.float64)[:, None, None]
    return ops.frost(x, light[:, None] * tint, *constants)


def _elastic(x: Tensor, constants: tuple[float, float, float], g: Generator) -> Tensor:
    side = x.shape[-1]
    strength, sigma, reach = (side * each for each in constants)
    corners = _uniform((len(x), 3, 2), g, -reach, reach)
    return ops.elastic_transform(x, corners, _uniform((len(x), 2, side, side), g, -1, 1), strength, sigma)


_APPLIED: Mapping[str, Callable[[Tensor, Any, Generator], Tensor]] = {
    "gaussian_noise": functools.partial(_with_normal, ops.gaussian_noise),
    "speckle_noise": functools.partial(_with_normal, ops.speckle_noise),
    "shot_noise": _shot,
    "impulse_noise": _impulse,
    "defocus_blur": lambda x, c, g: ops.defocus_blur(x, _disk(*c)),
    "glass_blur": _glass,
    "motion_blur": _motion,
    "zoom_blur": _zoom,
    "snow": _snow,
    "frost": _frost,
    "fog": _fog,
    "brightness": lambda x, c, g: ops.brightness(x, c),
    "contrast": lambda x, c, g: ops.contrast(x, c),
    "elastic_transform": _elastic,
    "pixelate": lambda x, c, g: ops.pixelate(x, int(x.shape[-1] * c)),
    "jpeg_compression": lambda x, c, g: ops.jpeg_compression(x, c),
    "gaussian_blur": lambda x, c, g: ops.gaussian_blur(x, c),
    "saturate": lambda x, c, g: ops.saturate(x, *c),
}
