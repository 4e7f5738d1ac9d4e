"""Kernels that Inductor generates for a compiled policy on a GPU, counted where there is none.

The policy is traced on pretended CUDA tensors, and Inductor writes its code for a made-up device; nothing is compiled
or run. `generated.csv` holds the most kernels that each policy may take; a test compares. What Inductor asks of a
device is patched by private names: another release of torch may need others.
"""

from __future__ import annotations

import contextlib
import csv
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

import mixaug
from mixaug.testing.surface import pretended_cuda

BOUNDS = Path(__file__).parent / "generated.csv"
#: What Inductor reads of a device: those of an H100.
DEVICE = SimpleNamespace(
    name="NVIDIA H100", major=9, minor=0, multi_processor_count=132, warp_size=32, total_memory=80 << 30,
    regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048, max_threads_per_block=1024,
    shared_memory_per_block=49152, shared_memory_per_block_optin=232448, L2_cache_size=50 << 20, gcnArchName="",
)  # fmt: skip
#: A kernel that is generated, or one of a library, which the generated code calls.
CALL = re.compile(r"\b(triton_\w+\.run|extern_kernels\.\w+|(?:torch\.ops\.)?aten\.[\w.]+)\(")


class Written(Exception):
    """The code of a graph has been written, which is all that is wanted."""


@contextlib.contextmanager
def made_up_device(codes: list[str]) -> Iterator[None]:
    """Let Inductor write code for a GPU, which ends as the exception :class:`Written` with the code in ``codes``."""
    from torch._inductor import config, graph

    def end(lowering: Any) -> None:
        code = lowering.codegen()[0]
        codes.append(getattr(code, "value", code))
        raise Written

    patches = {
        # Dynamo keeps the state of the device's generator where there is one. By an environment variable that other
        # libraries set, torch goes by the number of devices, which is made up below.
        "torch.cuda.is_available": lambda: False,
        "torch.cuda.current_device": lambda: 0,
        "torch.cuda.device_count": lambda: 1,
        "torch.cuda.get_device_capability": lambda device=None: (9, 0),
        "torch.cuda.get_device_properties": lambda device=None: DEVICE,
        "torch._dynamo.device_interface.CudaInterface.get_device_properties": staticmethod(lambda device=None: DEVICE),
        "torch._inductor.scheduler.has_triton": lambda: True,
        "torch.utils._triton.triton_hash_with_backend": lambda: "",
    }
    with contextlib.ExitStack() as stack:
        for name, value in patches.items():
            stack.enter_context(mock.patch(name, value))
        stack.enter_context(mock.patch.object(graph.GraphLowering, "compile_to_module", end))
        # Inductor would fold constants by making them on the device, which is not there; a kernel takes them in anyway.
        folding = {"joint_graph_constant_folding": False}
        stack.enter_context(config.patch(fx_graph_cache=False, compile_threads=1, **folding))
        stack.enter_context(pretended_cuda())
        yield


def of_policy(name: str, shape: tuple[int, int, int, int] = (128, 3, 32, 32)) -> list[str]:
    """Names of the kernels that one call of a compiled policy launches, in their order.

    Raises:
        RuntimeError: Inductor wrote no code, or the policy is more than one graph.
    """
    codes: list[str] = []
    torch.compiler.reset()
    with made_up_device(codes):
        policy = mixaug.create(name)
        images, labels = torch.empty(shape), torch.empty(shape[0], dtype=torch.int64)
        try:
            torch.compile(policy, fullgraph=True, dynamic=False)(images, labels)
        except Exception as error:
            if not codes:
                raise RuntimeError(f"no code was written for {name}: {error}") from error
    torch.compiler.reset()
    return CALL.findall(codes[0])


def read_bounds(path: Path = BOUNDS) -> dict[str, int]:
    """The most kernels that a call of each compiled policy may launch, on 128x3x32x32 float32."""
    with path.open() as file:
        return {row["policy"]: int(row["most"]) for row in csv.DictReader(file)}
