"""SelecMix: contradicting pairs, their mixture, and the contrastive loss of the network that finds them."""

import torch

import mixaug
from golden_adapters import adapter
from golden_adapters.objectives import InOrder, compared
from golden_adapters.partners import recorded
from mixaug import Batch
from mixaug.draws import Draws
from mixaug.losses import supervised_contrastive_loss
from mixaug.pairing import Contradicting


@adapter("selecmix")
def selecmix(a, stem):
    x, labels, features = torch.tensor(a["x"]), torch.tensor(a["y"]), torch.tensor(a["features"])
    batch, draws = Batch(x, labels), Draws(len(x), x.device)
    found, pairs = [], {}
    kinds = {"same_label": ("index_same_label_dissimilar", "valid_same")}
    kinds["other_label"] = ("index_diff_label_similar", "valid_diff")
    for mode, (index, valid) in kinds.items():
        pairing = Contradicting(lambda inputs: features, mode)
        pairs[mode] = pairing(batch, draws)
        there = torch.tensor(a[valid])
        found.append((f"{mode} partner", pairs[mode][there], a[index][a[valid]], 0))
        # A row whose reference partner is no valid one stays as it is here.
        found.append((f"{mode} alone", pairs[mode][~there], torch.arange(len(x))[~there], 0))
    found.append(("similarity", pairing.similarity(x), a["sim"], 1e-5))
    # The recorded share is the draw of Beta(1, 1), which the method halves.
    policy = mixaug.create("selecmix", network=lambda inputs: features, mode="other_label")
    assert repr(policy.ratio) == "Uniform(0, 0.5)"
    policy.ratio, policy.pairing = recorded(a["lam_beta"] / 2), InOrder(pairs["other_label"])
    mixed = policy(batch)
    there = torch.tensor(a["valid_diff"])
    found += [
        ("mixed", mixed.inputs[there], a["mixed_x"][a["valid_diff"]], 1e-5),
        ("own weight", mixed.weights[there, 0], a["weight_own"][a["valid_diff"]], 0),
        ("partner weight", mixed.weights[there, 1], a["weight_partner"][a["valid_diff"]], 0),
        ("target", labels[mixed.partner][there], a["target_label"][a["valid_diff"]], 0),
    ]
    embeddings, temperature = features.clone().requires_grad_(), float(a["gsc_temperature"])
    loss = supervised_contrastive_loss(embeddings, labels, temperature, float(a["gsc_q"]))
    loss.backward()
    return compared(
        *found,
        ("contrastive loss", loss, a["gsc_loss"], 1e-5),
        ("contrastive gradient", embeddings.grad, a["gsc_grad"], 1e-5),
        ("plain contrastive loss", supervised_contrastive_loss(features, labels, temperature), a["supcon_loss"], 1e-5),
    )
