"""Triton body of TokenMix's blocks: one program covers the tokens of one mask."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mixaug.ops.fused import power_of_two


@triton.jit
def _rounded(value):
    """To the nearest whole number, halves to the even one."""
    low = tl.floor(value)
    rest = value - low
    odd = low - 2 * tl.floor(low / 2)
    return tl.where((rest > 0.5) | ((rest == 0.5) & (odd > 0)), low + 1, low)


@triton.jit
def tokens_kernel(
    units, aspects, counts, covered, rounds: tl.constexpr, proposals: tl.constexpr, rows: tl.constexpr,
    columns: tl.constexpr, proposal_block: tl.constexpr, row_block: tl.constexpr, column_block: tl.constexpr,
):  # fmt: skip
    """Rounds of proposals; of each the first one that adds tokens, and not too many, is covered."""
    mask = tl.program_id(0).to(tl.int64)
    units += mask * rounds * proposals * 4
    aspects += mask * rounds * proposals
    count = tl.load(counts + mask)
    k = tl.arange(0, proposal_block)
    there = k < proposals
    y = tl.arange(0, row_block)
    x = tl.arange(0, column_block)
    grid = (y[:, None] < rows) & (x[None, :] < columns)
    full = tl.zeros([row_block, column_block], tl.int32)
    open_ = 1
    for turn in range(rounds):
        if open_ > 0:
            at = turn * proposals + k
            unit = tl.load(units + at * 4, there, 0.0)
            aspect = tl.load(aspects + at, there, 1.0)
            left_over = count - tl.sum(tl.sum(full, 1), 0)
            area = 1 + unit * tl.maximum(left_over - 1, 0)
            height = _rounded(tl.sqrt(area * aspect))
            width = _rounded(tl.sqrt(area / aspect))
            # In a single row of tokens a block may be as high as the row.
            fits = (height < max(rows, 2)) & (width < max(columns, 2))
            height = tl.where(fits, height, 0).to(tl.int64)
            width = tl.where(fits, width, 0).to(tl.int64)
            top = (tl.load(units + at * 4 + 2, there, 0.0) * (rows - height + 1)).to(tl.int64)
            left = (tl.load(units + at * 4 + 3, there, 0.0) * (columns - width + 1)).to(tl.int64)
            top, left = tl.minimum(top, rows - height), tl.minimum(left, columns - width)
            in_rows = (y[None, :] >= top[:, None]) & (y[None, :] < (top + height)[:, None])
            in_columns = (x[None, :] >= left[:, None]) & (x[None, :] < (left + width)[:, None])
            inside = in_rows[:, :, None] & in_columns[:, None, :]
            added = tl.sum(tl.sum((inside & (full == 0)[None, :, :]).to(tl.int32), 2), 1)
            accepted = (added > 0) & (added <= left_over) & fits & there
            first = tl.min(tl.where(accepted, k, proposal_block), 0)
            chosen = inside & (k == first)[:, None, None]
            full = full | tl.max(chosen.to(tl.int32), 0)
            open_ = tl.where(first < proposal_block, 1, 0)
    place = covered + mask * rows * columns + y[:, None] * columns + x[None, :]
    tl.store(place, full.to(tl.int8), grid)


def blocks(units: Tensor, aspects: Tensor, counts: Tensor, rows: int, columns: int) -> Tensor:
    """(R, N, K, 4) units, (R, N, K) aspect ratios, (R,) numbers of tokens, contiguous, to (R, rows, columns) bool."""
    masks, rounds, proposals = aspects.shape
    covered = torch.empty(masks, rows, columns, dtype=torch.bool, device=units.device)
    sides = power_of_two(proposals), power_of_two(rows), power_of_two(columns)
    tokens_kernel[(masks,)](
        units, aspects, counts, covered.view(torch.int8), rounds, proposals, rows, columns, *sides,
        num_warps=min(max(sides[0] * sides[1] * sides[2] // 1024, 1), 8), enable_fp_fusion=False,
    )  # fmt: skip
    return covered
