"""moex_*: features -> exchanged moments by every norm, and the losses and the gradient of the default one."""

import torch
from torch import nn

import mixaug
from golden_adapters import adapter
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


class Paired:
    """A pairing that is recorded."""

    def __init__(self, partner):
        self.partner = torch.from_numpy(partner)

    def __call__(self, batch, draws):
        return self.partner


@adapter("moex")
def replay_moex(a, stem):
    labels, head = torch.from_numpy(a["labels"]), torch.from_numpy(a["head_weight"])
    given = {"ratio": float(a["lam"]), "epsilon": float(a["epsilon"]), "pairing": Paired(a["partner"]), "stage": "0"}

    def run(**options):
        model = nn.Sequential(nn.Identity())
        features = torch.tensor(a["features"], requires_grad=True)
        policy = mixaug.create("moex", **given, **options)
        mixed = policy(features, labels, signals=model)
        with policy.tap(model, mixed):
            return features, model(mixed.inputs), mixed

    found = []
    for name, options in NORMS.items():
        for ending, positive, tolerance in (("", False, 1e-5), ("_positive", True, 1e-3)):
            if f"mixed_{name}{ending}" in a:
                _, output, _ = run(**options, positive_only=positive)
                found.append((f"{name}{ending}", output.detach(), a[f"mixed_{name}{ending}"], tolerance))
    features, output, mixed = run()
    logits = output.mean((2, 3)) @ head.T
    loss = MixedCrossEntropy()(logits, mixed)
    loss.backward()
    # CutMix before: its images are recorded as features, its labels by their share.
    _, _, three = run(before=LabelsOfCutMix(a["cutmix_lam"]))
    cut = MixedCrossEntropy()(logits.detach(), three)
    found += [
        ("logits", logits.detach(), a["logits_pono"], 1e-5),
        ("loss", loss.detach(), a["loss_pono"], 1e-5),
        ("gradient", features.grad, a["grad_features_pono"], 1e-4),
        ("loss with cutmix", cut, a["loss_pono_cutmix"], 1e-5),
    ]
    return [(what, got, torch.as_tensor(expected), tolerance) for what, got, expected, tolerance in found]
