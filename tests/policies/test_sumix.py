"""SUMix beyond the contract: weights and losses against loops, one clean pass, the policies it can wrap."""

import copy
import math

import pytest
import torch
from torch import nn

import mixaug
from helpers import seeded
from mixaug import functional as F
from mixaug import models
from mixaug.losses import MixedCrossEntropy, MixedSquaredError

LABELS = torch.tensor([0, 3, 1, 4, 2, 2])
PARTNER = torch.tensor([1, 2, 0, 3, 5, 4])
CE = nn.functional.cross_entropy


def pictures(batch=6, size=(32, 32)):
    return torch.rand(batch, 3, *size, generator=seeded(0))


def logits(seed, classes=5, dtype=torch.float64):
    return 3 * torch.randn(6, classes, generator=seeded(seed), dtype=dtype)


def resnet(classes=5):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return models.create("cifar_resnet8", num_classes=classes)


def slow_distance(p, q, removed, scale):
    """Of one sample, p and q lists of probabilities."""
    p = [0.0 if k == removed else value for k, value in enumerate(p)]
    grown = [math.exp(b - a) for a, b in zip(p, q, strict=True)]
    shares = [value / sum(grown) for value in grown]
    length = math.sqrt(sum(value**2 for value in shares))
    return [scale * value / length for value in shares]


