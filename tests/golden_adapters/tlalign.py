"""tlalign_*: the pasted patches, the labels of all tokens behind every block, the class token's target."""

import torch

from golden_adapters import adapter
from mixaug import functional as F
from mixaug.batch import MixedBatch


@adapter("tlalign")
def replay_tlalign(arrays, stem):
    given = {name: torch.from_numpy(values) for name, values in arrays.items()}
    images, labels, count = given["images"], given["labels"], len(given["labels"])
    patch, classes, smoothing = int(arrays["patch_size"]), int(arrays["num_classes"]), float(arrays["smoothing"])
    top, bottom, left, right = arrays["box_tokens_yyxx"].tolist()
    box = torch.tensor([[top, left, bottom, right]])
    partner = torch.arange(count).flip(0)
    mixed, area = F.tlalign(images, partner, box, patch)
    lam = given["lam"].reshape(1).float().expand(count)

    # Ones pasted over with zeros show which tokens are own, at the pixel that is read of each.
    ones = torch.ones_like(images[:2, :1])
    ones[1] = 0
    pixels, _ = F.tlalign(ones, torch.tensor([1, 0]), box, patch)
    tokens = F.mask_at_tokens(pixels[:1], F.patch_grid(patch, images.shape[2:]))

    sources = torch.stack([torch.arange(count), partner], 1)

    def targets(own):
        """Smoothed targets (B, K) of own shares (B,)."""
        return MixedBatch(images, labels, sources, torch.stack([own, 1 - own], 1)).targets(classes, smoothing)

    attentions = list(given["attention"].mean(2))
    behind = [F.token_label_shares(attentions[:depth], tokens, lam) for depth in range(len(attentions) + 1)]
    rows = torch.stack([torch.stack([targets(own) for own in shares.unbind(1)], 1) for shares in behind])
    return [
        ("mixed", mixed, given["mixed"], 0.0),
        ("lam", area, lam, 1e-7),
        ("token_labels0", rows[0], given["token_labels0"], 1e-5),
        ("token_labels", rows, given["token_labels"], 1e-5),
        ("cls_label", targets(F.token_label_share(attentions, tokens, lam)), given["cls_label"], 1e-5),
    ]
