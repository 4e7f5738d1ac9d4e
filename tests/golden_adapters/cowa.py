"""CoWA: scores of a Gaussian mixture, and the loss of mixed pseudo-labels by mixed scores, through a step."""

import torch
from torch import nn

import mixaug
from golden_adapters import adapter
from golden_adapters.objectives import InOrder, compared
from golden_adapters.partners import recorded
from mixaug import Batch
from mixaug.objectives import CoWA
from mixaug.objectives.cowa import mixture_confidence
from mixaug.preparation import Inspection


@adapter("cowa")
def cowa(a, stem):
    features, probabilities = torch.tensor(a["features"]), torch.tensor(a["model_probs"])
    epsilon = float(a["epsilon"])
    found = mixture_confidence(features, probabilities, epsilon)
    scores = [
        ("features", nn.functional.normalize(features, dim=1), a["features_normalised"], 1e-4),
        ("first shares", found.first, a["gamma_first"], 1e-4),
        # The reference computes in float32 what may be of any size.
        ("log posterior", found.log_posterior, a["log_posterior"], 1e-4 * max(1.0, abs(a["log_posterior"]).max())),
        ("shares", found.shares, a["pseudo_probs"], 1e-4),
        ("pseudo-labels", found.labels, a["pseudo_label"], 0),
        ("lpg", found.lpg, a["lpg"], 1e-4),
        ("ppl", found.ppl, a["ppl"], 1e-4),
        ("jmds", found.jmds, a["jmds"], 1e-4),
    ]
    images, rows = torch.tensor(a["images"]), torch.tensor(a["rows"])
    model = nn.Sequential(nn.Flatten(), nn.Linear(images[0].numel(), len(a["head_bias"])))
    model[1].weight.data, model[1].bias.data = torch.tensor(a["head_weight"]), torch.tensor(a["head_bias"])
    objective = CoWA(epsilon=epsilon)
    objective.on_refresh(
        Inspection("train", probabilities.log(), features, torch.zeros(len(features)), model[1].weight, None)
    )
    policy = mixaug.create("mixup", pairing=InOrder(a["partner"], a["partner"]), ratio=recorded(a["lam"]))
    batch = Batch(images, rows=rows)
    told = objective.prepare_batch(batch)
    mixed = policy(told)
    trust = (mixed.weights * told.metadata["confidence"][mixed.sources]).sum(1)
    loss, _ = mixaug.MixStep(model, policy, objective)(batch)
    loss.backward()
    return compared(
        *scores,
        ("confidence", told.metadata["confidence"], a["coefficient"], 1e-4),
        ("mixed", mixed.inputs, a["mixed"], 1e-5),
        ("target", mixed.targets(len(a["head_bias"])), a["target"], 1e-5),
        ("mixed confidence", trust, a["mixed_coefficient"], 1e-4),
        ("loss", loss, a["loss"], 1e-5),
        ("gradient", model[1].weight.grad, a["grad_head_weight"], 1e-5),
    )
