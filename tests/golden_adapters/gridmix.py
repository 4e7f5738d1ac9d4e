"""gridmix_*: the draws to the lattice of holes and the mixed images."""

import torch

from golden_adapters import adapter
from golden_adapters.recorded import given, mixed_as_recorded


@adapter("gridmix")
def replay_gridmix(arrays, stem):
    a = {name: torch.from_numpy(values) for name, values in arrays.items()}
    uniform = [a[name] for name in ("hole_aspect", "crop_area_ratio", "crop_aspect_ratio", "u_y", "u_x")]
    recorded = {"integers": [a["n_holes"]], "uniform": uniform}
    mixed = mixed_as_recorded("gridmix", a["images"], a["partner"], recorded=recorded, ratio=given(a["lam"]))
    return [
        ("partner_mask", 1 - mixed.mask.to(torch.uint8), a["partner_mask"], 0.0),
        ("mixed", mixed.inputs, a["mixed"], 0.0),
        ("own_weight", mixed.lam, a["own_weight"], 1e-7),
    ]
