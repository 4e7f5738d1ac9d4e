"""Objectives of the literature that run more than the mixed batch, one file each."""

from mixaug.objectives.cutmixpick import CutMixPick, distillation, pick, pick_scores
from mixaug.objectives.mixkd import MixKD, rescaled_distillation
from mixaug.objectives.mixoe import MixOE
from mixaug.objectives.rankmixup import RankMixup, rank_margin_loss, rank_ndcg_loss, top_share
from mixaug.objectives.regmixup import RegMixup

__all__ = [
    "CutMixPick",
    "MixKD",
    "MixOE",
    "RankMixup",
    "RegMixup",
    "distillation",
    "pick",
    "pick_scores",
    "rank_margin_loss",
    "rank_ndcg_loss",
    "rescaled_distillation",
    "top_share",
]
