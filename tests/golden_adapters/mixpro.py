"""mixpro_*: share of the attention on own tokens, the smoothed area target, the weight between the two."""

import torch

import mixaug
from golden_adapters import adapter
from golden_adapters.recorded import Seen, given, mixed_as_recorded
from mixaug import functional as F


@adapter("mixpro")
def replay_mixpro(arrays, stem):
    a = {name: torch.from_numpy(values) for name, values in arrays.items()}
    attention, mask, labels = a["cls_attention_rows"].mean(1)[:, 1:], a["mask_tokens"], a["labels"]
    side, patch, token = (int(a[name]) for name in ("image_size", "mask_patch", "model_patch"))
    images = a.get("images", torch.zeros(len(labels), 1, side, side))
    tokens = mask.reshape(len(mask), side // token, -1)
    # Cells go by the order of random numbers, here their own names; how many do is the policy's to say.
    cells = tokens[:, :: patch // token, :: patch // token].double()
    share = cells.flatten(1).mean(1)

    def mixed(name, seen=None, **options):
        options |= {"ratio": given(share), "patch_size": patch}
        recorded = {"uniform": [cells]}
        return mixed_as_recorded(
            name, images, a["perm"], labels, mixaug.Signals(), recorded=recorded, seen=seen, **options
        )

    # The authors count cells, also those that the border of the image cuts, which the image half of the method does on
    # demand; the policy counts pixels.
    seen = Seen(attention=attention, outputs=a["logits"])
    by_cells = mixed("maskmix", reference_labels=True)
    found = [
        ("lam_area", by_cells.lam, a["lam_area"], 1e-6),
        ("tokens", F.mask_at_tokens(by_cells.mask, tokens.shape[1:]).flatten(1), mask, 0.0),
        # Smoothing is no array of these files: the reference's is always 0.1.
        ("smooth_target", by_cells.targets(int(a["num_classes"]), 0.1), a["smooth_target"], 1e-6),
        ("lam_attn", F.attention_lam(attention, by_cells.mask), a["lam_attn"], 1e-6),
        ("lam_final of the labeling", mixaug.create("mixpro").relabel(by_cells, seen).lam, a["lam_final"], 1e-6),
    ]
    if "images" in a:
        found.append(("mixed", mixed("mixpro").inputs, a["mixed"], 0.0))
    if side % patch == 0:
        before, after = mixed("mixpro"), mixed("mixpro", seen)
        found += [("own pixels", before.lam, a["lam_area"], 1e-6), ("lam_final", after.lam, a["lam_final"], 1e-6)]
    return found
