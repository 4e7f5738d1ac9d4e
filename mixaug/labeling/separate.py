"""Labels with a ratio of their own, apart from that of the inputs (arXiv:2303.08433)."""

from __future__ import annotations

from torch import Tensor

from mixaug import ratio as ratios
from mixaug.batch import Batch
from mixaug.draws import Draws
from mixaug.labeling.base import two_shares
from mixaug.plan import Plan
from mixaug.ratio import Ratio


class Separate:
    """Draw the own label's share apart from the input's: ``create("mixup", labeling="separate")``.

    The benefits of mixup for learning rare features do not rest on labels that follow the inputs (arXiv:2303.08433):
    inputs and labels may be mixed in different ratios. Drawn as often as ``per`` of the policy says. A sample that
    nothing was mixed into keeps its label.

    Args:
        ratio: ``"uniform"``, ``"midpoint"``, ``"beta"``, a share in [0, 1], or a Ratio, see :class:`mixaug.Policy`.
        alpha: of ``"beta"``, positive.

    Raises:
        ValueError: an option out of range, an alpha beside another ratio.
        TypeError: an object that is no Ratio.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, ratio: str | float | Ratio = "uniform", alpha: float | None = None) -> None:
        if alpha is not None and ratio != "beta":
            raise ValueError(f"Separate takes alpha for ratio='beta' alone, got alpha={alpha!r} and ratio={ratio!r}")
        self.ratio = ratios.make(ratio, 1.0 if alpha is None else alpha, "Separate")

    def __call__(self, plan: Plan, batch: Batch) -> Tensor:
        raise TypeError("labeling 'separate' draws: ask draw(plan, batch, draws), as Policy.plan does")

    def draw(self, plan: Plan, batch: Batch, draws: Draws) -> Tensor:
        """(B, 2) float32 weights, own first."""
        weights = two_shares(self.ratio(draws), len(batch))
        return weights.where((plan.area() < 1).expand(len(batch))[:, None], two_shares(plan.area(), len(batch)))

    def __repr__(self) -> str:
        return f"Separate({self.ratio!r})"
