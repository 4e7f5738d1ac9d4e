"""The least kernel that there is, to find out whether kernels can be made at all."""

import torch
import triton
import triton.language as tl


@triton.jit
def _one(out):
    tl.store(out, 1)


def run(device: torch.device) -> None:
    """Compile a kernel and run it once."""
    _one[(1,)](torch.zeros(1, dtype=torch.int32, device=device))
