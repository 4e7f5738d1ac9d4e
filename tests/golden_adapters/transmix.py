"""transmix_*: weights from recorded attention and a box, then the smoothed targets; or weights from a mask."""

import torch

from golden_adapters import adapter
from mixaug import functional as F
from mixaug.batch import MixedBatch


@adapter("transmix")
def replay_transmix(arrays, stem):
    rows = torch.from_numpy(arrays["cls_attention_rows"])
    attention = rows.mean(1)[:, 1:]
    area = torch.from_numpy(arrays["lam_area"]).reshape(1)
    if "mask" in arrays:
        mask = 1 - torch.from_numpy(arrays["mask"])  # recorded as 1 where the partner shows
        lam = F.attention_lam(attention, mask, area)
        return [
            ("area", mask.double().mean((1, 2, 3)), area.expand(len(mask)), 1e-6),
            ("lam", lam, torch.from_numpy(arrays["lam"]), 1e-6),
        ]
    top, bottom, left, right = arrays["box_yyxx"].tolist()
    size = tuple(arrays["image_hw"].tolist())
    box = torch.tensor([[top, left, bottom, right]])
    labels, count = torch.from_numpy(arrays["labels"]), len(rows)
    partner, classes, smoothing = torch.arange(count).flip(0), int(arrays["num_classes"]), float(arrays["smoothing"])
    # An image of ones into which zeros are pasted is its own mask.
    ones = torch.ones(2, 1, *size)
    ones[1] = 0
    pasted, kept = F.cutmix(ones, torch.tensor([1, 0]), box)
    mask = pasted[:1]

    def targets(own):
        weights = torch.stack([own, 1 - own], 1)
        sources = torch.stack([torch.arange(count), partner], 1)
        return MixedBatch(rows, labels, sources, weights).targets(classes, smoothing)

    return [
        ("attn_mean", attention, torch.from_numpy(arrays["attn_mean"]), 1e-6),
        ("lam_area", kept[:1].double(), area, 1e-6),
        ("y1", targets(torch.ones(count)), torch.from_numpy(arrays["y1"]), 1e-6),
        ("y2", targets(torch.zeros(count)), torch.from_numpy(arrays["y2"]), 1e-6),
        ("target_area", targets(kept[:1].expand(count)), torch.from_numpy(arrays["target_area"]), 1e-6),
        ("target", targets(F.attention_lam(attention, mask, area)), torch.from_numpy(arrays["target"]), 1e-6),
    ]
