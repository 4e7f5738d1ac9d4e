"""Layers and maps that the blocks of learned mixers share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["learned_mask"]

Upsampling = Literal["nearest", "bilinear"]


def attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """``softmax(query key^T / sqrt(D)) value``.

    Args:
        query, key: (B, N, D) floating point.
        value: (B, N, V).

    Returns:
        (B, N, V).
    """
    # On a CPU torch has no kernel for values narrower than the keys that would spare the (N, N) weights.
    if value.device.type == "cpu":
        scores = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
        return torch.softmax(scores, -1) @ value
    return fused_attention(query, key, value)


def fused_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """:func:`attended` by torch's fused kernels, which never write the (N, N) weights."""
    width = value.shape[-1]
    # The fused kernels take only widths that are multiples of 8.
    value = F.pad(value, (0, -width % 8))
    found = F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])
    return found[:, 0, :, :width]


def learned_mask(logits: Tensor, size: Sequence[int], upsampling: Upsampling = "nearest") -> Tensor:
    """Own share of every pixel from the logits of the partner's share at the cells.

    Args:
        logits: (B, h, w).
        size: (H, W) of the images.
        upsampling: of the logits, before the sigmoid.

    Returns:
        (B, H, W) in (0, 1).
    """
    return torch.sigmoid(-upsampled(logits, size, upsampling))


def upsampled(logits: Tensor, size: Sequence[int], upsampling: Upsampling) -> Tensor:
    """(..., h, w) to (..., H, W), without aligned corners."""
    planes = logits.reshape(1, -1, *logits.shape[-2:])
    options = {} if upsampling == "nearest" else {"align_corners": False}
    return F.interpolate(planes, size=tuple(size), mode=upsampling, **options).reshape(*logits.shape[:-2], *size)


def start_small(block: nn.Module) -> None:
    """Weights of all convolutions from normal(0, 0.01), biases 0: a mask of one half nearly everywhere."""
    for layer in block.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.01)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def with_channel(maps: Tensor, values: Tensor) -> Tensor:
    """(B, C, h, w) with one more channel that holds ``values`` (B,) or (1,)."""
    channel = values.to(maps.dtype).reshape(-1, 1, 1, 1).expand(len(maps), 1, *maps.shape[2:])
    return torch.cat([maps, channel], 1)


def tokens(maps: Tensor) -> Tensor:
    """(B, C, h, w) as (B, h * w, C)."""
    return maps.flatten(2).transpose(1, 2)
