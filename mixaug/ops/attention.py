"""Attention read from the queries and keys of a block, so that the block itself may use a fused kernel.

All functions compute in float32 (float64 for float64 input), whatever autocast says, and average over the heads:
softmax(scale * q k^T), the attention before dropout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mixaug.ops.layout import single_precision

__all__ = [
    "attended",
    "attention_lam",
    "class_attention",
    "mask_at_tokens",
    "progressive_factor",
    "progressive_lam",
    "received_attention",
    "token_label_share",
    "token_label_shares",
]


class Propagates(Protocol):
    """Attention of one block that multiplies without being stored: :class:`mixaug.signals.recorder.BlockAttention`."""

    def times(self, values: Tensor) -> Tensor: ...


def class_attention(query: Tensor, key: Tensor, scale: float, prefix: int, token: int = 0) -> Tensor:
    """What one token, by default the class token, gives to every image token.

    Args:
        query: (B, heads, N, D).
        key: (B, heads, N, D); the first ``prefix`` tokens are no image tokens.
        scale: factor of the products before the softmax.
        prefix: number of class, distillation and register tokens.
        token: whose attention is read, below ``prefix``.

    Returns:
        (B, N - prefix) float32, not renormalised: what goes to the prefix tokens is missing from the sum.
    """
    with torch.autocast(query.device.type, enabled=False):
        row = single_precision(query[:, :, token : token + 1]) @ single_precision(key).transpose(-2, -1)
        return (row * scale).softmax(-1)[:, :, 0, prefix:].mean(1)


def received_attention(query: Tensor, key: Tensor, scale: float, prefix: int) -> Tensor:
    """What every image token receives, on average over all image tokens (SMMix, arXiv:2212.12977).

    Args and returns as of :func:`class_attention`. One head at a time: memory O(B N^2).
    """
    total: Tensor | None = None
    with torch.autocast(query.device.type, enabled=False):
        for q, k in zip(query.unbind(1), key.unbind(1), strict=True):
            scores = single_precision(q[:, prefix:]) @ single_precision(k).transpose(-2, -1)
            received = (scores * scale).softmax(-1)[:, :, prefix:].mean(1)
            total = received if total is None else total + received
    assert total is not None  # a block has heads
    return total / query.shape[1]


def attended(query: Tensor, key: Tensor, scale: float, values: Tensor) -> Tensor:
    """Attention, averaged over the heads, times ``values`` (B, N): (B, N). The N x N matrix is never stored
    where torch has a fused kernel."""
    with torch.autocast(query.device.type, enabled=False):
        q, k = single_precision(query), single_precision(key)
        # Fused kernels want values as wide as the keys, and their own memory.
        v = values.to(q.dtype)[:, None, :, None].expand(-1, q.shape[1], -1, q.shape[-1]).contiguous()
        return F.scaled_dot_product_attention(q, k, v, scale=scale)[..., 0].mean(1)


def square_grid(count: int, size: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of ``count`` tokens that tile an image of ``size`` (H, W) in its proportions.

    Raises:
        ValueError: no grid of the image's proportions has that many cells.
    """
    rows = max(round(math.sqrt(count * size[0] / size[1])), 1)
    if count % rows:
        raise ValueError(
            f"{count} image tokens do not form a grid over images of {size[0]} x {size[1]}; pass attention (B, h, w)"
        )
    return rows, count // rows


