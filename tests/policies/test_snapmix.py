"""SnapMix beyond the contract: both bodies against torch's interpolation, the rules of the weights, a step by hand."""

import copy
import math

import pytest
import torch
from torch import nn

import mixaug
from helpers import seeded
from mixaug import functional as F
from mixaug import labeling, models
from mixaug.losses import MixedCrossEntropy
from mixaug.ops import layout
from mixaug.plan import Blend
from mixaug.policies import snapmix as module

PARTNER = torch.tensor([3, 3, 2, 0, 5, 4])
# The whole image, one pixel, one line, one column, a plain box, an empty one.
BOXES = torch.tensor([[0, 0, 13, 22], [2, 5, 3, 6], [1, 2, 8, 21], [4, 4, 5, 9], [3, 0, 9, 1], [7, 7, 7, 9]])
SOURCES = torch.tensor([[1, 2, 8, 21], [0, 0, 13, 22], [4, 4, 5, 9], [0, 0, 13, 22], [2, 5, 3, 6], [1, 1, 4, 4]])


def slow_snapmix(images, partner, boxes, partner_boxes, cam, labels=None):
    mixed, weights = images.clone(), torch.zeros(len(images), 2)
    for i, j in enumerate(partner.tolist()):
        y0, x0, y1, x1 = boxes[i % len(boxes)].tolist()
        v0, u0, v1, u1 = partner_boxes[i % len(partner_boxes)].tolist()
        if min(y1 - y0, x1 - x0, v1 - v0, u1 - u0) < 1:
            weights[i] = torch.tensor([1.0, 0.0])
            continue
        crop = images[j : j + 1, :, v0:v1, u0:u1].float()
        patch = nn.functional.interpolate(crop, (y1 - y0, x1 - x0), mode="bilinear", align_corners=True)[0]
        mixed[i, :, y0:y1, x0:x1] = (patch.round() if images.dtype == torch.uint8 else patch).to(images.dtype)
        area = (y1 - y0) * (x1 - x0) / images[0, 0].numel()
        own = 1 - cam[i, y0:y1, x0:x1].sum() / cam[i].sum()
        other = cam[j, v0:v1, u0:u1].sum() / cam[j].sum()
        if labels is not None and labels[i] == labels[j]:
            own, other = own + other, own + other
        weights[i, 0] = 1 - area if own.isnan() else own
        weights[i, 1] = area if other.isnan() else other
    return mixed, weights


