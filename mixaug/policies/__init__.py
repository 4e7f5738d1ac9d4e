"""Every mixing method, one file each. Importing this package registers them all."""

# `make policies` writes what follows, from `__all__` in the files of the policies.
from mixaug.policies.adamixup import AdaMixUp
from mixaug.policies.adautomix import AdAutoMix
from mixaug.policies.alignmix import AlignMix
from mixaug.policies.attentivemix import AttentiveMix
from mixaug.policies.automix import AutoMix
from mixaug.policies.cmixup import cmixup
from mixaug.policies.comixup import CoMixup
from mixaug.policies.cowmix import CowMix
from mixaug.policies.cutmix import CutMix
from mixaug.policies.deit import deit
from mixaug.policies.dmixup import DMixup
from mixaug.policies.fmix import FMix
from mixaug.policies.gmix import GMix
from mixaug.policies.gridmix import GridMix
from mixaug.policies.guidedmix import GuidedMix
from mixaug.policies.hmix import HMix
from mixaug.policies.knn_mixup import knn_mixup
from mixaug.policies.lisa import lisa
from mixaug.policies.local_mixup import local_mixup
from mixaug.policies.manifoldmix import ManifoldMix
from mixaug.policies.maskmix import MaskMix
from mixaug.policies.mergemix import MergeMix
from mixaug.policies.mixpro import MixPro
from mixaug.policies.mixstyle import MixStyle
from mixaug.policies.mixup import Mixup
from mixaug.policies.moex import MoEx
from mixaug.policies.nfm import NoisyFeatureMixup
from mixaug.policies.none import NoMix
from mixaug.policies.patchmix import PatchMix
from mixaug.policies.patchup import PatchUp
from mixaug.policies.puzzlemix import PuzzleMix
from mixaug.policies.recursivemix import RecursiveMix
from mixaug.policies.regmix import RegMix
from mixaug.policies.resizemix import ResizeMix
from mixaug.policies.rsb import rsb
from mixaug.policies.saliency_grafting import SaliencyGrafting
from mixaug.policies.saliencymix import SaliencyMix
from mixaug.policies.samix import SAMix
from mixaug.policies.selecmix import selecmix
from mixaug.policies.selective_mixup import selective_mixup
from mixaug.policies.selfmix import selfmix
from mixaug.policies.selmix import SelMix
from mixaug.policies.smmix import SMMix
from mixaug.policies.smoothmix import SmoothMix
from mixaug.policies.snapmix import SnapMix
from mixaug.policies.sumix import SUMix
from mixaug.policies.supermix import SuperMix
from mixaug.policies.tdattenmix import TdAttenMix
from mixaug.policies.tlalign import TLAlign
from mixaug.policies.tokenmix import TokenMix
from mixaug.policies.transmix import TransMix

__all__ = [
    "AdAutoMix",
    "AdaMixUp",
    "AlignMix",
    "AttentiveMix",
    "AutoMix",
    "CoMixup",
    "CowMix",
    "CutMix",
    "DMixup",
    "FMix",
    "GMix",
    "GridMix",
    "GuidedMix",
    "HMix",
    "ManifoldMix",
    "MaskMix",
    "MergeMix",
    "MixPro",
    "MixStyle",
    "Mixup",
    "MoEx",
    "NoMix",
    "NoisyFeatureMixup",
    "PatchMix",
    "PatchUp",
    "PuzzleMix",
    "RecursiveMix",
    "RegMix",
    "ResizeMix",
    "SAMix",
    "SMMix",
    "SUMix",
    "SaliencyGrafting",
    "SaliencyMix",
    "SelMix",
    "SmoothMix",
    "SnapMix",
    "SuperMix",
    "TLAlign",
    "TdAttenMix",
    "TokenMix",
    "TransMix",
    "cmixup",
    "deit",
    "knn_mixup",
    "lisa",
    "local_mixup",
    "rsb",
    "selecmix",
    "selective_mixup",
    "selfmix",
]
