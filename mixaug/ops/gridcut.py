"""Labels 0, ..., L - 1 on a grid, with a cost per cell and label and quadratic edges between neighbours: graph cuts.

    E(l) = sum_i unary_i(l_i) + sum_ij edge_ij ((l_i - l_j) / (L - 1))^2,   edge >= 0

`grid_cut` solves all samples of a batch at once, in two ways, both dense array work without a read of any value:

- Up to 512 states L^columns: exactly, by dynamic programming over the frontier between visited and unvisited cells.
- Above: dual minorants (Shekhovtsov et al., arXiv:1601.06274). Rows and columns are chains, each solved exactly; in
  turn one family hands the other the largest unary costs that stay below its own energy. Every round raises a lower
  bound of the minimum. The labels of the last chains are then improved by exact moves of whole rows and columns.
  For convex unary costs the bound tends to the minimum itself.

On a CPU the bound is read: samples whose labels are not within ``CERTIFIED`` of it get more rounds.
`exact_grid_cut` is the minimum cut of the layered graph by scipy, for tests and for who wants no gap at all.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixaug.ops import fused
from mixaug.ops.layout import reads_freely

#: Number of frontier states up to which dynamic programming beats the chains.
MOST_STATES = 512
#: Rounds of dual ascent on a device, where nothing is read, and the rounds on a CPU, where samples that are done leave.
DEVICE_ROUNDS = 8
HOST_ROUNDS = (4, 8, 16, 32)
#: Relative distance to the lower bound at which a sample is done.
CERTIFIED = 1e-2

# An array is one of NumPy or a tensor. On a CPU the arrays are small and NumPy's calls cost a third of torch's;
# add, multiply, minimum and slices have the same names in both, so that one code serves.
Array = Any


def cut_energy(labels: Tensor, unary: Tensor, edges_v: Tensor, edges_h: Tensor) -> Tensor:
    """Energy of labellings: (B,), in the dtype of the costs.

    Args:
        labels: (B, n, m) int64 in 0, ..., L - 1.
        unary: (B, n, m, L) cost of each label.
        edges_v: (B, n - 1, m) weights between a cell and the one below.
        edges_h: (B, n, m - 1) weights between a cell and the one to the right.
    """
    _check("cut_energy", unary, edges_v, edges_h)
    level = labels.to(unary.dtype) / max(unary.shape[-1] - 1, 1)
    own = torch.gather(unary, 3, labels.unsqueeze(3)).flatten(1).sum(1)
    down = (edges_v * (level[:, 1:] - level[:, :-1]).square()).flatten(1).sum(1)
    right = (edges_h * (level[:, :, 1:] - level[:, :, :-1]).square()).flatten(1).sum(1)
    return own + down + right


def grid_cut(unary: Tensor, edges_v: Tensor, edges_h: Tensor, *, read: bool | None = None) -> Tensor:
    """Labels of least energy, or close to it: see the module for when and how close.

    Args:
        unary: (B, n, m, L) floating point, finite; L >= 2.
        edges_v: (B, n - 1, m) floating point, finite and not negative: weights between a cell and the one below.
        edges_h: (B, n, m - 1), between a cell and the one to the right.
        read: work on the host, where the bound is read; None does so where the costs lie on a CPU, and on a CUDA device
            takes one kernel in place of the operators of ``False``, with the same labels.

    Returns:
        (B, n, m) int64.

    Raises:
        ValueError: shapes that do not fit.
    """
    _check("grid_cut", unary, edges_v, edges_h)
    if read is None and fused.serves(unary, edges_v, edges_h):
        found: Tensor = torch.ops.mixaug.grid_cut(unary.detach(), edges_v.detach(), edges_h.detach())
        return found
    costs = [x.detach().float().movedim(0, -1).contiguous() for x in (unary, edges_v, edges_h)]
    xp: ModuleType = torch
    arrays: list[Array] = list(costs)
    if reads_freely(*costs) if read is None else read:
        xp, arrays = np, [cost.cpu().numpy() for cost in costs]
    labels = (_by_chains if _takes_chains(unary) else _by_frontier)(xp, *arrays)
    return torch.as_tensor(labels, device=unary.device).movedim(-1, 0).contiguous()


def _takes_chains(unary: Tensor) -> bool:
    """Whether (B, n, m, L) has too many states for dynamic programming over the frontier."""
    return unary.shape[3] ** min(unary.shape[1:3]) > MOST_STATES


def _device_rounds(labels: int) -> int:
    # Two labels leave the widest gaps: no level lies between them to fall back on.
    return DEVICE_ROUNDS if labels > 2 else 2 * DEVICE_ROUNDS


def _by_kernel(unary: Tensor, edges_v: Tensor, edges_h: Tensor) -> Tensor:
    """The labels of :func:`grid_cut` by one kernel."""
    from mixaug.ops.fused import gridcut_kernels

    if _takes_chains(unary):
        unary, edges_v, edges_h = (x.float().contiguous() for x in (unary, edges_v, edges_h))
        with fused.current(unary.device):
            return gridcut_kernels.by_chains(unary, edges_v, edges_h, _device_rounds(unary.shape[3]))
    if unary.shape[1] < unary.shape[2]:
        turned: Tensor = _by_kernel(unary.transpose(1, 2), edges_h.transpose(1, 2), edges_v.transpose(1, 2))
        return turned.transpose(1, 2).contiguous()
    with fused.current(unary.device):
        return gridcut_kernels.by_frontier(*(x.float().contiguous() for x in (unary, edges_v, edges_h)))


_as_operator = torch.library.custom_op("mixaug::grid_cut", _by_kernel, mutates_args=())


@_as_operator.register_fake
def _(unary: Tensor, edges_v: Tensor, edges_h: Tensor) -> Tensor:
    return torch.empty(unary.shape[:3], dtype=torch.int64, device=unary.device)


def exact_grid_cut(unary: Tensor, edges_v: Tensor, edges_h: Tensor) -> Tensor:
    """Labels of least energy by one maximum flow on the CPU, for unary costs of any shape. Needs scipy.

    Capacities are whole numbers to scipy: costs are rounded to about one part in 1e7 of the largest cell's, which
    is the error of the minimum.

    Args:
        unary: (B, n, m, L) floating point, finite; L >= 2.
        edges_v: (B, n - 1, m) weights, not negative.
        edges_h: (B, n, m - 1) weights, not negative.

    Returns:
        (B, n, m) int64 on the device of ``unary``.

    Raises:
        ValueError: shapes that do not fit.
        ImportError: no scipy.
    """
    _check("exact_grid_cut", unary, edges_v, edges_h)
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import breadth_first_order, maximum_flow

    labels = unary.shape[3]
    layers = labels - 1
    cost, down, right = (x.detach().double().cpu().numpy() for x in (unary, edges_v, edges_h))
    # Node (cell, k) lies on the source's side where the label is above k.
    nodes = np.arange(cost[..., 0].size * layers).reshape(*cost.shape[:3], layers)
    source, sink = nodes.size, nodes.size + 1
    tails: list[Any] = []
    heads: list[Any] = []
    weights: list[Any] = []

    def arcs(tail: Any, head: Any, weight: Any) -> None:
        tails.append(tail.ravel())
        heads.append(head.ravel())
        weights.append(np.broadcast_to(weight, tail.shape).ravel())

    for one, other, weight in (
        (nodes[:, :-1], nodes[:, 1:], down / layers**2),
        (nodes[:, :, :-1], nodes[:, :, 1:], right / layers**2),
    ):
        for high in range(layers):
            arcs(one[..., high], other[..., high], weight)
            arcs(other[..., high], one[..., high], weight)
            for low in range(high):
                # The second differences of the square are what a jump over several labels costs beyond its steps.
                arcs(one[..., high], other[..., low], 2 * weight)
                arcs(other[..., high], one[..., low], 2 * weight)
    steps = np.diff(cost, axis=3)
    whole = float(sum(np.abs(x).sum() / len(cost) for x in (steps, down, right))) or 1.0
    largest = max(float(np.abs(x).max()) if x.size else 0.0 for x in (steps, down, right)) or 1.0
    # A label above k is above k - 1 too.
    arcs(nodes[..., 1:], nodes[..., :-1], np.float64(2 * whole * len(cost)))
    flat, step = nodes.ravel(), steps.ravel()
    arcs(flat[step > 0], np.full((step > 0).sum(), sink), step[step > 0])
    arcs(np.full((step < 0).sum(), source), flat[step < 0], -step[step < 0])
    scale = 2.0**24 / largest
    capacity = np.minimum(np.concatenate(weights) * scale, 2.0**30).round().astype(np.int32)
    where = np.concatenate(tails), np.concatenate(heads)
    graph = csr_matrix((capacity, where), shape=(nodes.size + 2, nodes.size + 2))
    left = graph - maximum_flow(graph, source, sink).flow
    left.data[left.data < 0] = 0
    left.eliminate_zeros()
    above = np.zeros(nodes.size + 2, dtype=np.int64)
    above[breadth_first_order(left, source, return_predecessors=False)] = 1
    return torch.as_tensor(above[: nodes.size].reshape(nodes.shape).sum(3), device=unary.device)


def _check(what: str, unary: Tensor, edges_v: Tensor, edges_h: Tensor) -> None:
    if unary.ndim != 4 or unary.shape[3] < 2 or 0 in unary.shape:
        raise ValueError(f"{what} expects unary (B, n, m, L) with L >= 2, not empty, got {tuple(unary.shape)}")
    batch, rows, columns, _ = unary.shape
    for name, edges, shape in (
        ("edges_v", edges_v, (batch, rows - 1, columns)),
        ("edges_h", edges_h, (batch, rows, columns - 1)),
    ):
        if tuple(edges.shape) != shape:
            raise ValueError(
                f"{what} expects {name} {shape} beside unary {tuple(unary.shape)}, got {tuple(edges.shape)}"
            )


def _squares(xp: ModuleType, like: Array, labels: int) -> Array:
    """(L, L) squared distances of the labels' levels."""
    level = _levels(xp, like, labels)
    difference = level[:, None] - level[None]
    return difference * difference


