"""Every mixing method, one file each. Importing this package registers them all."""

from mixaug.policies.cutmix import CutMix
from mixaug.policies.deit import deit
from mixaug.policies.mixup import Mixup
from mixaug.policies.none import NoMix
from mixaug.policies.rsb import rsb

__all__ = ["CutMix", "Mixup", "NoMix", "deit", "rsb"]
