"""sumix_*: distances, corrected weights, uncertainty and the loss, through a step whose features are recorded."""

import torch
from torch import nn

import mixaug
from golden_adapters import adapter
from golden_adapters.inside import RecordedPairing, RecordedRatio
from golden_adapters.objectives import Given
from golden_adapters.recorded import Seen
from mixaug import functional as F
from mixaug.losses import MixedCrossEntropy


def linear(weight, bias):
    layer = nn.Linear(*weight.shape[::-1])
    layer.weight.data, layer.bias.data = weight, bias
    return layer


@adapter("sumix")
def replay_sumix(arrays, stem):
    a = {name: torch.from_numpy(values) for name, values in arrays.items()}
    labels, partner = a["labels"], a["perm"]
    inputs = torch.zeros(len(labels), 1, 2, 2)

    def policy(reference):
        drawn = mixaug.create("mixup", ratio=RecordedRatio(arrays["lam"]), pairing=RecordedPairing(arrays["perm"]))
        return mixaug.create("sumix", policy=drawn, gamma=float(a["gama"]), scale=None, reference=reference)

    # The step runs the mixed batch first; the unmixed one when the policy asks for it.
    model = nn.Sequential(Given(a["feat_mix"], a["feat_raw"]), linear(a["fc_w"], a["fc_b"]))
    released = policy(reference=True)
    step = mixaug.MixStep(model, released, MixedCrossEntropy())
    released.layer.load_state_dict(linear(a["unc_w"], a["unc_b"]).state_dict())
    outputs = []
    model.register_forward_hook(lambda module, given, output: outputs.append(output.detach()))
    loss, _ = step(inputs, labels)
    mixed_outputs, clean = outputs
    with torch.no_grad():
        before, after = (F.sumix_uncertainty(released.layer(a[name])) for name in ("feat_raw", "feat_mix"))
    # The authors remove the class also where both sources have the same, and weigh every sample for itself in the terms
    # that they return.
    pair = F.sumix_distances(clean, mixed_outputs, labels, partner, reference=True)
    found = [
        ("loss", loss.detach(), a["loss"], 1e-5),
        ("logits_raw", clean, a["logits_raw"], 1e-5),
        ("logits_mix", mixed_outputs, a["logits_mix"], 1e-5),
        ("unc_raw", before, a["unc_raw"], 1e-5),
        ("unc_mix", after, a["unc_mix"], 1e-5),
        ("alpha", pair[0], a["alpha"], 1e-5),
        ("alpha_", pair[1], a["alpha_"], 1e-5),
        ("INa", (-pair[0]).exp(), a["INa"], 1e-5),
        ("INb", (-pair[1]).exp(), a["INb"], 1e-5),
        ("INa_f", (-(before + after + pair[0])).exp(), a["INa_f"], 1e-5),
        ("INb_f", (-(before[partner] + after + pair[1])).exp(), a["INb_f"], 1e-5),
    ]
    seen = Seen(outputs=mixed_outputs, pooled=a["feat_mix"], clean=mixaug.Signals(outputs=clean, pooled=a["feat_raw"]))
    meant = policy(reference=False)
    mixed = meant.relabel(meant(inputs, labels, signals=seen.clean), seen)
    different = labels != labels[partner]
    weights = F.sumix_weights(pair, labels, partner, torch.stack([a["lam"], 1 - a["lam"]]).expand(len(labels), 2))
    return [
        *found,
        # Where both labels are the same, the policy as meant removes no class, and its share has no effect.
        ("lam_a of different labels", mixed.lam[different], a["lam_a"][different], 1e-5),
        ("lam_b of different labels", mixed.weights[different, 1], a["lam_b"][different], 1e-5),
        ("lam_a of the function", weights[:, 0], a["lam_a"], 1e-5),
        ("lam_b of the function", weights[:, 1], a["lam_b"], 1e-5),
    ]
