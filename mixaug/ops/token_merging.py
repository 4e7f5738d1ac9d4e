"""Token merging (ToMe, arXiv:2210.09461): similar tokens become one, and a map tells which."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mixaug.ops.layout import single_precision
from mixaug.ops.masks import top_mask

__all__ = ["merge_tokens", "token_matching"]


def token_matching(metric: Tensor, count: int, *, class_token: bool = False) -> Tensor:
    """Merge the ``count`` most similar pairs of a token of an even place and one of an odd place.

    Every even token looks for the odd token of largest cosine; the ``count`` even tokens that found the most similar
    ones join them. What is left of the even ones comes first, then the odd ones, each in their order.

    Args:
        metric: (B, N, D) floating point, what tokens are compared by: the keys of a block of attention.
        count: tokens that go; at most half of those that may, rounded down.
        class_token: token 0 is never one of those that go.

    Returns:
        (B, N) int64, place of each token among the N - count that are left.

    Raises:
        ValueError: another shape, or more tokens than can be merged.
    """
    most = (metric.shape[1] - class_token) // 2 if metric.ndim == 3 else 0
    if metric.ndim != 3 or not metric.is_floating_point() or not 0 <= count <= most:
        raise ValueError(
            f"token_matching expects metric (B, N, D) floating point and count in [0, {most}], got "
            f"{tuple(metric.shape)} {metric.dtype} and {count}"
        )
    places = torch.arange(metric.shape[1], device=metric.device).expand(metric.shape[:2])
    if not count:
        return places.contiguous()
    rows = F.normalize(single_precision(metric.detach()), dim=-1)
    likeness = rows[:, ::2] @ rows[:, 1::2].transpose(1, 2)
    if class_token:
        likeness[:, 0] = -torch.inf
    best, friend = likeness.max(2)
    goes = top_mask(best, torch.full((1,), count, device=metric.device))
    left = best.shape[1] - count
    even = torch.where(goes, left + friend, (~goes).cumsum(1) - 1)
    odd = left + torch.arange(metric.shape[1] // 2, device=metric.device).expand(len(metric), -1)
    return torch.empty_like(places).scatter_(1, places[:, ::2], even).scatter_(1, places[:, 1::2], odd)


def merge_tokens(tokens: Tensor, places: Tensor, count: int, sizes: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean of all tokens that are merged into one, weighted by how many each stands for.

    Args:
        tokens: (B, N, D) floating point.
        places: (B, N) int64 in [0, count), from :func:`token_matching`, or several of them one after the other:
            ``second.gather(1, first)``.
        count: number of tokens that are left.
        sizes: (B, N, 1) number of tokens that each stands for; None stands for ones.

    Returns:
        (B, count, D) of the dtype of ``tokens``, and their sizes (B, count, 1).
    """
    sizes = torch.ones_like(tokens[..., :1]) if sizes is None else sizes.to(tokens.dtype)
    # A matrix product adds in the same order each time; a scatter of floats on a GPU does not.
    members = (places[:, None] == torch.arange(count, device=places.device)[:, None]).to(tokens.dtype)
    total = members @ sizes
    return members @ (tokens * sizes) / total.clamp(min=1), total