def slow(clean, mixed, labels, partner, lam, scale, reference):
    p, q = clean.softmax(1).tolist(), mixed.softmax(1).tolist()
    distances, weights = ([], []), []
    for row, other in enumerate(partner.tolist()):
        own_class, other_class = int(labels[row]), int(labels[other])
        keep = own_class == other_class and not reference
        first = slow_distance(p[row], q[row], None if keep else other_class, scale)
        second = slow_distance(p[other], q[row], None if keep else own_class, scale)
        a, b = lam[row] * math.exp(-first[own_class]), (1 - lam[row]) * math.exp(-second[other_class])
        distances[0].append(first)
        distances[1].append(second)
        weights.append(a / (a + b))
    return torch.tensor(distances[0]), torch.tensor(distances[1]), torch.tensor(weights)


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("scale", [None, 100.0])
def test_weights_against_a_loop(scale, reference):
    clean, mixed = logits(1), logits(2)
    lam = torch.rand(6, generator=seeded(3), dtype=torch.float64)
    drawn = torch.stack([lam, 1 - lam], 1)
    pair = F.sumix_distances(clean, mixed, LABELS, PARTNER, scale=scale, reference=reference)
    weights = F.sumix_weights(pair, LABELS, PARTNER, drawn)
    first, second, own = slow(clean, mixed, LABELS, PARTNER, lam.tolist(), scale or 6.0, reference)
    torch.testing.assert_close(pair[0].float(), first, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pair[1].float(), second, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(weights, torch.stack([own, 1 - own], 1), rtol=1e-4, atol=1e-5)
    released = F.sumix_weights(pair, LABELS, PARTNER, drawn, reference=True)
    torch.testing.assert_close(released[:, 0], own.mean().expand(6), rtol=1e-4, atol=1e-5)


def test_two_images_of_one_class_keep_it():
    clean, mixed = logits(4), logits(5)
    plain = F.sumix_distances(clean, mixed, LABELS, PARTNER, scale=1.0)
    released = F.sumix_distances(clean, mixed, LABELS, PARTNER, scale=1.0, reference=True)
    # Rows 4 and 5 are of class 2 both, row 3 is its own partner.
    same = LABELS[PARTNER] == LABELS
    assert same.tolist() == [False, False, False, True, True, True]
    for got, removed in zip(plain, released, strict=True):
        assert torch.equal(got[~same], removed[~same])
        # With the true class removed from p, the mixed sample seems further from it than it is.
        assert (got[same].gather(1, LABELS[same][:, None]) < removed[same].gather(1, LABELS[same][:, None])).all()
    own = plain[0][3].gather(0, LABELS[3])
    assert own == plain[1][3].gather(0, LABELS[3])


def test_extreme_weights_and_distances_stay_finite():
    clean, mixed = logits(6), logits(7)
    lam = torch.tensor([0.0, 1.0, 0.5, 1e-30, 1 - 1e-7, 0.3])
    for scale in (1e-3, 1e4):
        pair = F.sumix_distances(clean, mixed, LABELS, PARTNER, scale=scale)
        weights = F.sumix_weights(pair, LABELS, PARTNER, torch.stack([lam, 1 - lam], 1))
        assert weights.isfinite().all()
        torch.testing.assert_close(weights.sum(1), torch.ones(6))
        assert weights[:2].tolist() == [[0, 1], [1, 0]]
    none = F.sumix_weights(pair, LABELS, PARTNER, torch.zeros(6, 2))
    assert none.eq(0).all()


def test_uncertainty_loss_against_a_loop_and_its_gradient():
    clean, mixed = (F.sumix_uncertainty(logits(seed)).requires_grad_() for seed in (8, 9))
    pair = F.sumix_distances(logits(1), logits(2), LABELS, PARTNER, scale=3.0)
    lam = torch.rand(6, generator=seeded(10), dtype=torch.float64)
    loss = F.sumix_loss(clean, mixed, pair, LABELS, PARTNER, torch.stack([lam, 1 - lam], 1))
    total = 0.0
    for row, other in enumerate(PARTNER.tolist()):
        own = torch.exp(-(clean[row] + mixed[row] + pair[0][row]))
        theirs = torch.exp(-(clean[other] + mixed[row] + pair[1][row]))
        total = total + lam[row] * CE(own, LABELS[row]) + (1 - lam[row]) * CE(theirs, LABELS[other])
    torch.testing.assert_close(loss, total / 6)
    torch.testing.assert_close(clean.norm(dim=1), torch.ones(6, dtype=torch.float64))
    loss.backward()
    assert clean.grad.abs().sum() > 0
    assert mixed.grad.abs().sum() > 0
    # Raw logits may be far below zero.
    far = torch.full((6, 5), -500.0, requires_grad=True)
    assert F.sumix_loss(far, far, pair, LABELS, PARTNER, torch.full((6, 2), 0.5)).isfinite()


@pytest.mark.parametrize("uncertainty", ["layer", "logits"])
@pytest.mark.parametrize("reference", [False, True])
def test_a_training_step_against_one_written_out(uncertainty, reference):
    model = resnet()
    policy = mixaug.create("sumix", uncertainty=uncertainty, reference=reference, gamma=0.7, scale=4.0, alpha=1.0)
    step = mixaug.MixStep(model, policy, MixedCrossEntropy())
    twin = copy.deepcopy(step)
    calls = []
    model.register_forward_pre_hook(lambda module, inputs: calls.append((module.training, torch.is_grad_enabled())))
    loss, scalars = step(pictures(), LABELS, generator=seeded(11))
    assert calls == [(True, True), (True, True)], "one clean pass, in training mode and with gradient"
    norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    assert int(norm.num_batches_tracked) == 2
    loss.backward()

    drawn = mixaug.create("cutmix", alpha=1.0)(pictures(), LABELS, generator=seeded(11))
    model, partner, lam = twin.model, drawn.partner, drawn.lam
    features = [model.forward_head(model.forward_features(x), pre_logits=True) for x in (pictures(), drawn.inputs)]
    clean, mixed = (model.get_classifier()(f) for f in features)
    pair = F.sumix_distances(clean, mixed, LABELS, partner, scale=4.0, reference=reference)
    own = torch.sigmoid(
        lam.log() - (1 - lam).log() - pair[0][torch.arange(6), LABELS] + pair[1][torch.arange(6), LABELS[partner]]
    )
    before, after = CE(mixed, LABELS, reduction="none"), CE(mixed, LABELS[partner], reduction="none")
    if reference:
        expected = before.mean() * own.mean() + after.mean() * (1 - own).mean()
    else:
        expected = (own * before + (1 - own) * after).mean()
    u, v = (clean, mixed) if uncertainty == "logits" else (
        nn.functional.normalize(twin.policy.layer(f).softmax(1), dim=1) for f in features
    )  # fmt: skip
    first = CE(torch.exp(-(u + v + pair[0])), LABELS, reduction="none")
    second = CE(torch.exp(-(u[partner] + v + pair[1])), LABELS[partner], reduction="none")
    term = 0.7 * (lam * first + (1 - lam) * second).mean()
    torch.testing.assert_close(loss, expected + term)
    torch.testing.assert_close(scalars["uncertainty"], term.detach())
    (expected + term).backward()
    for (name, parameter), other in zip(step.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-3, atol=1e-6, msg=name)
        assert name.endswith("bias") or parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("options", [{}, {"gamma": 0}, {"uncertainty": "logits"}, {"scale": None}, {"reference": True}])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_every_parameter_takes_part_in_every_step(options, batch):
    step = mixaug.MixStep(resnet(), mixaug.create("sumix", **options), MixedCrossEntropy())
    loss, _ = step(pictures(batch), LABELS[:batch], generator=seeded(12))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in step.parameters())
    wanted = not options.get("uncertainty") and options.get("gamma", 1) != 0
    assert (step.policy.layer is not None) == wanted


