"""Mixture Outlier Exposure (arXiv:2106.03917): a sample mixed with an outlier is to be as uncertain as it is mixed.

    L = CE(f(x), y) + beta CE(f(x'), lam y + (1 - lam) / K),   x' = a mixture of x and an outlier

The outliers are partners from another stream whose share of the label is spread evenly over the K classes:
``partners=Stream("outliers", label="uniform")``, for a blend (the paper's linear form) or for a paste (its cut form).
Clean and mixed samples run in passes of their own. Outliers are told at test time by their largest probability.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from mixaug.batch import MixedBatch
from mixaug.checks import check_not_negative
from mixaug.passes import Objective, Passes, Wants


class MixOE(Objective):
    """The loss of the clean batch, and of the batch mixed with outliers.

    The policy's partners must come from the stream ``"outliers"``, see the module.

    Args:
        beta: weight of the mixed loss, not negative; the authors' scripts take 5.
        loss: (outputs, MixedBatch) to a scalar; None takes the cross-entropy.

    Raises:
        ValueError: an option out of range; when the step is made, a policy with other partners.
    """

    wants = Wants(streams=("outliers",))
    usual_policy = ("mixup", {})

    def __init__(self, beta: float = 5.0, loss: Callable[[Any, MixedBatch], Tensor] | None = None) -> None:
        super().__init__(loss)
        self.beta = check_not_negative("MixOE", "beta", beta)

    def attach(self, step: Any) -> None:
        source = step.policy.partners
        if source is None or "outliers" not in source.streams or source.labels_own:
            raise ValueError(
                "MixOE expects a policy whose partners are outliers, "
                f'partners=Stream("outliers", label="uniform"), got partners {"batch" if source is None else source}'
            )

    def forward(self, passes: Passes) -> Mapping[str, Tensor]:
        clean, mixed = passes.run(passes.clean), passes.run(passes.mixed)
        return {
            "clean": self.loss(clean.outputs, clean.batch),
            "outliers": self.beta * self.loss(mixed.outputs, mixed.batch),
        }

    def extra_repr(self) -> str:
        return f"beta={self.beta:g}"
