"""resizemix_*: tau and centre to a box, and the shrunken paste; the file name ends in the interpolation."""

import torch

from golden_adapters import adapter
from golden_adapters.recorded import mixed_as_recorded


@adapter("resizemix")
def replay_resizemix(arrays, stem):
    a = {name: torch.from_numpy(values) for name, values in arrays.items()}
    interpolation = "bilinear" if "bilinear" in stem else "nearest"
    recorded = {"pixels": [torch.stack([a["cy"], a["cx"]], 1)]}
    # Files of mmpretrain draw the own area, within bounds that the recorded share has gone through; those of OpenMixup
    # the side.
    recorded |= {"beta": [a["lam"]]} if "lam" in a else {"uniform": [a["tau"]]}
    mixed = mixed_as_recorded(
        "resizemix",
        a["images"],
        a["partner"],
        recorded=recorded,
        rule="area" if "lam" in a else "uniform",
        scope=(0.0, 1.0),
        interpolation=interpolation,
    )
    return [
        ("boxes", mixed.plan.boxes, a["box"], 0.0),
        ("mixed", mixed.inputs, a["mixed"], 5e-5 if interpolation == "bilinear" else 0.0),
        ("own_weight", mixed.lam, a["own_weight"], 1e-7),
    ]