def test_images_are_those_of_the_policy_that_it_wraps():
    signals = mixaug.Signals(outputs=torch.zeros(6, 5), pooled=torch.zeros(6, 4))
    for name, options in (
        *((name, {"alpha": 0.4}) for name in ("cutmix", "fmix", "mixup")),
        ("resizemix", {}),
        ("smoothmix", {}),
    ):
        wrapped = mixaug.create("sumix", policy=name, **options)(
            pictures(), LABELS, signals=signals, generator=seeded(13)
        )
        plain = mixaug.create(name, **options)(pictures(), LABELS, generator=seeded(13))
        assert torch.equal(wrapped.inputs, plain.inputs)
        assert torch.equal(wrapped.weights, plain.weights), "before the mixed pass the weights are those drawn"
    with pytest.raises(ValueError, match="ResizeMix draws nothing from a Beta"):
        mixaug.create("sumix", policy="resizemix", alpha=0.4)
    made = mixaug.create("sumix", policy=mixaug.create("cutmix", per="batch"))
    assert made.draw(pictures(), LABELS, signals=signals, generator=seeded(13)).boxes.shape[0] == 1
    options = {"policy": "cutmix", "per": "batch", "pairing": "derangement"}
    assert mixaug.create("sumix", **options).draw(pictures(), LABELS, signals=signals).boxes.shape[0] == 1


@pytest.mark.parametrize("kind", ["around", "inside", "late", "sometimes", "looks"])
def test_in_company_of_other_policies(kind):
    cut = mixaug.create("cutmix", alpha=1.0)
    policy = {
        "around": lambda: mixaug.create("sumix", policy=mixaug.OneOf(["mixup", cut])),
        "inside": lambda: mixaug.OneOf(["mixup", mixaug.create("sumix")], [0.3, 0.7]),
        "late": lambda: mixaug.create("sumix", policy=mixaug.create("cutmix", labeling="attention")),
        "sometimes": lambda: mixaug.create("sumix", policy=mixaug.Sometimes("cutmix", 0.5)),
        "looks": lambda: mixaug.create("sumix", policy=mixaug.create("smmix")),
    }[kind]()
    step = mixaug.MixStep(resnet(), policy, MixedCrossEntropy())
    for seed in range(4):
        loss, scalars = step(pictures(), LABELS, generator=seeded(seed))
        loss.backward()
        assert loss.isfinite()
    assert kind != "looks" or {"uncertainty", "fine_grained", "consistency"} <= set(scalars)
    if kind != "inside":
        assert all(p.grad is not None for p in step.parameters())


