"""nfm_*: features, partners, lam, noise and its scales -> noisy mixtures; and the loss of the recorded logits."""

from unittest import mock

import torch

import mixaug
from golden_adapters import adapter
from golden_adapters.inside import STAGE, RecordedPairing, RecordedRatio, compared, mixed_inside
from mixaug.draws import Draws
from mixaug.losses import MixedCrossEntropy


@adapter("nfm")
def replay_nfm(a, stem):
    levels = {name: float(a[name]) for name in ("add_noise_level", "mult_noise_level")}
    given = {"pairing": RecordedPairing(a["partner"]), "ratio": RecordedRatio(a["lam"]), **levels}
    # A level of zero draws nothing.
    scales = [torch.as_tensor(a[f"{kind}_scale"])[None] for kind in ("add", "mult") if levels[f"{kind}_noise_level"]]
    features, labels = torch.from_numpy(a["features"]), torch.from_numpy(a["labels"])
    with (
        mock.patch.object(Draws, "beta", side_effect=[*scales, *scales]),
        mock.patch("mixaug.policies.nfm.hashed_normal", lambda seeds, shape: torch.from_numpy(a["normal"])),
        mock.patch("mixaug.policies.nfm.hashed_uniform", lambda seeds, shape: torch.from_numpy(a["uniform"])),
    ):
        output, mixed = mixed_inside(mixaug.create("nfm", stages=[STAGE], **given), features, labels)
        at_input = mixaug.create("nfm", stages=["input"], **given)(features, labels, signals=mixaug.Signals())
    return compared(
        ("mixed inside", output, a["mixed"], 1e-6),
        ("mixed at the input", at_input.inputs, a["mixed"], 1e-6),
        ("loss", MixedCrossEntropy()(torch.from_numpy(a["logits"]), mixed), a["loss"], 1e-6),
    )
