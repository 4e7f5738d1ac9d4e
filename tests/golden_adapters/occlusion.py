"""occlusion_*: cells that were covered, the images and the accuracy of a linear classifier on them."""

import torch

from golden_adapters import adapter
from mixaug.engine.evaluation.occlusion import dropped_cells, occlude


@adapter("occlusion")
def replay_occlusion(arrays, stem):
    images, labels, head = (torch.from_numpy(arrays[name]) for name in ("images", "labels", "head_weight"))
    found, top1 = [], []
    for number, ratio in enumerate(arrays["ratios"].tolist()):
        drawn = torch.from_numpy(arrays[f"dropped_{number}"])
        # Covered cells come first in this order, so that the count is ours and the choice the reference's.
        dropped = dropped_cells((~drawn).long().argsort(dim=1, stable=True), ratio)
        per_image = dropped.repeat_interleave(int(arrays["batch_size"]), 0)[: len(images)]
        occluded = occlude(images, per_image, int(arrays["cell"]))
        logits = occluded.flatten(1) @ head.T
        top1.append(100 * (logits.argmax(1) == labels).double().mean())
        found += [
            (f"dropped_{number}", dropped, drawn, 0.0),
            (f"occluded_{number}", occluded, torch.from_numpy(arrays[f"occluded_{number}"]), 0.0),
            (f"logits_{number}", logits, torch.from_numpy(arrays[f"logits_{number}"]), 1e-5),
        ]
    return [*found, ("top1", torch.stack(top1), torch.from_numpy(arrays["top1"]), 1e-6)]
