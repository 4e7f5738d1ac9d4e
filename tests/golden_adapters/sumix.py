"""sumix_*: semantic distances, corrected weights, uncertainty and the whole loss from recorded features."""

import torch

from golden_adapters import adapter
from mixaug import functional as F
from mixaug.losses import mixed_cross_entropy


@adapter("sumix")
def replay_sumix(arrays, stem):
    array = {name: torch.from_numpy(values) for name, values in arrays.items()}
    labels, partner, lam = array["labels"], array["perm"], array["lam"].float()

    def head(features, name):
        return array[features] @ array[f"{name}_w"].T + array[f"{name}_b"]

    clean, mixed = head("feat_raw", "fc"), head("feat_mix", "fc")
    sources = torch.stack([torch.arange(len(labels)), partner], 1)
    drawn = torch.stack([lam, 1 - lam]).expand(len(labels), 2)
    pair = F.sumix_distances(clean, mixed, labels, partner, reference=True)
    weights = F.sumix_weights(pair, labels, partner, drawn)
    released = F.sumix_weights(pair, labels, partner, drawn, reference=True)
    before, after = (F.sumix_uncertainty(head(name, "unc")) for name in ("feat_raw", "feat_mix"))
    uncertainty = F.sumix_loss(before, after, pair, labels, partner, drawn)
    loss = mixed_cross_entropy(mixed, labels, sources, released) + array["gama"].float() * uncertainty
    return [
        ("logits_raw", clean, array["logits_raw"], 1e-5),
        ("logits_mix", mixed, array["logits_mix"], 1e-5),
        ("unc_raw", before, array["unc_raw"], 1e-5),
        ("unc_mix", after, array["unc_mix"], 1e-5),
        ("alpha", pair[0], array["alpha"], 1e-5),
        ("alpha_", pair[1], array["alpha_"], 1e-5),
        ("INa", (-pair[0]).exp(), array["INa"], 1e-5),
        ("INb", (-pair[1]).exp(), array["INb"], 1e-5),
        ("INa_f", (-(before + after + pair[0])).exp(), array["INa_f"], 1e-5),
        ("INb_f", (-(before[partner] + after + pair[1])).exp(), array["INb_f"], 1e-5),
        ("lam_a", weights[:, 0], array["lam_a"], 1e-5),
        ("lam_b", weights[:, 1], array["lam_b"], 1e-5),
        ("loss", loss, array["loss"], 1e-5),
    ]
