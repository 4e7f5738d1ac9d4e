"""Signals of the mixed pass itself."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mixaug.ops.nested import map_tensors
from mixaug.signals.model import ModelSignals
from mixaug.signals.recorder import BlockAttention, Recorder
from mixaug.signals.tensors import Mode, Signals


class MixedSignals(Signals):
    """What the mixed pass showed: the same questions, answered for the mixed images by the pass itself.

    A context manager's value: ``with policy.tap(model, mixed) as seen: logits = model(mixed.inputs)``. Values are
    detached, except with ``grad=True``.

    Attributes:
        clean: signals of the unmixed images, where the policy asked for any.
        size: spatial size of the mixed images.
    """

    def __init__(self, source: ModelSignals, wanted: frozenset[str], clean: Signals | None = None) -> None:
        super().__init__()
        self.source = source
        self.model = source.inner
        self.clean = clean
        self.recorder = Recorder(source, wanted)

    def part(self, rows: slice, total: int) -> MixedSignals:
        """What the pass showed of some of its rows, where several batches shared it."""
        part = MixedSignals(self.source, frozenset(self.recorder.wanted), self.clean)
        part.recorder.shown = {key: _rows_of(value, rows, total) for key, value in self.recorder.shown.items()}
        return part

    def attention(self, size: tuple[int, int], *, mode: Mode = "eval") -> Tensor:
        return self.recorder.attention(size)

    def received(self, size: tuple[int, int], *, mode: Mode = "eval") -> Tensor:
        return self.recorder.received(size)

    def every_attention(self) -> list[BlockAttention]:
        """All blocks of attention in their order.

        Raises:
            ValueError: a model without blocks whose queries and keys can be read.
        """
        return self.recorder.every_attention()

    def mixed_shape(self, stage: str) -> tuple[int, ...]:
        """Shape, without the batch, of what was mixed behind a module of the model.

        Raises:
            ValueError: nothing was mixed there.
        """
        return self.recorder.mixed_shape(stage)

    def features(
        self, stage: int | str | None = None, *, size: tuple[int, int], mode: Mode = "eval", grad: bool = False
    ) -> Tensor:
        return self.recorder.features(stage, size, grad)

    def outputs(self, *, mode: Mode = "eval", grad: bool = False) -> Tensor:
        return self.recorder.outputs(grad)

    def pooled(self, *, mode: Mode = "eval", grad: bool = False) -> Tensor:
        return self.recorder.pooled(grad)


def _rows_of(value: Any, rows: slice, total: int) -> Any:
    # What has no row for each sample, such as windows of an image, says nothing of a part of the batch.
    return map_tensors(value, lambda tensor: tensor[rows] if tensor.ndim and tensor.shape[0] == total else tensor)
