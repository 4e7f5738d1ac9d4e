"""smmix_*: windows from attention, mixed images, masks, targets, pooled tokens and the consistency loss."""

import torch

import mixaug
from golden_adapters import adapter
from golden_adapters.recorded import Seen, mixed_as_recorded
from mixaug import functional as F


@adapter("smmix")
def replay_smmix(arrays, stem):
    a = {name: torch.from_numpy(values) for name, values in arrays.items()}
    images, labels, side = a["images"], a["labels"], int(a["side"])
    count, grid, clean = len(images), (side, side), a["unmixed_logits"]
    policy = mixaug.create("smmix", fine_grained=0.0)
    mixed = mixed_as_recorded(
        policy,
        images,
        torch.arange(count).flip(0),
        labels,
        mixaug.Signals(attention=a["attn"].unflatten(1, grid)),
        recorded={"integers": [a["region"].reshape(1)]},
    )
    own = F.mask_at_tokens(mixed.mask, grid).bool()
    seen = Seen(outputs=a["mixed_logits"], clean=mixaug.Signals(outputs=clean))
    consistency = policy.auxiliary_loss(mixed, seen)["consistency"]
    tokens = a["tokens"].transpose(1, 2).unflatten(2, grid)
    return [
        ("mixed", mixed.inputs, a["mixed"], 0.0),
        ("target_mask", own.flatten(1), a["target_mask"], 0.0),
        ("source_mask", ~own.flatten(1), a["source_mask"], 0.0),
        ("lam", mixed.lam.double(), a["lam"].expand(count), 1e-7),
        ("target", mixed.targets(a["target"].shape[1], 0.1), a["target"], 1e-6),
        ("pooled_target", F.pooled_tokens(tokens, own), a["pooled_target"], 1e-6),
        ("pooled_source", F.pooled_tokens(tokens, ~own), a["pooled_source"], 1e-6),
        ("loss_con", consistency, a["loss_con"], 1e-6),
    ]
