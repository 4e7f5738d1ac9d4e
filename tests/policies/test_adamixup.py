"""AdaMixUp beyond the contract: a whole step against loops, gradients into the generator, fresh copies, learning."""

import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import mixaug
from helpers import THIN, index_images, interrupt, seeded
from mixaug import functional as F
from mixaug import models
from mixaug.losses import MixedBinaryCrossEntropy, MixedCrossEntropy
from mixaug.policies.adamixup import Regions

LABELS = torch.tensor([0, 3, 1, 4, 2, 2, 0])
CE = nn.functional.cross_entropy


def pictures(batch=6, size=(16, 16)):
    return torch.rand(batch, 3, *size, generator=seeded(0))


def resnet(classes=5, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return models.create("cifar_resnet8", num_classes=classes)


def vit():
    timm = pytest.importorskip("timm")
    return timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5
    )


def attached(model=None, seed=1, **options):
    policy = mixaug.create("adamixup", **options)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        policy.attach(resnet() if model is None else model)
    return policy


def step_of(model=None, policy=None, objective=None):
    model = resnet() if model is None else model
    policy = attached(model) if policy is None else policy
    return mixaug.MixStep(model, policy, MixedCrossEntropy() if objective is None else objective)


class Fixed:
    """Partners that are always the same."""

    involution = False

    def __init__(self, *rows):
        self.rows = torch.tensor(rows)

    def __call__(self, batch, draws):
        return self.rows.to(batch.device)


def livened(policy):
    """Heads of ordinary size: as drawn, their 1e-3 hides what flows through them."""
    with torch.no_grad():
        for number, parameter in enumerate(p for name, p in policy.named_parameters() if "fc." in name):
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=seeded(number)))
        for number, parameter in enumerate(policy.intrusion.parameters() if policy.intrusion else []):
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=seeded(50 + number)))
    return policy


# -- pure functions ------------------------------------------------------------------------------------------------


def test_truncated_normal_inverts_its_distribution():
    unit = torch.rand(20_000, generator=seeded(1), dtype=torch.float64)
    drawn = F.truncated_normal(unit)
    assert drawn.abs().max() < 2

    def below(x):
        return (torch.erf(x / math.sqrt(2)) + math.erf(math.sqrt(2))) / (2 * math.erf(math.sqrt(2)))

    torch.testing.assert_close(below(drawn), unit, rtol=0, atol=1e-12)
    # variance of the normal cut at b: 1 - 2 b phi(b) / (2 Phi(b) - 1)
    variance = 1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2))
    assert abs(drawn.mean()) < 4 * math.sqrt(variance / 20_000)
    assert abs(drawn.square().mean() - variance) < 4 * float(drawn.square().std()) / math.sqrt(20_000)
    ends = F.truncated_normal(torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(ends, torch.tensor([-2.0, 0.0, 2.0]), rtol=0, atol=1e-5)
    assert ends.abs().max() <= 2
    assert F.truncated_normal(torch.tensor([0.0, 1.0]), bound=9.0).tolist() == [-9, 9], "erf(9 / sqrt(2)) rounds to 1"
    with pytest.raises(ValueError, match="positive bound, got 0"):
        F.truncated_normal(unit, 0)


def test_lam_is_uniform_in_its_region_and_differentiable():
    region = torch.tensor([[0.2, 0.5, 0.3]]).expand(20_000, 3)
    lam = F.adamixup_lam(region, torch.rand(20_000, generator=seeded(2)))
    assert 0.2 <= lam.min() < 0.201 and 0.699 < lam.max() <= 0.7
    assert abs(lam.mean() - 0.45) < 4 * 0.5 / math.sqrt(12 * 20_000)
    # Shares that fill [0, 1] may add up to a little more than 1.
    assert F.adamixup_lam(torch.tensor([[0.6, 0.4000001, 0.0]]), torch.ones(1)).item() == 1
    shares = torch.rand(4, 3, generator=seeded(3), dtype=torch.float64).softmax(1).requires_grad_()
    unit = torch.rand(4, generator=seeded(4), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda r: F.adamixup_lam(r, unit), shares)
    (gradient,) = torch.autograd.grad(F.adamixup_lam(shares, unit).sum(), shares)
    torch.testing.assert_close(gradient, torch.stack([torch.ones(4).double(), unit, torch.zeros(4).double()], 1))


@pytest.mark.parametrize("batch", [2, 3, 6, 7])
def test_rows_are_mixtures_then_what_was_mixed(batch):
    half = batch // 2
    partner = torch.randperm(batch, generator=seeded(batch))
    lam = torch.rand(half, generator=seeded(5))
    rows, shares = F.adamixup_rows(partner, lam)
    for i in range(batch):
        if i < half:
            assert (rows[i], shares[i]) == (partner[i], lam[i])
        elif i < 2 * half:
            assert (rows[i].item(), shares[i].item()) == (i - half, 0)
        else:
            assert (rows[i].item(), shares[i].item()) == (i, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8], ids=str)
