"""resizemix_*: tau and centre to a box, and the shrunken paste; the file name ends in the interpolation."""

import torch

from golden_adapters import adapter
from mixaug import functional as F


@adapter("resizemix")
def replay_resizemix(arrays, stem):
    images, partner = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["partner"])
    expected_boxes = torch.from_numpy(arrays["box"])
    interpolation = "bilinear" if "bilinear" in stem else "nearest"
    centers = torch.stack([torch.from_numpy(arrays["cy"]), torch.from_numpy(arrays["cx"])], 1)
    boxes = F.resizemix_boxes(torch.from_numpy(arrays["tau"]), centers, images.shape[2:])
    mixed, lam = F.resizemix(images, partner, expected_boxes, interpolation=interpolation)
    tolerance = 5e-5 if interpolation == "bilinear" else 0.0
    return [
        ("boxes", boxes, expected_boxes, 0.0),
        ("mixed", mixed, torch.from_numpy(arrays["mixed"]), tolerance),
        ("own_weight", lam, torch.from_numpy(arrays["own_weight"]), 1e-7),
    ]
