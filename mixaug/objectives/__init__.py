"""Objectives of the literature that run more than the mixed batch, or another one, one file each."""

from mixaug.objectives.augmix import AugMix, augmix, jensen_shannon
from mixaug.objectives.cot import Composition, CoT, minority_pairs, virtual_logits
from mixaug.objectives.cowa import Confidence, CoWA, mixture_confidence
from mixaug.objectives.cutmixpick import CutMixPick, distillation, pick, pick_scores
from mixaug.objectives.dualmix import DualMix, balanced_share
from mixaug.objectives.ferkd import FerKD, calibrated_labels
from mixaug.objectives.mixkd import MixKD, rescaled_distillation
from mixaug.objectives.mixoe import MixOE
from mixaug.objectives.pixmix import PixMix, pixmix
from mixaug.objectives.rankmixup import RankMixup, rank_margin_loss, rank_ndcg_loss, top_share
from mixaug.objectives.regmixup import RegMixup
from mixaug.objectives.selecmix import SelecMix

__all__ = [
    "AugMix",
    "CoT",
    "CoWA",
    "Composition",
    "Confidence",
    "CutMixPick",
    "DualMix",
    "FerKD",
    "MixKD",
    "MixOE",
    "PixMix",
    "RankMixup",
    "RegMixup",
    "SelecMix",
    "augmix",
    "balanced_share",
    "calibrated_labels",
    "distillation",
    "jensen_shannon",
    "minority_pairs",
    "mixture_confidence",
    "pick",
    "pick_scores",
    "pixmix",
    "rank_margin_loss",
    "rank_ndcg_loss",
    "rescaled_distillation",
    "top_share",
    "virtual_logits",
]
