"""The processes of one run, under ``torchrun`` or alone, and their random streams."""

from __future__ import annotations

import atexit
import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mixaug.engine.config_values import is_device
from mixaug.engine.errors import ConfigError, ProcessLost

__all__ = [
    "World",
    "check_gpu",
    "explained",
    "gather_objects",
    "gather_rows",
    "on_main",
    "share_buffers",
    "start",
    "stream_seed",
]

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among all.

    Attributes:
        rank: number of this process, 0 <= rank < size.
        size: number of processes.
        device: where this process computes.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            dist.barrier()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process; every process must ask."""
        if self.size == 1:
            return flag
        shared = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return bool(shared.item())

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over all processes, a new tensor."""
        values = values.clone()
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def max(self, values: Tensor) -> Tensor:
        """Elementwise maximum over all processes, a new tensor."""
        values = values.clone()
        if self.size > 1:
            dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return values


def check_gpu(device: str, available: bool | None = None) -> None:
    """Raise where a GPU is asked for and there is none.

    Args:
        device: as for :func:`start`.
        available: whether there is a GPU; None counts them, which takes hold of none, so processes may still be forked.

    Raises:
        ConfigError: a GPU was asked for and there is none.
    """
    if device.startswith("cuda") and not (torch.cuda.device_count() if available is None else available):
        raise ConfigError(f"device={device} was asked for, but torch sees no GPU here; use device=cpu")


def start(device: str = "auto") -> World:
    """Join the process group that ``torchrun`` announces in the environment, or be alone.

    Args:
        device: "cpu", "cuda", "cuda:<index>" or "auto"; with several processes each takes the GPU of its local
            rank.

    Raises:
        ConfigError: a GPU was asked for and there is none, or what was asked for is no device.
    """
    if not is_device(device):
        raise ConfigError(f"device must be auto, cpu, cuda or cuda:<index>, got {device!r}")
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    wanted = device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    check_gpu(device, torch.cuda.is_available())
    if wanted == "cuda" and size > 1:
        wanted = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    chosen = torch.device(wanted)
    if chosen.type == "cuda":
        # set_device refuses a device without an index.
        chosen = torch.device("cuda", torch.cuda.current_device() if chosen.index is None else chosen.index)
        torch.cuda.set_device(chosen)
    if size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        # The group outlives a run, because a sweep has further runs in the same processes.
        atexit.register(dist.destroy_process_group)
    return World(rank, size, chosen)


def stream_seed(seed: int, purpose: str, rank: int = 0) -> int:
    """A seed for one random stream; streams of other purposes and ranks are unrelated.

    :func:`mixaug.streams.stream_key` does the same for loaders outside of the engine, from another hash. Neither can
    take the place of the other, for runs that are resumed or repeated would draw other numbers.

    Args:
        seed: the run's seed.
        purpose: what the stream is for, e.g. "mixing".
        rank: the process that draws from it.

    Returns:
        An integer in [0, 2**63).
    """
    digest = hashlib.sha256(f"mixaug/{purpose}/{seed}/{rank}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def gather_rows(row: Tensor, world: World) -> Tensor:
    """Stack one equally shaped tensor of every process.

    Args:
        row: any tensor on the CPU.

    Returns:
        (size, *row.shape) on the CPU, in the order of the ranks.
    """
    if world.size == 1:
        return row.unsqueeze(0)
    sent = row.to(world.device)
    rows = [torch.empty_like(sent) for _ in range(world.size)]
    dist.all_gather(rows, sent)
    return torch.stack(rows).cpu()


def gather_objects(own: Any, world: World) -> list[Any]:
    """One object of every process, in the order of the ranks; tensors inside should lie on the CPU."""
    if world.size == 1:
        return [own]
    gathered: list[Any] = [None] * world.size
    dist.all_gather_object(gathered, own)
    return gathered


def share_buffers(module: nn.Module, world: World) -> None:
    """Give every process the first one's buffers.

    Batch statistics are each process's own, and a checkpoint has the first one's.
    """
    if world.size > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def on_main(world: World, action: Callable[[], T]) -> T:
    """Let the first process do something that concerns all; every process gets what came of it, or the error.

    Args:
        world: this process among all; every process must ask.
        action: called in the first process only; what it returns or raises is pickled for the others.

    Returns:
        What ``action`` returned.
    """
    if world.size == 1:
        return action()
    outcome: list[Any] = [None, None]
    if world.is_main:
        try:
            outcome[0] = action()
        except Exception as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0, device=world.device)
    if outcome[1] is not None:
        raise outcome[1]
    done: T = outcome[0]
    return done


def explained(error: Exception, world: World) -> Exception:
    """The error itself, or a `ProcessLost` in place of what gloo or NCCL say when another process is gone."""
    said = str(error)
    lost = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo/" in said)
    if world.size == 1 or not lost:
        return error
    # Without the place in gloo's sources and without advice.
    reason = re.sub(r"^\[/\S+\] ", "", said.splitlines()[0]).partition(". ")[0]
    return ProcessLost(
        f"process {world.rank} of {world.size} lost another one of the run ({reason}); the output of that one says "
        "why, and the same command continues from the last checkpoint"
    )
