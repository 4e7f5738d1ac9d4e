"""mixaug: every published way to mix training samples, as drop-in policies for PyTorch.

>>> import mixaug, torch
>>> policy = mixaug.create("cutmix", alpha=1.0)
>>> mixed = policy(torch.rand(8, 3, 32, 32), torch.arange(8))
>>> mixed.inputs.shape, mixed.targets(num_classes=10).shape
(torch.Size([8, 3, 32, 32]), torch.Size([8, 10]))
"""

from mixaug import functional, labeling, losses, networks, objectives, pairing, partners, policies, ratio, schedule
from mixaug._version import __version__
from mixaug.batch import Batch, MixedBatch
from mixaug.loading import DeviceLoader, MixCollate
from mixaug.passes import Objective, Outcome, Passes, Wants
from mixaug.policies.combinations import OneOf, Sometimes
from mixaug.policies.pooled import Pooled
from mixaug.policy import Policy
from mixaug.registry import create, describe, list_policies, register
from mixaug.signals import ModelSignals, Signals
from mixaug.step import MixStep

__all__ = [
    "Batch",
    "DeviceLoader",
    "MixCollate",
    "MixStep",
    "MixedBatch",
    "ModelSignals",
    "Objective",
    "OneOf",
    "Outcome",
    "Passes",
    "Policy",
    "Pooled",
    "Signals",
    "Sometimes",
    "Wants",
    "__version__",
    "create",
    "describe",
    "functional",
    "labeling",
    "list_policies",
    "losses",
    "networks",
    "objectives",
    "pairing",
    "partners",
    "policies",
    "ratio",
    "register",
    "schedule",
]
