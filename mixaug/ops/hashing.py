"""Random numbers for tensors whose shape is known only where they are mixed: a function of a seed and a place.

A plan holds the seeds, which are drawn with everything else. The same seeds give the same numbers on every device, in
compiled code, and when activation checkpointing runs a stage again; no generator is touched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["hashed_normal", "hashed_uniform"]

#: Seeds lie below this number.
SEEDS = 2**31 - 1
#: Odd factors of the two multiplications, as signed 32-bit integers.
FACTORS = (0x7FEB352D, 0x846CA68B - 2**32)
#: Lengths of the shifts before, between and after the multiplications.
SHIFTS = (16, 15, 16)
#: Number of bits of a result: the middles of as many intervals are exact in float32.
BITS = 23


def hashed_uniform(seeds: Tensor, shape: Sequence[int]) -> Tensor:
    """Uniform numbers in (0, 1), the middles of 2^23 intervals.

    Args:
        seeds: (R,) int64 in [0, 2^31 - 1).
        shape: of the numbers of one seed.

    Returns:
        (R, *shape) float32.
    """
    count = math.prod(shape)
    # Places are hashed before a seed is added, or two seeds would give one sequence at two offsets.
    places = _hashed(torch.arange(count, device=seeds.device, dtype=torch.int32))
    bits = _hashed(places[None] + seeds.to(torch.int32)[:, None])
    kept = bits.bitwise_right_shift_(32 - BITS).bitwise_and_(2**BITS - 1)
    return kept.float().add_(0.5).mul_(2.0**-BITS).reshape(len(seeds), *shape)


def hashed_normal(seeds: Tensor, shape: Sequence[int]) -> Tensor:
    """Standard normal numbers, within 5.3 of 0.

    Args:
        seeds: (R,) int64 in [0, 2^31 - 1).
        shape: of the numbers of one seed.

    Returns:
        (R, *shape) float32.
    """
    return hashed_uniform(seeds, shape).mul_(2).sub_(1).erfinv_().mul_(math.sqrt(2))


def _hashed(values: Tensor) -> Tensor:
    """Mix the bits of int32 values, in place: the finaliser of a hash, products modulo 2^32."""
    for shift, factor in zip(SHIFTS, (*FACTORS, None), strict=True):
        # The shift of a signed integer brings in copies of the sign, which are taken away.
        values ^= (values >> shift).bitwise_and_(2 ** (32 - shift) - 1)
        if factor is not None:
            values *= factor
    return values
