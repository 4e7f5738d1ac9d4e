"""RegMixup (arXiv:2206.14502): the loss of the clean batch and that of the mixed one, from one forward of both.

    L = l(f(x), y) + eta l(f(x'), y')

One forward for both means that batch statistics are those of clean and mixed samples together. The authors mix with lam
~ Beta(20, 20) (CIFAR-10) or Beta(10, 10) (CIFAR-100), one lam a batch: ``policy=mixup policy.alpha=20
policy.per=batch``. Their code takes the mean over all 2B rows, half of the paper's loss with eta = 1, so that a
learning rate means something else: ``reference=True`` does so too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from mixaug.batch import MixedBatch
from mixaug.checks import check_flag, check_not_negative
from mixaug.passes import Objective, Passes, check_joins


class RegMixup(Objective):
    """The clean and the mixed loss of one joined pass, for any policy.

    Args:
        eta: weight of the mixed loss, not negative; 1 in the paper.
        loss: (outputs, MixedBatch) to a scalar; None takes the cross-entropy.
        reference: half of the sum, as the authors' code.

    Raises:
        ValueError: an option out of range.
    """

    usual_policy = ("mixup", {"alpha": 10.0, "per": "batch"})

    def __init__(
        self,
        eta: float = 1.0,
        loss: Callable[[Any, MixedBatch], Tensor] | None = None,
        reference: bool = False,
    ) -> None:
        super().__init__(loss)
        self.eta = check_not_negative("RegMixup", "eta", eta)
        self.task = getattr(self.loss, "task", None)
        self.scale = 0.5 if check_flag("RegMixup", "reference", reference) else 1.0

    def attach(self, step: Any) -> None:
        check_joins("RegMixup", step)

    def forward(self, passes: Passes) -> Mapping[str, Tensor]:
        clean, mixed = passes.run(passes.clean, passes.mixed, joined=True)
        return {
            "clean": self.scale * self.loss(clean.outputs, clean.batch),
            "mixed": self.scale * self.eta * self.loss(mixed.outputs, mixed.batch),
        }

    def extra_repr(self) -> str:
        return f"eta={self.eta:g}, scale={self.scale:g}"
