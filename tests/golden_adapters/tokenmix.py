"""tokenmix_*: masks from recorded proposals or from lam, mixed images; tokenmix_label_*: content targets from maps."""

from unittest import mock

import torch

import mixaug
from golden_adapters import adapter
from golden_adapters.recorded import given, mixed_as_recorded
from mixaug import functional as F
from mixaug.batch import MixedBatch
from mixaug.plan import MaskBlend
from mixaug.policies.tokenmix import PROPOSALS, ROUNDS


@adapter("tokenmix")
def replay_tokenmix(arrays, stem):
    a = {name: torch.from_numpy(values) for name, values in arrays.items()}
    tokens = a["partner_tokens"].bool()
    grid = tuple(tokens.shape[2:])
    # Single tokens go by the order of random numbers, here their own names; how many do is the policy's to say.
    numbers = tokens.flatten(1).double()
    blocks = "attempts" in a
    if blocks:
        # Proposals were recorded as they came, rows of numbers that the policy turns into proposals were not.
        numbers = torch.zeros(len(tokens), ROUNDS, PROPOSALS, 4)
    with mock.patch(
        "mixaug.policies.tokenmix.tokenmix_blocks",
        lambda units, count, grid: F.tokenmix_replay(a["attempts"], count, grid),
    ):
        mixed = mixed_as_recorded(
            "tokenmix",
            a["images"],
            a["partner"],
            recorded={"uniform": [numbers]},
            mode="block" if blocks else "random",
            grid=grid,
            minimum_tokens=int(a["minimum_tokens"]),
            ratio=given(a["lam"]),
            labeling="area",
        )
    return [
        ("tokens", F.mask_at_tokens(mixed.mask, grid), ~tokens[:, 0], 0.0),
        ("mixed", mixed.inputs, a["mixed"], 0.0),
        ("own_weight", mixed.lam, a["own_weight"], 1e-6),
    ]


@adapter("tokenmix_label")
def replay_tokenmix_label(arrays, stem):
    a = {name: torch.from_numpy(values) for name, values in arrays.items()}
    planes, labels, tokens = a["label_maps"], a["labels"], a["mask"].bool()
    count, size = len(labels), tuple(tokens.shape)
    rows = torch.arange(count)
    # The labeling of the policy, on the recorded mask and maps: those of the images' own labels.
    plan = MaskBlend(partner=rows.flip(0), lam=torch.ones(1), mask=~tokens[None], size=size)
    batch = mixaug.Batch(torch.zeros(count, 1, *size), labels, mixaug.Signals(attention=planes[rows, labels]))
    weights = mixaug.create("tokenmix").labeling(plan, batch)
    mixed = MixedBatch(batch.images, labels, plan.sources, weights, plan)
    target = F.content_targets(mixed.weights, labels, mixed.sources, planes.shape[1], float(a["smoothing"]))
    return [
        ("area_lam", plan.area().double(), a["area_lam"].reshape(1), 1e-6),
        ("target", target, a["target"], 1e-6),
    ]
