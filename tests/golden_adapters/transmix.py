"""transmix_*: weights from recorded attention and a box, then the smoothed targets; or weights from a mask."""

import torch

import mixaug
from golden_adapters import adapter
from golden_adapters.recorded import Seen, boxes_as_recorded, given, mixed_as_recorded
from mixaug.batch import MixedBatch
from mixaug.plan import MaskBlend


@adapter("transmix")
def replay_transmix(arrays, stem):
    a = {name: torch.from_numpy(values) for name, values in arrays.items()}
    # The heads' mean of what the class token gives to the image tokens, which the signals of a pass are.
    seen = Seen(attention=a["cls_attention_rows"].mean(1)[:, 1:])
    return of_mask(a, seen) if "mask" in a else of_box(a, seen)


def of_mask(a, seen):
    """OpenMixup weighs masks of any method by attention: the labeling of TransMix on a recorded mask."""
    count, mask = len(a["mask"]), 1 - a["mask"]  # recorded as 1 where the partner shows
    size = tuple(mask.shape[2:])
    area = a["lam_area"].float().expand(count)
    plan = MaskBlend(
        partner=torch.arange(count).roll(1),
        lam=area,
        mask=mask[:, 0].bool(),
        size=size,
        weights=torch.stack([area, 1 - area], 1),
    )
    policy = mixaug.create("cutmix", labeling=mixaug.create("transmix").labeling)
    mixed = MixedBatch(torch.zeros(count, 1, *size), None, plan.sources, plan.weights, plan)
    return [
        ("area", plan.area(), area, 1e-6),
        ("lam", policy.relabel(mixed, seen).lam, a["lam"], 1e-6),
    ]


def of_box(a, seen):
    top, bottom, left, right = a["box_yyxx"].tolist()
    size, labels = tuple(a["image_hw"].tolist()), a["labels"]
    count, classes, smoothing = len(labels), int(a["num_classes"]), float(a["smoothing"])
    partner = torch.arange(count).flip(0)

    def mixed(seen=None):
        # The box was recorded, not the share and the centre that gave it.
        with boxes_as_recorded("cutmix", torch.tensor([[top, left, bottom, right]])) as (share, centers):
            return mixed_as_recorded(
                "transmix",
                torch.zeros(count, 1, *size),
                partner,
                labels,
                mixaug.Signals(),
                recorded={"pixels": [centers]},
                seen=seen,
                ratio=given(share),
                per="batch",
            )

    before, after = mixed(), mixed(seen)

    def alone(column):
        weights = torch.eye(2)[column].expand(count, 2)
        return MixedBatch(before.inputs, labels, before.sources, weights).targets(classes, smoothing)

    return [
        ("lam_area", before.lam, a["lam_area"].expand(count), 1e-6),
        ("y1", alone(0), a["y1"], 1e-6),
        ("y2", alone(1), a["y2"], 1e-6),
        ("target_area", before.targets(classes, smoothing), a["target_area"], 1e-6),
        ("target", after.targets(classes, smoothing), a["target"], 1e-6),
    ]
