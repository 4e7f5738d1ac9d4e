"""oa_cutmix_*: CutMix's recorded boxes with object masks -> mixed images, and own weights by every mode."""

from unittest import mock

import torch

import mixaug
from golden_adapters import adapter
from golden_adapters.inside import RecordedPairing, RecordedRatio, compared
from mixaug.draws import Draws
from mixaug.labeling import VisibleObject

MODES = {"absolute": "absolute", "relative": "relative", "blend025": 0.25}


@adapter("oa_cutmix")
def replay_oa_cutmix(a, stem):
    images, labels = torch.from_numpy(a["images"]), torch.from_numpy(a["labels"])
    batch = mixaug.Batch(images, labels, metadata={"object_mask": torch.from_numpy(a["object_mask"])})
    found = []
    for case, lam in enumerate(a["lam"]):
        given = {"ratio": RecordedRatio(lam), "pairing": RecordedPairing(a[f"partner_{case}"]), "per": "batch"}
        with mock.patch.object(Draws, "pixels", lambda self, size, c=case: torch.from_numpy(a[f"centre_{c}"])[None]):
            for name, mode in MODES.items():
                policy = mixaug.create("cutmix", labeling=VisibleObject(mode, reference=True), **given)
                plan = policy.plan(batch, None)
                found.append((f"{name} {case}", plan.weights[:, 0], a[f"own_weight_{name}_{case}"], 1e-6))
        found += [
            (f"box {case}", plan.boxes[0], a[f"box_{case}"], 0.0),
            (f"mixed {case}", policy.apply(images, plan), a[f"mixed_{case}"], 0.0),
            (f"area {case}", plan.area()[0], a[f"own_weight_area_{case}"], 1e-6),
        ]
    return compared(*found)
