"""All randomness of a policy: one object that knows the generator and how often to draw."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from mixaug.ops.layout import wide_dtype
from mixaug.streams import rank_generator

Per = Literal["sample", "batch", "pair"]

# Gamma(0.5) falls below the smallest float32, which devices without float64 compute in, once in 1e19 draws.
SMALLEST_DIRECT_SHAPE = 0.5


class Draws:
    """Random numbers for one batch, R rows of them.

    R is the batch size for ``per="sample"``, and 1 for ``per="batch"``, where one row broadcasts
    over the batch. For ``per="pair"`` there is a row for each sample and both members of a pair see
    the same row.

    Args:
        batch_size: B.
        device: where the numbers are made.
        generator: source of every number; None takes torch's default one of the device, with the rank folded in where
            several processes run, see :func:`mixaug.streams.rank_generator`.
        per: how often to draw.
    """

    def __init__(
        self, batch_size: int, device: torch.device, generator: Generator | None = None, per: Per = "sample"
    ) -> None:
        self.batch_size = batch_size
        self.device = device
        generator = rank_generator(device) if generator is None else generator
        self.generator = generator
        # The argument is passed only where there is a generator: beside it, even as None, torch traces no draw of a
        # symbolic size.
        self._given: dict[str, Any] = {} if generator is None else {"generator": generator}
        self.per: Per = per
        self.partner: Tensor | None = None

    def pair_with(self, partner: Tensor) -> None:
        """Make ``partner``, (B,) int64, known; with ``per="pair"`` later draws are shared by each pair."""
        self.partner = partner

    def uniform(
        self,
        low: float | Tensor = 0.0,
        high: float | Tensor = 1.0,
        shape: Sequence[int] = (),
        *,
        dtype: torch.dtype | None = None,
        per: Per | None = None,
    ) -> Tensor:
        """(R, *shape) uniform in [low, high). ``per`` overrides the policy's setting for this draw."""
        dtype = dtype or wide_dtype(self.device)
        size = (self._rows(per), *shape)
        unit = self._shared(torch.rand(size, **self._given, device=self.device, dtype=dtype), per)
        if isinstance(low, float) and isinstance(high, float) and (low, high) == (0.0, 1.0):
            return unit
        return low + (high - low) * unit

    def normal(
        self, shape: Sequence[int] = (), *, dtype: torch.dtype = torch.float32, per: Per | None = None
    ) -> Tensor:
        """(R, *shape) standard normal."""
        size = (self._rows(per), *shape)
        return self._shared(torch.randn(size, **self._given, device=self.device, dtype=dtype), per)

    def integers(self, low: int, high: int, shape: Sequence[int] = (), *, per: Per | None = None) -> Tensor:
        """(R, *shape) int64, uniform in low, ..., high - 1."""
        size = (self._rows(per), *shape)
        return self._shared(torch.randint(low, high, size, **self._given, device=self.device), per)

    def host_uniform(self) -> float:
        """One number in [0, 1) that Python code may branch on, without waiting for a device.

        On a CPU the next draw of the stream. On a CUDA device a function of the stream's seed and position, which the
        host knows; the stream moves on by one draw. Other devices are waited for.
        """
        if self.device.type != "cuda":
            return float(torch.rand((), **self._given, device=self.device))
        generator = self.generator
        if generator is None and torch.cuda.is_available():
            index = torch.cuda.current_device() if self.device.index is None else self.device.index
            generator = torch.cuda.default_generators[index]
        # Without a GPU, tensors that only pretend to lie on one still get a number.
        seed = torch.initial_seed() if generator is None else generator.initial_seed()
        offset = 0 if generator is None else generator.get_offset()
        torch.rand(1, **self._given, device=self.device)
        return random.Random(f"{seed} {offset}").random()

    def host_integer(self, high: int) -> int:
        """One integer in 0, ..., high - 1 that Python code may branch on; see :meth:`host_uniform`."""
        return min(int(self.host_uniform() * high), high - 1)

    def pixels(self, size: Sequence[int]) -> Tensor:
        """(R, D) int64, a pixel position uniform over an image of the given spatial size."""
        return torch.stack([self.integers(0, side) for side in size], dim=1)

    def beta(self, alpha: float, beta: float) -> Tensor:
        """(R,) from Beta(alpha, beta), for any positive parameters.

        The share of one Gamma variable in the sum of two. Where a parameter is so small that both could
        underflow to zero, the same in logarithms, with Gamma(a) = Gamma(a + 1) U^(1/a).
        """
        if alpha == beta == 1.0:
            return self.uniform()
        if min(alpha, beta) >= SMALLEST_DIRECT_SHAPE:
            gamma = torch._standard_gamma(self._shapes(alpha, beta), generator=self.generator)
            return self._shared(gamma[0] / gamma.sum(0), None)
        gamma = torch._standard_gamma(self._shapes(alpha + 1, beta + 1), generator=self.generator)
        unit = torch.rand(gamma.shape, **self._given, device=self.device, dtype=gamma.dtype)
        # 1 - U lies in (0, 1]: its logarithm is finite.
        boost = torch.log1p(-unit)
        logarithms = gamma.log()
        difference = logarithms[0] + boost[0] / alpha - logarithms[1] - boost[1] / beta
        return self._shared(torch.sigmoid(difference), None)

    def permutation(self) -> Tensor:
        """(B,) int64, uniform over all permutations of the batch."""
        # Sorting random keys needs no host and traces; float64 keys make ties impossible in practice.
        keys = torch.rand(self.batch_size, **self._given, device=self.device, dtype=wide_dtype(self.device))
        return keys.argsort()

    def _shapes(self, first: float, second: float) -> Tensor:
        """(2, R) shape parameters, made on the device without a copy from the host."""
        size, dtype = (2, self._rows(None)), wide_dtype(self.device)
        shapes = torch.full(size, first, device=self.device, dtype=dtype)
        if second != first:
            shapes[1] = second
        return shapes

    def _rows(self, per: Per | None) -> int:
        return 1 if (per or self.per) == "batch" else self.batch_size

    def _shared(self, values: Tensor, per: Per | None) -> Tensor:
        if (per or self.per) != "pair" or self.partner is None:
            return values
        own = torch.arange(self.batch_size, device=self.device)
        return values.index_select(0, torch.minimum(own, self.partner))
