"""Labels for long tails, where the rarer class takes the whole label: Remix (arXiv:2007.03943)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from mixaug.batch import Batch
from mixaug.checks import check_class_ids, check_numbers, check_positive, check_probability, shown
from mixaug.labeling.base import Labeling, two_shares
from mixaug.labeling.shares import Area
from mixaug.plan import Plan
from mixaug.preparation import Preparation


class Remix:
    """Give the whole label to the rarer of two classes, where its image has the larger part (Remix, arXiv:2007.03943).

    With n and m samples of the own and the partner's class in the training set and own share lam, the own label weighs
    0 where ``n / m >= kappa`` and ``lam < tau``; 1 where ``n / m <= 1 / kappa`` and ``1 - lam < tau``; lam otherwise.
    For any policy of pairs, and class ids or dense labels (B, K), for which the count is the mean over their classes:
    ``create("cutmix", labeling=mixaug.labeling.Remix(counts))``.

    Args:
        class_counts: number of training samples of each class, positive; None counts them before training begins, where
            the loop shows the policy its data (``policy.prepare``), as `mixaug train` does.
        kappa: how many times as many samples make a class frequent beside another, at least 1; 3 in the paper.
        tau: share below which an image has the smaller part, in [0, 1]; 0.5 in the paper.
        labeling: gives lam, before anything of the mixed pass is known; None takes the area's share.

    Raises:
        ValueError: an option out of range; when drawing, no labels, labels of other classes, or classes that nobody
            counted.
        TypeError: a labeling that reads the mixed pass.
    """

    def __init__(
        self,
        class_counts: Sequence[float] | Tensor | None = None,
        kappa: float = 3.0,
        tau: float = 0.5,
        labeling: Labeling | None = None,
    ) -> None:
        self.class_counts = None if class_counts is None else _checked(class_counts)
        self.kappa = check_positive("Remix", "kappa", kappa, least=1.0)
        self.tau = check_probability("Remix", "tau", tau)
        if labeling is not None and (isinstance(labeling, type) or not hasattr(labeling, "needs")):
            raise TypeError(f"Remix expects labeling as a Labeling object, such as Area(), got {shown(labeling)}")
        self.labeling = Area() if labeling is None else labeling
        #: As the labeling whose weights it decides by.
        self.weighs_mask = bool(getattr(self.labeling, "weighs_mask", False))
        if getattr(self.labeling, "reads", None):
            raise TypeError(
                f"Remix decides before the mixed pass, which {type(self.labeling).__name__} reads: pass another one"
            )
        self.needs = self.labeling.needs
        self._on: dict[torch.device, Tensor] = {}

    def on_prepare(self, preparation: Preparation) -> None:
        """Count the classes of the training set, where they were not given.

        Raises:
            ValueError: labels that are no class ids, a class without a sample.
        """
        if self.class_counts is None:
            labels = preparation.split("train")[1]
            if labels.ndim != 1 or labels.is_floating_point():
                raise ValueError(f"labeling Remix counts class ids (N,), got {tuple(labels.shape)} {labels.dtype}")
            self.class_counts = _checked(torch.bincount(labels).double())

    def __call__(self, plan: Plan, batch: Batch) -> Tensor:
        """(B, 2) float32 weights, own first."""
        if plan.sources.shape[1] != 2:
            raise ValueError(f"labeling Remix weighs pairs; these samples have {plan.sources.shape[1]} sources each")
        if batch.labels is None:
            raise ValueError("labeling Remix compares how frequent the classes are: pass labels with the images")
        own = self._count(batch.labels)
        other = own.index_select(0, plan.partner)
        lam = self.labeling(plan, batch)[:, 0]
        lam = torch.where((own >= self.kappa * other) & (lam < self.tau), torch.zeros_like(lam), lam)
        kept = (self.kappa * own <= other) & (1 - lam < self.tau)
        return two_shares(torch.where(kept, torch.ones_like(lam), lam), len(batch))

    def _count(self, labels: Tensor) -> Tensor:
        """(B,) number of training samples of each sample's class."""
        known = self._on.get(labels.device)
        if self.class_counts is None:
            raise ValueError(
                "labeling Remix does not know how frequent the classes are: pass class_counts, or call "
                "policy.prepare before training"
            )
        if known is None:
            known = torch.tensor(self.class_counts, device=labels.device)
            # To hand them over in every batch would wait for a GPU; a tensor that only pretends must not stay.
            if not isinstance(known, FakeTensor) and not torch.compiler.is_compiling():
                self._on[labels.device] = known
        if not labels.is_floating_point():
            check_class_ids("labeling Remix", labels, len(known))
            return known.index_select(0, labels.long())
        if labels.ndim != 2 or labels.shape[1] != len(known):
            raise ValueError(
                f"labeling Remix of {len(known)} classes expects class ids (B,) or labels (B, {len(known)}), got "
                f"{tuple(labels.shape)} {labels.dtype}"
            )
        return (labels.float() * known).sum(1)

    def __repr__(self) -> str:
        classes = "classes not counted yet" if self.class_counts is None else f"{len(self.class_counts)} classes"
        return f"Remix({classes}, kappa={self.kappa:g}, tau={self.tau:g})"


def _checked(counts: Sequence[float] | Tensor) -> list[float]:
    told = counts.tolist() if isinstance(counts, Tensor) else counts
    numbers = check_numbers("Remix", "class_counts", told)
    if not numbers or min(numbers) <= 0:
        raise ValueError(f"Remix expects class_counts as positive numbers, one for each class, got {told}")
    return numbers
