"""Triton: labels of least cost for one output of Co-Mixup, as :mod:`mixaug.ops.potts` finds them in torch operators.

Arrays in memory, all of one part: ``blocks`` are counted row by row. A label below ``count`` shows that input; the
labels ``count``, ``count + 1`` and ``count + 2`` show a half of each of two of the inputs a, b and c.
"""

import triton
import triton.language as tl

NEVER = tl.constexpr(float("inf"))


@triton.jit
def ends(label, count: tl.constexpr, a, b, c):
    """The two inputs that a label shows, twice the same one where it shows one."""
    one = tl.where(label < count, label, tl.where(label == count + 2, b, a))
    other = tl.where(label < count, label, tl.where(label == count, b, c))
    return one, other


@triton.jit
def _apart(label, other, count: tl.constexpr, a, b, c, weight, near):
    """Weighted distance of two labels: 0 for equal ones, ``near`` for a half and one of its inputs."""
    i, j = ends(label, count, a, b, c)
    k, m = ends(other, count, a, b, c)
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
        one, other = ends(count + half, count, a, b, c)
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
def solve_strip(
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
    for _column in tl.static_range(width - 2):
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
        _reached, chosen = tl.min(total, 0, return_indices=True)
        for place in tl.static_range(width):
            label = tl.load(offers + (row * width + place) * most + _digit(chosen, kept, place, width))
            tl.store(labels + row * columns + start + place, label)
    tl.debug_barrier()


@triton.jit
def rank_labels(
    cost, offset, unary, early, late, candidates, labels, some, kept, second, third, a, b, c, weight, near, gain, never,
    count: tl.constexpr, columns: tl.constexpr, blocks: tl.constexpr, label_block: tl.constexpr, lines: tl.constexpr,
    most: tl.constexpr,
):  # fmt: skip
    """Costs of all labels, two rounds of messages, and of each block the labels that they rank first."""
    ways: tl.constexpr = blocks * label_block
    label = tl.arange(0, label_block)
    i, j = ends(label, count, a, b, c)
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
            _least, where = tl.min(belief, 1, return_indices=True)
            tl.store(candidates + line * most + rank, where, line < blocks)
            tl.store(labels + line, where, (line < blocks) & (rank == 0))
            belief = tl.where(label[None, :] == where[:, None], NEVER, belief)
    tl.debug_barrier()