@pytest.mark.parametrize("slices", [True, False], ids=["slices", "gather"])
@pytest.mark.parametrize("how", ["fresh", "out", "inplace"])
@pytest.mark.parametrize("rows", [(6, 6), (1, 1), (1, 6), (6, 1)], ids=str)
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.bfloat16], ids=str)
def test_both_bodies_equal_torch_interpolation(monkeypatch, slices, how, rows, form, dtype):
    monkeypatch.setattr(layout, "SLICE_BYTES", 0 if slices else 1 << 40)
    if not slices:
        monkeypatch.setattr(module, "reads_freely", lambda *tensors: False)
        monkeypatch.setattr("mixaug.ops.boxes.reads_freely", lambda *tensors: False)
    images = torch.rand(6, 3, 13, 22, generator=seeded(0))
    images = (images * 255).round() if dtype == torch.uint8 else images
    images = images.to(dtype).to(memory_format=form)
    cam = torch.rand(6, 13, 22, generator=seeded(1))
    cam[4] = torch.nan
    boxes = BOXES if rows[0] == 6 else BOXES[2:3]
    sources = SOURCES if rows[1] == 6 else SOURCES[:1]
    labels = torch.tensor([0, 1, 2, 0, 3, 3])
    expected, expected_weights = slow_snapmix(images, PARTNER, boxes, sources, cam, labels)
    own = images.clone()
    options = {"fresh": {}, "out": {"out": torch.empty_like(images)}, "inplace": {"inplace": True}}[how]
    got, weights = F.snapmix(own, PARTNER, boxes, sources, cam, labels, **options)
    tolerance = {torch.float32: 1e-6, torch.uint8: 1, torch.bfloat16: 2**-8}[dtype]
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(weights, expected_weights, rtol=0, atol=1e-6)
    assert got.dtype == dtype
    assert got.is_contiguous(memory_format=form)
    assert torch.equal(own, got if how == "inplace" else images)
    if how == "out":
        assert got is options["out"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_pair_of_sides_reads_where_torch_reads(dtype):
    side = 24
    line = torch.rand(1, 1, side, dtype=dtype, generator=seeded(2))
    for source in range(1, side + 1):
        low = side - source
        for length in range(1, side + 1):
            crop = line[..., low:]
            expected = nn.functional.interpolate(crop, length, mode="linear", align_corners=True)[0, 0]
            ends, place = torch.tensor([[low, side]]), torch.arange(length)[None]
            lower, upper, weight = module._sources(place, torch.tensor([[length]]), ends, side, False, dtype)
            got = line[0, 0, lower[0]].lerp(line[0, 0, upper[0]], weight[0])
            torch.testing.assert_close(got, expected, rtol=0, atol=4e-6 if dtype == torch.float32 else 1e-13)


def test_corners_meet_corners_and_label_maps_stay_label_maps():
    images = torch.arange(2 * 16 * 16.0).reshape(2, 1, 16, 16)
    boxes, sources = torch.tensor([[2, 3, 9, 12]]), torch.tensor([[1, 0, 15, 7]])
    plan = module.SnapPaste(
        partner=torch.tensor([1, 0]), lam=torch.zeros(1), size=(16, 16), boxes=boxes, partner_boxes=sources
    )
    mixed, classes = plan.mix(images), plan.mix(images[:, 0].long())
    for y, v in ((2, 1), (8, 14)):
        for x, u in ((3, 0), (11, 6)):
            assert mixed[0, 0, y, x] == images[1, 0, v, u]
            assert classes[0, y, x] == images[1, 0, v, u]
    inside = classes[0, 2:9, 3:12]
    assert set(inside.flatten().tolist()) <= set(images[1, 0, 1:15, 0:7].flatten().long().tolist())
    # Nearest: never further than half a pixel, along each axis, from where the images are read.
    assert ((mixed[0, 0, 2:9, 3:12] - inside).abs() <= 0.5 * 16 + 0.5).all()
    small = (images[:, 0] % 7).to(torch.uint8)
    assert plan.mix(small).dtype == torch.uint8
    shares = plan.mix_label_map(small.long(), 7)
    assert torch.equal(shares.argmax(1), plan.mix(small).long())
    assert torch.equal(shares.sum(1), torch.ones(2, 16, 16))


def test_gradient():
    images = torch.rand(3, 1, 5, 6, dtype=torch.float64, generator=seeded(3)).requires_grad_()
    cam = torch.rand(3, 5, 6, generator=seeded(4))
    boxes = torch.tensor([[0, 1, 4, 5], [1, 1, 2, 6], [2, 2, 2, 2]])
    sources = torch.tensor([[1, 0, 5, 6], [0, 2, 3, 3], [0, 0, 5, 6]])
    assert torch.autograd.gradcheck(lambda x: F.snapmix(x, torch.tensor([1, 2, 0]), boxes, sources, cam)[0], images)


def test_weights_by_hand():
    # Four quarters of an 8 x 8 map with the shares 0.1, 0.2, 0.3 and 0.4; the partner's map is the reverse.
    quarters = torch.tensor([[[0.1, 0.2], [0.3, 0.4]], [[0.4, 0.3], [0.2, 0.1]]])
    cam = quarters.repeat_interleave(4, 1).repeat_interleave(4, 2)
    partner = torch.tensor([1, 0])
    top_left, bottom = torch.tensor([[0, 0, 4, 4]]), torch.tensor([[4, 0, 8, 8]])
    expected = torch.tensor([[0.9, 0.3], [0.6, 0.7]])
    torch.testing.assert_close(F.snapmix_weights(cam, partner, top_left, bottom), expected)
    torch.testing.assert_close(F.snapmix_weights(7 * cam, partner, top_left, bottom, torch.tensor([0, 1])), expected)
    same = F.snapmix_weights(cam, partner, top_left, bottom, torch.tensor([5, 5]))
    torch.testing.assert_close(same, torch.tensor([[1.2, 1.2], [1.3, 1.3]]))
    # Its own partner: the same label, whatever was drawn.
    alone = F.snapmix_weights(cam, torch.tensor([0, 1]), top_left, bottom, torch.tensor([0, 1]))
    torch.testing.assert_close(alone, torch.tensor([[1.6, 1.6], [0.9, 0.9]]))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 0.0], ids=str)
