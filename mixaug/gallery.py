"""Pictures of what policies do to real images, and of what a trained model sees in them.

:func:`sheet` shows every policy, without a model; :func:`signal_sheet` the signals of a model, and what a policy makes
of its images.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from mixaug.batch import Batch, MixedBatch
from mixaug.networks import Frozen
from mixaug.ops.filters import spectral_residual
from mixaug.policy import Policy
from mixaug.registry import create, describe
from mixaug.signals import ModelSignals, Signals

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LAMBDAS = (0.1, 0.3, 0.5, 0.7, 0.9)
OWN_COLOUR, PARTNER_COLOUR = "#1f6f8b", "#e07a3f"
#: Side of the photographs in the documentation's pictures, in pixels.
STRIP_SIZE = 128
#: Channels of the feature maps that stand in for a model's.
CHANNELS = 8


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
        name: a policy of the registry. What it asks of a model is answered by :func:`image_signals`; what it learns
            during training is as drawn from ``seed``, see :func:`untrained`.
        images: (2, C, H, W) uint8; each is the other's partner.
        lambdas: own shares to ask for; policies that take no ``ratio`` draw their own each time.
        seed: seed of the generator of every draw.

    Returns:
        A :class:`MixedBatch` of uint8 images for each share; labels are 0 for the first image and 1 for the second.
    """
    batches = []
    by_ratio = draws_by_ratio(name, images)
    signals = image_signals(images) if describe(name).needs else None
    for number, share in enumerate(lambdas):
        policy = _ready(name, images, seed, **({"ratio": share} if by_ratio else {}))
        generator = torch.Generator().manual_seed(seed + number)
        learns = bool(policy.mixer_parameters())
        taken = images.float() / 255 if learns else images
        with torch.no_grad():
            # The partners are fixed: a random permutation of two would leave every other pair unmixed.
            plan = policy.plan(Batch(taken, torch.arange(2), signals), generator, torch.tensor([1, 0]))
            if plan.weights is None:
                raise ValueError(f"policy {name!r} drew a plan without weights")
            mixed = policy.apply(taken, plan)
        if learns:
            mixed = (mixed * 255).round().clamp(0, 255).to(torch.uint8)
        batches.append(MixedBatch(mixed, torch.arange(2), plan.sources, plan.weights, plan))
    return batches


def draws_by_ratio(name: str, images: Tensor) -> bool:
    """Whether a policy of the registry takes a ``ratio`` with its default options; some refuse it."""
    if "ratio" not in describe(name).defaults:
        return False
    try:
        _ready(name, images, 0, ratio=0.5)
    except ValueError:
        return False
    return True


def untrained(name: str, images: Tensor) -> bool:
    """Whether :func:`mixed_pairs` of this policy shows a mixer that ought to be trained before it means anything."""
    return bool(_ready(name, images, 0).mixer_parameters())


def _ready(name: str, images: Tensor, seed: int, **options: Any) -> Policy:
    """A policy that can mix ``images`` given their signals; networks that it needs for that get random weights."""
    info = describe(name)
    given = "features" in info.needs and "channels" in info.defaults
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = create(name, **options, **({"channels": CHANNELS} if given else {}))
        if info.needs and not given and type(policy).on_attach is not Policy.on_attach:
            from mixaug import models

            policy.attach(models.create("cifar_resnet8", num_classes=2, in_chans=images.shape[1]))
    return policy.eval()


def image_signals(images: Tensor) -> Signals:
    """Signals for pictures without a model: the spectral residual of each image stands in for all of them.

    Args:
        images: (B, C, H, W) uint8.
    """
    saliency = spectral_residual(images.float() / 255)
    coarse = torch.nn.functional.adaptive_avg_pool2d(saliency[:, None], 14)
    cells = torch.nn.functional.adaptive_avg_pool2d(saliency[:, None], 7)
    logits = torch.eye(len(images))
    features = cells.expand(-1, CHANNELS, -1, -1)
    return Signals(saliency=saliency, cam=cells[:, 0], attention=coarse[:, 0], features=features, outputs=logits)


