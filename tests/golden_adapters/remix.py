"""remix_*: mixup of a long-tailed batch -> mixed images, own weights by class counts, and the loss."""

import torch

import mixaug
from golden_adapters import adapter
from golden_adapters.inside import RecordedPairing, RecordedRatio, compared
from mixaug.labeling import Remix
from mixaug.losses import MixedCrossEntropy


@adapter("remix")
def replay_remix(a, stem):
    labeling, found = Remix(torch.from_numpy(a["class_counts"]), float(a["kappa"]), float(a["tau"])), []
    for case, lam in enumerate(a["lam"]):
        given = {"ratio": RecordedRatio(lam), "pairing": RecordedPairing(a[f"partner_{case}"]), "per": "batch"}
        policy = mixaug.create("mixup", labeling=labeling, **given)
        mixed = policy(torch.from_numpy(a[f"images_{case}"]), torch.from_numpy(a[f"labels_{case}"]))
        loss = MixedCrossEntropy()(torch.from_numpy(a[f"logits_{case}"]), mixed)
        found += [
            (f"mixed {case}", mixed.inputs, a[f"mixed_{case}"], 1e-6),
            (f"own weight {case}", mixed.lam, a[f"own_weight_{case}"], 1e-7),
            (f"loss {case}", loss, a[f"loss_{case}"], 1e-6),
        ]
    return compared(*found)
