"""Pictures of what policies do to real images: a sheet of all of them, and one strip for each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mixaug.batch import Batch, MixedBatch
from mixaug.policies.guidedmix import spectral_residual
from mixaug.registry import create, describe
from mixaug.signals import Signals

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LAMBDAS = (0.1, 0.3, 0.5, 0.7, 0.9)
OWN_COLOUR, PARTNER_COLOUR = "#1f6f8b", "#e07a3f"


def photographs(size: int = 160) -> Tensor:
    """scikit-learn's two photographs, cropped to squares: (2, 3, size, size) uint8, flower and palace."""
    from sklearn.datasets import load_sample_image

    images = []
    for name in ("flower.jpg", "china.jpg"):
        image = torch.from_numpy(load_sample_image(name).copy()).permute(2, 0, 1)
        side = min(image.shape[1:])
        top, left = (image.shape[1] - side) // 2, (image.shape[2] - side) // 2
        square = image[:, top : top + side, left : left + side].float()[None]
        small = torch.nn.functional.interpolate(square, (size, size), mode="area")
        images.append(small.round().to(torch.uint8))
    return torch.cat(images)


def mixed_pairs(name: str, images: Tensor, lambdas: Sequence[float], seed: int = 0) -> list[MixedBatch]:
    """The pair ``images`` mixed by a policy at several own shares.

    Args:
        name: a policy of the registry. What it asks of a model is answered by :func:`image_signals`.
        images: (2, C, H, W) uint8; each is the other's partner.
        lambdas: own shares to ask for; policies without a ``ratio`` draw their own each time.
        seed: of the generator of every draw.

    Returns:
        A :class:`MixedBatch` for each share; labels are 0 for the first image and 1 for the second.
    """
    batches = []
    defaults = describe(name).defaults
    signals = image_signals(images) if describe(name).needs else None
    for number, share in enumerate(lambdas):
        policy = create(name, **({"ratio": share} if "ratio" in defaults else {}))
        generator = torch.Generator().manual_seed(seed + number)
        # The partners are given: a random permutation of two would leave every other pair unmixed.
        plan = policy.plan(Batch(images, torch.arange(2), signals), generator, torch.tensor([1, 0]))
        if plan.weights is None:
            raise ValueError(f"policy {name!r} drew a plan without weights")
        batches.append(MixedBatch(policy.apply(images, plan), torch.arange(2), plan.sources, plan.weights, plan))
    return batches


def image_signals(images: Tensor) -> Signals:
    """Signals for pictures without a model: the spectral residual of each image stands in for all of them.

    Args:
        images: (B, C, H, W) uint8.
    """
    saliency = spectral_residual(images.float() / 255)
    coarse = torch.nn.functional.adaptive_avg_pool2d(saliency[:, None], 14)
    cells = torch.nn.functional.adaptive_avg_pool2d(saliency[:, None], 7)
    logits = torch.eye(len(images))
    return Signals(saliency=saliency, cam=cells[:, 0], attention=coarse[:, 0], features=cells, outputs=logits)


def sheet(names: Sequence[str], images: Tensor, lambdas: Sequence[float] = LAMBDAS, seed: int = 0) -> Figure:
    """A figure with a row of mixed images for each policy, masks and label bars below them.

    Args:
        names: policies of the registry.
        images: (2, C, H, W) uint8.
        lambdas: own shares, one column each.
        seed: of the draws.
    """
    from matplotlib.figure import Figure

    rows = len(names)
    figure = Figure(figsize=(1.5 * (2 * len(lambdas)) + 1.2, 1.85 * rows + 0.8), dpi=100)
    grid = figure.add_gridspec(
        rows, 2 * len(lambdas), left=1.15 / figure.get_figwidth(), right=0.995, top=1 - 0.45 / figure.get_figheight(),
        bottom=0.37 / figure.get_figheight(), wspace=0.06, hspace=0.3,
    )  # fmt: skip
    # A strip of a policy that draws its own share has nothing to say about lambda.
    headed = any("ratio" in describe(name).defaults for name in names)
    for row, name in enumerate(names):
        batches = mixed_pairs(name, images, lambdas, seed)
        looks = describe(name).needs - {"hidden"}
        saliency = image_signals(images).saliency() if looks else None
        follows = "ratio" in describe(name).defaults or name == "none"
        for column, (share, mixed) in enumerate(zip(lambdas, batches, strict=True)):
            title = f"λ = {share:g}" if row == 0 and headed else None
            _picture(figure.add_subplot(grid[row, 2 * column]), mixed, title, name if column == 0 else None, follows)
            _mask(figure.add_subplot(grid[row, 2 * column + 1]), mixed, saliency)
    return figure


def draw(names: Sequence[str], images: Tensor, path: Path, *, colours: int = 256, seed: int = 0) -> None:
    """Write :func:`sheet` as a PNG with a palette, which keeps pictures for documentation small."""
    import io

    from PIL import Image

    buffer = io.BytesIO()
    sheet(names, images, seed=seed).savefig(buffer, format="png")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.open(buffer).convert("RGB").quantize(colours, dither=Image.Dither.NONE).save(path, optimize=True)


def _picture(axes: Any, mixed: MixedBatch, title: str | None, name: str | None, follows: bool) -> None:
    pixels: np.ndarray = mixed.inputs[0].permute(1, 2, 0).numpy()
    axes.imshow(pixels if pixels.shape[2] == 3 else pixels[..., 0], cmap="gray")
    axes.set_xticks([])
    axes.set_yticks([])
    if title:
        axes.set_title(title, fontsize=10, loc="left")
    if name:
        note = "" if follows else "\n(draws its\nown share)"
        axes.set_ylabel(name + note, fontsize=10, rotation=0, ha="right", va="center")
    _label_bar(axes, mixed.lam[0].item())


def _label_bar(axes: Any, own: float) -> None:
    """Below an image: the share of the own label in one colour, of the partner's in another."""
    for start, width, colour in ((0.0, own, OWN_COLOUR), (own, 1 - own, PARTNER_COLOUR)):
        axes.barh(-0.06, width, 0.09, start, transform=axes.transAxes, color=colour, clip_on=False)
    axes.text(0.5, -0.16, f"{own:.2f} own", transform=axes.transAxes, fontsize=7, ha="center", va="top")


def _mask(axes: Any, mixed: MixedBatch, saliency: Tensor | None) -> None:
    """Beside an image its mask; for policies that look at a signal, what is left of it, and the outline of the mask."""
    mask = mixed.mask
    note = "own share"
    if saliency is None and mask is not None:
        axes.imshow(mask[0, 0].numpy(), cmap="gray", vmin=0, vmax=1)
    elif saliency is not None and mixed.plan is not None and mixed.plan.size:
        note = "signal left"
        scale = saliency.flatten(1).amax(1)[:, None, None].clamp(min=1e-12)
        axes.imshow(mixed.apply((saliency / scale)[:, None])[0, 0].numpy(), cmap="magma", vmin=0, vmax=1)
        if mask is not None and float(mask[0].min()) < float(mask[0].max()):
            axes.contour(mask[0, 0].numpy(), levels=[0.25, 0.75], colors="white", linewidths=0.6)
    else:
        axes.axis("off")
        return
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, -0.02, note, transform=axes.transAxes, fontsize=7, ha="center", va="top", color="#666666")
