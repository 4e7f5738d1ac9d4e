"""Partners among the nearest rows, or within a distance."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from mixaug.batch import Batch
from mixaug.checks import check_callable, check_choice, check_flag, check_positive, check_whole
from mixaug.draws import Draws
from mixaug.ops.kernels import CHUNK, KernelSampler, draw_index, squared_distances
from mixaug.pairing.base import PoolPairing
from mixaug.pairing.kernel import FittedKernel, partner_probabilities, spaced_rows
from mixaug.pairing.points import (
    By,
    finite_points,
    fitted_points,
    points_like_fitted,
    points_of_batch,
    readable,
)

#: Share of all pairs that ``Local(radius="auto")`` allows.
LOCAL_SHARE = 0.1
#: Rows whose distances say which radius that is.
ROWS_OF_RADIUS = 1024


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
        self.radius = check_local("Local", radius, by, include_self)
        self.by: By = by
        self.include_self = bool(include_self)
        self.needs_labels = by == "labels"

    def __call__(self, batch: Batch, draws: Draws) -> Tensor:
        points = points_of_batch("Local", batch, self.by)
        squared = squared_distances(points, points)
        probabilities = partner_probabilities(squared, self._radius(points, squared), "tophat", self.include_self)
        return draw_index(probabilities, draws.uniform(per="sample"))

    def fit(self, labels: Tensor, inputs: Tensor | None = None) -> PoolPairing:
        """The same radius over a whole training set of (N, ...) labels and inputs.

        Raises:
            ValueError: no rows, NaN values, or no inputs for ``by="inputs"``.
        """
        points = finite_points("Local", self.by, fitted_points("Local", self.by, labels, inputs))
        sampler = KernelSampler(points, float(self._radius(points)), "tophat")
        return FittedKernel(sampler, self.by, self.include_self, "Local")

    def _radius(self, points: Tensor, squared: Tensor | None = None) -> Tensor:
        """The radius among points, of which all squared distances may be known."""
        if self.radius != "auto":
            return torch.full((), float(self.radius), dtype=torch.float64, device=points.device)
        if squared is None or len(points) > ROWS_OF_RADIUS:
            points = points[spaced_rows(points.shape[0], ROWS_OF_RADIUS, points.device)]
            squared = squared_distances(points, points)
        place = torch.arange(points.shape[0], device=points.device)
        pairs = squared.masked_fill(place == place[:, None], math.inf).flatten()
        rank = max(1, round(LOCAL_SHARE * (pairs.shape[0] - points.shape[0])))
        # The radius lies just beyond the pair of that rank: a distance equal to it is not within.
        return pairs.kthvalue(rank).values.sqrt() * (1 + 1e-9)

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
            check_callable("Nearest", "k", k, ["inputs", "labels"], "function of limits")
            if k_max is None:
                raise ValueError("Nearest expects k_max >= 1 for limits that are a function, got None")
            k_max = check_whole("Nearest", "k_max", k_max)
        else:
            k = check_whole("Nearest", "k", k)
        self.k = k
        self.k_max = k_max if callable(k) else k
        check_choice("Nearest", "by", by, get_args(By))
        self.by: By = by
        self.needs_labels = by == "labels" or callable(k)

    def __call__(self, batch: Batch, draws: Draws) -> Tensor:
        points = points_of_batch("Nearest", batch, self.by)
        own = torch.arange(len(batch), device=batch.device)
        squared = squared_distances(points, points).masked_fill(own == own[:, None], -1.0)
        # k never exceeds the number of other samples: the last batch of an epoch is often short.
        count = min(int(self.k_max or 1), len(batch) - 1)
        neighbours = squared.argsort(dim=1, stable=True)[:, 1 : count + 1]
        chosen = self.choose(neighbours, batch, draws)
        return torch.where(chosen < 0, own, chosen)

    def fit(self, labels: Tensor, inputs: Tensor | None = None) -> PoolPairing:
        """The same neighbours in a whole training set of (N, ...) labels and inputs.

        Raises:
            ValueError: fewer than k + 1 rows, NaN values, or no inputs for ``by="inputs"``.
        """
        points = finite_points("Nearest", self.by, fitted_points("Nearest", self.by, labels, inputs))
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
        if readable(limits) and int(limits.min()) < 0:
            raise ValueError(f"Nearest expects limits >= 0 from its function, got {int(limits.min())}")
        return limited_choice(neighbours, limits, unit)

    def __repr__(self) -> str:
        # The limits may be a method of the policy that has this pairing: the text of one would hold the other's.
        k = getattr(self.k, "__qualname__", type(self.k).__name__) if callable(self.k) else self.k
        return f"Nearest(k={k}, by={self.by!r})"


def check_local(what: str, radius: float | str, by: str, include_self: bool) -> float | Literal["auto"]:
    """The radius of options that :class:`Local` takes, or a ValueError that names ``what``."""
    check_choice(what, "by", by, get_args(By))
    check_flag(what, "include_self", include_self)
    return (
        "auto"
        if isinstance(radius, str) and radius == "auto"
        else check_positive(what, "radius", radius, 1e-300, 1e300)
    )


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
    points = finite_points("nearest_rows", "rows", rows)
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
        points = points_like_fitted(
            "Nearest", self.pairing.by, points_of_batch("Nearest", batch, self.pairing.by), self.points
        )
        if rows is None:
            neighbours = self._neighbours(points, None)
        elif self.order is None and readable(points):
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
