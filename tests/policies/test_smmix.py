"""SMMix beyond the contract: windows and pastes against loops, its two losses through a step."""

import pytest
import torch
from scipy import stats
from torch import nn

import mixaug
from helpers import seeded
from mixaug import functional as F
from mixaug import models
from mixaug.losses import MixedCrossEntropy

LABELS = torch.tensor([0, 3, 1, 4, 2, 2])
CE = nn.functional.cross_entropy


def pictures(batch=6, size=(32, 32)):
    return torch.rand(batch, 3, *size, generator=seeded(0))


def given(batch=6, grid=(4, 4), **more):
    return mixaug.Signals(
        attention=torch.rand(batch, *grid, generator=seeded(1)), outputs=torch.zeros(batch, 5), **more
    )


def vit(**options):
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.models.vision_transformer.VisionTransformer(
            img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5, **options
        )


@pytest.mark.parametrize("grid", [(7, 7), (4, 9), (1, 5), (1, 1)], ids=str)
def test_windows_against_a_loop(grid):
    # Small whole numbers: many ties.
    scores = torch.randint(0, 3, (30, *grid), generator=seeded(2)).float()
    region = torch.randint(1, min(grid) + 1, (30,), generator=seeded(3))
    for largest in (True, False):
        got = F.smmix_windows(scores, region, largest=largest)
        for row in range(30):
            r, sums = int(region[row]), {}
            for y in range(grid[0] - r + 1):
                for x in range(grid[1] - r + 1):
                    sums[y, x] = float(scores[row, y : y + r, x : x + r].sum())
            best = (max if largest else min)(sums.values())
            assert tuple(got[row].tolist()) == next(place for place, value in sums.items() if value == best)
        one = F.smmix_windows(scores, region[:1], largest=largest)
        assert torch.equal(one, F.smmix_windows(scores, region[:1].expand(30), largest=largest))


def test_attention_that_is_not_finite_counts_as_none():
    scores = torch.tensor([[[1.0, 2, float("nan")], [0.5, 1, float("inf")], [1, 1, 1]]])
    one = torch.ones(1, dtype=torch.int64)
    assert F.smmix_windows(scores, one, largest=True).tolist() == [[0, 1]]
    assert F.smmix_windows(scores, one, largest=False).tolist() == [[0, 2]]
    policy = mixaug.create("smmix")
    for value in (0.0, float("nan"), 1e-45):
        signals = mixaug.Signals(attention=torch.full((6, 4, 4), value), outputs=torch.zeros(6, 5))
        plan = policy.draw(pictures(), signals=signals, generator=seeded(4))
        assert plan.boxes[:, :2].eq(0).all()
        assert plan.corners.eq(0).all()


def slow_mix(images, plan):
    mixed = images.clone()
    for row, (y0, x0, y1, x1) in enumerate(plan.boxes.tolist()):
        sy, sx = plan.corners[row].tolist()
        other = images[plan.partner[row]]
        for y in range(y0, y1):
            mixed[row, ..., y, x0:x1] = other[..., sy + y - y0, sx : sx + x1 - x0]
    return mixed


@pytest.mark.parametrize("size", [(32, 32), (33, 8), (7, 5), (1, 1), (3, 40), (140, 130)], ids=str)
@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (1, 1), (14, 14)], ids=str)
@pytest.mark.parametrize("per", ["sample", "batch", "pair"])
def test_paste_against_a_loop(size, grid, per):
    images = pictures(5, size)
    plan = mixaug.create("smmix", per=per).draw(images, signals=given(5, grid), generator=seeded(5))
    assert (plan.boxes[:, 2:] <= torch.tensor(size)).all()
    expected = slow_mix(images, plan)
    assert torch.equal(plan.mix(images), expected)
    assert torch.equal(plan.mix(images.to(memory_format=torch.channels_last)), expected)
    assert torch.equal(plan.mix(images.clone(), inplace=True), expected)
    assert torch.equal(plan.mix(images[:, 0]), expected[:, 0])
    torch.testing.assert_close(plan.area(), plan.own_mask().float().mean((1, 2)))
    mixed, lam = F.smmix(images, plan.partner, plan.boxes, plan.corners)
    assert torch.equal(mixed, expected)
    assert torch.equal(lam, plan.area())
    if all(side % cells == 0 for side, cells in zip(size, grid, strict=True)):
        torch.testing.assert_close(plan.area(), plan.lam.expand(5))


