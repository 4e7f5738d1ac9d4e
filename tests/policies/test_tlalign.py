"""TL-Align beyond the contract: boxes of whole patches, labels that travel with the tokens."""

import math

import pytest
import torch

import mixaug
from helpers import index_images, seeded
from mixaug import functional
from mixaug.losses import MixedCrossEntropy
from mixaug.signals import Signals

timm = pytest.importorskip("timm", reason="needs the train extra")

GIVEN = Signals(attention=torch.rand(2, 4))


def transformer(size=(32, 48), patch=(8, 8)):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.models.vision_transformer.VisionTransformer(
            img_size=size, patch_size=patch, embed_dim=32, depth=2, num_heads=2, num_classes=5
        ).train()


def signals(count):
    return Signals(attention=torch.rand(count, 4))


def test_every_patch_comes_from_one_image():
    images = index_images(40, 1, 32, 48)
    mixed = mixaug.create("tlalign", patch_size=8)(images, signals=signals(40), generator=seeded(0))
    patches = mixed.inputs.unfold(2, 8, 8).unfold(3, 8, 8).flatten(4)
    assert torch.equal(patches.amin(-1), patches.amax(-1))
    own = (patches[:, 0, ..., 0] == torch.arange(40)[:, None, None]) | (mixed.partner == torch.arange(40))[
        :, None, None
    ]
    torch.testing.assert_close(own.float().mean((1, 2)), mixed.lam)
    assert 0 < mixed.lam.min() < mixed.lam.max() == 1


@pytest.mark.parametrize("per", ["sample", "batch"])
def test_box_is_cutmix_on_the_grid(per):
    lam = torch.tensor([0.0, 0.2, 0.5, 0.8, 0.99], dtype=torch.float64)
    centers = torch.tensor([[3, 2], [0, 0], [13, 9], [7, 0], [5, 5]])
    images, partner = torch.rand(5, 3, 28, 20, generator=seeded(1)), torch.tensor([1, 2, 3, 4, 0])
    boxes = functional.cutmix_boxes(lam, centers, (14, 10))
    if per == "batch":
        boxes = boxes[1:2]
    mixed, share = functional.tlalign(images, partner, boxes, 2)
    expected = images.clone()
    for i, (top, left, bottom, right) in enumerate(boxes.expand(5, 4).tolist()):
        window = (i, slice(None), slice(2 * top, 2 * bottom), slice(2 * left, 2 * right))
        expected[window] = images[(int(partner[i]), *window[1:])]
        assert share[i] == pytest.approx(1 - (bottom - top) * (right - left) / 140)
    assert torch.equal(mixed, expected)


def test_mean_share_on_the_grid():
    # Exact mean over all centres and all even sides, whose chances follow from lam ~ U(0, 1).
    side, expected = 14, 0.0
    for length in range(side + 1):
        chance = min((length + 1) / side, 1) ** 2 - (length / side) ** 2
        half = length // 2
        kept = sum(min(c + half, side) - max(c - half, 0) for c in range(side)) / side
        expected += chance * (1 - (kept / side) ** 2)
    policy = mixaug.create("tlalign", patch_size=1)
    lam = policy(torch.zeros(20_000, 1, 14, 14), signals=signals(20_000), generator=seeded(2)).lam.double()
    assert abs(lam.mean() - expected) < 4 * lam.std() / math.sqrt(len(lam))