def test_the_second_half_becomes_the_unmixed_first(dtype):
    images = index_images(7, 3, 8, 8, dtype=torch.float32).to(dtype)
    mixed = attached()(images, LABELS, signals=resnet(), generator=seeded(6))
    assert mixed.inputs.dtype == dtype
    assert torch.equal(mixed.inputs[3:6], images[:3])
    assert torch.equal(mixed.inputs[6], images[6])
    targets = mixed.targets(5)
    assert torch.equal(targets[3:6], nn.functional.one_hot(LABELS[:3], 5).float())
    assert torch.equal(targets[6], nn.functional.one_hot(LABELS[6], 5).float())
    assert ((mixed.lam[:3] >= mixed.plan.start) & (mixed.lam[:3] <= mixed.plan.start + mixed.plan.length)).all()


def test_discriminator_loss_against_a_loop():
    logits = torch.randn(12, 2, generator=seeded(7), dtype=torch.float64)
    partner = torch.tensor([3, 1, 2, 7])
    terms = [CE(logits[i][None], torch.tensor([1])) for i in range(8)]
    terms += [CE(logits[8 + i][None], torch.tensor([0])) for i in range(4)]
    released = F.adamixup_loss(logits, partner, reference=True)
    torch.testing.assert_close(released, sum(terms) / 12)
    kept = [term for i, term in enumerate(terms) if i not in (9, 10)]
    torch.testing.assert_close(F.adamixup_loss(logits, partner), sum(kept) / 10)
    alone = F.adamixup_loss(logits, torch.arange(4))
    torch.testing.assert_close(alone, sum(terms[:8]) / 8)
    assert F.adamixup_loss(logits.bfloat16(), partner).dtype == torch.float32
    assert F.adamixup_loss(logits.bfloat16() * 1e4, partner).isfinite()


def test_bad_arguments_of_functions():
    with pytest.raises(ValueError, match=r"region \(h, 3\) and unit \(h,\), got \(4, 2\), \(4,\)"):
        F.adamixup_lam(torch.rand(4, 2), torch.rand(4))
    with pytest.raises(ValueError, match=r"lam \(3,\) for 7 samples, got \(4,\)"):
        F.adamixup_rows(torch.arange(7), torch.rand(4))
    with pytest.raises(ValueError, match=r"partner in \[0, 7\)"):
        F.adamixup_rows(torch.arange(7) + 1, torch.rand(3))
    with pytest.raises(ValueError, match=r"logits \(3h, 2\) for partner \(h,\), got \(8, 2\), \(3,\)"):
        F.adamixup_loss(torch.rand(8, 2), torch.arange(3))


# -- a step --------------------------------------------------------------------------------------------------------


