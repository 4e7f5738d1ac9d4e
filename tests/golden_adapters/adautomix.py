"""adautomix_*: masks of the block over several maps, and a whole step of three images with its gradients."""

import torch

import mixaug
from golden_adapters import adapter
from golden_adapters.automix import Recorded, TwoStages, gradients, heads_and_block, load, of_array, slow
from mixaug import functional as F
from mixaug.batch import MixedBatch
from mixaug.losses import MixedCrossEntropy

BLOCK = {
    f"conv_{theirs}_conv_{part}": f"{ours}.{part}"
    for theirs, ours in (("q", "query"), ("k", "key"))
    for part in ("weight", "bias")
} | {f"conv_v_{part}": f"value.{part}" for part in ("weight", "bias")}


@adapter("adautomix")
def replay_adautomix(arrays, stem):
    a = of_array(arrays)
    return replay_step(a, stem) if "loss_total" in a else replay_masks(a, stem)


def replay_masks(a, stem):
    count, batch, channels = a["features"].shape[:3]
    lam = a["lam"].float()
    policy = mixaug.create(
        "adautomix",
        n_images=count,
        channels=channels,
        lam_channel=a["w_conv_v_weight"].shape[1] > channels,
        upsampling="bilinear" if "bilinear" in stem else "nearest",
    )
    load({f"w_{name}": policy.block.get_parameter(ours) for name, ours in BLOCK.items()}, a)
    shares = lam[None] if lam.ndim else torch.stack([lam, 1 - lam])[None]
    sources = torch.arange(count * batch).reshape(count, batch).T
    size = [side * int(a["scale_factor"]) for side in a["features"].shape[3:]]
    masks = policy.masks(a["features"].flatten(0, 1), sources, shares, size)
    return [("masks", masks, a["mask"], 1e-5)]


def own_first(index):
    """Rows of the other images, (N - 1, B), once the mixtures lie in the order of their first image."""
    return list(index[1:, index[0].argsort()])


def replay_step(a, stem):
    index, generator_index = a["index_bb"], a["index_mb"]
    count = len(index)
    policy = mixaug.create(
        "adautomix",
        n_images=count,
        stage="stage",
        lam_channel=a["mix_block__conv_v_weight"].shape[1] > a["backbone_q__c2_weight"].shape[0],
        beta=float(a["beta_ratio"]),
        mixup_ratio=float(a["mixup_ratio"]),
        reference=True,
        ratio=Recorded(*a["lam"][:, None]),
        pairing=Recorded(*own_first(index), *own_first(generator_index)),
    )
    model = TwoStages(a, "q")
    step = mixaug.MixStep(model, policy, MixedCrossEntropy())
    own = heads_and_block(policy, BLOCK)
    load(own, a)
    load(slow(policy), a)
    beta, loss_k, similarity = float(a["beta_ratio"]), a["loss_mix_k"], a["cos_sim"]
    adversarial = -beta * loss_k + (1 - beta) * similarity
    # The name says what kind of step it is.
    kinds = [adversarial, loss_k]
    policy.steps = int("adversarial" not in stem)
    seen, blended = [], []
    hooks = [
        policy.network.model.register_forward_hook(lambda _, x, y: seen.append((x[0].detach(), y.detach()))),
        model.register_forward_pre_hook(lambda _, x: blended.append(x[0].detach())),
    ]
    loss, scalars = step(a["x"], a["y"])
    for hook in hooks:
        hook.remove()
    loss.backward()
    rows, shares = generator_index.T, a["lam_normalised"].float()[None]
    made, outputs = (tensor[generator_index[0]] for tensor in seen[-1])
    pair = MixedBatch(inputs=made, labels=a["y"], sources=rows, weights=shares.expand(rows.shape))
    with torch.no_grad():
        of_images = policy.network.model(a["x"])
    result = [
        ("loss", loss.detach(), a["loss_total"], 1e-5),
        ("clean and linear loss", scalars["clean_loss"] + scalars["linear_loss"], a["loss_one_q"], 1e-5),
        ("mixer's part", scalars["generator_loss"], kinds[policy.steps], 1e-5),
        ("loss of the mixer's mixture", MixedCrossEntropy()(outputs, pair), loss_k, 1e-5),
        ("similarity", F.adautomix_similarity(outputs, of_images, rows, shares), similarity, 1e-5),
        ("mixed for the mixer", made, a["img_mix_mb"], 1e-5),
        ("mixed for the classifier", blended[-1][index[0]], a["img_mix_bb"], 1e-5),
    ]
    result = [(what, got, expected, 1e-5 * max(1, float(expected.abs().max()))) for what, got, expected, _ in result]
    return result + gradients(a, model.recorded("q") | own)
