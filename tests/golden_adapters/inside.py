"""What policies that mix inside a model make of recorded features: a model of one stage, with the authors' draws."""

import numpy as np
import torch
from torch import nn

import mixaug

#: The name of the stage.
STAGE = "0"


class RecordedPairing:
    """Partners that were recorded."""

    def __init__(self, partner):
        self.partner = torch.from_numpy(partner)

    def __call__(self, batch, draws):
        return self.partner


class RecordedRatio:
    """Own shares that were recorded: one for the batch, or one for every sample."""

    def __init__(self, lam):
        self.lam = torch.as_tensor(np.asarray(lam)).reshape(-1)

    def __call__(self, draws):
        return self.lam


def mixed_inside(policy, features, labels=None):
    """What a stage puts out after mixing, where it put out ``features``.

    Args:
        policy: its name and options are those of the registry, its stage is :data:`STAGE`.
        features: (B, ...).
        labels: (B,) class ids, or None.

    Returns:
        Features, which carry a graph to those that came in where they want one, and the MixedBatch with final labels.
    """
    model = nn.Sequential(nn.Identity())
    source = mixaug.ModelSignals(model)
    mixed = policy(features, labels, signals=source)
    with policy.tap(source, mixed) as seen:
        output = model(mixed.inputs)
    return output, policy.relabel(mixed, seen)


def compared(*rows):
    """Comparisons of tensors without graphs."""
    return [
        (what, got.detach(), torch.as_tensor(np.asarray(expected)), tolerance)
        for what, got, expected, tolerance in rows
    ]
