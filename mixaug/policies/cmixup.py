"""C-Mixup (arXiv:2210.05775): mixup for regression, with partners of similar labels.

    P(partner = j | i)  ~  exp(-|y_i - y_j|^2 / (2 h^2)),   lam ~ Beta(alpha, alpha), labels mixed like inputs

The authors draw partners over the whole training set: ``mixaug.Pooled("cmixup", inputs, labels)``. On its own the
policy pairs within the batch. They draw one lam per batch and do not fold it: ``per="batch"``, the default here too.
The kernel is computed as a softmax of squared distances; the authors' densities overflow for small bandwidths and
many label columns, where theirs give NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from mixaug.checks import check_per
from mixaug.draws import Per
from mixaug.labeling import Labeling
from mixaug.ops.kernels import Kernel
from mixaug.pairing.kernel import LabelKernel, Units, check_label_kernel
from mixaug.policies.manifoldmix import ManifoldMix
from mixaug.policies.mixup import Mixup
from mixaug.policies.stages import check_stages
from mixaug.policy import Policy
from mixaug.ratio import Ratio, alpha_or_ratio
from mixaug.registry import register

__all__ = ["cmixup"]


@register(
    "cmixup",
    paper="C-Mixup: Improving Generalization in Regression, NeurIPS 2022",
    arxiv="2210.05775",
    family="regression",
)
def cmixup(
    alpha: float = 2.0,
    bandwidth: float | Literal["auto"] = "auto",
    units: Units = "raw",
    kernel: Kernel = "gaussian",
    include_self: bool = True,
    stages: Sequence[str] | None = None,
    per: Per = "batch",
    *,
    ratio: str | float | Ratio = "beta",
    labeling: str | Labeling = "area",
) -> Policy:
    """Blend samples of similar labels: partners by a Gaussian kernel on label distance.

    Args:
        alpha: lam ~ Beta(alpha, alpha); 2.0 in most of the authors' settings, 1.5 for Exchange-Rate.
        bandwidth, units, kernel, include_self: see :class:`mixaug.pairing.LabelKernel`. The bandwidth is not free of
            scale: 1.75 on Airfoil, 0.05 on Exchange-Rate.
        stages: names of the model's modules to mix after, in place of the input ("manifold" in the authors' code,
            one fixed stage there), see :class:`mixaug.policies.ManifoldMix`; needs :class:`mixaug.MixStep`.
        ratio, labeling: see :class:`mixaug.Policy`.
        per: how often lam is drawn: ``"batch"`` as the authors, or ``"sample"``.

    Raises:
        ValueError: an option out of range.
    """
    check_label_kernel("cmixup", bandwidth, units, kernel, include_self)
    pairing = LabelKernel(bandwidth, units=units, kernel=kernel, include_self=include_self)
    check_per("cmixup", per, mutual=False)
    drawn = alpha_or_ratio("cmixup", alpha, 2.0, ratio)
    if stages is None:
        return Mixup(**drawn, labeling=labeling, pairing=pairing, per=per)
    return ManifoldMix(stages=check_stages("cmixup", stages), **drawn, labeling=labeling, pairing=pairing, per=per)
