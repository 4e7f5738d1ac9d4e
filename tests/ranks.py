"""Script of test_ranks.py: every entrance draws after all ranks were seeded alike; rank 0 writes what came out."""

from __future__ import annotations

import json

import torch
import torch.distributed as dist
from torch import nn

import mixaug
from mixaug.integrations.timm import MixupFn
from mixaug.integrations.torchvision import MixTransform

IMAGES, LABELS = torch.arange(12.0).reshape(12, 1, 1, 1).expand(12, 1, 4, 4).contiguous(), torch.arange(12)


def drawn() -> dict[str, list[float]]:
    """What each entrance makes of one and the same batch, by its name."""
    policy = mixaug.create("mixup")
    step = mixaug.MixStep(nn.Sequential(nn.Flatten(), nn.Linear(16, 12)), policy, mixaug.losses.MixedCrossEntropy())
    shown: list[torch.Tensor] = []
    step.model.register_forward_hook(lambda module, inputs, output: shown.append(inputs[0]))
    step(IMAGES, LABELS)
    loader = mixaug.DeviceLoader([(IMAGES, LABELS)], "cpu", policy)
    found = {
        "policy": policy(IMAGES, LABELS).inputs,
        "OneOf": mixaug.OneOf([policy, mixaug.create("cutmix")])(IMAGES, LABELS).inputs,
        "kernel": mixaug.create("mixup", pairing="label_kernel")(IMAGES, LABELS.float()).inputs,
        "Pooled": mixaug.Pooled("mixup", IMAGES, LABELS)(IMAGES, LABELS).inputs,
        "MixStep": shown[0],
        "MixupFn": MixupFn(policy, 12)(IMAGES, LABELS)[0],
        "MixTransform": MixTransform(policy, 12)(IMAGES, LABELS)[0],
        "MixCollate": mixaug.MixCollate(policy)([*zip(IMAGES, LABELS, strict=True)]).inputs,
        "DeviceLoader": next(iter(loader)).inputs,
    }
    return {name: images[:, 0, 0, 0].tolist() for name, images in found.items()}


def main() -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = drawn()
    left = torch.get_rng_state()
    torch.set_rng_state(state)
    said = {"first": first, "again": drawn(), "left": left.sum().item()}
    every: list[dict[str, object]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(every, said)
    if dist.get_rank() == 0:
        print(json.dumps(every))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
