"""fmix_*: noise and lam to the grey image, the mask and the mixed images, in the spectrum of the authors' code."""

import torch

from golden_adapters import adapter
from mixaug import functional as F


@adapter("fmix")
def replay_fmix(arrays, stem):
    images, partner = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["partner"])
    noise, lam = torch.from_numpy(arrays["noise"]), torch.from_numpy(arrays["lam"])
    size, decay = images.shape[2:], float(arrays["decay_power"])
    grey = F.fourier_image(noise, size, decay=decay, spectrum="reference")
    mask = F.fourier_mask(
        noise,
        lam,
        size,
        decay=decay,
        round_up=torch.from_numpy(arrays["ceil"]),
        max_soft=float(arrays["max_soft"]),
        spectrum="reference",
    )
    return [
        ("grey", grey, torch.from_numpy(arrays["grey"]), 1e-9),
        ("own_mask", mask, torch.from_numpy(arrays["own_mask"]), 1e-6),
        ("mixed", F.fmix(images, partner, mask), torch.from_numpy(arrays["mixed"]), 1e-6),
        ("own_weight", lam, torch.from_numpy(arrays["own_weight"]), 1e-12),
    ]