def sheet(names: Sequence[str], images: Tensor, lambdas: Sequence[float] = LAMBDAS, seed: int = 0) -> Figure:
    """A figure with a row of mixed images for each policy, masks and label bars below them.

    Args:
        names: policies of the registry.
        images: (2, C, H, W) uint8.
        lambdas: own shares, one column each.
        seed: seed of the draws.
    """
    from matplotlib.figure import Figure

    rows = len(names)
    figure = Figure(figsize=(1.5 * (2 * len(lambdas)) + 1.2, 1.85 * rows + 0.8), dpi=100)
    grid = figure.add_gridspec(
        rows, 2 * len(lambdas), left=1.15 / figure.get_figwidth(), right=0.995, top=1 - 0.45 / figure.get_figheight(),
        bottom=0.37 / figure.get_figheight(), wspace=0.06, hspace=0.3,
    )  # fmt: skip
    # A strip of a policy that draws its own share has nothing to say about lambda.
    headed = any(draws_by_ratio(name, images) for name in names)
    for row, name in enumerate(names):
        batches = mixed_pairs(name, images, lambdas, seed)
        raw = untrained(name, images)
        # A learned mixer shows itself in its mask.
        looks = describe(name).needs - {"hidden"} and not raw
        saliency = image_signals(images).saliency() if looks else None
        note = "" if draws_by_ratio(name, images) or name == "none" else "\n(draws its\nown share)"
        note += "\n(untrained\nmixer)" if raw else ""
        for column, (share, mixed) in enumerate(zip(lambdas, batches, strict=True)):
            title = f"λ = {share:g}" if row == 0 and headed else None
            left = name + note if column == 0 else None
            _picture(figure.add_subplot(grid[row, 2 * column]), mixed, title, left)
            _mask(figure.add_subplot(grid[row, 2 * column + 1]), mixed, saliency)
    return figure


