"""Small things that many tests use."""

from __future__ import annotations

import torch


def seeded(seed: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator of its own, so that no test depends on what ran before it."""
    return torch.Generator(device).manual_seed(seed)


def index_images(count: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Images (count, *shape) whose every value is the image's index: a mixed pixel names its parent."""
    ramp = torch.arange(count, dtype=dtype).view(count, *(1,) * len(shape))
    return ramp.expand(count, *shape).contiguous()
