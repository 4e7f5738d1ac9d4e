"""Methods that are made of a choice of partners: d-mixup, LISA, SelfMix, Mixture Outlier Exposure, CutMixPick."""

import contextlib
from unittest import mock

import torch
from torch import nn

import mixaug
from golden_adapters import adapter
from golden_adapters.objectives import Given, InOrder, compared
from golden_adapters.recorded import boxes_as_recorded
from mixaug import Batch
from mixaug.draws import Draws
from mixaug.losses import MixedCrossEntropy
from mixaug.objectives import MixOE
from mixaug.objectives.cutmixpick import pick, pick_scores
from mixaug.partners import Stream


def cutmix_of(lam, centers, **options):
    """CutMix whose draws are recorded: own shares (R,), and centres (R, 2) of the boxes, and where they are drawn."""
    policy = mixaug.create("cutmix", ratio=recorded(lam), **options)

    def pixels(draws, size):
        # Partners from outside stand behind the batch's own rows, and get a box too.
        return centers.repeat(draws.batch_size // len(centers), 1)

    return policy, mock.patch.object(Draws, "pixels", pixels)


def recorded(lam):
    """A ratio whose values are recorded, for a batch alone and with partners behind it."""
    lam = torch.as_tensor(lam).reshape(-1)
    return lambda draws: lam.repeat(draws.batch_size // len(lam))


@adapter("dmixup")
def dmixup(a, stem):
    shares = torch.tensor(a["weights"]).float()[None]
    policy = mixaug.create("dmixup", points=shares.shape[1], pairing=InOrder(*a["index"]))
    model = nn.Linear(a["head_weight"].shape[1], a["head_weight"].shape[0], bias=False)
    model.weight.data = torch.tensor(a["head_weight"])
    with mock.patch.object(Draws, "dirichlet", lambda draws, alpha, count: shares):
        loss, _ = mixaug.MixStep(model, policy, MixedCrossEntropy())(torch.tensor(a["x"]), torch.tensor(a["y"]))
    loss.backward()
    return compared(("loss", loss, a["loss"], 1e-5), ("grad_weight", model.weight.grad, a["grad_weight"], 1e-5))


@adapter("mixoe")
def mixoe(a, stem):
    source = Stream("outliers", label="uniform")
    batch = Batch(torch.tensor(a["x"]), torch.tensor(a["y"]), streams={"outliers": Batch(torch.tensor(a["outlier"]))})
    # The recording took the four numbers for two ends along the rows and two along the columns, while the authors' code
    # returns the lower corner before the upper one: its slices may be empty beside a share that is not. Recorded is
    # recorded: the box is what those slices hold, and the share is given.
    top, bottom, left, right = (int(value) for value in a["bbox"])
    box = [top, left, max(top, bottom), max(left, right)]
    forms = {
        "linear": mixaug.create("mixup", ratio=float(a["lam"]), per="batch", partners=source),
        "cut": mixaug.create("cutmix", ratio=float(a["lam_cut"]), per="batch", labeling="ratio", partners=source),
    }
    found = []
    for form, policy in forms.items():
        model = Given(a["logits_clean"], a["logits_mixed"])
        with contextlib.nullcontext() if form == "linear" else boxes_as_recorded("cutmix", *[torch.tensor([box])] * 2):
            mixed = policy(batch)
            loss, terms = mixaug.MixStep(model, policy, MixOE(float(a["beta"])))(batch)
        found += [
            (f"mixed_{form}", mixed.inputs, a[f"mixed_{form}"], 1e-6),
            (f"targets_{form}", mixed.targets(a["logits_clean"].shape[1]), a[f"soft_targets_{form}"], 1e-6),
            (f"{form} clean", terms["clean"], a["loss_id"], 1e-6),
            (f"{form} outliers", terms["outliers"], a["beta"] * a[f"loss_mixed_{form}"], 1e-5),
            (f"{form} total", loss, a["loss_id"] + a["beta"] * a[f"loss_mixed_{form}"], 1e-5),
        ]
    return compared(*found)


@adapter("cutmixpick")
def cutmixpick(a, stem):
    score = next(name for name in ("student_entropy", "teacher_entropy", "kld") if name in stem)
    score = {"kld": "divergence"}.get(score, score)
    student, teacher = torch.tensor(a["student_logits"]), torch.tensor(a["teacher_logits"])
    scores = pick_scores(score, student, teacher, float(a["temperature"]))
    rows = pick(scores, int(a["n_pick"]))
    pool = mixaug.batch.unmixed(torch.tensor(a["pool"]), None)
    return compared(
        ("score", scores, a["score"], 1e-5),
        ("picked", rows, a["picked"], 0),
        ("mixed", pool.rows_of(rows).inputs, a["mixed"], 0),
    )


@adapter("lisa_groups")
def lisa_groups(a, stem):
    images, labels, found = torch.tensor(a["images"]), torch.tensor(a["labels"]), []
    attributes = torch.tensor(a["attributes"])
    for kept in ("same_label", "same_attribute"):
        pairing = {"same_label": ("same", "other"), "same_attribute": ("other", "same")}[kept]
        for form in ("mixup", "cutmix"):
            key = f"{kept}_{form}"
            own, partner = torch.tensor(a[f"{key}_own"]), torch.tensor(a[f"{key}_partner"])
            lam = torch.tensor(a[f"{key}_lam"])
            source = Stream("partners")
            policy, drawing = mixaug.create("mixup", ratio=recorded(lam), partners=source), contextlib.nullcontext()
            if form == "cutmix":
                policy, drawing = cutmix_of(lam, torch.tensor(a[f"{key}_centre_yx"]), partners=source)
            streams = {"partners": Batch(images[partner], labels[partner])}
            with drawing:
                mixed = policy(Batch(images[own], labels[own], streams=streams))
            # The pairs are such as the pairing of the preset draws.
            chosen = mixaug.pairing.Selective(pairing[0], ("domain", pairing[1]))
            every = torch.arange(len(labels))
            allowed = torch.stack([
                chosen(
                    Batch(images, labels, metadata={"domain": attributes}),
                    mixaug.draws.Draws(len(labels), images.device, torch.Generator().manual_seed(seed)),
                )
                for seed in range(200)
            ])  # fmt: skip
            drawn = (allowed[:, own] == partner).any(0) if len(every) else None
            found += [
                (f"{key} mixed", mixed.inputs, a[f"{key}_mixed"], 1e-6),
                (f"{key} own weight", mixed.lam, a[f"{key}_own_weight"], 1e-6),
                (f"{key} target", mixed.targets(int(a["num_classes"])), a[f"{key}_target"], 1e-6),
                (f"{key} drawn", drawn, torch.ones(len(own), dtype=torch.bool), 0),
            ]
    return compared(*found)


@adapter("lisa_pairs")
def lisa_pairs(a, stem):
    policy = mixaug.create("mixup", pairing=InOrder(a["partner"]), ratio=recorded(a["lam"]))
    mixed = policy(torch.tensor(a["images"]), torch.tensor(a["labels"]))
    logits = torch.tensor(a["logits"], requires_grad=True)
    loss = MixedCrossEntropy()(logits, mixed)
    loss.backward()
    return compared(
        ("mixed", mixed.inputs, a["mixed"], 1e-6),
        ("target", mixed.targets(int(a["num_classes"])), a["target"], 1e-6),
        ("loss", loss, a["loss"], 1e-6),
        ("grad_logits", logits.grad, a["grad_logits"], 1e-6),
    )


@adapter("selfmix")
def selfmix(a, stem):
    partner, image_id = torch.tensor(a["partner"]), torch.tensor(a["image_id"])
    images, pairing = torch.tensor(a["images"]), InOrder(partner)
    if "mixup" in stem:
        policy, drawing = mixaug.create("mixup", pairing=pairing, ratio=recorded(a["lam"])), contextlib.nullcontext()
    else:
        # The box was recorded, not the share and the centre that gave it.
        policy = mixaug.create("cutmix", pairing=pairing)
        drawing = boxes_as_recorded("cutmix", torch.tensor(a["box"]))
    with drawing:
        mixed = policy(images, torch.tensor(a["soft_labels"]))
    # The pairs are such as the pairing of the preset draws, but that the authors' permutation may leave a crop alone.
    batch = Batch(images, metadata={"image_id": image_id})
    chosen = mixaug.create("selfmix").pairing
    drawn = torch.stack([
        chosen(batch, Draws(len(images), images.device, torch.Generator().manual_seed(seed))) for seed in range(200)
    ])  # fmt: skip
    possible = (drawn == partner).any(0) | (partner == torch.arange(len(images)))
    return compared(
        ("mixed", mixed.inputs, a["mixed"], 1e-6),
        ("own weight", mixed.lam, a["own_weight"], 1e-6),
        ("target", mixed.targets(), a["target"], 1e-6),
        ("drawn by the pairing", possible, torch.ones(len(images), dtype=torch.bool), 0),
    )