def test_a_map_that_says_nothing_gives_way_to_the_area(bad):
    cam = torch.rand(4, 8, 8, generator=seeded(5)) + 0.1
    cam[1] = bad
    if bad == torch.inf:
        cam[1, 2:] = 1.0
    partner, boxes, sources = torch.tensor([1, 2, 3, 0]), torch.tensor([[0, 0, 4, 4]]), torch.tensor([[2, 2, 8, 8]])
    weights = F.snapmix_weights(cam, partner, boxes, sources, torch.tensor([0, 0, 1, 2]))
    good = F.snapmix_weights(cam.nan_to_num(1, 1, 1).clamp(min=1e-3), partner, boxes, sources)
    assert weights.isfinite().all()
    # Sample 0 has the same label as its partner 1, sample 1 has the bad map itself: in both the area of the filled box.
    torch.testing.assert_close(weights[0], torch.tensor([0.75, 0.25]))
    torch.testing.assert_close(weights[1], torch.stack([torch.tensor(0.75), good[1, 1]]))
    torch.testing.assert_close(weights[2:], good[2:])


def test_maps_that_are_constant_but_for_rounding_are_constant():
    features = torch.full((3, 64, 4, 4), 0.7)
    features[0] = torch.rand(64, 4, 4, generator=seeded(6))
    features[2] *= 1 + 1e-7 * torch.rand(64, 4, 4, generator=seeded(7))
    cam = F.class_activation_map(features, torch.rand(5, 64, generator=seeded(8)), torch.tensor([0, 1, 2]), (16, 16))
    assert cam.isnan().flatten(1).all(1).tolist() == [False, True, True]
    weights = F.snapmix_weights(
        cam, torch.tensor([1, 2, 0]), torch.tensor([[0, 0, 8, 8]]), torch.tensor([[4, 4, 8, 8]])
    )
    torch.testing.assert_close(weights[1], torch.tensor([0.75, 0.25]))


def test_empty_boxes_leave_the_sample_alone():
    images = torch.rand(6, 1, 8, 8, generator=seeded(9))
    cam = torch.rand(6, 8, 8, generator=seeded(10))
    full, empty = torch.tensor([[1, 1, 6, 6]]), torch.tensor([[8, 3, 8, 8]])
    labels = torch.zeros(6, dtype=torch.int64)
    for boxes, sources in ((empty, full), (full, empty), (empty, empty), (full.expand(6, 4), empty)):
        mixed, weights = F.snapmix(images, PARTNER, boxes, sources, cam, labels)
        assert torch.equal(mixed, images)
        assert torch.equal(weights, torch.tensor([[1.0, 0.0]]).expand(6, 2))
    # Images of one pixel have no other boxes.
    tiny = mixaug.create("snapmix")(images[..., :1, :1], labels, signals=mixaug.Signals(cam=cam), generator=seeded(0))
    assert torch.equal(tiny.inputs, images[..., :1, :1])
    assert tiny.lam.tolist() == [1.0] * 6


def test_dense_labels_are_the_same_where_their_rows_are():
    cam = torch.rand(4, 8, 8, generator=seeded(11))
    partner, boxes, sources = torch.tensor([1, 0, 3, 2]), torch.tensor([[0, 0, 4, 4]]), torch.tensor([[2, 2, 8, 8]])
    ids = torch.tensor([1, 1, 2, 0])
    smoothed = 0.9 * nn.functional.one_hot(ids, 3) + 0.1 / 3
    by_id = F.snapmix_weights(cam, partner, boxes, sources, ids)
    assert torch.equal(F.snapmix_weights(cam, partner, boxes, sources, smoothed), by_id)
    without = F.snapmix_weights(cam, partner, boxes, sources)
    assert not torch.equal(without, by_id)
    near = smoothed.clone()
    near[1] = torch.tensor([0.3, 0.6, 0.1])
    assert torch.equal(F.snapmix_weights(cam, partner, boxes, sources, near), without)


