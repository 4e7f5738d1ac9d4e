"""A trained model with its data as the families of the suite see it: what several of them need is computed once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from mixaug.data import load
from mixaug.engine.batches import Batches
from mixaug.engine.distributed import World
from mixaug.engine.evaluation.attack import PixelModel
from mixaug.engine.evaluation.draws import sample_integers, sample_order
from mixaug.frozen import BriefRepr
from mixaug.labeling.object import OBJECT_MASK
from mixaug.loading import Normalize
from mixaug.signals import ModelSignals
from mixaug.signals.backbone import classifier_name

__all__ = ["Predictions", "Split", "Subject", "Unavailable", "outlier_images"]


class Unavailable(Exception):
    """A family cannot be taken of this run; the message says why."""


@dataclass(frozen=True, eq=False)
class Split(BriefRepr):
    """Images and labels on the CPU.

    Attributes:
        images: (N, C, H, W) uint8.
        labels: (N,) int64 class ids.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, rows: Tensor) -> Split:
        """Some of the samples, by number."""
        return Split(self.images[rows], self.labels[rows])


@dataclass(frozen=True, eq=False)
class Predictions(BriefRepr):
    """What a model makes of a split, on its device.

    Attributes:
        logits: (N, K) float32.
        features: (N, D) float32 inputs of the last linear layer, None for a model without one that can be found.
        labels: (N,) int64.
    """

    logits: Tensor
    features: Tensor | None
    labels: Tensor


