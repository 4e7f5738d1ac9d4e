"""saliencymix_*: the detector on BGR images; and, from a given map, the peak, the box and the paste."""

from unittest import mock

import torch

from golden_adapters import adapter
from golden_adapters.recorded import given, mixed_as_recorded
from mixaug import functional as F


@adapter("saliencymix")
def replay_saliencymix(arrays, stem):
    a = {name: torch.from_numpy(values) for name, values in arrays.items()}
    return detected(a) if "images_bgr" in a else pasted(a)


def detected(a):
    images = a["images_bgr"].permute(0, 3, 1, 2).contiguous()
    found = []
    for channels, shown in (("bgr", images), ("rgb", images.flip(1))):
        saliency = F.fine_grained_saliency(shown, channels=channels)
        found.append((f"saliency of {channels.upper()}", saliency, a["saliency"], 0.0))
        # Boxes of two pixels stand around the peaks of the partners, as far as these lie inside.
        partner, half = torch.arange(len(images)).roll(1), (2 / images.shape[2], 2 / images.shape[3])
        share = given(torch.full((len(images),), 1 - max(half) ** 2, dtype=torch.float64))
        policy = mixed_as_recorded("saliencymix", shown, partner, recorded={}, ratio=share, channels=channels)
        first = a["saliency"].flatten(1).int()
        first = torch.stack([(row == row.max()).nonzero()[0, 0] for row in first])[partner]
        peak = torch.stack([first // images.shape[3], first % images.shape[3]], 1)
        corner = (peak - torch.tensor([int(side * max(half)) // 2 for side in images.shape[2:]])).clamp(min=0)
        found.append((f"corner of the box of {channels.upper()}", policy.plan.boxes[:, :2], corner, 0.0))
    return found


def pasted(a):
    # The maps are recorded for the partners; the policy asks for the peaks of all images.
    maps = torch.empty_like(a["partner_saliency"])
    maps[a["partner"]] = a["partner_saliency"]
    with mock.patch("mixaug.policies.saliencymix._salient_centers", lambda *_: F.saliency_peak(maps)):
        mixed = mixed_as_recorded("saliencymix", a["images"], a["partner"], recorded={}, ratio=given(a["lam"]))
    return [
        ("peak", F.saliency_peak(a["partner_saliency"]), a["peak"], 0.0),
        ("box", mixed.plan.boxes, a["box"], 0.0),
        ("mixed", mixed.inputs, a["mixed"], 0.0),
        ("own_weight", mixed.lam, a["own_weight"], 1e-7),
    ]
