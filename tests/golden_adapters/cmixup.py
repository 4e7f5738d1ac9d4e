"""cmixup_*: label kernels, draws from them, one training step with input and hidden mixing, and metrics."""

import torch
from torch import nn

from golden_adapters import adapter
from mixaug import MixedBatch, create, losses, regression_metrics
from mixaug import functional as F
from mixaug.plan import Hidden


@adapter("cmixup")
def replay_cmixup(arrays, stem):
    arrays = {name: torch.from_numpy(array) for name, array in arrays.items()}
    if "y_pred" in arrays:
        return replay_metrics(arrays)
    if "x1" in arrays:
        return replay_step(arrays)
    # The reference rounds labels to float32 before it takes distances.
    kernel = "tophat" if "tophat" in stem else "gaussian"
    tolerance = 1e-12 if "underflow" in stem else 1e-9
    if "labels_first" in arrays:
        pool = torch.cat([arrays["labels_first"], arrays["labels_second"]]).float()
        got = F.label_kernel(pool, arrays["bandwidths"].item())[: len(arrays["labels_first"])]
        return [("prob_first", got, arrays["prob_first"], tolerance)]
    kernels = torch.stack(
        [F.label_kernel(arrays["labels"].float(), h, kernel=kernel) for h in arrays["bandwidths"].tolist()]
    )
    if "u" in arrays:
        partners = F.draw_index(kernels[0][arrays["anchors"]], arrays["u"])
        return [("partners", partners, arrays["partners"], 0.0)]
    return [("prob", kernels, arrays["prob"], tolerance)]


def replay_metrics(arrays):
    predicted, wanted = arrays["y_pred"], arrays["y_true"]
    pairs = [("rmse", regression_metrics.rmse), ("mape", regression_metrics.mape), ("r", regression_metrics.pearson)]
    return [(name, metric(predicted, wanted), arrays[name], 1e-5 * arrays[name].item()) for name, metric in pairs]


def replay_step(arrays):
    count = len(arrays["x1"])
    own = torch.arange(count)
    inputs, labels = (torch.cat([arrays[f"{v}1"], arrays[f"{v}2"]]) for v in "xy")
    partner = torch.cat([own + count, own])
    lam = arrays["lam"].reshape(1)
    model = nn.Sequential(nn.Linear(5, 16), nn.LeakyReLU(0.1), nn.Linear(16, 16), nn.LeakyReLU(0.1), nn.Linear(16, 1))
    for index, layer in enumerate((model[0], model[2], model[4]), start=1):
        layer.weight.data, layer.bias.data = arrays[f"W{index}"], arrays[f"b{index}"]
    weights = torch.cat([lam, 1 - lam]).float().expand(count, 2)
    sources = torch.stack([own, own + count], 1)
    plan = Hidden(partner=partner, lam=lam, stage=torch.zeros(1, dtype=torch.int64), eligible=("1",))
    hidden = MixedBatch(inputs=inputs, labels=labels, sources=sources, weights=weights, plan=plan)
    with torch.no_grad():
        mixed = F.mixup(inputs, partner, lam)[:count]
        pred_input = model(mixed)
        with create("manifoldmix", stages=["1"]).tap(model, hidden):
            pred_manifold = model(inputs)[:count]
    objective = losses.MixedSquaredError()
    return [
        ("mixed_x", mixed, arrays["mixed_x"], 1e-6),
        ("mixed_y", hidden.targets(), arrays["mixed_y"], 1e-6),
        ("pred_input", pred_input, arrays["pred_input"], 1e-5),
        ("pred_manifold", pred_manifold, arrays["pred_manifold"], 1e-5),
        ("loss_input", objective(pred_input, hidden), arrays["loss_input"], 1e-5),
        ("loss_manifold", objective(pred_manifold, hidden), arrays["loss_manifold"], 1e-5),
    ]