def mask_at_tokens(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """The mask at the top-left pixel of every token: row floor(i H / h), column floor(j W / w) for token i, j.

    Args:
        mask: (R, 1, H, W) or (R, H, W), any dtype; a mask of the grid's own size stays as it is.
        grid: (h, w) tokens.

    Returns:
        (R, h, w) of the mask's dtype.

    Raises:
        ValueError: a mask of another shape.
    """
    if mask.ndim == 4 and mask.shape[1] == 1:
        mask = mask[:, 0]
    if mask.ndim != 3 or mask.numel() == 0:
        raise ValueError(f"mask expects (R, 1, H, W) or (R, H, W), not empty, got {tuple(mask.shape)}")
    for axis, count in enumerate(grid, start=1):
        place = torch.arange(count, device=mask.device) * mask.shape[axis] // count
        mask = mask.index_select(axis, place)
    return mask


def attention_lam(
    attention: Tensor, mask: Tensor, lam: Tensor | None = None, *, attention_share: float = 0.5
) -> Tensor:
    """Own weight of TransMix (arXiv:2111.09833): the share of the attention that falls on the own image's tokens.

        share = sum(m a) / (sum(m a) + sum((1 - m) a)),   weight = attention_share share + (1 - attention_share) lam

    The attention's scale has no say. A sample whose attention sums to zero or is not finite gets ``lam``, without one
    the mean of its mask.

    Args:
        attention: (B, N) or (B, h, w) floating point >= 0, to the image tokens alone (:func:`class_attention`).
        mask: share of the own image in [0, 1], any dtype: (B, 1, H, W) or (B, H, W) per pixel, read at one pixel of
            each token by :func:`mask_at_tokens`, or (B, N) per token. One row serves the whole batch.
        lam: (B,) or (1,) floating point, share of the own area; None gives the attention's share alone.
        attention_share: weight of the attention beside ``lam``, in [0, 1]; the authors' code has 1/2, their paper 1.

    Returns:
        (B,) float32 in [0, 1].

    Raises:
        ValueError: shapes that do not fit, N tokens that form no grid of the mask's proportions.
        TypeError: attention or lam that is not floating point.
    """
    weights, own = _rows_at_tokens("attention_lam", attention, mask)
    share = (own * weights).sum(1)
    total = share + ((1 - own) * weights).sum(1)
    area = own.mean(1) if lam is None else single_precision(_share("attention_lam", lam, len(weights)))
    known = total.isfinite() & (total > 0)
    share = torch.where(known, share / torch.where(known, total, 1), area)
    return (share if lam is None else torch.lerp(area.to(share.dtype).expand_as(share), share, attention_share)).float()


def progressive_factor(targets: Tensor, logits: Tensor) -> Tensor:
    """How far the prediction agrees with a target: the cosine of ``targets`` and ``softmax(logits)``.

    Args:
        targets: (B, K) floating point >= 0.
        logits: (B, K) floating point; the softmax is taken in float32.

    Returns:
        (B,) float32 in [0, 1]; 0 for rows that are zero or not finite.

    Raises:
        ValueError: other shapes.
    """
    if targets.ndim != 2 or targets.shape != logits.shape:
        raise ValueError(
            "progressive_factor expects targets and logits of one shape (B, K), got "
            f"{tuple(targets.shape)} and {tuple(logits.shape)}"
        )
    predicted = single_precision(logits).softmax(1)
    cosine = F.cosine_similarity(single_precision(targets), predicted, dim=1)
    return cosine.nan_to_num(0.0).clamp(0, 1).float()


def progressive_lam(attention: Tensor, mask: Tensor, lam: Tensor, targets: Tensor, logits: Tensor) -> Tensor:
    """Own weight of MixPro (arXiv:2304.12043): from the area's share to the attention's as the prediction grows good.

        weight = rho share + (1 - rho) lam,   rho = cosine(targets, softmax(logits))

    Args:
        attention, mask: as of :func:`attention_lam`, which gives the share.
        lam: (B,) or (1,) floating point, share of the own area.
        targets: (B, K) floating point, the mixed labels weighted by ``lam``; smoothed by 0.1 in the published code.
        logits: (B, K) outputs for the mixed images.

    Returns:
        (B,) float32 in [0, 1].

    Raises:
        ValueError: shapes that do not fit.
        TypeError: attention or lam that is not floating point.
    """
    rho = progressive_factor(targets, logits)
    share = attention_lam(attention, mask, lam, attention_share=1.0)
    return torch.lerp(lam.float().expand_as(share), share, rho)


def token_label_shares(
    attentions: Sequence[Tensor | Propagates], token_mask: Tensor, lam: Tensor, prefix: int = 1
) -> Tensor:
    """Own share of every token's label behind the last block (TL-Align, arXiv:2210.06455).

        w <- (A w + w) / 2 in every block; w = lam for the prefix tokens, the own share of its patch for an image token

    All labels of a sample are mixtures of its own and its partner's: one number for each token says the same as a row
    of K classes.

    Args:
        attentions: of each block in their order, averaged over the heads: (B, N, N) whose rows sum to 1, or objects
            with ``times((B, N)) -> (B, N)``. Where the block has queries of the first tokens only, these alone move.
        token_mask: (B, N - prefix) or (B, h, w) in [0, 1], share of the own image; one row serves the whole batch.
        lam: (B,) floating point, own share of the area.
        prefix: number of tokens before the image tokens.

    Returns:
        (B, N) float32.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: lam that is not floating point.
    """
    tokens = token_mask.flatten(1).float()
    if token_mask.ndim not in (2, 3) or len(tokens) not in (1, len(lam)) or prefix < 0:
        raise ValueError(
            f"token_label_shares expects token_mask ({len(lam)}, N - prefix) or ({len(lam)}, h, w), or one row, and "
            f"prefix >= 0, got {tuple(token_mask.shape)} and {prefix}"
        )
    start = _share("token_label_shares", lam, len(lam)).float()[:, None].expand(-1, prefix)
    shares = torch.cat([start, tokens.expand(len(lam), -1)], 1)
    for number, attention in enumerate(attentions):
        if isinstance(attention, Tensor):
            if attention.shape != (*shares.shape, shares.shape[1]):
                raise ValueError(
                    f"token_label_shares expects attentions of shape {(*shares.shape, shares.shape[1])}, but that of "
                    f"block {number} is {tuple(attention.shape)}"
                )
            with torch.autocast(attention.device.type, enabled=False):
                moved = torch.bmm(attention.float(), shares[..., None])[..., 0]
        else:
            moved = attention.times(shares).float()
        count = moved.shape[1]
        shares = torch.cat([(moved + shares[:, :count]) / 2, shares[:, count:]], 1)
    return shares


def token_label_share(
    attentions: Sequence[Tensor | Propagates],
    token_mask: Tensor,
    lam: Tensor,
    prefix: int = 1,
    *,
    pooled: bool = False,
) -> Tensor:
    """Own weight of TL-Align: the class token's of :func:`token_label_shares`.

    Args:
        attentions, token_mask, lam, prefix: as there.
        pooled: the mean over the image tokens instead, for models whose classifier reads that.

    Returns:
        (B,) float32 in [0, 1]; ``lam`` where attention is not finite.

    Raises:
        ValueError: shapes that do not fit, or no prefix token and not ``pooled``.
        TypeError: lam that is not floating point.
    """
    if not prefix and not pooled:
        raise ValueError("token_label_share reads the first of the prefix tokens, got prefix=0; pass pooled=True")
    shares = token_label_shares(attentions, token_mask, lam, prefix)
    share = shares[:, prefix:].mean(1) if pooled else shares[:, 0]
    # Rows of a fused kernel sum to 1 up to rounding only.
    return torch.where(share.isfinite(), share, lam.float()).clamp(0, 1)


def _rows_at_tokens(what: str, attention: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Attention (B, N) and mask (R, N), both in float32 or float64."""
    if not attention.is_floating_point():
        raise TypeError(f"{what} expects floating-point attention, got {attention.dtype}")
    if attention.ndim not in (2, 3) or attention.numel() == 0:
        raise ValueError(f"{what} expects attention (B, N) or (B, h, w), not empty, got {tuple(attention.shape)}")
    if mask.ndim != 2:
        if attention.ndim == 3:
            grid = (attention.shape[1], attention.shape[2])
        else:
            grid = square_grid(attention.shape[1], mask.shape[-2:])
        mask = mask_at_tokens(mask, grid).flatten(1)
    rows = single_precision(attention).flatten(1)
    if mask.shape[0] not in (1, rows.shape[0]) or mask.shape[1] != rows.shape[1]:
        raise ValueError(
            f"{what} expects mask ({rows.shape[0]}, 1, H, W), ({rows.shape[0]}, H, W) or {tuple(rows.shape)}, or one "
            f"row, for attention {tuple(attention.shape)}; got {tuple(mask.shape)} per token"
        )
    return rows, mask.to(rows.dtype)


def _share(what: str, lam: Tensor, rows: int) -> Tensor:
    if not lam.is_floating_point():
        raise TypeError(f"{what} expects floating-point lam, got {lam.dtype}")
    if lam.ndim != 1 or lam.shape[0] not in (1, rows):
        raise ValueError(f"{what} expects lam ({rows},) or (1,), got {tuple(lam.shape)}")
    return lam
