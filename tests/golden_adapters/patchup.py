"""patchup_*: features, seeds, partners and lam -> holes, mixed features, labels; the authors' loss and its gradient."""

from unittest import mock

import torch
import torch.nn.functional as F

import mixaug
from golden_adapters import adapter
from golden_adapters.inside import STAGE, RecordedPairing, RecordedRatio, compared, mixed_inside


@adapter("patchup")
def replay_patchup(a, stem):
    mode, gamma, block = str(a["mode"]), float(a["gamma"]), int(a["block_size"])
    features, seeds = torch.tensor(a["features"], requires_grad=True), torch.from_numpy(a["seeds"])
    given = {"mode": mode, "gamma": gamma, "block_size": block, "pairing": RecordedPairing(a["partner"])}
    if mode == "soft":
        given["ratio"] = RecordedRatio(a["lam"])
    # A position is a seed where its number is below the chance.
    with mock.patch("mixaug.policies.patchup.hashed_uniform", lambda numbers, shape: 1 - seeds[None]):
        policy = mixaug.create("patchup", stages=[STAGE], **given)
        output, mixed = mixed_inside(policy, features, torch.from_numpy(a["labels"]))
    holes = mixaug.functional.patchup_holes(seeds[None] > 0, block)
    target = mixed.targets(int(a["num_classes"]))
    logits = output.mean((2, 3)) @ torch.from_numpy(a["head_weight"]).T
    # The three terms as the authors write them, which are twice the loss of the mixed target.
    probabilities, unchanged = logits.softmax(1), 1 - holes.float().mean()
    own, other = torch.from_numpy(a["target_a"]), torch.from_numpy(a["target_b"])
    of_parts = unchanged * F.binary_cross_entropy(probabilities, own)
    of_parts = of_parts + (1 - unchanged) * F.binary_cross_entropy(probabilities, other)
    loss = 2 * F.binary_cross_entropy(probabilities, target)
    loss.backward()
    rate = torch.tensor(mixaug.functional.patchup_rate(gamma, block, features.shape[2:]))
    return compared(
        ("chance of a seed", rate, a["gamma_adjusted"], 1e-6),
        ("holes", holes[0].float(), a["holes"], 0.0),
        ("unchanged", unchanged, a["unchanged"], 1e-6),
        ("mixed", output, a["mixed"], 1e-5),
        ("own weight", mixed.lam, [float(a["own_weight"])] * len(features), 1e-5),
        ("target", target, a["target_reweighted"], 1e-5),
        ("logits", logits, a["logits"], 1e-5),
        ("loss", loss, a["loss"], 1e-5),
        ("loss in three terms", of_parts + F.binary_cross_entropy(probabilities, target), a["loss"], 1e-5),
        ("gradient", features.grad, a["grad_features"], 1e-5),
    )