def slow_step(twin, images, labels, seed, reference, weight):
    """The loss of a step, one sample at a time where that is possible."""
    model, policy, batch = twin.model, twin.policy, len(images)
    half, generator = batch // 2, seeded(seed)
    order = torch.rand(batch, generator=generator, dtype=torch.float64).argsort().tolist()
    cut = math.erf(math.sqrt(2))
    noise = torch.erfinv((2 * torch.rand(images.shape, generator=generator) - 1) * cut) * math.sqrt(2)
    unit = torch.rand(batch, generator=generator)
    gated = torch.stack([(noise[i] * images[i] + noise[half + i] * images[order[i]]) / 2 for i in range(half)])
    shares = policy.region.network(gated).softmax(1)
    lam = [shares[i, 0] + unit[i] * shares[i, 1] for i in range(half)]
    mixtures = [lam[i] * images[i] + (1 - lam[i]) * images[order[i]] for i in range(half)]

    outputs = model(torch.stack([*mixtures, *images[:half], *images[2 * half :]]))
    total = 0.0
    for i in range(half):
        pair = [CE(outputs[i][None], labels[row][None]) for row in (i, order[i])]
        total = total + lam[i] * pair[0] + (1 - lam[i]) * pair[1] + CE(outputs[half + i][None], labels[i][None])
    if batch % 2:
        total = total + CE(outputs[-1][None], labels[-1][None])

    shown = torch.stack([*images[half : 2 * half], *images[:half], *mixtures])
    pooled = model.forward_head(model.forward_features(shown), pre_logits=True)
    first, last = policy.intrusion
    logits = (pooled @ first.weight.T + first.bias) @ last.weight.T + last.bias
    judged = [(logits[i], 1) for i in range(2 * half)]
    judged += [(logits[2 * half + i], 0) for i in range(half) if reference or order[i] != i]
    intrusion = sum(CE(row[None], torch.tensor([truth])) for row, truth in judged) / len(judged)
    return total / batch + weight * intrusion, weight * intrusion, order


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize(("batch", "seed"), [(6, 8), (7, 9), (7, 10), (2, 2)])
def test_a_training_step_against_one_written_out(batch, seed, reference):
    images, labels = pictures(batch), LABELS[:batch]
    step = step_of(policy=livened(attached(discriminator=0.7, reference=reference)))
    twin = copy.deepcopy(step)
    if batch == 2:
        # One pair is shown to the generator twice; see below.
        step.policy.region.eval(), twin.policy.region.eval()
    loss, scalars = step(images, labels, generator=seeded(seed))
    expected, intrusion, order = slow_step(twin, images, labels, seed, reference, 0.7)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scalars["intrusion"], intrusion.detach(), rtol=1e-5, atol=1e-6)
    loss.backward()
    expected.backward()
    for (name, parameter), other in zip(step.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-3, atol=2e-6, msg=name)
        assert name.endswith("bias") or parameter.grad.abs().sum() > 0, name
    if (batch, seed) == (7, 10):
        assert any(order[i] == i for i in range(3)), "this seed is here for its fixed point"


def test_the_generator_learns_from_image_label_and_discriminator():
    """The gradient at lam is the sum of what each path brings, and each path brings something."""
    images, model = pictures(), resnet()
    policy = livened(attached(model))
    lam = {}
    for path in ("image", "label", "discriminator", "all"):
        source = mixaug.ModelSignals(model)
        clean = source.of(images, LABELS[:6], policy.needs)
        mixed = policy(images, LABELS[:6], signals=clean, generator=seeded(0))
        plan = mixed.plan
        held = plan.map_tensors(torch.Tensor.detach)
        inputs = mixed.inputs if path in ("image", "all") else held.mix(images)
        weights = mixed.weights if path in ("label", "all") else held.weights
        with policy.tap(source, mixed, clean) as seen:
            outputs = model(inputs)
        loss = MixedCrossEntropy()(outputs, mixaug.MixedBatch(inputs, LABELS[:6], mixed.sources, weights, plan))
        if path in ("discriminator", "all"):
            loss = loss + policy.auxiliary_loss(mixed, seen)["intrusion"]
        (lam[path],) = torch.autograd.grad(loss, plan.lam)
    parts = [lam[path] for path in ("image", "label", "discriminator")]
    torch.testing.assert_close(lam["all"], sum(parts), rtol=1e-3, atol=1e-6)
    assert all((part[:3].abs() > 1e-6).all() for part in parts)


@pytest.mark.parametrize("objective", [MixedCrossEntropy(0.1), MixedBinaryCrossEntropy()])
def test_labels_as_shares_of_classes_hand_the_gradient_on(objective):
    dense = nn.functional.one_hot(LABELS[:6], 5).float()
    gradients = []
    for labels in (LABELS[:6], dense):
        step = step_of(policy=livened(attached(discriminator=0)), objective=objective)
        step(pictures(), labels, generator=seeded(11))[0].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in step.policy.mixer_parameters()]))
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-6)


def test_own_partners_are_no_negatives():
    images = pictures(6)
    counts = []
    for rows in ((1, 2, 3, 0, 4, 5), (0, 2, 3, 1, 4, 5), (0, 1, 2, 3, 4, 5)):
        for reference in (False, True):
            step = step_of(policy=livened(attached(reference=reference, pairing=Fixed(*rows))))
            loss, scalars = step(images, LABELS[:6], generator=seeded(12))
            loss.backward()
            assert all(p.grad is not None and p.grad.isfinite().all() for p in step.parameters())
            counts.append(scalars["intrusion"])
    assert counts[0] == counts[1]
    assert counts[2] != counts[3] and counts[4] != counts[5]
    # All their own partners: D sees real images only, and a mixture has no effect on anything.
    mixed = attached(pairing=Fixed(0, 1, 2, 3, 4, 5))(images, LABELS[:6], signals=resnet())
    assert torch.equal(mixed.inputs, images[[0, 1, 2, 0, 1, 2]])


