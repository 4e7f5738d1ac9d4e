"""attentivemix_*: cells, mask, mixed images and share from a feature map; official_regions has one image, uint8."""

import torch

import mixaug
from golden_adapters import adapter
from golden_adapters.recorded import mixed_as_recorded
from mixaug import functional as F


@adapter("attentivemix")
def replay_attentivemix(arrays, stem):
    a = {name: torch.from_numpy(values) for name, values in arrays.items()}
    if "feature_map" in a:
        return official_regions(a)
    signals = mixaug.Signals(features=a["features"])
    mixed = mixed_as_recorded(
        "attentivemix", a["images"], a["perm"], a["labels"], signals, recorded={}, k=int(a["top_k"])
    )
    return [
        ("mask", mixed.mask, a["mask"], 0.0),
        ("mixed", mixed.inputs, a["mixed"], 1e-6),
        ("lam", mixed.lam, a["lam"].expand(len(a["images"])), 1e-7),
    ]


def official_regions(a):
    attention, images = a["feature_map"], torch.stack([a["source"], a["partner"]]).permute(0, 3, 1, 2).contiguous()
    # The code that made the file takes the last channel.
    maps = torch.stack([attention.flip(0), attention])[None].expand(2, -1, -1, -1)
    mixed = mixed_as_recorded(
        "attentivemix",
        images,
        torch.tensor([1, 0]),
        None,
        mixaug.Signals(features=maps),
        recorded={},
        k=len(a["cells_rc"]),
        attention="last",
    )
    chosen = a["cells_rc"][(a["cells_rc"] @ torch.tensor([attention.shape[1], 1])).argsort()]
    side = int(a["cell"])
    return [
        ("cells", mixed.mask[0, 0, ::side, ::side].nonzero(), chosen, 0.0),
        ("cells of the function", F.attentive_cells(attention[None], len(chosen))[0, 0].nonzero(), chosen, 0.0),
        ("mixed", mixed.inputs[0].permute(1, 2, 0), a["mixed"], 0.0),
    ]