def test_a_sample_that_is_its_own_partner_moves_its_window_in_place():
    images = pictures(2, (140, 140))
    boxes, corners = torch.tensor([[0, 0, 100, 100]] * 2), torch.tensor([[20, 30]] * 2)
    expected, _ = F.smmix(images, torch.arange(2), boxes, corners)
    assert torch.equal(expected[:, :, :100, :100], images[:, :, 20:120, 30:130])
    assert torch.equal(F.smmix(images.clone(), torch.arange(2), boxes, corners, inplace=True)[0], expected)


def test_the_most_attended_covers_the_least():
    attention = torch.ones(2, 8, 8)
    attention[0, 1:3, 5:7], attention[0, 6:, :2] = 5, 0
    attention[1, 4:6, 4:6], attention[1, :2, 6:] = 5, 0
    signals = mixaug.Signals(attention=attention, outputs=torch.zeros(2, 5))
    policy = mixaug.create("smmix", minmax=(0.25, 0.25), pairing="shift")
    plan = policy.draw(pictures(2), signals=signals)
    assert plan.boxes.tolist() == [[24, 0, 32, 8], [0, 24, 8, 32]]
    assert plan.corners.tolist() == [[16, 16], [4, 20]]
    assert plan.weights[:, 0].tolist() == [1 - 4 / 64] * 2


def test_sides_are_uniform_and_both_ends_occur():
    images, signals = torch.zeros(2, 1, 14, 14), given(2, (14, 14))
    policy, generator = mixaug.create("smmix"), seeded(6)
    sides = [int((p := policy.draw(images, signals=signals, generator=generator)).boxes[0, 2] - p.boxes[0, 0])
             for _ in range(400)]  # fmt: skip
    counts = torch.bincount(torch.tensor(sides), minlength=11)
    assert counts[:3].sum() == 0
    assert len(counts) == 11
    assert stats.chisquare(counts[3:].numpy()).pvalue > 1e-4
    plan = mixaug.create("smmix", per="sample").draw(torch.zeros(200, 1, 14, 14), signals=given(200, (14, 14)))
    assert plan.lam.unique().numel() == 8


def test_pooled_tokens_against_a_loop():
    features, mask = torch.randn(3, 5, 4, 4, generator=seeded(7)), torch.zeros(3, 8, 8, dtype=torch.bool)
    mask[0, :4, :2], mask[1, 1:3, 1:7] = True, True
    got = F.pooled_tokens(features, mask)
    for row in range(3):
        total, weights = torch.zeros(5), 0.0
        for y in range(4):
            for x in range(4):
                weight = float(mask[row, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].float().mean())
                total, weights = total + weight * features[row, :, y, x], weights + weight
        torch.testing.assert_close(got[row], total / weights if weights else torch.zeros(5))


def test_consistency_against_torch_and_its_gradient():
    mixed, clean = torch.randn(2, 6, 5, generator=seeded(8), dtype=torch.float64).unbind()
    mixed, clean = mixed.requires_grad_(), clean.requires_grad_()
    partner, lam = torch.arange(6).roll(1), torch.rand(6, generator=seeded(9), dtype=torch.float64)
    loss = F.smmix_consistency(mixed, clean, partner, lam)
    target = (lam[:, None] * clean + (1 - lam[:, None]) * clean[partner]).softmax(1)
    expected = (target * (target.log() - mixed.log_softmax(1))).sum() / 6
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert clean.grad is None
    torch.testing.assert_close(mixed.grad, (mixed.softmax(1) - target).detach() / 6)


