"""mixstyle_*: features, partners and lam -> features of mixed statistics, and their gradient."""

import torch

import mixaug
from golden_adapters import adapter
from golden_adapters.inside import STAGE, RecordedPairing, RecordedRatio, compared, mixed_inside


@adapter("mixstyle")
def replay_mixstyle(a, stem):
    features = torch.tensor(a["features"], requires_grad=True)
    policy = mixaug.create(
        "mixstyle",
        probability=1.0,
        stages=[STAGE],
        epsilon=float(a["epsilon"]),
        pairing=RecordedPairing(a["partner"]),
        ratio=RecordedRatio(a["lam"]),
    )
    output, mixed = mixed_inside(policy, features)
    output.backward(torch.from_numpy(a["grad_output"]))
    # The gradient is the quotient of two deviations, which is large where lam takes over a large one.
    rounding = 1e-6 * float(abs(a["grad_features"]).max())
    return compared(
        ("mixed", output, a["mixed"], 1e-5),
        ("gradient", features.grad, a["grad_features"], max(1e-5, rounding)),
        ("own labels", mixed.weights, [[1.0, 0.0]] * len(features), 0.0),
    )
