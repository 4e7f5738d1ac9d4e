"""Pictures of a run: what its policy makes of some training images now, and a finished run to draw from."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from mixaug.batch import Batch
from mixaug.engine import build, checkpoint
from mixaug.engine.batches import Batches
from mixaug.engine.distributed import start, stream_seed
from mixaug.engine.errors import CheckpointError, ConfigError
from mixaug.engine.evaluate import autocast
from mixaug.engine.sources import SeededDraws
from mixaug.engine.stored import networks_of
from mixaug.engine.targets import open_config
from mixaug.engine.tasks import CLASSIFICATION, task_of
from mixaug.gallery import on_screen, undisturbed
from mixaug.loading import Normalize
from mixaug.policy import Policy
from mixaug.step import MixStep

__all__ = ["OpenRun", "Pictures", "are_images", "open_run", "pictures_of"]

#: Number of samples in a picture of a run under way, and the range of the side of one of its tiles in pixels.
SAMPLES, SMALLEST, LARGEST = 8, 64, 128


def are_images(data: Any) -> bool:
    """Whether the inputs of a data set of `mixaug.data` can be looked at."""
    return len(data.input_shape) == 3 and (not data.in_memory or data.train.inputs.dtype == torch.uint8)


def some_samples(batches: Batches, split: str, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random samples of a set as the model sees them; the same ones for the same seed.

    Returns:
        inputs (n, C, H, W) float32 and labels (n, ...) on the device, and their rows (n,) int64; n is ``count``, or
        the whole set where it is smaller. Of data that is read from files the training images are augmented, as
        epoch 0 has them.
    """
    samples = getattr(batches.data, split)
    generator = torch.Generator().manual_seed(stream_seed(seed, "pictures"))
    rows = torch.randperm(len(samples), generator=generator)[:count]
    if batches.data.in_memory:
        inputs, labels = samples.inputs[rows], samples.labels[rows]
    else:
        seeded = SeededDraws(samples, batches.config.seed)
        read = [seeded[int(row)] for row in rows]
        inputs, labels = torch.stack([image for image, _ in read]), torch.tensor([label for _, label in read])
    device = batches.world.device
    normalize = Normalize(batches.mean, batches.std, torch.float32, batches.memory_format)
    return normalize(inputs.to(device)), labels.to(device), rows.to(device)


class Pictures:
    """The same few training samples, mixed with the same draws, again and again while the policy learns.

    Drawing leaves the run as it is: random streams, batch statistics, modes. No other process is needed for it.

    Args:
        config: the run's config.
        batches: the run's data, read in batches.
    """

    def __init__(self, config: DictConfig, batches: Batches) -> None:
        self.config, self.batches = config, batches
        self.images, self.labels, self.rows = some_samples(batches, "train", SAMPLES, config.seed)

    def draw(self, step: MixStep) -> Tensor:
        """(3, h, w) float32 in [0, 1]: a row of images, one of what they are mixed to, one of the masks, if any."""
        device, policy = self.images.device, step.policy
        generator = torch.Generator(device).manual_seed(stream_seed(self.config.seed, "pictures/mixing"))
        metadata = {name: values[self.rows] for name, values in self.batches.tensors_of_samples.items()}
        batch = Batch(self.images, self.labels, rows=self.rows, metadata=metadata)
        with undisturbed(step.model, policy, *_modules(step.objective)), autocast(device, self.config.precision):
            signals = step.signals() if policy.needs else None
            mixed = policy(batch, signals=signals, generator=generator)
        count = len(self.images)
        mean, std = self.batches.mean, self.batches.std
        lines = [on_screen(self.images, mean, std), on_screen(mixed.inputs[:count], mean, std)]
        if mixed.mask is not None:
            lines.append(on_screen(mixed.mask[:count]))
        return torch.cat([torch.cat(list(_sized(line)), dim=2) for line in lines], dim=1)


