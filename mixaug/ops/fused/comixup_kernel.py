"""Triton body of :mod:`mixaug.ops.supermodular`: one program solves all sweeps over the outputs of one part."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mixaug.ops.fused import power_of_two
from mixaug.ops.fused.comixup_labels import ends, rank_labels, solve_strip

#: Values of the largest tiles, blocks times labels.
TILE = 4096
WARPS = 8


@triton.jit
def _unlike(first, second, i, j, there):
    """Squared difference of the shares of blocks that show i and j to those of their neighbours."""
    k, m = tl.load(first, there, -1), tl.load(second, there, -1)
    common = (i == k).to(tl.float32) + (i == m).to(tl.float32) + (j == k).to(tl.float32) + (j == m).to(tl.float32)
    lengths = tl.where(i == j, 1.0, 0.5) + tl.where(k == m, 1.0, 0.5)
    return tl.where(there, lengths - common * 0.5, 0.0)


@triton.jit
def _measure(
    cost, first, second, counts, energies, output, smooth, count: tl.constexpr, rows: tl.constexpr,
    columns: tl.constexpr, input_block: tl.constexpr, lines: tl.constexpr,
):  # fmt: skip
    """How many blocks of an output each input has, and what the output costs without the others."""
    blocks: tl.constexpr = rows * columns
    inputs = tl.arange(0, input_block)
    used = tl.zeros([input_block], tl.float32)
    energy = tl.zeros([lines], tl.float32)
    first += output * blocks
    second += output * blocks
    for begin in range(0, blocks, lines):
        line = begin + tl.arange(0, lines)
        there = line < blocks
        i, j = tl.load(first + line, there, -1), tl.load(second + line, there, -1)
        shown = (inputs[None, :] == i[:, None]).to(tl.float32) + (inputs[None, :] == j[:, None]).to(tl.float32)
        used += tl.sum(shown, 0) * 0.5
        own = tl.load(cost + i * blocks + line, there & (i >= 0), 0.0)
        other = tl.load(cost + j * blocks + line, there & (j >= 0), 0.0)
        energy += own * 0.5 + other * 0.5
        down = there & (i >= 0) & (line < blocks - columns)
        across = there & (i >= 0) & (line % columns < columns - 1)
        unlike = _unlike(first + line + columns, second + line + columns, i, j, down)
        unlike += _unlike(first + line + 1, second + line + 1, i, j, across)
        energy += smooth * unlike
    tl.store(counts + output * input_block + inputs, used)
    tl.store(energies + output, tl.sum(energy, 0))
    tl.debug_barrier()


@triton.jit
def _merit(
    counts, energies, extra, strength, limit, guarded, count: tl.constexpr, input_block: tl.constexpr,
    soft: tl.constexpr,
):  # fmt: skip
    """The objective; with the threshold, and with the cost of sets that two outputs share, where it is guarded."""
    line = tl.arange(0, input_block)
    at = line[:, None] * input_block + line[None, :]
    there = (line < count)[:, None] & (line < count)[None, :]
    used = tl.load(counts + at, there, 0.0)
    elsewhere = tl.sum(used, 0)[None, :] - used
    if soft:
        above = tl.maximum(elsewhere - limit, 0.0)
    else:
        above = tl.where(elsewhere > limit, elsewhere, 0.0)
    overlap = tl.sum(tl.sum(tl.where(guarded > 0, above, elsewhere) * used, 1), 0)
    again = tl.sum(tl.sum(tl.load(extra + at, there, 0.0) * used, 1), 0)
    energy = tl.sum(tl.load(energies + line, line < count, 0.0), 0)
    return energy + strength * overlap + tl.where(guarded > 0, strength * again, 0.0)


@triton.jit
def _avoid_equal_sets(counts, extra, count: tl.constexpr, input_block: tl.constexpr):
    """Of two outputs with one set of inputs, the first avoids its first input, the second its second."""
    line = tl.arange(0, input_block)
    at = line[:, None] * input_block + line[None, :]
    there = (line < count)[:, None] & (line < count)[None, :]
    used = tl.load(counts + at, there, 0.0) > 0
    bit = (line * 0 + 1).to(tl.int64) << line.to(tl.int64)
    sets = tl.sum(tl.where(used, bit[None, :], 0), 1)
    first = sets & -sets
    rest = sets ^ first
    second = rest & -rest
    equal = (sets[:, None] == sets[None, :]) & (second != 0)[:, None]
    again = tl.max((equal & (line[None, :] > line[:, None])).to(tl.int32), 1) > 0
    before = tl.max((equal & (line[None, :] < line[:, None])).to(tl.int32), 1) > 0
    avoided = (again[:, None] & (first[:, None] == bit[None, :])) | (
        before[:, None] & (second[:, None] == bit[None, :])
    )
    tl.store(extra + at, avoided.to(tl.float32))
    tl.debug_barrier()


@triton.jit
def _cost_more(
    compatibility, valid, counts, extra, offset, output, strength, twice, limit, never, count: tl.constexpr,
    input_block: tl.constexpr, soft: tl.constexpr,
):  # fmt: skip
    """What each input costs more in an output, since others show it or alike ones; and the three that it uses most."""
    inputs = tl.arange(0, input_block)
    real = inputs < count
    there = real[:, None] & real[None, :]
    shown = tl.load(counts + inputs[:, None] * input_block + inputs[None, :], there, 0.0)
    used = tl.load(counts + output * input_block + inputs, real, -1.0)
    elsewhere = tl.where(real, tl.sum(shown, 0) - used, 0.0)
    matrix = tl.load(compatibility + inputs[:, None] * count + inputs[None, :], there, 0.0)
    reach = tl.sum(matrix * elsewhere[None, :], 1)
    if soft:
        penalty = tl.maximum(reach - limit, 0.0)
    else:
        counted = tl.where(reach > limit, elsewhere, 0.0)
        penalty = tl.sum(matrix * counted[None, :], 1)
    avoided = tl.load(extra + output * input_block + inputs)
    missing = tl.where(tl.load(valid + inputs, real, 0) != 0, 0.0, never)
    tl.store(offset + inputs, twice * penalty + strength * avoided + missing)
    tl.debug_barrier()
    # Of equal numbers the first counts.
    _number, a = tl.max(used, 0, return_indices=True)
    used = tl.where(inputs == a, -1.0, used)
    second, b = tl.max(used, 0, return_indices=True)
    used = tl.where(inputs == b, -1.0, used)
    third, c = tl.max(used, 0, return_indices=True)
    return a, b, tl.where(third < 0, -1, c), second, third


@triton.jit
def _take(first, second, labels, output, count: tl.constexpr, a, b, c, blocks: tl.constexpr, lines: tl.constexpr):
    """Give an output the inputs of the labels; those that it had lie behind the last output."""
    for begin in range(0, blocks, lines):
        line = begin + tl.arange(0, lines)
        there = line < blocks
        place, aside = output * blocks + line, count * blocks + line
        had_first, had_second = tl.load(first + place, there, 0), tl.load(second + place, there, 0)
        i, j = ends(tl.load(labels + line, there, 0), count, a, b, c)
        tl.store(first + aside, had_first, there)
        tl.store(second + aside, had_second, there)
        tl.store(first + place, i, there)
        tl.store(second + place, j, there)
    tl.debug_barrier()


@triton.jit
def _give_back(first, second, output, count: tl.constexpr, blocks: tl.constexpr, lines: tl.constexpr):
    """Give an output what it had before :func:`_take`."""
    for begin in range(0, blocks, lines):
        line = begin + tl.arange(0, lines)
        there = line < blocks
        place, aside = output * blocks + line, count * blocks + line
        had_first, had_second = tl.load(first + aside, there, 0), tl.load(second + aside, there, 0)
        tl.store(first + place, had_first, there)
        tl.store(second + place, had_second, there)
    tl.debug_barrier()


@triton.jit
def _start(
    start, valid, first, second, extra, count: tl.constexpr, blocks: tl.constexpr, input_block: tl.constexpr,
    lines: tl.constexpr,
):  # fmt: skip
    """The inputs that outputs show at first; none in an output that is not there."""
    inputs = tl.arange(0, input_block)
    tl.store(extra + inputs[:, None] * input_block + inputs[None, :], tl.zeros([input_block, input_block], tl.float32))
    for output in range(count):
        exists = tl.load(valid + output) != 0
        for begin in range(0, blocks, lines):
            line = begin + tl.arange(0, lines)
            shown = tl.load(start + output * blocks + line, line < blocks, 0).to(tl.int32)
            shown = tl.where(exists, shown, -1)
            tl.store(first + output * blocks + line, shown, line < blocks)
            tl.store(second + output * blocks + line, shown, line < blocks)
    tl.debug_barrier()


@triton.jit
def _spread_out(
    out, first, second, count: tl.constexpr, blocks: tl.constexpr, input_block: tl.constexpr, lines: tl.constexpr
):
    """Shares of all inputs in all blocks of all outputs: 1, a half or 0."""
    inputs = tl.arange(0, input_block)
    for output in range(count):
        for begin in range(0, blocks, lines):
            line = begin + tl.arange(0, lines)
            there = line < blocks
            i = tl.load(first + output * blocks + line, there, -1)
            j = tl.load(second + output * blocks + line, there, -1)
            share = (inputs[:, None] == i[None, :]).to(tl.float32) + (inputs[:, None] == j[None, :]).to(tl.float32)
            at = (output * count + inputs[:, None]) * blocks + line[None, :]
            tl.store(out + at, share * 0.5, (inputs < count)[:, None] & there[None, :])


@triton.jit
def sweeps_kernel(
    cost, compatibility, start, valid, out, floats, wholes, by_part, by_whole, weight, near, smooth, strength, twice,
    limit, gain, never, sweeps, count: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
    hard_kept: tl.constexpr, soft_kept: tl.constexpr, width: tl.constexpr, starts: tl.constexpr,
    strips: tl.constexpr, halves: tl.constexpr, soft: tl.constexpr, input_block: tl.constexpr,
    label_block: tl.constexpr, lines: tl.constexpr, most: tl.constexpr, states: tl.constexpr,
):  # fmt: skip
    """Sweeps over the outputs of a part; an output's labels are the best for the others as they stand."""
    part = tl.program_id(0).to(tl.int64)
    blocks: tl.constexpr = rows * columns
    cost += part * count * blocks
    compatibility += part * count * count
    start += part * count * blocks
    valid += part * count
    out += part * count * count * blocks
    # Room for what is passed on, in pieces one behind the other; `shares` below adds up their sizes.
    counts = floats + part * by_part
    extra = counts + input_block * input_block
    energies = extra + input_block * input_block
    offset = energies + input_block
    unary = offset + input_block
    early = unary + blocks * label_block
    late = early + blocks * label_block
    values = late + 4 * blocks * label_block
    best = values + rows * width * most
    passed = best + rows * states
    first = wholes + part * by_whole
    second = first + (count + 1) * blocks
    labels = second + (count + 1) * blocks
    candidates = labels + blocks
    offers = candidates + blocks * most

    _start(start, valid, first, second, extra, count, blocks, input_block, lines)
    for output in range(count):
        _measure(cost, first, second, counts, energies, output, smooth, count, rows, columns, input_block, lines)
    before = _merit(counts, energies, extra, strength, limit, 0, count, input_block, soft)
    merit = before
    active = 1
    for sweep in range(sweeps):
        if active > 0:
            # The cost of an overlap is linearised, so that the last sweep takes only what is no worse.
            guarded = tl.where((sweep > 0) & (sweep == sweeps - 1), 1, 0)
            merit = _merit(counts, energies, extra, strength, limit, guarded, count, input_block, soft)
            some = tl.where(sweep > 0, count + halves, count)
            kept = tl.where(sweep > 0, soft_kept, hard_kept)
            for output in range(count):
                if tl.load(valid + output) != 0:
                    a, b, c, second_most, third_most = _cost_more(
                        compatibility, valid, counts, extra, offset, output, strength, twice, limit, never, count,
                        input_block, soft,
                    )  # fmt: skip
                    rank_labels(
                        cost, offset, unary, early, late, candidates, labels, some, kept, second_most, third_most, a, b,
                        c, weight, near, gain, never, count, columns, blocks, label_block, lines, most,
                    )  # fmt: skip
                    for strip in range(strips):
                        left = 0
                        for turn in tl.static_range(strips):
                            left = tl.where(strip == turn, starts[turn], left)
                        solve_strip(
                            unary, candidates, labels, offers, values, best, passed, left, kept, count, a, b, c,
                            weight, near, rows, columns, width, label_block, most, states,
                        )  # fmt: skip
                    _take(first, second, labels, output, count, a, b, c, blocks, lines)
                    _measure(
                        cost, first, second, counts, energies, output, smooth, count, rows, columns, input_block, lines
                    )
                    if guarded > 0:
                        reached = _merit(counts, energies, extra, strength, limit, 1, count, input_block, soft)
                        if reached > merit:
                            _give_back(first, second, output, count, blocks, lines)
                            _measure(
                                cost, first, second, counts, energies, output, smooth, count, rows, columns,
                                input_block, lines,
                            )  # fmt: skip
                        merit = tl.minimum(merit, reached)
            if sweep == sweeps - 2:
                _avoid_equal_sets(counts, extra, count, input_block)
            now = _merit(counts, energies, extra, strength, limit, 0, count, input_block, soft)
            active = tl.where(tl.abs(before - now) >= 1e-6 * tl.abs(now), 1, 0)
            before = now
    _spread_out(out, first, second, count, blocks, input_block, lines)


