"""White-box attacks within an L-infinity ball around each image.

    FGSM  x' = clip(x + eps sign g)                             Goodfellow et al., ICLR 2015 (arXiv:1412.6572)
    PGD   x <- clip(ball(x + step sign g)), from a random start Madry et al., ICLR 2018 (arXiv:1706.06083)

g is the gradient of the cross-entropy by the pixels. Everything is in pixel units: images, epsilon and step in [0, 1],
the normalisation inside the model (`PixelModel`), the result in [0, 1] and within epsilon of the image. Gradients are
taken in float32 without autocast, the model is in eval mode meanwhile, and the gradients of its parameters stay as they
are.

Differs from the released code of OpenMixup, whose ball drifts with every step and whose step is scaled by the standard
deviation of the data: pixels move by up to 0.58 there where 0.031 was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixaug.checks import check_positive, check_statistics, check_whole, per_channel
from mixaug.engine.evaluation.draws import sample_uniforms
from mixaug.engine.evaluation.inputs import check_images, check_labels

__all__ = ["EPSILON", "STEP", "STEPS", "PixelModel", "fgsm", "masking_signs", "outcomes", "pgd", "thorough_outcomes"]

EPSILON, STEP, STEPS = 8 / 255, 2 / 255, 10
"""The settings of the literature on mixing, in pixel units."""

Model = Callable[[Tensor], Tensor]


class PixelModel(nn.Module):
    """A model that takes pixels in [0, 1] and normalises them itself.

    Args:
        model: takes normalised images (B, C, H, W).
        mean, std: per channel or one for all, of images in [0, 1]; None where the model takes pixels.
    """

    def __init__(self, model: nn.Module, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
        super().__init__()
        self.model = model
        self.statistics = check_statistics("PixelModel", mean, std)

    def forward(self, pixels: Tensor) -> Tensor:
        if self.statistics is not None:
            means, stds = per_channel("PixelModel", self.statistics, pixels.shape[1])
            mean, std = (pixels.new_tensor(values)[:, None, None] for values in (means, stds))
            pixels = (pixels - mean) / std
        outputs: Tensor = self.model(pixels)
        return outputs


def fgsm(model: Model, images: Tensor, labels: Tensor, epsilon: float = EPSILON) -> Tensor:
    """One step along the sign of the gradient.

    Args:
        model: pixels (B, C, H, W) in [0, 1] to logits (B, K).
        images: (B, C, H, W) float32 in [0, 1].
        labels: (B,) int64 class ids.
        epsilon: half width of the ball in pixel units, in (0, 1].

    Returns:
        Images like ``images``, in [0, 1] and within epsilon of them.

    Raises:
        TypeError, ValueError: other shapes, dtypes, values or options.
    """
    radius = _check("fgsm", images, labels, epsilon)
    with _predicting(model):
        gradient = _gradient(model, images.detach(), labels)
    return (images.detach() + radius * gradient.sign()).clamp(0, 1)


def pgd(
    model: Model,
    images: Tensor,
    labels: Tensor,
    epsilon: float = EPSILON,
    step: float = STEP,
    steps: int = STEPS,
    start: Tensor | None = None,
) -> Tensor:
    """Several steps along the sign of the gradient, each brought back into the ball and into [0, 1].

    Args:
        model, images, labels, epsilon: as in `fgsm`.
        step: length of a step in pixel units.
        steps: number of steps.
        start: numbers in [0, 1] like ``images``: the search begins at images + (2 start - 1) epsilon. None begins at
            the images.

    Returns:
        Images like ``images``, in [0, 1] and within epsilon of them.

    Raises:
        TypeError, ValueError: other shapes, dtypes, values or options.
    """
    what = "pgd"
    radius = _check(what, images, labels, epsilon)
    length = check_positive(what, "step", step)
    count = check_whole(what, "steps", steps)
    if start is not None and (start.shape != images.shape or bool(((start < 0) | (start > 1)).any())):
        raise ValueError(f"pgd expects start {tuple(images.shape)} in [0, 1], got shape {tuple(start.shape)}")
    centre = images.detach()
    low, high = (centre - radius).clamp(0, 1), (centre + radius).clamp(0, 1)
    found = centre if start is None else (centre + (2 * start - 1) * radius).clamp(0, 1)
    with _predicting(model):
        for _ in range(count):
            found = torch.clamp(found + length * _gradient(model, found, labels).sign(), low, high)
    return found


def outcomes(
    model: Model, images: Tensor, labels: Tensor, samples: Tensor, epsilon: float = EPSILON, *, seed: int = 0
) -> dict[str, Tensor]:
    """Whether each sample is right, and still right under the two attacks in the usual settings.

    Args:
        model, images, labels, epsilon: as in `fgsm`. PGD takes ten steps of epsilon / 4.
        samples: (B,) int64 numbers of the samples in their set, from which the random starts are drawn: all models are
            attacked from the same ones.
        seed: seed of the starts.

    Returns:
        (B,) bool by name: ``clean``, ``fgsm``, ``pgd``.
    """
    radius = _check("outcomes", images, labels, epsilon)
    start = _start(samples, images, seed, 0)
    with _predicting(model):
        return {
            "clean": _right(model, images, labels),
            "fgsm": _right(model, fgsm(model, images, labels, radius), labels),
            "pgd": _right(model, pgd(model, images, labels, radius, radius / 4, STEPS, start), labels),
        }


def thorough_outcomes(
    model: Model, images: Tensor, labels: Tensor, samples: Tensor, epsilon: float = EPSILON, *, seed: int = 0
) -> dict[str, Tensor]:
    """`outcomes`, and what shows whether gradients are masked: some 210 gradients for each sample.

    Args:
        model, images, labels, samples, epsilon, seed: as in `outcomes`.

    Returns:
        (B,) bool by name. Beside those of `outcomes`: ``noise``, right at a random point of the ball; ``pgd_strong``,
        right after each of three searches from further starts with five times as many steps; ``unbounded``, right after
        PGD over all images that there are; ``no_gradient``, the gradient at the image is zero in every pixel.
    """
    radius = _check("thorough_outcomes", images, labels, epsilon)
    usual = outcomes(model, images, labels, samples, radius, seed=seed)
    first = _start(samples, images, seed, 0)
    with _predicting(model):
        strong = [
            pgd(model, images, labels, radius, radius / 4, 5 * STEPS, _start(samples, images, seed, number))
            for number in (1, 2, 3)
        ]
        return {
            **usual,
            "noise": _right(model, (images + (2 * first - 1) * radius).clamp(0, 1), labels),
            "pgd_strong": torch.stack([_right(model, found, labels) for found in strong]).all(0),
            "unbounded": _right(model, pgd(model, images, labels, 1.0, 0.05, 5 * STEPS, first), labels),
            "no_gradient": (_gradient(model, images, labels) == 0).flatten(1).all(1),
        }


def masking_signs(shares: dict[str, float]) -> list[str]:
    """Signs that a model hides its gradients rather than being robust, of Athalye et al., ICML 2018 (arXiv:1802.00420).

    Args:
        shares: mean of each of the `thorough_outcomes`, in [0, 1].

    Returns:
        One sentence for each sign found; none says that the check found nothing, not that there is nothing.
    """
    signs = []
    if shares["fgsm"] < shares["pgd"] - 0.01:
        signs.append("one step does more harm than ten")
    if shares["noise"] < shares["pgd"] - 0.01:
        signs.append("a random point of the ball does more harm than the gradient")
    if shares["unbounded"] > 0.05:
        signs.append("an attack without bounds leaves samples right")
    if shares["pgd_strong"] < shares["pgd"] - 0.05:
        signs.append("more steps and starts do clearly more harm: the usual settings overstate robustness")
    if shares["no_gradient"] > 0.05:
        signs.append("the gradient of some samples is zero in every pixel")
    return signs


@contextmanager
def _predicting(model: Model) -> Iterator[None]:
    """Eval mode for a module, put back afterwards in each of its parts."""
    modes = {part: part.training for part in model.modules()} if isinstance(model, nn.Module) else {}
    if isinstance(model, nn.Module):
        model.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def _start(samples: Tensor, images: Tensor, seed: int, number: int) -> Tensor:
    return sample_uniforms(samples, images.shape[1:], seed, f"start {number}").to(images.dtype)


def _right(model: Model, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images).argmax(1) == labels


def _gradient(model: Model, images: Tensor, labels: Tensor) -> Tensor:
    with torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
        pixels = images.detach().requires_grad_()
        # The sum keeps the gradient of a sample free of the size of its batch.
        loss = F.cross_entropy(model(pixels), labels, reduction="sum")
        return torch.autograd.grad(loss, pixels)[0]


def _check(what: str, images: Tensor, labels: Tensor, epsilon: float) -> float:
    check_images(what, images, (torch.float32, torch.float64))
    low, high = images.aminmax()
    if bool((low < 0) | (high > 1)):
        raise ValueError(
            f"{what} expects images as pixels in [0, 1], got values from {float(low):g} to {float(high):g}; "
            "normalisation belongs into the model, see PixelModel"
        )
    check_labels(what, labels, len(images), int(labels.max()) + 1 if len(labels) else 1)
    return check_positive(what, "epsilon", epsilon, most=1.0)
