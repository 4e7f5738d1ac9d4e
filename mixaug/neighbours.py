"""Partners that lie near: by a kernel on label distance, among the nearest, or within a distance.

Each pairing works in two places. In a batch (the ordinary call) it looks at the B samples at hand. Over a whole
training set it is first fitted: ``pairing.fit(labels, inputs)`` returns an object whose ``draw`` gives rows of that
set; :class:`mixaug.Pooled` does this for any policy.

Class ids (integer labels) are as far from each other as their one-hot vectors, sqrt(2); float labels (B,), (B, K) or
(B, D) have Euclidean distances over all columns, dense class targets included. Reading values is confined to CPU
tensors, where it is free: there labels and inputs are checked for NaN, and a kernel that does nothing is warned of.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from mixaug.draws import Draws
from mixaug.ops.kernels import (
    CHUNK,
    KERNELS,
    Kernel,
    KernelSampler,
    as_points,
    draw_index,
    log_weights,
    rule_of_thumb,
    squared_distances,
    total_variance,
)
from mixaug.ratio import positive

if TYPE_CHECKING:
    from mixaug.batch import Batch

Units = Literal["raw", "standardised"]
By = Literal["labels", "inputs"]

#: Mean total variation from the uniform distribution below which a kernel is called too wide, and mean chance to
#: meet oneself above which it is called too narrow.
TOO_WIDE = 0.05
TOO_NARROW = 0.95
#: Beyond this the square of a distance may overflow.
LARGEST = 1e150
#: Share of all pairs that ``Local(radius="auto")`` allows.
LOCAL_SHARE = 0.1


@runtime_checkable
class PoolPairing(Protocol):
    """A pairing fitted to a training set: (B,) int64 rows of that set, -1 for the sample itself.

    Attributes:
        wants_rows: whether the rows that the samples themselves have in the training set matter.
    """

    wants_rows: bool

    def draw(self, batch: Batch, draws: Draws, rows: Tensor | None = None) -> Tensor: ...


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
    _check_kernel("label_kernel", kernel, units)
    points = _points("label_kernel", "labels", labels)
    width = torch.as_tensor(positive("bandwidth", bandwidth), dtype=torch.float64).to(points.device)
    if units == "standardised":
        width = width * _spread("label_kernel", points)
    return _probabilities(squared_distances(points, points), width, kernel, include_self)


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
        _check_kernel("LabelKernel", kernel, units)
        self.bandwidth = bandwidth if bandwidth == "auto" else positive("bandwidth", bandwidth)
        self.units: Units = units
        self.kernel: Kernel = kernel
        self.include_self = include_self
        self.warned = False

    def __call__(self, batch: Batch, draws: Draws) -> Tensor:
        points = _of_batch("LabelKernel", batch, "labels")
        width = self._width(points)
        squared = squared_distances(points, points)
        probabilities = _probabilities(squared, width, self.kernel, self.include_self)
        # Among equal labels, as in a short last batch, no bandwidth could do better.
        if _readable(points) and not self.warned and bool(squared.any()):
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
        points = _points("LabelKernel", "labels", labels)
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
        # Constant labels in a batch: all are at distance 0, any width will do.
        return width.clamp(min=1e-300 if width.dtype == torch.float64 else 1e-30)

    def __repr__(self) -> str:
        width = self.bandwidth if isinstance(self.bandwidth, str) else f"{self.bandwidth:g} {self.units}"
        return f"LabelKernel({width}, {self.kernel}, include_self={self.include_self})"


class Local:
    """Partners within a distance, all equally likely (Local Mixup, arXiv:2201.04368, as a pairing).

    The paper weighs every pair's loss by a decreasing function of the distance of inputs; its hard threshold is
    what a pairing can do. A sample with nobody near stays unmixed.

    Args:
        radius: partners are nearer than this; ``"auto"`` takes the distance within which a tenth of the pairs lie
            (of up to 1024 rows).
        by: distance of ``"inputs"`` (flattened), or of ``"labels"``.
        include_self: whether a sample may be its own partner.

    Raises:
        ValueError: an option out of range; when drawing, no labels for ``by="labels"``, or NaN values.
    """

    involution = False

    def __init__(
        self, radius: float | Literal["auto"] = "auto", *, by: By = "inputs", include_self: bool = True
    ) -> None:
        self.radius = radius if radius == "auto" else positive("radius", radius)
        self.by: By = _check_by("Local", by)
        self.include_self = include_self
        self.needs_labels = by == "labels"

    def __call__(self, batch: Batch, draws: Draws) -> Tensor:
        points = _of_batch("Local", batch, self.by)
        squared = squared_distances(points, points)
        probabilities = _probabilities(squared, self._radius(points), "tophat", self.include_self)
        return draw_index(probabilities, draws.uniform(per="sample"))

    def fit(self, labels: Tensor, inputs: Tensor | None = None) -> PoolPairing:
        """The same radius over a whole training set of (N, ...) labels and inputs.

        Raises:
            ValueError: no rows, NaN values, or no inputs for ``by="inputs"``.
        """
        points = _points("Local", self.by, _fitted_rows("Local", self.by, labels, inputs))
        sampler = KernelSampler(points, float(self._radius(points)), "tophat")
        return FittedKernel(sampler, self.by, self.include_self, "Local")

    def _radius(self, points: Tensor) -> Tensor:
        if self.radius != "auto":
            return torch.full((), float(self.radius), dtype=torch.float64, device=points.device)
        some = points[_spaced(points.shape[0], 1024, points.device)]
        place = torch.arange(some.shape[0], device=points.device)
        squared = squared_distances(some, some).masked_fill(place == place[:, None], math.inf).flatten()
        rank = max(1, round(LOCAL_SHARE * (squared.shape[0] - some.shape[0])))
        # Just beyond the pair of that rank: the radius itself is not within.
        return squared.kthvalue(rank).values.sqrt() * (1 + 1e-9)

    def __repr__(self) -> str:
        return f"Local({self.radius}, by={self.by!r}, include_self={self.include_self})"


#: A number of neighbours for each sample: a function of (inputs, labels) to (B,) int64, 0 for no mixing.
Limits = Callable[[Tensor, Tensor], Tensor]


class Nearest:
    """A partner uniform among the k nearest others.

    Ties go to the earlier row; over a training set by one-dimensional distance, to either.

    Args:
        k: how many; or a function of (inputs (B, ...), labels) that gives (B,) int64 limits, one for each sample,
            0 for a sample that stays unmixed (RegMix, arXiv:2106.03374; then ``k_max`` bounds them).
        by: distance of ``"inputs"`` (flattened), or of ``"labels"``.
        k_max: the largest limit where ``k`` is a function.

    Raises:
        ValueError: k < 1; when fitted, fewer than k other rows; when drawing, no labels for ``by="labels"``, NaN
            values, or limits that are not (B,) int64 >= 0. A batch with fewer than k others takes all of them.
    """

    involution = False

    def __init__(self, k: int | Limits = 5, *, by: By = "inputs", k_max: int | None = None) -> None:
        if callable(k):
            if k_max is None or k_max < 1:
                raise ValueError(f"Nearest expects k_max >= 1 for limits that are a function, got {k_max!r}")
        elif isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"Nearest expects k >= 1 neighbours or a function of limits, got {k!r}")
        self.k = k
        self.k_max = k_max if callable(k) else k
        self.by: By = _check_by("Nearest", by)
        self.needs_labels = by == "labels" or callable(k)

    def __call__(self, batch: Batch, draws: Draws) -> Tensor:
        points = _of_batch("Nearest", batch, self.by)
        own = torch.arange(len(batch), device=batch.device)
        squared = squared_distances(points, points).masked_fill(own == own[:, None], -1.0)
        # Never more than the others of a batch: the last batch of an epoch is often short.
        count = min(int(self.k_max or 1), len(batch) - 1)
        neighbours = squared.argsort(dim=1, stable=True)[:, 1 : count + 1]
        chosen = self.choose(neighbours, batch, draws)
        return torch.where(chosen < 0, own, chosen)

    def fit(self, labels: Tensor, inputs: Tensor | None = None) -> PoolPairing:
        """The same neighbours in a whole training set of (N, ...) labels and inputs.

        Raises:
            ValueError: fewer than k + 1 rows, NaN values, or no inputs for ``by="inputs"``.
        """
        points = _points("Nearest", self.by, _fitted_rows("Nearest", self.by, labels, inputs))
        # A limit that is a function counts as all others where it is larger.
        fewest = 1 if callable(self.k) else int(self.k)
        if points.shape[0] <= fewest:
            raise ValueError(f"Nearest expects more than k={fewest} rows to find neighbours in, got {len(points)}")
        return FittedNearest(self, points)

    def choose(self, neighbours: Tensor, batch: Batch, draws: Draws) -> Tensor:
        """(B, K) neighbours, nearest first, to (B,) one of the first k of each row, -1 where k is 0."""
        unit = draws.uniform(per="sample")
        if not callable(self.k):
            return limited_choice(neighbours, torch.full_like(neighbours[:, 0], self.k), unit)
        if batch.labels is None:
            raise ValueError("Nearest with learned limits needs labels: pass them to the policy with the images")
        limits = self.k(batch.images, batch.labels)
        if not isinstance(limits, Tensor) or limits.dtype != torch.int64 or limits.shape != unit.shape:
            came = f"{tuple(limits.shape)} {limits.dtype}" if isinstance(limits, Tensor) else type(limits).__name__
            raise ValueError(f"Nearest expects limits ({len(batch)},) int64 from its function, got {came}")
        if _readable(limits) and int(limits.min()) < 0:
            raise ValueError(f"Nearest expects limits >= 0 from its function, got {int(limits.min())}")
        return limited_choice(neighbours, limits, unit)

    def __repr__(self) -> str:
        return f"Nearest(k={self.k}, by={self.by!r})"


def limited_choice(neighbours: Tensor, limits: Tensor, unit: Tensor) -> Tensor:
    """One of the first ``limits[i]`` neighbours of each sample.

    Args:
        neighbours: (B, K) int64 rows, nearest first.
        limits: (B,) int64; larger than K counts as K, 0 gives -1 (no partner).
        unit: (B,) in [0, 1).
    """
    limits = limits.clamp(max=neighbours.shape[1])
    position = torch.minimum((unit * limits).long(), (limits - 1).clamp(min=0))
    chosen = neighbours.gather(1, position[:, None]).squeeze(1)
    return chosen.masked_fill(limits == 0, -1)


def nearest_rows(rows: Tensor, count: int) -> Tensor:
    """The nearest others of every row, nearest first, ties in order of rows.

    Exact, in blocks: O(N^2 D) time, O(N count) memory.

    Args:
        rows: (N, ...) floating, N > count; flattened.
        count: neighbours to find, at least 1.

    Returns:
        (N, count) int64.

    Raises:
        ValueError: fewer rows than neighbours, or NaN values.
    """
    points = _points("nearest_rows", "rows", rows)
    if not 1 <= count < points.shape[0]:
        raise ValueError(f"nearest_rows expects more than count={count} >= 1 rows, got {points.shape[0]}")
    step = max(1, CHUNK // points.shape[0])
    own = torch.arange(points.shape[0], device=points.device)
    found = []
    for start in range(0, points.shape[0], step):
        part = own[start : start + step]
        squared = squared_distances(points[part], points)
        squared[own[: len(part)], part] = -1.0
        candidates = _smallest(squared, count + 1)
        found.append(_drop_self(squared.gather(1, candidates), candidates, part, count))
    return torch.cat(found)


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
        points = _like_fitted(self.what, self.by, _of_batch(self.what, batch, self.by), self.sampler.points)
        if not self.include_self and rows is None:
            raise ValueError(
                f"{self.what}(include_self=False) needs to know which rows of the training set the samples are: "
                "pass rows=, or use include_self=True"
            )
        return self.sampler.draw(points, draws.generator, None if self.include_self else rows)


class FittedNearest:
    """Nearest rows of a training set, found for each batch in O(B N D); made by ``Nearest.fit``.

    On a CPU, what was found for a known row is kept, N x k numbers in all: later epochs only look it up.
    """

    wants_rows = True

    def __init__(self, pairing: Nearest, points: Tensor) -> None:
        self.pairing = pairing
        self.points = points
        self.count = min(int(pairing.k_max or 1), points.shape[0] - 1)
        self.kept: Tensor | None = None
        self.order: Tensor | None = None
        if points.ndim == 2 and points.shape[1] == 1:
            self.order = points[:, 0].argsort(stable=True)
            self.place = points[self.order, 0].contiguous()

    def draw(self, batch: Batch, draws: Draws, rows: Tensor | None = None) -> Tensor:
        """(B,) int64 rows of the training set, -1 for a sample that stays unmixed.

        Args:
            batch: the anchors.
            draws: source of randomness.
            rows: (B,) int64 rows that the anchors themselves have in the training set, whose neighbours are then
                meant; without them a row at distance 0, if there is one, is taken for the sample itself.
        """
        points = _like_fitted("Nearest", self.pairing.by, _of_batch("Nearest", batch, self.pairing.by), self.points)
        if rows is None:
            neighbours = self._neighbours(points, None)
        elif self.order is None and _readable(points):
            neighbours = self._look_up(rows)
        else:
            neighbours = self._neighbours(self.points[rows], rows)
        return self.pairing.choose(neighbours, batch, draws)

    def _look_up(self, rows: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = torch.full((self.points.shape[0], self.count), -1)
        new = rows[self.kept[rows, 0] < 0].unique()
        if len(new):
            self.kept[new] = self._neighbours(self.points[new], new)
        return self.kept[rows]

    def _neighbours(self, points: Tensor, rows: Tensor | None) -> Tensor:
        count = self.count
        if self.order is not None:
            # The k + 1 nearest lie within k + 1 places of the anchor's own.
            width = min(count + 1, self.points.shape[0])
            middle = torch.searchsorted(self.place, points[:, 0].contiguous())
            start = (middle - width).clamp(0, max(self.points.shape[0] - 2 * width - 1, 0))
            span = min(2 * width + 1, self.points.shape[0])
            ranks = start[:, None] + torch.arange(span, device=points.device)
            candidates = self.order[ranks]
            squared = (self.place[ranks] - points).square()
            return _drop_self(squared, candidates, rows, count)
        step = max(1, CHUNK // self.points.shape[0])
        found = []
        for start_row in range(0, points.shape[0], step):
            part = slice(start_row, start_row + step)
            squared = squared_distances(points[part], self.points)
            candidates = _smallest(squared, count + 1)
            squared = squared.gather(1, candidates)
            found.append(_drop_self(squared, candidates, None if rows is None else rows[part], count))
        return torch.cat(found)


def _smallest(values: Tensor, count: int) -> Tensor:
    """(B, count) columns of the smallest values of each row, in no order; of equal ones the first columns."""
    # A plain top-k takes any of the values that equal the last one.
    limit = values.kthvalue(count, dim=1, keepdim=True).values
    place = torch.where(values < limit, 0, torch.where(values == limit, 1, 2))
    columns = torch.arange(values.shape[1], device=values.device)
    return (place * values.shape[1] + columns).topk(count, dim=1, largest=False).values % values.shape[1]


def _drop_self(squared: Tensor, candidates: Tensor, rows: Tensor | None, count: int) -> Tensor:
    """The nearest ``count`` candidates without the anchor itself, nearest first, ties by row."""
    by_row = candidates.argsort(dim=1)
    squared, candidates = squared.gather(1, by_row), candidates.gather(1, by_row)
    if rows is not None:
        squared = squared.masked_fill(candidates == rows[:, None], -1.0)
    order = squared.argsort(dim=1, stable=True)
    squared, candidates = squared.gather(1, order), candidates.gather(1, order)
    # The anchor comes first where it was recognised.
    itself = (squared[:, :1] < 0) if rows is not None else (squared[:, :1] == 0)
    return torch.where(itself, candidates[:, 1 : count + 1], candidates[:, :count])


def _probabilities(squared: Tensor, width: Tensor, kernel: Kernel, include_self: bool) -> Tensor:
    logs = log_weights(squared, width.to(squared.dtype), kernel)
    if not include_self:
        own = torch.eye(squared.shape[0], dtype=torch.bool, device=squared.device)
        logs = logs.masked_fill(own, -math.inf)
        alone = (logs == -math.inf).all(1, keepdim=True)
        logs = torch.where(alone & own, 0.0, logs)
    # A softmax: the reference's densities overflow for small bandwidths and many columns.
    return torch.softmax(logs, dim=1)


def _log_rows(points: Tensor, width: float, kernel: Kernel) -> Tensor:
    """(A, N) logarithms of the kernel for a few rows spread over the data set."""
    anchors = points[_spaced(points.shape[0], max(4, min(64, CHUNK // points.shape[0])), points.device)]
    return log_weights(squared_distances(anchors, points), width, kernel)


def _spaced(count: int, most: int, device: torch.device) -> Tensor:
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


def _of_batch(what: str, batch: Batch, by: By) -> Tensor:
    if by == "inputs":
        return _points(what, "inputs", batch.images)
    if batch.labels is None:
        raise ValueError(
            f'{what} pairs by labels: pass labels to the policy with the images, or choose pairing="permutation"'
        )
    return _points(what, "labels", batch.labels)


def _points(what: str, name: str, rows: Tensor) -> Tensor:
    if not isinstance(rows, Tensor):
        raise TypeError(f"{what} expects {name} as a torch.Tensor, got {type(rows).__name__}")
    if rows.ndim == 0 or rows.numel() == 0:
        raise ValueError(f"{what} expects at least one row of {name}, got shape {tuple(rows.shape)}")
    if rows.dtype == torch.bool or rows.is_complex():
        raise TypeError(f"{what} pairs by distance of {name}, which must be floating or integer, got {rows.dtype}")
    points = as_points(rows)
    if points.is_floating_point() and _readable(points):
        small = points.abs() <= LARGEST
        if not bool(small.all()):
            row = int((~small).any(1).nonzero()[0])
            raise ValueError(
                f"{what} pairs by distance, but row {row} of {name} holds NaN, infinity or a number beyond {LARGEST:g}"
            )
    return points


def _like_fitted(what: str, by: By, points: Tensor, fitted: Tensor) -> Tensor:
    if points.shape[1:] != fitted.shape[1:]:
        raise ValueError(
            f"{what} was fitted to {by} with {math.prod(fitted.shape[1:])} columns "
            f"({fitted.dtype}), got {math.prod(points.shape[1:])} ({points.dtype})"
        )
    return points


def _fitted_rows(what: str, by: By, labels: Tensor, inputs: Tensor | None) -> Tensor:
    if by == "labels":
        return labels
    if inputs is None:
        raise ValueError(f'{what}(by="inputs") needs the inputs of the training set: fit(labels, inputs)')
    return inputs


def _spread(what: str, points: Tensor) -> Tensor:
    scale = total_variance(points).sqrt()
    if _readable(points) and not float(scale) > 0:
        raise ValueError(
            f"{what}: all labels are equal, so a bandwidth in units of their standard deviation (or chosen by rule) "
            'is zero; give a raw bandwidth, or choose pairing="permutation", which is what any kernel does here'
        )
    return scale


def _check_kernel(what: str, kernel: str, units: str) -> None:
    if kernel not in KERNELS:
        raise ValueError(f"{what} expects kernel in {list(KERNELS)}, got {kernel!r}")
    if units not in ("raw", "standardised"):
        raise ValueError(f"{what} expects units 'raw' or 'standardised', got {units!r}")


def _check_by(what: str, by: By) -> By:
    if by not in ("labels", "inputs"):
        raise ValueError(f"{what} expects by 'labels' or 'inputs', got {by!r}")
    return by


def _readable(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()
