"""Signals of the mixed pass itself."""

from __future__ import annotations

from torch import Tensor

from mixaug.signals.given import Mode, Signals
from mixaug.signals.model import ModelSignals
from mixaug.signals.recorder import BlockAttention, Recorder


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

    def features(
        self, stage: int | str | None = None, *, size: tuple[int, int], mode: Mode = "eval", grad: bool = False
    ) -> Tensor:
        return self.recorder.features(stage, size, grad)

    def outputs(self, *, mode: Mode = "eval", grad: bool = False) -> Tensor:
        return self.recorder.outputs(grad)

    def pooled(self, *, mode: Mode = "eval", grad: bool = False) -> Tensor:
        return self.recorder.pooled(grad)