@pytest.mark.parametrize("options", [{}, {"discriminator": 0}, {"reference": True}, {"pairing": "derangement"}])
@pytest.mark.parametrize(("batch", "side"), [(1, 16), (2, 16), (3, 16), (7, 16), (2, 4), (3, 4)])
def test_every_parameter_takes_part_in_every_step(options, batch, side):
    # 4 pixels a side leave a map of 1x1, of which batch norm wants two.
    step = step_of(policy=attached(**options))
    loss, scalars = step(pictures(batch, (side, side)), LABELS[:batch], generator=seeded(14))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in step.parameters())
    assert ("intrusion" in scalars) == (batch > 1 and "discriminator" not in options)
    assert (step.policy.intrusion is None) == ("discriminator" in options)


def test_a_single_pair_is_normalised_like_itself():
    region = attached().region.train()
    gated = torch.randn(1, 3, 16, 16, generator=seeded(15))
    torch.testing.assert_close(region(gated), region.network(gated).softmax(1))
    assert region(gated).shape == (1, 3)


def test_one_more_pass_in_the_mode_of_the_model():
    step, calls = step_of(), []
    step.model.register_forward_pre_hook(
        lambda module, inputs: calls.append((len(inputs[0]), module.training, torch.is_grad_enabled()))
    )
    step(pictures(7), LABELS, generator=seeded(16))
    assert calls == [(7, True, True), (9, True, True)]
    calls.clear()
    step.eval()
    with torch.no_grad():
        loss, _ = step(pictures(7), LABELS, generator=seeded(16))
    assert calls == [(7, False, False), (9, False, False)]
    assert loss.isfinite() and not loss.requires_grad
    for norm in (m for m in step.modules() if isinstance(m, nn.BatchNorm2d)):
        # Twice in a training step of the model, once in its generator, never in evaluation.
        assert int(norm.num_batches_tracked) in (1, 2)
    calls.clear()
    step_without = step_of(step.model, attached(discriminator=0))
    step_without(pictures(7), LABELS, generator=seeded(16))
    assert len(calls) == 1


# -- the generator -------------------------------------------------------------------------------------------------


def test_the_generator_is_a_fresh_network_like_the_model():
    model = resnet()
    with torch.no_grad():
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.running_mean.fill_(7.0)
            norm.weight.fill_(3.0)
    model(pictures()).sum().backward()
    model.requires_grad_(False).eval()
    before = copy.deepcopy(model.state_dict())
    policy = attached(model)
    network = policy.region.network
    ours, theirs = dict(network.named_parameters()), dict(model.named_parameters())
    assert set(ours) == {n for n in theirs if not n.startswith("fc.")} | {
        *("fc.0.weight", "fc.0.bias", "fc.1.weight", "fc.1.bias")
    }
    for name, value in ours.items():
        assert value.requires_grad and value.grad is None, name
        assert name.startswith("fc.") or not torch.equal(value, theirs[name]) or (value == value.flatten()[0]).all()
        assert value.data_ptr() not in {p.data_ptr() for p in model.parameters()}
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        assert norm.running_mean.eq(0).all() and norm.weight.eq(1).all()
    assert network.training
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    for head in (policy.region.network.fc, policy.intrusion):
        weights = torch.cat([layer.weight.flatten() for layer in head])
        assert abs(weights.std() / 1e-3 - 1) < 4 / math.sqrt(2 * len(weights))
        assert all(layer.bias.eq(0).all() for layer in head)
    assert [layer.weight.shape for layer in network.fc] == [(100, 64), (3, 100)]
    assert [layer.weight.shape for layer in policy.intrusion] == [(5, 64), (2, 5)]
    assert {id(p) for p in policy.mixer_parameters()} == {id(p) for p in policy.region.parameters()}
    assert [layer.weight.shape[0] for layer in attached(width=7).region.network.fc] == [7, 3]
    # A softmax of next to nothing: thirds.
    mixed = policy(pictures(), LABELS[:6], signals=model)
    torch.testing.assert_close(mixed.plan.start, torch.full((3,), 1 / 3), rtol=0, atol=0.02)
    torch.testing.assert_close(mixed.plan.length, torch.full((3,), 1 / 3), rtol=0, atol=0.02)


