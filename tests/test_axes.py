"""Layouts: where the channels are, and refusals where a shape looks as if nobody had said so."""

import pytest
import torch

import mixaug
from helpers import seeded
from mixaug import DeviceLoader, MixCollate, MixStep
from mixaug.axes import suspected_layout
from mixaug.data import ArrayData
from mixaug.loading import ResidentLoader, crop_and_flip
from mixaug.losses import MixedCrossEntropy

CUTS = [
    name
    for name in mixaug.list_policies()
    if not (made := mixaug.create(name)).needs and made.spatial is not None and not made.wants_metadata
]
LABELS = torch.arange(8)


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        *(((8, 32, 32, 3), "NHWC"), ((8, 28, 28, 1), "NHWC"), ((8, 16, 40, 4), "NHWC"), ((8, 100, 3), "NLC")),
        *(((8, 100, 1), "NLC"), ((8, 16, 3, 32, 32), "NTCHW"), ((8, 4, 3, 32, 32), "NTCHW")),
        *(((8, 16, 1, 32, 32), "NTCHW"), ((8, 16, 32, 32, 3), "NDHWC"), ((8, 4, 32, 32, 3), "NDHWC")),
        *(((8, 3, 32, 32), None), ((8, 1, 28, 28), None), ((8, 64, 8, 8), None), ((8, 3, 4, 4), None)),
        *(((8, 3, 100), None), ((8, 3, 16, 32, 32), None), ((8, 1, 3, 32, 32), None), ((8, 3, 4, 32, 32), None)),
        *(((8, 5), None), ((8, 6, 32, 12), None), ((8, 3, 32, 3), None)),
    ],
)
def test_shapes_that_look_like_another_layout(shape, layout):
    assert suspected_layout(shape) == layout
    cutmix = mixaug.create("cutmix")
    if layout is None:
        if len(shape) > 2:
            cutmix(torch.rand(shape), LABELS)
        return
    with pytest.raises(ValueError, match=f"which looks like {layout}; say layout='{layout}'"):
        cutmix(torch.rand(shape), LABELS)
    # Whoever says so is believed, and a blend that knows no place of channels does not ask.
    assert cutmix(torch.rand(shape), LABELS, layout={3: "NCL", 4: "NCHW", 5: "NCDHW"}[len(shape)]) is not None
    mixaug.create("mixup")(torch.rand(shape), LABELS)
    mixaug.Sometimes("mixup", 0.5)(torch.rand(shape), LABELS)


