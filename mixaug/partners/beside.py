"""Partners that come with the batch: another stream of samples, and other views of the same samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from mixaug.batch import Batch, MixedBatch, unmixed
from mixaug.checks import check_flag, check_positive, check_probability, shown
from mixaug.draws import Draws
from mixaug.pairing import Pairing
from mixaug.partners.base import Partners, PartnerSource

#: A label rule of one's own: the stream's batch to labels like the batch's, and (R,) importance or None.
LabelRule = Callable[[Batch], tuple[Tensor, Tensor | None]]


class Stream(PartnerSource):
    """Row i of another batch is the partner of sample i: outliers, unlabelled samples, another domain.

    The batch brings it by name: ``policy(Batch(images, labels, streams={"outliers": Batch(more)}))``, and so does
    :class:`mixaug.MixStep`. The stream must have at least as many rows as the batch; those behind are not used.

    Args:
        name: of the stream.
        label: ``"own"``, the stream's own labels; ``"uniform"``, its share of the label is spread evenly over the
            classes, as Mixture Outlier Exposure does (arXiv:2106.03917); or a rule such as :class:`PseudoLabel`.

    Raises:
        ValueError: an unknown word for ``label``.
        TypeError: a name that is no string, a label rule that cannot be called.
    """

    asks_pairing = False

    def __init__(self, name: str, label: Literal["own", "uniform"] | LabelRule = "own") -> None:
        super().__init__()
        self.streams = (_name("Stream", name),)
        if isinstance(label, str):
            if label not in ("own", "uniform"):
                raise ValueError(f"Stream expects label 'own', 'uniform' or a rule, got {label!r}")
        elif not callable(label):
            raise TypeError(f"Stream expects label 'own', 'uniform' or a rule, got {shown(label)}")
        self.label = label
        self.labels_own = label != "uniform"
        self.labels_plain = label == "own"

    def check(self, what: str, batch: Batch) -> None:
        [name] = self.streams
        if name not in batch.streams:
            raise ValueError(
                f"{what} takes its partners from the stream {name!r}, the batch has {sorted(batch.streams)}: pass "
                f"Batch(images, labels, streams={{{name!r}: Batch(...)}})"
            )
        stream = batch.streams[name]
        if len(stream) < len(batch):
            raise ValueError(
                f"{what} needs a partner for each of {len(batch)} samples, stream {name!r} has {len(stream)}"
            )
        if self.label == "own" and stream.labels is None and batch.labels is not None:
            raise ValueError(
                f'{what}: stream {name!r} has no labels: pass them, or choose Stream({name!r}, label="uniform")'
            )

    def partners(self, batch: Batch, pairing: Pairing, draws: Draws) -> Partners:
        stream, size = batch.streams[self.streams[0]], len(batch)
        own = torch.arange(size, device=batch.device)
        stream = Batch(
            stream.inputs[:size],
            None if stream.labels is None else stream.labels[:size],
            metadata={name: values[:size] for name, values in stream.metadata.items()},
        )
        return Partners(self._labelled(batch, stream), own + size)

    def _labelled(self, batch: Batch, stream: Batch) -> MixedBatch:
        rows = torch.arange(len(stream), device=batch.device)[:, None]
        ones = torch.ones_like(rows, dtype=torch.float32)
        if self.label == "own" or batch.labels is None:
            labels = None if batch.labels is None else stream.labels
            return MixedBatch(stream.inputs, labels, rows, ones, metadata=stream.metadata)
        if isinstance(self.label, str):
            return MixedBatch(stream.inputs, None, rows, torch.zeros_like(ones), uniform=ones[:, 0])
        labels, importance = self.label(stream)
        if not isinstance(labels, Tensor) or labels.ndim == 0 or len(labels) != len(stream):
            came = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
            raise ValueError(f"Stream expects labels for {len(stream)} samples of its rule, got {came}")
        if batch.labels.ndim == 1 and not batch.labels.is_floating_point() and labels.ndim == 2:
            if not getattr(self.label, "hard", False):
                raise ValueError(
                    "Stream got shares of classes from its rule beside class ids of the batch: pass dense labels with "
                    "the images, F.one_hot(labels, K).float(), or PseudoLabel(..., hard=True)"
                )
            labels = labels.argmax(1)
        return MixedBatch(stream.inputs, labels, rows, ones, importance=importance, metadata=stream.metadata)

    def extra_repr(self) -> str:
        return f"{self.streams[0]!r}, label={self.label!r}"


class View(PartnerSource):
    """Partners are other augmentations of the batch's samples, and the policy's pairing chooses of which sample.

    The batch brings them by name: ``policy(Batch(images, labels, views={"strong": others}))``.

    Args:
        name: of the view.

    Raises:
        TypeError: a name that is no string.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.views = (_name("View", name),)

    def check(self, what: str, batch: Batch) -> None:
        [name] = self.views
        if name not in batch.views:
            raise ValueError(
                f"{what} takes its partners from the view {name!r}, the batch has {sorted(batch.views)}: pass "
                f"Batch(images, labels, views={{{name!r}: ...}})"
            )
        view = batch.views[name]
        if view.shape[0] != len(batch):
            raise ValueError(f"{what} expects view {name!r} of {len(batch)} samples, got {tuple(view.shape)}")

    def partners(self, batch: Batch, pairing: Pairing, draws: Draws) -> Partners:
        size = len(batch)
        chosen = pairing(batch, draws)
        view = unmixed(batch.views[self.views[0]], batch.labels)
        return Partners(view, torch.where(chosen < 0, -1, chosen + size))

    def extra_repr(self) -> str:
        return repr(self.views[0])