def pictures_of(config: DictConfig, batches: Batches, policy: Policy | None = None) -> Pictures | None:
    """The pictures that a run's config asks for; None without, and in all processes but the first.

    Raises:
        ConfigError: in every process, for data that cannot be looked at.
    """
    if config.pictures_every_epochs is None:
        return None
    parts = () if policy is None else policy.modules()
    sources = [part.partners for part in parts if isinstance(part, Policy) and part.partners is not None]
    if any(source.streams or source.views for source in sources):
        raise ConfigError(
            f"pictures_every_epochs={config.pictures_every_epochs} draws mixtures of training samples alone, but "
            f"policy={config.choices.policy} takes its partners from a stream or a view"
        )
    if not are_images(batches.data):
        raise ConfigError(
            f"pictures_every_epochs={config.pictures_every_epochs} needs images; {batches.data.name} has inputs "
            f"{tuple(batches.data.input_shape)}"
        )
    return Pictures(config, batches) if batches.world.is_main else None


def _modules(part: Any) -> list[torch.nn.Module]:
    return [part] if isinstance(part, torch.nn.Module) else []


def _sized(images: Tensor) -> Tensor:
    """Tiles large enough to see and small enough to keep."""
    side = max(images.shape[2:])
    if side < SMALLEST:
        return images.repeat_interleave(-(-SMALLEST // side), 2).repeat_interleave(-(-SMALLEST // side), 3)
    if side <= LARGEST:
        return images
    size = [max(round(length * LARGEST / side), 1) for length in images.shape[2:]]
    return torch.nn.functional.interpolate(images, size, mode="area")


@dataclass
class OpenRun:
    """A run of a classifier of images, as its newest checkpoint has it.

    Attributes:
        config: the resolved config.
        step: model, policy and objective with their trained weights.
        batches: the run's data.
        epoch: epochs finished.
    """

    config: DictConfig
    step: MixStep
    batches: Batches
    epoch: int

    def samples(self, split: str, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Random inputs (n, C, H, W) and labels (n,) of ``"test"`` or ``"train"``, n <= ``count``, on the device."""
        images, labels, _ = some_samples(self.batches, split, count, seed)
        return images, labels


def open_run(
    folder: Path | str,
    device: str = "auto",
    say: Callable[[str], None] = print,
    allow_targets: Collection[str] = (),
) -> OpenRun:
    """Load a finished or unfinished run with the weights that its policy looks at: the trained ones, not averaged ones.

    The folder may come from anybody: its config builds what a run of mixaug is made of and nothing else.

    Args:
        folder: the run folder.
        device: "auto", "cpu", "cuda".
        say: called with a line when the newest checkpoint is damaged and the one before is read.
        allow_targets: full names that the config may call beside those of mixaug, as ``"my_package.MyPolicy"``.

    Raises:
        FileNotFoundError: no such folder, no ``config.yaml`` in it, or no checkpoint yet.
        ConfigError: the config would run code that is not mixaug's own, or cannot work.
        DamagedFile: the config cannot be read.
        CheckpointError: no checkpoint that can be read and fits.
        ValueError: a run in regression, or on inputs that are no images.
    """
    folder = Path(folder)
    if not os.path.lexists(folder / "config.yaml"):
        raise FileNotFoundError(f"{folder} is no run folder: it has no config.yaml")
    config = open_config(folder, allow_targets)
    state = checkpoint.load_latest(folder, say)
    if state is None:
        raise FileNotFoundError(f"{folder} has no checkpoint yet: a run writes its first one at the end of an epoch")
    world = start(device)
    data = build.load_data(config)
    if task_of(data) is not CLASSIFICATION:
        raise ValueError(f"{folder} is a run in regression on {data.name}; pictures of signals are for classifiers")
    if not are_images(data):
        raise ValueError(f"{folder} is a run on {data.name}, whose inputs {tuple(data.input_shape)} are no images")
    objective, batches = build.build_objective(config), Batches(config, data, world)
    policy = build.with_pool(config, build.build_policy(config), batches)
    networks = networks_of(config, data)
    step = build.build_step(config, build.build_model(config, data), policy, objective, data, networks)
    build.prepare_policy(config, step.policy, objective, data, batches)
    try:
        step.model.load_state_dict(state["model"])
        step.policy.load_state_dict(state["policy"])
        epoch = int(state["epoch"])
    except (KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"the checkpoint in {folder} does not fit this version of mixaug: {error}") from error
    step.to(world.device)
    step.policy.set_progress(min(epoch / config.epochs, 1.0))
    return OpenRun(config, step.eval(), batches, epoch)
