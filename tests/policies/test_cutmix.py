"""CutMix beyond the contract: boxes, areas, both bodies of the paste."""

import math

import pytest
import torch

import mixaug
from helpers import index_images, seeded
from mixaug import functional as F
from mixaug.ops import boxes as boxes_module
from mixaug.ops import layout
from mixaug.ops.boxes import box_mask, paste


def slow_cutmix(images, partner, boxes):
    result = images.clone()
    for i, j in enumerate(partner.tolist()):
        y0, x0, y1, x1 = boxes[i if len(boxes) > 1 else 0].tolist()
        result[i, :, y0:y1, x0:x1] = images[j, :, y0:y1, x0:x1]
    return result


def random_boxes(count, size, seed):
    corners = [torch.randint(0, side + 1, (count, 2), generator=seeded(seed + d)).sort(1).values
               for d, side in enumerate(size)]  # fmt: skip
    return torch.cat([torch.stack([c[:, 0] for c in corners], 1), torch.stack([c[:, 1] for c in corners], 1)], 1)


@pytest.mark.parametrize("slices", [True, False], ids=["slices", "where"])
@pytest.mark.parametrize("how", ["fresh", "out", "inplace"])
@pytest.mark.parametrize("rows", [6, 1], ids=["per sample", "per batch"])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_both_bodies_equal_the_slow_twin(monkeypatch, slices, how, rows, form, dtype):
    monkeypatch.setattr(layout, "SLICE_BYTES", 0 if slices else 1 << 40)
    monkeypatch.setattr(boxes_module, "reads_freely", lambda *tensors: slices)
    images = torch.randint(0, 256, (6, 3, 13, 17), generator=seeded(0)).to(dtype).to(memory_format=form)
    partner, boxes = torch.tensor([3, 3, 2, 0, 5, 4]), random_boxes(rows, (13, 17), 1)
    expected, own = slow_cutmix(images, partner, boxes), images.clone()
    options = {"fresh": {}, "out": {"out": torch.empty_like(images)}, "inplace": {"inplace": True}}[how]
    got = paste(own, partner, boxes, (13, 17), **options)
    assert torch.equal(got, expected)
    assert got.is_contiguous(memory_format=form)
    assert torch.equal(own, expected if how == "inplace" else images)


def test_large_images_take_slices_and_small_ones_do_not():
    assert layout.prefers_slices(torch.zeros(2, 3, 224, 224))
    assert not layout.prefers_slices(torch.zeros(2, 3, 32, 32))
    assert not layout.prefers_slices(torch.zeros(2, 3, 224, 224, device="meta"))
    assert not layout.prefers_slices(torch.zeros(2, 3, 224, 224, requires_grad=True))


def test_full_empty_and_own_boxes():
    images = torch.randn(4, 3, 8, 6, generator=seeded(2))
    partner = torch.tensor([1, 2, 3, 3])
    boxes = torch.tensor([[0, 0, 8, 6], [3, 3, 3, 3], [0, 2, 8, 4], [1, 1, 5, 5]])
    mixed, lam = F.cutmix(images, partner, boxes)
    assert torch.equal(mixed[0], images[1])
    assert torch.equal(mixed[1], images[1])
    assert torch.equal(mixed[3], images[3])
    torch.testing.assert_close(lam, torch.tensor([0.0, 1.0, 2 / 3, 1 - 16 / 48]))


def test_hidden_nan_stays_hidden():
    images = torch.zeros(2, 1, 4, 4)
    images[1, :, 2:] = float("nan")
    mixed, _ = F.cutmix(images, torch.tensor([1, 0]), torch.tensor([[0, 0, 2, 4], [2, 0, 4, 4]]))
    assert mixed.isfinite().all()


def test_every_pixel_has_one_parent_and_lam_counts_them():
    images = index_images(8, 3, 13, 17)
    mixed = mixaug.create("cutmix")(images, torch.arange(8), generator=seeded(3))
    own = mixed.inputs == images
    assert (own | (mixed.inputs == images[mixed.partner])).all()
    moved = mixed.partner != torch.arange(8)
    torch.testing.assert_close(own[moved, 0].double().mean((1, 2)).float(), mixed.lam[moved])
    assert torch.equal(mixed.mask[:, 0][moved].bool(), own[moved, 0])


