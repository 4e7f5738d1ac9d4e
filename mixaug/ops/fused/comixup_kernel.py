"""Triton body of :mod:`mixaug.ops.supermodular`: one program solves all sweeps over the outputs of one part.

Arrays in memory, all of them of one part: ``blocks`` are counted row by row. A label below ``count`` shows that input;
the labels ``count``, ``count + 1`` and ``count + 2`` show a half of each of two of the inputs a, b and c.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mixaug.ops.fused import power_of_two

#: Values of the largest tiles, blocks times labels.
TILE = 4096
WARPS = 8
NEVER = tl.constexpr(float("inf"))


@triton.jit
def _ends(label, count: tl.constexpr, a, b, c):
    """The two inputs that a label shows, twice the same one where it shows one."""
    one = tl.where(label < count, label, tl.where(label == count + 2, b, a))
    other = tl.where(label < count, label, tl.where(label == count, b, c))
    return one, other


@triton.jit
def _apart(label, other, count: tl.constexpr, a, b, c, weight, near):
    """Weighted distance of two labels: 0 for equal ones, ``near`` for a half and one of its inputs."""
    i, j = _ends(label, count, a, b, c)
    k, m = _ends(other, count, a, b, c)
    shared = (i == k) | (i == m) | (j == k) | (j == m)
    close = shared & ((label < count) != (other < count))
    return tl.where(label == other, 0.0, tl.where(close, near, weight))


@triton.jit
def _messages(sent, label, count: tl.constexpr, a, b, c, weight, near):
    """(lines, labels): what the best choice of a block costs for each label of its neighbour, above the least of them.

    The distance is that of all labels but a few, so that the least of a line serves for most.
    """
    least = tl.min(sent, 1)
    best = tl.minimum(sent, (least + weight)[:, None])
    for half in tl.static_range(3):
        one, other = _ends(count + half, count, a, b, c)
        member = (label == one) | (label == other)
        itself = label == count + half
        of_half = tl.min(tl.where(itself[None, :], sent, NEVER), 1) + near
        of_member = tl.min(tl.where(member[None, :], sent, NEVER), 1) + near
        best = tl.minimum(best, tl.where(member[None, :], of_half[:, None], NEVER))
        best = tl.minimum(best, tl.where(itself[None, :], of_member[:, None], NEVER))
    return best - least[:, None]


@triton.jit
def _incoming(
    messages, apart: tl.constexpr, line, label, columns: tl.constexpr, blocks: tl.constexpr, labels: tl.constexpr, there
):
    """What the blocks above, below, to the left and to the right say, the four ``apart``; 0 beyond the border."""
    column = line % columns
    at = line[:, None] * labels + label[None, :]
    above = tl.load(messages + at - columns * labels, there & (line >= columns)[:, None], 0.0)
    below = tl.load(messages + apart + at + columns * labels, there & (line < blocks - columns)[:, None], 0.0)
    left = tl.load(messages + 2 * apart + at - labels, there & (column > 0)[:, None], 0.0)
    right = tl.load(messages + 3 * apart + at + labels, there & (column < columns - 1)[:, None], 0.0)
    return above, below, left, right


@triton.jit
def _digit(state, kept, place: tl.constexpr, width: tl.constexpr):
    """Which candidate the column ``place`` of a row has in a joint state; the first column counts most."""
    for _ in tl.static_range(width - 1 - place):
        state = state // kept
    return state % kept


@triton.jit
def _row_energy(
    offers, values, row, state, some, kept, count: tl.constexpr, a, b, c, weight, near, width: tl.constexpr,
    most: tl.constexpr,
):  # fmt: skip
    """Costs of a row's joint states, without the row before."""
    total = state * 0.0
    for place in tl.static_range(width):
        at = (row * width + place) * most + _digit(state, kept, place, width)
        total += tl.load(values + at, some, 0.0)
    for place in tl.static_range(width - 1):
        at = (row * width + place) * most + _digit(state, kept, place, width)
        beside = (row * width + place + 1) * most + _digit(state, kept, place + 1, width)
        one, other = tl.load(offers + at, some, 0), tl.load(offers + beside, some, 0)
        total += _apart(one, other, count, a, b, c, weight, near)
    return total


