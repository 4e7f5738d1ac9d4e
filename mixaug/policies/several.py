"""Mixtures of more than two samples: weighted means, and regions that divide an image among them.

``sources=k`` mixes k samples, the sample itself first. Their shares come from Dirichlet(alpha, ..., alpha), which for
two is Beta(alpha, alpha), and each of the others from a pairing drawn anew, so that one sample may stand in a mixture
twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixaug.batch import Batch
from mixaug.checks import check_whole, shown
from mixaug.draws import Draws
from mixaug.ops.layout import check_blends, deliver, take_rows
from mixaug.ops.parts import in_parts
from mixaug.ops.resample import cast_pixels
from mixaug.pairing import Contradicting, Own, Reversed, Shift
from mixaug.plan import Plan
from mixaug.policy import Policy

__all__ = ["Regions", "WeightedSources"]

#: Labelings that know how much each of many sources shows; the others are of pairs.
LABELINGS = ("area", "ratio")

#: These pairings give a sample the same partner whenever they are asked.
SAME_AGAIN = (Contradicting, Own, Reversed, Shift)


def check_sources(policy: Policy, sources: int, options: Mapping[str, Any]) -> int:
    """The number of samples in a mixture, for the ``__init__`` of a policy after that of its base.

    A policy of more than two then says that it ``pairs_again``.

    Args:
        policy: with what its base has set.
        sources: 2 to 64.
        options: that were given by name: with more than two sources those are refused that are about pairs.

    Raises:
        ValueError: another number, or an option that is about pairs.
    """
    what = type(policy).__name__
    sources = check_whole(what, "sources", sources, least=2, most=64)
    if sources == 2:
        return sources
    labeling = options.get("labeling", LABELINGS[0])
    refused = {
        "ratio": options.get("ratio", "beta") != "beta" and "shares come from a Dirichlet distribution",
        "per": policy.per == "pair" and "no two samples are each other's only partners",
        "partners": policy.partners is not None and "all come from the batch",
        "labeling": not (isinstance(labeling, str) and labeling in LABELINGS) and "other rules are for pairs",
        "pairing": isinstance(policy.pairing, SAME_AGAIN) and "it would give the same partner again",
    }
    for option, reason in refused.items():
        if reason:
            raise ValueError(
                f"{what} mixes more than pairs with sources={sources}, so that {option}={shown(options[option])} is "
                f"refused: {reason}"
            )
    policy.pairs_again = True
    return sources


def rows_of(policy: Policy, sources: int, batch: Batch, partner: Tensor, draws: Draws) -> Tensor:
    """(B, sources) int64 rows of the batch: the sample itself, its partner, and others drawn anew."""
    own = torch.arange(len(batch), device=batch.device)
    return torch.stack([own, partner, *(policy.pairing(batch, draws) for _ in range(sources - 2))], 1)


def weighted_mean(images: Tensor, sources: Tensor, shares: Tensor) -> Tensor:
    """``sum_m shares[:, m] * images[sources[:, m]]``; half precision and uint8 are computed in float32.

    Args:
        images: (B, ...) floating point or uint8.
        sources: (B, M) int64, the sample itself in the first column.
        shares: (B, M) or (1, M) floating.

    Returns:
        (B, ...) of the dtype of ``images``.
    """
    wide = images if images.dtype in (torch.float32, torch.float64) else images.float()

    def mean(own: Tensor, sources: Tensor, shares: Tensor) -> Tensor:
        total: Tensor | None = None
        # One pass for each of a few sources needs no (B, M, ...) copy of the images.
        for column in range(sources.shape[1]):
            share = shares[:, column].to(wide.dtype).reshape(-1, *([1] * (images.ndim - 1)))
            term = share * (own if column == 0 else wide.index_select(0, sources[:, column]))
            total = term if total is None else total + term
        return cast_pixels(own if total is None else total, images.dtype)

    every = shares.expand(len(images), -1)
    return in_parts(mean, wide, sources, every, bytes_per_row=wide[:1].numel() * wide.element_size())


def shares_of_regions(regions: Tensor, sources: int) -> Tensor:
    """(R, sources) float32 share of the pixels of each region.

    Args:
        regions: (R, *size) integer, from 0 to ``sources - 1``.
        sources: number of regions.
    """
    number = torch.arange(sources, device=regions.device, dtype=regions.dtype)
    return (regions.flatten(1)[:, None] == number[:, None]).float().mean(2)


@dataclass(frozen=True, kw_only=True)
class WeightedSources(Plan):
    """A weighted mean of several rows of the batch.

    Attributes:
        rows_in: (B, M) int64 rows that went into each sample, the sample itself first.
        shares: (R, M) float32.
    """

    rows_in: Tensor
    shares: Tensor

    @property
    def sources(self) -> Tensor:
        return self.rows_in

    def mix(self, tensor: Tensor, *, out: Tensor | None = None, inplace: bool = False) -> Tensor:
        check_blends(tensor)
        return deliver(weighted_mean(tensor, self.rows_in, self.shares), tensor, out, inplace)


@dataclass(frozen=True, kw_only=True)
class Regions(Plan):
    """Every pixel shows one of several rows of the batch.

    Attributes:
        rows_in: (B, M) int64 rows that went into each sample, the sample itself first.
        regions: (R, *size) int64, the column of ``rows_in`` that a pixel shows.
    """

    rows_in: Tensor
    regions: Tensor

    @property
    def sources(self) -> Tensor:
        return self.rows_in

    def area(self) -> Tensor:
        return self.own_mask().flatten(1).float().mean(1)

    def own_mask(self) -> Tensor:
        return self.regions == 0

    def mix(self, tensor: Tensor, *, out: Tensor | None = None, inplace: bool = False) -> Tensor:
        return deliver(paste_regions(tensor, self.rows_in, self.regions, self.size), tensor, out, inplace)


def paste_regions(tensor: Tensor, sources: Tensor, regions: Tensor, size: Sequence[int]) -> Tensor:
    """Copy each region from its source.

    Args:
        tensor: (B, ..., *size), any dtype.
        sources: (B, M) int64, the sample itself in the first column.
        regions: (R, *size) integer column of ``sources``.
        size: spatial size.

    Raises:
        ValueError: a tensor of another size.
    """
    if tuple(tensor.shape[tensor.ndim - len(size) :]) != tuple(size):
        raise ValueError(f"regions of size {tuple(size)} do not fit a tensor of shape {tuple(tensor.shape)}")
    places = regions.reshape(len(regions), *([1] * (tensor.ndim - 1 - len(size))), *size)
    result = tensor
    for column in range(1, sources.shape[1]):
        result = torch.where(places == column, take_rows(tensor, sources[:, column]), result)
    return result
