"""guidedmix_*: saliency -> maps -> distances -> greedy cycle -> mask, mix and target; and the spectral residual."""

import torch

import mixaug
from golden_adapters import adapter
from mixaug import functional as F


@adapter("guidedmix")
def replay_guidedmix(arrays, stem):
    a = {name: torch.from_numpy(values) for name, values in arrays.items()}
    words = stem.split("_")
    blur = (int(arrays.get("blur_kernel", 7)), float(arrays.get("blur_sigma", 3.0)))
    found = []
    if "sr" in words:
        tolerance = 1e-4 if "large" in words else 1e-5
        found.append(("spectral residual", F.spectral_residual(a["images"], *blur), a["saliency"], tolerance))
    if "perm" not in a:
        return found
    [metric] = [word for word in words if word in ("l1", "cosine")] or ["l2"]
    maps = F.guided_maps(a["saliency"], *blur)
    kinds = ["gradient", "spectral"] if "sr" in words else ["gradient"]
    for kind in kinds:
        policy = mixaug.create("guidedmix", saliency=kind, blur_size=blur[0], blur_sigma=blur[1], distance=metric)
        # Nothing is drawn: partners are the greedy cycle's.
        mixed = policy(a["images"], a["labels"], signals=mixaug.Signals(saliency=a["saliency"]))
        found += [
            (f"perm, {kind}", mixed.partner, a["perm"], 0.0),
            (f"lam_a, {kind}", mixed.lam, a["lam_a"], 1e-5),
            (f"mixed, {kind}", mixed.inputs, a["mixed"], 1e-5),
            (f"target, {kind}", mixed.targets(int(a["num_classes"])), a["target"], 1e-5),
        ]
    return [
        *found,
        ("sal_norm", maps, a["sal_norm"], 1e-6),
        ("distance", F.map_distance(maps, metric), a["distance"], 1e-5),
    ]
