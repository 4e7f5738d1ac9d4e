"""mixup_*: images, partner, lam -> mixed; the torchvision file also holds dense targets."""

import torch

from golden_adapters import adapter
from golden_adapters.recorded import mixed_as_recorded
from mixaug import MixedBatch
from mixaug import functional as F


@adapter("mixup")
def replay_mixup(arrays, stem):
    images, partner = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["partner"])
    lam, own = torch.from_numpy(arrays["lam"]), torch.from_numpy(arrays["own_weight"])
    mixed = F.mixup(images, partner, lam)
    policy = mixed_as_recorded("mixup", images, partner, recorded={}, ratio=lambda draws: lam)
    result = [
        ("mixed", mixed, torch.from_numpy(arrays["mixed"]), 1e-6),
        ("mixed by the policy", policy.inputs, torch.from_numpy(arrays["mixed"]), 1e-6),
        ("own weight of the policy", policy.lam, own.float().expand(len(images)), 1e-6),
        ("own_weight", lam, own, 1e-12),
    ]
    if "target" in arrays:
        result.append(("target", dense_target(arrays, mixed, lam), torch.from_numpy(arrays["target"]), 1e-6))
    return result


adapter("midpoint_mixup")(replay_mixup)


def dense_target(arrays, mixed, lam, smoothing=0.0):
    """(B, K) target of pairs, made through MixedBatch."""
    partner = torch.from_numpy(arrays["partner"])
    own = torch.arange(len(partner))
    batch = MixedBatch(
        inputs=mixed,
        labels=torch.from_numpy(arrays["labels"]),
        sources=torch.stack([own, partner], 1),
        weights=torch.stack([lam, 1 - lam], 1).float(),
    )
    return batch.targets(int(arrays["num_classes"]), label_smoothing=smoothing)
