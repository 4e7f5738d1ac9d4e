"""The public names of mixaug, which the package itself takes from here when the first of them is asked for."""

from mixaug import functional, labeling, losses, networks, objectives, pairing, partners, policies, ratio, schedule
from mixaug._version import __version__
from mixaug.batch import Batch, MixedBatch
from mixaug.listing import describe, list_policies
from mixaug.loading import DeviceLoader, MixCollate
from mixaug.passes import Objective, Outcome, Passes, Wants
from mixaug.policies.combinations import OneOf, Sometimes
from mixaug.policies.pooled import Pooled
from mixaug.policy import Policy
from mixaug.registry import create, register
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
