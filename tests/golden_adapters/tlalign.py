"""tlalign_*: the pasted patches, the labels of all tokens behind every block, the class token's target."""

import torch

from golden_adapters import adapter
from golden_adapters.recorded import Seen, boxes_as_recorded, given, mixed_as_recorded
from mixaug import functional as F
from mixaug.batch import MixedBatch


@adapter("tlalign")
def replay_tlalign(arrays, stem):
    a = {name: torch.from_numpy(values) for name, values in arrays.items()}
    images, labels, count = a["images"], a["labels"], len(a["labels"])
    patch, classes, smoothing = int(a["patch_size"]), int(a["num_classes"]), float(a["smoothing"])
    top, bottom, left, right = a["box_tokens_yyxx"].tolist()
    box, partner = torch.tensor([[top, left, bottom, right]]), torch.arange(count).flip(0)
    grid = F.patch_grid(patch, images.shape[2:])

    def made(seen=None):
        # The box was recorded, not the share and the centre that gave it.
        with boxes_as_recorded("tlalign", box) as (share, centers):
            return mixed_as_recorded(
                "tlalign",
                images,
                partner,
                labels,
                Seen(attentions=[]),
                recorded={"pixels": [centers]},
                seen=seen,
                ratio=given(share),
                patch_size=patch,
                per="batch",
            )

    mixed, final = made(), made(ClassTokens(attentions=list(a["attention"])))
    tokens = F.mask_at_tokens(mixed.mask[:1], grid)

    def targets(own):
        """Smoothed targets (B, K) of own shares (B,)."""
        shares = torch.stack([own, 1 - own], 1)
        return MixedBatch(images, labels, mixed.sources, shares).targets(classes, smoothing)

    attentions = list(a["attention"].mean(2))
    behind = [F.token_label_shares(attentions[:depth], tokens, mixed.lam) for depth in range(len(attentions) + 1)]
    rows = torch.stack([torch.stack([targets(own) for own in shares.unbind(1)], 1) for shares in behind])
    return [
        ("mixed", mixed.inputs, a["mixed"], 0.0),
        ("lam", mixed.lam, a["lam"].expand(count), 1e-6),
        ("token_labels0", rows[0], a["token_labels0"], 1e-5),
        ("token_labels", rows, a["token_labels"], 1e-5),
        ("cls_label", final.targets(classes, smoothing), a["cls_label"], 1e-5),
    ]


class ClassTokens(Seen):
    """A mixed pass of a model whose classifier reads the class token."""

    def __init__(self, **given):
        super().__init__(**given)
        self.model = torch.nn.Module()
        self.model.cls_token = torch.nn.Parameter(torch.zeros(1, 1, 1))
        self.model.global_pool = "token"
