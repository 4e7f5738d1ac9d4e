"""manifold_mixup_*: features, partner, lam -> mixed features, behind a stage of a model; and the dense target."""

import torch

import mixaug
from golden_adapters import adapter
from golden_adapters.inside import STAGE, RecordedPairing, RecordedRatio, mixed_inside


@adapter("manifold_mixup")
def replay_manifold_mixup(arrays, stem):
    a = {name: torch.from_numpy(values) for name, values in arrays.items()}
    policy = mixaug.create(
        "manifoldmix",
        stages=[STAGE],
        pairing=RecordedPairing(arrays["partner"]),
        ratio=RecordedRatio(arrays["lam"]),
        per="sample",
    )
    output, mixed = mixed_inside(policy, a["features"], a["labels"])
    return [
        ("mixed", output, a["mixed"], 1e-6),
        ("own_weight", mixed.lam, a["own_weight"], 1e-6),
        ("target", mixed.targets(int(a["num_classes"])), a["target"], 1e-6),
    ]
