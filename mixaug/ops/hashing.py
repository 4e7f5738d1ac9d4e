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
#: Odd factor of places, 2^32 over the golden ratio; as a signed 32-bit integer, as those that follow.
STRIDE = 0x9E3779B9 - 2**32
#: Each round's shift and odd factor.
ROUNDS = ((16, 0x7FEB352D), (15, 0x846CA68B - 2**32))
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
    return _hashed(seeds, shape).add_(0.5).mul_(2.0**-BITS)


def hashed_normal(seeds: Tensor, shape: Sequence[int]) -> Tensor:
    """Standard normal numbers, within 5.3 of 0.

    Args:
        seeds: (R,) int64 in [0, 2^31 - 1).
        shape: of the numbers of one seed.

    Returns:
        (R, *shape) float32.
    """
    half = 2 ** (BITS - 1)
    return _hashed(seeds, shape).add_(0.5 - half).mul_(1 / half).erfinv_().mul_(math.sqrt(2))


def _hashed(seeds: Tensor, shape: Sequence[int]) -> Tensor:
    """(R, *shape) float32 whole numbers below 2^23: the highest bits of a hash of every place and seed, modulo 2^32."""
    places = torch.arange(math.prod(shape), device=seeds.device, dtype=torch.int32) * STRIDE
    # Places are multiplied and not counted, or the numbers of two near seeds would be the same ones in another order.
    bits = places ^ seeds.to(torch.int32)[:, None]
    for shift, factor in ROUNDS:
        # The shift of a signed integer brings in copies of the sign, which are taken away.
        bits ^= (bits >> shift).bitwise_and_(2 ** (32 - shift) - 1)
        bits *= factor
    return bits.bitwise_right_shift_(32 - BITS).bitwise_and_(2**BITS - 1).float().reshape(len(seeds), *shape)
