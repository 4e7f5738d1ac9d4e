"""ResizeMix beyond the contract: against torch's own interpolation, all three rules."""

import math

import pytest
import torch
from torch.nn import functional as nn

import mixaug
from helpers import seeded
from mixaug import functional as F
from mixaug.ops import layout
from mixaug.policies import resizemix as module


def slow_resizemix(images, partner, boxes, mode):
    result = images.clone()
    for i, j in enumerate(partner.tolist()):
        y0, x0, y1, x1 = boxes[i if len(boxes) > 1 else 0].tolist()
        if y1 > y0 and x1 > x0:
            options = {} if mode == "nearest" else {"align_corners": False}
            small = nn.interpolate(images[j : j + 1].float(), (y1 - y0, x1 - x0), mode=mode, **options)
            result[i, :, y0:y1, x0:x1] = (small.round() if images.dtype == torch.uint8 else small).to(images.dtype)[0]
    return result


@pytest.mark.parametrize("slices", [True, False], ids=["slices", "gather"])
@pytest.mark.parametrize("how", ["fresh", "out", "inplace"])
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("rows", [6, 1], ids=["per sample", "per batch"])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_both_bodies_equal_torch_interpolation(monkeypatch, slices, how, mode, rows, form, dtype):
    monkeypatch.setattr(layout, "SLICE_BYTES", 0 if slices else 1 << 40)
    images = torch.rand(6, 3, 13, 22, generator=seeded(0))
    images = (images * 255).round() if dtype == torch.uint8 else images
    images = images.to(dtype).to(memory_format=form)
    partner = torch.tensor([3, 3, 2, 0, 5, 4])
    boxes = torch.tensor([[0, 0, 13, 22], [2, 5, 3, 6], [1, 2, 8, 21], [4, 4, 4, 9], [0, 10, 12, 22], [3, 0, 9, 1]])
    boxes = boxes[2:3] if rows == 1 else boxes
    expected, own = slow_resizemix(images, partner, boxes, mode), images.clone()
    options = {"fresh": {}, "out": {"out": torch.empty_like(images)}, "inplace": {"inplace": True}}[how]
    got, lam = F.resizemix(own, partner, boxes, interpolation=mode, **options)
    torch.testing.assert_close(got, expected, rtol=0, atol={"nearest": 0, "bilinear": 1}[mode] * (
        1 if dtype == torch.uint8 else 1e-5))  # fmt: skip
    if dtype == torch.uint8:
        # Only what lies on a tie may be rounded to the other side.
        assert (got != expected).double().mean() < 2e-3
    assert got.is_contiguous(memory_format=form)
    assert torch.equal(own, got if how == "inplace" else images)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    torch.testing.assert_close(lam, (1 - areas / (13 * 22)).expand(6).float())


