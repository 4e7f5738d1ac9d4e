"""Objectives and losses on mixed batches, with the authors' draws."""

import torch
from torch import nn
from torch.nn import functional as F

import mixaug
from golden_adapters import adapter
from mixaug.batch import MixedBatch
from mixaug.losses import DecoupledCrossEntropy, MixedBinaryCrossEntropy, MixedCrossEntropy
from mixaug.objectives import MixKD, RankMixup, RegMixup


class InOrder:
    """Recorded values, one for one call after the other: those of a pairing or of a ratio."""

    involution = False

    def __init__(self, *values):
        self.left = [torch.as_tensor(value) for value in values]

    def __call__(self, *_):
        return self.left.pop(0)


def mixup_of(draws):
    """Mixup whose draws are recorded: (partner, lam) for one call after the other."""
    partners, shares = zip(*draws, strict=True)
    shares = [torch.as_tensor(lam).float().reshape(-1) for lam in shares]
    return mixaug.create("mixup", pairing=InOrder(*partners), ratio=InOrder(*shares))


class Given(nn.Module):
    """A network whose outputs are recorded: one tensor for each call, in their order."""

    def __init__(self, *outputs):
        super().__init__()
        self.outputs = nn.ParameterList([nn.Parameter(torch.as_tensor(values)) for values in outputs])
        self.calls = 0

    def forward(self, inputs):
        self.calls += 1
        return self.outputs[self.calls - 1]


def compared(*rows):
    """Comparisons whose values are tensors without gradients: (what, got, expected, tolerance)."""
    return [(what, got.detach(), torch.as_tensor(expected), tolerance) for what, got, expected, tolerance in rows]


def pair(a, lam, label_a, label_b):
    """Samples i of classes a[i] and b[i] with shares lam and 1 - lam."""
    first, second = torch.as_tensor(a[label_a]), torch.as_tensor(a[label_b])
    rows = torch.arange(len(first))
    return MixedBatch(
        inputs=None,
        labels=torch.cat([first, second]),
        sources=torch.stack([rows, rows + len(first)], 1),
        weights=torch.tensor([[lam, 1 - lam]], dtype=torch.float32).expand(len(first), 2),
    )


@adapter("decoupled")
def decoupled(a, stem):
    found = []
    for i, lam in enumerate(a["lam"]):
        logits = torch.tensor(a["logits"], requires_grad=True)
        power = float(a["lam_idx"][i]) if a["lam_scale"][i] == "pow" else 0.0
        loss = DecoupledCrossEntropy(float(a["eta"][i]), str(a["mode"][i]), power)(
            logits, pair(a, float(lam), "y_a", "y_b")
        )
        loss.backward()
        found += [
            (f"loss[{i}]", loss.detach(), a["loss"][i], 1e-5),
            (f"grad[{i}]", logits.grad, a["grad_logits"][i], 1e-5),
        ]
    return compared(*found)


@adapter("regmixup")
def regmixup(a, stem):
    model = nn.Linear(a["weight"].shape[1], a["weight"].shape[0], bias=False)
    model.weight.data = torch.tensor(a["weight"])
    step = mixaug.MixStep(model, mixup_of([(a["index"], a["lam"])]), RegMixup(reference=True))
    loss, terms = step(torch.tensor(a["x"]), torch.tensor(a["y"]))
    loss.backward()
    return compared(
        ("loss", loss.detach(), a["loss"], 1e-6),
        ("ce_clean", 2 * terms["clean"], a["ce_clean"], 1e-6),
        ("ce_mixed", 2 * terms["mixed"], a["ce_mixed"], 1e-6),
        ("grad_weight", model.weight.grad, a["grad_weight"], 1e-6),
    )


@adapter("rankmixup")
def rankmixup(a, stem):
    margin = "margin" in a
    count = len(a["y"])
    indices, lams = a["index"].reshape(-1, count), a["lam"].reshape(-1)
    model = Given(a["logits"], a["logits_mixed"])
    form = {"form": "margin", "margin": float(a["margin"])} if margin else {"form": "ndcg", "draws": len(lams)}
    objective = RankMixup(weight=float(a["weight"]), reference=True, **form)
    step = mixaug.MixStep(model, mixup_of(zip(indices, lams, strict=True)), objective)
    loss, terms = step(torch.zeros(count, 2), torch.tensor(a["y"]))
    loss.backward()
    rank = a["loss_rank"] if margin else a["loss_ndcg"]
    return compared(
        ("loss", loss.detach(), a["loss"], 1e-5),
        ("loss_ce", terms["clean"], a["loss_ce"], 1e-5),
        ("rank", terms["rank"] / float(a["weight"]), rank, 1e-5),
        ("grad_logits", model.outputs[0].grad, a["grad_logits"], 1e-5),
        ("grad_mixed", model.outputs[1].grad, a["grad_mixed"], 1e-5),
    )


@adapter("mixkd")
def mixkd(a, stem):
    student = Given(a["logits_student"])
    networks = {"teacher": mixaug.networks.Frozen(Given(a["logits_teacher"]))}
    objective = MixKD(float(a["gamma"]), float(a["alpha"]))
    step = mixaug.MixStep(student, mixaug.create("none"), objective, networks=networks)
    loss, terms = step(torch.zeros(len(a["targets"]), 2), torch.tensor(a["targets"]))
    loss.backward()
    return compared(
        ("loss_cls", terms["labels"], a["loss_cls"], 1e-5),
        ("loss_kd", terms["teacher"], a["loss_kd"], 1e-5),
        ("grad_student", student.outputs[0].grad, a["grad_student"], 1e-5),
    )


@adapter("objective_mix_heads")
def objective_mix_heads(a, stem):
    """The two-term cross-entropy and the binary one, summed over classes; the other variants are OpenMixup's own."""
    names, logits = list(a["variant_names"]), torch.tensor(a["logits"])
    found = []
    for row, lam in enumerate(a["lam"]):
        mixed = pair(a, float(lam), "y_a", "y_b")
        binary = MixedBinaryCrossEntropy(sum_classes=True)(logits, mixed)
        found += [
            (f"ce[{row}]", MixedCrossEntropy()(logits, mixed), a["loss"][row, names.index("ce_two_term")], 1e-5),
            (f"bce[{row}]", binary, a["loss"][row, names.index("bce_neg1")], 1e-5),
            (f"soft[{row}]", F.cross_entropy(logits, mixed.targets(logits.shape[1])), a["loss"][row, 0], 1e-5),
        ]
    return compared(*found)
