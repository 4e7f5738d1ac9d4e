"""attack_*: FGSM and PGD on a recorded network with the recorded start."""

import torch
from torch import nn

from golden_adapters import adapter
from mixaug.engine.evaluation.attack import PixelModel, fgsm, pgd


class GlobalMean(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


def recorded_model(arrays):
    weights = {name: torch.from_numpy(arrays[name]) for name in ("0_weight", "0_bias", "4_weight", "4_bias")}
    (channels, inputs), classes = weights["0_weight"].shape[:2], len(weights["4_bias"])
    convolution = nn.Conv2d(inputs, channels, 3, stride=2, padding=1)
    network = nn.Sequential(convolution, nn.Tanh(), GlobalMean(), nn.Flatten(), nn.Linear(channels, classes))
    network.load_state_dict({name.replace("_", "."): values for name, values in weights.items()})
    return PixelModel(network, arrays["mean"].tolist(), arrays["std"].tolist())


@adapter("attack")
def replay_attack(arrays, stem):
    model = recorded_model(arrays)
    images, labels = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])
    epsilon, step, steps = (arrays[name].item() for name in ("epsilon", "step", "steps"))
    attacked = fgsm(model, images, labels, epsilon)
    searched = pgd(model, images, labels, epsilon, step, steps, torch.from_numpy(arrays["uniform"]))
    return [
        ("fgsm_pixels", attacked, torch.from_numpy(arrays["fgsm_pixels"]), 1e-5),
        ("fgsm_logits", model(attacked).detach(), torch.from_numpy(arrays["fgsm_logits"]), 1e-5),
        ("pgd_pixels_textbook", searched, torch.from_numpy(arrays["pgd_pixels_textbook"]), 1e-5),
    ]