@pytest.mark.parametrize("per", ["sample", "batch", "pair"])
def test_weights_stay_in_their_range(per):
    cam = torch.rand(64, 5, 5, generator=seeded(12)) ** 8
    labels = torch.arange(64) % 2
    images, g = torch.zeros(64, 1, 20, 30), seeded(13)
    for _ in range(20):
        mixed = mixaug.create("snapmix", alpha=1.0, per=per)(
            images, labels, signals=mixaug.Signals(cam=cam), generator=g
        )
        same = labels == labels[mixed.partner]
        assert ((mixed.weights >= 0) & (mixed.weights <= 2)).all()
        assert (mixed.weights[~same] <= 1).all()
        pasted = (mixed.plan.area() < 1).expand(64)
        assert torch.equal(mixed.weights[same & pasted, 0], mixed.weights[same & pasted, 1])
        assert (mixed.weights[same & pasted] > 1).any() or per == "batch"
        assert mixed.plan.boxes.shape[0] == (1 if per == "batch" else 64)
        if per == "pair":
            assert torch.equal(mixed.plan.boxes, mixed.plan.boxes[mixed.partner])
            assert torch.equal(mixed.plan.partner_boxes, mixed.plan.partner_boxes[mixed.partner])


@pytest.mark.parametrize("alpha", [1.0, 5.0])
def test_areas_of_the_two_boxes_and_their_independence(alpha):
    whole, steps = (24, 40), 4000
    policy = mixaug.create("snapmix", alpha=alpha, per="sample", labeling="area")
    plan = policy.draw(torch.zeros(20_000, 1, *whole), generator=seeded(14))
    # E[area] = E over lam of the product over the axes of the mean clipped side, over all centres.
    lam = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    density = (lam * (1 - lam)) ** (alpha - 1)
    share = torch.ones(steps, dtype=torch.float64)
    for side in whole:
        half = ((1 - lam).sqrt() * side).long()[:, None] // 2
        center = torch.arange(side)
        share *= ((center + half).clamp(max=side) - (center - half).clamp(min=0)).double().mean(1) / side
    theory = ((share * density).sum() / density.sum()).item()
    sides = plan.partner_boxes[:, 2:] - plan.partner_boxes[:, :2]
    area = sides.prod(1).double() / math.prod(whole)
    assert abs(area.mean() - theory) < 4 * area.std() / math.sqrt(len(area))
    filled = 1 - plan.area().double()
    # Where the partner's box is empty nothing is filled.
    assert (filled[area == 0] == 0).all()
    assert abs(filled[area > 0].mean() - theory) < 4 * filled.std() / math.sqrt(len(area)) + 1e-3
    together = torch.corrcoef(torch.stack([filled, area])[:, area > 0])[0, 1]
    assert abs(together) < 4 / math.sqrt(len(area))


IMAGES = torch.randn(8, 3, 32, 32, generator=seeded(20))
LABELS = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])


def small_model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return models.create("cifar_resnet8", num_classes=4)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_one_training_step_by_hand(mode):
    model = small_model()
    twin = copy.deepcopy(model)
    step = mixaug.MixStep(model, mixaug.create("snapmix", mode=mode, alpha=1.0), MixedCrossEntropy())
    loss, scalars = step(IMAGES, LABELS, generator=seeded(3))
    loss.backward()
    assert torch.equal(scalars["loss"], loss.detach())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

    twin.train(mode == "train")
    with torch.no_grad():
        features = twin.forward_features(IMAGES)
        twin(IMAGES) if mode == "eval" else None
    twin.train()
    cam = F.class_activation_map(features, twin.get_classifier().weight, LABELS, (32, 32))
    plan = step.policy.draw(IMAGES, LABELS, signals=mixaug.Signals(cam=cam), generator=seeded(3))
    assert not torch.equal(plan.boxes, plan.partner_boxes)
    mixed, weights = slow_snapmix(IMAGES, plan.partner, plan.boxes, plan.partner_boxes, cam, LABELS)
    assert weights.sum(1).std() > 0
    outputs = twin(mixed)
    losses = [nn.functional.cross_entropy(outputs, y, reduction="none") for y in (LABELS, LABELS[plan.partner])]
    torch.testing.assert_close(loss, (weights[:, 0] * losses[0] + weights[:, 1] * losses[1]).mean())
    # In training mode the batch statistics have seen the clean images and the mixed ones, else the mixed ones alone.
    for got, expected in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_step_under_autocast(form):
    step = mixaug.MixStep(small_model(), mixaug.create("snapmix", per="sample"), MixedCrossEntropy())
    plain, _ = copy.deepcopy(step)(IMAGES, LABELS, generator=seeded(4))
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = step(IMAGES.to(memory_format=form), LABELS, generator=seeded(4))
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, plain, rtol=0.05, atol=0.05)


