"""Triton bodies of :mod:`mixaug.ops.gridcut`: one program solves one sample.

They follow the torch bodies operation by operation, and are launched without fused multiply-adds, so that the labels
are the same. What one step hands to the next lies in global memory, behind a barrier.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mixaug.ops.fused import power_of_two


@triton.jit
def _minorant(
    costs, plus, minus, out, ahead, behind, edges, positions: tl.constexpr, chains: tl.constexpr, by_position,
    by_chain, edge_by_position, edge_by_chain, add: tl.constexpr, labels: tl.constexpr, label_block: tl.constexpr,
    chain_block: tl.constexpr,
):  # fmt: skip
    """out = minorant(costs + plus) - minus. Costs of cell (position p, chain c) begin at p by_position + c by_chain."""
    to = tl.arange(0, label_block)[:, None]
    chain = tl.arange(0, chain_block)[None, :]
    there = chain < chains
    on = (to < labels) & there
    level = tl.div_rn(to.to(tl.float32), (labels - 1) * 1.0 + tl.zeros_like(to.to(tl.float32)))
    own = chain * by_chain + to
    zero = tl.zeros([label_block, chain_block], tl.float32)
    tl.store(ahead + own, zero, on)
    tl.store(behind + (positions - 1) * by_position + own, zero, on)
    tl.debug_barrier()
    for p in range(1, positions):
        edge = tl.load(edges + (p - 1) * edge_by_position + chain * edge_by_chain, there, 0.0)
        least = zero + float("inf")
        for before in tl.static_range(labels):
            place = (p - 1) * by_position + chain * by_chain + before
            cost = tl.load(costs + place, there, 0.0)
            if add:
                cost = cost + tl.load(plus + place, there, 0.0)
            cost = tl.load(ahead + place, there, 0.0) + cost
            apart = level - before / (labels - 1)
            least = tl.minimum(least, cost + apart * apart * edge)
        tl.store(ahead + p * by_position + own, least, on)
        tl.debug_barrier()
    for back in range(1, positions):
        p = positions - back
        share = tl.div_rn(zero + 1.0, zero + (p * 1.0 + 1.0))
        ratio = tl.div_rn(zero + p * 1.0, zero + (p * 1.0 + 1.0))
        edge = tl.load(edges + (p - 1) * edge_by_position + chain * edge_by_chain, there, 0.0)
        least = zero + float("inf")
        for before in tl.static_range(labels):
            place = p * by_position + chain * by_chain + before
            cost = tl.load(costs + place, there, 0.0)
            if add:
                cost = cost + tl.load(plus + place, there, 0.0)
            passed_on = cost - share * (cost + tl.load(ahead + place, there, 0.0))
            cost = tl.load(behind + place, there, 0.0) * ratio + passed_on
            apart = level - before / (labels - 1)
            least = tl.minimum(least, cost + apart * apart * edge)
        tl.store(behind + (p - 1) * by_position + own, least, on)
        tl.debug_barrier()
    for p in range(positions):
        place = p * by_position + own
        cost = tl.load(costs + place, on, 0.0)
        if add:
            cost = cost + tl.load(plus + place, on, 0.0)
        share = tl.div_rn(zero + 1.0, zero + (p * 1.0 + 1.0))
        total = (tl.load(behind + place, on, 0.0) + tl.load(ahead + place, on, 0.0) + cost) * share
        tl.store(out + place, total - tl.load(minus + place, on, 0.0), on)
    tl.debug_barrier()


@triton.jit
def _solve(
    costs, best, levels, edges, positions: tl.constexpr, chains: tl.constexpr, by_position, by_chain, edge_by_position,
    edge_by_chain, level_by_position, level_by_chain, first: tl.constexpr, step: tl.constexpr, labels: tl.constexpr,
    label_block: tl.constexpr, chain_block: tl.constexpr,
):  # fmt: skip
    """Levels of the best labels of chains ``first``, ``first + step``, ...; the others keep theirs."""
    to = tl.arange(0, label_block)[:, None]
    chain = tl.arange(0, chain_block)[None, :]
    there = (chain < chains) & (chain % step == first)
    on = (to < labels) & there
    level = tl.div_rn(to.to(tl.float32), (labels - 1) * 1.0 + tl.zeros_like(to.to(tl.float32)))
    own = chain * by_chain + to
    tl.store(best + own, tl.load(costs + own, on, 0.0), on)
    tl.debug_barrier()
    for p in range(1, positions):
        edge = tl.load(edges + (p - 1) * edge_by_position + chain * edge_by_chain, there, 0.0)
        least = tl.zeros([label_block, chain_block], tl.float32) + float("inf")
        for before in tl.static_range(labels):
            cost = tl.load(best + (p - 1) * by_position + chain * by_chain + before, there, 0.0)
            apart = level - before / (labels - 1)
            least = tl.minimum(least, cost + apart * apart * edge)
        place = p * by_position + own
        tl.store(best + place, least + tl.load(costs + place, on, 0.0), on)
        tl.debug_barrier()
    line = tl.arange(0, chain_block)
    walks = (line < chains) & (line % step == first)
    after = tl.zeros([chain_block], tl.float32)
    for back in range(positions):
        p = positions - 1 - back
        # The last cell has no step behind it.
        edge = tl.load(edges + p * edge_by_position + line * edge_by_chain, walks & (back > 0), 0.0)
        least = tl.zeros([chain_block], tl.float32) + float("inf")
        found = tl.zeros([chain_block], tl.float32)
        for label in tl.static_range(labels):
            z = label / (labels - 1)
            cost = (z - 2 * after) * (z * edge)
            cost = cost + tl.load(best + p * by_position + line * by_chain + label, walks, 0.0)
            found = tl.where(cost < least, z, found)
            least = tl.minimum(least, cost)
        tl.store(levels + p * level_by_position + line * level_by_chain, found, walks)
        after = found
    tl.debug_barrier()


@triton.jit
def _improve(
    costs, own_costs, best, levels, edges, across, positions: tl.constexpr, chains: tl.constexpr, by_position, by_chain,
    edge_by_position, edge_by_chain, across_by_position, across_by_chain, level_by_position, level_by_chain,
    labels: tl.constexpr, label_block: tl.constexpr, chain_block: tl.constexpr,
):  # fmt: skip
    """Every second chain at its best given the others, then the others given these."""
    to = tl.arange(0, label_block)[:, None]
    chain = tl.arange(0, chain_block)[None, :]
    on = (to < labels) & (chain < chains)
    z = tl.div_rn(to.to(tl.float32), (labels - 1) * 1.0 + tl.zeros_like(to.to(tl.float32)))
    has_before, has_after = (chain > 0) & (chain < chains), chain < chains - 1
    for odd in tl.static_range(2):
        for p in range(positions):
            weights = across + p * across_by_position + chain * across_by_chain
            beside = levels + p * level_by_position + chain * level_by_chain
            before = tl.load(weights - across_by_chain, has_before, 0.0)
            after = tl.load(weights, has_after, 0.0)
            pull = before * tl.load(beside - level_by_chain, has_before, 0.0)
            pull = pull + after * tl.load(beside + level_by_chain, has_after, 0.0)
            place = p * by_position + chain * by_chain + to
            cost = z * (z * (before + after) - 2 * pull) + tl.load(costs + place, on, 0.0)
            tl.store(own_costs + place, cost, on)
        tl.debug_barrier()
        _solve(
            own_costs, best, levels, edges, positions, chains, by_position, by_chain, edge_by_position, edge_by_chain,
            level_by_position, level_by_chain, odd, 2, labels, label_block, chain_block,
        )  # fmt: skip


@triton.jit
def chains_kernel(
    unary, edges_v, edges_h, scratch, levels, found, rows: tl.constexpr, columns: tl.constexpr, rounds: tl.constexpr,
    labels: tl.constexpr, label_block: tl.constexpr, chain_block: tl.constexpr,
):  # fmt: skip
    """Dual ascent and moves of whole rows and columns. Costs are (sample, row, column, label)."""
    sample = tl.program_id(0).to(tl.int64)
    size = rows * columns * labels
    unary += sample * size
    edges_v += sample * (rows - 1) * columns
    edges_h += sample * rows * (columns - 1)
    levels += sample * rows * columns
    scratch += sample * size * 4
    handed, given, ahead, behind = scratch, scratch + size, scratch + 2 * size, scratch + 3 * size
    # A cell's costs: along a row every `labels`, along a column every `columns * labels`.
    line = columns * labels
    to = tl.arange(0, label_block)[:, None]
    chain = tl.arange(0, chain_block)[None, :]
    for y in range(rows):
        nothing = tl.zeros([label_block, chain_block], tl.float32)
        tl.store(handed + y * line + chain * labels + to, nothing, (to < labels) & (chain < columns))
    tl.debug_barrier()
    for _ in range(rounds):
        _minorant(
            unary, handed, handed, given, ahead, behind, edges_h, columns, rows, labels, line, 1, columns - 1, True,
            labels, label_block, chain_block,
        )  # fmt: skip
        _minorant(
            given, given, given, handed, ahead, behind, edges_v, rows, columns, line, labels, columns, 1, False, labels,
            label_block, chain_block,
        )  # fmt: skip
    _minorant(
        unary, handed, handed, given, ahead, behind, edges_h, columns, rows, labels, line, 1, columns - 1, True, labels,
        label_block, chain_block,
    )  # fmt: skip
    _solve(
        given, ahead, levels, edges_v, rows, columns, line, labels, columns, 1, columns, 1, 0, 1, labels, label_block,
        chain_block,
    )  # fmt: skip
    _improve(
        unary, behind, ahead, levels, edges_h, edges_v, columns, rows, labels, line, 1, columns - 1, 1, columns, 1,
        columns, labels, label_block, chain_block,
    )  # fmt: skip
    _improve(
        unary, behind, ahead, levels, edges_v, edges_h, rows, columns, line, labels, columns, 1, columns - 1, 1,
        columns, 1, labels, label_block, chain_block,
    )  # fmt: skip
    column = tl.arange(0, chain_block)
    for y in range(rows):
        inside = column < columns
        level = tl.load(levels + y * columns + column, inside, 0.0)
        label = tl.floor(level * (labels - 1) + 0.5).to(tl.int64)
        tl.store(found + sample * rows * columns + y * columns + column, label, inside)


@triton.jit
def frontier_kernel(
    unary, edges_v, edges_h, best, found, rows: tl.constexpr, columns: tl.constexpr, states: tl.constexpr,
    labels: tl.constexpr, state_block: tl.constexpr,
):  # fmt: skip
    """Exact, by dynamic programming over the last label of each column."""
    sample = tl.program_id(0).to(tl.int64)
    unary += sample * rows * columns * labels
    edges_v += sample * (rows - 1) * columns
    edges_h += sample * rows * (columns - 1)
    best += sample * (rows * columns + 1) * states
    found += sample * rows * columns
    state = tl.arange(0, state_block)
    on = state < states
    total = tl.zeros([state_block], tl.float32)
    tl.store(best + state, total, on)
    tl.debug_barrier()
    for y in range(rows):
        stride = states
        for x in range(columns):
            # Digits of a state are the labels of the columns, the first one the largest.
            stride = stride // labels
            label = state // stride % labels
            without = state - label * stride
            level = tl.div_rn(label.to(tl.float32), total * 0.0 + (labels - 1) * 1.0)
            before = best + (y * columns + x) * states
            # In the first row and column there is nothing to differ from.
            edge = tl.load(edges_v + (y - 1) * columns + x, mask=y > 0, other=0.0)
            least = tl.zeros([state_block], tl.float32) + float("inf")
            for old in tl.static_range(labels):
                apart = old / (labels - 1) - level
                least = tl.minimum(least, tl.load(before + without + old * stride, on, 0.0) + apart * apart * edge)
            total = least + tl.load(unary + (y * columns + x) * labels + label, on, 0.0)
            edge = tl.load(edges_h + y * (columns - 1) + x - 1, mask=x > 0, other=0.0)
            beside = state // (stride * labels) % labels
            apart = tl.div_rn(beside.to(tl.float32), level * 0.0 + (labels - 1) * 1.0) - level
            total = total + apart * apart * edge
            tl.store(before + states + state, total, on)
            tl.debug_barrier()
    now = tl.argmin(tl.where(on, total, float("inf")), 0)
    for back_y in range(rows):
        y = rows - 1 - back_y
        stride = 1
        for back_x in range(columns):
            x = columns - 1 - back_x
            label = now // stride % labels
            tl.store(found + y * columns + x, label.to(tl.int64))
            without = now - label * stride
            level = tl.div_rn(label.to(tl.float32), (labels - 1) * 1.0)
            edge = tl.load(edges_v + (y - 1) * columns + x, mask=y > 0, other=0.0)
            least = edge * 0.0 + float("inf")
            chosen = label
            for old in tl.static_range(labels):
                apart = old / (labels - 1) - level
                cost = tl.load(best + (y * columns + x) * states + without + old * stride)
                cost = cost + apart * apart * edge
                chosen = tl.where(cost < least, old, chosen)
                least = tl.minimum(least, cost)
            now = without + tl.where(y > 0, chosen, label) * stride
            stride = stride * labels


def by_chains(unary: Tensor, edges_v: Tensor, edges_h: Tensor, rounds: int) -> Tensor:
    """(B, n, m, L), (B, n - 1, m), (B, n, m - 1) float32, contiguous, to labels (B, n, m) int64."""
    batch, rows, columns, labels = unary.shape
    scratch = unary.new_empty(batch, 4, rows, columns, labels)
    levels = unary.new_empty(batch, rows, columns)
    found = torch.empty(batch, rows, columns, dtype=torch.int64, device=unary.device)
    label_block, chain_block = power_of_two(labels), power_of_two(max(rows, columns))
    chains_kernel[(batch,)](
        unary, edges_v, edges_h, scratch, levels, found, rows, columns, rounds, labels, label_block, chain_block,
        num_warps=min(max(label_block * chain_block // 32, 1), 8), enable_fp_fusion=False,
    )  # fmt: skip
    return found


def by_frontier(unary: Tensor, edges_v: Tensor, edges_h: Tensor) -> Tensor:
    """As :func:`by_chains`, for at least as many rows as columns and few states L^columns."""
    batch, rows, columns, labels = unary.shape
    states = labels**columns
    best = unary.new_empty(batch, rows * columns + 1, states)
    found = torch.empty(batch, rows, columns, dtype=torch.int64, device=unary.device)
    frontier_kernel[(batch,)](
        unary, edges_v, edges_h, best, found, rows, columns, states, labels, power_of_two(states),
        num_warps=min(max(power_of_two(states) // 32, 1), 4), enable_fp_fusion=False,
    )  # fmt: skip
    return found
