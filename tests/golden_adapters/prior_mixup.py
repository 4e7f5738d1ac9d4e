"""prior_mixup_*: a coin per sample swaps the speaker behind which two decoders run; labels are the own sample's."""

import torch
from torch import nn

import mixaug
from golden_adapters import adapter
from golden_adapters.inside import RecordedPairing, RecordedRatio, compared


class Decoders(nn.Module):
    """The decoders of the recording: what they make of content and pitch depends on the vector of a speaker."""

    def __init__(self, a):
        super().__init__()
        self.content, self.pitch = torch.from_numpy(a["content"]), torch.from_numpy(a["pitch"])
        self.filter_weight, self.source_weight = (
            torch.from_numpy(a[f"{name}_weight"]) for name in ("filter", "source")
        )
        self.speaker = nn.Identity()

    def forward(self, speaker):
        speaker = self.speaker(speaker)
        source = self.pitch + (speaker @ self.source_weight.T)[:, :, None]
        return source, self.content * (speaker @ self.filter_weight.T).tanh()[:, :, None]


@adapter("prior_mixup")
def replay_prior_mixup(a, stem):
    model, speaker = Decoders(a), torch.from_numpy(a["speaker"])
    policy = mixaug.create(
        "manifoldmix",
        stages=["speaker"],
        ratio=RecordedRatio(a["coin"].astype("float64")),
        pairing=RecordedPairing(a["partner"]),
        labeling="own",
        per="sample",
    )
    mixed = policy(speaker, signals=model)
    with policy.tap(model, mixed):
        source, filtered = model(mixed.inputs)
    own_source, own_filtered = model(speaker)
    loss = nn.functional.l1_loss(torch.from_numpy(a["mel"]), own_source + own_filtered)
    return compared(
        ("source", source, a["source_prior"], 1e-6),
        ("filter", filtered, a["filter_prior"], 1e-6),
        ("loss of the mel", loss, a["loss_mel"], 1e-6),
        ("labels", mixed.weights, [[1.0, 0.0]] * len(speaker), 0.0),
    )
