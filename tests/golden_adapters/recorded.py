"""A policy's own code with the authors' draws: what it would draw is handed to it."""

import dataclasses

import torch

import mixaug
from mixaug.batch import Batch, MixedBatch
from mixaug.draws import Draws


class RecordedDraws(Draws):
    """Draws that were recorded: for every kind of draw its values, one call after the other."""

    def __init__(self, batch_size, **values):
        super().__init__(batch_size, torch.device("cpu"))
        self.left = {kind: list(calls) for kind, calls in values.items()}

    def _next(self, kind, *arguments, **options):
        if not self.left.get(kind):
            raise AssertionError(f"the policy draws {kind}{arguments}, of which no more was recorded")
        return self.left[kind].pop(0)

    def __getattribute__(self, name):
        if name in ("uniform", "normal", "integers", "pixels", "beta", "permutation"):
            return lambda *arguments, **options: self._next(name, *arguments, **options)
        return super().__getattribute__(name)


def mixed_as_recorded(name, images, partner, labels=None, signals=None, *, recorded, **options):
    """What ``mixaug.create(name, **options)`` makes of images with these partners and draws.

    Args:
        name: of the policy.
        images: (B, C, H, W).
        partner: (B,) int64.
        labels: (B,), or None.
        signals: mixaug.Signals, or None.
        recorded: for ``uniform``, ``normal``, ``pixels`` and other methods of Draws the values of each call.
        options: of the policy; a ratio or a labeling may be an object.

    Returns:
        A MixedBatch.

    Raises:
        AssertionError: the policy draws more, or less, than was recorded.
    """
    policy = mixaug.create(name, **options)
    batch, draws = Batch(images, labels, signals), RecordedDraws(len(images), **recorded)
    policy.check(batch)
    plan = policy.sample(batch, partner, draws)
    unused = {kind: len(calls) for kind, calls in draws.left.items() if calls}
    if unused:
        raise AssertionError(f"the policy did not draw {unused}")
    if plan.weights is None:
        plan = dataclasses.replace(plan, weights=policy.labeling(plan, batch))
    return MixedBatch(policy.apply(images, plan), labels, plan.sources, plan.weights, plan)