@dataclass(eq=False)
class Subject:
    """A model under evaluation, in eval mode and float32, and the splits of its run.

    Attributes:
        model: the network, on the device, taking normalised images.
        config: the run's config.
        data: the run's `mixaug.data.DataSet`.
        world: a single process.
        seed: of all draws; the same for all models that are compared.
        samples: at most so many test images are used, drawn by the seed; None takes all.
        valid: a validation split where one was handed in; else that of the data set, if it has one.
        outliers: images of another data set, (M, C, H, W) uint8 like those of the run.
        corrupted: how to get a corruption: name to the five severities of the test split, each (N, 3, H, W) uint8.
        predicted: how many images the model has seen, one with a gradient counting three.
    """

    model: nn.Module
    config: DictConfig
    data: Any
    world: World
    seed: int = 0
    samples: int | None = None
    valid: Split | None = None
    outliers: Tensor | None = None
    corrupted: Callable[[Split, str], Iterator[Tensor]] | None = None
    predicted: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.model.to(self.world.device).eval()
        self.batches = Batches(self.config, self.data, self.world)
        self.normalize = Normalize(self.batches.mean, self.batches.std, torch.float32, self.batches.memory_format)
        self.pixel_model = PixelModel(self.model, self.batches.mean, self.batches.std)
        self.model.register_forward_pre_hook(self._count)

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return self.world.device

    @property
    def batch_size(self) -> int:
        """Images in a batch without gradients."""
        return int(self.config.eval_batch_size)

    @property
    def gradient_batch_size(self) -> int:
        """Images in a batch with gradients: no more than fitted into memory in training."""
        return min(self.batch_size, int(self.config.batch_size))

    @property
    def classes(self) -> int:
        """K."""
        return int(self.data.num_classes)

    @functools.cached_property
    def test(self) -> Split:
        """The test split, or the part of it that is used, in the order of the set."""
        whole = self._split("test")
        rows = self._taken(len(whole))
        return whole if rows is None else whole.rows(rows)

    @functools.cached_property
    def object_masks(self) -> Tensor | None:
        """(N, H, W) bool masks of the objects of the test split, of its images' size; None where the data have none.

        Raises:
            Unavailable: masks of another shape.
        """
        masks = getattr(self.data.test, "metadata", {}).get(OBJECT_MASK)
        if masks is None:
            return None
        size = tuple(self.test.images.shape[2:])
        flat = masks[:, 0] if masks.ndim == 4 and masks.shape[1] == 1 else masks
        if tuple(flat.shape[1:]) != size:
            raise Unavailable(
                f"the test images of data={self.data.name} have {size[0]}x{size[1]} pixels, and metadata "
                f"{OBJECT_MASK!r} has the shape {tuple(masks.shape)}"
            )
        rows = self._taken(len(flat))
        return (flat if rows is None else flat[rows]) != 0

    @functools.cached_property
    def validation(self) -> Split:
        """Held-out samples that are neither trained on nor reported.

        Raises:
            Unavailable: there are none.
        """
        if self.valid is not None:
            return self.valid
        if getattr(self.data, "valid", None) is None:
            raise Unavailable(
                f"data={self.data.name} has no validation split, and nothing may be fitted on the test set: a run with "
                "data.valid_share=0.1 keeps one, and a program of your own can hand one in"
            )
        return self._split("valid")

    @functools.cached_property
    def on_test(self) -> Predictions:
        """Predictions on the test split."""
        return self.predictions(self.test)

    @functools.cached_property
    def on_train(self) -> Predictions:
        """Predictions on the training split, without augmentation where it is held in memory."""
        return self.predictions(self._split("train"))

    @functools.cached_property
    def classifier(self) -> nn.Linear | None:
        """The last linear layer, None where it cannot be found."""
        try:
            found = self.model.get_submodule(classifier_name(self.model))
        except ValueError:
            return None
        return found if isinstance(found, nn.Linear) else None

    def features(self, found: Tensor | None) -> Tensor:
        """Features that are there.

        Raises:
            Unavailable: the model has no linear classifier to be found.
        """
        if found is None:
            raise Unavailable(f"{type(self.model).__name__} has no linear classifier to be found, whose input is read")
        return found

    def predictions(self, split: Split) -> Predictions:
        """Logits and features of a split."""
        parts = [self.shown(self.normalize(split.images[rows].to(self.device))) for rows in self.chunks(len(split))]
        logits = torch.cat([logits for logits, _ in parts])
        features = [read for _, read in parts if read is not None]
        return Predictions(logits, torch.cat(features) if features else None, split.labels.to(self.device))

    @torch.no_grad()
    def shown(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits and features, both float32, of a batch of normalised images."""
        features: list[Tensor] = []
        with self._reading(features.append):
            logits = self.model(images).float()
        return logits, features[-1] if features else None

    @torch.no_grad()
    def accuracy(self, split: Split, change: Callable[[Tensor, Tensor], Tensor] | None = None) -> float:
        """Percent of right answers.

        Args:
            split: images and labels.
            change: (normalised images, their numbers in the split), both on the device, to the images that are shown.
        """
        right = torch.zeros((), dtype=torch.int64, device=self.device)
        for rows in self.chunks(len(split)):
            images = self.normalize(split.images[rows].to(self.device))
            if change is not None:
                images = change(images, rows.to(self.device))
            right += (self.model(images).argmax(1) == split.labels[rows].to(self.device)).sum()
        return 100 * float(right) / len(split)

    def class_activation(self, images: Tensor, labels: Tensor) -> Tensor:
        """(B, H, W) class activation of normalised images for these classes, see `class_activation_map`.

        Raises:
            Unavailable: the model has no feature map and linear classifier to be found.
        """
        size = (int(images.shape[2]), int(images.shape[3]))
        try:
            return ModelSignals(self.model).of(images, labels.to(self.device), frozenset({"cam"})).cam(size)
        except ValueError as error:
            raise Unavailable(str(error)) from error

    def chunks(self, samples: int) -> tuple[Tensor, ...]:
        """Numbers 0 ... samples - 1 in pieces of a batch."""
        return torch.arange(samples).split(self.batch_size)

    def partners(self, split: Split) -> Tensor:
        """(N,) a random sample of another class for each; of any class where several draws find no other."""
        rows = torch.arange(len(split))
        drawn = sample_integers(rows, 16, len(split), self.seed, "partner")
        other = split.labels[drawn] != split.labels[:, None]
        return drawn.gather(1, other.int().argmax(1, keepdim=True))[:, 0]

    def _taken(self, whole: int) -> Tensor | None:
        """Rows of a test set of so many samples that are used, in order; None for all."""
        if self.samples is None or self.samples >= whole:
            return None
        # Sets may be sorted by class, so the part is drawn.
        order = sample_order(torch.zeros(1, dtype=torch.int64), whole, self.seed, "test images")[0]
        return order[: self.samples].sort().values

    def _split(self, name: str) -> Split:
        samples = getattr(self.data, name)
        if self.data.in_memory:
            return Split(samples.inputs, samples.labels)
        images, labels = [], []
        for inputs, classes in self.batches.held_out(name):
            pixels = inputs.cpu()
            statistics = [torch.tensor(each)[:, None, None] for each in (self.batches.mean, self.batches.std)]
            levels = (pixels * statistics[1] + statistics[0]) * 255
            images.append(levels.round().clamp(0, 255).to(torch.uint8))
            labels.append(classes.cpu())
        return Split(torch.cat(images), torch.cat(labels))

    def _count(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        with_gradient = torch.is_grad_enabled() and inputs[0].requires_grad
        self.predicted += len(inputs[0]) * (3 if with_gradient else 1)

    @contextmanager
    def _reading(self, keep: Callable[[Tensor], None]) -> Iterator[None]:
        """Hand what enters the last linear layer to ``keep``."""
        if self.classifier is None:
            yield
            return

        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            keep(inputs[0].float())

        handle = self.classifier.register_forward_pre_hook(hook)
        try:
            yield
        finally:
            handle.remove()


def outlier_images(spec: Mapping[str, Any], shape: tuple[int, ...], most: int, seed: int) -> Tensor:
    """Test images of a data set, brought to the size and the channels of another.

    Args:
        spec: ``name`` and further options of `mixaug.data.load`; ``first_class`` leaves out classes before it, so that
            classes that a run was not trained on can serve.
        shape: (C, H, W) that they are brought to, bilinear with antialiasing; grey and colour are turned into another.
        most: at most so many, drawn by the seed.
        seed: any integer.

    Returns:
        (M, C, H, W) uint8.

    Raises:
        ValueError: no such data set, one without images or classes, or none left.
    """
    from torchvision.transforms.v2 import functional as F

    options = dict(spec)
    first = int(options.pop("first_class", 0))
    data = load(**options)
    if not hasattr(data, "num_classes"):
        raise ValueError(f"outliers={data.name} is a set with numbers as labels; take one of images with classes")
    test: Any = data.test
    labels = test.labels if hasattr(test, "labels") else [label for _, label in test.samples]
    rows = (torch.as_tensor(labels) >= first).nonzero()[:, 0]
    if not len(rows):
        raise ValueError(f"outliers={data.name} has no class from {first} on: it has {data.num_classes}")
    order = sample_order(torch.zeros(1, dtype=torch.int64), len(rows), seed, "outliers")[0]
    made = []
    for row in rows[order[:most]].tolist():
        image = test[row][0]
        pixels = image if isinstance(image, Tensor) else F.pil_to_tensor(image)
        if pixels.shape[0] != shape[0]:
            pixels = F.rgb_to_grayscale(pixels) if shape[0] == 1 else F.grayscale_to_rgb(pixels)
        made.append(F.resize(pixels, list(shape[1:]), antialias=True))
    return torch.stack(made)