@pytest.mark.parametrize("name", [*CUTS, "mixup"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_channels_last_images_are_mixed_like_channels_first_ones(name, dtype):
    images = torch.randint(256, (8, 16, 24, 3), generator=seeded(0)).to(dtype)
    policy, first = mixaug.create(name), images.permute(0, 3, 1, 2)
    expected = policy(first, LABELS, generator=seeded(1))
    got = policy(images, LABELS, generator=seeded(1), layout="NHWC")
    assert got.inputs.shape == images.shape
    assert torch.equal(got.inputs.permute(0, 3, 1, 2), expected.inputs)
    assert torch.equal(got.weights, expected.weights)
    assert torch.equal(got.apply(images), got.inputs)
    # Every colour of a pixel comes from one image, so the label's share is that of the pixels.
    if got.mask is not None:
        assert got.mask.shape == (8, 1, 16, 24)
    if name == "cutmix":
        own, out = images.clone(), torch.empty_like(images)
        plan = got.plan
        assert torch.equal(policy.apply(images, plan, out=out), got.inputs)
        assert torch.equal(out, got.inputs)
        policy.apply(own, plan, inplace=True)
        assert torch.equal(own, got.inputs)
        shares = got.apply(LABELS[:, None, None].expand(8, 16, 24).contiguous(), num_classes=8)
        assert torch.equal(shares.argmax(1), got.apply(LABELS[:, None, None].expand(8, 16, 24).contiguous()))


def test_clips_are_cut_through_frames_rows_and_columns():
    clips = LABELS.float()[:, None, None, None, None].expand(8, 6, 3, 16, 16).contiguous()
    mixed = mixaug.create("cutmix")(clips, LABELS, generator=seeded(0), layout="NTCHW")
    assert (mixed.inputs == mixed.inputs[:, :, :1]).all()
    own = (mixed.inputs == clips)[:, :, 0].float().mean((1, 2, 3))
    apart = mixed.partner != LABELS
    assert apart.any()
    torch.testing.assert_close(own[apart], mixed.lam[apart])
    assert mixed.mask.shape == (8, 1, 6, 16, 16)


def test_layouts_go_with_loaders_and_steps():
    cutmix, images = mixaug.create("cutmix"), torch.randint(256, (8, 16, 24, 3), generator=seeded(0)).to(torch.uint8)
    collated = MixCollate(cutmix, layout="NHWC", seed=0)(list(zip(images, LABELS, strict=True)))
    assert torch.equal(collated.apply(images), collated.inputs)
    loader = DeviceLoader([(images, LABELS)], "cpu", cutmix, mean=(0.1, 0.2, 0.3), std=0.5, layout="NHWC", seed=0)
    first = DeviceLoader([(images.permute(0, 3, 1, 2), LABELS)], "cpu", cutmix, mean=(0.1, 0.2, 0.3), std=0.5, seed=0)
    got, expected = next(iter(loader)), next(iter(first))
    assert torch.equal(got.inputs.permute(0, 3, 1, 2), expected.inputs)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16 * 24 * 3, 8))
    floats = images.float()
    loss, _ = MixStep(model, cutmix, MixedCrossEntropy(), layout="NHWC")(floats, LABELS, generator=seeded(1))
    mixed = cutmix(floats, LABELS, generator=seeded(1), layout="NHWC")
    torch.testing.assert_close(loss, MixedCrossEntropy()(model(mixed.inputs), mixed))
    maps = {"image": floats, "map": LABELS[:, None, None].expand(8, 16, 24), "more": floats[..., :1]}
    both = cutmix(maps, LABELS, keys=["image", "map", "more"], layout="NHWC").inputs
    assert both["map"].shape == (8, 16, 24)
    assert torch.equal(both["more"], both["image"][..., :1])


def test_wrong_layouts_are_refused():
    cutmix, images = mixaug.create("cutmix"), torch.rand(8, 16, 24, 3)
    for wrong in ("HWC", "NHW", "NHHC", "nhwc", "channels_last", 4):
        with pytest.raises(ValueError, match="layout as the letters of the axes"):
            cutmix(images, LABELS, layout=wrong)
        with pytest.raises(ValueError, match="layout as the letters of the axes"):
            MixCollate(cutmix, layout=wrong)
        with pytest.raises(ValueError, match="layout as the letters of the axes"):
            MixStep(torch.nn.Identity(), cutmix, MixedCrossEntropy(), layout=wrong)
    with pytest.raises(ValueError, match=r"a tensor in layout 'NTCHW', got shape \(8, 16, 24, 3\)"):
        cutmix(images, LABELS, layout="NTCHW")
    with pytest.raises(ValueError, match="PuzzleMix looks at the model"):
        mixaug.create("puzzlemix")(images, LABELS, signals=torch.nn.Identity(), layout="NHWC")
    with pytest.raises(ValueError, match="Pooled expects inputs with the channels second"):
        mixaug.Pooled("cutmix", images, LABELS)(images, LABELS, layout="NHWC")
    with pytest.raises(ValueError, match="which looks like NHWC"):
        mixaug.Pooled("cutmix", images, LABELS)(images, LABELS)


def test_data_held_in_memory_says_where_channels_belong():
    images = torch.zeros(8, 32, 32, 3, dtype=torch.uint8)
    for refused in (
        lambda: ResidentLoader(images, LABELS, 4, crop_padding=4),
        lambda: ResidentLoader(images, LABELS, 4, flip=True),
        lambda: crop_and_flip(images, LABELS),
        lambda: ArrayData(images, LABELS),
    ):
        with pytest.raises(ValueError, match=r"\(N, C, H, W\).*looks like NHWC; .*permute\(0, 3, 1, 2\)"):
            refused()
