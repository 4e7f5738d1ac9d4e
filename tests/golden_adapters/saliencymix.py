"""saliencymix_*: the detector on BGR images; and, from a given map, the peak, the box and the paste."""

import torch

from golden_adapters import adapter
from mixaug import functional as F


@adapter("saliencymix")
def replay_saliencymix(arrays, stem):
    if "images_bgr" in arrays:
        images = torch.from_numpy(arrays["images_bgr"]).permute(0, 3, 1, 2)
        saliency = F.fine_grained_saliency(images, channels="bgr")
        swapped = F.fine_grained_saliency(images.flip(1))
        expected = torch.from_numpy(arrays["saliency"])
        return [("saliency", saliency, expected, 0.0), ("saliency of RGB", swapped, expected, 0.0)]
    images, partner = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["partner"])
    saliency = torch.from_numpy(arrays["partner_saliency"])
    boxes = F.saliencymix_boxes(torch.from_numpy(arrays["lam"]), saliency)
    mixed, lam = F.saliencymix(images, partner, boxes)
    return [
        ("peak", F.saliency_peak(saliency), torch.from_numpy(arrays["peak"]), 0.0),
        ("box", boxes, torch.from_numpy(arrays["box"]), 0.0),
        ("mixed", mixed, torch.from_numpy(arrays["mixed"]), 0.0),
        ("own_weight", lam, torch.from_numpy(arrays["own_weight"]), 1e-7),
    ]