@pytest.mark.parametrize(("size", "patch"), [((33, 8), 4), ((30, 45), 16), ((7, 5), 2), ((50, 100), (16, 33))])
def test_images_that_are_no_whole_number_of_patches(size, patch):
    images = index_images(30, 1, *size)
    mixed = mixaug.create("tlalign", patch_size=patch)(images, signals=signals(30), generator=seeded(3))
    rows, columns = functional.patch_grid(patch, size)
    assert (rows, columns) == tuple(
        max(s // p, 1) for s, p in zip(size, (patch, patch) if isinstance(patch, int) else patch, strict=True)
    )
    # Pixel (y, x) lies in patch floor(y rows / H), floor(x columns / W), and a patch comes from one image.
    place = (torch.arange(size[0]) * rows // size[0])[:, None] * columns + torch.arange(size[1]) * columns // size[1]
    for cell in range(rows * columns):
        values = mixed.inputs[:, 0, place == cell]
        assert (values.amin(1) == values.amax(1)).all()
    torch.testing.assert_close(mixed.lam, mixed.mask.mean((1, 2, 3)))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (16, 31)])
def test_images_below_two_patches_stay_unmixed(size):
    images = torch.rand(5, 3, *size, generator=seeded(4))
    mixed = mixaug.create("tlalign")(images, signals=signals(5), generator=seeded(5))
    assert torch.equal(mixed.inputs, images)
    assert mixed.lam.tolist() == [1] * 5


@pytest.mark.parametrize("patch", [(8, 8), (4, 12)])
def test_the_models_own_patches_are_the_default(patch):
    images = index_images(30, 3, 32, 48)
    mixed = mixaug.create("tlalign")(images, signals=transformer(patch=patch), generator=seeded(6))
    named = mixaug.create("tlalign", patch_size=patch)(images, signals=signals(30), generator=seeded(6))
    assert torch.equal(mixed.mask, named.mask)
    usual = mixaug.create("tlalign")(images, signals=signals(30), generator=seeded(6))
    assert torch.equal(
        usual.mask, mixaug.create("tlalign", patch_size=16)(images, signals=signals(30), generator=seeded(6)).mask
    )


def test_one_step():
    model, images, labels = transformer(), torch.randn(6, 3, 32, 48, generator=seeded(7)), torch.arange(6) % 5
    policy = mixaug.create("tlalign", pairing="reversed", per="batch", ratio=0.4)
    loss, _ = mixaug.MixStep(model, policy, MixedCrossEntropy(label_smoothing=0.1))(images, labels, generator=seeded(8))
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())

    mixed = policy(images, labels, signals=model, generator=seeded(8))
    with policy.tap(model, mixed) as seen:
        outputs = model(mixed.inputs)
    final = policy.relabel(mixed, seen)
    blocks = [(b.query @ b.key.transpose(-2, -1) * b.scale).softmax(-1).mean(1) for b in seen.every_attention()]
    tokens = functional.mask_at_tokens(mixed.mask, (4, 6))
    torch.testing.assert_close(final.lam, functional.token_label_share(blocks, tokens, mixed.lam))
    assert (final.lam - mixed.lam).abs().max() > 1e-4
    torch.testing.assert_close(loss, MixedCrossEntropy(label_smoothing=0.1)(outputs, final))


def test_the_image_half_alone_needs_no_model():
    policy = mixaug.create("tlalign", labeling="area", patch_size=4)
    assert not policy.needs
    mixed = policy(torch.rand(4, 3, 32, 32), torch.arange(4), generator=seeded(9))
    assert torch.equal(mixed.lam, mixed.mask.mean((1, 2, 3)))


def test_known_by_name_and_bad_options():
    assert mixaug.describe("tlalign").needs == {"attention"}
    with pytest.raises(ValueError, match="as an integer >= 1"):
        mixaug.create("tlalign", patch_size=0)
    with pytest.raises(ValueError, match=r"patch_size as one number or one for each of 2 axes, got \(4, 4, 4\)"):
        mixaug.create("tlalign", patch_size=(4, 4, 4))
    with pytest.raises(ValueError, match=r"token_boxes clipped to size \(2, 2\)"):
        functional.tlalign(torch.rand(1, 3, 8, 8), torch.tensor([0]), torch.tensor([[0, 0, 8, 8]]), 4)
    with pytest.raises(ValueError, match="TLAlign needs attention of the model"):
        mixaug.create("tlalign")(torch.rand(2, 3, 8, 8))
