"""SelMix: gradients of measures, gains of pairs of classes, and the distribution over pairs."""

from unittest import mock

import torch
from torch import nn

import mixaug
from golden_adapters import adapter
from mixaug.functional import selmix_gains, selmix_pairs
from mixaug.ops.confusion import MEASURES, measure_gradient
from mixaug.preparation import Inspection


def refreshed(a, measure, confusion, gradient):
    """Pairs that the policy draws from, once it was told of a set with this confusion and these prototypes."""
    prototypes, weight = torch.tensor(a["prototypes"]), torch.tensor(a["head_weight"])
    classes, width = weight.shape
    policy = mixaug.create(
        "selmix", measure=measure, factor=float(a["lambda_min"]), temperature=float(a["temperature"])
    )
    policy.attach(nn.Sequential(nn.Linear(width, classes)))
    told = Inspection(
        "valid", torch.zeros(classes, classes), prototypes, torch.arange(classes), weight, torch.tensor(a["head_bias"])
    )
    with (
        mock.patch("mixaug.policies.selmix.confusion_matrix", lambda *_: confusion),
        mock.patch("mixaug.policies.selmix.measure_gradient", lambda *_: (gradient, None)),
    ):
        policy.on_refresh(told)
    return policy.current_pairs().double()


@adapter("selmix")
def selmix(a, stem):
    confusion, prototypes = torch.tensor(a["confusion"]), torch.tensor(a["prototypes"])
    found = []
    for measure in MEASURES:
        if f"{measure}_P" not in a:
            continue
        gradient, multipliers = measure_gradient(
            measure,
            confusion,
            coverage=float(a["coverage_alpha"]),
            tau=float(a["coverage_tau"]),
            largest=float(a["coverage_lambda_max"]),
            rate=float(a["min_recall_val_lr"]),
            reference=True,
        )
        share = (float(a["lambda_min"]) + 1) / 2
        gains = selmix_gains(gradient, prototypes, torch.tensor(a["head_weight"]), torch.tensor(a["head_bias"]), share)
        # The distribution is compared for the recorded gains, which differ from ours by the authors' float32.
        recorded = torch.tensor(a[f"{measure}_gain"])
        pairs = selmix_pairs(recorded, float(a["temperature"]), 1e-10 if measure == "mean_recall" else 1e-8)
        scale = lambda name: max(float(abs(a[name]).max()), 1e-6)  # noqa: E731
        found += [
            (f"{measure} gradient", gradient, a[f"{measure}_dM_dA"], 1e-6 * scale(f"{measure}_dM_dA")),
            (f"{measure} gains", gains, recorded, 1e-4 * scale(f"{measure}_gain")),
            (f"{measure} pairs of the recorded gains", pairs, a[f"{measure}_P"], 1e-6),
            # The policy's own gains are in float64, and the temperature makes more of the difference.
            (f"{measure} pairs", refreshed(a, measure, confusion, gradient), a[f"{measure}_P"], 1e-4),
        ]
        if f"{measure}_lambdas" in a and multipliers is not None:
            name = f"{measure}_lambdas"
            found.append((f"{measure} multipliers", multipliers, a[name], 1e-6 * scale(name)))
    return [(what, got, torch.as_tensor(expected), tolerance) for what, got, expected, tolerance in found]
