"""A policy's own code with the authors' draws: what it would draw is handed to it."""

import dataclasses
import math

import torch

import mixaug
from mixaug.batch import Batch, MixedBatch
from mixaug.draws import Draws
from mixaug.ops.boxes import cutmix_boxes
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
    """What a mixed pass showed, as recorded: signals of the mixed images, and those of the unmixed ones as ``clean``."""

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


def centre_of_side(low, high, cut, side):
    """A centre whose interval of ``cut`` pixels, cut off at the borders, is [low, high); None where there is none."""
    half = cut // 2
    fitting = [place for place in range(side) if (max(place - half, 0), min(place + half, side)) == (low, high)]
    return fitting[0] if fitting else None


def draws_of_boxes(boxes, size, lam=None):
    """Shares and centres from which CutMix makes these boxes, where the draws themselves were not recorded.

    Args:
        boxes: (R, 4) int64 y0, x0, y1, x1.
        size: (H, W).
        lam: (R,) float64 where it was recorded; the centre of an image that stays whole does not matter.

    Returns:
        lam (R,) float64 and centres (R, 2) int64.

    Raises:
        AssertionError: a box that no share and centre give.
    """
    # Between two of these side ratios neither side changes.
    borders = sorted({0.0, 1.0} | {i / side for side in size for i in range(side + 1)})
    ratios = [(low + high) / 2 for low, high in zip(borders, borders[1:], strict=False)] + [1.0]
    shares, centers = [], []
    for row, box in enumerate(boxes.tolist()):
        for ratio in ratios if lam is None else [math.sqrt(1 - float(lam[row]))]:
            cuts = [int(side * ratio) for side in size]
            centre = [centre_of_side(box[i], box[i + 2], cuts[i], size[i]) for i in (0, 1)]
            if None not in centre or (lam is not None and float(lam[row]) == 1):
                break
        else:
            raise AssertionError(f"no share and centre give the box {box} in an image of {size}")
        shares.append(1 - ratio**2 if lam is None else float(lam[row]))
        centers.append([0 if place is None else place for place in centre])
    shares, centers = torch.tensor(shares, dtype=torch.float64), torch.tensor(centers)
    kept = shares < 1
    assert torch.equal(cutmix_boxes(shares, centers, size)[kept], boxes[kept])
    return shares, centers
