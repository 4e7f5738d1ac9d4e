"""moex_*: features -> exchanged moments by every norm, and the losses and the gradient of the default one."""

import torch

import mixaug
from golden_adapters import adapter
from golden_adapters.inside import STAGE, RecordedPairing, compared, mixed_inside
from mixaug.losses import MixedCrossEntropy
from mixaug.plan import Unmixed

#: Norms by their names in the files.
NORMS = {
    "pono": {"norm": "pono"},
    "cifar_pono": {"norm": "pono"},
    "in": {"norm": "in"},
    "ln": {"norm": "ln"},
    "gn2": {"norm": "gn", "groups": 2},
    "gn_d4": {"norm": "gn", "group_size": 4},
    "gpono2": {"norm": "gpono", "groups": 2},
    "gpono_d4": {"norm": "gpono", "group_size": 4},
}


class LabelsOfCutMix(mixaug.Policy):
    """CutMix whose images are recorded already: labels of pairs by a recorded share."""

    def __init__(self, lam):
        super().__init__(ratio=float(lam), per="batch")

    def sample(self, batch, partner, draws):
        return Unmixed(partner=partner, lam=self.ratio(draws).float())


@adapter("moex")
def replay_moex(a, stem):
    labels, head = torch.from_numpy(a["labels"]), torch.from_numpy(a["head_weight"])
    given = {"ratio": float(a["lam"]), "epsilon": float(a["epsilon"]), "stage": STAGE}
    given["pairing"] = RecordedPairing(a["partner"])

    def run(features, **options):
        return mixed_inside(mixaug.create("moex", **given, **options), features, labels)

    features, found = torch.tensor(a["features"], requires_grad=True), []
    for name, options in NORMS.items():
        for ending, positive, tolerance in (("", False, 1e-5), ("_positive", True, 1e-3)):
            if f"mixed_{name}{ending}" in a:
                output, _ = run(features, **options, positive_only=positive)
                found.append((f"{name}{ending}", output, a[f"mixed_{name}{ending}"], tolerance))
    output, mixed = run(features)
    logits = output.mean((2, 3)) @ head.T
    loss = MixedCrossEntropy()(logits, mixed)
    loss.backward()
    _, three = run(features, before=LabelsOfCutMix(a["cutmix_lam"]))
    return compared(
        *found,
        ("logits", logits, a["logits_pono"], 1e-5),
        ("loss", loss, a["loss_pono"], 1e-5),
        ("gradient", features.grad, a["grad_features_pono"], 1e-4),
        ("loss with cutmix", MixedCrossEntropy()(logits, three), a["loss_pono_cutmix"], 1e-5),
    )
