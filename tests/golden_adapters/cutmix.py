"""cutmix_*: a draw of (lam, centre) to a box, and the paste itself; cutmix_boxes_* hold draws alone."""

import torch

from golden_adapters import adapter
from golden_adapters.mixup import dense_target
from golden_adapters.recorded import mixed_as_recorded
from mixaug import functional as F


@adapter("cutmix")
def replay_cutmix(arrays, stem):
    expected_boxes = torch.from_numpy(arrays["box"])
    result = []
    if "lam" in arrays:
        size = (int(arrays["height"]), int(arrays["width"])) if "height" in arrays else arrays["images"].shape[2:]
        centers = torch.from_numpy(arrays["cy"]), torch.from_numpy(arrays["cx"])
        boxes = F.cutmix_boxes(torch.from_numpy(arrays["lam"]), torch.stack(centers, 1), size)
        result.append(("boxes", boxes, expected_boxes, 0.0))
    if "images" in arrays:
        images, partner = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["partner"])
        mixed, lam = F.cutmix(images, partner, expected_boxes)
        result.append(("mixed", mixed, torch.from_numpy(arrays["mixed"]), 0.0))
        result.append(("own_weight", lam, torch.from_numpy(arrays["own_weight"]), 1e-7))
        if "lam" in arrays:
            recorded = {"pixels": [torch.stack(centers, 1)]}
            drawn = torch.from_numpy(arrays["lam"])
            policy = mixed_as_recorded("cutmix", images, partner, recorded=recorded, ratio=lambda draws: drawn)
            own = torch.from_numpy(arrays["own_weight"]).float().expand(len(images))
            result.append(("mixed by the policy", policy.inputs, torch.from_numpy(arrays["mixed"]), 0.0))
            result.append(("own weight of the policy", policy.lam, own, 1e-6))
        if "target" in arrays:
            result.append(("target", dense_target(arrays, mixed, lam), torch.from_numpy(arrays["target"]), 1e-6))
    return result
