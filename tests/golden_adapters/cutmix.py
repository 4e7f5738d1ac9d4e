"""cutmix_*: a draw of (lam, centre) to a box, and the paste itself; cutmix_boxes_* hold draws alone."""

import torch

from golden_adapters import adapter
from golden_adapters.recorded import draws_of_boxes, given, mixed_as_recorded
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
    if "lam" in a:
        lam, centers = a["lam"], torch.stack([a["cy"], a["cx"]], 1)
    else:
        # torchvision's file has boxes and centres, but not what was drawn for the side.
        lam, centers = draws_of_boxes(a["box"], size)
    recorded = {"pixels": [centers]}
    mixed = mixed_as_recorded("cutmix", images, partner, a.get("labels"), recorded=recorded, ratio=given(lam))
    result = [
        ("boxes", mixed.plan.boxes, a["box"], 0.0),
        ("boxes of the function", F.cutmix_boxes(lam, centers, size), a["box"], 0.0),
        ("own_weight", mixed.lam, a["own_weight"], 1e-6),
    ]
    if "mixed" in a:
        result.append(("mixed", mixed.inputs, a["mixed"], 0.0))
        result.append(("mixed by the function", F.cutmix(images, partner, a["box"])[0], a["mixed"], 0.0))
    if "target" in a:
        result.append(("target", mixed.targets(int(a["num_classes"])), a["target"], 1e-6))
    return result