def test_mean_area_of_the_clipped_box():
    # Uniform centre, 1 - lam ~ U(0, 1): E[(r - r**2 / 4) ** 2] = 1/2 - 1/5 + 1/48 with r = sqrt(1 - lam).
    plan = mixaug.create("cutmix").draw(torch.zeros(20_000, 1, 1, 1).expand(-1, 1, 1024, 1024), generator=seeded(4))
    pasted = 1 - plan.area().double()
    error = pasted.std() / math.sqrt(len(pasted))
    assert abs(pasted.mean() - (1 / 2 - 1 / 5 + 1 / 48)) < 4 * error + 2 / 1024


def test_mean_own_weight_at_32_pixels():
    images = torch.zeros(20_000, 1, 32, 32)
    lam = mixaug.create("cutmix")(images, generator=seeded(5)).lam.double()
    assert abs(lam.mean() - 0.70) < 4 * lam.std() / math.sqrt(len(lam)) + 0.005


def test_drawn_ratio_as_label_on_request():
    images = torch.zeros(64, 1, 16, 16)
    plan = mixaug.create("cutmix", labeling="ratio").draw(images, generator=seeded(6))
    assert torch.equal(plan.weights[:, 0], plan.lam)
    assert not torch.equal(plan.area(), plan.lam)


def test_minmax_boxes_lie_inside_with_sides_in_range():
    policy = mixaug.create("cutmix", minmax=(0.2, 0.8))
    plan = policy.draw(torch.zeros(5000, 1, 20, 30), generator=seeded(7))
    for d, side in enumerate((20, 30)):
        cut = plan.boxes[:, 2 + d] - plan.boxes[:, d]
        assert cut.min() == int(side * 0.2)
        assert cut.max() == int(side * 0.8) - 1
        assert plan.boxes[:, d].min() == 0
        assert plan.boxes[:, 2 + d].max() == side
    torch.testing.assert_close(plan.lam, plan.area())


@pytest.mark.parametrize("size", [(9,), (9, 11), (7, 9, 11)], ids=str)
def test_share_of_the_box_in_any_number_of_axes(size):
    centers = torch.tensor([[side // 2 for side in size]])
    for lam in (0.1, 0.5, 0.9):
        boxes = F.cutmix_boxes(torch.tensor([lam], dtype=torch.float64), centers, size)
        for d, side in enumerate(size):
            half = int(side * (1 - lam) ** (1 / len(size))) // 2
            assert boxes[0, d] == max(0, side // 2 - half)
            assert boxes[0, len(size) + d] == min(side, side // 2 + half)
    assert box_mask(boxes, size).shape == (1, *size)


@pytest.mark.parametrize(("change", "message"), [
    ({"boxes": torch.tensor([[0, 0, 9, 6]])}, "clipped to size"),
    ({"boxes": torch.tensor([[4, 0, 2, 6]])}, "lower corner first"),
    ({"boxes": torch.tensor([[-1, 0, 2, 6]])}, "clipped to size"),
    ({"boxes": torch.zeros(3, 4, dtype=torch.int64)}, "2 boxes or one, got 3"),
    ({"boxes": torch.zeros(2, 4)}, r"boxes \(2, 4\) int64"),
    ({"images": torch.zeros(2, 48)}, r"images \(B, C, L\) or \(B, C, H, W\)"),
])  # fmt: skip
def test_bad_arguments(change, message):
    arguments = {
        "images": torch.zeros(2, 3, 8, 6), "partner": torch.tensor([1, 0]), "boxes": torch.tensor([[0, 0, 8, 6]]),
    } | change  # fmt: skip
    with pytest.raises(ValueError, match=message):
        F.cutmix(**arguments)


def test_bad_options():
    with pytest.raises(ValueError, match="minmax as"):
        mixaug.create("cutmix", minmax=(0.8, 0.2))
    with pytest.raises(ValueError, match="expects centers"):
        F.cutmix_boxes(torch.tensor([0.5]), torch.tensor([[1, 2, 3]]), (8, 8))


@pytest.mark.parametrize("options", [{"alpha": 0.2}, {"ratio": 0.5}])
def test_a_lam_that_minmax_does_not_use_is_refused(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=rf"minmax=\(0.2, 0.8\), not from lam: leave out {name}={value}, or minmax"):
        mixaug.create("cutmix", minmax=(0.2, 0.8), **options)
