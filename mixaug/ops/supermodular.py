"""Which images show in each block of several mixtures at once: Co-Mixup's problem (arXiv:2102.03065) and its solver."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mixaug.ops import fused
from mixaug.ops.potts import STRIP, kept_candidates, potts_labels, strips

# A label that is half of two inputs is a little cheaper than the mean of the two, and close to both.
SOFT_GAIN = 5e-4


SOFT_DISTANCE = 0.25


# Cost of labels that do not exist, times 1 + gamma: above every penalty of an overlap.
FORBIDDEN = 1e5


#: Most inputs of a part, and most blocks of an image, that the kernel takes.
MOST_INPUTS, MOST_BLOCKS = 61, 1024


def comixup_objective(
    cost: Tensor,
    shares: Tensor,
    beta: float,
    gamma: float,
    threshold: float | None = None,
    *,
    soft_penalty: bool = False,
) -> Tensor:
    """What Co-Mixup minimises.

    Args:
        cost: (..., m, rows, columns) with the prior in it.
        shares: (..., outputs, m, rows, columns) of each input in each block, summing to 1 over the inputs.
        beta: weight of the differences of neighbours.
        gamma: weight of the overlap of outputs.
        threshold: share of one image's blocks above which an overlap counts; None counts all of it.
        soft_penalty: count only what lies above the threshold, not all of an overlap that does.

    Returns:
        (...) objective.
    """
    blocks = cost.shape[-2] * cost.shape[-1]
    data = (cost.unsqueeze(-4) * shares).sum((-4, -3, -2, -1))
    down = (shares[..., 1:, :] - shares[..., :-1, :]).square().sum((-4, -3, -2, -1))
    across = (shares[..., 1:] - shares[..., :-1]).square().sum((-4, -3, -2, -1))
    counts = shares.sum((-2, -1))
    elsewhere = counts.sum(-2, keepdim=True) - counts
    if threshold is not None and soft_penalty:
        elsewhere = (elsewhere - threshold * blocks).clamp(min=0)
    elif threshold is not None:
        elsewhere = elsewhere * (elsewhere > threshold * blocks)
    overlap = (elsewhere * counts).sum((-2, -1))
    return data + beta / blocks / 2 * (down + across) + gamma / blocks * overlap


def comixup_shares(
    cost: Tensor,
    compatibility: Tensor,
    start: Tensor,
    *,
    beta: float = 0.32,
    gamma: float = 1.0,
    threshold: float = 0.83,
    iterations: int = 4,
    soft_penalty: bool = False,
    valid: Tensor | None = None,
) -> Tensor:
    """Which inputs each block of each output shows, for P parts of m inputs and m outputs.

    In every sweep one output after another is solved anew, with the overlap with the others as a cost of each input.
    From the second sweep on a block may show the mean of two of the (up to three) inputs that its output uses most.
    The last sweep keeps two outputs from the same set of inputs. A part whose objective stands still is left alone.

    The cost of an overlap is linearised, so that a sweep can also make the objective worse. The last one therefore
    keeps an output as it was where the new one does not lower the objective with the threshold.

    Args:
        cost: (P, m, rows, columns) with the prior in it.
        compatibility: (P, m, m).
        start: (P, m, rows, columns) int64 inputs that the outputs show at first.
        beta, gamma, threshold, iterations, soft_penalty: see :class:`CoMixup`.
        valid: (P, m) bool, False for inputs and outputs that a smaller part lacks.

    Returns:
        (P, outputs, m, rows, columns) float32 shares, 1, a half or 0. Rows of outputs that are not there are zero.

    Raises:
        ValueError: shapes that do not fit, no iterations.
    """
    parts = cost.shape[:2]
    if cost.ndim != 4 or start.shape != cost.shape or tuple(compatibility.shape) != (*parts, parts[-1]):
        raise ValueError(
            "comixup_shares expects cost and start (P, m, rows, columns) and compatibility (P, m, m), got "
            f"{tuple(cost.shape)}, {tuple(start.shape)} and {tuple(compatibility.shape)}"
        )
    if valid is not None and (valid.shape != parts or valid.dtype != torch.bool):
        raise ValueError(f"comixup_shares expects valid {tuple(parts)} bool, got {tuple(valid.shape)} {valid.dtype}")
    if iterations < 1:
        raise ValueError(f"comixup_shares expects iterations >= 1, got {iterations}")
    if valid is None:
        valid = torch.ones(parts, dtype=torch.bool, device=cost.device)
    # Two bodies give one result: torch operators, and on a CUDA device one kernel. Unrolled into a graph, the sweeps
    # over all outputs would take a compiler minutes: one operator stands for them as well.
    as_one = torch.compiler.is_compiling() or _fits_kernel(cost, compatibility, start, valid)
    solve = torch.ops.mixaug.comixup_shares if as_one else _sweeps
    with torch.no_grad():
        shares: Tensor = solve(cost, compatibility, start, valid, beta, gamma, threshold, iterations, soft_penalty)
    return shares


def _sweeps(
    cost: Tensor,
    compatibility: Tensor,
    start: Tensor,
    valid: Tensor,
    beta: float,
    gamma: float,
    threshold: float,
    iterations: int,
    soft_penalty: bool,
) -> Tensor:
    """:func:`comixup_shares`, for checked arguments in fixed places."""
    parts, count, rows, columns = cost.shape
    blocks = rows * columns
    there = valid[:, :, None, None, None].float()
    shares = F.one_hot(start, count).movedim(-1, 2).float() * there
    never = FORBIDDEN * (1 + gamma)
    forbidden = (~valid).float() * never
    identity = torch.eye(count, device=cost.device)
    hard = (1 - identity).expand(parts, -1, -1)
    weight, strength, limit = beta / blocks, gamma / blocks, threshold * blocks

    extra = torch.zeros_like(shares[..., 0, 0])
    active = torch.ones(parts, dtype=torch.bool, device=cost.device)
    before = comixup_objective(cost, shares, beta, gamma)
    for sweep in range(iterations):
        outputs = list(shares.unbind(1))
        guarded = 0 < sweep == iterations - 1
        merit = _merit(cost, shares, extra, beta, gamma, threshold, soft_penalty) if guarded else before
        counts = shares.sum((3, 4))
        total = counts.sum(1)
        for output in range(count):
            used = counts[:, output]
            elsewhere = total - used
            reach = _times(compatibility, elsewhere)
            if soft_penalty:
                penalty = (reach - limit).clamp(min=0)
            else:
                penalty = _times(compatibility, elsewhere * (reach > limit))
            offset = 2 * strength * penalty + strength * extra[:, output] + forbidden
            unary = (cost + offset[:, :, None, None]).permute(0, 2, 3, 1)
            if sweep:
                unary, distance, inputs = _with_halves(unary, hard, identity, used, never)
            else:
                distance, inputs = hard, identity.expand(parts, -1, -1)
            labels = potts_labels(unary, distance, weight)
            chosen = inputs.gather(1, labels.flatten(1)[..., None].expand(-1, -1, count))
            solved = chosen.transpose(1, 2).unflatten(2, (rows, columns)) * there[:, output]
            better = active
            if guarded:
                tried = torch.stack([*outputs[:output], solved, *outputs[output + 1 :]], 1)
                reached = _merit(cost, tried, extra, beta, gamma, threshold, soft_penalty)
                better = active & (reached <= merit)
                merit = torch.where(better, reached, merit)
            outputs[output] = torch.where(better[:, None, None, None], solved, outputs[output])
            total = elsewhere + outputs[output].sum((2, 3))
        shares = torch.stack(outputs, 1)
        if sweep == iterations - 2:
            extra = _against_equal_sets(shares.sum((3, 4)) > 0)
        objective = comixup_objective(cost, shares, beta, gamma)
        active = active & ((before - objective).abs() >= 1e-6 * objective.abs())
        before = objective
    return shares


def _fits_kernel(*tensors: Tensor) -> bool:
    """Whether the kernel takes cost, compatibility, start and valid."""
    _, count, rows, columns = tensors[0].shape
    fits = 2 <= count <= MOST_INPUTS and rows * columns <= MOST_BLOCKS
    return fits and tensors[0].dtype == tensors[1].dtype == torch.float32 and fused.serves(*tensors)


def _by_kernel(
    cost: Tensor,
    compatibility: Tensor,
    start: Tensor,
    valid: Tensor,
    beta: float,
    gamma: float,
    threshold: float,
    iterations: int,
    soft_penalty: bool,
) -> Tensor:
    """:func:`_sweeps` by one kernel."""
    from mixaug.ops.fused import comixup_kernel

    count, rows, columns = cost.shape[1:]
    blocks, width = rows * columns, min(STRIP, columns)
    halves = 3 if count >= 3 else 1
    weight, strength = beta / blocks, gamma / blocks
    with fused.current(cost.device):
        return comixup_kernel.shares(
            cost.contiguous(),
            compatibility.contiguous(),
            start.contiguous(),
            valid.contiguous(),
            {
                "weight": weight,
                "near": SOFT_DISTANCE * weight,
                "smooth": weight / 2,
                "strength": strength,
                "twice": 2 * strength,
                "limit": threshold * blocks,
                "gain": SOFT_GAIN,
                "never": FORBIDDEN * (1 + gamma),
            },
            iterations,
            soft_penalty,
            (kept_candidates(count, width), kept_candidates(count + halves, width)),
            tuple(start for group in strips(columns) for start in group),
            width,
        )


def _of_operator(
    cost: Tensor,
    compatibility: Tensor,
    start: Tensor,
    valid: Tensor,
    beta: float,
    gamma: float,
    threshold: float,
    iterations: int,
    soft_penalty: bool,
) -> Tensor:
    """The body of the operator that stands for all sweeps."""
    solve = _by_kernel if _fits_kernel(cost, compatibility, start, valid) else _sweeps
    return solve(cost, compatibility, start, valid, beta, gamma, threshold, iterations, soft_penalty)


_as_operator = torch.library.custom_op("mixaug::comixup_shares", _of_operator, mutates_args=())


@_as_operator.register_fake
def _(cost: Tensor, compatibility: Tensor, start: Tensor, valid: Tensor, *options: Any) -> Tensor:
    parts, count, rows, columns = cost.shape
    return cost.new_empty(parts, count, count, rows, columns)


def compatibility_of(distance: Tensor, omega: float, inputs: int | Tensor) -> Tensor:
    identity = torch.eye(distance.shape[-1], device=distance.device, dtype=distance.dtype)
    total = distance.sum((-2, -1), keepdim=True)
    there = total > 0
    scaled = distance * inputs / torch.where(there, total, 1.0)
    return torch.where(there, (1 - omega) * identity + omega * scaled, identity)


def _with_halves(
    unary: Tensor, hard: Tensor, identity: Tensor, used: Tensor, never: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Labels for the halves of two among the three inputs that an output uses most, next to one for each input.

    Args:
        unary: (P, rows, columns, m).
        hard: (P, m, m) distances.
        identity: (m, m).
        used: (P, m) blocks of each input in the output so far.
        never: cost of a half of two that the output does not use.

    Returns:
        Unary costs (P, rows, columns, m + S), distances (P, m + S, m + S), shares of the inputs (P, m + S, m).
    """
    parts, count = used.shape
    number, most = used.topk(min(3, count), dim=1)
    pairs = [(0, 1), (0, 2), (1, 2)] if count >= 3 else [(0, 1)]
    members = identity[most]
    halves = torch.stack([(members[:, a] + members[:, b]) / 2 for a, b in pairs], 1)
    missing = torch.stack([number[:, b] <= 0 for _, b in pairs], 1).float()
    grid = unary.shape[1:3]
    means = [
        (unary.gather(3, _everywhere(most[:, a], grid)) + unary.gather(3, _everywhere(most[:, b], grid))) / 2
        for a, b in pairs
    ]
    costs = torch.cat(means, 3) - SOFT_GAIN + never * missing[:, None, None]
    near = torch.where(halves > 0, SOFT_DISTANCE, 1.0)
    among = (1 - torch.eye(len(pairs), device=used.device)).expand(parts, -1, -1)
    upper, lower = torch.cat([hard, near.transpose(1, 2)], 2), torch.cat([near, among], 2)
    inputs = torch.cat([identity.expand(parts, -1, -1), halves], 1)
    return torch.cat([unary, costs], 3), torch.cat([upper, lower], 1), inputs


