"""Where the random streams of the loading stage begin."""

from __future__ import annotations

import hashlib
import os

import torch.distributed

__all__ = ["process_rank", "stream_key", "world_of"]


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
