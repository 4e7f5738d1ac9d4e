"""Triton body of :mod:`mixaug.ops.transport`: one program moves the cells of one image."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mixaug.ops.fused import power_of_two

#: Values of a block: rows of it are all places, or all cells.
BLOCK = 4096


@triton.jit
def moves_kernel(
    saliency, visible, price, refusals, choices, asked, winners, columns: tl.constexpr, height: tl.constexpr,
    width: tl.constexpr, cells: tl.constexpr, rounds: tl.constexpr, cell_block: tl.constexpr, rows: tl.constexpr,
):  # fmt: skip
    """Deferred acceptance: in every round each cell asks for its cheapest place, which keeps the cheapest cell."""
    image = tl.program_id(0).to(tl.int64)
    saliency += image * cells
    refusals += image * cells * cells
    choices += image * cells
    asked += image * cells
    winners += image * cells
    every = tl.arange(0, cell_block)
    some = tl.arange(0, rows)
    inside = every[None, :] < cells
    seen = tl.load(visible + image * cells + every, every < cells, 0) != 0
    open_ = 1
    for turn in range(rounds):
        # Where nobody lost a place in the last round, all ask for the same places again.
        if open_ > 0:
            for start in range(0, cells, rows):
                cell = start + some
                at = cell[:, None] * cells + every[None, :]
                on = (cell[:, None] < cells) & inside
                # Whole numbers come first: places at equal distances must stay equal, since the first is asked.
                down = (every[None, :] // columns - cell[:, None] // columns) * width
                across = (every[None, :] % columns - cell[:, None] % columns) * height
                apart = (down * down + across * across).to(tl.float32)
                apart = tl.div_rn(apart, apart * 0.0 + 1.0 * (height * width) * (height * width))
                gain = tl.load(saliency + cell, cell < cells, 0.0)[:, None] * tl.where(seen, 1.0, 0.0)[None, :]
                cost = price * apart - gain
                if turn > 0:
                    cost = cost + tl.load(refusals + at, on, 0).to(tl.float32)
                else:
                    tl.store(refusals + at, tl.zeros([rows, cell_block], tl.int8), on)
                least, choice = tl.min(tl.where(on, cost, float("inf")), 1, return_indices=True)
                tl.store(choices + cell, choice, cell < cells)
                tl.store(asked + cell, tl.where(least < 0, least, float("inf")), cell < cells)
            tl.debug_barrier()
            for start in range(0, cells, rows):
                place = start + some
                wish = tl.load(choices + every, every < cells, -1)
                offer = tl.load(asked + every, every < cells, float("inf"))
                offers = tl.where(wish[None, :] == place[:, None], offer[None, :], float("inf"))
                # Of equal cells the first wins.
                least, winner = tl.min(offers, 1, return_indices=True)
                tl.store(winners + place, tl.where(least < float("inf"), winner, cells).to(tl.int64), place < cells)
            tl.debug_barrier()
            wish = tl.load(choices + every, every < cells, 0)
            asks = tl.load(asked + every, every < cells, float("inf")) < float("inf")
            lost = asks & (tl.load(winners + wish, every < cells, 0) != every)
            tl.store(refusals + every * cells + wish, tl.full([cell_block], 1, tl.int8), lost)
            open_ = tl.sum(lost.to(tl.int32), 0)
            tl.debug_barrier()
    winner = tl.load(winners + every, every < cells, 0)
    tl.store(winners + every, tl.where(winner < cells, winner, every), every < cells)


def moves(saliency: Tensor, visible: Tensor, price: float) -> Tensor:
    """(B, t, u) float32 and bool, contiguous, and the price of distance, to the cell that each place shows."""
    batch, rows, columns = saliency.shape
    cells = rows * columns
    block = power_of_two(cells)
    made = {"device": saliency.device}
    choices = torch.empty(batch, cells, dtype=torch.int32, **made)
    asked = torch.empty(batch, cells, dtype=torch.float32, **made)
    refusals = torch.empty(batch, cells, cells, dtype=torch.int8, **made)
    winners = torch.empty(batch, rows, columns, dtype=torch.int64, **made)
    lines = max(min(BLOCK // block, block), 1)
    moves_kernel[(batch,)](
        saliency, visible.view(torch.int8), price, refusals, choices, asked, winners, columns, max(rows - 1, 1),
        max(columns - 1, 1), cells, max(rows, columns), block, lines, num_warps=min(max(lines * block // 512, 1), 8),
        enable_fp_fusion=False,
    )  # fmt: skip
    return winners