def test_what_has_no_reset_keeps_the_values_of_the_model():
    model = vit()
    model.pos_embed.requires_grad_(False)
    policy = attached(model)
    network = policy.region.network
    assert torch.equal(network.pos_embed, model.pos_embed) and not network.pos_embed.requires_grad
    assert torch.equal(network.cls_token, model.cls_token) and network.cls_token.requires_grad
    assert not torch.equal(network.blocks[0].attn.qkv.weight, model.blocks[0].attn.qkv.weight)
    step = step_of(model, policy)
    loss, _ = step(pictures(5, (32, 32)), LABELS[:5], generator=seeded(17))
    loss.backward()
    assert all(p.grad is not None for p in step.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("convnext_atto", {}),
        ("mobilenetv3_small_050", {}),
        ("swin_tiny_patch4_window7_224", {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 24}),
        ("cait_xxs24_224", {"img_size": 32, "patch_size": 8, "depth": 2}),
    ],
)
def test_other_backbones(name, options):
    timm = pytest.importorskip("timm")
    step = step_of(timm.create_model(name, num_classes=5, **options))
    loss, _ = step(pictures(4, (32, 32)), LABELS[:4], generator=seeded(18))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in step.parameters() if p.requires_grad)


def test_attached_again_it_goes_on_with_what_it_has_learned():
    policy, model = attached(), resnet()
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    state = torch.get_rng_state()
    mixaug.MixStep(model, policy, MixedCrossEntropy())
    assert all(torch.equal(value, policy.state_dict()[name]) for name, value in before.items())
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(ValueError, match=r"64 features and 5 classes, this one has 64 and 9: make one policy"):
        policy.attach(resnet(9))
    with pytest.raises(ValueError, match=r"another model already, which differs in \['conv1.weight'"):
        attached(discriminator=0).attach(models.create("cifar_resnet8", num_classes=5, in_chans=1))


class Headless(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 1), head

    def forward(self, x):
        return self.head(self.conv(x).flatten(2).transpose(1, 2)).mean(1)


def test_models_without_a_classifier_of_vectors_are_refused():
    with pytest.raises(ValueError, match="no linear classifier to be found"):
        attached(Headless(nn.Sequential(nn.Conv1d(4, 5, 1))))
    model = Headless(nn.Linear(4, 5))
    with pytest.raises(ValueError, match=r"calls its classifier once, on \(B, D\), but Headless called it on"):
        step_of(model)(pictures(), LABELS[:6])


# -- as a policy ---------------------------------------------------------------------------------------------------


def test_options_and_missing_pieces():
    for options, message in [
        ({"discriminator": -1}, "discriminator as a number that is not negative, got -1"),
        ({"discriminator": math.nan}, "discriminator as a number that is not negative"),
        ({"discriminator": True}, "discriminator as a number that is not negative"),
        ({"width": 0}, "width as an integer >= 1, got 0"),
        ({"width": 2.0}, "width as an integer"),
        ({"pairing": "noone"}, "noone"),
    ]:
        with pytest.raises(ValueError, match=message):
            mixaug.create("adamixup", **options)
    assert repr(mixaug.create("adamixup", width=50)).startswith("AdaMixUp(width=50)")
    bare = mixaug.create("adamixup")
    assert bare.mixer_parameters() == []
    with pytest.raises(ValueError, match=r"no generator yet: train through mixaug.MixStep, or call policy.attach"):
        bare(pictures(), LABELS[:6], signals=resnet())
    with pytest.raises(ValueError, match="needs pooled of the model"):
        attached()(pictures(), LABELS[:6])
    policy, model = attached(), resnet()
    mixed = policy(pictures(), LABELS[:6], signals=model)
    with policy.tap(model, mixed) as seen:
        model(mixed.inputs)
    with pytest.raises(ValueError, match=r"looks at the unmixed images.*tap\(model, mixed, clean\)"):
        policy.auxiliary_loss(mixed, seen)
    with pytest.raises(ValueError, match="has no discriminator"):
        attached(discriminator=0).intrusion_logits(mixed, seen)


