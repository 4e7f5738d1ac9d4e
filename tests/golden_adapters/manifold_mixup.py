"""manifold_mixup_*: features, partner, lam -> mixed features, through a hook on a module; and the dense target."""

import torch
from torch import nn

from golden_adapters import adapter
from golden_adapters.mixup import dense_target
from mixaug import MixedBatch, create
from mixaug.plan import Hidden


@adapter("manifold_mixup")
def replay_manifold_mixup(arrays, stem):
    features, partner = torch.from_numpy(arrays["features"]), torch.from_numpy(arrays["partner"])
    lam = torch.from_numpy(arrays["lam"])
    plan = Hidden(partner=partner, lam=lam, stage=torch.zeros(1, dtype=torch.int64), eligible=("0",))
    weights = torch.stack([lam, 1 - lam], 1).float()
    batch = MixedBatch(inputs=features, labels=None, sources=plan.sources, weights=weights, plan=plan)
    model = nn.Sequential(nn.Identity())
    with create("manifoldmix", stages=["0"]).tap(model, batch):
        mixed = model(features)
    return [
        ("mixed", mixed, torch.from_numpy(arrays["mixed"]), 1e-6),
        ("own_weight", lam, torch.from_numpy(arrays["own_weight"]), 1e-12),
        ("target", dense_target(arrays, mixed, lam), torch.from_numpy(arrays["target"]), 1e-6),
    ]
