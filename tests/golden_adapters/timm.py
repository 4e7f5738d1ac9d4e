"""timm_*: Mixup and CutMix behind one switch, sample by sample, partners mirrored."""

import torch

from golden_adapters import adapter
from golden_adapters.mixup import dense_target
from mixaug import functional as F


@adapter("timm")
def replay_timm(arrays, stem):
    images, partner = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["partner"])
    lam = torch.from_numpy(arrays["lam"])
    half = len(partner) < len(images)
    if half:
        # Only the first half of the batch comes back; the other half mixes into it.
        partner = torch.cat([partner, torch.arange(len(images) - len(partner), len(images))])
        lam = torch.cat([lam, torch.ones(len(images) - len(lam), dtype=lam.dtype)])
    mixed = F.mixup(images, partner, lam)
    weight = lam
    if "box" in arrays:
        # timm leaves the box at zero where nothing was cut.
        pasted, area = F.cutmix(images, partner, torch.from_numpy(arrays["box"]))
        cut = torch.from_numpy(arrays["use_cutmix"]) & (lam != 1)
        mixed = torch.where(cut[:, None, None, None], pasted, mixed)
        weight = torch.where(cut, area.double(), lam)
    target = dense_target({**arrays, "partner": partner.numpy()}, mixed, weight, float(arrays["smoothing"]))
    count = len(arrays["partner"])
    return [
        ("mixed", mixed[:count], torch.from_numpy(arrays["mixed"]), 0.0 if half else 1e-6),
        ("own_weight", weight[:count], torch.from_numpy(arrays["own_weight"]), 1e-6),
        ("target", target[:count], torch.from_numpy(arrays["target"]), 1e-6),
    ]
