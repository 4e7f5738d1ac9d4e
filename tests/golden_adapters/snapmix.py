"""snapmix_*: class activation maps, and from the recorded maps and boxes the weights and the mixed images."""

import torch

from golden_adapters import adapter
from mixaug import functional as F


def with_gaps(name, got, expected, tolerance):
    """A constant map is NaN in both; elsewhere the values count."""
    return [
        (f"{name} is NaN", got.isnan(), expected.isnan(), 0.0),
        (name, got.nan_to_num(), expected.nan_to_num(), tolerance),
    ]


@adapter("snapmix")
def replay_snapmix(arrays, stem):
    a = {name: torch.from_numpy(values) for name, values in arrays.items()}
    images, labels, partner = a["images"], a["labels"], a["perm"]
    own, other = a["box_dst"].reshape(-1, 4), a["box_src"].reshape(-1, 4)
    cam = F.class_activation_map(a["features"], a["fc_weight"], labels, images.shape[2:])
    expected = torch.stack([a["lam_a"], a["lam_b"]], 1)
    result = with_gaps("cam", cam, a["cam"], 1e-6)
    for source, maps in (("own", cam), ("recorded", a["cam"])):
        mixed, weights = F.snapmix(images, partner, own, other, maps, labels)
        result += [
            (f"mixed, {source} maps", mixed, a["mixed"], 1e-5),
            (f"weights, {source} maps", weights, expected, 1e-5),
        ]
    each = [boxes.expand(len(images), 4).contiguous() for boxes in (own, other)]
    mixed, weights = F.snapmix(images, partner, *each, cam, labels)
    return [
        *result,
        ("labels of the partners", labels[partner], a["labels_b"], 0.0),
        ("mixed, boxes per sample", mixed, a["mixed"], 1e-5),
        ("weights, boxes per sample", weights, expected, 1e-5),
    ]
