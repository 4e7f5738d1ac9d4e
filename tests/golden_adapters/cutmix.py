"""cutmix_*: a draw of (lam, centre) to a box, and the paste itself; cutmix_boxes_* hold draws alone."""

import contextlib

import torch

from golden_adapters import adapter
from golden_adapters.recorded import boxes_as_recorded, given, mixed_as_recorded
from mixaug import functional as F


@adapter("cutmix")
def replay_cutmix(arrays, stem):
    a = {name: torch.from_numpy(values) for name, values in arrays.items()}
    count = len(a["box"])
    if "images" in a:
        images, partner = a["images"], a["partner"]
    else:
        # Draws alone: any images show the boxes.
        images, partner = torch.zeros(count, 1, int(a["height"]), int(a["width"])), torch.arange(count).roll(1)
    size = images.shape[2:]
    result = []
    if "lam" in a:
        lam, centers = a["lam"], torch.stack([a["cy"], a["cx"]], 1)
        result.append(("boxes of the function", F.cutmix_boxes(lam, centers, size), a["box"], 0.0))
        drawing = contextlib.nullcontext((lam, centers))
    else:
        # torchvision's file does not say what was drawn for the side.
        drawing = boxes_as_recorded("cutmix", a["box"])
    with drawing as (lam, centers):
        mixed = mixed_as_recorded(
            "cutmix", images, partner, a.get("labels"), recorded={"pixels": [centers]}, ratio=given(lam)
        )
    result += [
        ("boxes", mixed.plan.boxes, a["box"], 0.0),
        ("own_weight", mixed.lam, a["own_weight"], 1e-6),
    ]
    if "mixed" in a:
        result.append(("mixed", mixed.inputs, a["mixed"], 0.0))
        result.append(("mixed by the function", F.cutmix(images, partner, a["box"])[0], a["mixed"], 0.0))
    if "target" in a:
        result.append(("target", mixed.targets(int(a["num_classes"])), a["target"], 1e-6))
    return result
