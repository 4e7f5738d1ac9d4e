"""Triton bodies around PuzzleMix's cut: shares of saliency, costs and edges, and the blend of cells that moved."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mixaug.ops.fused import power_of_two

PIXELS = 512


@triton.jit
def _finite(value, other):
    """As ``nan_to_num``, with ``other`` for what is no number."""
    value = tl.where(value == value, value, other)
    return tl.minimum(tl.maximum(value, -3.4028234663852886e38), 3.4028234663852886e38)


@triton.jit
def shares_kernel(sums, shares, cells: tl.constexpr, block: tl.constexpr):
    """Saliency per cell to shares of sum 1; even where there is none."""
    image = tl.program_id(0).to(tl.int64)
    cell = tl.arange(0, block)
    there = cell < cells
    value = tl.load(sums + image * cells + cell, there, 0.0)
    # What is not finite counts as nothing.
    value = tl.where((value == value) & (value < float("inf")) & (value > 0), value, 0.0)
    largest = tl.maximum(tl.max(value, 0), 1.1754943508222875e-38)
    value = tl.div_rn(value, largest + value * 0.0)
    total = tl.sum(value, 0)
    share = tl.div_rn(value, tl.maximum(total, 0.5) + value * 0.0)
    tl.store(shares + image * cells + cell, tl.where(total > 0.5, share, 1 / cells), there)


@triton.jit
def _cell_means(
    start, scale, by_normal, by_along, pixels: tl.constexpr, wide: tl.constexpr, count: tl.constexpr, lanes
):  # fmt: skip
    """Sums of the cells along one side of a border, times ``scale``."""
    there = lanes < count
    total = tl.zeros_like(lanes.to(tl.float32))
    for j in tl.static_range(wide):
        line = tl.zeros_like(total)
        for i in tl.static_range(pixels):
            at = i * by_normal + (lanes * wide + j) * by_along
            line = line + tl.load(start + at, there, 0).to(tl.float32)
        total = total + line
    return total * scale


@triton.jit
def _border(
    own, partner, there, scales, by_scale, channels: tl.constexpr, by_channel, by_normal, by_along,
    pixels: tl.constexpr, wide: tl.constexpr, count: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Mean differences over a border: own beside own, partner's before own, own before the partner's, partner's twice.

    ``own`` and ``partner`` point at the first pixel behind the border, ``pixels`` deep on either side.
    """
    lanes = tl.arange(0, block)
    oo = tl.zeros([block], tl.float32)
    po, op, pp = oo, oo, oo
    if there:
        for channel in range(channels):
            scale = tl.load(scales + channel * by_scale)
            at = channel * by_channel
            back = at - pixels * by_normal
            before = _cell_means(own + back, scale, by_normal, by_along, pixels, wide, count, lanes)
            after = _cell_means(own + at, scale, by_normal, by_along, pixels, wide, count, lanes)
            other_before = _cell_means(partner + back, scale, by_normal, by_along, pixels, wide, count, lanes)
            other_after = _cell_means(partner + at, scale, by_normal, by_along, pixels, wide, count, lanes)
            oo += tl.abs(before - after)
            po += tl.abs(other_before - after)
            op += tl.abs(before - other_after)
            pp += tl.abs(other_before - other_after)
    size = channels * count * 1.0
    return tl.sum(oo, 0) / size, tl.sum(po, 0) / size, tl.sum(op, 0) / size, tl.sum(pp, 0) / size


