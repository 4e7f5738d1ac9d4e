"""A policy's own code with the authors' draws: what it would draw is handed to it."""

import contextlib
import dataclasses
from unittest import mock

import torch

import mixaug
from mixaug.batch import Batch, MixedBatch
from mixaug.draws import Draws
from mixaug.signals import Signals
from mixaug.signals.recorder import BlockAttention

KINDS = ("uniform", "normal", "integers", "pixels", "beta", "dirichlet", "permutation", "host_uniform")


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
        if name in KINDS:
            return lambda *arguments, **options: self._next(name, *arguments, **options)
        return super().__getattribute__(name)

    def check_used(self, what):
        """An AssertionError where something was recorded that was not drawn."""
        unused = {kind: len(calls) for kind, calls in self.left.items() if calls}
        if unused:
            raise AssertionError(f"{what} did not draw {unused}")


class Seen(Signals):
    """What a mixed pass showed, as recorded: signals of the mixed images, and of the unmixed ones as ``clean``."""

    def __init__(self, *, clean=None, attentions=None, **signals):
        super().__init__(**signals)
        self.clean, self.attentions = clean, attentions

    def every_attention(self):
        """Blocks whose attention is (B, heads, N, N) as recorded, one class token first."""
        # The products of the logarithm with unit vectors are the logarithm, whose softmax is the attention again.
        return [
            BlockAttention(weights.log(), torch.eye(weights.shape[-1]).expand_as(weights), 1.0, 1)
            for weights in self.attentions
        ]


def mixed_as_recorded(name, images, partner, labels=None, signals=None, *, recorded, seen=None, **options):
    """What a policy makes of images with these partners and draws.

    Args:
        name: of the policy, or the policy itself.
        images: (B, C, H, W).
        partner: (B,) int64.
        labels: (B,), or None.
        signals: mixaug.Signals, or None.
        recorded: for ``uniform``, ``normal``, ``pixels`` and other methods of Draws the values of each call.
        seen: what the mixed pass showed, for policies that relabel after it.
        options: of the policy; a ratio or a labeling may be an object.

    Returns:
        A MixedBatch.

    Raises:
        AssertionError: the policy draws more, or less, than was recorded.
    """
    policy = mixaug.create(name, **options) if isinstance(name, str) else name
    batch, draws = Batch(images, labels, signals), RecordedDraws(len(images), **recorded)
    policy.check(batch)
    plan = policy.sample(batch, partner, draws)
    draws.check_used(type(policy).__name__)
    if plan.weights is None:
        plan = dataclasses.replace(plan, weights=policy.labeling(plan, batch))
    weights = plan.weights.expand(len(images), -1)
    mixed = MixedBatch(policy.apply(images, plan), labels, plan.sources, weights, plan)
    return mixed if seen is None else policy.relabel(mixed, seen)


def given(lam):
    """A ratio whose shares were recorded."""
    return lambda draws: lam


@contextlib.contextmanager
def boxes_as_recorded(module, *boxes):
    """A policy's boxes where these were recorded, and not the shares and centres that gave them.

    Args:
        module: of :mod:`mixaug.policies`, in which the policy makes them.
        boxes: (R, 4) int64 of one call after the other.

    Yields:
        What to draw for each call: a share (R,), and a place for ``pixels``. Neither says anything.
    """
    with mock.patch(f"mixaug.policies.{module}.cutmix_boxes", side_effect=list(boxes)) as made:
        count = len(boxes[0])
        yield torch.full((count,), 0.5, dtype=torch.float64), torch.zeros(count, 2, dtype=torch.int64)
        assert made.call_count == len(boxes), f"the policy made {made.call_count} of {len(boxes)} boxes"