@triton.jit
def _solve_strip(
    unary, candidates, labels, offers, values, best, passed, start, kept, count: tl.constexpr, a, b, c, weight, near,
    rows: tl.constexpr, columns: tl.constexpr, width: tl.constexpr, label_block: tl.constexpr, most: tl.constexpr,
    states: tl.constexpr,
):  # fmt: skip
    """The best choice of a candidate for each block of ``width`` columns, all other columns fixed."""
    state = tl.arange(0, states)
    # Offers of every block of the strip, with what they cost beside the fixed columns.
    for begin in range(0, rows * width * kept, states):
        slot = (begin + state) // kept
        choice = (begin + state) % kept
        some = slot < rows * width
        block = slot // width * columns + start + slot % width
        own = tl.load(labels + block, some, -1)
        present = own < 0
        for other in range(kept):
            present = present | (tl.load(candidates + block * most + other, some, -1) == own)
        label = tl.load(candidates + block * most + choice, some, 0)
        # The label that a block has now must stay possible: it takes the place of the worst candidate.
        label = tl.where((choice == kept - 1) & (present == 0), own, label)
        value = tl.load(unary + block * label_block + label, some, 0.0)
        left = (slot % width == 0) & (start > 0) & some
        right = (slot % width == width - 1) & (start + width < columns) & some
        before, after = tl.load(labels + block - 1, left, 0), tl.load(labels + block + 1, right, 0)
        value += tl.where(left, _apart(before, label, count, a, b, c, weight, near), 0.0)
        value += tl.where(right, _apart(after, label, count, a, b, c, weight, near), 0.0)
        tl.store(offers + slot * most + choice, label, some)
        tl.store(values + slot * most + choice, value, some)
    tl.debug_barrier()
    top = kept
    for column in tl.static_range(width - 2):
        top = top * kept
    top = tl.where(width > 1, top, 1)
    some = state < top * kept
    tl.store(best + state, _row_energy(
        offers, values, 0, state, some, kept, count, a, b, c, weight, near, width, most
    ))  # fmt: skip
    for row in range(1, rows):
        tl.debug_barrier()
        source = best + (row - 1) * states
        least = state * 0.0
        for place in tl.static_range(width):
            # The first column's state of the row before leaves, and that of this row comes in last.
            label = tl.load(offers + (row * width + place) * most + state % kept, some, 0)
            least = state * 0.0 + NEVER
            for choice in range(kept):
                other = tl.load(offers + ((row - 1) * width + place) * most + choice)
                value = tl.load(source + choice * top + state // kept, some, 0.0)
                least = tl.minimum(least, value + _apart(other, label, count, a, b, c, weight, near))
            source = passed + place % 2 * states
            tl.store(source + state, least)
            tl.debug_barrier()
        energy = _row_energy(offers, values, row, state, some, kept, count, a, b, c, weight, near, width, most)
        tl.store(best + row * states + state, least + energy)
    tl.debug_barrier()
    chosen = 0
    for back in range(rows):
        row = rows - 1 - back
        # In the last row nothing has been chosen yet.
        known = some & (back > 0)
        total = state * 0.0
        for place in tl.static_range(width):
            at = (row * width + place) * most + _digit(state, kept, place, width)
            following = tl.load(offers + ((row + 1) * width + place) * most + _digit(chosen, kept, place, width),
                                back > 0, 0)  # fmt: skip
            label = tl.load(offers + at, known, 0)
            total += tl.where(known, _apart(label, following, count, a, b, c, weight, near), 0.0)
        total = tl.load(best + row * states + state, some, NEVER) + total
        reached, chosen = tl.min(total, 0, return_indices=True)
        for place in tl.static_range(width):
            label = tl.load(offers + (row * width + place) * most + _digit(chosen, kept, place, width))
            tl.store(labels + row * columns + start + place, label)
    tl.debug_barrier()


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
    number, a = tl.max(used, 0, return_indices=True)
    used = tl.where(inputs == a, -1.0, used)
    second, b = tl.max(used, 0, return_indices=True)
    used = tl.where(inputs == b, -1.0, used)
    third, c = tl.max(used, 0, return_indices=True)
    return a, b, tl.where(third < 0, -1, c), second, third


@triton.jit
def _rank(
    cost, offset, unary, early, late, candidates, labels, some, kept, second, third, a, b, c, weight, near, gain, never,
    count: tl.constexpr, columns: tl.constexpr, blocks: tl.constexpr, label_block: tl.constexpr, lines: tl.constexpr,
    most: tl.constexpr,
):  # fmt: skip
    """Costs of all labels, two rounds of messages, and of each block the labels that they rank first."""
    ways: tl.constexpr = blocks * label_block
    label = tl.arange(0, label_block)
    i, j = _ends(label, count, a, b, c)
    fewer = tl.where(label == count, second, third)
    fewer = tl.where((label >= count) & (fewer <= 0), never, 0.0)
    known = label < some
    of_i, of_j = tl.load(offset + i, known, 0.0), tl.load(offset + j, known, 0.0)
    for begin in range(0, blocks, lines):
        line = begin + tl.arange(0, lines)
        there = (line < blocks)[:, None] & known[None, :]
        one = tl.load(cost + i[None, :] * blocks + line[:, None], there, 0.0) + of_i[None, :]
        other = tl.load(cost + j[None, :] * blocks + line[:, None], there, 0.0) + of_j[None, :]
        value = (one + other) * 0.5 - gain + fewer[None, :]
        value = tl.where((label < count)[None, :], one, value)
        value = tl.where(known[None, :], value, NEVER)
        at = line[:, None] * label_block + label[None, :]
        written = (line < blocks)[:, None] & (label >= 0)[None, :]
        tl.store(unary + at, value, written)
        # At first a block says the same to all its neighbours.
        tl.store(early + at, _messages(value, label, count, a, b, c, weight, near), written)
    tl.debug_barrier()
    for begin in range(0, blocks, lines):
        line = begin + tl.arange(0, lines)
        at = line[:, None] * label_block + label[None, :]
        written = (line < blocks)[:, None] & (label >= 0)[None, :]
        above, below, left, right = _incoming(early, 0, line, label, columns, blocks, label_block, written)
        belief = tl.load(unary + at, written, 0.0) + above + below + left + right
        # A message leaves out what came from where it goes.
        for way in tl.static_range(4):
            back = below if way == 0 else (above if way == 1 else (right if way == 2 else left))
            said = _messages(belief - back, label, count, a, b, c, weight, near)
            tl.store(late + way * ways + at, said, written)
    tl.debug_barrier()
    for begin in range(0, blocks, lines):
        line = begin + tl.arange(0, lines)
        at = line[:, None] * label_block + label[None, :]
        written = (line < blocks)[:, None] & (label >= 0)[None, :]
        above, below, left, right = _incoming(late, ways, line, label, columns, blocks, label_block, written)
        belief = tl.load(unary + at, written, 0.0) + above + below + left + right
        for rank in range(kept):
            least, where = tl.min(belief, 1, return_indices=True)
            tl.store(candidates + line * most + rank, where, line < blocks)
            tl.store(labels + line, where, (line < blocks) & (rank == 0))
            belief = tl.where(label[None, :] == where[:, None], NEVER, belief)
    tl.debug_barrier()


@triton.jit
def _take(first, second, labels, output, count: tl.constexpr, a, b, c, blocks: tl.constexpr, lines: tl.constexpr):
    """Give an output the inputs of the labels; those that it had lie behind the last output."""
    for begin in range(0, blocks, lines):
        line = begin + tl.arange(0, lines)
        there = line < blocks
        place, aside = output * blocks + line, count * blocks + line
        had_first, had_second = tl.load(first + place, there, 0), tl.load(second + place, there, 0)
        i, j = _ends(tl.load(labels + line, there, 0), count, a, b, c)
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
    tl.store(
        extra + inputs[:, None] * input_block + inputs[None, :], tl.zeros([input_block, input_block], tl.float32)
    )
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
                    _rank(
                        cost, offset, unary, early, late, candidates, labels, some, kept, second_most, third_most, a, b,
                        c, weight, near, gain, never, count, columns, blocks, label_block, lines, most,
                    )  # fmt: skip
                    for strip in range(strips):
                        left = 0
                        for turn in tl.static_range(strips):
                            left = tl.where(strip == turn, starts[turn], left)
                        _solve_strip(
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
