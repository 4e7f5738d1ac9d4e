"""Signals as tensors: what a policy asks of a model, answered by tensors that exist already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from mixaug.ops.layout import single_precision
from mixaug.signals import backbone

#: Mode of the model during a pass over the clean batch, which decides on its statistics and dropout.
Mode = Literal["eval", "train"]


HELP = {
    "saliency": "(B, H, W) gradient magnitudes",
    "cam": "(B, h, w) class activation maps",
    "attention": "(B, h, w) attention of the class token",
    "features": "(B, C, h, w) feature maps, or a dict of them by stage",
    "outputs": "(B, K) outputs for the unmixed images",
    "pooled": "(B, D) input of the classifier for the unmixed images",
}


class Signals:
    """Signals as tensors: computed elsewhere, stored from another run, or made up for a test.

    Args:
        saliency: (B, H, W) >= 0, one value per pixel; its scale does not matter.
        cam: (B, h, w) >= 0, class activation of the true label; rescaled to the image.
        attention: (B, h, w) or (B, N), attention of the class token to each image token.
        features: (B, C, h, w) of the stage that the policy asks for, or a dict by stage.
        outputs: (B, K) what the model puts out for the unmixed images.
        pooled: (B, D) what its classifier takes in for them.

    Raises:
        TypeError: something that is no tensor.
        ValueError: tensors of different batch sizes.

    Example:
        >>> import torch
        >>> Signals(saliency=torch.rand(8, 32, 32)).saliency().shape
        torch.Size([8, 32, 32])
    """

    def __init__(
        self,
        *,
        saliency: Tensor | None = None,
        cam: Tensor | None = None,
        attention: Tensor | None = None,
        features: Tensor | Mapping[int | str, Tensor] | None = None,
        outputs: Tensor | None = None,
        pooled: Tensor | None = None,
    ) -> None:
        self._values: dict[str, Any] = {
            "saliency": saliency,
            "cam": cam,
            "attention": attention,
            "features": features,
            "outputs": outputs,
            "pooled": pooled,
        }
        sizes: set[int] = set()
        for name, value in self._values.items():
            for tensor in value.values() if isinstance(value, Mapping) else [value]:
                if tensor is None:
                    continue
                if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                    came = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
                    raise TypeError(f"Signals expects {name} as {HELP[name]}, floating point, got {came}")
                sizes.add(tensor.shape[0])
        if len(sizes) > 1:
            raise ValueError(f"Signals expects tensors of one batch, got batch sizes {sorted(sizes)}")

    #: The model behind the signals, where there is one.
    model: nn.Module | None = None

    def saliency(self, *, mode: Mode = "eval", keep_loss: bool = False) -> Tensor:
        """(B, H, W) float32: root mean square over the channels of the loss's gradient with respect to the images.

        Args:
            mode: ``"eval"`` leaves batch statistics alone and dropout off; ``"train"`` does neither.
            keep_loss: keep the clean loss as a part of the step, see :meth:`clean_loss`.
        """
        if keep_loss:
            raise ValueError("the loss of the clean batch is kept by ModelSignals only; given Signals have none")
        return single_precision(self._given("saliency"))

    def clean_loss(self) -> Tensor:
        """Mean loss of the clean batch, whose gradient was computed with the saliency and is handed on by backward."""
        raise ValueError("the loss of the clean batch is kept by ModelSignals only; given Signals have none")

    def cam(self, size: tuple[int, int], *, mode: Mode = "eval") -> Tensor:
        """(B, H, W) float32 class activation of the true labels, each with the sum 1; NaN where constant."""
        from mixaug.ops.activation import given_map

        return given_map(single_precision(self._given("cam")), size)

    def attention(self, size: tuple[int, int], *, mode: Mode = "eval") -> Tensor:
        """(B, h, w) float32 attention to the image tokens, in the last block, averaged over its heads.

        Of the class token; for models without one the mean over all image tokens; for models without global
        attention whose queries and keys can be read (CNNs, windows) the mean square of the last feature map
        (arXiv:1612.03928), each map divided by its sum.

        Args:
            size: (H, W) of the images, for models that do not say how their tokens lie.
        """
        return as_grid(single_precision(self._given("attention")), size)

    def received(self, size: tuple[int, int], *, mode: Mode = "eval") -> Tensor:
        """(B, h, w) float32 attention that each image token receives from all image tokens, on average."""
        return self.attention(size, mode=mode)

    def features(
        self, stage: int | str | None = None, *, size: tuple[int, int], mode: Mode = "eval", grad: bool = False
    ) -> Tensor:
        """(B, C, h, w) features behind a stage; None stands for the last ones, which the classifier pools.

        Args:
            stage: name of a module, or number of a stage in timm's counting.
            size: (H, W) of the images.
            grad: hand gradients on to the model.
        """
        value = self._given("features")
        if isinstance(value, Mapping):
            if stage not in value:
                raise ValueError(f"Signals has features of {list(value)}, but stage {stage!r} is asked for")
            value = value[stage]
        return backbone.as_map(self.model, value, size)

    def outputs(self, *, mode: Mode = "eval", grad: bool = False) -> Tensor:
        """(B, K) what the model puts out for the unmixed images."""
        return self._given("outputs")

    def pooled(self, *, mode: Mode = "eval", grad: bool = False) -> Tensor:
        """(B, D) what the classifier takes in for the unmixed images."""
        return self._given("pooled")

    def _given(self, name: str) -> Any:
        value = self._values[name]
        if value is None:
            raise ValueError(
                f"the policy asks for {name}, which these Signals lack: pass Signals({name}=...), {HELP[name]}, or "
                "signals=model"
            )
        return value


def as_grid(attention: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, N) as (B, h, w) of the image's proportions; (B, h, w) as it is."""
    if attention.ndim == 2:
        return attention.unflatten(1, backbone.token_grid(None, attention.shape[1], size))
    if attention.ndim != 3:
        raise ValueError(f"attention expects (B, h, w) or (B, N), got {tuple(attention.shape)}")
    return attention