def test_a_training_step_against_one_written_out():
    model = vit()
    policy = mixaug.create("smmix", fine_grained=0.7, consistency=0.3)
    step = mixaug.MixStep(model, policy, MixedCrossEntropy())
    calls = []
    model.register_forward_pre_hook(lambda module, inputs: calls.append((module.training, torch.is_grad_enabled())))
    loss, scalars = step(pictures(), LABELS, generator=seeded(10))
    assert calls == [(False, False), (True, True)], "one clean pass, in eval mode, without gradient"
    assert all(module.training for module in model.modules())
    loss.backward()
    got = {name: parameter.grad.clone() for name, parameter in step.named_parameters()}
    assert {"policy.token_head.weight", "policy.token_head.bias"} <= set(got)
    assert all(gradient.abs().sum() > 0 for gradient in got.values())

    step.zero_grad()
    mixed = policy(pictures(), LABELS, signals=model, generator=seeded(10))
    partner = mixed.partner
    tokens = model.forward_features(mixed.inputs)[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    logits = model(mixed.inputs)
    with torch.no_grad():
        clean = model(pictures())
    own = mixed.mask[:, :, ::8, ::8]
    head = policy.token_head
    seen = [head((tokens * m).sum((2, 3)) / m.sum((2, 3))) for m in (own, 1 - own)]
    fine = (CE(seen[0], LABELS, label_smoothing=0.1) + CE(seen[1], LABELS[partner], label_smoothing=0.1)) / 2
    lam = mixed.lam[:, None]
    target = (lam * clean + (1 - lam) * clean[partner]).softmax(1)
    divergence = nn.functional.kl_div(logits.log_softmax(1), target, reduction="batchmean")
    expected = CE(logits, mixed.targets(5)) + 0.7 * fine + 0.3 * divergence
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(scalars["fine_grained"], 0.7 * fine.detach())
    torch.testing.assert_close(scalars["consistency"], 0.3 * divergence.detach())
    expected.backward()
    for name, parameter in step.named_parameters():
        torch.testing.assert_close(parameter.grad, got[name], rtol=1e-4, atol=1e-6)


def test_attention_is_received_over_the_image_tokens():
    model = vit()
    clean = mixaug.ModelSignals(model).of(pictures(), LABELS)
    scores = clean.received((32, 32))
    policy = mixaug.create("smmix")
    direct = policy.draw(pictures(), signals=model, generator=seeded(11))
    signals = mixaug.Signals(attention=scores, outputs=clean.outputs())
    assert torch.equal(policy.draw(pictures(), signals=signals, generator=seeded(11)).boxes, direct.boxes)
    assert not torch.allclose(scores, clean.attention((32, 32))), "not the class token's row"


@pytest.mark.parametrize(
    "options", [{}, {"fine_grained": 0.0}, {"consistency": 0.0}, {"fine_grained": 0, "consistency": 0}]
)
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_every_parameter_takes_part_in_every_step(options, batch):
    model = models.create("cifar_resnet8", num_classes=5)
    step = mixaug.MixStep(model, mixaug.create("smmix", **options), MixedCrossEntropy())
    loss, scalars = step(pictures(batch), LABELS[:batch], generator=seeded(12))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in step.parameters())
    assert ("fine_grained" in scalars) == (options.get("fine_grained", 1) != 0)
    assert (step.policy.token_head is None) == (options.get("fine_grained", 1) == 0)


def test_dense_labels_and_half_precision():
    dense = torch.rand(6, 5, generator=seeded(13)).softmax(1)
    step = mixaug.MixStep(vit(), mixaug.create("smmix"), MixedCrossEntropy())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = step(pictures(), dense, generator=seeded(14))
    loss.backward()
    assert loss.isfinite()
    # One-hot rows are class ids.
    onehot = nn.functional.one_hot(LABELS, 5).float()
    torch.testing.assert_close(
        step(pictures(), onehot, generator=seeded(15))[1]["fine_grained"],
        step(pictures(), LABELS, generator=seeded(15))[1]["fine_grained"],
    )


