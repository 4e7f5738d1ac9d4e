"""tokenmix_*: masks from recorded proposals or from lam, mixed images; tokenmix_label_*: content targets from maps."""

import torch

from golden_adapters import adapter
from mixaug import functional as F


@adapter("tokenmix")
def replay_tokenmix(arrays, stem):
    images, partner = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["partner"])
    tokens = torch.from_numpy(arrays["partner_tokens"]).bool()
    grid = tuple(tokens.shape[2:])
    total = grid[0] * grid[1]
    count = F.tokenmix_count(torch.from_numpy(arrays["lam"]), total, int(arrays["minimum_tokens"]))
    if "attempts" in arrays:
        drawn = F.tokenmix_replay(torch.from_numpy(arrays["attempts"]), count, grid)
    else:
        drawn = F.random_cells(tokens[:, 0].double(), count.double() / total)
    mixed, lam = F.tokenmix(images, partner, drawn)
    own_weight = 1 - drawn.flatten(1).double().mean(1)
    return [
        ("tokens", drawn, tokens, 0.0),
        ("mixed", mixed, torch.from_numpy(arrays["mixed"]), 0.0),
        ("own_weight", own_weight, torch.from_numpy(arrays["own_weight"]), 1e-7),
        ("lam", lam, torch.from_numpy(arrays["own_weight"]), 1e-6),
    ]


@adapter("tokenmix_label")
def replay_tokenmix_label(arrays, stem):
    planes, labels = torch.from_numpy(arrays["label_maps"]), torch.from_numpy(arrays["labels"])
    tokens = torch.from_numpy(arrays["mask"]).bool()[None, None]
    rows = torch.arange(len(labels))
    partner = rows.flip(0)
    maps = F.content_map(planes[rows, labels], tokens.shape[2:])
    mixed, area = F.tokenmix(maps[:, None], partner, tokens)
    weights = F.content_shares(maps, mixed[:, 0], ~tokens[:, 0])
    sources = torch.stack([rows, partner], 1)
    target = F.content_targets(weights, labels, sources, planes.shape[1], float(arrays["smoothing"]))
    return [
        ("area_lam", area[:1].double(), torch.from_numpy(arrays["area_lam"]).reshape(1), 1e-6),
        ("target", target, torch.from_numpy(arrays["target"]), 1e-6),
    ]
