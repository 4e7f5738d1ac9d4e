"""The pure functions of every method: no randomness, no state, all draws are arguments."""

from mixaug.ops.activation import class_activation_map, content_map, content_shares
from mixaug.ops.attention import (
    attention_lam,
    mask_at_tokens,
    progressive_factor,
    progressive_lam,
    token_label_share,
    token_label_shares,
)
from mixaug.ops.boxes import cutmix_boxes
from mixaug.ops.cells import pooled_saliency, puzzlemix_blend
from mixaug.ops.filters import gaussian_blur, spectral_residual
from mixaug.ops.kernels import draw_index
from mixaug.ops.masks import cells_to_pixels, random_cells
from mixaug.ops.puzzle import puzzlemix_costs, puzzlemix_energy
from mixaug.ops.supermodular import comixup_objective, comixup_shares
from mixaug.ops.token_merging import merge_tokens, token_matching
from mixaug.ops.transport import puzzlemix_moves
from mixaug.pairing.kernel import label_kernel
from mixaug.pairing.nearest import nearest_rows

# `make policies` writes what follows, from `__all__` in the files of the policies.
from mixaug.policies.adamixup import adamixup_gate, adamixup_lam, adamixup_loss, adamixup_rows, truncated_normal
from mixaug.policies.adautomix import adautomix, adautomix_masks, adautomix_similarity
from mixaug.policies.alignmix import alignment_cost, alignmix, sinkhorn_plan
from mixaug.policies.attentivemix import attentive_cells, attentivemix, feature_attention
from mixaug.policies.comixup import comixup, comixup_compatibility, comixup_costs, comixup_distance, comixup_prior
from mixaug.policies.cowmix import cow_mask, cow_noise, cowmix, cowmix_consistency
from mixaug.policies.cutmix import cutmix
from mixaug.policies.dmixup import dmixup
from mixaug.policies.fmix import fmix, fourier_image, fourier_mask, fourier_noise_shape
from mixaug.policies.gmix import gmix, gmix_mask
from mixaug.policies.gridmix import gridmix, gridmix_mask
from mixaug.policies.guidedmix import greedy_cycle, guided_maps, guided_mask, guidedmix, map_distance
from mixaug.policies.hmix import hmix, hmix_boxes, hmix_mask
from mixaug.policies.learned.blocks import learned_mask
from mixaug.policies.learned.pairs import adjusted_mask, mask_loss
from mixaug.policies.maskmix import maskmix
from mixaug.policies.mergemix import (
    answer_log_probability,
    merge_rounds,
    mergemix,
    mergemix_groups,
    mergemix_ranking,
    mergemix_shares,
    mergemix_tokens,
)
from mixaug.policies.mixstyle import mix_styles
from mixaug.policies.mixup import mixup
from mixaug.policies.moex import exchange_moments
from mixaug.policies.nfm import noisy_mixup
from mixaug.policies.patchmix import patchmix
from mixaug.policies.patchup import patchup, patchup_holes, patchup_rate
from mixaug.policies.puzzlemix import perturbed_images, puzzlemix
from mixaug.policies.resizemix import resizemix, resizemix_boxes
from mixaug.policies.saliency_grafting import graft_chances
from mixaug.policies.saliencymix import (
    eight_bit_images,
    fine_grained_saliency,
    saliency_peak,
    saliencymix,
    saliencymix_boxes,
)
from mixaug.policies.samix import balanced_cross_entropy, rescaled_lam
from mixaug.policies.selmix import selmix_gains, selmix_pairs
from mixaug.policies.smmix import pooled_tokens, smmix, smmix_boxes, smmix_consistency, smmix_windows
from mixaug.policies.smoothmix import smoothmix, smoothmix_mask
from mixaug.policies.snapmix import snapmix, snapmix_weights
from mixaug.policies.sumix import sumix_distances, sumix_loss, sumix_uncertainty, sumix_weights
from mixaug.policies.supermix import supermix, supermix_masks, supermix_search
from mixaug.policies.tdattenmix import attended_share, attention_above
from mixaug.policies.tlalign import patch_grid, tlalign
from mixaug.policies.tokenmix import content_targets, tokenmix, tokenmix_blocks, tokenmix_count, tokenmix_replay

__all__ = [
    "adamixup_gate",
    "adamixup_lam",
    "adamixup_loss",
    "adamixup_rows",
    "adautomix",
    "adautomix_masks",
    "adautomix_similarity",
    "adjusted_mask",
    "alignment_cost",
    "alignmix",
    "answer_log_probability",
    "attended_share",
    "attention_above",
    "attention_lam",
    "attentive_cells",
    "attentivemix",
    "balanced_cross_entropy",
    "cells_to_pixels",
    "class_activation_map",
    "comixup",
    "comixup_compatibility",
    "comixup_costs",
    "comixup_distance",
    "comixup_objective",
    "comixup_prior",
    "comixup_shares",
    "content_map",
    "content_shares",
    "content_targets",
    "cow_mask",
    "cow_noise",
    "cowmix",
    "cowmix_consistency",
    "cutmix",
    "cutmix_boxes",
    "dmixup",
    "draw_index",
    "eight_bit_images",
    "exchange_moments",
    "feature_attention",
    "fine_grained_saliency",
    "fmix",
    "fourier_image",
    "fourier_mask",
    "fourier_noise_shape",
    "gaussian_blur",
    "gmix",
    "gmix_mask",
    "graft_chances",
    "greedy_cycle",
    "gridmix",
    "gridmix_mask",
    "guided_maps",
    "guided_mask",
    "guidedmix",
    "hmix",
    "hmix_boxes",
    "hmix_mask",
    "label_kernel",
    "learned_mask",
    "map_distance",
    "mask_at_tokens",
    "mask_loss",
    "maskmix",
    "merge_rounds",
    "merge_tokens",
    "mergemix",
    "mergemix_groups",
    "mergemix_ranking",
    "mergemix_shares",
    "mergemix_tokens",
    "mix_styles",
    "mixup",
    "nearest_rows",
    "noisy_mixup",
    "patch_grid",
    "patchmix",
    "patchup",
    "patchup_holes",
    "patchup_rate",
    "perturbed_images",
    "pooled_saliency",
    "pooled_tokens",
    "progressive_factor",
    "progressive_lam",
    "puzzlemix",
    "puzzlemix_blend",
    "puzzlemix_costs",
    "puzzlemix_energy",
    "puzzlemix_moves",
    "random_cells",
    "rescaled_lam",
    "resizemix",
    "resizemix_boxes",
    "saliency_peak",
    "saliencymix",
    "saliencymix_boxes",
    "selmix_gains",
    "selmix_pairs",
    "sinkhorn_plan",
    "smmix",
    "smmix_boxes",
    "smmix_consistency",
    "smmix_windows",
    "smoothmix",
    "smoothmix_mask",
    "snapmix",
    "snapmix_weights",
    "spectral_residual",
    "sumix_distances",
    "sumix_loss",
    "sumix_uncertainty",
    "sumix_weights",
    "supermix",
    "supermix_masks",
    "supermix_search",
    "tlalign",
    "token_label_share",
    "token_label_shares",
    "token_matching",
    "tokenmix",
    "tokenmix_blocks",
    "tokenmix_count",
    "tokenmix_replay",
    "truncated_normal",
]