def _everywhere(rows: Tensor, grid: Sequence[int]) -> Tensor:
    return rows[:, None, None, None].expand(-1, *grid, 1)


def _against_equal_sets(uses: Tensor) -> Tensor:
    """(P, outputs, m) 0 or 1: of two outputs with one set of inputs, the first avoids its first, the second its second.

    Args:
        uses: (P, outputs, m) bool.
    """
    equal = (uses[:, :, None] == uses[:, None]).all(3) & (uses.sum(2) > 1)[:, None]
    place = uses.long().cumsum(2)
    first, second = uses & (place == 1), uses & (place == 2)
    again, before = equal.triu(1).any(2), equal.triu(1).any(1)
    return ((first & again[..., None]) | (second & before[..., None])).float()


def _merit(
    cost: Tensor, shares: Tensor, extra: Tensor, beta: float, gamma: float, threshold: float, soft_penalty: bool
) -> Tensor:
    """(P,) objective with the threshold and with the cost of sets of inputs that two outputs share."""
    blocks = cost.shape[-2] * cost.shape[-1]
    objective = comixup_objective(cost, shares, beta, gamma, threshold, soft_penalty=soft_penalty)
    return objective + gamma / blocks * (extra * shares.sum((3, 4))).sum((1, 2))


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    """(P, m, m) times (P, m), in full precision also where matrix products are not."""
    return (matrix * vector[:, None]).sum(2)
