"""tdattenmix_*: squares from the attention, mixed images, and labels: those of the authors' code, and as meant."""

import torch

import mixaug
from golden_adapters import adapter
from golden_adapters.recorded import mixed_as_recorded


@adapter("tdattenmix")
def replay_tdattenmix(arrays, stem):
    a = {name: torch.from_numpy(values) for name, values in arrays.items()}
    side, patch, count = int(a["side"]), int(a["patch"]), len(a["images"])
    signals = mixaug.Signals(attention=a["attention"].unflatten(1, (side, side)))
    # The maps are recorded as they are after the floor; the terms of the loss are not.
    options = {"floor": None, "fine_grained": 0.0, "consistency": 0.0}

    def mixed(**others):
        return mixed_as_recorded(
            "tdattenmix",
            a["images"],
            a["partner"],
            a["labels"],
            signals,
            recorded={"integers": [a["rectangle"].reshape(1)]},
            **options,
            **others,
        )

    reference, meant = mixed(reference=True), mixed(attention_share=1.0)
    plan = reference.plan
    tokens = reference.mask[:, 0, ::patch, ::patch].flatten(1).bool()
    return [
        ("paste_corner", plan.boxes[:, :2] // patch, a["paste_corner"], 0.0),
        ("take_corner_of_partner", plan.corners // patch, a["take_corner_of_partner"], 0.0),
        ("own_tokens", tokens, a["own_tokens"], 0.0),
        ("mixed", reference.inputs, a["mixed"], 0.0),
        ("lam_area", plan.area().double(), a["lam_area"].expand(count), 1e-7),
        ("lam_attention_reference", plan.attended.double(), a["lam_attention_reference"].expand(count), 1e-6),
        ("lam_attention_per_sample", meant.lam.double(), a["lam_attention_per_sample"], 1e-6),
        ("lam", reference.lam.double(), a["lam"].expand(count), 1e-6),
        ("target", reference.targets(int(a["num_classes"]), float(a["smoothing"])), a["target"], 1e-6),
    ]
