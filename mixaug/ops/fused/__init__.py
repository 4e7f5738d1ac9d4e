"""Loops of small steps as one Triton kernel each, for CUDA devices, where every step would be a launch of its own.

Each function has a twin of torch operators, which serves all other devices and gives the same result. Triton is
imported when a kernel is first run.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import warnings

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from mixaug.ops.layout import is_transformed

#: Whether Triton is there, and torch is built for CUDA.
INSTALLED = torch.version.hip is None and importlib.util.find_spec("triton") is not None


def serves(*tensors: Tensor) -> bool:
    """Whether kernels take these tensors: on a CUDA device where Triton works, with nothing of torch.func on top."""
    if any(tensor.device.type != "cuda" for tensor in tensors) or not INSTALLED:
        return False
    if torch.compiler.is_compiling() or any(isinstance(tensor, FakeTensor) for tensor in tensors):
        return True
    return not any(is_transformed(tensor) for tensor in tensors) and _works(tensors[0].device)


@functools.cache
def _works(device: torch.device) -> bool:
    """Whether a kernel can be compiled and run here, which takes a C compiler: found out by doing it once."""
    from mixaug.ops.fused import probe

    try:
        with current(device):
            probe.run(device)
    # Whatever goes wrong in a compiler that is not there or does not fit: the torch operators remain.
    except Exception as error:
        warnings.warn(
            f"mixaug: Triton cannot compile for {device}, so that some policies launch thousands of operators a batch "
            f"in place of a few kernels: {type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=3,
        )
        return False
    return True


def current(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """The device that kernels are launched on, which Triton takes to be the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def power_of_two(number: int) -> int:
    """The least power of two that is not below ``number``: extents of blocks inside kernels are such."""
    return 1 << max(number - 1, 0).bit_length()
