"""alignmix_*: feature maps -> Sinkhorn plan -> aligned and mixed features, with the number of iterations recorded."""

from unittest import mock

import torch

import mixaug
from golden_adapters import adapter
from golden_adapters.inside import STAGE, RecordedPairing, RecordedRatio, mixed_inside
from mixaug import functional as F
from mixaug.draws import Draws


@adapter("alignmix")
def replay_alignmix(arrays, stem):
    features, partner = torch.from_numpy(arrays["features"]), torch.from_numpy(arrays["perm"])
    lam, direction = (torch.from_numpy(arrays[key]).reshape(1) for key in ("lam", "direction"))
    epsilon, iterations = float(arrays["eps"]), int(arrays["sinkhorn_iterations"])
    expected, recorded = torch.from_numpy(arrays["plan"]), torch.from_numpy(arrays["mixed"])
    cells = features.flatten(2).transpose(1, 2)
    others = cells[partner]
    # Large costs in float32 carry the rounding of the way they were summed, and the plan is a sharp function of them:
    # so the steps are compared on costs summed as the reference does, and the whole within that rounding.
    summed = (cells[:, :, None] - others[:, None]).square().sum(3)
    rounding = torch.finfo(torch.float32).eps * float(summed.max() / epsilon) * float(features.abs().max())
    plan = F.sinkhorn_plan(summed, epsilon, iterations)
    stepwise = F.alignmix(features, partner, lam, direction, plan=plan, reference=True)
    policy = mixaug.create(
        "alignmix",
        input_probability=0.0,
        stage=STAGE,
        epsilon=epsilon,
        iterations=iterations,
        reference=True,
        ratio=RecordedRatio(arrays["lam"]),
        pairing=RecordedPairing(arrays["perm"]),
    )
    with mock.patch.object(Draws, "integers", lambda *arguments, **options: direction):
        output, mixed = mixed_inside(policy, features)
    shares = torch.stack([lam, 1 - lam], 1).expand(len(features), 2)
    return [
        ("plan", plan, expected, 1e-5),
        ("plan from features", F.sinkhorn_plan(F.alignment_cost(cells, others), epsilon, iterations), expected, 1e-5),
        ("mixed by the function, step by step", stepwise, recorded, 1e-5),
        ("mixed", output, recorded, 1e-5 + rounding),
        ("label shares", mixed.weights, shares.float(), 1e-6),
    ]
