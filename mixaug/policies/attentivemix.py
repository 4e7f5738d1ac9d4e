"""Attentive CutMix (AttentiveMix, arXiv:2003.13048): the most attentive cells of a sample, pasted on its partner.

    x' = x in the k cells of highest attention, x[partner] elsewhere,   lam = share of pixels kept, about k / cells

The attention is the mean over the channels of the last feature map of a frozen, pre-trained network (ImageNet
ResNet-50 at 224 pixels in the paper, so 7 x 7 cells); a cell covers the pixels that nearest upsampling gives it. The
attentive image keeps few cells and gets the small weight: 6 / 49 = 0.12 in the paper.

``k=None`` is OpenMixup's AttentiveMix+: k = min(max(1, int(cells lam)), cells), lam ~ Beta(alpha, alpha), each sample
its own unless ``per="batch"``. Departures: without a network of its own the policy asks the model in training;
feature maps need not be square, nor images divisible by them; labels count pixels. The other public code takes the
last channel in place of the mean, by a slip of the index: ``attention="last"``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixaug.batch import Batch
from mixaug.checks import check_choice, check_images, check_out, check_partner, check_whole, check_whole_numbers, shown
from mixaug.draws import Draws
from mixaug.ops.blend import blend_mask
from mixaug.ops.layout import reads_freely, single_precision, wide_dtype
from mixaug.ops.masks import cells_to_size, top_mask
from mixaug.options import check_read
from mixaug.plan import MaskBlend, Plan
from mixaug.policies.network import NetworkPolicy
from mixaug.policy import SharedOptions
from mixaug.registry import register
from mixaug.signals import ModelSignals

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["AttentiveMix", "attentive_cells", "attentivemix", "feature_attention"]

Attention = Literal["mean", "last"]


def feature_attention(features: Tensor, attention: Attention = "mean") -> Tensor:
    """Attention of every cell of a feature map: (B, C, h, w) floating point to (B, h, w) float32.

    Args:
        features: (B, C, h, w).
        attention: ``"mean"`` over the channels, or the ``"last"`` channel alone.

    Raises:
        ValueError: another shape or an unknown attention.
        TypeError: features that are not floating point.
    """
    if attention not in get_args(Attention):
        raise ValueError(f"feature_attention expects attention in {list(get_args(Attention))}, got {attention!r}")
    _check_cells("feature_attention", "features", features, "(B, C, h, w)")
    values = single_precision(features)
    return values.mean(1) if attention == "mean" else values[:, -1]


def attentive_cells(attention: Tensor, k: int | Tensor) -> Tensor:
    """The k cells of highest attention. Of equal cells the first in reading order; NaN counts as the lowest.

    Args:
        attention: (B, h, w) floating point.
        k: number of cells, in [1, h * w]; (B,) or (1,) int64 for one number per sample.

    Returns:
        (B, 1, h, w) bool, True where the own image shows.

    Raises:
        ValueError: k that does not fit attention.
        TypeError: attention that is not floating point.
    """
    _check_cells("attentive_cells", "attention", attention, "(B, h, w)")
    batch, rows, columns = attention.shape
    count = rows * columns
    if isinstance(k, Tensor):
        if k.dtype != torch.int64 or tuple(k.shape) not in ((1,), (batch,)):
            raise ValueError(
                f"attentive_cells expects k as a number or ({batch},) int64, got {tuple(k.shape)} {k.dtype}"
            )
        if reads_freely(k) and not bool(((k >= 1) & (k <= count)).all()):
            raise ValueError(
                f"attentive_cells expects k in [1, {count}], one of {rows} x {columns} cells, got {k.tolist()}"
            )
        kept = k
    else:
        if not 1 <= k <= count:
            raise ValueError(
                f"attentive_cells cannot keep k={k} cells of {rows} x {columns} = {count}: choose k in 1 to {count}"
            )
        kept = torch.full((1,), int(k), device=attention.device)
    scores = attention.flatten(1)
    # NaN would be sorted above everything.
    scores = torch.where(scores.isnan(), torch.full_like(scores, -torch.inf), scores)
    return top_mask(scores, kept).reshape(batch, 1, rows, columns)


def attentivemix(
    images: Tensor, partner: Tensor, cells: Tensor, *, out: Tensor | None = None, inplace: bool = False
) -> tuple[Tensor, Tensor]:
    """Keep the own pixels in the chosen cells, copy the partner's elsewhere. Differentiable.

    Args:
        images: (B, C, H, W) floating point or uint8.
        partner: (B,) int64.
        cells: (B, 1, h, w), or (1, 1, h, w) for all, bool, True where the own image shows; pixel (y, x) lies in cell
            (floor(y h / H), floor(x w / W)).
        out: tensor like ``images`` that receives the result and does not overlap it.
        inplace: write the result into ``images``.

    Returns:
        Mixed images, dtype and memory format of ``images``, and lam (B,) float32, the share of own pixels.

    Raises:
        ValueError: shapes that do not fit, partners outside the batch.
        TypeError: another dtype.
    """
    check_images("attentivemix", images, (2,))
    check_partner("attentivemix", partner, images.shape[0])
    check_out("attentivemix", images, out, inplace)
    if cells.dtype != torch.bool:
        raise TypeError(f"attentivemix expects cells of dtype torch.bool, True for own cells, got {cells.dtype}")
    if cells.ndim != 4 or cells.shape[1] != 1 or cells.shape[0] not in (1, images.shape[0]) or not cells.numel():
        raise ValueError(
            f"attentivemix expects cells ({images.shape[0]}, 1, h, w), or one row for all, got {tuple(cells.shape)}"
        )
    mask = cells_to_size(cells.squeeze(1), images.shape[2:])
    lam = mask.flatten(1).mean(1, dtype=torch.float32).expand(images.shape[0])
    return blend_mask(images, partner, mask, out=out, inplace=inplace), lam


@register(
    "attentivemix",
    paper="Attentive CutMix: An Enhanced Data Augmentation Approach for Deep Learning Based Image Classification, "
    "ICASSP 2020",
    arxiv="2003.13048",
    family="guided by the model",
)
class AttentiveMix(NetworkPolicy):
    """Show the partner outside the sample's most attentive cells; the label share counts the pixels.

    Args:
        alpha: lam ~ Beta(alpha, alpha), with ``k=None`` alone; 2.0 is OpenMixup's value for ImageNet.
        k: own cells of each sample, 6 of 49 in the paper; None makes it int(cells lam), at least 1.
        network: the network whose last feature map is the attention: a module, or
            :class:`mixaug.ModelSignals` that say where the map is. It is frozen in place and always runs in ``eval()``
            mode; it moves with the policy, but is no part of its parameters, its ``state_dict`` or its submodules.
            None asks the model in training, in ``eval()`` mode: our substitute.
        network_size: (H, W) or one side to which the images of a ``network`` are resized, bilinearly; None leaves them.
        attention: ``"mean"`` over the channels of the map, or the ``"last"`` channel.
        ratio: another distribution of lam, with ``k=None`` alone, for a number of cells draws none: ``"midpoint"``,
            ``"uniform"``, ``"bernoulli"``, a share, a Ratio.
        pairing: see :class:`mixaug.Policy`.
        labeling: weight of the labels: ``"area"`` (pixels really kept), ``"ratio"`` (k / cells, and the drawn lam for
            ``k=None``), ``"attention"`` and others of :mod:`mixaug.labeling` (through :class:`mixaug.MixStep`), a
            Labeling.
        per: ``"sample"`` draws for each sample, ``"pair"`` once for two samples that mix with each other; ``"batch"``
            once for all, with ``k=None`` alone.

    Raises:
        ValueError: an option out of range; when mixing, more cells than the feature map has.
        TypeError: ``network`` is no module.
    """

    needs = frozenset({"features"})
    spatial = (2,)

    def __init__(
        self,
        alpha: float = 2.0,
        k: int | None = 6,
        network: nn.Module | ModelSignals | None = None,
        network_size: int | Sequence[int] | None = 224,
        attention: Attention = "mean",
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(alpha=alpha, **shared)
        if k is not None and (alpha != 2.0 or shared.get("ratio", "beta") != "beta" or shared.get("per") == "batch"):
            given = {"alpha": alpha, "ratio": shared.get("ratio", "beta")}
            without = [f"{name}={shown(value)}" for name, value in given.items() if value not in (2.0, "beta")]
            without += ["per='batch'"] if self.per == "batch" else []
            raise ValueError(f"AttentiveMix draws no share with k={k}: leave out {', '.join(without)}, or take k=None")
        check_choice("AttentiveMix", "attention", attention, get_args(Attention))
        self.k = None if k is None else check_whole("AttentiveMix", "k", k)
        self.attention: Attention = attention
        self.network_size = _size_option(network_size)
        if network is None and network_size is not None:
            check_read(self, "without a network asks the model for the batch's own images", network_size=network_size)
        self.hold_network(network, "features")

    def sample(self, batch: Batch, partner: Tensor, draws: Draws) -> Plan:
        attention = feature_attention(self._features(batch), self.attention)
        count = attention[0].numel()
        if self.k is None:
            lam = self.ratio(draws)
            kept: int | Tensor = (lam * count).long().clamp(1, count)
        else:
            kept = self.k
            lam = torch.full((1,), self.k / count, device=batch.device, dtype=wide_dtype(batch.device))
        return MaskBlend(
            partner=partner,
            lam=lam.float(),
            size=batch.size,
            mask=cells_to_size(attentive_cells(attention, kept).squeeze(1), batch.size),
        )

    def _features(self, batch: Batch) -> Tensor:
        height, width = batch.size
        if self.network is None:
            if batch.signals is None:
                raise ValueError("AttentiveMix needs features of the model: pass signals=, or network= when making it")
            return batch.signals.features(size=(height, width)).detach()
        images = batch.images.detach()
        size = self.network_size or (height, width)
        weight = next((p for p in self.network.parameters() if p.is_floating_point()), images)
        if size != (height, width):
            images = F.interpolate(single_precision(images), size, mode="bilinear", align_corners=False)
        signals = self.network_signals()
        assert signals is not None  # there is a network
        return signals.of(images.to(weight.dtype)).features(size=size)


def _size_option(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    sides = check_whole_numbers("AttentiveMix", "network_size", size, most=2**13, reason="no network takes such images")
    if len(sides) > 2:
        raise ValueError(f"AttentiveMix expects network_size as a side, (H, W) or None, got {size!r}")
    return sides[0], sides[-1]


def _check_cells(what: str, name: str, values: Tensor, shape: str) -> None:
    if not isinstance(values, Tensor) or not values.is_floating_point():
        came = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"{what} expects {name} {shape} floating point, got {came}")
    if values.ndim != shape.count(",") + 1 or not values.numel():
        raise ValueError(f"{what} expects {name} {shape}, got {tuple(values.shape)}")
