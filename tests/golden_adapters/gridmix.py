"""gridmix_*: the draws to the lattice of holes and the mixed images."""

import torch

from golden_adapters import adapter
from mixaug import functional as F

DRAWS = ["n_holes", "hole_aspect", "crop_area_ratio", "crop_aspect_ratio", "u_y", "u_x"]


@adapter("gridmix")
def replay_gridmix(arrays, stem):
    images, partner = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["partner"])
    lam = torch.from_numpy(arrays["lam"])
    draws = {name: torch.from_numpy(arrays[name]) for name in DRAWS}
    mask, _ = F.gridmix_mask(lam, images.shape[2:], **draws)
    mixed, own_weight = F.gridmix(images, partner, lam, **draws)
    return [
        ("partner_mask", ~mask, torch.from_numpy(arrays["partner_mask"]), 0.0),
        ("mixed", mixed, torch.from_numpy(arrays["mixed"]), 0.0),
        ("own_weight", own_weight, torch.from_numpy(arrays["own_weight"]), 1e-7),
    ]
