"""alignmix_*: feature maps -> Sinkhorn plan -> aligned and mixed features, with the number of iterations recorded."""

import torch

from golden_adapters import adapter
from mixaug import functional as F


@adapter("alignmix")
def replay_alignmix(arrays, stem):
    features, partner = torch.from_numpy(arrays["features"]), torch.from_numpy(arrays["perm"])
    lam, direction = (torch.from_numpy(arrays[key]).reshape(1) for key in ("lam", "direction"))
    epsilon, iterations = float(arrays["eps"]), int(arrays["sinkhorn_iterations"])
    expected, mixed = torch.from_numpy(arrays["plan"]), torch.from_numpy(arrays["mixed"])
    cells = features.flatten(2).transpose(1, 2)
    others = cells[partner]
    cost = F.alignment_cost(cells, others)
    # Large costs in float32 carry the rounding of the way they were summed, and the plan is a sharp function of them:
    # so the steps are compared on costs summed as the reference does, and the whole within that rounding.
    summed = (cells[:, :, None] - others[:, None]).square().sum(3)
    rounding = torch.finfo(torch.float32).eps * float(summed.max() / epsilon) * float(features.abs().max())
    plan = F.sinkhorn_plan(summed, epsilon, iterations)
    stepwise = F.alignmix(features, partner, lam, direction, plan=plan, reference=True)
    whole = F.alignmix(
        features, partner, lam, direction, epsilon=epsilon, iterations=iterations, reference=True
    )  # fmt: skip
    return [
        ("cost", cost, summed, 1e-6 * float(summed.max())),
        ("plan", plan, expected, 1e-5),
        ("plan from features", F.sinkhorn_plan(cost, epsilon, iterations), expected, 1e-5),
        ("mixed", stepwise, mixed, 1e-5),
        ("mixed from features", whole, mixed, 1e-5 + rounding),
    ]
