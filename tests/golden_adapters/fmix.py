"""fmix_*: noise and lam to the grey image, the mask and the mixed images, in the spectrum of the authors' code."""

import torch

from golden_adapters import adapter
from golden_adapters.recorded import given, mixed_as_recorded
from mixaug import functional as F


@adapter("fmix")
def replay_fmix(arrays, stem):
    images, partner = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["partner"])
    noise, lam = torch.from_numpy(arrays["noise"]), torch.from_numpy(arrays["lam"])
    ceil, size, decay = torch.from_numpy(arrays["ceil"]), images.shape[2:], float(arrays["decay_power"])
    max_soft = float(arrays["max_soft"])
    mixed = mixed_as_recorded(
        "fmix",
        images,
        partner,
        # A coin below one half rounds up; of the noise the authors' code reads two rows.
        recorded={"uniform": [torch.where(ceil, 0.25, 0.75)], "normal": [noise[:, :, :2]]},
        ratio=given(lam),
        labeling="ratio",
        decay=decay,
        max_soft=max_soft,
        spectrum="reference",
    )
    grey = F.fourier_image(noise, size, decay=decay, spectrum="reference")
    mask = F.fourier_mask(noise, lam, size, decay=decay, round_up=ceil, max_soft=max_soft, spectrum="reference")
    own = torch.from_numpy(arrays["own_mask"])
    return [
        ("grey", grey, torch.from_numpy(arrays["grey"]), 1e-9),
        ("mask of the function", mask, own, 1e-6),
        ("own_mask", mixed.mask, own, 1e-6),
        ("mixed", mixed.inputs, torch.from_numpy(arrays["mixed"]), 1e-6),
        ("own_weight", mixed.lam, torch.from_numpy(arrays["own_weight"]), 1e-6),
    ]