class Blending(mixaug.Policy):
    """A policy of which nobody said that it has no mask."""

    def sample(self, batch, partner, draws):
        return Blend(partner=partner, lam=self.ratio(draws).float())


def assert_cam_labels_equal_a_loop(images, labels, cam):
    """Any mask, and a blend without one: what is seen of each map, sample by sample."""
    maps = mixaug.Signals(cam=cam).cam((12, 12))
    for name in ("fmix", "gridmix", "smoothmix", "a blend", "resizemix"):
        policy = Blending(labeling="cam") if name == "a blend" else mixaug.create(name, labeling="cam")
        mixed = policy(images, labels, signals=mixaug.Signals(cam=cam), generator=seeded(28))
        for i, (own, other) in enumerate(mixed.weights.tolist()):
            partner, area = int(mixed.partner[i]), float(mixed.plan.area().expand(6)[i])
            mask = torch.full((12, 12), area) if mixed.mask is None else mixed.mask[i, 0]
            seen = 1.0 if name == "resizemix" else float((maps[partner] * (1 - mask)).sum())
            expected = float((maps[i] * mask).sum()), seen
            if partner == i:
                expected = (sum(expected),) * 2
            if area == 1:
                expected = (1.0, 0.0)
            assert (own, other) == pytest.approx(expected, abs=1e-5), (name, i)


def test_cam_labels_without_a_map_count_the_area_and_do_not_spread():
    images, labels = torch.rand(4, 3, 8, 8, generator=seeded(29)), torch.arange(4)
    cam = torch.rand(4, 8, 8, generator=seeded(30)) + 0.1
    cam[1] = 1.0
    policy = mixaug.create("fmix", labeling="cam", pairing="shift")
    mixed = policy(images, labels, signals=mixaug.Signals(cam=cam), generator=seeded(31))
    area = mixed.plan.area()
    torch.testing.assert_close(mixed.weights[1, 0], area[1])
    torch.testing.assert_close(mixed.weights[2, 1], 1 - area[2])
    maps = mixaug.Signals(cam=cam).cam((8, 8))
    torch.testing.assert_close(mixed.weights[2, 0], (maps[2] * mixed.mask[2, 0]).sum())
    assert mixed.weights.isfinite().all()


def test_cam_labels_say_what_they_cannot_weigh():
    images = torch.rand(4, 3, 8, 8)
    with pytest.raises(ValueError, match="weighs pairs; these samples have"):
        features = mixaug.Signals(features=torch.rand(4, 8, 4, 4))
        plan = mixaug.create("adautomix", n_images=3, channels=8).draw(images, signals=features)
        batch = mixaug.batch.Batch(images, None, mixaug.Signals(cam=torch.rand(4, 8, 8)))
        labeling.ClassActivation()(plan, batch)
    with pytest.raises(ValueError, match=r"expects images \(B, C, H, W\)"):
        mixaug.create("cutmix", labeling="cam")(torch.rand(4, 3, 8), signals=mixaug.Signals(cam=torch.rand(4, 8, 8)))


def test_the_old_name_of_the_labeling_still_works():
    with pytest.warns(DeprecationWarning, match="ClassActivation"):
        from mixaug.policies.snapmix import ActivationShare
    assert ActivationShare is labeling.ClassActivation