def _levels(xp: ModuleType, like: Array, labels: int) -> Array:
    if xp is np:
        return np.arange(labels, dtype=like.dtype) / like.dtype.type(labels - 1)
    return torch.arange(labels, device=like.device, dtype=like.dtype) / (labels - 1)


def _least(xp: ModuleType, costs: Array, values: Array) -> Array:
    """The value of the cheapest label, the first of equal ones: costs (L, ...), values (L, ...) to (...)."""
    least, found = costs[0], values[0]
    for label in range(1, costs.shape[0]):
        # argmin over a first axis is slow in NumPy, and in torch it does not promise the first.
        found = xp.where(costs[label] < least, values[label], found)
        least = xp.minimum(least, costs[label])
    return found


# Exact, by the frontier


def _by_frontier(xp: ModuleType, unary: Array, edges_v: Array, edges_h: Array) -> Array:
    """(n, m, L, B), (n - 1, m, B), (n, m - 1, B) to (n, m, B). The state is the last label of each column."""
    if unary.shape[0] < unary.shape[1]:
        turned = _by_frontier(xp, unary.swapaxes(0, 1), edges_h.swapaxes(0, 1), edges_v.swapaxes(0, 1))
        return turned.swapaxes(0, 1)
    rows, columns, labels, batch = unary.shape
    square = _squares(xp, unary, labels)[:, :, None]
    best = 0 * xp.broadcast_to(unary[0, 0, 0], (labels**columns, batch))
    before: list[Array] = []
    for y in range(rows):
        for x in range(columns):
            left, right = labels**x, labels ** (columns - 1 - x)
            before.append(best)
            state = best.reshape(left, labels, right, batch)
            new = unary[y, x][None, :, None]
            if y:
                jump = square * edges_v[y - 1, x]  # old, new, B
                least = state[:, :1] + jump[0][None, :, None]
                for old in range(1, labels):
                    least = xp.minimum(least, state[:, old : old + 1] + jump[old][None, :, None])
                state = least
            best = state + new
            if x:
                step = square * edges_h[y, x - 1]  # label to the left, new, B
                pairs = best.reshape(left // labels, labels, labels, right, batch)
                best = pairs + step[None, :, :, None]
            best = best.reshape(labels**columns, batch)
    return _frontier_labels(xp, unary, edges_v, before, best)


def _frontier_labels(xp: ModuleType, unary: Array, edges_v: Array, before: list[Array], best: Array) -> Array:
    """Walk back: the label that each cell had in the best final state."""
    rows, columns, labels, _ = unary.shape
    state = best.argmin(0)
    chosen: list[list[Array]] = [[] for _ in range(rows)]
    olds = np.arange(labels)[:, None] if xp is np else torch.arange(labels, device=unary.device)[:, None]
    take = np.take_along_axis if xp is np else torch.take_along_dim
    levels = _levels(xp, unary, labels)
    for y in reversed(range(rows)):
        for x in reversed(range(columns)):
            stride = labels ** (columns - 1 - x)
            label = state // stride % labels
            chosen[y].insert(0, label)
            if not y:
                continue
            without = state - label * stride
            apart = levels[:, None] - levels[label]
            cost = take(before.pop(), without + olds * stride, 0) + apart * apart * edges_v[y - 1, x]
            state = without + _least(xp, cost, olds) * stride
    return xp.stack([xp.stack(row) for row in chosen])


# By chains


def _by_chains(xp: ModuleType, unary: Array, edges_v: Array, edges_h: Array) -> Array:
    """(n, m, L, B), (n - 1, m, B), (n, m - 1, B) to (n, m, B)."""
    problem = _Chains(xp, unary, edges_v, edges_h)
    if xp is torch:
        problem.ascend(_device_rounds(unary.shape[2]))
        return _labels_of(problem.labels()[0], unary)
    labels: Array = None
    rest = np.arange(unary.shape[3])
    for rounds in HOST_ROUNDS:
        problem.ascend(rounds)
        found, energy, bound = problem.labels()
        if labels is None:
            labels = found
        else:
            labels[:, :, rest] = found
        open_ = np.flatnonzero(energy - bound > CERTIFIED * np.abs(energy))
        if not len(open_):
            break
        rest = rest[open_]
        problem.keep(open_)
    return _labels_of(labels, unary)


def _labels_of(level: Array, unary: Array) -> Array:
    """Levels in [0, 1] as numbers of labels, int64."""
    count = unary.shape[2] - 1
    if isinstance(level, np.ndarray):
        return np.rint(level * count).astype(np.int64)
    return torch.round(level * count).long()


class _Chains:
    """Rows and columns as chains of one problem, and the costs that columns have handed to rows.

    Costs of cells lie as (position along the chain, L, chain, B): the batch is the innermost axis of all arrays.
    """

    def __init__(self, xp: ModuleType, unary: Array, edges_v: Array, edges_h: Array) -> None:
        self.xp = xp
        labels = unary.shape[2]
        self.level = _levels(xp, unary, labels)
        square = _squares(xp, unary, labels)[None, :, :, None, None]
        self.down = unary.swapaxes(1, 2)  # y, L, x, B
        self.right = self.turned(self.down)  # x, L, y, B
        self.edges = edges_v, edges_h.swapaxes(0, 1)
        # Step costs (position, to, from, chain, B).
        self.steps_down, self.steps_right = (square * edges[:, None, None] for edges in self.edges)
        self.handed = xp.zeros_like(self.right)

    def turned(self, costs: Array) -> Array:
        """From chains along one axis to those along the other."""
        turned = costs.swapaxes(0, 2)
        return np.ascontiguousarray(turned) if self.xp is np else turned.contiguous()

    def keep(self, samples: Array) -> None:
        """Leave all other samples out."""
        self.down, self.right, self.steps_down, self.steps_right, self.handed = (
            np.ascontiguousarray(x[..., samples])
            for x in (self.down, self.right, self.steps_down, self.steps_right, self.handed)
        )
        self.edges = self.edges[0][..., samples], self.edges[1][..., samples]

    def ascend(self, rounds: int) -> None:
        """Rounds of dual ascent: rows give their minorant to columns, columns theirs to rows."""
        for _ in range(rounds):
            given = self.rows_minorant()
            back = _minorant(self.xp, given, self.steps_down)
            back -= given
            self.handed = self.turned(back)

    def rows_minorant(self) -> Array:
        """The unary costs of columns: the rows' minorant less what the columns handed over."""
        given = _minorant(self.xp, self.right + self.handed, self.steps_right)
        given -= self.handed
        return self.turned(given)

    def labels(self) -> tuple[Array, Array, Array]:
        """Levels (n, m, B) of labels, their energy and a lower bound of the least one, both (B,)."""
        found, bound = _solve(self.xp, self.rows_minorant(), self.steps_down, self.level)
        across = found.swapaxes(0, 1)
        for odd in (0, 1):
            across = self.improved(across, self.right, self.steps_right, self.edges[0].swapaxes(0, 1), odd)
        along = across.swapaxes(0, 1)
        for odd in (0, 1):
            along = self.improved(along, self.down, self.steps_down, self.edges[1].swapaxes(0, 1), odd)
        energy = self.energy(along) if self.xp is np else bound
        return along, energy, bound

    def improved(self, level: Array, costs: Array, steps: Array, across: Array, odd: int) -> Array:
        """Every second chain at its best, given the labels of the others.

        Args:
            level: (positions, chains, B).
            costs, steps: of these chains.
            across: (positions, chains - 1, B) weights between neighbouring chains.
            odd: 0 or 1, the first chain to change.
        """
        if odd >= level.shape[1]:
            return level
        zero = self.xp.zeros_like(level[:, :1])
        weight = self.xp.concatenate([zero, across, zero], 1)
        pull = self.xp.concatenate([zero, weight[:, 1:-1] * level[:, :-1]], 1)
        pull[:, :-1] += weight[:, 1:-1] * level[:, 1:]
        weight = weight[:, :-1] + weight[:, 1:]
        # The cost is weight (z - z')^2 without its part that does not depend on z.
        z = self.level[None, :, None, None]
        own = z * (z * weight[:, None, odd::2] - 2 * pull[:, None, odd::2]) + costs[:, :, odd::2]
        new = level.copy() if self.xp is np else level.clone()
        new[:, odd::2] = _solve(self.xp, own, steps[:, :, :, odd::2], self.level)[0]
        return new

    def energy(self, level: Array) -> Array:
        """(B,) of levels (n, m, B)."""
        total = 0
        for k in range(self.down.shape[1]):
            total = total + (self.down[:, k] * (level == self.level[k])).sum((0, 1))
        down, right = level[1:] - level[:-1], level[:, 1:] - level[:, :-1]
        total = total + (self.edges[0] * down * down).sum((0, 1))
        return total + (self.edges[1].swapaxes(0, 1) * right * right).sum((0, 1))


def _relax(xp: ModuleType, costs: Array, steps: Array, out: Array, spare: Array) -> None:
    """Least cost of arriving at each label: costs (L, m, B), steps (to, from, m, B) into out (L, m, B)."""
    xp.add(costs, steps, out=spare)
    if xp is np:
        np.minimum.reduce(spare, axis=1, out=out)
    else:
        torch.amin(spare, 1, out=out)


def _minorant(xp: ModuleType, costs: Array, steps: Array) -> Array:
    """The energy of chains from below as a sum of unary costs, equal to it at its minimum, spread evenly.

    Args:
        costs: (P, L, m, B) unary costs.
        steps: (P - 1, to, from, m, B).

    Returns:
        (P, L, m, B).
    """
    count = costs.shape[0]
    ahead, behind = xp.zeros_like(costs), xp.zeros_like(costs)
    cost, spare = xp.zeros_like(costs[0]), xp.zeros_like(steps[0])
    for p in range(1, count):
        xp.add(ahead[p - 1], costs[p - 1], out=cost)
        _relax(xp, cost, steps[p - 1], ahead[p], spare)
    # Cell p keeps 1 / (p + 1) of what is left: with other shares the first cells would get most, or the last.
    share: Array = xp.ones_like(costs[:, :1, :1, :1])
    share /= share.cumsum(0)
    passed_on = costs - share * (costs + ahead)
    for p in range(count - 1, 0, -1):
        xp.multiply(behind[p], p / (p + 1), out=cost)
        cost += passed_on[p]
        _relax(xp, cost, steps[p - 1], behind[p - 1], spare)
    behind += ahead
    behind += costs
    behind *= share
    return behind


def _solve(xp: ModuleType, costs: Array, steps: Array, level: Array) -> tuple[Array, Array]:
    """Levels of the best labels of chains (P, m, B), and the sum of their least energies (B,)."""
    count = costs.shape[0]
    best, spare = xp.zeros_like(costs), xp.zeros_like(steps[0])
    best[0] = costs[0]
    for p in range(1, count):
        _relax(xp, best[p - 1], steps[p - 1], best[p], spare)
        best[p] += costs[p]
    found = xp.zeros_like(costs[:, 0])
    z = level[:, None, None]
    found[count - 1] = _least(xp, best[count - 1], z)
    for p in range(count - 2, -1, -1):
        # The weight of a step is that of the longest one; its part that does not depend on z is left out.
        cost = z - 2 * found[p + 1]
        cost *= z * steps[p, -1, 0]
        cost += best[p]
        found[p] = _least(xp, cost, z)
    least = best[count - 1].min(0) if xp is np else best[count - 1].amin(0)
    return found, least.sum(0)
