"""ood_*: scores of recorded logits and how well they tell outliers, in both conventions of FPR95."""

import torch

from golden_adapters import adapter
from mixaug.engine.evaluation import outliers


@adapter("ood")
def replay_ood(arrays, stem):
    logits = [torch.from_numpy(arrays[f"logits_{side}"]) for side in ("in", "out")]
    found = []
    for name in ("msp", "energy", "max_logit"):
        inside, outside = (getattr(outliers, name)(side) for side in logits)
        stored = [torch.from_numpy(arrays[f"{name}_{side}"]) for side in ("in", "out")]
        found += [(f"{name}_in", inside, stored[0], 1e-6), (f"{name}_out", outside, stored[1], 1e-6)]
        # The reference ranks float32 scores.
        numbers = {
            "auroc": outliers.auroc(*stored),
            "aupr": outliers.average_precision(*stored),
            "fpr95": outliers.fpr_at_recall(*stored, positive="outliers", reference=True),
            "fpr95_in_positive": outliers.fpr_at_recall(*stored),
        }
        for what, got in numbers.items():
            found.append(
                (f"{name}_{what}", got, torch.tensor(float(arrays[f"{name}_{what}"]), dtype=torch.float64), 1e-6)
            )
    return found
