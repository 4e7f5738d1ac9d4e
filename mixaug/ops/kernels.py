"""Kernels on distances between labels (or any rows of numbers), and exact draws from them without N x N memory."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Generator, Tensor

from mixaug.ops.layout import reads_freely, wide_dtype
from mixaug.ops.parts import in_parts

Kernel = Literal["gaussian", "tophat"]
KERNELS = ("gaussian", "tophat")

#: Share of a row's probability that a truncated kernel may lose.
TRUNCATION = 1e-9
#: Number of elements of the largest temporary where every row is looked at.
CHUNK = 1 << 23
#: Number of entries of the anchors' rows of the kernel up to which all are computed.
SMALL = 1 << 16
#: Number of entries of a kernel's row that can be computed in the time of one proposal.
PROPOSAL_COST = 32
#: Columns from which a matrix product is tried on a CPU, and the share of squared norms below which two rows are near.
WIDE, NEAR = 128, 1e-3
#: Rows on either side from which the product repays the norms that it takes.
SEVERAL = 8
#: Largest distance from the centre, in bandwidths, up to which squared distances come from a matrix product.
PRODUCT_RADIUS = 1000


def as_points(rows: Tensor) -> Tensor:
    """(N,) or (N, ...) numbers as (N, D) float64; integer (N,) class ids stay as they are."""
    if rows.ndim == 1 and not rows.is_floating_point():
        return rows
    return rows.detach().reshape(rows.shape[0], -1).to(wide_dtype(rows.device))


def squared_distances(first: Tensor, second: Tensor) -> Tensor:
    """(A, N) squared Euclidean distances of :func:`as_points` results.

    Class ids are as far from each other as their one-hot vectors: 0 for the same class, else 2.
    """
    if first.ndim == 1:
        return (first[:, None] != second[None, :]).to(wide_dtype(first.device)) * 2
    if first.shape[1] == 1:
        return (first - second.T).square()
    # The first look is whether this is traced: a graph that asked for the number of rows would be of few batches.
    is_worth = reads_freely(first, second) and first.shape[1] >= WIDE and min(len(first), len(second)) >= SEVERAL
    found = _by_product(first, second) if is_worth else None
    if found is not None:
        return found
    # The matrix product form would lose what distinguishes near rows.
    return torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist").square()


def _by_product(first: Tensor, second: Tensor) -> Tensor | None:
    """Squared distances by a matrix product, and term by term where rows are near; None where too many are.

    Products are off by some 1e-15 of the rows' squared norms: what is at least ``NEAR`` of these has twelve digits.
    Equal rows are equally far from any row, to the last bit, so that ties among them stay ties.
    """
    own, theirs = (_squared_norms(rows) for rows in (first, second))
    norms = own[:, None] + theirs
    if not norms.isfinite().all():
        return None
    squared = norms - 2 * (first @ second.T)
    near = squared < NEAR * norms
    if first is second:
        # The product of two rows depends on their order, their distance does not.
        squared = (squared + squared.T) / 2
        near = (near | near.T).fill_diagonal_(False)
        squared.fill_diagonal_(0.0)
    rows, columns = near.nonzero(as_tuple=True)
    if len(rows) > near.numel() // 8:
        return None

    def exact(row: Tensor, column: Tensor) -> Tensor:
        return (first[row] - second[column]).square_().sum(1)

    squared[rows, columns] = in_parts(exact, rows, columns, bytes_per_row=first.shape[1] * first.element_size())
    # A product's last bits depend on the place of a column.
    same = _first_equals(second, theirs)
    if same is None:
        return squared
    return squared[same][:, same] if first is second else squared[:, same]


def _squared_norms(rows: Tensor) -> Tensor:
    def norms(rows: Tensor) -> Tensor:
        return rows.square().sum(1)

    return in_parts(norms, rows, bytes_per_row=rows.shape[1] * rows.element_size())


def _first_equals(rows: Tensor, norms: Tensor) -> Tensor | None:
    """(N,) of every row the first one that it equals; None where all differ.

    Args:
        rows: (N, D) float64.
        norms: (N,) their squared norms: rows whose norms differ by more than rounding are not compared.
    """
    ranked, order = norms.sort(stable=True)
    alike = ranked[1:] <= ranked[:-1] * (1 + 1e-12)
    if not alike.any():
        return None
    shares = torch.zeros_like(norms, dtype=torch.bool)
    shares[order[1:][alike]] = shares[order[:-1][alike]] = True
    some = shares.nonzero().squeeze(1)
    group = torch.unique(rows[some], dim=0, return_inverse=True)[1]
    first = torch.full_like(some, len(rows)).scatter_reduce_(0, group, some, "amin")
    found = torch.arange(len(rows))
    found[some] = first[group]
    return found


def log_weights(squared: Tensor, bandwidth: float | Tensor, kernel: Kernel) -> Tensor:
    """Logarithm of the kernel, up to a constant: 0 at distance 0, -inf where the top hat ends."""
    if kernel == "tophat":
        return torch.zeros_like(squared).masked_fill((squared.sqrt() >= bandwidth) & (squared > 0), -math.inf)
    # The distance is divided by one factor at a time: the square of a tiny bandwidth would underflow.
    scaled = squared.sqrt() / bandwidth
    return scaled.square() * -0.5


def draw_index(probabilities: Tensor, unit: Tensor) -> Tensor:
    """Inverse CDF: the first column whose cumulative weight exceeds ``unit`` times the row's sum.

    Args:
        probabilities: (B, N) weights, not negative, not all zero in any row.
        unit: (B,) or (B, K) in [0, 1).

    Returns:
        int64 like ``unit``.
    """
    cumulative = probabilities.to(wide_dtype(probabilities.device)).cumsum(1)
    level = unit.reshape(unit.shape[0], -1).to(cumulative.dtype) * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, level.contiguous(), right=True)
    # Rounding of the last sum may push a level onto it: the last column with weight is meant then.
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())
    return torch.minimum(index, last).reshape(unit.shape)


def rule_of_thumb(points: Tensor) -> Tensor:
    """Scalar bandwidth, Silverman's normal-reference rule: ``s * (4 / (D + 2) / N) ** (1 / (D + 4))``.

    ``s`` is the root mean variance of the D columns (for class ids, of the one-hot vectors, with D = 1).
    """
    count, dims = points.shape[0], 1 if points.ndim == 1 else points.shape[1]
    return (total_variance(points) / dims).sqrt() * (4 / (dims + 2) / count) ** (1 / (dims + 4))


def total_variance(points: Tensor) -> Tensor:
    """Scalar trace of the covariance of the rows (for class ids, of their one-hot vectors)."""
    if points.ndim == 1:
        # The spread is half the mean squared distance of two rows; the place in sorted order counts the equal ones.
        place = points.sort().values
        low, high = torch.searchsorted(place, place), torch.searchsorted(place, place, right=True)
        return 1 - ((high - low) / points.shape[0]).to(wide_dtype(points.device)).mean()
    return points.var(0, correction=0).sum()


def _main_direction(centred: Tensor, rounds: int = 16) -> Tensor:
    """(D,) unit vector along which rows (N, D) spread much, the same on every machine up to rounding.

    Power iterations: O(N D), where the covariance of images would be D x D. Any direction would do; this one keeps
    many proposals.
    """
    direction = centred.square().mean(0)
    for _ in range(rounds):
        direction = direction / direction.norm().clamp(min=torch.finfo(direction.dtype).tiny)
        direction = centred.T @ (centred @ direction)
    norm = direction.norm()
    first = torch.zeros_like(direction)
    first[0] = 1.0
    return torch.where(norm > 0, direction / norm.clamp(min=torch.finfo(direction.dtype).tiny), first)


class KernelSampler:
    """Draws rows of a data set with probability proportional to a kernel on the distance to given points.

    Built once in O(N log N), memory O(N D), O(log N) per draw. Rows are sorted along one axis (the label itself,
    or the direction in which rows spread most). Around an anchor, strips of rows are formed in which the kernel
    along that axis falls by a fixed factor f; a strip is drawn by its size times its largest weight, a row
    uniformly in it, and kept with probability true weight / largest weight: at least 1/f for one-dimensional
    labels, whatever their density. Strips with less than 1e-9 of a row's probability in all, the anchor's own row
    included, are left out.
    For more dimensions proposals are kept less often, by the share of the strip that is near in the other directions
    too. Anchors for which none was kept get ever more proposals; those that would by then have cost as much as their
    whole row of the kernel, O(N D), get that row.

    Rows with little probability in all, because they are far from an anchor that is not itself among the rows, may
    lose more than 1e-9: the strips end where the kernel falls below 1e-9 / N.

    Args:
        points: (N, D) float rows, or (N,) class ids, see :func:`as_points`.
        bandwidth: standard deviation of the Gaussian, radius of the top hat.
        kernel: which of them.
    """

    def __init__(self, points: Tensor, bandwidth: float, kernel: Kernel) -> None:
        self.bandwidth = bandwidth
        self.kernel: Kernel = kernel
        self.classes = points.ndim == 1
        # On a CPU a look at what was kept is free: wide strips, few proposals, and again for who got none. Elsewhere
        # all proposals are made at once; with f = e, 48 of them all fail with a chance below 3e-10.
        self.log_factor, self.tries = (4.0, 12) if points.device.type == "cpu" else (1.0, 48)
        self.axis: Tensor | None = None
        self.factors: Tensor | None = None
        if not self.classes and points.shape[1] > 1:
            self.centre = points.mean(0)
            points = points - self.centre
            self.axis = _main_direction(points)
        self.place, self.order = self._project(points).sort(stable=True)
        self.points = points[self.order]
        if self.axis is not None and kernel == "gaussian":
            scaled = self.points / bandwidth
            norms = scaled.square().sum(1, keepdim=True)
            # By a matrix product, logarithms lose 1e-16 of the largest squared norm: nothing where that is small.
            if float(norms.max()) <= PRODUCT_RADIUS**2:
                self.factors = torch.cat([scaled, -0.5 * norms, torch.ones_like(norms)], 1)
        self.offsets = torch.zeros(0, device=points.device)
        self.strip_log_weight = torch.zeros(1, dtype=wide_dtype(points.device), device=points.device)
        if self.classes:
            return
        if kernel == "tophat":
            steps = torch.full((1,), float(bandwidth), dtype=points.dtype, device=points.device)
        else:
            count = math.ceil(math.log(points.shape[0] / TRUNCATION) / self.log_factor)
            levels = torch.arange(1, count + 1, dtype=points.dtype, device=points.device) * self.log_factor
            steps = (2 * levels).sqrt() * bandwidth
            side = -levels[:-1]
            self.strip_log_weight = torch.cat([side.flip(0), side.new_zeros(1), side])
        self.offsets = torch.cat([-steps.flip(0), steps])

    def __len__(self) -> int:
        return self.place.shape[0]

    def draw(self, anchors: Tensor, generator: Generator | None = None, exclude: Tensor | None = None) -> Tensor:
        """Draw one row for every anchor, independently and with replacement.

        On a GPU nothing is read back for one-dimensional labels and class ids without ``exclude``; else one
        number per round of proposals.

        Args:
            anchors: (B, D) or (B,) class ids, like the rows.
            generator: on the anchors' device.
            exclude: (B,) int64 row that must not be drawn for each anchor. An anchor without any other row
                within a top hat keeps this one.

        Returns:
            (B,) int64 rows of the data set.
        """
        if self.axis is not None:
            anchors = anchors - self.centre
        if anchors.shape[0] * len(self) <= SMALL:
            return self._draw_in_full(anchors, generator, exclude)
        place = self._project(anchors)
        # Neighbouring queries share the cache lines they read: anchors are searched in the order of their labels.
        turn = place.argsort()
        anchors, place = anchors[turn], place[turn]
        exclude = None if exclude is None else exclude[turn]
        strips = self._strips(place)
        drawn, kept = self._propose(anchors, strips, generator, exclude, self.tries)
        certain = self.axis is None and exclude is None
        if anchors.device.type == "cpu" or not certain:
            missed = (~kept).nonzero().squeeze(1)
            tries = self.tries
            # A proposal costs about as much as this many entries of a whole row.
            while missed.shape[0] and tries * PROPOSAL_COST < len(self):
                drawn[missed], kept[missed] = self._propose_again(anchors, strips, generator, exclude, missed, tries)
                missed = missed[~kept[missed]]
                tries *= 2
            if missed.shape[0]:
                chosen = None if exclude is None else exclude[missed]
                drawn[missed] = self._draw_in_full(anchors[missed], generator, chosen)
        return torch.empty_like(drawn).scatter_(0, turn, drawn)

    def _propose_again(
        self,
        anchors: Tensor,
        strips: tuple[Tensor, Tensor],
        generator: Generator | None,
        exclude: Tensor | None,
        missed: Tensor,
        tries: int,
    ) -> tuple[Tensor, Tensor]:
        """Further proposals for some anchors, a part of these at a time where the proposals are many."""
        part = max(1, CHUNK // (tries * 8))
        found = [
            self._propose(
                anchors[some],
                (strips[0][some], strips[1]),
                generator,
                None if exclude is None else exclude[some],
                tries,
            )
            for some in missed.split(part)
        ]
        drawn, kept = (torch.cat(parts) for parts in zip(*found, strict=True))
        return drawn, kept

    def _propose(
        self,
        anchors: Tensor,
        strips: tuple[Tensor, Tensor],
        generator: Generator | None,
        exclude: Tensor | None,
        tries: int,
    ) -> tuple[Tensor, Tensor]:
        """(B,) rows, the first of several proposals that was kept, and (B,) bool whether one was."""
        edges, log_bound = strips
        counts = edges.diff(dim=1)
        bound = log_bound.exp()
        mass = counts * bound
        cumulative = mass.cumsum(1)
        shape = (anchors.shape[0], tries)
        unit, accept = torch.rand((2, *shape), generator=generator, device=anchors.device, dtype=bound.dtype)
        level = unit * cumulative[:, -1:]
        strip = torch.searchsorted(cumulative, level, right=True).clamp(max=counts.shape[1] - 1)
        before = (cumulative - mass).gather(1, strip)
        inside = ((level - before) / bound[strip]).long()
        inside = torch.minimum(inside, counts.gather(1, strip) - 1).clamp(min=0)
        rank = edges.gather(1, strip) + inside
        row = self.order[rank]
        if self.classes or (self.kernel == "tophat" and self.axis is None):
            kept = torch.ones_like(row, dtype=torch.bool)
        else:
            squared = (self.points[rank] - anchors[:, None, :]).square().sum(2)
            kept = accept < (log_weights(squared, self.bandwidth, self.kernel) - log_bound[strip]).exp()
        if exclude is not None:
            kept = kept & (row != exclude[:, None])
        first = kept.to(torch.uint8).argmax(1, keepdim=True)
        return row.gather(1, first).squeeze(1), kept.any(1)

    def _project(self, points: Tensor) -> Tensor:
        if self.classes:
            return points
        return points[:, 0].contiguous() if self.axis is None else points @ self.axis

    def _strips(self, place: Tensor) -> tuple[Tensor, Tensor]:
        """Ranks of the strips' edges (B, S + 1), rising, and log of the largest weight in each, (S,)."""
        low, high = torch.searchsorted(self.place, place), torch.searchsorted(self.place, place, right=True)
        if self.classes:
            # All rows are equally near to a class that the data set does not have.
            seen = high > low
            low, high = torch.where(seen, low, 0), torch.where(seen, high, len(self))
            edges = torch.stack([torch.zeros_like(low), low, high, torch.full_like(low, len(self))], 1)
            two = torch.full((1,), 2.0, dtype=wide_dtype(place.device), device=place.device)
            other = log_weights(two, self.bandwidth, self.kernel)
            return edges, torch.cat([other, torch.zeros_like(other), other])
        inner = self.offsets.shape[0] // 2
        at = place[:, None] + self.offsets
        if self.kernel == "tophat":
            # Only rows strictly within the radius count.
            lower = torch.searchsorted(self.place, at[:, :inner].contiguous(), right=True)
            edges = torch.cat([lower, torch.searchsorted(self.place, at[:, inner:].contiguous())], 1)
        else:
            edges = torch.searchsorted(self.place, at)
        # However the sums above round, an anchor's own label lies in the innermost strip; a query that is not of
        # the data set and far from all of it has nothing there, and takes the nearest row along the axis.
        left, right = (low - 1).clamp(min=0), low.clamp(max=len(self) - 1)
        nearest = torch.where((place - self.place[left]).abs() < (self.place[right] - place).abs(), left, right)
        first, end = torch.where(high > low, low, nearest), torch.where(high > low, high, nearest + 1)
        edges[:, :inner] = torch.minimum(edges[:, :inner], first[:, None])
        edges[:, inner:] = torch.maximum(edges[:, inner:], end[:, None])
        return edges, self.strip_log_weight

    def _draw_in_full(self, anchors: Tensor, generator: Generator | None, exclude: Tensor | None) -> Tensor:
        rows = max(1, CHUNK // len(self))
        chosen = [None] * anchors.shape[0] if exclude is None else exclude.split(rows)
        parts = zip(anchors.split(rows), chosen, strict=False)
        return torch.cat([self._draw_rows(part, generator, left_out) for part, left_out in parts])

    def _draw_rows(self, anchors: Tensor, generator: Generator | None, exclude: Tensor | None) -> Tensor:
        if self.factors is not None:
            scaled = anchors / self.bandwidth
            norms = scaled.square().sum(1, keepdim=True)
            logs = torch.cat([scaled, torch.ones_like(norms), -0.5 * norms], 1) @ self.factors.T
        else:
            squared = squared_distances(anchors, self.points)
            logs = log_weights(squared, self.bandwidth, self.kernel)
            if self.kernel == "tophat" and exclude is None:
                # A point that is not of the data set may have no row within the radius: it takes a nearest row.
                alone = (logs == -math.inf).all(1, keepdim=True)
                logs = logs.masked_fill(alone & (squared == squared.amin(1, keepdim=True)), 0.0)
        if exclude is not None:
            logs = logs.masked_fill_(self.order[None] == exclude[:, None], -math.inf)
        most = logs.amax(1, keepdim=True)
        # Where no row but the excluded one is left, the anchor stays alone.
        alone = most == -math.inf
        weights = logs.sub_(most.masked_fill(alone, 0.0)).exp_()
        unit = torch.rand(anchors.shape[0], generator=generator, device=anchors.device, dtype=logs.dtype)
        found = self.order[draw_index(weights, unit)]
        return found if exclude is None else torch.where(alone[:, 0], exclude, found)
