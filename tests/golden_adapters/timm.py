"""timm_*: Mixup and CutMix behind one switch, sample by sample, partners mirrored."""

from unittest import mock

import torch

import mixaug
from golden_adapters import adapter
from golden_adapters.recorded import RecordedDraws
from mixaug.batch import Batch, MixedBatch


@adapter("timm")
def replay_timm(arrays, stem):
    a = {name: torch.from_numpy(values) for name, values in arrays.items()}
    images, partner, lam, count = a["images"], a["partner"], a["lam"], len(a["partner"])
    if count < len(images):
        # Only the first half of the batch comes back; the other half mixes into it.
        rest = torch.arange(len(images) - count, len(images))
        partner, lam = torch.cat([partner, rest]), torch.cat([lam, torch.ones(len(rest), dtype=lam.dtype)])
    if "box" in a:
        # The box was recorded, not the centre that gave it: timm's keeps odd sides, ours are even as the authors'.
        policy, recorded = switched(a, lam, "minmax" in stem)
        with mock.patch("mixaug.policies.cutmix.cutmix_boxes", lambda *_: a["box"]):
            mixed = drawn_in_turn(policy, images, a["labels"], partner, recorded)
    else:
        mixed = drawn_in_turn(mixaug.create("mixup"), images, a["labels"], partner, [{"beta": [lam]}])
    target = mixed.targets(int(a["num_classes"]), label_smoothing=float(a["smoothing"]))
    return [
        ("mixed", mixed.inputs[:count], a["mixed"], 0.0 if count < len(images) else 1e-6),
        ("own_weight", mixed.lam[:count], a["own_weight"], 1e-6),
        ("target", target[:count], a["target"], 1e-6),
    ]


def switched(a, lam, minmax):
    """The policy, and what it and its two members draw."""
    size, boxes = tuple(a["images"].shape[2:]), a["box"]
    # timm leaves the box at zero where nothing was cut.
    cut = a["use_cutmix"] & (lam != 1)
    choice = {"uniform": [torch.where(cut, 0.75, 0.25)]}
    if minmax:
        # Sides are drawn between bounds, and then a place inside the image.
        sides = boxes[:, 2:] - boxes[:, :2]
        places = [(boxes[:, i] + 0.5) / (size[i] - sides[:, i] + 1) for i in (0, 1)]
        of_cutmix = {"integers": [sides[:, 0], sides[:, 1]], "uniform": places}
        policy = mixaug.OneOf(["mixup", mixaug.create("cutmix", minmax=(0.1, 0.9))], per="sample")
        return policy, [choice, {"beta": [lam]}, of_cutmix]
    policy = mixaug.create("deit", cutmix_alpha=0.5, per="sample")
    return policy, [choice, {"beta": [lam]}, {"beta": [lam], "pixels": [torch.zeros(len(boxes), 2, dtype=torch.int64)]}]


def drawn_in_turn(policy, images, labels, partner, recorded):
    """What a policy makes of a batch: it, and then each of its members, draws what is recorded."""
    draws = [RecordedDraws(len(images), **values) for values in recorded]
    turns, batch = iter(draws), Batch(images, labels)

    def following(*_):
        return next(turns)

    with mock.patch("mixaug.policy.Draws", following), mock.patch("mixaug.policies.combinations.Draws", following):
        plan = policy.plan(batch, None, partner)
    for each in draws:
        each.check_used(type(policy).__name__)
    return MixedBatch(policy.apply(images, plan), labels, plan.sources, plan.weights, plan)
