"""attentivemix_*: cells, mask, mixed images and share from a feature map; official_regions has one image, uint8."""

import torch

from golden_adapters import adapter
from mixaug import functional as F


@adapter("attentivemix")
def replay_attentivemix(arrays, stem):
    a = {name: torch.from_numpy(values) for name, values in arrays.items()}
    if "feature_map" in a:
        return official_regions(a)
    images = a["images"]
    cells = F.attentive_cells(F.feature_attention(a["features"]), int(a["top_k"]))
    mixed, lam = F.attentivemix(images, a["perm"], cells)
    # Images that hold their own number tell which pixels are whose.
    own = torch.arange(len(images), dtype=images.dtype)[:, None, None, None].expand(a["mask"].shape).contiguous()
    shown, _ = F.attentivemix(own, torch.arange(len(images)).roll(1), cells)
    return [
        ("mask", shown == own, a["mask"] == 1, 0.0),
        ("mixed", mixed, a["mixed"], 1e-6),
        ("lam", lam, a["lam"].expand(len(images)), 1e-7),
    ]


def official_regions(a):
    attention = a["feature_map"]
    cells = F.attentive_cells(attention[None], len(a["cells_rc"]))
    images = torch.stack([a["source"], a["partner"]]).permute(0, 3, 1, 2).contiguous()
    mixed, _ = F.attentivemix(images, torch.tensor([1, 0]), cells)
    chosen = a["cells_rc"][(a["cells_rc"] @ torch.tensor([attention.shape[1], 1])).argsort()]
    # The code that made the file takes the last channel.
    maps = torch.stack([attention.flip(0), attention])[None]
    return [
        ("cells", cells[0, 0].nonzero(), chosen, 0.0),
        ("attention", F.feature_attention(maps, "last")[0], attention, 0.0),
        ("mixed", mixed[0].permute(1, 2, 0), a["mixed"], 0.0),
    ]
