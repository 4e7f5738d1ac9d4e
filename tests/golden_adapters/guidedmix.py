"""guidedmix_*: saliency -> maps -> distances -> greedy cycle -> mask, mix and target; and the spectral residual."""

import torch

from golden_adapters import adapter
from mixaug import functional as F


@adapter("guidedmix")
def replay_guidedmix(arrays, stem):
    images, saliency = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["saliency"])
    words = stem.split("_")
    blur = (int(arrays.get("blur_kernel", 7)), float(arrays.get("blur_sigma", 3.0)))
    spectral = []
    if "sr" in words:
        spectral = [
            ("spectral residual", F.spectral_residual(images, *blur), saliency, 1e-4 if "large" in words else 1e-5)
        ]
    if "perm" not in arrays:
        return spectral
    [metric] = [word for word in words if word in ("l1", "cosine")] or ["l2"]
    maps, expected = F.guided_maps(saliency, *blur), torch.from_numpy(arrays["perm"])
    distance = F.map_distance(maps, metric)
    partner = F.greedy_cycle(distance)
    mixed, lam, _ = F.guidedmix(images, partner, maps)
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(arrays["labels"]), int(arrays["num_classes"]))
    target = lam[:, None] * one_hot + (1 - lam[:, None]) * one_hot[partner]
    return [
        *spectral,
        ("sal_norm", maps, torch.from_numpy(arrays["sal_norm"]), 1e-6),
        ("distance", distance, torch.from_numpy(arrays["distance"]), 1e-5),
        ("perm", partner, expected, 0.0),
        ("lam_a", lam, torch.from_numpy(arrays["lam_a"]), 1e-5),
        ("mixed", mixed, torch.from_numpy(arrays["mixed"]), 1e-5),
        ("target", target, torch.from_numpy(arrays["target"]), 1e-5),
    ]
