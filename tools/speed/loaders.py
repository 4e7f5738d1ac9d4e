"""Loaders from end to end: worker processes, mixing, normalisation, and the way to the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset, default_collate

import mixaug
from mixaug.loading import DeviceLoader
from speed.libraries import Mixer, installed
from speed.sections import PLAIN, Row
from speed.setting import Setting
from speed.timing import Ratio, once_a_round

MEAN, STD = 0.5, 0.25


def loaders(setting: Setting, pers: Sequence[str], rounds: int, workers: int = 2) -> Iterator[Row]:
    """Images per second of loaders with Mixup; the reference is our :class:`mixaug.loading.DeviceLoader`.

    What is timed is a whole pass over 16 batches, until the last one lies on the device. Every loader reads the same
    uint8 images in the same order with the same number of workers, and hands out normalised float32 batches on the
    device with labels in its own form. Workers persist and an untimed pass comes first: starting them does not count.
    """
    device, batches = torch.device(setting.device), 16
    for per in pers:
        readers = delivering(setting, per, batches, workers)
        count = setting.shape[0] * batches
        timings = once_a_round(
            {name: partial(_read, name, loader, count) for name, loader in readers.items()},
            rounds=rounds,
            device=device,
        )
        reference = timings[f"{PLAIN}/DeviceLoader"]
        for name, timing in timings.items():
            library, _, output = name.partition("/")
            yield Row(
                section=f"loader with {workers} workers, as a multiple of our time",
                setting=setting.name,
                job="mixup",
                per=per,
                output=output,
                library=library,
                milliseconds=timing.median * 1e3,
                floor=Ratio.of(timing, reference),
                note=f"{count / timing.median:,.0f} images/s",
            )


def delivering(setting: Setting, per: str, batches: int, workers: int) -> dict[str, Iterable[Any]]:
    """Loaders of the same data, ours and those of installed libraries that mix ``per`` so."""
    size, channels = setting.shape[:2]
    device, count = torch.device(setting.device), size * batches
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(
        torch.randint(256, (count, *setting.shape[1:]), dtype=torch.uint8, generator=generator),
        torch.randint(setting.num_classes, (count,), generator=generator),
    )

    def read(collate: Callable[[list[Any]], Any]) -> DataLoader[Any]:
        return DataLoader(
            data,
            size,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0,
        )

    policy = mixaug.create("mixup", per=per)
    found: dict[str, Iterable[Any]] = {
        f"{PLAIN}/DeviceLoader": DeviceLoader(read(default_collate), device, policy, mean=MEAN, std=STD)
    }
    if installed("timm") and size % 2 == 0:
        from timm.data import FastCollateMixup
        from timm.data.loader import PrefetchLoader

        # timm's loader mixes uint8 samples in the workers, and normalises on the device.
        mode = {"batch": "batch", "pair": "pair", "sample": "elem"}[per]
        collate = FastCollateMixup(mixup_alpha=1.0, mode=mode, label_smoothing=0.0, num_classes=setting.num_classes)
        found["timm/PrefetchLoader, FastCollateMixup"] = PrefetchLoader(
            read(collate), mean=(MEAN,) * channels, std=(STD,) * channels, channels=channels, device=device
        )
    if installed("torchvision") and per == "batch":
        from torchvision.transforms import v2

        mixer = v2.MixUp(num_classes=setting.num_classes)
        found["torchvision/MixUp in the collate function"] = _Moved(read(_NormalizeAndMix(mixer)), device)
    return found


@dataclass(frozen=True)
class _NormalizeAndMix:
    """A collate function; a class so that workers can be spawned as well as forked."""

    mixer: Mixer

    def __call__(self, samples: list[Any]) -> object:
        images, labels = default_collate(samples)
        return self.mixer((images.float() / 255 - MEAN) / STD, labels)


@dataclass(frozen=True)
class _Moved:
    """A loader whose batches are brought to the device."""

    loader: DataLoader[Any]
    device: torch.device

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for batch in self.loader:
            yield tuple(tensor.to(self.device, non_blocking=True) for tensor in batch)


def _read(name: str, loader: Iterable[Any], count: int) -> None:
    delivered = sum(len(batch) if isinstance(batch, mixaug.MixedBatch) else len(batch[0]) for batch in loader)
    if delivered != count:
        raise RuntimeError(f"{name} did not deliver {count} images")
