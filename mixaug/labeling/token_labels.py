"""Labels that travel with the tokens: TL-Align (arXiv:2210.06455)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mixaug.batch import Batch, MixedBatch
from mixaug.labeling.base import area_of_images, height_and_width, mask_and_area, of_pair, reads_class_token
from mixaug.ops.attention import token_label_share
from mixaug.plan import Plan
from mixaug.signals import MixedSignals
from mixaug.signals.backbone import token_grid


class TokenLabels:
    """Labels that travel with the tokens through all blocks of attention (TL-Align, arXiv:2210.06455).

    Every token starts with the label of its patch, or its share of both where the mask cuts through, the tokens before
    them with the area's; every block mixes the labels by its attention, half and half with what they were. The label is
    the class token's after the last block; for models whose classifier reads the mean of the tokens, that of the image
    tokens. Known after the mixed pass. Where a plan has no mask, its weights stay.
    """

    weighs_mask = True
    needs = frozenset({"attention"})
    reads = frozenset({"attentions"})

    def __call__(self, plan: Plan, batch: Batch) -> Tensor:
        return area_of_images("token_labels", plan, batch)

    def after(self, plan: Plan, mixed: MixedBatch, seen: MixedSignals) -> Tensor:
        """(B, 2) float32 weights from the attention of all blocks of the mixed pass.

        Raises:
            ValueError: a model whose attention cannot be read, or that changes its tokens between the blocks.
        """
        with torch.no_grad():
            found = mask_and_area("token_labels", plan, mixed)
            if found is None:
                return mixed.weights
            mask, area = found
            blocks = seen.every_attention()
            counts, prefix = {block.key.shape[2] for block in blocks}, blocks[0].prefix
            if len(counts) > 1:
                raise ValueError(
                    "labeling 'token_labels' needs the same tokens in every block, got blocks of "
                    f"{sorted(counts)} tokens"
                )
            grid = token_grid(seen.model, counts.pop() - prefix, height_and_width(mask))
            tokens = F.adaptive_avg_pool2d(mask.float()[:, None], grid)[:, 0]
            pooled = not reads_class_token(seen.model)
            return of_pair(token_label_share(blocks, tokens, area, prefix, pooled=pooled))
