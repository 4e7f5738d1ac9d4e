"""Partners in the batch by chance or by order."""

from __future__ import annotations

import torch
from torch import Tensor

from mixaug.batch import Batch
from mixaug.draws import Draws
from mixaug.pairing.base import PoolPairing


class AnyRow:
    """Any row of a training set of ``count`` rows, with replacement."""

    wants_rows = False

    def __init__(self, count: int) -> None:
        self.count = count

    def draw(self, batch: Batch, draws: Draws, rows: Tensor | None = None) -> Tensor:
        """(B,) int64 rows of the training set."""
        return draws.integers(0, self.count, per="sample")


class Permutation:
    """A uniformly random permutation, as in most published code. On average one sample meets itself."""

    involution = False

    def fit(self, labels: Tensor, inputs: Tensor | None = None) -> PoolPairing:
        """Over a training set of N labels: any of its rows, with replacement."""
        return AnyRow(labels.shape[0])

    def __call__(self, batch: Batch, draws: Draws) -> Tensor:
        return draws.permutation()


class Derangement:
    """A random permutation that is one single cycle: nobody meets itself, and, in a batch of three or
    more, no two samples meet each other. Uniform over such permutations.

    What Midpoint Mixup (arXiv:2210.13512) wants, where mutual pairs would be identical samples.
    """

    involution = False

    def __call__(self, batch: Batch, draws: Draws) -> Tensor:
        order = draws.permutation()
        return torch.empty_like(order).scatter_(0, order, order.roll(-1))


class Reversed:
    """Sample i with sample B - 1 - i, as timm does. The middle sample of an odd batch meets itself."""

    involution = True

    def __call__(self, batch: Batch, draws: Draws) -> Tensor:
        return torch.arange(draws.batch_size - 1, -1, -1, device=draws.device)


class Shift:
    """Sample i with sample i - 1, as torchvision does: as good as random behind a shuffled loader."""

    involution = False

    def __call__(self, batch: Batch, draws: Draws) -> Tensor:
        return torch.arange(draws.batch_size, device=draws.device).roll(1)


class RandomPairs:
    """A uniformly random matching: the batch falls into pairs that mix with each other.

    In an odd batch one sample meets itself.
    """

    involution = True

    def __call__(self, batch: Batch, draws: Draws) -> Tensor:
        order = draws.permutation()
        return torch.empty_like(order).scatter_(0, order, order.flip(0))


class Halves:
    """Every sample of the first half with one of the second, and the other way round, at random and without repetition.

    For batches whose halves come from two domains each (MixStyle across domains, arXiv:2107.02053). In an odd batch one
    sample of the second half, which is the larger, meets itself.
    """

    involution = False

    def __call__(self, batch: Batch, draws: Draws) -> Tensor:
        half = draws.batch_size // 2
        keys = draws.uniform(per="sample")
        first, second = keys[:half].argsort(), keys[half:].argsort()[:half] + half
        partner = torch.arange(draws.batch_size, device=draws.device)
        partner[:half] = second
        # The order of the first half has nothing to do with who was chosen for it.
        return partner.scatter_(0, second, first)


class Own:
    """Every sample with itself: with :class:`mixaug.partners.View`, with another augmentation of the same image.

    Within a batch nothing is mixed then.
    """

    involution = True

    def __call__(self, batch: Batch, draws: Draws) -> Tensor:
        return torch.arange(draws.batch_size, device=draws.device)
