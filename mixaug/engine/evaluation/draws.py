"""Random numbers that belong to a sample: the same whatever the batch, the device, the order, the number of processes.

Models can be compared only on the same masks and the same random starts. A number is a hash of (seed, purpose, sample,
element), the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), computed in wrapping 64-bit integers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mixaug.engine.distributed import stream_seed

__all__ = ["sample_integers", "sample_order", "sample_uniforms"]

_GAMMA = -7046029254386353131  # 2**64 / golden ratio, as a signed number
_FIRST, _SECOND = -4658895280553007687, -7723592293110705685


def sample_uniforms(samples: Tensor, shape: Sequence[int], seed: int, purpose: str) -> Tensor:
    """Independent numbers from U[0, 1) for each sample.

    Args:
        samples: (B,) int64 numbers of the samples in their set, on any device.
        shape: shape of what one sample gets.
        seed: any integer.
        purpose: what the numbers are for; those of other purposes are unrelated.

    Returns:
        (B, *shape) float32, multiples of 2**-24.
    """
    bits = _hashed(samples, math.prod(shape), seed, purpose)
    return _logical_shift(bits, 40).to(torch.float32).mul_(2.0**-24).reshape(len(samples), *shape)


def sample_integers(samples: Tensor, count: int, most: int, seed: int, purpose: str) -> Tensor:
    """(B, count) int64 numbers in [0, most), most <= 2**31; further arguments as `sample_uniforms`."""
    bits = _logical_shift(_hashed(samples, count, seed, purpose), 32)
    return _logical_shift(bits * most, 32)


def sample_order(samples: Tensor, count: int, seed: int, purpose: str) -> Tensor:
    """A random order of 0 ... count - 1 for each sample, (B, count) int64; further arguments as `sample_uniforms`."""
    return _hashed(samples, count, seed, purpose).argsort(dim=1, stable=True)


def _hashed(samples: Tensor, count: int, seed: int, purpose: str) -> Tensor:
    if samples.ndim != 1 or samples.dtype != torch.int64:
        raise ValueError(f"samples expects (B,) int64 numbers, got {tuple(samples.shape)} {samples.dtype}")
    own = _mixed(samples * _GAMMA + stream_seed(seed, f"evaluation/{purpose}"))
    elements = torch.arange(1, count + 1, device=samples.device) * _GAMMA
    return _mixed(own[:, None] + elements)


def _mixed(x: Tensor) -> Tensor:
    x = (x ^ _logical_shift(x, 30)) * _FIRST
    x = (x ^ _logical_shift(x, 27)) * _SECOND
    return x ^ _logical_shift(x, 31)


def _logical_shift(x: Tensor, bits: int) -> Tensor:
    """Shift to the right with zeros coming in; torch's own keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
