"""augmix_mix_*: chains to the mixture; augmix_jsd_*: the loss of three views; pixmix_*: pictures, round by round."""

import torch
from torch import nn

import mixaug
from golden_adapters import adapter
from golden_adapters.objectives import compared
from mixaug import objectives


class Rows(nn.Module):
    """A network whose outputs for the rows of one joined pass are recorded."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = nn.Parameter(outputs)

    def forward(self, inputs):
        assert len(inputs) == len(self.outputs)
        return self.outputs


@adapter("augmix")
def replay_augmix(arrays, stem):
    a = {name: torch.from_numpy(values) for name, values in arrays.items()}
    if "chains" in a:
        mixed = objectives.augmix(a["images"], a["chains"], a["chain_weights"], a["skip_weight"])
        scaled = (mixed - a["mean"][:, None, None]) / a["std"][:, None, None]
        return [("mixed", scaled.float(), a["mixed"], 1e-5)]
    model = Rows(torch.cat([a["logits_clean"], a["logits_aug1"], a["logits_aug2"]]))
    objective = objectives.AugMix(weight=float(a["weight"]))
    step = mixaug.MixStep(model, mixaug.create("none"), objective)
    pixels = torch.zeros(len(a["labels"]), 3, 4, 4, dtype=torch.uint8)
    loss, terms = step(pixels, a["labels"])
    loss.backward()
    views = [a[name] for name in ("logits_clean", "logits_aug1", "logits_aug2")]
    return compared(
        ("loss_ce", terms["clean"], a["loss_ce"], 1e-5),
        ("jsd", objectives.jensen_shannon(*views), a["jsd"], 1e-5),
        ("loss", loss, a["loss"], 1e-5),
        ("grad", model.outputs.grad, a["grad"], 1e-5),
    )


@adapter("pixmix")
def replay_pixmix(arrays, stem):
    a = {name: torch.from_numpy(values) for name, values in arrays.items()}
    # An operation of -1 is that of a round that is not gone through.
    mixed = objectives.pixmix(a["start"], a["other"], a["operation"] == 1, a["coefficients"], a["rounds"])
    return [("mixed", mixed, a["mixed"], 1e-5)]
