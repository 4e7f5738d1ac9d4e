"""patchmix_*: the number of patches from the drawn share, and the mixed images from the recorded patches."""

import torch

from golden_adapters import adapter
from golden_adapters.recorded import given, mixed_as_recorded


@adapter("patchmix")
def replay_patchmix(arrays, stem):
    a = {name: torch.from_numpy(values) for name, values in arrays.items()}
    own = 1 - a["partner_patches"].double()  # the files' convention is the partner's, share and patches
    mixed = mixed_as_recorded(
        "patchmix",
        a["images"],
        a["partner"],
        # Patches go by the order of random numbers, here their own names; how many do is the policy's to say.
        recorded={"uniform": [own.squeeze(1)]},
        ratio=given(1 - a["partner_fraction"]),
        patch_size=int(a["patch_size"]),
    )
    side = int(a["patch_size"])
    return [
        ("patches", mixed.mask[:, :, ::side, ::side], own, 0.0),
        ("mixed", mixed.inputs, a["mixed"], 0.0),
        ("own_weight", mixed.lam, a["own_weight"], 1e-7),
    ]
