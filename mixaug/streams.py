"""Where random streams begin, and the rank of this process."""

from __future__ import annotations

import hashlib
import os

import torch
import torch.distributed

__all__ = ["default_generator", "process_count", "process_rank", "rank_generator", "stream_key", "world_of"]


def stream_key(*parts: int | str) -> int:
    """A seed in [0, 2**63) that tells these parts apart from all others.

    Adjacent seeds, epochs or ranks must not give related streams, as they would if they were added up
    (seed 1 of rank 0 would be seed 0 of rank 1).
    """
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def process_rank() -> int:
    """Rank of this process: torch.distributed's where it runs, else torchrun's environment, else 0."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return int(os.environ.get("RANK", "0"))


def process_count() -> int:
    """Number of processes of the run: torch.distributed's where it runs, else torchrun's environment, else 1."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1"))


def default_generator(device: torch.device) -> torch.Generator | None:
    """torch's default generator of a device; None on devices other than CPUs and GPUs that are there."""
    if device.type == "cpu":
        return torch.default_generator
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    index = torch.cuda.current_device() if device.index is None else device.index
    generator: torch.Generator = torch.cuda.default_generators[index]
    return generator


def rank_generator(device: torch.device) -> torch.Generator | None:
    """The generator that draws without one come from: None, torch's default one, in a run of one process.

    In a run of several processes every rank gets a stream of its own, a function of the rank and of the state of
    torch's default generator of the device, which moves on by one draw: also where all ranks were seeded alike, as
    Lightning's ``seed_everything`` and the Hugging Face Trainer do. What restores torch's generators, such as their
    checkpoints, restores these streams.

    While ``torch.compile`` traces, or a CUDA graph is captured, the answer is None: no generator can be made there, so
    seed each rank apart.
    """
    if torch.compiler.is_compiling() or process_count() == 1:
        return None
    default = default_generator(device)
    if default is None:
        return None
    if device.type == "cpu":
        state = [int(torch.empty((), dtype=torch.int64).random_())]
    else:
        if torch.cuda.is_current_stream_capturing():
            return None
        # The host knows where the stream is: nothing waits for the device.
        state = [default.initial_seed(), default.get_offset()]
        torch.rand(1, device=device)
    return torch.Generator(device).manual_seed(stream_key("mixing", *state, process_rank()))


def world_of(what: str, rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Rank and number of processes, as given or as torch.distributed knows them.

    Raises:
        ValueError: only one of them given, or a rank outside [0, world_size).
    """
    if (rank is None) != (world_size is None):
        raise ValueError(f"{what} expects rank and world_size together, got {rank} and {world_size}")
    if rank is None or world_size is None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1
    if not 0 <= rank < world_size:
        raise ValueError(f"{what} expects rank in [0, world_size), got rank={rank}, world_size={world_size}")
    return rank, world_size
