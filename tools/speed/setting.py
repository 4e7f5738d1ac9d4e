"""The conditions of a measurement, printed with every table."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import mixaug

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "uint8": torch.uint8}


@dataclass(frozen=True)
class Setting:
    """Shape, dtype, layout and device of the images, and the number of threads."""

    shape: tuple[int, int, int, int]
    dtype: str = "float32"
    layout: str = "contiguous"
    device: str = "cpu"

    @property
    def name(self) -> str:
        return f"{'x'.join(map(str, self.shape))} {self.dtype} {self.layout}"

    def images(self, seed: int) -> Tensor:
        """Random images of this setting, floats in [0, 1) or uint8."""
        images = torch.rand(self.shape, generator=torch.Generator().manual_seed(seed))
        if self.dtype == "uint8":
            images = images.mul_(255).round_()
        images = images.to(self.device, DTYPES[self.dtype])
        return images.to(memory_format=LAYOUTS[self.layout])

    @property
    def num_classes(self) -> int:
        return 100 if self.shape[-1] <= 64 else 1000


def environment(device: str) -> dict[str, str]:
    """Machine, threads and versions, in words."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "mixaug": mixaug.__version__}
    for package in ("torchvision", "timm", "kornia"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    where = torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor()
    return {"device": where, "threads": str(torch.get_num_threads()), **versions}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} virtual cores" if names else platform.machine()
