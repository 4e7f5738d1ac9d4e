"""Loading stage: mix in the workers, on the way to the device, or load from the device itself.

:class:`MixCollate` is a ``collate_fn``; :class:`DeviceLoader` wraps any loader; :class:`ResidentLoader`
holds a small data set on the device and needs no other loader. docs/loading.md says which one to take.
"""

from mixaug.loading.collate import MixCollate
from mixaug.loading.crops import crop_and_flip
from mixaug.loading.device import DeviceLoader
from mixaug.loading.normalize import Normalize
from mixaug.loading.resident import ResidentLoader

__all__ = ["DeviceLoader", "MixCollate", "Normalize", "ResidentLoader", "crop_and_flip"]
