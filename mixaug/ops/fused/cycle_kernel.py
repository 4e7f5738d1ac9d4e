"""Triton body of GuidedMixup's greedy pairing: one program walks through one part of the batch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mixaug.ops.fused import power_of_two


@triton.jit
def cycle_kernel(distance, found, count: tl.constexpr, block: tl.constexpr):
    """From the largest entry on, each to the farthest one that is still free; of equal ones to the first."""
    part = tl.program_id(0).to(tl.int64)
    distance += part * count * count
    found += part * count
    line = tl.arange(0, block)
    there = line < count
    farthest = -float("inf")
    first = 0
    current = 0
    for row in range(count):
        value = tl.load(distance + row * count + line, there & (line != row), -float("inf"))
        most, where = tl.max(value, 0, return_indices=True)
        further = most > farthest
        first = tl.where(further, row, first)
        current = tl.where(further, where, current)
        farthest = tl.where(further, most, farthest)
    tl.store(found + first, current.to(tl.int64))
    free = there & (line != first)
    for _ in range(count - 2):
        free = free & (line != current)
        value = tl.load(distance + current * count + line, free, -float("inf"))
        most, following = tl.max(value, 0, return_indices=True)
        tl.store(found + current, following.to(tl.int64))
        current = following
    tl.store(found + current, first.to(tl.int64))


def cycles(distance: Tensor) -> Tensor:
    """(P, n, n) floating point, contiguous, n >= 2, to partners (P, n) int64."""
    parts, count = distance.shape[:2]
    found = torch.empty(parts, count, dtype=torch.int64, device=distance.device)
    block = power_of_two(count)
    cycle_kernel[(parts,)](distance, found, count, block, num_warps=min(max(block // 128, 1), 8))
    return found
