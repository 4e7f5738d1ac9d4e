"""Partners by a kernel on label distance: C-Mixup (arXiv:2210.05775)."""

from __future__ import annotations

import math
import warnings
from typing import Literal, get_args

import torch
from torch import Tensor

from mixaug.batch import Batch
from mixaug.checks import check_choice, check_flag, check_positive
from mixaug.draws import Draws
from mixaug.ops.kernels import (
    CHUNK,
    KERNELS,
    Kernel,
    KernelSampler,
    draw_index,
    log_weights,
    rule_of_thumb,
    squared_distances,
    total_variance,
)
from mixaug.pairing.points import By, finite_points, points_like_fitted, points_of_batch, readable

Units = Literal["raw", "standardised"]


#: Mean total variation from the uniform distribution below which a kernel is called too wide, and mean chance to
#: meet oneself above which it is called too narrow.
TOO_WIDE = 0.05


TOO_NARROW = 0.95


def label_kernel(
    labels: Tensor,
    bandwidth: float,
    *,
    units: Units = "raw",
    kernel: Kernel = "gaussian",
    include_self: bool = True,
) -> Tensor:
    """C-Mixup's pairing probabilities (arXiv:2210.05775): row i is the distribution of sample i's partner.

    ``P[i, j]`` is proportional to ``exp(-|y_i - y_j|^2 / (2 h^2))``, or for the top hat to 1 where
    ``|y_i - y_j| < h``. For reading and testing: memory is N x N, which drawing never needs.

    Args:
        labels: (N,) or (N, D) float, or (N,) integer class ids at the distances of their one-hot vectors.
        bandwidth: h, positive.
        units: ``"raw"`` label units, or ``"standardised"``: multiples of the labels' standard deviation (for D > 1
            the root of the summed variances, so that all columns keep their scale).
        kernel: ``"gaussian"`` or ``"tophat"``.
        include_self: as in the reference; else the diagonal is 0 (the identity for a row with nobody else).

    Returns:
        (N, N) float64, rows sum to 1.

    Raises:
        ValueError: bandwidth not positive, no rows, NaN labels, standardised units of constant labels.

    Example:
        >>> label_kernel(torch.tensor([0.0, 1.0]), 1.0)
        tensor([[0.6225, 0.3775],
                [0.3775, 0.6225]], dtype=torch.float64)
    """
    width = check_label_kernel("label_kernel", bandwidth, units, kernel, include_self)
    if isinstance(width, str):
        raise ValueError(f"label_kernel expects bandwidth as a number, got {width!r}")
    points = finite_points("label_kernel", "labels", labels)
    scaled = torch.as_tensor(width, dtype=torch.float64).to(points.device)
    if units == "standardised":
        scaled = scaled * _spread("label_kernel", points)
    return partner_probabilities(squared_distances(points, points), scaled, kernel, include_self)


class LabelKernel:
    """C-Mixup's pairing (arXiv:2210.05775): partners by a kernel on the distance of labels.

    Partners are drawn independently and with replacement. In a batch the kernel is over the B samples, B x B.
    Over a training set it is over all of it, as in the reference, without N x N: see
    :class:`mixaug.ops.kernels.KernelSampler` (memory O(N), O(log N) per draw for one-dimensional labels).

    Args:
        bandwidth: standard deviation of the Gaussian, radius of the top hat; ``"auto"`` takes Silverman's rule
            ``s * (4 / (D + 2) / N) ** (1 / (D + 4))`` with s the root mean variance of the label columns and N the
            rows at hand (on Airfoil 1.8, where the paper has 1.75).
        units: of a numeric bandwidth: ``"raw"`` label units, or ``"standardised"``, multiples of the labels'
            standard deviation (for D > 1 the root of the summed variances).
        kernel: ``"gaussian"`` or ``"tophat"``.
        include_self: whether a sample may be its own partner, as in the reference.

    Raises:
        ValueError: an option out of range; when drawing, no labels or NaN labels; when fitted, constant labels
            that leave the bandwidth without a scale.
    """

    involution = False
    needs_labels = True

    def __init__(
        self,
        bandwidth: float | Literal["auto"] = "auto",
        *,
        units: Units = "raw",
        kernel: Kernel = "gaussian",
        include_self: bool = True,
    ) -> None:
        self.bandwidth = check_label_kernel("LabelKernel", bandwidth, units, kernel, include_self)
        self.units: Units = units
        self.kernel: Kernel = kernel
        self.include_self = bool(include_self)
        self.warned = False

    def __call__(self, batch: Batch, draws: Draws) -> Tensor:
        points = points_of_batch("LabelKernel", batch, "labels")
        width = self._width(points)
        squared = squared_distances(points, points)
        probabilities = partner_probabilities(squared, width, self.kernel, self.include_self)
        # Among equal labels, as in a short last batch, no bandwidth could do better.
        if readable(points) and not self.warned and bool(squared.any()):
            self.warned = True
            _warn_extreme("LabelKernel", probabilities, float(width), self.include_self, "in this batch")
        return draw_index(probabilities, draws.uniform(per="sample"))

    def fit(self, labels: Tensor, inputs: Tensor | None = None) -> FittedKernel:
        """The same kernel over a whole training set.

        Args:
            labels: (N,) or (N, D) float, or (N,) class ids.
            inputs: not used.

        Raises:
            ValueError: no rows, NaN labels, or constant labels with ``"auto"`` or standardised units.
        """
        points = finite_points("LabelKernel", "labels", labels)
        if self.bandwidth == "auto" or self.units == "standardised":
            _spread("LabelKernel", points)
        width = float(self._width(points))
        logs = _log_rows(points, width, self.kernel)
        _warn_extreme("LabelKernel", torch.softmax(logs, 1), width, self.include_self, "in this data set")
        return FittedKernel(KernelSampler(points, width, self.kernel), "labels", self.include_self, "LabelKernel")

    def _width(self, points: Tensor) -> Tensor:
        if self.bandwidth == "auto":
            width = rule_of_thumb(points)
        else:
            scale = total_variance(points).sqrt() if self.units == "standardised" else torch.ones_like(points[0:1, ...])
            width = scale.flatten()[0].to(torch.get_default_dtype() if scale.dtype == torch.int64 else scale.dtype)
            width = width * float(self.bandwidth)
        # Constant labels in a batch are all at distance 0, and any width will do.
        return width.clamp(min=1e-300 if width.dtype == torch.float64 else 1e-30)

    def __repr__(self) -> str:
        width = self.bandwidth if isinstance(self.bandwidth, str) else f"{self.bandwidth:g} {self.units}"
        return f"LabelKernel({width}, {self.kernel}, include_self={self.include_self})"


