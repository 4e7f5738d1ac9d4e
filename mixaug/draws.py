"""All randomness of a policy: one object that knows the generator and how often to draw."""

from __future__ import annotations

import contextlib
import itertools
import operator
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Generator, Tensor

from mixaug.ops.layout import wide_dtype
from mixaug.streams import rank_generator

Per = Literal["sample", "batch", "pair"]
T = TypeVar("T")

# Gamma(0.5) falls below the smallest float32, which devices without float64 compute in, once in 1e19 draws.
SMALLEST_DIRECT_SHAPE = 0.5

# Each thread has its own.
_given = threading.local()

# torch 2.11 has no rule for the shape of Gamma variates, without which it traces no draw of them; later releases bring
# one. The rule computes nothing: values and stream are those of torch's operator, in a graph too.
_rules = torch.library.Library("aten", "IMPL")
if not torch._C._dispatch_has_kernel_for_dispatch_key("aten::_standard_gamma", "Meta"):

    def _gamma_is_like_its_shape(shape: Tensor, generator: Generator | None = None) -> Tensor:
        return torch.empty_like(shape)

    _rules.impl("_standard_gamma", _gamma_is_like_its_shape, "Meta")


@contextlib.contextmanager
def host_choices(*numbers: float) -> Iterator[None]:
    """Make the choices that policies leave to the host (:meth:`Draws.host_uniform`) in place of the generator.

    A CUDA graph holds one choice: capture one for each, and draw which to replay.

    Args:
        *numbers: in [0, 1), one for each choice of the calls inside, in their order; further ones are left over.

    Raises:
        ValueError: a number outside [0, 1).

    Example:
        >>> import torch, mixaug
        >>> policy = mixaug.create("puzzlemix", block_nums=(2, 4))
        >>> with host_choices(0.75):  # the second half of [0, 1) stands for the second of two numbers of blocks
        ...     plan = policy.draw(torch.rand(4, 3, 8, 8), signals=mixaug.Signals(saliency=torch.rand(4, 8, 8)))
        >>> plan.blocks.shape
        torch.Size([4, 4, 4])
    """
    for number in numbers:
        if not 0 <= number < 1:
            raise ValueError(f"host_choices expects numbers in [0, 1), got {number!r}")
    before = getattr(_given, "numbers", None)
    _given.numbers = list(numbers)
    try:
        yield
    finally:
        _given.numbers = before


#: Ways that are tried one by one; of more, as many are drawn.
MOST_WAYS = 64


def mean_over_choices(run: Callable[[], Sequence[float]]) -> tuple[float, ...]:
    """The expectation of numbers over the choices that policies leave to the host, each by its declared chance.

    Every way in which the choices of a run can fall (:meth:`Draws.host_choice`) is run once. Where there are more than
    64 ways, such as those of many draws of a batch, 64 are drawn at random, and the result is their mean. Which of
    several grids or stages is taken (:meth:`Draws.host_integer`) is drawn each time.

    Args:
        run: does the same each time, its choices apart, and gives the numbers. All other draws are its own affair.

    Returns:
        As many numbers as ``run`` gives.

    Example:
        >>> import torch
        >>> mean_over_choices(lambda: [10.0 * Draws(2, torch.device("cpu"), None).host_choice([0.25, 0.75])])
        (7.5,)
    """
    shares: list[float] = []
    found: list[Sequence[float]] = []
    script: list[int] | None = []
    while script is not None and len(found) < MOST_WAYS:
        choices = _Choices(script)
        found.append(_run_with(choices, run))
        shares.append(choices.chance)
        script = choices.next()
    if script is not None:
        drawn = random.Random(0)
        found = [_run_with(_Choices([], drawn), run) for _ in range(MOST_WAYS)]
        shares = [1 / MOST_WAYS] * MOST_WAYS
    return tuple(sum(map(operator.mul, shares, values)) for values in zip(*found, strict=True))


class _Choices:
    """The choices of one run: those of a script, and behind it the first of what can happen, or one at random."""

    def __init__(self, script: Sequence[int], drawn: random.Random | None = None) -> None:
        self.script, self.drawn = script, drawn
        self.chance = 1.0
        self.made: list[tuple[int, Sequence[float]]] = []

    def choose(self, chances: Sequence[float]) -> int:
        place = len(self.made)
        if place < len(self.script):
            index = self.script[place]
        elif self.drawn is not None:
            index = self.drawn.choices(range(len(chances)), chances)[0]
        else:
            index = next(i for i, chance in enumerate(chances) if chance > 0)
        self.chance *= chances[index]
        self.made.append((index, chances))
        return index

    def next(self) -> list[int] | None:
        """The script of the next way, None behind the last one."""
        for place in range(len(self.made) - 1, -1, -1):
            index, chances = self.made[place]
            for other in range(index + 1, len(chances)):
                if chances[other] > 0:
                    return [*(made for made, _ in self.made[:place]), other]
        return None