def row(names: Sequence[str], images: Tensor, share: float = 0.6, seed: int = 0) -> Figure:
    """A figure with the two images and, beside them, one picture of each policy.

    Below each lies a bar of its label's colour, below a mixed one the shares of both: the two images are the key.

    Args:
        names: policies of the registry.
        images: (2, C, H, W) uint8.
        share: own share that is asked for; policies that take no ``ratio`` draw their own.
        seed: seed of the draws.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 * (len(names) + 2), 2.1), dpi=100)
    grid = figure.add_gridspec(1, len(names) + 2, left=0.005, right=0.995, top=0.87, bottom=0.18, wspace=0.06)
    titles, labels = ("an image", "its partner"), ("its own label", "the partner's label")
    for column, colour in enumerate((OWN_COLOUR, PARTNER_COLOUR)):
        axes = figure.add_subplot(grid[0, column])
        _show(axes, images[column].float() / 255)
        axes.set(xticks=[], yticks=[])
        axes.set_title(titles[column], fontsize=10, loc="left")
        _bar(axes, [(1.0, colour)], labels[column])
    for column, name in enumerate(names):
        (mixed,) = mixed_pairs(name, images, (share,), seed)
        _picture(figure.add_subplot(grid[0, column + 2]), mixed, name, None)
    return figure


def draw(names: Sequence[str], images: Tensor, path: Path, *, colours: int = 256, seed: int = 0) -> None:
    """Write :func:`sheet` as a PNG; see :func:`save`."""
    save(sheet(names, images, seed=seed), path, colours=colours)


def draw_strips(names: Sequence[str], folder: Path, images: Tensor | None = None, *, seed: int = 0) -> list[Path]:
    """Write the picture of each policy, ``<name>.png``, and touch no other file: the same bytes whenever it is drawn.

    Args:
        names: policies of the registry.
        folder: made where it is missing.
        images: (2, C, H, W) uint8; None takes :func:`photographs` of 128 pixels, as the documentation does.
        seed: seed of the draws.

    Returns:
        The files, in the order of ``names``.

    Raises:
        ValueError: unknown name, before anything is written.
    """
    for name in names:
        describe(name)
    images = photographs(STRIP_SIZE) if images is None else images
    paths = [folder / f"{name}.png" for name in names]
    for name, path in zip(names, paths, strict=True):
        draw([name], images, path, seed=seed)
    return paths


def save(figure: Figure, path: Path, *, colours: int = 256) -> None:
    """Write a figure as a PNG with a palette, which keeps pictures for documentation small."""
    import io

    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.open(buffer).convert("RGB").quantize(colours, dither=Image.Dither.NONE).save(path, optimize=True)


def _picture(axes: Any, mixed: MixedBatch, title: str | None, left: str | None) -> None:
    pixels: np.ndarray = mixed.inputs[0].permute(1, 2, 0).numpy()
    axes.imshow(pixels if pixels.shape[2] == 3 else pixels[..., 0], cmap="gray")
    axes.set_xticks([])
    axes.set_yticks([])
    if title:
        axes.set_title(title, fontsize=10, loc="left")
    if left:
        # The margin holds thirteen letters of the usual size.
        longest = max(map(len, left.split("\n")))
        axes.set_ylabel(left, fontsize=min(10, 130 / longest), rotation=0, ha="right", va="center")
    # Where a sample has more sources than there are images, one image is a source twice: its weights add up.
    _label_bar(axes, float(mixed.weights[0][mixed.sources[0] == 0].sum()))


def _label_bar(axes: Any, own: float, others: float | None = None) -> None:
    """Below an image: the share of the own label in one colour, of the other sources' in another.

    Without ``others`` that is what is missing to 1; labels whose shares have another sum say both.
    """
    rest = 1 - own if others is None else others
    whole = max(own + rest, 1.0)
    text = f"{own:.2f} own" + ("" if abs(own + rest - 1) < 0.005 else f", {rest:.2f} partner")
    _bar(axes, [(own / whole, OWN_COLOUR), (rest / whole, PARTNER_COLOUR)], text)


def _bar(axes: Any, parts: Sequence[tuple[float, str]], text: str) -> None:
    """Below an image a bar of parts, each with its width and colour, and a text below that."""
    start = 0.0
    for width, colour in parts:
        axes.barh(-0.06, width, 0.09, start, transform=axes.transAxes, color=colour, clip_on=False)
        start += width
    axes.text(0.5, -0.16, text, transform=axes.transAxes, fontsize=7, ha="center", va="top")


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


# -- what a model sees ---------------------------------------------------------------------------------------------


def signal_sheet(
    model: nn.Module | ModelSignals,
    images: Tensor,
    labels: Tensor,
    policy: Policy | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    class_names: Sequence[str] | None = None,
    title: str | None = None,
    seed: int = 0,
) -> Figure:
    """A figure with a row for each image: itself, its partner, what the model sees in it, what the policy makes of it.

    The signals lie over the image, each in its own scale from nothing to its largest value: saliency; class activation
    where there is a linear classifier; attention where there is any, or its substitute for CNNs ("feature energy").
    The mixed image has its labels' shares below it, the own one first, and beside it the mask of the own share, where
    the method has one. Everything is taken in evaluation mode, and neither model nor policy nor torch's random numbers
    are changed.

    Args:
        model: an image classifier, or :class:`mixaug.ModelSignals` that say where its parts are.
        images: (B, C, H, W) floating point on the model's device, normalised as the model takes them, B >= 1.
        labels: (B,) class ids or (B, K) shares.
        policy: any; one with parameters of its own as it was trained, attached to the model. None shows signals alone.
        mean, std: per channel, as the images were normalised in units of 0..1; None for images in [0, 1].
        class_names: names of the labels, for class ids.
        title: above everything.
        seed: seed of the policy's draws.

    Raises:
        TypeError: images that are not floating point, or a model that is no module.
        ValueError: images or labels of another shape, or a policy that these cannot serve.
    """
    from matplotlib.figure import Figure

    source = model if isinstance(model, ModelSignals) else ModelSignals(model)
    if not isinstance(images, Tensor) or not images.is_floating_point():
        came = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"signal_sheet expects images as the model takes them, floating point, got {came}")
    if images.ndim != 4 or not len(images) or labels.ndim == 0 or len(labels) != len(images):
        raise ValueError(
            f"signal_sheet expects images (B, C, H, W) and labels (B,) or (B, K), got {tuple(images.shape)} and "
            f"{tuple(labels.shape)}"
        )
    mixed = None
    with undisturbed(source.model, *([] if policy is None else [policy])):
        maps = _shown_signals(source, images, labels)
        if policy is not None:
            generator = torch.Generator(images.device).manual_seed(seed)
            mixed = _mixed(source, images, labels, policy, generator)
    names = [_class_name(label, class_names) for label in labels.cpu()]
    columns = ["image", *(["partner"] if mixed is not None else []), *maps]
    if mixed is not None:
        columns += ["mixed"] + (["own share"] if mixed.mask is not None else [])
    shown = on_screen(images, mean, std)
    rows = len(images)
    figure = Figure(figsize=(1.42 * len(columns) + 1.0, 1.72 * rows + 0.85), dpi=100)
    grid = figure.add_gridspec(
        rows, len(columns), left=0.95 / figure.get_figwidth(), right=0.995, top=1 - 0.65 / figure.get_figheight(),
        bottom=0.32 / figure.get_figheight(), wspace=0.06, hspace=0.3,
    )  # fmt: skip
    if title:
        figure.suptitle(title, fontsize=10, x=0.02, ha="left", y=1 - 0.08 / figure.get_figheight(), va="top")
    for row in range(rows):
        for column, name in enumerate(columns):
            axes = figure.add_subplot(grid[row, column])
            axes.set_xticks([])
            axes.set_yticks([])
            if row == 0:
                axes.set_title(name, fontsize=9)
            if name in maps:
                _overlay(axes, shown[row], maps[name][row])
            elif name == "image":
                _show(axes, shown[row])
                axes.set_ylabel(names[row], fontsize=9, rotation=0, ha="right", va="center")
            elif mixed is not None:
                _mixed_cell(axes, name, mixed, row, shown, names, mean, std)
    return figure


def on_screen(images: Tensor, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> Tensor:
    """Images as they looked before they were normalised: (B, 3, H, W) float32 in [0, 1] on the CPU.

    Images of other than one or three channels are shown as the mean of their channels.

    Args:
        images: (B, C, H, W) floating point.
        mean, std: as of :class:`mixaug.loading.Normalize`; 0 and 1 where None.
    """
    result = images.detach().float().cpu()
    offset, scale = (
        torch.as_tensor(default if value is None else list(value), dtype=torch.float32).reshape(-1, 1, 1)
        for value, default in ((mean, [0.0]), (std, [1.0]))
    )
    result = (result * scale + offset).clamp(0, 1)
    return result if result.shape[1] == 3 else result.mean(1, keepdim=True).expand(-1, 3, -1, -1)


@contextlib.contextmanager
def undisturbed(*modules: nn.Module) -> Iterator[None]:
    """Look at modules without leaving a trace: modes, buffers and torch's random numbers are put back afterwards.

    Inside, every part is in evaluation mode, so that no batch statistics are taken and synchronised batch norm waits
    for no other process; there are no gradients; what is compiled runs as it was written, not compiled for more shapes.
    """
    parts = list(dict.fromkeys(part for module in modules for part in module.modules()))
    modes = [part.training for part in parts]
    buffers = [
        (part, name, value, value.clone())
        for part in parts
        for name, value in part._buffers.items()
        if value is not None
    ]
    states = [
        (part, part.get_extra_state())
        for part in parts
        if type(part).get_extra_state is not nn.Module.get_extra_state and not isinstance(part, Frozen)
    ]
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    devices = sorted({tensor.get_device() for tensor in tensors if tensor.is_cuda})
    compiled = any(
        getattr(part, "_compiled_call_impl", None) is not None or hasattr(part, "_orig_mod") for part in parts
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(torch.no_grad())
        if compiled:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        for part in parts:
            part.training = False
        try:
            yield
        finally:
            for part, mode in zip(parts, modes, strict=True):
                part.training = mode
            for part, state in states:
                part.set_extra_state(state)
            for part, name, value, content in buffers:
                # The old tensor comes back too where a part has put another into its place.
                part._buffers[name] = value.copy_(content)


def _shown_signals(source: ModelSignals, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """(B, h, w) maps by the heading of their column, of all signals that the model has."""
    size = (images.shape[2], images.shape[3])
    signals = source.of(images, labels)
    asked: dict[str, Callable[[], Tensor]] = {
        "saliency": signals.saliency,
        "class activation": lambda: signals.cam(size),
        "attention" if _attends(source) else "feature energy": lambda: signals.attention(size),
    }
    found = {name: _if_any(ask) for name, ask in asked.items()}
    return {name: maps.float().cpu() for name, maps in found.items() if maps is not None}


def _attends(source: ModelSignals) -> bool:
    return source.attention_block() is not None


def _if_any(ask: Callable[[], Tensor]) -> Tensor | None:
    """A signal; None where the model does not have it, which is a ValueError by the rules of :mod:`mixaug.signals`."""
    try:
        return ask()
    except ValueError:
        return None


def _mixed(
    source: ModelSignals, images: Tensor, labels: Tensor, policy: Policy, generator: torch.Generator
) -> MixedBatch:
    """What the policy makes of a batch, with the labels that a step would train on."""
    clean = source.of(images, labels, policy.needs) if policy.needs else None
    mixed = policy(images, labels, signals=clean, generator=generator)
    if policy.reads:
        with policy.tap(source, mixed, clean) as seen:
            source.model(mixed.inputs)
        mixed = policy.relabel(mixed, seen)
    return mixed


def _mixed_cell(
    axes: Any,
    name: str,
    mixed: MixedBatch,
    row: int,
    shown: Tensor,
    names: Sequence[str],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> None:
    weights = mixed.weights[row].cpu()
    if name == "partner":
        other = int(mixed.sources[row, 1 + int(weights[1:].argmax())])
        # Partners from a training set (Pooled) are rows behind the batch's own.
        if other < len(shown):
            _show(axes, shown[other])
            axes.set_xlabel(names[other], fontsize=7, labelpad=1)
        else:
            axes.axis("off")
    elif name == "mixed":
        _show(axes, on_screen(mixed.inputs[row : row + 1], mean, std)[0])
        _label_bar(axes, float(weights[0]), float(weights[1:].sum()))
    elif mixed.mask is not None:
        axes.imshow(mixed.mask[row, 0].cpu().numpy(), cmap="gray", vmin=0, vmax=1)


def _show(axes: Any, image: Tensor) -> None:
    axes.imshow(image.permute(1, 2, 0).numpy())


def _overlay(axes: Any, image: Tensor, values: Tensor) -> None:
    """A map (h, w) in colours over the image in grey; nothing of it where it is constant or not finite."""
    height, width = image.shape[1:]
    axes.imshow(image.mean(0).numpy(), cmap="gray", vmin=0, vmax=1)
    values = values.nan_to_num(0.0, 0.0, 0.0)
    low, high = (0.0 if float(values.min()) >= 0 else float(values.min())), float(values.max())
    if not math.isfinite(high) or high <= low:
        return
    scaled = torch.nn.functional.interpolate(
        ((values - low) / (high - low))[None, None], (height, width), mode="bilinear", align_corners=False
    )[0, 0]
    axes.imshow(scaled.numpy(), cmap="inferno", vmin=0, vmax=1, alpha=0.7)


def _class_name(label: Tensor, class_names: Sequence[str] | None) -> str:
    number = int(label.argmax() if label.ndim else label)
    return str(number) if class_names is None else class_names[number].replace("_", "\n")
