"""mixup_*: images, partner, lam -> mixed; the torchvision file also holds dense targets."""

import torch

from golden_adapters import adapter
from golden_adapters.recorded import given, mixed_as_recorded
from mixaug import functional as F


@adapter("mixup")
def replay_mixup(arrays, stem):
    a = {name: torch.from_numpy(values) for name, values in arrays.items()}
    mixed = mixed_as_recorded("mixup", a["images"], a["partner"], a.get("labels"), recorded={}, ratio=given(a["lam"]))
    result = [
        ("mixed", mixed.inputs, a["mixed"], 1e-6),
        ("own_weight", mixed.lam, a["own_weight"], 1e-6),
        ("mixed by the function", F.mixup(a["images"], a["partner"], a["lam"]), a["mixed"], 1e-6),
    ]
    if "target" in a:
        result.append(("target", mixed.targets(int(a["num_classes"])), a["target"], 1e-6))
    return result


adapter("midpoint_mixup")(replay_mixup)
