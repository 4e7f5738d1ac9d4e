"""AugMix (arXiv:1912.02781): mixtures of an image's own augmentations, and outputs that agree on them.

    x~ = (1 - m) x + m sum_i w_i chain_i(x),   w ~ Dirichlet(1, ..., 1),  m ~ Beta(1, 1)
    L  = CE(f(x), y) + weight JS(f(x), f(x~), f(x~')),   JS = mean of KL(p_i || mean of the p)

A chain is one to ``depth`` operations on the 8-bit image, one after the other, each of nine: autocontrast, equalise,
posterise, rotate, solarise, shear and translate along x and y, of a strength uniform in [0.1, ``severity``]. Clean and
augmented images run in one pass; only the clean ones meet the labels. No partner has a part in it: the label is the
image's own. Under a policy that mixes, what was mixed is augmented.

All operations run on the images' device, in few launches (:mod:`mixaug.ops.eight_bit`), and equal Pillow's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Generator, Tensor

from mixaug.batch import MixedBatch
from mixaug.checks import (
    check_choice,
    check_not_negative,
    check_positive,
    check_range,
    check_statistics,
    check_whole,
    check_whole_numbers,
    per_channel,
)
from mixaug.draws import Draws
from mixaug.losses import MixedCrossEntropy
from mixaug.ops.eight_bit import OPERATIONS, operate
from mixaug.ops.layout import column, single_precision
from mixaug.ops.precision import full_precision
from mixaug.passes import Objective, Passes, check_joins
from mixaug.policy import Policy

Form = Literal["consistency", "single"]
#: Weakest operation.
WEAKEST = 0.1


def augmix(images: Tensor, chains: Tensor, weights: Tensor, skip: Tensor) -> Tensor:
    """Mix an image with what chains of operations made of it.

    Args:
        images: (B, C, H, W) floating point.
        chains: (B, width, C, H, W) of the same scale.
        weights: (B, width) shares of the chains, of sum 1.
        skip: (B,) share of all chains in [0, 1].

    Returns:
        (B, C, H, W) of the dtype of ``images``.

    Raises:
        ValueError: shapes that do not fit.
    """
    if chains.ndim != images.ndim + 1 or weights.shape != chains.shape[:2] or skip.shape != images.shape[:1]:
        raise ValueError(
            f"augmix expects chains (B, width, ...), weights (B, width) and skip (B,) for images "
            f"{tuple(images.shape)}, got {tuple(chains.shape)}, {tuple(weights.shape)} and {tuple(skip.shape)}"
        )
    mixed = (chains * weights.to(chains.dtype).reshape(*weights.shape, *([1] * (images.ndim - 1)))).sum(1)
    return torch.lerp(images, mixed.to(images.dtype), column(skip.to(images.dtype), images))


def jensen_shannon(*logits: Tensor) -> Tensor:
    """Mean divergence of several predictions from their mean.

    Args:
        *logits: at least two of (B, K).

    Returns:
        Scalar, float32 (float64 for float64): the mean over samples and predictions of KL(p_i || mean of the p), the
        mean clamped to at least 1e-7. Gradients flow through all of it.

    Raises:
        ValueError: fewer than two, or of different shapes.
    """
    if len(logits) < 2 or any(one.ndim != 2 or one.shape != logits[0].shape for one in logits):
        raise ValueError(f"jensen_shannon expects logits (B, K) twice or more, got {[tuple(x.shape) for x in logits]}")
    logs = torch.stack([single_precision(one).log_softmax(1) for one in logits])
    shares = logs.exp()
    middle = shares.mean(0).clamp(1e-7, 1).log()
    return (shares * (logs - middle)).sum(2).mean()


def as_bytes(what: str, images: Tensor, statistics: tuple[tuple[float, ...], tuple[float, ...]] | None) -> Tensor:
    """Images as 8-bit pixels, and an error where float images come without the statistics of their normalisation."""
    if images.ndim != 4:
        raise ValueError(f"{what} works on pixels: it expects images (B, C, H, W), got shape {tuple(images.shape)}")
    if images.dtype == torch.uint8:
        return images
    if statistics is None:
        raise ValueError(
            f"{what} goes back to 8-bit pixels: pass the mean and std that made the images of dtype {images.dtype} of "
            "them, 0 and 1 for images in [0, 1]"
        )
    mean, std = per_channel(what, statistics, images.shape[1])
    planes = [single_precision(images.detach())[:, c] * std[c] + mean[c] for c in range(images.shape[1])]
    return (torch.stack(planes, 1) * 255).round_().clamp_(0, 255).to(torch.uint8)


def as_images(pixels: Tensor, like: Tensor, statistics: tuple[tuple[float, ...], tuple[float, ...]] | None) -> Tensor:
    """Values in [0, 1] in the scale, dtype and memory format of the images that :func:`as_bytes` took."""
    if statistics is not None and like.is_floating_point():
        mean, std = per_channel("AugMix", statistics, like.shape[1])
        pixels = torch.stack([(pixels[:, c] - mean[c]) / std[c] for c in range(like.shape[1])], 1)
    values = pixels if like.is_floating_point() else (pixels * 255).round()
    return torch.empty_like(like).copy_(values)


def random_operations(images: Tensor, draws: Draws, severity: float, parts: int) -> Tensor:
    """(B, parts, C, H, W) uint8: every image after one random operation, several times over.

    Args:
        images: (B, parts, C, H, W) uint8.
        draws: the source of randomness.
        severity: of the strongest operation.
        parts: how many operations are drawn for each image.
    """
    operation = draws.integers(0, len(OPERATIONS), (parts,))
    level = draws.uniform(WEAKEST, max(severity, WEAKEST), (parts,))
    positive = draws.uniform(shape=(parts,)) <= 0.5
    changed = operate(images.flatten(0, 1), operation.flatten(), level.flatten(), positive.flatten())
    return changed.unflatten(0, (-1, parts))


def refuse_late(what: str, policy: Policy) -> None:
    """Raise for a policy that has more to say once its own mixed images are run, which an objective does not run.

    Raises:
        ValueError: a policy, or a member of one, with late labels or terms of the loss.
    """
    for member in policy.modules():
        if not isinstance(member, Policy) or member.members:
            continue
        kind = type(member)
        adds = (kind.early_loss, kind.auxiliary_loss) != (Policy.early_loss, Policy.auxiliary_loss)
        if member.reads or adds:
            raise ValueError(
                f"{what} runs augmented images alone, but {kind.__name__} has labels or losses that come with the pass "
                "of its own mixed images: take a policy that is done when it has mixed, or none"
            )


class AugMix(Objective):
    """The clean loss, and agreement of the outputs for an image and for two mixtures of its augmentations.

    Args:
        mean, std: of the normalisation ``(pixel / 255 - mean) / std`` that made float images, one number or one for
            each channel; 0 and 1 for images in [0, 1]. None for both takes
            uint8 images alone, or in the engine the normalisation of the run.
        severity: of the strongest operation, in (0, 10]: 3 on CIFAR, 1 on ImageNet in the authors' code.
        width: chains, at least 1; 3 in the authors' code.
        depth: (least, most) operations of a chain, or one number; 1 to 3 in the authors' code.
        alpha: of the Dirichlet and the Beta distribution, positive; 1 in the authors' code.
        weight: of the divergence, not negative; 12 in the authors' code.
        form: ``"consistency"``, three passes as above; ``"single"``, one augmented view under the class loss and no
            more, the authors' ``no_jsd``, which has no weight.
        label_smoothing: of the class loss, in [0, 1].

    Raises:
        ValueError: an option out of range; in a step, float images without mean and std, images that are not
            (B, C, H, W), and with ``form="single"`` a policy that waits for the pass of its own images.
    """

    def __init__(
        self,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        severity: float = 3.0,
        width: int = 3,
        depth: int | Sequence[int] = (1, 3),
        alpha: float = 1.0,
        weight: float = 12.0,
        form: Form = "consistency",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(MixedCrossEntropy(label_smoothing))
        self.statistics = check_statistics("AugMix", mean, std)
        self.severity = check_range("AugMix", "severity", (0.0, severity), 0, 10, strict=True)[1]
        self.width = check_whole("AugMix", "width", width, most=64)
        ends = check_whole_numbers("AugMix", "depth", depth, most=64)
        if len(ends) > 2 or ends[0] > ends[-1]:
            raise ValueError(f"AugMix expects depth as a number or (least, most), got {depth!r}")
        self.depth = ends[0], ends[-1]
        self.alpha = check_positive("AugMix", "alpha", alpha)
        self.weight = check_not_negative("AugMix", "weight", weight)
        check_choice("AugMix", "form", form, get_args(Form))
        self.form: Form = form

    def normalised_by(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Take the normalisation of whoever normalises the images, where none was given."""
        if self.statistics is None:
            self.statistics = check_statistics("AugMix", mean, std)

    def attach(self, step: Any) -> None:
        if step.layout is not None and step.layout.index("C") != 1:
            raise ValueError(f"AugMix works on images (B, C, H, W), got MixStep(layout={step.layout!r})")
        check_joins("AugMix", step)

    def forward(self, passes: Passes) -> Mapping[str, Tensor]:
        if self.form == "single":
            refuse_late("AugMix(form='single')", passes.step.policy)
        mixed = passes.mixed
        if self.form == "single":
            outcome = passes.run(self._augmented(mixed, passes.generator))
            return {"augmented": self.loss(outcome.outputs, outcome.batch)}
        views = [self._augmented(mixed, passes.generator) for _ in range(2)]
        clean, *augmented = passes.run(mixed, *views, joined=True)
        divergence = jensen_shannon(clean.outputs, *(outcome.outputs for outcome in augmented))
        return {"clean": self.loss(clean.outputs, clean.batch), "consistency": self.weight * divergence}

    def augment(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        """(B, C, H, W) images like those given, each a mixture of itself and of its augmentations."""
        pixels = as_bytes("AugMix", images, self.statistics)
        draws = Draws(len(images), images.device, generator)
        left, weights = torch.ones(len(images), device=images.device), []
        for others in range(self.width - 1, 0, -1):
            weights.append(left * draws.beta(self.alpha, others * self.alpha))
            left = left - weights[-1]
        skip = draws.beta(self.alpha, self.alpha)
        least, most = self.depth
        length = draws.integers(least, most + 1, (self.width,))
        chains = pixels[:, None].expand(-1, self.width, -1, -1, -1).contiguous()
        for step in range(most):
            changed = random_operations(chains, draws, self.severity, self.width)
            chains = torch.where((step < length)[..., None, None, None], changed, chains)
        shares = torch.stack([*weights, left], 1).float()
        return as_images(augmix(pixels / 255, chains / 255, shares, skip.float()), images, self.statistics)

    def _augmented(self, mixed: MixedBatch, generator: Generator | None) -> MixedBatch:
        with full_precision(mixed.weights.device):
            return dataclasses.replace(mixed, inputs=self.augment(mixed.inputs, generator))

    def extra_repr(self) -> str:
        return f"severity={self.severity:g}, width={self.width}, weight={self.weight:g}, form={self.form!r}"