def test_draws_are_per_pair_and_follow_the_generator():
    policy, images = attached(), pictures(64)
    labels, state = torch.arange(64) % 5, torch.get_rng_state()
    plans = [policy.draw(images, labels, signals=resnet(), generator=seeded(seed)) for seed in (19, 19, 20)]
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(plans[0].lam, plans[1].lam) and torch.equal(plans[0].partner, plans[1].partner)
    assert not torch.equal(plans[0].lam, plans[2].lam)
    assert isinstance(plans[0], Regions)
    unit = (plans[0].lam[:32] - plans[0].start) / plans[0].length
    assert len(unit.unique()) == 32 and unit.min() >= 0 and unit.max() < 1
    # Thirds at first: 32 numbers of mean 1/2 and standard deviation 1/36 around it.
    assert abs(plans[0].lam[:32].mean() - 0.5) < 4 / math.sqrt(12 * 9 * 32)
    # Partners are the first of a permutation of the whole batch: some from the other half, none twice.
    assert (plans[0].partner[:32] >= 32).any() and len(plans[0].partner[:32].unique()) == 32
    last = policy.draw(images.to(memory_format=torch.channels_last), labels, signals=resnet(), generator=seeded(19))
    assert torch.equal(last.lam, plans[0].lam)


def test_the_gate_cuts_noise_at_two_and_sees_both_images():
    seen = []
    policy = attached()
    policy.region.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.cat([torch.ones(8, 3, 16, 16), torch.zeros(8, 3, 16, 16)])
    policy.pairing = Fixed(*range(8, 16), *range(8))
    policy(images, signals=resnet(), generator=seeded(21))
    gated = seen[0]
    assert gated.shape == (8, 3, 16, 16)
    assert 0.9 < gated.abs().max() <= 1, "half of one noise number, at most 2"
    variance = 1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2))
    assert abs(4 * gated.square().mean() / variance - 1) < 0.05
    assert not torch.equal(gated[0], gated[1])
    policy(images.flip(0), signals=resnet(), generator=seeded(21))
    assert not torch.equal(seen[1].abs(), gated.abs()), "the partner has noise of its own"
    torch.testing.assert_close(seen[1].square().mean(), gated.square().mean(), rtol=0.05, atol=0)


@pytest.mark.parametrize("size", [(12, 18), (130, 140)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.uint8], ids=str)
def test_out_and_inplace_equal_a_fresh_result_without_a_gradient(size, dtype):
    images = (255 * pictures(5, size)).to(dtype)
    policy = attached()
    plan = policy.draw(images, LABELS[:5], signals=resnet(), generator=seeded(22))
    fresh = policy.apply(images, plan)
    assert fresh.requires_grad == (dtype != torch.uint8)
    out = torch.empty_like(images)
    assert policy.apply(images, plan, out=out) is out
    assert torch.equal(out, fresh) and not out.requires_grad
    own = images.clone()
    assert policy.apply(own, plan, inplace=True) is own
    assert torch.equal(own, fresh) and not own.requires_grad


def test_images_get_the_gradient_of_the_blend_alone():
    images = pictures().requires_grad_()
    mixed = livened(attached())(images, LABELS[:6], signals=resnet(), generator=seeded(23))
    mixed.inputs.sum().backward()
    # Through the generator they would get more.
    torch.testing.assert_close(images.grad.sum(), torch.tensor(float(images.numel())), rtol=1e-5, atol=0)


def test_replays_pickles_and_moves():
    policy, images = attached(), pictures(7)
    mixed = policy(images, LABELS, signals=resnet(), generator=seeded(24))
    again = pickle.loads(pickle.dumps(mixed)).to("cpu")
    assert torch.equal(again.inputs, mixed.inputs)
    assert torch.equal(again.apply(images), mixed.apply(images))
    assert torch.equal(again.plan.start, mixed.plan.start)
    copied = copy.deepcopy(mixed.plan.map_tensors(torch.Tensor.detach))
    assert torch.equal(copied.mix(images), mixed.inputs)
    shares = mixed.apply(LABELS[:, None, None].expand(7, 16, 16).contiguous(), num_classes=5)
    torch.testing.assert_close(shares[:, :, 3, 4], mixed.targets(5))


