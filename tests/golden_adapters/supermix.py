"""supermix_*: the masks that the authors' search finds with a small teacher, and what they make, of finished sets."""

import torch
from torch import nn

from golden_adapters import adapter
from golden_adapters.recorded import mixed_as_recorded
from mixaug import functional as F


def teacher(a):
    width, channels, kernel, _ = a["0_weight"].shape
    classes, features = a["4_weight"].shape
    network = nn.Sequential(
        nn.Conv2d(channels, width, kernel, stride=2, padding=1),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(features, classes),
    )
    network.load_state_dict({name.replace("_", "."): a[name] for name in ("0_weight", "0_bias", "4_weight", "4_bias")})
    return network


@adapter("supermix")
def replay_supermix(arrays, stem):
    a = {name: torch.from_numpy(values) for name, values in arrays.items()}
    images, sources, shares, done = a["images"], a["set_index"], a["dirichlet"].double(), a["successful"]
    network, count = teacher(a), sources.shape[1]
    options = {
        "mask_size": int(a["mask_size"]),
        "sigma": float(a["sigma"]),
        "sparsity": float(a["lambda_s"]),
        "max_iter": int(a["iterations"]),
        "reference": True,
    }
    maps, finished = F.supermix_search(images, sources, a["target"], network, **options)
    # Shares of a Dirichlet distribution are drawn one after the other, each of what the ones before have left.
    left = 1 - shares.cumsum(1)
    recorded = {"beta": [shares[:, k] / left[:, k - 1] for k in range(1, count - 1)]}
    mixed = mixed_as_recorded(
        "supermix",
        images,
        sources[:, 1],
        torch.arange(len(images)),
        recorded=recorded,
        ratio=lambda draws: shares[:, 0],
        network=network,
        sources=count,
        **options,
    )
    assert torch.equal(mixed.sources, sources)
    masks = F.supermix_masks(maps, images.shape[2:])[done]
    with torch.no_grad():
        logits, labels = network(mixed.inputs[done]), network(images).argmax(1)
    weights = torch.zeros(len(done), a["target"].shape[1]).scatter_add_(1, labels[sources[done]], mixed.weights[done])
    return [
        ("teacher_labels", labels, a["teacher_labels"], 0.0),
        ("successful", finished.nonzero()[:, 0], done, 0.0),
        ("maps", maps[done], a["final_mask_logits"][done].squeeze(2), 1e-4),
        ("weights_upsampled", masks, a["weights_upsampled"].squeeze(2), 1e-4),
        ("mixed", mixed.inputs[done], a["mixed"], 1e-4),
        ("logits", logits, a["logits"], 1e-4),
        ("target", weights, a["target"][done], 1e-5),
    ]
