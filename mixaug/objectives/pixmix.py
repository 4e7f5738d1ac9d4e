"""PixMix (arXiv:2112.05135): images mixed with pictures that have no label, such as fractals.

    start:  the image, or with chance 1/2 one random operation of it
    rounds: 0 to ``rounds`` of them; each adds or multiplies the picture, or with chance 1/2 another operation of the
            image, and clips to [0, 1]
      add:       (a (2 x - 1) + b (2 y - 1) + 1) / 2
      multiply:  (2 x)^a (2 y)^b / 2
      a ~ Beta(beta, 1), b ~ Beta(1, beta)   or, with chance 1/2,   a = 1 + Beta(1, beta), b = -Beta(1, beta)

The label is the image's own, whatever was mixed in. One picture serves all rounds of an image. Under a policy that
mixes, what was mixed goes on into it. Operations are AugMix's.

The authors' pictures are fractals and visualisations of features, which are no part of this package. ``pictures`` takes
them, or any others; without them coloured noise with the spectrum of FMix's masks stands in: our substitute.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from mixaug.batch import MixedBatch
from mixaug.checks import check_positive, check_range, check_statistics, check_whole
from mixaug.draws import Draws
from mixaug.losses import MixedCrossEntropy
from mixaug.objectives.augmix import as_bytes, as_images, random_operations, refuse_late
from mixaug.ops.layout import column
from mixaug.ops.precision import full_precision
from mixaug.passes import Objective, Passes, check_joins
from mixaug.policies.fmix import fourier_image, fourier_noise_shape

#: Smallest value that is raised to a power: with b >= -1 and a <= 2 products stay below 4e37, in reach of float32.
FLOOR = 1e-37
#: Slope of the substitute pictures' amplitude over the frequency, in between white noise and FMix's blobs.
DECAY = 1.5


def pixmix(start: Tensor, others: Tensor, multiplies: Tensor, coefficients: Tensor, rounds: Tensor) -> Tensor:
    """Mix pictures into images, round by round.

    Args:
        start: (B, C, H, W) float32 or float64 in [0, 1].
        others: (B, R, C, H, W) in [0, 1], the second picture of every round.
        multiplies: (B, R) bool, whether a round multiplies; it adds otherwise.
        coefficients: (B, R, 2) floating point a and b of every round.
        rounds: (B,) int64 in [0, R], how many of them an image goes through.

    Returns:
        (B, C, H, W) of the dtype of ``start`` in [0, 1].

    Raises:
        ValueError: shapes that do not fit.
        TypeError: half precision, in which the powers overflow.
    """
    if start.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"pixmix expects images of dtype float32 or float64, got {start.dtype}")
    shape = (start.shape[0], others.shape[1] if others.ndim == start.ndim + 1 else -1)
    if (
        others.shape != (*shape, *start.shape[1:])
        or multiplies.shape != shape
        or coefficients.shape != (*shape, 2)
        or rounds.shape != start.shape[:1]
    ):
        raise ValueError(
            f"pixmix expects others (B, R, ...), multiplies (B, R), coefficients (B, R, 2) and rounds (B,) for images "
            f"{tuple(start.shape)}, got {tuple(others.shape)}, {tuple(multiplies.shape)}, {tuple(coefficients.shape)} "
            f"and {tuple(rounds.shape)}"
        )
    mixed, coefficients = start, coefficients.to(start.dtype)
    for turn in range(others.shape[1]):
        other = others[:, turn].to(start.dtype)
        a, b = (column(coefficients[:, turn, which], start) for which in (0, 1))
        added = (a * (2 * mixed - 1) + b * (2 * other - 1) + 1) / 2
        multiplied = (2 * mixed) ** a * (2 * other).clamp(min=FLOOR) ** b / 2
        after = torch.where(column(multiplies[:, turn], start), multiplied, added).clamp(0, 1)
        mixed = torch.where(column(turn < rounds, start), after, mixed)
    return mixed


def load_pictures(pictures: Tensor | str | Path) -> Tensor:
    """Pictures (P, C, H, W) uint8, from a tensor or from a NumPy file of such an array.

    Raises:
        ValueError: another shape, or no picture.
        TypeError: another dtype.
    """
    if not isinstance(pictures, Tensor):
        pictures = torch.from_numpy(np.load(pictures, allow_pickle=False))
    if pictures.dtype != torch.uint8:
        raise TypeError(f"PixMix expects pictures of dtype uint8, got {pictures.dtype}")
    if pictures.ndim != 4 or not pictures.numel():
        raise ValueError(f"PixMix expects pictures (P, C, H, W), got {tuple(pictures.shape)}")
    return pictures


class PixMix(Objective):
    """The class loss of images that pictures without a label are mixed into.

    Args:
        mean, std: of the normalisation ``(pixel / 255 - mean) / std`` that made float images, one number or one for
            each channel; 0 and 1 for images in [0, 1]. None for both takes
            uint8 images alone, or in the engine the normalisation of the run.
        pictures: (P, C, H, W) uint8, or the path of a ``.npy`` file of such an array, at least as large as the images:
            each time a picture and a part of it are drawn. None draws coloured noise: our substitute.
        rounds: largest number of rounds, at least 0; 4 in the authors' code.
        beta: of the coefficients, positive; 3 on CIFAR, 4 on ImageNet in the authors' code.
        severity: of the strongest operation, in (0, 10]: 3 on CIFAR, 1 on ImageNet in the authors' code.
        label_smoothing: of the class loss, in [0, 1].

    Raises:
        ValueError: an option out of range, pictures of another shape; in a step, float images without mean and std,
            images that are not (B, C, H, W), or larger than the pictures, a policy that waits for the pass of its own
            images.
        TypeError: pictures that are not uint8.
    """

    def __init__(
        self,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        pictures: Tensor | str | Path | None = None,
        rounds: int = 4,
        beta: float = 3.0,
        severity: float = 3.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(MixedCrossEntropy(label_smoothing))
        self.statistics = check_statistics("PixMix", mean, std)
        # They move with the step, and are in no checkpoint: whoever resumes gives them anew.
        self.register_buffer("pictures", None if pictures is None else load_pictures(pictures), persistent=False)
        self.rounds = check_whole("PixMix", "rounds", rounds, 0, 64)
        self.beta = check_positive("PixMix", "beta", beta)
        self.severity = check_range("PixMix", "severity", (0.0, severity), 0, 10, strict=True)[1]

    pictures: Tensor | None

    def normalised_by(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Take the normalisation of whoever normalises the images, where none was given."""
        if self.statistics is None:
            self.statistics = check_statistics("PixMix", mean, std)

    def attach(self, step: Any) -> None:
        if step.layout is not None and step.layout.index("C") != 1:
            raise ValueError(f"PixMix works on images (B, C, H, W), got MixStep(layout={step.layout!r})")
        check_joins("PixMix", step)

    def forward(self, passes: Passes) -> Mapping[str, Tensor]:
        refuse_late("PixMix", passes.step.policy)
        mixed = passes.mixed
        with full_precision(mixed.weights.device):
            augmented: MixedBatch = dataclasses.replace(mixed, inputs=self.augment(mixed.inputs, passes.generator))
        outcome = passes.run(augmented)
        return {"augmented": self.loss(outcome.outputs, outcome.batch)}

    def augment(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        """(B, C, H, W) images like those given, with pictures mixed in."""
        pixels = as_bytes("PixMix", images, self.statistics)
        draws = Draws(len(images), images.device, generator)
        picture = self._pictures(pixels, draws)
        parts = self.rounds + 1
        copies = pixels[:, None].expand(-1, parts, -1, -1, -1).contiguous()
        changed = random_operations(copies, draws, self.severity, parts)
        own = draws.uniform(shape=(parts,))[..., None, None, None] < 0.5
        start = torch.where(own[:, 0], changed[:, 0], pixels) / 255
        others = torch.where(own[:, 1:], changed[:, 1:] / 255, picture[:, None])
        shape = (self.rounds,)
        weakens = draws.uniform(shape=shape) < 0.5
        draw = (
            torch.stack([self._betas(draws) for _ in range(self.rounds)], 1)
            if self.rounds
            else picture.new_zeros(len(images), 0, 3)
        )
        a = torch.where(weakens, draw[..., 0], 1 + draw[..., 2])
        b = torch.where(weakens, draw[..., 1], -draw[..., 1])
        multiplies = draws.uniform(shape=shape) < 0.5
        rounds = draws.integers(0, self.rounds + 1)
        mixed = pixmix(start, others, multiplies, torch.stack([a, b], -1), rounds)
        return as_images(mixed, images, self.statistics)

    def _betas(self, draws: Draws) -> Tensor:
        """(B, 3): one of Beta(beta, 1), two of Beta(1, beta)."""
        draw = [draws.beta(self.beta, 1.0), draws.beta(1.0, self.beta), draws.beta(1.0, self.beta)]
        return torch.stack(draw, 1).float()

    def _pictures(self, pixels: Tensor, draws: Draws) -> Tensor:
        """(B, C, H, W) float32 in [0, 1], one for each image."""
        channels, height, width = pixels.shape[1:]
        if self.pictures is None:
            noise = draws.normal((channels, *fourier_noise_shape((height, width))[1:])).flatten(0, 1)[:, None]
            return fourier_image(noise, (height, width), decay=DECAY).reshape(pixels.shape)
        stored = self.pictures
        rows, columns = stored.shape[2:]
        if stored.shape[1] != channels or rows < height or columns < width:
            raise ValueError(
                f"PixMix expects pictures ({len(stored)}, {channels}, H, W) of at least {height} x {width} pixels, as "
                f"large as the images, got {tuple(stored.shape)}"
            )
        which = draws.integers(0, len(stored))
        top, left = draws.integers(0, rows - height + 1), draws.integers(0, columns - width + 1)
        y = top[:, None] + torch.arange(height, device=pixels.device)
        x = left[:, None] + torch.arange(width, device=pixels.device)
        place = (y[:, :, None] * columns + x[:, None]).flatten(1)[:, None].expand(-1, channels, -1)
        # Only what is shown is read: whole pictures may be many times as large.
        flat = stored.flatten(2)
        shown = flat[which[:, None, None], torch.arange(channels, device=pixels.device)[:, None], place]
        return shown.reshape(pixels.shape) / 255
