"""snapmix_*: class activation maps, and from them and the boxes the weights and the mixed images."""

import torch

import mixaug
from golden_adapters import adapter
from golden_adapters.recorded import boxes_as_recorded, given, mixed_as_recorded
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
    for source, maps in (("our maps", cam), ("the recorded maps", a["cam"])):
        # Boxes were recorded, not the shares and centres that gave them; the policy draws both twice.
        with boxes_as_recorded("snapmix", own, other) as (share, centers):
            mixed = mixed_as_recorded(
                "snapmix",
                images,
                partner,
                labels,
                mixaug.Signals(cam=maps),
                recorded={"pixels": [centers, centers]},
                ratio=given(share),
                per="batch",
            )
        result += [
            (f"box, {source}", mixed.plan.boxes, own, 0.0),
            (f"box of the partner, {source}", mixed.plan.partner_boxes, other, 0.0),
            (f"mixed, {source}", mixed.inputs, a["mixed"], 1e-5),
            (f"weights, {source}", mixed.weights, expected, 1e-5),
        ]
    each = [boxes.expand(len(images), 4).contiguous() for boxes in (own, other)]
    mixed, weights = F.snapmix(images, partner, *each, cam, labels)
    return [
        *result,
        ("mixed by the function, boxes per sample", mixed, a["mixed"], 1e-5),
        ("weights of the function, boxes per sample", weights, expected, 1e-5),
    ]
