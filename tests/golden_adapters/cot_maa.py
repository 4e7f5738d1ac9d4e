"""CoT: the loss of virtual pairs, through a step whose model puts out the recorded embeddings."""

import torch
from torch import nn
from torch.nn import functional as F

import mixaug
from golden_adapters import adapter
from golden_adapters.objectives import Given, compared
from mixaug import Batch
from mixaug.networks import Auxiliary
from mixaug.objectives import Composition, CoT, virtual_logits
from mixaug.partners import Stream


@adapter("cot_maa")
def cot_maa(a, stem):
    pairs, objects = torch.tensor(a["pairs"]), torch.tensor(a["obj"])
    network = nn.Sequential(*(nn.Linear(*a[f"compose{i}_weight"].shape[::-1]) for i in (0, 2)))
    network.insert(1, nn.ReLU())
    for i in (0, 2):
        network[i].weight.data = torch.tensor(a[f"compose{i}_weight"])
        network[i].bias.data = torch.tensor(a[f"compose{i}_bias"])
    composition = Composition(pairs, torch.tensor(a["attr_words"]), torch.tensor(a["obj_words"]), network)

    def pair_of(attributes):
        return (pairs == torch.stack([torch.tensor(attributes), objects], 1)[:, None]).all(2).int().argmax(1)

    count = len(objects)
    model = nn.Sequential(Given(a["visual"]))
    lam = float(a["lam"])
    policy = mixaug.create("manifoldmix", stages=["0"], ratio=lam, per="batch", partners=Stream("partners"))
    batch = Batch(
        torch.zeros(count, 3),
        pair_of(a["attr_own"]),
        streams={"partners": Batch(torch.zeros(count, 3), pair_of(a["attr_partner"]))},
    )
    # The recording is of this loss alone; the clean one is weighed with 0 and not run.
    objective = CoT(float(a["temperature"]), clean=0.0)
    step = mixaug.MixStep(model, policy, objective, networks={"composition": Auxiliary(composition)})
    loss, _ = step(batch)
    loss.backward()
    visual = torch.tensor(a["visual"])
    mixed = torch.lerp(visual[count:], visual[:count], lam)
    virtual = composition.virtual(policy(batch, signals=model))
    return compared(
        ("concept", composition.concepts(), a["concept"], 1e-5),
        ("mixed embedding", F.normalize(mixed, dim=1), a["mixed_visual"], 1e-5),
        ("virtual concept", F.normalize(virtual, dim=1), a["mixed_concept"], 1e-5),
        ("logits", virtual_logits(mixed, virtual, composition.concepts()), a["logits"], 1e-5),
        ("loss", loss, a["loss"], 1e-5),
        ("gradient", model[0].outputs[0].grad, a["grad_visual"], 1e-5),
    )
