"""neural_collapse_*: NC1 to NC4 of recorded features and a recorded classifier."""

import torch

from golden_adapters import adapter
from mixaug.engine.evaluation.geometry import neural_collapse


@adapter("neural_collapse")
def replay_neural_collapse(arrays, stem):
    features, labels, weight, bias = (
        torch.from_numpy(arrays[name]) for name in ("features", "labels", "weight", "bias")
    )
    found = neural_collapse(features, labels, weight, bias)
    expected = {name: torch.tensor(float(arrays[name]), dtype=torch.float64) for name in found}
    return [
        (name, torch.tensor(value, dtype=torch.float64), expected[name], 1e-5 * abs(float(expected[name])) + 1e-12)
        for name, value in found.items()
    ]
