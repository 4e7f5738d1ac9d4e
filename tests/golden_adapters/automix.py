"""automix_*: masks of the block, a whole step with its gradients and the momentum update, the schedule of momentum."""

import itertools

import torch
from torch import nn

import mixaug
from golden_adapters import adapter
from mixaug.losses import MixedCrossEntropy
from mixaug.policies.learned.blocks import attended, tokens
from mixaug.policies.learned.pairs import mask_loss


class Recorded:
    """A ratio or a pairing that gives the recorded values, one with each call."""

    needs_labels = False

    def __init__(self, *values):
        self.values = list(values)

    def __call__(self, *_):
        return self.values.pop(0)


class TwoStages(nn.Module):
    """The network of the recorded steps."""

    def __init__(self, a, which):
        super().__init__()
        widths = [a[f"backbone_{which}__c1_weight"].shape[1]]
        widths += [a[f"backbone_{which}__c{i}_weight"].shape[0] for i in (1, 2, 3)]
        convs = [nn.Conv2d(i, o, 3, 2, 1) for i, o in itertools.pairwise(widths)]
        self.stage = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU())
        self.last = nn.Sequential(convs[2], nn.ReLU())
        self.fc = nn.Linear(widths[-1], len(a[f"head_mix_{which}__fc_bias"]))
        with torch.no_grad():
            for name, parameter in self.recorded(which).items():
                parameter.copy_(a[name])

    def forward(self, x):
        return self.fc(self.last(self.stage(x)).mean((2, 3)))

    def recorded(self, which):
        """Parameters by the names that they have in a file."""
        convs = {"c1": self.stage[0], "c2": self.stage[2], "c3": self.last[0]}
        found = {f"backbone_{which}__{name}_{part}": p for name, m in convs.items() for part, p in m.named_parameters()}
        return found | {f"head_mix_{which}__fc_{part}": p for part, p in self.fc.named_parameters()}


