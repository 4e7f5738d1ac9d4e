"""What the adapters share: argument checks, and the batch that was not mixed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mixaug import MixCollate, MixedBatch, Policy
from mixaug.checks import check_probability
from mixaug.plan import Unmixed


def require_policy(policy: Policy, caller: str) -> Policy:
    """Return `policy` if it is one.

    Raises:
        TypeError: `policy` is not a `mixaug.Policy`.
    """
    if not isinstance(policy, Policy):
        raise TypeError(
            f"{caller} expected `policy` to be a mixaug.Policy, got {type(policy).__name__}: {policy!r}; "
            'make one with mixaug.create("cutmix")'
        )
    return policy


STEP = "mixaug.MixStep(model, policy, objective)"


def require_model_free(policy: Policy, caller: str, instead: str) -> Policy:
    """Return `policy` if it can mix without a model.

    Args:
        policy: what was handed in.
        caller: named in messages.
        instead: how the loop that the caller is for mixes by a policy that needs the model.

    Raises:
        TypeError: `policy` is not a `mixaug.Policy`.
        ValueError: `policy` needs signals from the model, which `caller` cannot give.
    """
    require_policy(policy, caller)
    if policy.needs:
        raise ValueError(
            f"{caller} mixes before the model runs, but {type(policy).__name__} needs "
            f"{', '.join(sorted(policy.needs))} from it; {instead}"
        )
    return policy


def refuse_mixing_collate(collate: Any, caller: str) -> None:
    """Raise a `ValueError` that names `caller` where a collate function has mixed the batches that it would mix."""
    if isinstance(collate, MixCollate):
        raise ValueError(
            f"{caller} mixes batches itself, but they come from a MixCollate: take one of the two, for batches would "
            "be mixed twice"
        )


def require_first(cls: type, mixin: type, packages: tuple[str, ...], lost: str) -> None:
    """Raise a `TypeError` where a class of a library takes the place of our mixin in a class that is being made.

    Only a base that has methods of the mixin does: a callback or a mixin of the library may stand before ours.

    Args:
        cls: the class that is made.
        mixin: ours.
        packages: beginnings of the names of the library's modules.
        lost: what would become of the mixin, as the end of a sentence.
    """
    order = cls.__mro__
    ours = {name for name in vars(mixin) if not name.startswith("__")}
    for base in order[: order.index(mixin)]:
        if base.__module__.startswith(packages) and any(hasattr(base, name) for name in ours):
            # The base that the class names may be one of the user's own, below the library's.
            named = next((own for own in cls.__bases__ if issubclass(own, base)), base).__name__
            raise TypeError(
                f"{cls.__name__} names {named} before {mixin.__name__}, {lost}: "
                f"class {cls.__name__}({mixin.__name__}, {named})"
            )


def require_class_count(num_classes: int, caller: str) -> int:
    """Return `num_classes` if it is a positive int, else raise a `ValueError` that names `caller`."""
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(f"{caller} expected `num_classes` to be a positive int, got {num_classes!r}")
    return num_classes


def require_smoothing(label_smoothing: float, caller: str) -> float:
    """Return `label_smoothing` if it is a number in [0, 1], else raise a `ValueError` that names `caller`."""
    return check_probability(caller, "label_smoothing", label_smoothing)


def unmixed(inputs: Tensor, labels: Tensor | None) -> MixedBatch:
    """The batch of `inputs` (B, ...) in which every sample is its own and only source."""
    plan = Unmixed.of(len(inputs), inputs.device)
    weights = torch.stack([plan.lam, 1 - plan.lam], dim=1)
    return MixedBatch(inputs=inputs, labels=labels, sources=plan.sources, weights=weights, plan=plan)