def _choices_given() -> _Choices | None:
    # What belongs to a thread breaks the graph of a compiled step, in which nobody gives choices.
    return None if torch.compiler.is_compiling() else getattr(_given, "choices", None)


def _run_with(choices: _Choices, run: Callable[[], T]) -> T:
    before = _choices_given()
    _given.choices = choices
    try:
        return run()
    finally:
        _given.choices = before


@contextlib.contextmanager
def as_default_stream(generator: Generator) -> Iterator[None]:
    """Let calls without a generator draw from this one: the default stream of its device goes on from where it stands.

    What is compiled cannot take a generator. Afterwards the generator has moved on as if it had been passed, and the
    default stream is where it was. On a GPU neither waits for the device.
    """
    device = generator.device
    if device.type == "cuda":
        default = torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    else:
        default = torch.default_generator
    before = default.get_state()
    default.set_state(generator.get_state())
    try:
        yield
    finally:
        generator.set_state(default.get_state())
        default.set_state(before)


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
        self.batch: Any = None

    def pair_with(self, partner: Tensor, batch: Any = None) -> None:
        """Make ``partner``, (B,) int64, known; with ``per="pair"`` later draws are shared by each pair.

        Args:
            partner: row that each sample is mixed with.
            batch: the :class:`mixaug.Batch`, which a Ratio may look at beside ``partner``.
        """
        self.partner, self.batch = partner, batch

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
        host knows; the stream moves on by one draw. Other devices are waited for. Inside :func:`host_choices` the next
        of the numbers given there.

        Raises:
            RuntimeError: a CUDA graph is being captured, or :func:`host_choices` gave too few numbers.
        """
        given: list[float] | None = getattr(_given, "numbers", None)
        if given is not None:
            if not given:
                raise RuntimeError("the policy chooses on the host once more: give host_choices another number")
            return given.pop(0)
        if self.device.type == "cuda" and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "the policy chooses on the host what it launches (a member, a stage, a number of blocks), and a CUDA "
                "graph would repeat that choice for ever: leave it one choice (block_nums=4, say), or capture a graph "
                "for each, `with mixaug.draws.host_choices(number): policy(...)`, and choose which to replay"
            )
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

    def host_choice(self, chances: Sequence[float]) -> int:
        """The number of one of several things that Python code may branch on, each with its chance.

        Args:
            chances: not negative, of sum 1; see :meth:`host_uniform`, of which this takes one.
        """
        choices = _choices_given()
        if choices is not None:
            return choices.choose(chances)
        unit = self.host_uniform()
        return sum(unit >= passed for passed in itertools.accumulate(chances[:-1]))

    def host_integer(self, high: int) -> int:
        """One integer in 0, ..., high - 1 that Python code may branch on; see :meth:`host_uniform`."""
        return min(int(self.host_uniform() * high), high - 1)

    @property
    def choices_are_given(self) -> bool:
        """Whether :func:`mean_over_choices` makes the choices of whole batches, which are then asked for."""
        return _choices_given() is not None

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

    def dirichlet(self, alpha: float, count: int) -> Tensor:
        """(R, count) from the symmetric Dirichlet distribution, rows sum to 1; ``alpha`` any positive number."""
        size, dtype = (self._rows(None), count), wide_dtype(self.device)
        if alpha >= 1.0:
            gamma = torch._standard_gamma(
                torch.full(size, alpha, device=self.device, dtype=dtype), generator=self.generator
            )
            return self._shared(gamma / gamma.sum(1, keepdim=True), None)
        # In logarithms, as in `beta`, so that small parameters do not underflow.
        return self._shared(self.log_gamma_variates(alpha, size).softmax(1), None)

    def log_gamma_variates(self, concentration: float, size: Sequence[int]) -> Tensor:
        """Logarithms of Gamma(concentration) variates, of any shape; whoever calls says what ``per`` means for them."""
        dtype = wide_dtype(self.device)
        shapes = torch.full(size, concentration + 1, device=self.device, dtype=dtype)
        gamma = torch._standard_gamma(shapes, generator=self.generator)
        unit = torch.rand(size, **self._given, device=self.device, dtype=dtype)
        # Gamma(a) = Gamma(a + 1) U^(1/a). 1 - U lies in (0, 1]: its logarithm is finite.
        return gamma.log() + torch.log1p(-unit) / concentration

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
