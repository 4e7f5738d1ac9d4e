"""Pictures of a trained model: what it decides in the plane of three test images, and its loss around its weights."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator

from mixaug.checks import check_whole
from mixaug.engine.distributed import start, stream_seed
from mixaug.engine.errors import ConfigError
from mixaug.engine.evaluation.datasets import DataSets
from mixaug.engine.evaluation.draws import sample_order
from mixaug.engine.evaluation.landscape import filter_normalised_direction, loss_surface, plane_through
from mixaug.engine.evaluation.subject import Split, Subject
from mixaug.engine.stored import open_model
from mixaug.engine.tasks import CLASSIFICATION, task_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_pictures", "landscape_figure", "plane_figure"]

LANDSCAPE_IMAGES = 500
REACH = 1.0
"""The landscape goes so many lengths of the weights in each direction."""


def draw_pictures(
    run: Path | str,
    folder: Path | str,
    *,
    device: str = "auto",
    weights: str = "auto",
    seed: int = 0,
    resolution: int = 25,
    allow_targets: Collection[str] = (),
    sets: DataSets | None = None,
) -> list[Path]:
    """Draw ``plane.png`` and ``landscape.png`` of a run.

    Args:
        run: a run folder, of anybody, or a checkpoint.
        folder: where to; it is made if it is not there.
        device, weights, allow_targets: see `mixaug.engine.stored.evaluate_checkpoint`.
        seed: of the three images and of the directions; the same for runs that are looked at side by side.
        resolution: points of a side of the landscape; the plane has four times as many.
        sets: data sets that are at hand.

    Returns:
        The files that were written.

    Raises:
        FileNotFoundError, CheckpointError, ConfigError, DamagedFile: see `mixaug.engine.stored.evaluate_checkpoint`.
        OSError: the folder cannot be written.
    """
    side = check_whole("draw_pictures", "resolution", resolution, least=3)
    load = (DataSets() if sets is None else sets).of_run
    model, config, data = open_model(run, weights, allow_targets, load=load)
    if task_of(data) is not CLASSIFICATION:
        raise ConfigError(f"{run}: these pictures are for classification, and data={data.name} has numbers as labels")
    subject = Subject(model, config, data, start(device), seed)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in (("plane", plane_figure(subject, 4 * side)), ("landscape", landscape_figure(subject, side))):
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=110)
        written.append(path)
    return written


def plane_figure(subject: Subject, resolution: int = 100) -> Figure:
    """Predicted classes in the plane through three test images of different classes, paler where less sure."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    split = _three(subject)
    plane = plane_through(subject.normalize(split.images.to(subject.device)), resolution)
    sure, found = torch.cat([subject.shown(part)[0].softmax(1) for part in plane.images.split(subject.batch_size)]).max(
        1
    )
    classes = found.unique().tolist()
    # Shades say how sure the network is, so neighbours are no shades of one colour where ten colours are enough.
    palette = colormaps["tab10" if len(classes) <= 10 else "tab20"]
    shown = {k: palette(place % palette.N)[:3] for place, k in enumerate(classes)}
    table = torch.ones(subject.classes, 3)
    table[classes] = torch.tensor(list(shown.values()), dtype=table.dtype)
    colour = table[found.cpu()]
    strength = ((sure - 1 / subject.classes) / (1 - 1 / subject.classes)).cpu()[:, None]
    pixels = (1 - strength * (1 - colour)).view(resolution, resolution, 3).clamp(0, 1)
    figure = Figure(figsize=(7, 5), layout="constrained")
    axis = figure.subplots()
    left, right, low, high = (float(edge) for edge in (*plane.across[[0, -1]], *plane.up[[0, -1]]))
    axis.imshow(
        pixels.numpy(), origin="lower", extent=(left, right, low, high), aspect="equal", interpolation="nearest"
    )
    for (x, y), label in zip(plane.corners.tolist(), split.labels.tolist(), strict=True):
        axis.plot([x], [y], "o", color="black", markersize=6, markeredgecolor="white")
        axis.annotate(subject.data.class_names[label], (x, y), xytext=(6, 6), textcoords="offset points")
    for k in classes:
        axis.plot([], [], "s", color=shown[k], label=subject.data.class_names[k])
    figure.legend(loc="outside right center", frameon=False)
    axis.set(xticks=[], yticks=[])
    axis.set_title("Decisions in the plane of three test images")
    return figure


def landscape_figure(subject: Subject, resolution: int = 25) -> Figure:
    """Contours of the test loss along two directions, on at most 500 images."""
    from matplotlib.figure import Figure

    order = sample_order(torch.zeros(1, dtype=torch.int64), len(subject.test), subject.seed, "landscape")[0]
    split = subject.test.rows(order[:LANDSCAPE_IMAGES])
    generator = Generator().manual_seed(stream_seed(subject.seed, "evaluation/landscape"))
    directions = [filter_normalised_direction(subject.model, generator) for _ in range(2)]
    steps = torch.linspace(-REACH, REACH, resolution).tolist()
    images, labels = subject.normalize(split.images.to(subject.device)), split.labels.to(subject.device)
    surface = loss_surface(subject.model, directions, steps, images, labels, subject.batch_size)
    figure = Figure(figsize=(6, 5), layout="constrained")
    axis = figure.subplots()
    # Far from the weights the loss grows without bound; its logarithm shows the bottom as well.
    filled: Any = axis.contourf(steps, steps, surface.clamp_min(1e-6).log10().numpy(), levels=20, cmap="viridis")
    figure.colorbar(filled, ax=axis, label="log10 of the cross-entropy")
    axis.plot([0], [0], "+", color="white", markersize=10)
    axis.set(xlabel="first direction", ylabel="second direction", aspect="equal")
    axis.set_title(f"Test loss around the weights, {len(split)} images")
    return figure


def _three(subject: Subject) -> Split:
    """Three test images of different classes, or of as many as there are, drawn by the seed."""
    split = subject.test
    order = sample_order(torch.zeros(1, dtype=torch.int64), len(split), subject.seed, "plane")[0]
    labels = split.labels[order]
    # For each class, the place where it comes first in the order; the earliest three are taken.
    first = [int((labels == k).nonzero()[0, 0]) for k in labels.unique().tolist()]
    rest = [place for place in range(len(order)) if place not in first]
    return split.rows(order[[*sorted(first), *rest][:3]])
