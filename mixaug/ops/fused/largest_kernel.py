"""Triton body of FMix's threshold: the largest values of each row, without sorting it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mixaug.ops.fused import power_of_two

VALUES = 4096


@triton.jit
def _keys(scores, place, there):
    """Unsigned whole numbers in the order of floats; 0 where there is none, below every float."""
    # Adding zero makes one of the two zeros.
    bits = (tl.load(scores + place, there, 0.0) + 0.0).to(tl.int32, bitcast=True)
    keys = tl.where(bits < 0, ~bits, bits ^ -2147483648).to(tl.uint32, bitcast=True)
    return tl.where(there, keys, 0)


@triton.jit
def largest_kernel(scores, counts, mask, width, block: tl.constexpr):
    """True at the largest values of a row, of equal ones at the first."""
    row = tl.program_id(0).to(tl.int64)
    scores += row * width
    mask += row * width
    count = tl.load(counts + row)
    line = tl.arange(0, block)
    # Bit by bit the largest key that enough values reach.
    threshold = (count * 0).to(tl.uint32)
    for step in range(32):
        trial = threshold | ((count * 0 + 1).to(tl.uint32) << (31 - step))
        reached = count * 0
        for start in range(0, width, block):
            place = start + line
            there = place < width
            reached += tl.sum(((_keys(scores, place, there) >= trial) & there).to(tl.int32), 0)
        threshold = tl.where(reached >= count, trial, threshold)
    above = count * 0
    for start in range(0, width, block):
        place = start + line
        there = place < width
        above += tl.sum(((_keys(scores, place, there) > threshold) & there).to(tl.int32), 0)
    room = count - above
    for start in range(0, width, block):
        place = start + line
        there = place < width
        keys = _keys(scores, place, there)
        tied = ((keys == threshold) & there).to(tl.int32)
        chosen = (keys > threshold) | ((tied > 0) & (tl.cumsum(tied, 0) <= room))
        tl.store(mask + place, chosen.to(tl.int8), there)
        room -= tl.sum(tied, 0)


def largest(scores: Tensor, counts: Tensor) -> Tensor:
    """(R, N) float32 and (R,) int64, contiguous, to (R, N) bool."""
    mask = torch.empty(scores.shape, dtype=torch.bool, device=scores.device)
    block = min(power_of_two(scores.shape[1]), VALUES)
    largest_kernel[(len(scores),)](
        scores, counts, mask.view(torch.int8), scores.shape[1], block, num_warps=min(max(block // 512, 1), 8)
    )
    return mask