def test_other_labelings_and_other_policies():
    images, labels = torch.rand(6, 3, 12, 12, generator=seeded(21)), torch.arange(6)
    free = mixaug.create("snapmix", labeling="area")
    assert free.needs == frozenset()
    mixed = free(images, labels, generator=seeded(22))
    torch.testing.assert_close(mixed.weights.sum(1), torch.ones(6))
    torch.testing.assert_close(mixed.lam, mixed.mask.mean((1, 2, 3)))
    assert mixaug.create("snapmix").needs == {"cam"}
    with pytest.raises(ValueError, match=r"SnapMix needs cam of the model"):
        mixaug.create("snapmix")(images, labels)

    cam = torch.rand(6, 12, 12, generator=seeded(23)) + 0.1
    cut = mixaug.create("cutmix", pairing="shift", labeling="cam")
    mixed = cut(images, labels, signals=mixaug.Signals(cam=cam), generator=seeded(24))
    plain = mixaug.create("cutmix", pairing="shift")(images, labels, generator=seeded(24))
    assert torch.equal(mixed.inputs, plain.inputs)
    share = (cam * mixed.mask[:, 0]).sum((1, 2)) / cam.sum((1, 2))
    torch.testing.assert_close(mixed.lam, share)
    assert_cam_labels_equal_a_loop(images, labels, cam)
    switch = mixaug.Sometimes("snapmix", 0.0)
    assert torch.equal(switch(images, labels, signals=mixaug.Signals(cam=cam)).inputs, images)


def test_uint8_images_with_given_maps():
    images = torch.randint(0, 256, (6, 3, 20, 20), dtype=torch.uint8, generator=seeded(25))
    signals = mixaug.Signals(cam=torch.rand(6, 4, 4, generator=seeded(26)))
    mixed = mixaug.create("snapmix", per="sample")(images, torch.arange(6), signals=signals, generator=seeded(27))
    plan = mixed.plan
    cam = signals.cam((20, 20))
    expected, weights = slow_snapmix(images, plan.partner, plan.boxes, plan.partner_boxes, cam, torch.arange(6))
    assert (mixed.inputs.int() - expected.int()).abs().max() <= 1
    torch.testing.assert_close(mixed.weights, weights)


def test_what_the_model_lacks_is_named():
    images = torch.rand(4, 3, 8, 8)
    headless = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(1))
    with pytest.raises(ValueError, match=r"no linear classifier.*Signals\(cam="):
        mixaug.create("snapmix")(images, torch.arange(4), signals=headless)
    with pytest.raises(ValueError, match="pass labels with the images"):
        mixaug.create("snapmix")(images, signals=small_model())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"partner_boxes": torch.tensor([[0, 0, 9, 4]])}, ValueError, "partner_boxes clipped"),
        ({"boxes": torch.tensor([[0, 0, 3, 3]] * 2)}, ValueError, "expects 4 boxes or one, got 2"),
        ({"cam": torch.rand(4, 7, 8)}, ValueError, r"cam of shape \(4, 8, 8\)"),
        ({"cam": torch.rand(3, 8, 8)}, ValueError, r"cam of shape \(4, 8, 8\)"),
        ({"cam": -torch.rand(4, 8, 8)}, ValueError, "cam >= 0"),
        ({"cam": torch.ones(4, 8, 8, dtype=torch.int64)}, TypeError, r"cam \(B, H, W\) floating point"),
        ({"labels": torch.arange(3)}, ValueError, "4 images but 3 labels"),
        ({"images": torch.rand(4, 3, 8)}, ValueError, r"images \(B, C, H, W\)"),
        ({"partner": torch.tensor([0, 1, 2, 4])}, ValueError, "partner in"),
    ],
)
def test_bad_arguments(change, error, message):
    box = torch.tensor([[0, 0, 4, 4]])
    given = {"images": torch.rand(4, 3, 8, 8), "partner": torch.arange(4), "boxes": box, "partner_boxes": box}
    with pytest.raises(error, match=message):
        F.snapmix(**{**given, "cam": torch.rand(4, 8, 8), **change})


@pytest.mark.parametrize(("options", "message"), [
    ({"alpha": 0}, "expects alpha as a positive"),
    ({"mode": "both"}, "expects mode"),
    ({"per": "pixel"}, "per in"),
    ({"labeling": "cams"}, "unknown labeling"),
])  # fmt: skip
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        mixaug.create("snapmix", **options)


def test_a_map_that_is_handed_in_keeps_its_zero():
    cam = torch.tensor([[[1.0, 3.0], [1.0, 3.0]]])
    torch.testing.assert_close(mixaug.Signals(cam=cam).cam((2, 2)), cam / 8)
    assert mixaug.Signals(cam=torch.ones(1, 2, 2)).cam((2, 2)).isnan().all()
    # One with negative values has no zero of its own and is raised by its minimum.
    torch.testing.assert_close(mixaug.Signals(cam=cam - 2).cam((2, 2)), torch.tensor([[[0.0, 0.5], [0.0, 0.5]]]))
