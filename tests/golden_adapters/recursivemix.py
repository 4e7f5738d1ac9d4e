"""RecursiveMix: a sequence of batches, with the authors' boxes."""

from unittest import mock

import torch
from torch import nn

import mixaug
from golden_adapters import adapter
from mixaug.losses import MixedCrossEntropy
from mixaug.ops.boxes import centred_boxes, shares_of_sides
from mixaug.policies import RecursiveMix


class Network(nn.Module):
    """A convolution whose kernel is its stride, ReLU, mean, and a linear head."""

    def __init__(self, a):
        super().__init__()
        out, channels, kernel, _ = a["conv_weight"].shape
        self.conv, self.relu = nn.Conv2d(channels, out, kernel, stride=kernel), nn.ReLU()
        self.fc = nn.Linear(out, a["fc_weight"].shape[0])
        fill(self.conv, a, "conv")
        fill(self.fc, a, "fc")

    def forward(self, images):
        return self.fc(self.relu(self.conv(images)).mean((2, 3)))


def fill(layer, a, name):
    layer.weight.data = torch.tensor(a[f"{name}_weight"])
    layer.bias.data = torch.tensor(a[f"{name}_bias"])


@adapter("recursivemix")
def recursivemix(a, stem):
    interpolation = {"nearest": "nearest", "bilinear": "bilinear_corners"}[str(a["interpolation"])]
    policy = mixaug.create(
        "recursivemix", alpha=float(a["alpha"]), omega=float(a["omega"]), interpolation=interpolation
    )
    steps = range(len(a["area"]))
    centers, areas = torch.stack([torch.tensor(a["cy"]), torch.tensor(a["cx"])], 1), torch.tensor(a["area"])
    boxes = [(areas[t : t + 1], centers[t : t + 1]) for t in steps[1:]]

    def drawn(policy, draws, size):
        area, center = boxes.pop(0)
        return centred_boxes(center, shares_of_sides(area.sqrt(), size), size)

    model = Network(a)
    step = mixaug.MixStep(
        model, policy, MixedCrossEntropy(), mixaug.ModelSignals(model, features="relu", classifier="fc")
    )
    fill(policy.region_head, a, "fc_roi")
    mixed, found = {}, []
    # What the step mixed is what its model was run on.
    model.register_forward_pre_hook(lambda module, inputs: mixed.update(images=inputs[0]))
    for t in steps:
        with mock.patch.object(RecursiveMix, "draw_boxes", drawn):
            loss, terms = step(torch.tensor(a[f"images_{t}"]), torch.tensor(a[f"labels_{t}"]))
        kept = policy.partners.kept
        labels, weights = kept["labels"].reshape(kept["weights"].shape), kept["weights"]
        one_hot = torch.nn.functional.one_hot(labels, int(a["num_classes"])).float()
        consistency = float(a["omega"]) * (1 - float(a["lam"][t])) * float(a["loss_roi"][t])
        found += [
            (f"mixed_{t}", mixed["images"], a[f"mixed_{t}"], 1e-6 if "corners" in interpolation else 0.0),
            (f"target_{t}", (one_hot * weights[..., None]).sum(1), a[f"target_{t}"], 1e-6),
            (f"loss_total[{t}]", loss.detach(), a["loss_total"][t], 1e-5),
            (f"consistency[{t}]", terms.get("consistency", torch.zeros(())), consistency, 1e-5),
        ]
    return [(what, got.detach(), torch.as_tensor(expected), tolerance) for what, got, expected, tolerance in found]