@triton.jit
def costs_kernel(
    images, partners, shares, scales, lam, unary, edges_v, edges_h, by_scale, by_lam, weight, smooth, prior_weight,
    by_sample, by_channel, by_row, by_column, blocks: tl.constexpr, channels: tl.constexpr, height: tl.constexpr,
    width: tl.constexpr, tall: tl.constexpr, wide: tl.constexpr, labels: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Costs of all levels in one block of one sample, and its edges to the one below and to the right."""
    index = tl.program_id(0).to(tl.int64)
    x = index % blocks
    y = index // blocks % blocks
    sample = index // (blocks * blocks)
    other = tl.load(partners + sample)
    keep_own = tl.load(shares + other * blocks * blocks + y * blocks + x)
    keep_partner = tl.load(shares + index)
    corner = y * height * by_row + x * width * by_column
    own = images + sample * by_sample + corner
    partner = images + other * by_sample + corner
    along_x: tl.constexpr = width // wide
    along_y: tl.constexpr = height // tall
    below, right = height * by_row, width * by_column

    oo, po, op, pp = _border(
        own + below, partner + below, y < blocks - 1, scales, by_scale, channels, by_channel, by_row, by_column, tall,
        wide, along_x, block,
    )  # fmt: skip
    keep_own += (op * weight + oo * weight) / 2
    keep_partner += (po * weight + pp * weight) / 2
    if y < blocks - 1:
        edge = (op * weight + po * weight - oo * weight - pp * weight) / 2
        place = (sample * (blocks - 1) + y) * blocks + x
        tl.store(edges_v + place, tl.maximum(_finite(edge + smooth, smooth), 0.0))
    oo, po, op, pp = _border(
        own, partner, y > 0, scales, by_scale, channels, by_channel, by_row, by_column, tall, wide, along_x, block
    )
    keep_own += (po * weight + oo * weight) / 2
    keep_partner += (op * weight + pp * weight) / 2
    oo, po, op, pp = _border(
        own + right, partner + right, x < blocks - 1, scales, by_scale, channels, by_channel, by_column, by_row, wide,
        tall, along_y, block,
    )  # fmt: skip
    keep_own += (op * weight + oo * weight) / 2
    keep_partner += (po * weight + pp * weight) / 2
    if x < blocks - 1:
        edge = (op * weight + po * weight - oo * weight - pp * weight) / 2
        place = (sample * blocks + y) * (blocks - 1) + x
        tl.store(edges_h + place, tl.maximum(_finite(edge + smooth, smooth), 0.0))
    oo, po, op, pp = _border(
        own, partner, x > 0, scales, by_scale, channels, by_channel, by_column, by_row, wide, tall, along_y, block
    )
    keep_own += (po * weight + oo * weight) / 2
    keep_partner += (op * weight + pp * weight) / 2

    prior = tl.load(lam + sample * by_lam).to(tl.float64)
    last: tl.constexpr = labels - 1
    ways = prior * 0 + 1
    for label in tl.static_range(labels):
        chance = ways
        for _ in tl.static_range(last - label):
            chance = chance * prior
        for _ in tl.static_range(label):
            chance = chance * (1 - prior)
        surprise = (0.0 - tl.log(chance + 1e-8)).to(tl.float32) * prior_weight
        share = label / last
        if 2 * label < last:
            cost = keep_own + share * (keep_partner - keep_own)
        else:
            cost = keep_partner - (keep_partner - keep_own) * (1 - share)
        tl.store(unary + index * labels + label, _finite(cost + surprise, 0.0))
        ways = ways * (last - label) / (label + 1)


@triton.jit
def blend_kernel(
    images, partners, share, own_moves, partner_moves, out, by_sample, by_channel, by_row, by_column, out_by_sample,
    out_by_channel, out_by_row, out_by_column, channels, height, width, rows, columns, share_rows, share_columns,
    copies: tl.constexpr, whole: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """``share * own + (1 - share) * partner`` with both taken from where their cells come from."""
    sample = tl.program_id(0).to(tl.int64)
    pixel = tl.program_id(1) * block + tl.arange(0, block)
    there = pixel < height * width
    y, x = pixel // width, pixel % width
    tall, wide = height // rows, width // columns
    place = y // tall * columns + x // wide
    other = tl.load(partners + sample)
    own_cell = tl.load(own_moves + sample * rows * columns + place, there, 0)
    other_cell = tl.load(partner_moves + sample * rows * columns + place, there, 0)
    own_y, own_x = own_cell // columns * tall + y % tall, own_cell % columns * wide + x % wide
    other_y, other_x = other_cell // columns * tall + y % tall, other_cell % columns * wide + x % wide
    at = y // (height // share_rows) * share_columns + x // (width // share_columns)
    weight = tl.load(share + sample * share_rows * share_columns + at, there, 0)
    first = images + sample * by_sample + own_y * by_row + own_x * by_column
    second = images + other * by_sample + other_y * by_row + other_x * by_column
    target = out + sample * out_by_sample + y * out_by_row + x * out_by_column
    for channel in range(channels):
        mine = tl.load(first + channel * by_channel, there, 0)
        others = tl.load(second + channel * by_channel, there, 0)
        if copies:
            mixed = tl.where(weight != 0, mine, others)
        else:
            a, b = others.to(tl.float32), mine.to(tl.float32)
            mixed = tl.where(weight < 0.5, a + weight * (b - a), b - (b - a) * (1 - weight))
            if whole:
                low = tl.floor(mixed)
                up = (mixed - low > 0.5) | ((mixed - low == 0.5) & (low - 2 * tl.floor(low / 2) > 0))
                mixed = tl.where(up, low + 1, low)
            mixed = mixed.to(mine.dtype)
        tl.store(target + channel * out_by_channel, mixed, there)


def shares(sums: Tensor) -> Tensor:
    """(B, rows, columns) float32 sums of saliency, contiguous, to shares like them."""
    cells = sums.shape[1] * sums.shape[2]
    found = torch.empty_like(sums)
    shares_kernel[(len(sums),)](sums, found, cells, power_of_two(cells), num_warps=4)
    return found


def costs(
    images: Tensor,
    partner: Tensor,
    pooled: Tensor,
    scales: Tensor,
    lam: Tensor,
    cell: tuple[int, int],
    labels: int,
    weights: tuple[float, float, float],
) -> tuple[Tensor, Tensor, Tensor]:
    """Costs (B, n, n, L) and edges (B, n - 1, n), (B, n, n - 1) of the cut.

    Args:
        images: (B, C, H, W).
        partner: (B,) int64.
        pooled: (B, n, n) float32 shares of saliency.
        scales: (C,) or (1,) float32 factors of the cells' sums of pixels.
        lam: (B,) or (1,) prior.
        cell: pixels of a cell at a border.
        labels: L.
        weights: of border differences, of smoothness, of the prior's logarithm.
    """
    batch, channels, height, width = images.shape
    blocks = pooled.shape[1]
    made = {"dtype": torch.float32, "device": images.device}
    unary = torch.empty(batch, blocks, blocks, labels, **made)
    edges_v, edges_h = torch.empty(batch, blocks - 1, blocks, **made), torch.empty(batch, blocks, blocks - 1, **made)
    height, width = height // blocks, width // blocks
    block = power_of_two(max(height // cell[0], width // cell[1]))
    costs_kernel[(batch * blocks * blocks,)](
        images, partner, pooled, scales, lam, unary, edges_v, edges_h, int(len(scales) > 1), int(len(lam) > 1),
        *weights, *images.stride(), blocks, channels, height, width, *cell, labels, block, num_warps=1,
        enable_fp_fusion=False,
    )  # fmt: skip
    return unary, edges_v, edges_h


def blend(images: Tensor, partner: Tensor, share: Tensor, own: Tensor, other: Tensor) -> Tensor:
    """Images (B, C, H, W) with their cells moved, put together by shares (B, n, n), bool or float32."""
    batch, channels, height, width = images.shape
    out = torch.empty_like(images)
    copies = share.dtype == torch.bool
    blend_kernel[(batch, triton.cdiv(height * width, PIXELS))](
        images, partner, share.view(torch.int8) if copies else share, own, other, out, *images.stride(), *out.stride(),
        channels, height, width, *own.shape[1:], *share.shape[1:], copies, not images.is_floating_point(), PIXELS,
        num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    return out
