"""patchmix_*: the number of patches from the drawn share, and the mixed images from the recorded patches."""

import torch

from golden_adapters import adapter
from mixaug import functional as F


@adapter("patchmix")
def replay_patchmix(arrays, stem):
    images, partner = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["partner"])
    recorded = torch.from_numpy(arrays["partner_patches"])
    own = recorded == 0  # the files' convention is the partner's, share and patches
    lam = 1 - torch.from_numpy(arrays["partner_fraction"])
    drawn = F.random_cells(own.double().squeeze(1), lam)
    mixed, share = F.patchmix(images, partner, own, int(arrays["patch_size"]))
    return [
        ("patches", drawn, own, 0.0),
        ("mixed", mixed, torch.from_numpy(arrays["mixed"]), 0.0),
        ("own_weight", share, torch.from_numpy(arrays["own_weight"]), 1e-7),
    ]