def load(parameters, a):
    """Set parameters, by their names in a file."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(a[name])


def heads_and_block(policy, block):
    """What a policy learns itself, by its names in a file."""
    found = {f"head_one_q__fc_{part}": p for part, p in policy.clean_head.named_parameters()}
    return found | {f"mix_block__{name}": policy.block.get_parameter(ours) for name, ours in block.items()}


def gradients(a, parameters):
    """Comparisons of all gradients; the tolerance is a part of the largest one."""
    largest = max(a[f"grad__{name}"].abs().max() for name in parameters)
    return [
        (f"gradient of {name}", p.grad, a[f"grad__{name}"], 1e-4 * float(largest)) for name, p in parameters.items()
    ]


def of_array(arrays):
    return {name: torch.from_numpy(values.copy()) for name, values in arrays.items()}


@adapter("automix")
def replay_automix(arrays, stem):
    a = of_array(arrays)
    if "attention" in a:
        return replay_block(a, stem)
    return replay_schedule(a) if "max_iters" in a else replay_step(a, stem)


def replay_schedule(a):
    result = []
    for kind in ("cifar", "vit"):
        scope, end = a[f"scope_{kind}"].tolist(), float(a[f"end_{kind}"])
        policy = mixaug.create("automix", momentum=float(a["base"]), momentum_end=end, scope=scope)
        got = [policy.schedule.at(i / int(a["max_iters"])) for i in a["iters"].tolist()]
        result.append((f"momentum, {kind}", torch.tensor(got, dtype=torch.float64), a[f"m_{kind}"], 1e-12))
    return result


BLOCK = {"value_weight": "value.weight", "value_bias": "value.bias"} | {
    f"query_conv_{part}": f"query.{part}" for part in ("weight", "bias")
}


def mask_of(policy, a, lam):
    """(B, H, W) own shares of a batch whose features are recorded, as a policy with a learned block draws them."""
    # The classifier's pairs and the block's own are the same here.
    policy.ratio, policy.pairing = Recorded(lam, lam), Recorded(a["index"], a["index"])
    size = [side * int(a["scale_factor"]) for side in a["features"].shape[2:]]
    images = torch.zeros(len(a["features"]), 3, *size)
    return policy(images, signals=mixaug.Signals(features=a["features"])).mask[:, 0]


def replay_block(a, stem):
    features = a["features"]
    lam_channel = a["w_value_weight"].shape[1] > features.shape[1]
    upsampling = "bilinear" if "bilinear" in stem else "nearest"
    policy = mixaug.create(
        "automix", channels=features.shape[1], lam_channel=lam_channel, upsampling=upsampling, per="batch"
    )
    block, result = policy.block, []
    load({f"w_{name}": block.get_parameter(ours) for name, ours in BLOCK.items()}, a)
    other = features[a["index"]]
    for number, value in enumerate(a["lam"]):
        lam = value[None].float()
        mask = mask_of(policy, a, lam)
        own, partner = features, other
        if lam_channel:
            plane = torch.ones_like(features[:, :1])
            own, partner = torch.cat([own, plane * lam], 1), torch.cat([other, plane * (1 - lam)], 1)
        query, key = tokens(block.query(own)), tokens(block.query(partner))
        every = torch.eye(query.shape[1]).expand(len(features), -1, -1)
        loss = mask_loss(mask, lam, float(a["mask_loss_margin"]))
        result += [
            ("mask", torch.stack([mask, 1 - mask], 1), a["mask"][number], 1e-5),
            ("attention", attended(query, key, every), a["attention"][number], 1e-5),
            ("mask loss", loss, a["mask_loss"][number], 1e-5),
        ]
    return result


def replay_step(a, stem):
    generator_lam, lam = a["lam"].float()[:, None]
    policy = mixaug.create(
        "automix",
        stage="stage",
        lam_channel=a["mix_block__value_weight"].shape[1] > a["backbone_q__c2_weight"].shape[0],
        mask_adjust=float("mask_adjust" in stem),
        mask_weight=float(a["mask_loss_weight"]),
        momentum=0.9,
        momentum_end=None,
        ratio=Recorded(lam, generator_lam),
        pairing=Recorded(a["index_bb"], a["index_mb"]),
    )
    model = TwoStages(a, "q")
    step = mixaug.MixStep(model, policy, MixedCrossEntropy())
    own = heads_and_block(policy, BLOCK)
    load(own, a)
    load(slow(policy), a)
    blended = []
    hooks = [
        model.register_forward_pre_hook(lambda _, inputs: blended.append(inputs[0].detach())),
        policy.network.model.register_forward_pre_hook(lambda _, inputs: blended.append(inputs[0].detach())),
    ]
    loss, scalars = step(a["x"], a["y"])
    for hook in hooks:
        hook.remove()
    loss.backward()
    policy.after_step(model)
    learned = model.recorded("q") | own
    # The networks saw: the clean batch (slow copy, then model), the block's mixture, the classifier's mixture.
    result = [
        ("loss", loss.detach(), a["loss_total"], 1e-5),
        ("clean loss", scalars["clean_loss"], a["loss_one_q"], 1e-5),
        ("generator loss", scalars["generator_loss"], a["loss_mix_k"], 1e-5),
        ("mask loss", scalars["mask_loss"], a["mask_loss"], 1e-5),
        ("mixed for the block", blended[-2], a["img_mix_mb"], 1e-5),
        ("mixed for the classifier", blended[-1], a["img_mix_bb"], 1e-5),
    ]
    result += gradients(a, learned)
    return result + [
        (f"slow {name}", p, a[f"ema09__{name}"], 1e-6) for name, p in slow(policy).items() if f"ema09__{name}" in a
    ]


def slow(policy):
    """Parameters of the slow copy by their names in a file."""
    return TwoStages.recorded(policy.network.model, "k")
