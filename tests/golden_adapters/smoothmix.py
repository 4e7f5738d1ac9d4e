"""smoothmix_*: centre and sigma to the bump, the mixed images and both readings of the label share."""

import torch

from golden_adapters import adapter
from golden_adapters.recorded import mixed_as_recorded
from mixaug import functional as F


@adapter("smoothmix")
def replay_smoothmix(arrays, stem):
    a = {name: torch.from_numpy(values) for name, values in arrays.items()}
    size = a["images"].shape[2:]
    # The reference has one sigma, in pixels, for square images; ours is a share of each side.
    assert size[0] == size[1], "the recording knows square images alone"
    centers = torch.stack([a["centre_y"], a["centre_x"]], 1)

    def mixed(**options):
        # The policy draws a pixel, whose lower corner is the centre.
        recorded = {"pixels": [centers + 0.5], "uniform": [a["sigma"] / size[0]]}
        return mixed_as_recorded("smoothmix", a["images"], a["partner"], recorded=recorded, **options)

    meant, released = mixed(), mixed(reference_labels=True)
    by_function, share = F.smoothmix(a["images"], a["partner"], centers, a["sigma"][:, None].expand(-1, 2))
    return [
        ("partner_mask", 1 - meant.mask, a["partner_mask"], 1e-5),
        ("mixed", meant.inputs, a["mixed"], 1e-5),
        ("mixed by the function", by_function, a["mixed"], 1e-5),
        ("own_weight", meant.lam, a["own_weight"], 1e-5),
        ("own_weight of the function", share, a["own_weight"], 1e-5),
        ("reference_lam", released.lam, a["reference_lam"], 1e-5),
    ]
