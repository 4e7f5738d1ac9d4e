"""samix_*: masks of the mixer in training and evaluation mode, the cubic of lambda."""

import re

import torch

import mixaug
from golden_adapters import adapter
from golden_adapters.automix import load, mask_of, of_array
from mixaug import functional
from mixaug.policies.learned.blocks import attended, tokens
from mixaug.policies.learned.pairs import mask_loss

BLOCK = {
    "value_conv_0_conv_weight": "value.0.weight",
    "value_conv_0_bn_weight": "value.1.weight",
    "value_conv_0_bn_bias": "value.1.bias",
    "value_conv_0_bn_running_mean": "value.1.running_mean",
    "value_conv_0_bn_running_var": "value.1.running_var",
    "value_conv_1_conv_weight": "value.3.weight",
} | {f"{part}_conv_{kind}": f"{part}.{kind}" for part in ("query", "key") for kind in ("weight", "bias")}


def k_of(stem):
    """A name says k without its point: k025 is 0.25, k1 is 1, kneg1 is -1."""
    sign, digits = re.search(r"_k(neg)?(\d+)", stem).groups()
    return (-1 if sign else 1) * float(digits if digits[0] != "0" or digits == "0" else f"0.{digits[1:]}")


@adapter("samix")
def replay_samix(arrays, stem):
    a = of_array(arrays)
    if "rescaled" in a:
        return [
            (f"lam rescaled, k = {k:g}", functional.rescaled_lam(a["lam"], k), expected, 1e-12)
            for k, expected in zip(a["k"].tolist(), a["rescaled"], strict=True)
        ]
    features = a["features"]
    policy = mixaug.create("samix", channels=features.shape[1], k=k_of(stem), mask_adjust=0.0, per="batch").train(
        "train" in stem
    )
    block, state = policy.block, policy.block.state_dict()
    load({f"w_{name}": state[ours] for name, ours in BLOCK.items()}, a)
    other, result = features[a["index"]], []
    for number, value in enumerate(a["lam"]):
        lam = value[None].float()
        mask = mask_of(policy, a, lam)
        share = functional.rescaled_lam(lam, block.k)
        both = torch.cat([features * (1 + share), other * (2 - share)], 1)
        query, key = tokens(block.query(both)), tokens(block.key(both))
        every = torch.eye(query.shape[1]).expand(len(features), -1, -1)
        loss = mask_loss(mask, lam, float(a["mask_loss_margin"]), variance=2.0)
        result += [
            ("mask", torch.stack([mask, 1 - mask], 1), a["mask"][number], 1e-5),
            ("attention", attended(query, key, every), a["attention"][number], 1e-5),
            ("mask loss", loss, a["mask_loss"][number], 1e-5),
        ]
    return result
