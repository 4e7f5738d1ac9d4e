"""TransMix beyond the contract: CutMix's images, labels from the attention of the training pass."""

import pytest
import torch

import mixaug
import mixaug.models
from helpers import seeded
from mixaug import functional
from mixaug.losses import MixedCrossEntropy
from mixaug.signals import Signals

timm = pytest.importorskip("timm", reason="needs the train extra")

IMAGES = torch.randn(6, 3, 24, 40, generator=seeded(0))
LABELS = torch.arange(6) % 5
GIVEN = Signals(attention=torch.rand(6, 3, 5, generator=seeded(1)))


def transformer():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.models.vision_transformer.VisionTransformer(
            img_size=(24, 40), patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5
        ).train()


@pytest.mark.parametrize("per", ["sample", "batch", "pair"])
def test_images_are_those_of_cutmix(per):
    ours = mixaug.create("transmix", alpha=0.7, per=per)(IMAGES, LABELS, signals=GIVEN, generator=seeded(2))
    theirs = mixaug.create("cutmix", alpha=0.7, per=per)(IMAGES, LABELS, generator=seeded(2))
    assert torch.equal(ours.inputs, theirs.inputs)
    assert torch.equal(ours.weights, theirs.weights), "before the mixed pass the area is all that is known"


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_one_step(share):
    model = transformer()
    policy = mixaug.create("transmix", attention_share=share, pairing="reversed", per="batch")
    step = mixaug.MixStep(model, policy, MixedCrossEntropy(label_smoothing=0.1))
    loss, scalars = step(IMAGES, LABELS, generator=seeded(3))
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert 0 <= scalars["accuracy"] <= 1

    mixed = policy(IMAGES, LABELS, signals=model, generator=seeded(3))
    assert mixed.partner.tolist() == [5, 4, 3, 2, 1, 0]
    with policy.tap(model, mixed) as seen:
        outputs = model(mixed.inputs)
    final = policy.relabel(mixed, seen)
    expected = functional.attention_lam(seen.attention((24, 40)), mixed.mask, mixed.lam, attention_share=share)
    assert torch.equal(final.lam, expected)
    torch.testing.assert_close(loss, MixedCrossEntropy(label_smoothing=0.1)(outputs, final))


def test_a_convolutional_network_trains():
    model = mixaug.models.create("cifar_resnet8", num_classes=5)
    loss, _ = mixaug.MixStep(model, mixaug.create("transmix"), MixedCrossEntropy())(IMAGES, LABELS)
    loss.backward()
    assert loss.isfinite()


def test_the_authors_switch_to_mixup():
    model, kinds = transformer(), []
    switch = mixaug.OneOf([mixaug.create("mixup", alpha=0.8, per="batch"), "transmix"], [0.2, 0.8])
    assert switch.needs == {"attention"}
    step = mixaug.MixStep(model, switch, MixedCrossEntropy())
    generator = seeded(4)
    for _ in range(3):
        assert step(IMAGES, LABELS, generator=generator)[0].isfinite()
    for seed in range(200):
        kinds.append(switch(IMAGES, LABELS, signals=GIVEN, generator=seeded(seed)).mask is not None)
    assert abs(sum(kinds) / 200 - 0.8) < 4 * (0.2 * 0.8 / 200) ** 0.5


def test_known_by_name_and_bad_options():
    assert mixaug.describe("transmix").needs == {"attention"}
    assert repr(mixaug.create("transmix", attention_share=1.0)) == "TransMix(attention_share=1.0)"
    with pytest.raises(ValueError, match=r"attention_share in \[0, 1\]"):
        mixaug.create("transmix", attention_share=2)
    with pytest.raises(ValueError, match=r"expects images \(B, C, H, W\)"):
        mixaug.create("transmix")(torch.rand(4, 3, 9), signals=Signals(attention=torch.rand(4, 9)))
    with pytest.raises(ValueError, match="TransMix needs attention of the model"):
        mixaug.create("transmix")(IMAGES, LABELS)
