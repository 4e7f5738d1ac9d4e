"""smmix_*: windows from attention, mixed images, masks, targets, pooled tokens and the consistency loss."""

import torch

from golden_adapters import adapter
from mixaug import functional as F
from mixaug.batch import MixedBatch


@adapter("smmix")
def replay_smmix(arrays, stem):
    array = {name: torch.from_numpy(values) for name, values in arrays.items()}
    images, labels, side = array["images"], array["labels"], int(array["side"])
    grid, size = (side, side), tuple(images.shape[2:])
    rows = torch.arange(len(images))
    partner = rows.flip(0)
    scores, region = array["attn"].unflatten(1, grid), array["region"].reshape(1)
    source = F.smmix_windows(scores[partner], region, largest=True)
    target = F.smmix_windows(scores, region, largest=False)
    boxes, corners = F.smmix_boxes(target, source, region, grid, size)
    mixed, lam = F.smmix(images, partner, boxes, corners)
    # An image of ones whose partners are zeros is its own mask.
    cells = F.smmix_boxes(target, source, region, grid, grid)[0]
    both = torch.cat([torch.ones(len(rows), 1, *grid), torch.zeros(len(rows), 1, *grid)])
    swapped = torch.cat([rows + len(rows), rows])
    shown, _ = F.smmix(both, swapped, cells.repeat(2, 1), torch.zeros(2 * len(rows), 2, dtype=torch.int64))
    own = shown[: len(rows), 0].bool()
    weights, sources = torch.stack([lam, 1 - lam], 1), torch.stack([rows, partner], 1)
    targets = MixedBatch(mixed, labels, sources, weights).targets(array["target"].shape[1], 0.1)
    tokens = array["tokens"].transpose(1, 2).unflatten(2, grid)
    clean = array["unmixed_logits"]
    mixed_logits = lam[:, None] * clean + (1 - lam[:, None]) * clean[partner]
    full = array["attn_full_slice"][:, :, 1:, 1:].mean((1, 2))
    return [
        ("attn", full, array["attn"][: len(full)], 1e-6),
        ("mixed", mixed, array["mixed"], 0.0),
        ("target_mask", own.flatten(1), array["target_mask"], 0.0),
        ("source_mask", ~own.flatten(1), array["source_mask"], 0.0),
        ("lam", lam.double(), array["lam"].expand(len(rows)), 1e-7),
        ("target", targets, array["target"], 1e-6),
        ("mixed_prediction", mixed_logits, array["mixed_prediction"], 1e-6),
        ("pooled_target", F.pooled_tokens(tokens, own), array["pooled_target"], 1e-6),
        ("pooled_source", F.pooled_tokens(tokens, ~own), array["pooled_source"], 1e-6),
        ("loss_con", F.smmix_consistency(array["mixed_logits"], clean, partner, lam), array["loss_con"], 1e-6),
    ]
