"""maskmix_*: the number of cells from lam, the mixed images from the recorded cells, both label shares."""

import torch

from golden_adapters import adapter
from golden_adapters.recorded import given, mixed_as_recorded


@adapter("maskmix")
def replay_maskmix(arrays, stem):
    a = {name: torch.from_numpy(values) for name, values in arrays.items()}
    own, side = a["own_patches"].double(), int(a["patch_size"])

    def mixed(**options):
        # Cells go by the order of random numbers; how many do is the policy's to say.
        recorded = {"uniform": [own.squeeze(1)]}
        options |= {"ratio": given(a["lam"]), "patch_size": side}
        return mixed_as_recorded("maskmix", a["images"], a["partner"], recorded=recorded, **options)

    by_pixels, by_cells = mixed(), mixed(reference_labels=True)
    return [
        ("cells", by_pixels.mask[:, :, ::side, ::side], own, 0.0),
        ("mixed", by_pixels.inputs, a["mixed"], 0.0),
        ("own_weight", by_cells.lam, a["own_weight"], 1e-7),
        ("own_weight_pixels", by_pixels.lam, a["own_weight_pixels"], 1e-7),
    ]