@pytest.mark.parametrize(("shape", "mode"), [((2, 3, 17), "linear"), ((2, 3, 6, 7, 9), "trilinear")], ids=str)
def test_signals_and_volumes_against_torch(shape, mode):
    images = torch.rand(shape, generator=seeded(1))
    size = shape[2:]
    low, high = [side // 4 for side in size], [side - 1 for side in size]
    box = torch.tensor([[*low, *high]])
    partner = torch.tensor([1, 0])
    window = (slice(None), slice(None), *(slice(a, b) for a, b in zip(low, high, strict=True)))
    inner = tuple(b - a for a, b in zip(low, high, strict=True))
    for name, torch_mode, options in (("bilinear", mode, {"align_corners": False}), ("nearest", "nearest", {})):
        expected = images.clone()
        expected[window] = nn.interpolate(images[partner], inner, mode=torch_mode, **options)
        got, _ = F.resizemix(images, partner, box, interpolation=name)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_gradient():
    images = torch.rand(3, 1, 5, 6, dtype=torch.float64, generator=seeded(2)).requires_grad_()
    boxes = torch.tensor([[0, 1, 4, 5], [1, 1, 3, 6], [2, 2, 2, 2]])
    for mode in ("nearest", "bilinear"):
        call = lambda x, mode=mode: F.resizemix(x, torch.tensor([1, 2, 0]), boxes, interpolation=mode)[0]  # noqa: E731
        assert torch.autograd.gradcheck(call, images)


def test_label_maps_are_never_interpolated():
    images = torch.rand(6, 3, 16, 16, generator=seeded(3))
    mixed = mixaug.create("resizemix", interpolation="bilinear")(images, generator=seeded(4))
    label_map = torch.randint(0, 2, (6, 16, 16), generator=seeded(5)) * 100
    for dtype in (torch.int64, torch.uint8):
        assert set(mixed.apply(label_map.to(dtype)).unique().tolist()) <= {0, 100}
    shares = mixed.apply(label_map // 100, num_classes=2)
    assert set(shares.unique().tolist()) == {0.0, 1.0}


def draw_plans(**options):
    return mixaug.create("resizemix", **options).draw(torch.zeros(20_000, 1, 32, 32), generator=seeded(6))


def test_mean_own_weight_of_the_papers_rule():
    # tau ~ U(0.1, 0.8) on 32 pixels: int(32 tau) is s for tau in [s / 32, (s + 1) / 32), and halves are whole pixels.
    expected = 0.0
    for side in range(32):
        chance = max(min(0.8, (side + 1) / 32) - max(0.1, side / 32), 0) / 0.7
        half = side // 2
        lengths = [min(centre + half, 32) - max(centre - half, 0) for centre in range(32)]
        expected += chance * (1 - (sum(lengths) / 32 / 32) ** 2)
    assert expected == pytest.approx(0.8413, abs=1e-4)
    area = draw_plans().area().double()
    assert abs(area.mean() - expected) < 4 * area.std() / math.sqrt(len(area))


def test_beta_rule_is_redrawn_outside_the_scope():
    plan = draw_plans(rule="beta", alpha=0.2)
    tau = (1 - plan.lam.double()).sqrt()
    assert tau.min() >= 0.1 - 1e-6
    assert tau.max() <= 0.8 + 1e-6
    assert (tau - draw_plans().lam.double()).std() > 0
    # Beta(0.2, 0.2) leaves the scope with a probability p; the rest of the mass is uniform.
    beta = torch.distributions.Beta(torch.tensor(0.2), torch.tensor(0.2)).sample((200_000,))
    outside = ((beta < 0.1) | (beta > 0.8)).double().mean()
    kept = beta[(beta >= 0.1) & (beta <= 0.8)].double()
    expected = outside * 0.45 + (1 - outside) * kept.mean()
    assert abs(tau.mean() - expected) < 4 * tau.std() / math.sqrt(len(tau)) + 0.003


def test_area_rule_puts_the_own_area_into_the_scope():
    lam = draw_plans(rule="area").lam.double()
    assert lam.min() >= 0.1 - 1e-6
    assert lam.max() <= 0.8 + 1e-6
    assert abs(lam.mean() - 0.45) < 4 * lam.std() / math.sqrt(len(lam))


def test_tiny_images_keep_themselves_where_the_box_is_empty():
    images = torch.rand(64, 1, 2, 2, generator=seeded(7))
    mixed = mixaug.create("resizemix", scope=(0.1, 0.4))(images, torch.arange(64), generator=seeded(8))
    assert torch.equal(mixed.inputs, images)
    assert (mixed.lam == 1).all()


@pytest.mark.parametrize(("options", "message"), [
    ({"rule": "side"}, "rule in"),
    ({"scope": (0.8, 0.1)}, "scope as"),
    ({"scope": (0.1, 1.1)}, "scope as"),
    ({"interpolation": "bicubic"}, r"interpolation in \['nearest', 'bilinear', 'bilinear_corners'\]"),
    ({"alpha": 0}, "expects alpha as a positive"),
])  # fmt: skip
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        mixaug.create("resizemix", **options)


def test_nearest_reads_the_pixels_that_torch_reads():
    # Every length of every side: one rounding too many in the quotient, and even a box of the whole image moves.
    for dtype, sides in ((torch.float32, [*range(1, 70), 224]), (torch.float64, [41, 150, 160, 224])):
        for side in sides:
            line = torch.arange(side, dtype=dtype)[None, None]
            for length in range(1, side + 1):
                place, sides_of_box = torch.arange(length)[None], torch.tensor([[length]])
                got, _, _ = module._sources(place, sides_of_box, side, "nearest", dtype)
                assert torch.equal(got[0].to(dtype), nn.interpolate(line, length, mode="nearest")[0, 0]), (side, length)


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.uint8], ids=str)
@pytest.mark.parametrize("size", [(41, 41), (1, 9), (1, 1), (150, 160), (31,), (6, 5, 7)], ids=str)
@pytest.mark.parametrize("rows", [6, 1], ids=["per sample", "per batch"])
def test_bodies_agree_for_every_size_and_dtype(size, dtype, mode, rows):
    dims = len(size)
    images = (torch.rand(6, 3, *size, generator=seeded(20)) * 255).to(dtype)
    partner = torch.tensor([3, 3, 2, 0, 5, 4])
    ends = [torch.randint(0, side + 1, (6, 2), generator=seeded(21 + d)).sort(1).values for d, side in enumerate(size)]
    boxes = torch.cat([torch.stack([end[:, 0] for end in ends], 1), torch.stack([end[:, 1] for end in ends], 1)], 1)
    boxes[0] = torch.tensor([0] * dims + list(size))
    boxes = boxes[:rows]
    gathered = module._paste_gather(images, partner, boxes, size, mode).double()
    sliced = module._paste_slices(images, partner, boxes, dims, mode, None, False).double()
    step = {torch.float32: 5e-3, torch.float64: 1e-9, torch.float16: 0.13, torch.uint8: 1.0}[dtype]
    assert (gathered - sliced).abs().max() <= (0 if mode == "nearest" else step)
    assert torch.equal(gathered[0], images[3].double()), "a box of the whole image is the partner itself"


def test_mean_own_weight_pixel_by_pixel():
    steps, whole, theory = 20_000, 32, 0.0
    for n in range(steps):
        half = int(whole * (0.1 + 0.7 * (n + 0.5) / steps)) // 2
        clipped = sum(min(c + half, whole) - max(c - half, 0) for c in range(whole)) / whole**2
        theory += (1 - clipped**2) / steps
    area = draw_plans().area().double()
    assert abs(area.mean() - theory) < 4 * area.std() / math.sqrt(len(area))


def test_mean_side_of_the_beta_rule():
    # With alpha 3: P(in scope) E[tau | in scope] + P(outside) 0.45.
    grid = (torch.arange(70_000, dtype=torch.float64) + 0.5) / 100_000 + 0.1
    density = 30 * (grid * (1 - grid)) ** 2 / 100_000
    theory = (density * grid).sum() + (1 - density.sum()) * 0.45
    tau = (1 - draw_plans(rule="beta", alpha=3.0).lam.double()).sqrt()
    assert abs(tau.mean() - theory) < 4 * tau.std() / math.sqrt(len(tau))


def test_an_alpha_that_nothing_draws_by_is_refused():
    with pytest.raises(ValueError, match=r"rule='uniform': leave out alpha=0.2, or choose rule='beta' or 'area'"):
        mixaug.create("resizemix", alpha=0.2)
    assert mixaug.create("resizemix", alpha=0.2, rule="beta").alpha == 0.2