def shares(
    cost: Tensor,
    compatibility: Tensor,
    start: Tensor,
    valid: Tensor,
    numbers: dict[str, float],
    sweeps: int,
    soft_penalty: bool,
    kept: tuple[int, int],
    starts: tuple[int, ...],
    width: int,
) -> Tensor:
    """Shares (P, m, m, rows, columns) float32 of the inputs in the blocks of the outputs.

    Args:
        cost, start: (P, m, rows, columns) float32 and int64, contiguous.
        compatibility, valid: (P, m, m) float32 and (P, m) bool, contiguous.
        numbers: the kernel's arguments ``weight``, ``near``, ``smooth``, ``strength``, ``twice``, ``limit``, ``gain``
            and ``never``.
        sweeps, soft_penalty: as of the torch body.
        kept: candidates of a block in the first sweep, and in those with halves.
        starts, width: first columns of the strips in the order in which they are solved, and columns of each.
    """
    parts, count, rows, columns = cost.shape
    blocks, halves = rows * columns, 3 if count > 2 else 1
    input_block, label_block = power_of_two(count), power_of_two(count + 3)
    most, states = power_of_two(max(kept)), power_of_two(max(kept) ** width)
    by_part = 2 * input_block**2 + 2 * input_block + 6 * blocks * label_block
    by_part += rows * width * most + (rows + 2) * states
    by_whole = 2 * (count + 1) * blocks + blocks + blocks * most + rows * width * most
    made = {"device": cost.device}
    out = torch.empty(parts, count, count, rows, columns, dtype=torch.float32, **made)
    floats = torch.empty(parts, by_part, dtype=torch.float32, **made)
    wholes = torch.empty(parts, by_whole, dtype=torch.int32, **made)
    sweeps_kernel[(parts,)](
        cost, compatibility, start, valid.view(torch.int8), out, floats, wholes, by_part, by_whole, numbers["weight"],
        numbers["near"], numbers["smooth"], numbers["strength"], numbers["twice"], numbers["limit"], numbers["gain"],
        numbers["never"], sweeps, count, rows, columns, *kept, width, starts, len(starts), halves, soft_penalty,
        input_block, label_block, max(min(TILE // label_block, power_of_two(blocks)), 1), most, states,
        num_warps=WARPS, enable_fp_fusion=False,
    )  # fmt: skip
    return out
