"""cmixup_*: label kernels, draws from them, one training step with input and hidden mixing, and metrics."""

import itertools

import torch
from torch import nn

import mixaug
from golden_adapters import adapter
from golden_adapters.inside import RecordedRatio
from golden_adapters.objectives import InOrder
from golden_adapters.recorded import RecordedDraws
from mixaug import functional as F
from mixaug import losses, regression_metrics


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
        width, first = arrays["bandwidths"].item(), len(arrays["labels_first"])
        return [
            ("prob_first", F.label_kernel(pool, width)[:first], arrays["prob_first"], tolerance),
            *partners_by_policy("first", pool, width, kernel, arrays["prob_first"]),
        ]
    labels, found = arrays["labels"].float(), []
    if "u" in arrays:
        width = arrays["bandwidths"].item()
        drawn = F.draw_index(F.label_kernel(labels, width)[arrays["anchors"]], arrays["u"])
        found.append(("partners of the function", drawn, arrays["partners"], 0.0))
        by_policy = torch.stack([
            partners_of("cmixup", labels, width, kernel, torch.full((len(labels),), u, dtype=torch.float64))[anchor]
            for anchor, u in zip(arrays["anchors"].tolist(), arrays["u"].tolist(), strict=True)
        ])  # fmt: skip
        return [*found, ("partners", by_policy, arrays["partners"], 0.0)]
    widths = arrays["bandwidths"].tolist()
    kernels = torch.stack([F.label_kernel(labels, width, kernel=kernel) for width in widths])
    found.append(("prob", kernels, arrays["prob"], tolerance))
    for width, expected in zip(widths, arrays["prob"], strict=True):
        found += partners_by_policy(f"h = {width:g}", labels, width, kernel, expected)
    return found


def partners_of(name, labels, width, kernel, unit):
    """Partners that the policy draws for a batch of these labels with these random numbers, one for each row."""
    policy = mixaug.create(name, bandwidth=width, kernel=kernel)
    policy.pairing.warned = True  # these bandwidths may be extreme, and are what was recorded
    draws = RecordedDraws(len(labels), uniform=[unit])
    partner = policy.pairing(mixaug.Batch(torch.zeros(len(labels), 1), labels), draws)
    draws.check_used(name)
    return partner


def partners_by_policy(what, labels, width, kernel, probabilities):
    """Partners that the policy draws at several levels, against the recorded distribution's inverse."""
    found, reach = [], probabilities.double().cumsum(1)
    for level in (0.0, 0.13, 0.37, 0.5, 0.71, 0.94):
        got = partners_of("cmixup", labels, width, kernel, torch.full((len(labels),), level, dtype=torch.float64))
        got = got[: len(reach)]
        # A level may lie within the recorded rounding of a border, so what is compared is the range of the column.
        upper = reach.gather(1, got[:, None])[:, 0]
        lower = upper - probabilities.double().gather(1, got[:, None])[:, 0]
        outside = (level - upper).clamp(min=0) + (lower - level).clamp(min=0)
        found.append((f"partners at {level:g}, {what}", outside, torch.zeros_like(outside), 1e-9))
    return found


def replay_metrics(arrays):
    predicted, wanted = arrays["y_pred"], arrays["y_true"]
    pairs = [("rmse", regression_metrics.rmse), ("mape", regression_metrics.mape), ("r", regression_metrics.pearson)]
    return [(name, metric(predicted, wanted), arrays[name], 1e-5 * arrays[name].item()) for name, metric in pairs]


def replay_step(arrays):
    count = len(arrays["x1"])
    own = torch.arange(count)
    inputs, labels = (torch.cat([arrays[f"{v}1"], arrays[f"{v}2"]]) for v in "xy")
    partner = torch.cat([own + count, own])
    sizes = [arrays["x1"].shape[1], *(len(arrays[f"b{index}"]) for index in (1, 2, 3))]
    layers = [nn.Linear(*pair) for pair in itertools.pairwise(sizes)]
    for index, layer in enumerate(layers, start=1):
        layer.weight.data, layer.bias.data = arrays[f"W{index}"], arrays[f"b{index}"]
    model = nn.Sequential(layers[0], nn.LeakyReLU(0.1), layers[1], nn.LeakyReLU(0.1), layers[2])
    found, objective = [], losses.MixedSquaredError()
    for what, stages in (("input", None), ("manifold", ["1"])):
        policy = mixaug.create("cmixup", bandwidth=1.0, stages=stages, ratio=RecordedRatio(arrays["lam"].numpy()))
        policy.pairing = InOrder(partner)
        mixed = policy(inputs, labels, signals=model)
        with torch.no_grad(), policy.tap(model, mixed):
            predicted = model(mixed.inputs)
        # Both halves mix into each other, with the shares the other way round; the reference has the first.
        half = mixed.rows_of(own)
        found += [
            (f"mixed_y, {what}", half.targets(), arrays["mixed_y"], 1e-6),
            (f"pred_{what}", predicted[:count], arrays[f"pred_{what}"], 1e-5),
            (f"loss_{what}", objective(predicted[:count], half), arrays[f"loss_{what}"], 1e-5),
        ]
        if stages is None:
            found.append(("mixed_x", half.inputs, arrays["mixed_x"], 1e-6))
    return found
