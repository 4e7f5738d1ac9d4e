"""Every mixing method, one file each. Importing this package registers them all."""

from mixaug.policies.cmixup import cmixup
from mixaug.policies.cutmix import CutMix
from mixaug.policies.deit import deit
from mixaug.policies.fmix import FMix
from mixaug.policies.gridmix import GridMix
from mixaug.policies.knn_mixup import knn_mixup
from mixaug.policies.local_mixup import local_mixup
from mixaug.policies.manifoldmix import ManifoldMix
from mixaug.policies.maskmix import MaskMix
from mixaug.policies.mixup import Mixup
from mixaug.policies.none import NoMix
from mixaug.policies.patchmix import PatchMix
from mixaug.policies.regmix import RegMix
from mixaug.policies.resizemix import ResizeMix
from mixaug.policies.rsb import rsb
from mixaug.policies.saliencymix import SaliencyMix
from mixaug.policies.smoothmix import SmoothMix

__all__ = [
    "CutMix",
    "FMix",
    "GridMix",
    "ManifoldMix",
    "MaskMix",
    "Mixup",
    "NoMix",
    "PatchMix",
    "RegMix",
    "ResizeMix",
    "SaliencyMix",
    "SmoothMix",
    "cmixup",
    "deit",
    "knn_mixup",
    "local_mixup",
    "rsb",
]
