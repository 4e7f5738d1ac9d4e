"""hmix_* and gmix_*: lam and a centre to the box or bump, the mixed images and the targets."""

import torch

from golden_adapters import adapter
from golden_adapters.recorded import mixed_as_recorded
from mixaug import functional as F


def mixed_at_centre(name, a, **options):
    centers = torch.stack([a["cy"], a["cx"]], 1)
    return mixed_as_recorded(
        name,
        a["images"],
        a["partner"],
        a["labels"],
        recorded={"pixels": [centers]},
        ratio=lambda draws: a["lam"],
        **options,
    )


@adapter("hmix")
def replay_hmix(arrays, stem):
    a = {name: torch.from_numpy(values) for name, values in arrays.items()}
    size, cut = a["images"].shape[2:], float(a["hmix_ratio"])
    mixed = mixed_at_centre("hmix", a, cut=cut)
    boxes = F.hmix_boxes(a["lam"], torch.stack([a["cy"], a["cx"]], 1), size, cut)
    return [
        ("box", boxes, a["box"], 0.0),
        ("blend_weight", mixed.mask.flatten(1).amax(1), a["blend_weight"], 1e-6),
        ("mixed", mixed.inputs, a["mixed"], 1e-6),
        ("target", mixed.targets(int(a["num_classes"])), a["target"], 1e-6),
        ("own_weight", mixed.lam, a["own_weight"], 1e-6),
    ]


@adapter("gmix")
def replay_gmix(arrays, stem):
    a = {name: torch.from_numpy(values) for name, values in arrays.items()}
    mixed = mixed_at_centre("gmix", a)
    return [
        ("own_mask", mixed.mask, a["own_mask"], 1e-6),
        ("mixed", mixed.inputs, a["mixed"], 1e-6),
        ("target", mixed.targets(int(a["num_classes"])), a["target"], 1e-6),
        ("own_weight", mixed.lam, a["own_weight"], 1e-6),
    ]
