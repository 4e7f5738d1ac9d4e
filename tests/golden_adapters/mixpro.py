"""mixpro_*: share of the attention on own tokens, the smoothed area target, the weight between the two."""

import torch

from golden_adapters import adapter
from mixaug import functional as F
from mixaug.batch import MixedBatch


@adapter("mixpro")
def replay_mixpro(arrays, stem):
    given = {name: torch.from_numpy(values) for name, values in arrays.items()}
    attention, mask = given["cls_attention_rows"].mean(1)[:, 1:], given["mask_tokens"]
    labels, partner, area = given["labels"], given["perm"], given["lam_area"]
    sources = torch.stack([torch.arange(len(labels)), partner], 1)
    mixed = MixedBatch(labels, labels, sources, torch.stack([area, 1 - area], 1))
    # Smoothing is no array of these files: the reference's is always 0.1.
    targets = mixed.targets(int(arrays["num_classes"]), 0.1)
    compared = [
        ("smooth_target", targets, given["smooth_target"], 1e-6),
        ("lam_attn", F.attention_lam(attention, mask), given["lam_attn"], 1e-6),
        ("lam_final", F.progressive_lam(attention, mask, area, targets, given["logits"]), given["lam_final"], 1e-6),
    ]
    if "images" in arrays:
        side, step = int(arrays["image_size"]), int(arrays["mask_patch"]) // int(arrays["model_patch"])
        tokens = mask.reshape(len(mask), 1, side // int(arrays["model_patch"]), -1).bool()
        cells = tokens[:, :, ::step, ::step]
        images, lam = F.maskmix(given["images"], partner, cells, int(arrays["mask_patch"]))
        compared += [
            ("mixed", images, given["mixed"], 0.0),
            (
                "tokens",
                F.mask_at_tokens(F.cells_to_pixels(cells[:, 0], (step, step), tokens.shape[2:]), tokens.shape[2:]),
                tokens[:, 0],
                0.0,
            ),
            ("lam_area", cells.flatten(1).float().mean(1), area, 1e-6),
        ]
        if side % int(arrays["mask_patch"]) == 0:
            compared.append(("own pixels", lam, area, 1e-6))
    return compared