def test_the_uncertainty_term_takes_the_weights_as_they_were():
    model, generator = resnet(), seeded(14)
    policy = mixaug.create("sumix", policy=mixaug.create("cutmix", labeling="attention"), scale=5.0)
    policy.attach(model)
    source = mixaug.ModelSignals(model.eval())
    clean = source.of(pictures(), LABELS, policy.needs)
    mixed = policy(pictures(), LABELS, signals=clean, generator=generator)
    with policy.tap(source, mixed, clean) as seen:
        model(mixed.inputs)
    late = policy.policy.relabel(mixed, seen)
    corrected = policy.relabel(mixed, seen)
    assert not torch.allclose(corrected.weights, late.weights)
    term = policy.auxiliary_loss(corrected, seen)["uncertainty"]
    pair = F.sumix_distances(clean.outputs(), seen.outputs(), LABELS, mixed.partner, scale=5.0)
    u, v = (F.sumix_uncertainty(policy.layer(x.pooled())) for x in (clean, seen))
    torch.testing.assert_close(term, 0.5 * F.sumix_loss(u, v, pair, LABELS, mixed.partner, late.weights))


def test_shares_of_classes_count_by_their_largest():
    dense = torch.nn.functional.one_hot(LABELS, 5) * 0.9 + 0.02
    results = []
    for labels in (LABELS, dense):
        step = mixaug.MixStep(
            resnet(), mixaug.create("sumix", gamma=0.0), lambda outputs, mixed: mixed.weights[:, 0].sum()
        )
        results.append(step(pictures(), labels, generator=seeded(15))[0])
    assert results[0] == results[1]


def test_half_precision():
    step = mixaug.MixStep(resnet(), mixaug.create("sumix"), MixedCrossEntropy())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, scalars = step(pictures(), LABELS, generator=seeded(16))
    loss.backward()
    assert scalars["uncertainty"].dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in step.parameters())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"policy": 3}, TypeError, "policy as a policy or its name, got 3"),
        ({"policy": "cutmx"}, ValueError, "Did you mean 'cutmix'"),
        ({"policy": mixaug.create("mixup"), "per": "batch"}, ValueError, "give pairing and per to that policy"),
        ({"policy": "none", "per": "batch"}, ValueError, "policy 'none' has no such option"),
        ({"gamma": -1}, ValueError, "gamma as a number that is not negative"),
        ({"scale": 0}, ValueError, "scale as a positive finite number"),
        ({"uncertainty": "both"}, ValueError, "'layer' or 'logits', got 'both'"),
        ({"alpha": -1}, ValueError, "alpha"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        mixaug.create("sumix", **options)


def test_bad_arguments():
    policy, model = mixaug.create("sumix"), resnet()
    with pytest.raises(ValueError, match="needs outputs, pooled of the model"):
        policy(pictures(), LABELS)
    with pytest.raises(ValueError, match="CutMix works on pixels"):
        policy(torch.rand(4, 3), LABELS[:4], signals=model)
    clean = mixaug.Signals(outputs=torch.zeros(6, 5), pooled=torch.zeros(6, 64))
    mixed = policy(pictures(), LABELS, signals=clean)
    with policy.tap(model, mixed) as seen:
        model(mixed.inputs)
    with pytest.raises(ValueError, match="compares with the clean outputs"):
        policy.relabel(mixed, seen)
    with policy.tap(model, mixed, clean) as seen:
        model(mixed.inputs)
    assert policy.relabel(mixed, seen).weights.isfinite().all()
    with pytest.raises(ValueError, match=r"no uncertainty layer yet.*policy.attach\(model\)"):
        policy.auxiliary_loss(mixed, seen)
    with pytest.raises(ValueError, match=r"class ids \(B,\) or shares"):
        mixaug.MixStep(resnet(), mixaug.create("sumix"), MixedSquaredError())(pictures(), torch.rand(6))
    with pytest.raises(ValueError, match=r"clean and mixed logits \(B, K\)"):
        F.sumix_distances(logits(0), logits(0, 4), LABELS, PARTNER)
    with pytest.raises(ValueError, match=r"class ids \(6,\)"):
        F.sumix_distances(logits(0), logits(0), LABELS[:3], PARTNER)
