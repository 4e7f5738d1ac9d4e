"""MixPro beyond the contract: MaskMix's images, labels that go from area to attention."""

import numpy as np
import pytest
import torch

import mixaug
import mixaug.models
from golden import GOLDEN
from helpers import seeded
from mixaug import functional
from mixaug.losses import MixedCrossEntropy
from mixaug.signals import ModelSignals, Signals

timm = pytest.importorskip("timm", reason="needs the train extra")

IMAGES = torch.randn(6, 3, 32, 32, generator=seeded(0))
LABELS = torch.arange(6) % 5
GIVEN = Signals(attention=torch.rand(6, 4, 4, generator=seeded(1)), outputs=torch.randn(6, 5, generator=seeded(2)))


def transformer(**options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.models.vision_transformer.VisionTransformer(
            img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5, **options
        )
        # As it is initialised, attention is all but even.
        for block in model.blocks:
            torch.nn.init.normal_(block.attn.qkv.weight, std=0.5)
        return model.train()


@pytest.mark.parametrize("per", ["sample", "batch", "pair"])
def test_images_are_those_of_maskmix(per):
    ours = mixaug.create("mixpro", patch_size=16, per=per)(IMAGES, LABELS, signals=GIVEN, generator=seeded(3))
    theirs = mixaug.create("maskmix", patch_size=16, per=per)(IMAGES, LABELS, generator=seeded(3))
    assert torch.equal(ours.inputs, theirs.inputs)
    assert torch.equal(ours.weights, theirs.weights), "before the mixed pass the area is all that is known"


@pytest.mark.parametrize("attention", ["mixed", "own"])
def test_one_step(attention):
    model = transformer(proj_drop_rate=0.2)
    policy = mixaug.create("mixpro", attention=attention, label_smoothing=0.2)
    calls = []
    counter = model.register_forward_hook(lambda module, *_: calls.append(module.training))
    loss, _ = mixaug.MixStep(model, policy, MixedCrossEntropy())(IMAGES, LABELS, generator=seeded(4))
    loss.backward()
    counter.remove()
    # The mixed pass alone; the other choice looks at the unmixed images once, without dropout.
    assert calls == ([True] if attention == "mixed" else [True, False])
    assert model.training
    assert all(parameter.grad is not None for parameter in model.parameters())

    source = ModelSignals(model)
    clean = source.of(IMAGES, LABELS, policy.needs)
    mixed = policy(IMAGES, LABELS, signals=clean, generator=seeded(4))
    with policy.tap(source, mixed, clean) as seen:
        outputs = model(mixed.inputs)
    final = policy.relabel(mixed, seen)
    rows = clean.attention((32, 32)) if attention == "own" else seen.attention((32, 32))
    target = mixed.targets(5, 0.2)
    expected = functional.progressive_lam(rows, mixed.mask, mixed.lam, target, outputs)
    torch.testing.assert_close(final.lam, expected.detach())
    share = functional.attention_lam(rows, mixed.mask)
    assert ((final.lam - mixed.lam) * (final.lam - share) <= 1e-6).all(), "between the area's share and the attention's"
    assert (final.lam - mixed.lam).abs().max() > 1e-3


def test_a_convolutional_network_trains():
    model = mixaug.models.create("cifar_resnet8", num_classes=5)
    loss, _ = mixaug.MixStep(model, mixaug.create("mixpro"), MixedCrossEntropy())(IMAGES, LABELS)
    loss.backward()
    assert loss.isfinite()


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("maskmix_*.npz")), ids=lambda path: path.stem)
def test_share_of_the_attention_in_the_files_of_the_image_half(path):
    with np.load(path) as file:
        arrays = {name: torch.from_numpy(values) for name, values in file.items()}
    patch = int(arrays["patch_size"])
    mask = functional.cells_to_pixels(arrays["own_patches"][:, 0], (patch, patch), arrays["images"].shape[2:])
    share = functional.attention_lam(arrays["attention_cls"], mask)
    torch.testing.assert_close(share, arrays["own_weight_attention_reference"], rtol=0, atol=1e-5)


def test_known_by_name_and_bad_options():
    assert mixaug.describe("mixpro").needs == {"attention", "outputs"}
    with pytest.raises(ValueError, match="'mixed' or 'own'"):
        mixaug.create("mixpro", attention="both")
    with pytest.raises(ValueError, match=r"label_smoothing in \[0, 1\]"):
        mixaug.create("mixpro", label_smoothing=2)
    with pytest.raises(ValueError, match="as an integer >= 1"):
        mixaug.create("mixpro", patch_size=0)
    with pytest.raises(ValueError, match="MixPro needs attention, outputs of the model"):
        mixaug.create("mixpro")(IMAGES, LABELS)
