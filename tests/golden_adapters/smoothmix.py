"""smoothmix_*: centre and sigma to the bump, the mixed images and both readings of the label share."""

import torch

from golden_adapters import adapter
from mixaug import functional as F


@adapter("smoothmix")
def replay_smoothmix(arrays, stem):
    images, partner = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["partner"])
    centers = torch.stack([torch.from_numpy(arrays["centre_y"]), torch.from_numpy(arrays["centre_x"])], 1)
    # The reference has one sigma for square images; ours has one for each axis.
    sigma = torch.from_numpy(arrays["sigma"])[:, None].expand(-1, 2)
    mask, _ = F.smoothmix_mask(centers, sigma, images.shape[2:])
    mixed, lam = F.smoothmix(images, partner, centers, sigma)
    return [
        ("partner_mask", 1 - mask, torch.from_numpy(arrays["partner_mask"]), 1e-5),
        ("mixed", mixed, torch.from_numpy(arrays["mixed"]), 1e-5),
        ("own_weight", lam, torch.from_numpy(arrays["own_weight"]), 1e-5),
        ("reference_lam", 1 - lam, torch.from_numpy(arrays["reference_lam"]), 1e-5),
    ]