class FittedKernel:
    """Draws from a kernel over a training set; made by ``fit``."""

    def __init__(self, sampler: KernelSampler, by: By, include_self: bool, what: str) -> None:
        self.sampler = sampler
        self.by: By = by
        self.include_self = include_self
        self.wants_rows = not include_self
        self.what = what

    def draw(self, batch: Batch, draws: Draws, rows: Tensor | None = None) -> Tensor:
        """(B,) int64 rows of the training set.

        Args:
            batch: the anchors.
            draws: source of randomness.
            rows: (B,) int64 rows that the anchors themselves have in the training set; needed to leave them out.
        """
        points = points_like_fitted(self.what, self.by, points_of_batch(self.what, batch, self.by), self.sampler.points)
        if not self.include_self and rows is None:
            raise ValueError(
                f"{self.what}(include_self=False) needs to know which rows of the training set the samples are: "
                "pass rows=, or use include_self=True"
            )
        return self.sampler.draw(points, draws.generator, None if self.include_self else rows)


def partner_probabilities(squared: Tensor, width: Tensor, kernel: Kernel, include_self: bool) -> Tensor:
    logs = log_weights(squared, width.to(squared.dtype), kernel)
    if not include_self:
        own = torch.eye(squared.shape[0], dtype=torch.bool, device=squared.device)
        logs = logs.masked_fill(own, -math.inf)
        alone = (logs == -math.inf).all(1, keepdim=True)
        logs = torch.where(alone & own, 0.0, logs)
    # The weights are a softmax: the reference's densities overflow for small bandwidths and many columns.
    return torch.softmax(logs, dim=1)


def _log_rows(points: Tensor, width: float, kernel: Kernel) -> Tensor:
    """(A, N) logarithms of the kernel for a few rows spread over the data set."""
    anchors = points[spaced_rows(points.shape[0], max(4, min(64, CHUNK // points.shape[0])), points.device)]
    return log_weights(squared_distances(anchors, points), width, kernel)


def spaced_rows(count: int, most: int, device: torch.device) -> Tensor:
    if count <= most:
        return torch.arange(count, device=device)
    return torch.linspace(0, count - 1, most, device=device).round().long().clamp(0, count - 1)


def _warn_extreme(what: str, probabilities: Tensor, width: float, include_self: bool, where: str) -> None:
    """Warn of a kernel that does nothing: partners as good as uniform, or always the sample itself."""
    count = probabilities.shape[1]
    if count < 3:
        return
    uniform = 0.5 * (probabilities - 1 / count).abs().sum(1).mean()
    if include_self and probabilities.amax(1).mean() > TOO_NARROW:
        warnings.warn(
            f"{what}: bandwidth {width:.4g} is far below the distance of neighbouring labels {where}: samples are "
            f"paired with themselves with probability {float(probabilities.amax(1).mean()):.3f}, so almost nothing "
            'is mixed; bandwidth="auto" suggests one',
            stacklevel=4,
        )
    elif uniform < TOO_WIDE:
        warnings.warn(
            f"{what}: bandwidth {width:.4g} is so wide against the labels {where} that partners are uniform within "
            f"a total variation of {float(uniform):.3f}: this is plain mixup; "
            'bandwidth="auto" suggests a narrower one',
            stacklevel=4,
        )


def _spread(what: str, points: Tensor) -> Tensor:
    scale = total_variance(points).sqrt()
    if readable(points) and not float(scale) > 0:
        raise ValueError(
            f"{what}: all labels are equal, so a bandwidth in units of their standard deviation (or chosen by rule) "
            'is zero; give a raw bandwidth, or choose pairing="permutation", which is what any kernel does here'
        )
    return scale


def check_label_kernel(
    what: str, bandwidth: float | str, units: str, kernel: str, include_self: bool
) -> float | Literal["auto"]:
    """The bandwidth of options that :class:`LabelKernel` takes, or a ValueError that names ``what``."""
    check_choice(what, "kernel", kernel, KERNELS)
    check_choice(what, "units", units, get_args(Units))
    check_flag(what, "include_self", include_self)
    return (
        "auto"
        if isinstance(bandwidth, str) and bandwidth == "auto"
        else check_positive(what, "bandwidth", bandwidth, 1e-300, 1e300)
    )
