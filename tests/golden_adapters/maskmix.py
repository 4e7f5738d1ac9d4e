"""maskmix_*: the number of cells from lam, the mixed images from the recorded cells, both label shares."""

import torch

from golden_adapters import adapter
from mixaug import functional as F


@adapter("maskmix")
def replay_maskmix(arrays, stem):
    images, partner = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["partner"])
    own = torch.from_numpy(arrays["own_patches"]) == 1
    drawn = F.random_cells(own.double().squeeze(1), torch.from_numpy(arrays["lam"]))
    mixed, share = F.maskmix(images, partner, own, int(arrays["patch_size"]))
    return [
        ("cells", drawn, own, 0.0),
        ("mixed", mixed, torch.from_numpy(arrays["mixed"]), 0.0),
        ("own_weight", drawn.flatten(1).double().mean(1), torch.from_numpy(arrays["own_weight"]), 1e-7),
        ("own_weight_pixels", share, torch.from_numpy(arrays["own_weight_pixels"]), 1e-7),
    ]
