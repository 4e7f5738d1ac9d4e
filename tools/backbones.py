"""Which policies that look at the model train with which backbones: writes the table in docs/backbones.md.

    python tools/backbones.py    # a few minutes on two cores

Every pair runs three whole training steps on images of 96 x 96 pixels, with finite losses and gradients.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

import mixaug
from mixaug.losses import MixedCrossEntropy

PAGE = Path(__file__).resolve().parents[1] / "docs" / "backbones.md"
START, END = "<!-- table of backbones -->", "<!-- end of table -->"
CLASSES, SIDE = 5, 96


def _torchvision(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from torchvision import models

        if name == "vit":
            return models.VisionTransformer(SIDE, 16, 2, 2, 32, 32, num_classes=CLASSES)
        if name == "swin":
            return models.SwinTransformer([4, 4], 16, [1, 1, 2, 1], [2, 2, 4, 4], [2, 2], num_classes=CLASSES)
        made: nn.Module = getattr(models, name)(num_classes=CLASSES)
        return made

    return make


def _transformers(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        tokens = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        maps = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
        sizes: dict[str, dict[str, Any]] = {
            "ViT": {**tokens, "image_size": SIDE, "patch_size": 16},
            "DeiT": {**tokens, "image_size": SIDE, "patch_size": 16},
            "Swin": {
                "image_size": SIDE,
                "patch_size": 4,
                "embed_dim": 8,
                "depths": [1, 1],
                "num_heads": [1, 2],
                "window_size": 4,
            },
            "ResNet": {**maps, "embedding_size": 8, "layer_type": "basic"},
            "ConvNext": maps,
        }
        config = getattr(transformers, f"{name}Config")(**sizes[name], num_labels=CLASSES)
        made: nn.Module = getattr(transformers, f"{name}ForImageClassification")(config)
        return made

    return make


def _timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=CLASSES, **options)


def _sequential() -> nn.Module:
    convolutions: list[nn.Module] = []
    for inputs, outputs in ((3, 8), (8, 16), (16, 16)):
        convolutions += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*convolutions[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES))


BACKBONES: dict[str, Callable[[], nn.Module]] = {
    "timm/resnet10t": _timm("resnet10t"),
    "timm/efficientnet_b0": _timm("efficientnet_b0"),
    "timm/convnext_atto": _timm("convnext_atto"),
    "timm/vit_tiny": _timm("vit_tiny_patch16_224", img_size=SIDE, depth=3, embed_dim=32, num_heads=2),
    "torchvision/resnet18": _torchvision("resnet18"),
    "torchvision/vit": _torchvision("vit"),
    "torchvision/swin": _torchvision("swin"),
    "torchvision/convnext_tiny": _torchvision("convnext_tiny"),
    "torchvision/efficientnet_b0": _torchvision("efficientnet_b0"),
    "torchvision/mobilenet_v3_small": _torchvision("mobilenet_v3_small"),
    "torchvision/densenet121": _torchvision("densenet121"),
    "transformers/vit": _transformers("ViT"),
    "transformers/deit": _transformers("DeiT"),
    "transformers/swin": _transformers("Swin"),
    "transformers/resnet": _transformers("ResNet"),
    "transformers/convnext": _transformers("ConvNext"),
    "nn.Sequential": _sequential,
}


def policies() -> list[str]:
    """Policies of mixaug that look at the model."""
    return [name for name in mixaug.list_policies() if mixaug.describe(name).needs and _is_ours(name)]


def trains(backbone: str, policy: str) -> str:
    """Why a pair does not train; empty where it does."""
    torch.manual_seed(0)
    model = BACKBONES[backbone]()
    images, labels = torch.rand(4, 3, SIDE, SIDE), torch.arange(4)
    try:
        step = mixaug.MixStep(model, mixaug.create(policy), MixedCrossEntropy())
        for number in range(3):
            step.set_progress(number / 3)
            loss, _ = step(images, labels)
            loss.backward()
            step.after_step()
            if not loss.isfinite():
                return f"loss {float(loss)}"
    except (ValueError, TypeError, RuntimeError) as error:
        return str(error)
    if any(p.grad is not None and not p.grad.isfinite().all() for p in step.parameters()):
        return "gradients that are not finite"
    return ""


def table() -> str:
    """The table as Markdown, with the reasons for what does not train below it."""
    names = policies()
    lines = ["| backbone | policies | all but |", "|---|---|---|"]
    for backbone in BACKBONES:
        reasons = {name: trains(backbone, name) for name in names}
        missing = [name for name, reason in reasons.items() if reason]
        lines.append(f"| `{backbone}` | {len(names) - len(missing)} of {len(names)} | {', '.join(missing)} |")
    return "\n".join(lines)


def _is_ours(name: str) -> bool:
    return mixaug.describe(name).target.__module__.startswith("mixaug.")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    text = PAGE.read_text()
    pattern = re.compile(f"{re.escape(START)}.*{re.escape(END)}", re.DOTALL)
    PAGE.write_text(pattern.sub(lambda _: f"{START}\n\n{table()}\n\n{END}", text))