def test_windows_of_all_pixels_leave_nothing_of_the_own_tokens():
    step = mixaug.MixStep(vit(), mixaug.create("smmix", minmax=(1.0, 1.0)), MixedCrossEntropy())
    loss, _ = step(pictures(), LABELS, generator=seeded(16))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in step.parameters())


def test_the_switch_with_mixup_is_a_oneof():
    policy = mixaug.OneOf([mixaug.create("mixup", alpha=0.8), mixaug.create("smmix")])
    step = mixaug.MixStep(vit(), policy, MixedCrossEntropy())
    terms = set()
    for seed in range(6):
        loss, scalars = step(pictures(), LABELS, generator=seeded(seed))
        assert loss.isfinite()
        terms.add("consistency" in scalars)
    assert terms == {True, False}


def test_a_second_step_keeps_the_head_and_another_model_is_refused():
    policy = mixaug.create("smmix")
    mixaug.MixStep(vit(), policy, MixedCrossEntropy())
    head = policy.token_head
    mixaug.MixStep(vit(), policy, MixedCrossEntropy())
    assert policy.token_head is head
    with pytest.raises(ValueError, match="64 and 7: make one policy for each model"):
        mixaug.MixStep(models.create("cifar_resnet8", num_classes=7), policy, MixedCrossEntropy())
    assert policy.token_head is head


def test_without_a_model_it_mixes_and_the_loss_says_what_is_missing():
    policy, model = mixaug.create("smmix"), vit()
    mixed = policy(pictures(), LABELS, signals=given(), generator=seeded(17))
    with policy.tap(model, mixed, given()) as seen:
        model(mixed.inputs)
    with pytest.raises(ValueError, match=r"no head .* policy.attach\(model\)"):
        policy.auxiliary_loss(mixed, seen)
    with policy.tap(model, mixed) as seen:
        model(mixed.inputs)
    policy.attach(model)
    with pytest.raises(ValueError, match="compares with the clean outputs"):
        policy.auxiliary_loss(mixed, seen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minmax": (0.0, 0.5)}, "0 < low <= high <= 1"),
        ({"minmax": (0.6, 0.5)}, "0 < low <= high <= 1"),
        ({"minmax": (0.6,)}, "0 < low <= high <= 1"),
        ({"fine_grained": -1}, "fine_grained as a number that is not negative"),
        ({"consistency": float("inf")}, "consistency as a number that is not negative"),
        ({"label_smoothing": 2.0}, "label_smoothing"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        mixaug.create("smmix", **options)


def test_bad_arguments():
    images, partner = pictures(), torch.arange(6)
    with pytest.raises(ValueError, match="needs attention, outputs of the model"):
        mixaug.create("smmix")(images)
    with pytest.raises(ValueError, match="region"):
        F.smmix_windows(torch.rand(3, 4, 4), torch.ones(2, dtype=torch.int64), largest=True)
    boxes = torch.tensor([[0, 0, 4, 4]] * 6)
    with pytest.raises(ValueError, match="corners clipped to size"):
        F.smmix(images, partner, boxes, torch.full((6, 2), 30))
    with pytest.raises(ValueError, match=r"boxes \(6, 4\) and corners \(6, 2\)"):
        F.smmix(images, partner, boxes[:1], torch.zeros(6, 2, dtype=torch.int64))
    step = mixaug.MixStep(vit(), mixaug.create("smmix"), mixaug.losses.MixedSquaredError())
    with pytest.raises(ValueError, match=r"fine-grained loss expects class ids"):
        step(images, torch.rand(6))
    step = mixaug.MixStep(vit(), mixaug.create("smmix"), mixaug.losses.MixedCrossEntropy())
    for classes in (4, 7):
        with pytest.raises(ValueError, match=r"shares \(B, 5\) of the classifier's 5 classes as labels, got \(6, "):
            step(images, torch.eye(classes)[torch.arange(6) % 4])