class PseudoLabel:
    """Labels of an unlabelled stream are what a model says of it.

    Args:
        network: gives logits (B, K) for the stream's inputs; asked in evaluation mode and without gradients. It is not
            a part of the policy: whoever trains or saves it does so elsewhere.
        temperature: the logits are divided by it; 0.5 sharpens.
        threshold: in [0, 1]; samples whose largest probability is below it get importance 0, others 1.
        hard: the most probable class alone has the label, not all by their probabilities.

    Raises:
        TypeError: ``network`` is no module.
        ValueError: a number out of range.
    """

    def __init__(
        self, network: nn.Module, temperature: float = 1.0, threshold: float = 0.0, *, hard: bool = False
    ) -> None:
        if not isinstance(network, nn.Module):
            raise TypeError(f"PseudoLabel expects network as a torch.nn.Module, got {shown(network)}")
        self.network = network
        self.temperature = check_positive("PseudoLabel", "temperature", temperature)
        self.threshold = check_probability("PseudoLabel", "threshold", threshold)
        self.hard = check_flag("PseudoLabel", "hard", hard)

    @torch.no_grad()
    def __call__(self, stream: Batch) -> tuple[Tensor, Tensor | None]:
        """(R, K) float32 labels of the stream, and (R,) float32 importance where there is a threshold.

        Raises:
            ValueError: outputs that are no logits (R, K).
        """
        was = [module for module in self.network.modules() if module.training]
        self.network.eval()
        try:
            logits = self.network(stream.inputs)
        finally:
            for module in was:
                module.training = True
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            came = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"PseudoLabel expects logits (R, K) of its network, got {came}")
        shares = (logits.float() / self.temperature).softmax(1)
        best, ids = logits.float().softmax(1).max(1)
        if self.hard:
            shares = nn.functional.one_hot(ids, logits.shape[1]).float()
        return shares, (best >= self.threshold).float() if self.threshold else None

    def __repr__(self) -> str:
        network = type(self.network).__name__
        return f"PseudoLabel({network}, temperature={self.temperature:g}, threshold={self.threshold:g})"


def _name(what: str, name: object) -> str:
    if not isinstance(name, str) or not name:
        raise TypeError(f"{what} expects a name, got {shown(name)}")
    return name