def test_copies_and_states_of_a_step_give_the_same():
    step = step_of(policy=livened(attached()))
    buffer = io.BytesIO()
    torch.save(step.state_dict(), buffer)
    buffer.seek(0)
    other = step_of(resnet(seed=5), attached(resnet(), seed=6))
    state = torch.load(buffer, weights_only=True)
    other.load_state_dict(state)
    held = {key.removeprefix("policy."): value for key, value in state.items() if key.startswith("policy.")}
    alone = attached(seed=7)
    alone.load_state_dict(held)
    results = []
    for made in (step, copy.deepcopy(step), pickle.loads(pickle.dumps(step)), other, step_of(resnet(), alone)):
        loss, _ = made(pictures(), LABELS[:6], generator=seeded(25))
        loss.backward()
        results.append((loss.detach(), torch.cat([p.grad.flatten() for p in made.policy.parameters()])))
    for loss, gradient in results[1:]:
        assert torch.equal(loss, results[0][0]) and torch.equal(gradient, results[0][1])


@pytest.mark.parametrize("kind", ["one", "sometimes", "inside"])
def test_in_company_of_other_policies(kind):
    policy = {
        "one": lambda: mixaug.OneOf(["mixup", "adamixup"]),
        "sometimes": lambda: mixaug.Sometimes("adamixup", 0.5),
        "inside": lambda: mixaug.OneOf(["cutmix", mixaug.OneOf(["adamixup", "none"])], [0.2, 0.8]),
    }[kind]()
    step, terms = step_of(policy=policy), set()
    for seed in range(8):
        step.zero_grad()
        loss, scalars = step(pictures(7), LABELS, generator=seeded(seed))
        loss.backward()
        terms |= set(scalars) & {"intrusion", "not_drawn"}
        assert loss.isfinite()
        assert all(p.grad is not None for p in step.parameters())
    assert terms == {"intrusion", "not_drawn"}
    each = step_of(policy=mixaug.OneOf(["mixup", "adamixup"], per="sample"))
    with pytest.raises(ValueError, match="AdaMixUp adds a loss for whole batches"):
        each(pictures(), LABELS[:6], generator=seeded(1))


# Each signal and pass of it is asked of a compiled model by tests/test_step.py.
@pytest.mark.slow
def test_compiled_models_give_the_same():
    torch.compiler.reset()
    plain = step_of(policy=livened(attached()))
    model = resnet()
    model.compile(backend="aot_eager")
    quick = step_of(model, livened(attached(model)))
    for seed in range(2):
        results = []
        for step in (plain, quick):
            step.zero_grad()
            loss, _ = step(pictures(), LABELS[:6], generator=seeded(seed))
            loss.backward()
            results.append((loss.detach(), torch.cat([p.grad.flatten() for p in step.parameters()])))
        torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-3, atol=1e-5)


def test_half_precision():
    step = step_of()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, scalars = step(pictures(), LABELS[:6], generator=seeded(26))
    loss.backward()
    assert scalars["intrusion"].dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in step.parameters())
    half = step_of(resnet().bfloat16())
    assert {p.dtype for p in half.policy.parameters()} == {torch.bfloat16}
    loss, _ = half(pictures().bfloat16(), LABELS[:6], generator=seeded(27))
    loss.backward()
    assert loss.isfinite()


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_no_value_is_read_back_to_the_host(monkeypatch):
    # The copy of a model without values belongs to the same mode as the model.
    monkeypatch.setattr(FakeTensorMode, "__deepcopy__", lambda mode, memo: mode, raising=False)
    with FakeTensorMode():
        with torch.device("cuda"):
            step = mixaug.MixStep(
                models.create("cifar_resnet8", num_classes=5), mixaug.create("adamixup"), MixedCrossEntropy()
            )
        images = torch.empty(7, 3, 16, 16, device="cuda")
        loss, scalars = step(images, torch.empty(7, dtype=torch.int64, device="cuda"))
        assert loss.device.type == "cuda" and scalars["intrusion"].device.type == "cuda"


def test_distributed_training_misses_no_gradient(tmp_path):
    distributed = torch.distributed
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        step = step_of()
        parallel = nn.parallel.DistributedDataParallel(step)
        for batch in (4, 1, 5):
            # After a backward pass that left a parameter out, the next forward fails.
            parallel(pictures(batch), LABELS[:batch], generator=seeded(batch))[0].backward()
        assert all(p.grad.isfinite().all() for p in step.parameters())
    finally:
        distributed.destroy_process_group()


# -- learning ------------------------------------------------------------------------------------------------------


class Small(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        self.middle, self.fc = nn.Linear(16, 32), nn.Linear(32, classes)

    def forward(self, x):
        return self.fc(self.middle(self.body(x).mean((2, 3))).relu())


def test_where_no_mixture_is_real_the_region_shrinks_to_what_is_most_clearly_mixed():
    """Black and white patterns: whatever mixes two of them is grey, and greyest at lam = 1/2. Only D's loss counts."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Small()
        step = mixaug.MixStep(model, mixaug.create("adamixup"), lambda outputs, mixed: 0 * outputs.sum())
        optimizer = torch.optim.Adam(step.parameters(), 3e-3)
        generator, losses = seeded(0), []
        for _ in range(110):
            images = torch.randint(0, 2, (64, 1, 4, 4), generator=generator) * 2.0 - 1
            loss, _ = step(images, torch.zeros(64, dtype=torch.int64), generator=generator)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    plan = step.policy.draw(images, signals=model, generator=generator)
    assert losses[0] == pytest.approx(math.log(2), abs=1e-3)
    # Always saying "real" costs -(2/3 log 2/3 + 1/3 log 1/3) = 0.637.
    assert losses[-1] < 0.4
    assert plan.length.mean() < 0.15, "a third at the start"
    assert abs(plan.lam[:32].mean() - 0.5) < 0.1


def test_on_digits_the_discriminator_learns_and_the_regions_move():
    datasets = pytest.importorskip("sklearn.datasets", reason="the digits come with scikit-learn")
    images, labels = datasets.load_digits(return_X_y=True)
    images = torch.tensor(images[:640], dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
    labels = torch.tensor(labels[:640])
    with torch.random.fork_rng():
        torch.manual_seed(1)
        thin = {"channels": (8, 16, 32), "stem_width": 8}
        model, generator = models.create("cifar_resnet8", num_classes=10, in_chans=1, **thin), seeded(1)
        step = step_of(model, mixaug.create("adamixup"))
        optimizer = torch.optim.SGD(step.parameters(), 0.1, momentum=0.9)
        epochs = []
        for _ in range(5):
            losses = []
            for row in range(0, 640, 64):
                loss, scalars = step(images[row : row + 64], labels[row : row + 64], generator=generator)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append([loss.item(), scalars["intrusion"].item()])
            epochs.append(torch.tensor(losses).mean(0))
    assert torch.stack(epochs).isfinite().all()
    # Always saying "real" costs 0.637, so what is below has been learned.
    assert epochs[0][1] > 0.63 and epochs[-1][1] < 0.5
    assert epochs[-1][0] < epochs[0][0] / 2
    source, policy = step.signals(), step.policy
    clean = source.of(images[:64], labels[:64], policy.needs)
    with torch.no_grad():
        mixed = policy(images[:64], labels[:64], signals=clean, generator=generator)
        with policy.tap(source, mixed, clean) as seen:
            model(mixed.inputs)
        real = policy.intrusion_logits(mixed, seen).argmax(1)
    assert real[:64].float().mean() > 0.8 and real[64:].float().mean() < 0.4
    moved = (mixed.plan.start.mean() - 1 / 3).abs() + (mixed.plan.length.mean() - 1 / 3).abs()
    assert moved > 0.05


def test_a_run_of_the_engine_resumes_exactly(tmp_path, monkeypatch):
    pytest.importorskip("hydra", reason="the engine needs the train extra")
    from mixaug.engine import checkpoint, run
    from mixaug.engine.config import compose
    from mixaug.engine.train import train

    digits = ("data=digits", "data.train_size=110", "batch_size=25", "epochs=2")
    common = (*digits, *THIN, "policy=adamixup", "threads=1", "device=cpu", "progress=false", "optimizer.lr=0.02")
    whole = compose([*common, f"root={tmp_path / 'whole'}"])
    broken = compose([*common, "checkpoint_every_steps=5", f"root={tmp_path / 'broken'}"])
    train(whole)
    with monkeypatch.context() as patch:
        interrupt(patch, after=5)
        with pytest.raises(KeyboardInterrupt):
            train(broken)
    train(broken)
    first, second = (checkpoint.load(run.run_folder(config) / "last.pt") for config in (whole, broken))
    assert any(name.startswith("region.") for name in first["policy"])
    for part in ("model", "policy"):
        assert first[part].keys() == second[part].keys()
        assert all(torch.equal(value, second[part][name]) for name, value in first[part].items())
    assert all(math.isfinite(record["train_loss"]) for record in first["history"])
