"""AutoMix and SAMix beyond the contract: the whole step against one graph, masks, momentum, frozen mixers."""

import copy
import math
import pickle
import warnings
import weakref

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import mixaug
from helpers import seeded
from mixaug import functional as F
from mixaug import models
from mixaug.losses import MixedCrossEntropy
from mixaug.policies.learned import MomentumNetwork, blocks, clean, loop, momentum_at
from mixaug.signals import backbone

IMAGES = torch.randn(6, 3, 16, 16, generator=seeded(0))
LABELS = torch.tensor([0, 3, 1, 4, 2, 2])
NAMES = ["automix", "samix"]


class Recorded:
    """A ratio or pairing that gives these values, one with each call."""

    needs_labels = False

    def __init__(self, *values):
        self.values = list(values)

    def __call__(self, *_):
        return self.values.pop(0)


def resnet(classes=5, **options):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return models.create("cifar_resnet8", num_classes=classes, **options)


def vit():
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return timm.models.vision_transformer.VisionTransformer(
            img_size=(16, 24), patch_size=4, embed_dim=32, depth=4, num_heads=2, num_classes=5
        )


def drawn(name, loud=True, **options):
    """A policy attached to nothing yet whose block has weights large enough to matter."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        policy = mixaug.create(name, **options)
        policy.attach(options.pop("model", None) or resnet())
        if loud:
            for parameter in policy.block.parameters():
                nn.init.normal_(parameter, std=0.3)
    return policy


def step_of(name, model=None, objective=None, **options):
    model = resnet() if model is None else model
    with torch.random.fork_rng():
        torch.manual_seed(2)
        step = mixaug.MixStep(model, mixaug.create(name, **options), objective or MixedCrossEntropy())
        for parameter in step.policy.block.parameters():
            nn.init.normal_(parameter, std=0.3)
        # Not the model itself, so that it matters which of the two is asked.
        for parameter in step.policy.network.parameters():
            parameter.mul_(1.1)
    return step


def gradients(step):
    return {name: p.grad.clone() for name, p in step.named_parameters() if p.grad is not None}


def pair_loss(outputs, lam, partner, rows=6):
    first = cross_entropy(outputs, LABELS[:rows], reduction="none")
    second = cross_entropy(outputs, LABELS[partner[:rows]], reduction="none")
    return (lam * first + (1 - lam) * second).mean()


def one_graph(step, lam, partner, generator_lam, generator_partner, rows=6, learns=True):
    """The sheet's step with everything alive until one backward."""
    policy, model, size = step.policy, step.model, IMAGES.shape[2:]
    slow, terms = policy.network.model, {}
    seen = []
    hook = slow.layer2.register_forward_hook(lambda *passed: seen.append(passed[2]))
    with torch.no_grad():
        slow(IMAGES)
        features = seen[0]
        mask = policy.masks(features, features[partner], lam, size)
    hook.remove()
    pooled = []
    hook = model.fc.register_forward_pre_hook(lambda _, inputs: pooled.append(inputs[0]))
    clean = math.ceil(6 * policy.clean_share)
    model(IMAGES[:clean])
    hook.remove()
    head = policy.clean_head or model.fc
    terms["clean_loss"] = policy.clean_weight * cross_entropy(head(pooled[0]), LABELS[:clean])
    own, other = features[:rows], features[generator_partner[:rows]]
    made = policy.masks(own, other, generator_lam, size)
    terms["mask_loss"] = policy.mask_weight * F.mask_loss(made, generator_lam, 0.1, policy.variance)
    share = made[:, None]
    blended = share * IMAGES[:rows] + (1 - share) * IMAGES[generator_partner[:rows]]
    if learns:
        terms["generator_loss"] = pair_loss(slow(blended), generator_lam, generator_partner, rows)
    mixed = mask[:, None] * IMAGES + (1 - mask[:, None]) * IMAGES[partner]
    loss = pair_loss(model(mixed), lam, partner) + sum(terms.values())
    return loss, terms


DRAWS = (
    torch.tensor([0.35]),
    torch.tensor([3, 4, 5, 0, 1, 2]),
    torch.tensor([0.7]),
    torch.tensor([1, 2, 3, 4, 5, 0]),
)


@pytest.mark.parametrize(("name", "options"), [
    ("automix", {}),
    ("automix", {"clean_head": False, "clean_weight": 0.5}),
    ("automix", {"lam_channel": False, "upsampling": "bilinear", "generator_share": 0.6}),
    ("automix", {"clean_share": 0.5, "generator_share": 0.4}),
    ("samix", {"eta": 1.0}),
    ("samix", {"eta": 1.0, "generator_share": 0.5, "k": -1}),
], ids=str)  # fmt: skip
def test_a_step_is_the_same_as_with_everything_in_one_graph(name, options):
    lam, partner, generator_lam, generator_partner = DRAWS
    options = {"stage": "layer2", "mask_adjust": 0.0, **options}
    recorded = {"ratio": Recorded(lam, generator_lam), "pairing": Recorded(partner, generator_partner)}
    step, twin = step_of(name, **options, **recorded), step_of(name, **options)
    rows = math.ceil(options.get("generator_share", 1) * 6)
    expected, terms = one_graph(twin, *DRAWS, rows=rows)
    expected.backward()
    loss, scalars = step(IMAGES, LABELS)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    for term, value in terms.items():
        torch.testing.assert_close(scalars[term], value.detach(), msg=term)
    wanted, got = gradients(twin), gradients(step)
    assert got.keys() == wanted.keys()
    assert not any(".network." in key for key in got)
    for key, value in wanted.items():
        torch.testing.assert_close(got[key], value, rtol=1e-3, atol=1e-5, msg=key)
    for (key, value), ours in zip(twin.model.named_buffers(), step.model.buffers(), strict=True):
        torch.testing.assert_close(ours, value, msg=key)


def test_a_part_of_the_batch_is_taken_from_the_samples_with_a_label():
    step = step_of("automix", clean_share=0.3, clean_head=False)
    labels = torch.tensor([-100, -100, 1, 2, -100, 0])
    clean = mixaug.ModelSignals(step.model).of(IMAGES, labels)
    mixed = step.policy(IMAGES, labels, signals=clean, generator=seeded(1))
    term = step.policy.early_loss(IMAGES, mixed, clean)["clean_loss"]
    step.model.train()
    expected = torch.nn.functional.cross_entropy(step.model(IMAGES[2:4]), labels[2:4])
    torch.testing.assert_close(term.detach(), expected.detach())


def test_the_loss_of_the_block_does_not_reach_the_model_and_the_slow_copy_learns_nothing():
    step = step_of("automix", clean_weight=0.0, mask_weight=0.0)
    clean = mixaug.ModelSignals(step.model).of(IMAGES, LABELS)
    mixed = step.policy(IMAGES, LABELS, signals=clean, generator=seeded(1))
    terms = step.policy.early_loss(IMAGES, mixed, clean)
    assert set(terms) == {"mask_loss", "generator_loss"}
    sum(terms.values()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in step.policy.block.parameters())
    assert all(p.grad is None for p in [*step.model.parameters(), *step.policy.network.parameters()])


def test_the_block_learns_to_be_classified():
    # With the mask's own loss off, only the way through the frozen copy can lower the loss of the block.
    step = step_of("automix", clean_weight=0.0, mask_weight=0.0, lam_channel=False)
    lam, _, _, partner = DRAWS
    optimizer = torch.optim.Adam(step.policy.mixer_parameters(), 0.02)
    losses = []
    for _ in range(25):
        step.policy.ratio, step.policy.pairing = Recorded(lam, lam), Recorded(partner, partner)
        loss, scalars = step(IMAGES, LABELS)
        loss.backward()
        optimizer.step()
        step.zero_grad()
        losses.append(float(scalars["generator_loss"]))
    assert losses[-1] < losses[0] - 0.02


@pytest.mark.parametrize("name", NAMES)
def test_skipped_steps_keep_the_loss_of_the_mask(name):
    step = step_of(name, generator_probability=0.0)
    loss, scalars = step(IMAGES, LABELS, generator=seeded(1))
    loss.backward()
    assert {"mask_loss", "clean_loss"} <= scalars.keys()
    assert "generator_loss" not in scalars
    assert all(p.grad is not None for p in step.policy.parameters() if p.requires_grad)


def test_how_often_the_block_learns():
    policy = drawn("automix", generator_probability=0.3)
    given = mixaug.Signals(features=torch.rand(6, 32, 4, 4))
    generator = seeded(3)
    learned = sum(policy.draw(IMAGES, LABELS, signals=given, generator=generator).learns for _ in range(400))
    # Four standard deviations of a binomial around 120.
    assert abs(learned - 120) < 4 * math.sqrt(400 * 0.3 * 0.7)


def test_both_branches_draw_their_own_lambda_and_partners():
    policy = drawn("automix", per="sample", alpha=1.0)
    given = mixaug.Signals(features=torch.rand(6, 32, 4, 4))
    plans = [policy.draw(IMAGES, LABELS, signals=given, generator=seeded(n)) for n in range(300)]
    own = torch.stack([plan.lam for plan in plans]).flatten()
    other = torch.stack([plan.generator_lam for plan in plans]).flatten()
    assert abs(torch.corrcoef(torch.stack([own, other]))[0, 1]) < 4 / math.sqrt(len(own))
    assert abs(float(other.mean()) - 0.5) < 4 * math.sqrt(1 / 12 / len(other))
    same = torch.stack([plan.partner == plan.generator_partner for plan in plans]).double().mean()
    assert abs(float(same) - 1 / 6) < 4 * math.sqrt(1 / 6 * 5 / 6 / 1800)


def test_pairs_share_the_lambda_of_their_own_branch():
    policy = drawn("automix", per="pair")
    given = mixaug.Signals(features=torch.rand(6, 32, 4, 4))
    plan = policy.draw(IMAGES, LABELS, signals=given, generator=seeded(1))
    for partner, lam in ((plan.partner, plan.lam), (plan.generator_partner, plan.generator_lam)):
        assert torch.equal(lam, lam[partner])
    assert not torch.equal(plan.partner, plan.generator_partner)


def test_mask_loss_by_hand():
    mask = torch.tensor([[[0.2, 0.4]], [[0.6, 0.8]]])
    assert float(F.mask_loss(mask, torch.tensor([0.9]), 0.1)) == pytest.approx(0.3)
    assert float(F.mask_loss(mask, torch.tensor([0.55]), 0.1)) == 0.0
    assert float(F.mask_loss(mask, torch.tensor([0.8, 1.0]), 0.1)) == pytest.approx(0.3)
    assert float(F.mask_loss(mask, torch.tensor([0.5]), 0.1, variance=2.0)) == pytest.approx(-2 * 0.05)


@pytest.mark.parametrize("lam", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_adjusted_masks_have_the_mean_that_was_drawn(lam):
    mask = torch.rand(5, 8, 9, generator=seeded(1)) ** 2
    got = F.adjusted_mask(mask, torch.tensor([lam]))
    torch.testing.assert_close(got.mean((1, 2)), torch.full((5,), lam), atol=1e-5, rtol=0)
    assert got.min() >= 0
    assert got.max() <= 1
    # Order is kept: where more of the own image was, more of it stays.
    assert torch.equal(got[0].flatten().argsort(), mask[0].flatten().argsort()) or lam in (0.0, 1.0)
    for empty in (torch.zeros(2, 3, 3), torch.ones(2, 3, 3)):
        assert F.adjusted_mask(empty, torch.tensor([lam])).isfinite().all()


def test_adjustment_happens_as_often_as_asked_and_to_the_right_lambda():
    lam, generator_lam = torch.tensor([0.3]), torch.tensor([0.6])
    features = torch.rand(6, 32, 4, 4)
    for options, wanted in (({}, lam), ({"reference": True}, generator_lam)):
        policy = drawn("automix", mask_adjust=1.0, ratio=Recorded(lam, generator_lam), **options)
        plan = policy.draw(IMAGES, LABELS, signals=mixaug.Signals(features=features), generator=seeded(1))
        torch.testing.assert_close(plan.mask.mean((1, 2)), wanted.expand(6), atol=1e-5, rtol=0)
    policy = drawn("automix", mask_adjust=0.25, ratio=0.3)
    given, generator = mixaug.Signals(features=features), seeded(2)
    means = [policy.draw(IMAGES, LABELS, signals=given, generator=generator).mask.mean() for _ in range(400)]
    adjusted = sum(abs(float(mean) - 0.3) < 1e-4 for mean in means)
    assert abs(adjusted - 100) < 4 * math.sqrt(400 * 0.25 * 0.75)


@pytest.mark.parametrize("lam", [0.0, 0.05, 0.08, 0.92, 1.0])
def test_a_lambda_near_its_ends_gives_a_plain_blend(lam):
    policy = drawn("automix", ratio=lam)
    given = mixaug.Signals(features=torch.rand(6, 32, 4, 4))
    mixed = policy(IMAGES, LABELS, signals=given, generator=seeded(1))
    partner = mixed.sources[:, 1]
    torch.testing.assert_close(mixed.inputs, F.mixup(IMAGES, partner, torch.full((6,), lam)))
    step = step_of("samix", ratio=lam)
    loss, _ = step(IMAGES, LABELS, generator=seeded(1))
    loss.backward()
    assert all(g.isfinite().all() for g in gradients(step).values())


def test_labels_follow_lambda_or_the_mask():
    given = mixaug.Signals(features=torch.rand(6, 32, 4, 4))
    for labeling in ("ratio", "area"):
        policy = drawn("automix", labeling=labeling, ratio=0.3)
        mixed = policy(IMAGES, LABELS, signals=given, generator=seeded(1))
        expected = mixed.mask.mean((1, 2, 3)) if labeling == "area" else torch.full((6,), 0.3)
        torch.testing.assert_close(mixed.lam, expected)


def test_only_a_lambda_channel_lets_the_mask_follow_lambda():
    own, other = torch.rand(2, 6, 32, 4, 4, generator=seeded(1))
    for channel in (True, False):
        policy = drawn("automix", lam_channel=channel)
        low, high = (policy.masks(own, other, torch.tensor([lam]), (16, 16)) for lam in (0.2, 0.8))
        assert torch.equal(low, high) is not channel
    assert not torch.equal(*(drawn("samix").masks(own, other, torch.tensor([lam]), (16, 16)) for lam in (0.2, 0.8)))


def test_a_fresh_block_mixes_half_and_half():
    policy = drawn("automix", loud=False)
    mask = policy.masks(*torch.rand(2, 6, 32, 4, 4), torch.tensor([0.5]), (16, 16))
    assert (mask - 0.5).abs().max() < 0.1


def test_fused_attention_is_the_same():
    query, key = torch.randn(2, 3, 20, 16, generator=seeded(1), dtype=torch.float64)
    value = torch.randn(3, 20, 1, generator=seeded(2), dtype=torch.float64, requires_grad=True)
    plain, fused = blocks.attended(query, key, value), blocks.fused_attention(query, key, value)
    torch.testing.assert_close(fused, plain)
    assert fused.shape == (3, 20, 1)
    ours, theirs = (torch.autograd.grad(x.square().sum(), value)[0] for x in (fused, plain))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(16, 24), (64, 64), (12, 20)], ids=str)
def test_sizes_and_stages_of_a_cnn(name, size):
    images = torch.randn(3, 3, *size, generator=seeded(1))
    # The first stage of the largest image has 4096 places, whose attention takes seconds and runs no other code.
    for stage in (None, -1) if size == (64, 64) else (None, "layer1", 0, -1):
        step = step_of(name, stage=stage)
        loss, _ = step(images, LABELS[:3], generator=seeded(1))
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad is not None for p in step.policy.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", NAMES)
def test_a_transformer_gives_its_middle_block(name):
    step = step_of(name, model=vit())
    assert step.policy.network.stage == "blocks.1"
    assert step.policy.channels == 32
    images = torch.randn(5, 3, 16, 24, generator=seeded(1))
    clean = mixaug.ModelSignals(step.model).of(images, LABELS[:5])
    plan = step.policy.draw(images, LABELS[:5], signals=clean, generator=seeded(1))
    assert plan.features.shape == (5, 32, 4, 6)
    step(images, LABELS[:5], generator=seeded(1))[0].backward()


def test_torchvision_models_tell_their_stages_by_name():
    torchvision = pytest.importorskip("torchvision")
    step = step_of("automix", model=torchvision.models.resnet18(num_classes=5))
    assert (step.policy.network.stage, step.policy.channels) == ("layer3", 256)


def test_what_follows_the_stage_is_not_run_for_the_features_and_no_hook_stays():
    policy = drawn("automix", stage="layer2")
    ran = []
    hook = policy.network.model.layer3.register_forward_hook(lambda *_: ran.append(1))
    features = policy.network.features(IMAGES)
    assert (ran, features.requires_grad) == ([], False)
    again, outputs = policy.network.features_and_outputs(IMAGES)
    assert len(ran) == 1
    torch.testing.assert_close(again, features)
    assert outputs.shape == (6, 5)
    hook.remove()
    with pytest.raises(RuntimeError):
        policy.network.features(IMAGES[:, :1])
    assert not any(m._forward_hooks for m in policy.network.modules())


def test_momentum_rises_by_a_cosine_that_is_entered_late():
    assert momentum_at(0.05, 0.9, 1.0) == 0.9
    assert momentum_at(0.1, 0.9, 1.0) == pytest.approx(1 - 0.1 * (math.cos(0.1 * math.pi) + 1) / 2)
    assert momentum_at(1.0, 0.9, 1.0) == 1.0
    assert momentum_at(0.8, 0.9, 1.0, (0.1, 0.8)) == 1.0


def test_the_slow_copy_follows_weights_and_not_buffers():
    step = step_of("automix", momentum=0.75, momentum_end=None)
    slow, model, policy = step.policy.network.model, step.model, step.policy
    before = copy.deepcopy(slow)
    policy.after_step(model)
    for (name, now), old, fast in zip(slow.named_parameters(), before.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(now, 0.75 * old + 0.25 * fast.detach(), msg=name)
    for (name, now), old in zip(slow.named_buffers(), before.buffers(), strict=True):
        assert torch.equal(now, old), name
    with pytest.raises(ValueError, match="without wrappers"):
        policy.after_step(resnet(classes=4).layer1)


def test_the_slow_copy_is_reached_inside_other_policies_too():
    inner = mixaug.create("automix", momentum=0.5, momentum_end=None)
    step = mixaug.MixStep(resnet(), mixaug.Sometimes(mixaug.OneOf([inner, "cutmix"])), MixedCrossEntropy())
    with torch.no_grad():
        step.model.fc.bias.add_(1)
    old = inner.network.model.fc.bias.clone()
    step.policy.after_step(step.model)
    torch.testing.assert_close(inner.network.model.fc.bias, old + 0.5)


def test_loops_that_forget_something_are_told(monkeypatch):
    monkeypatch.setattr(loop, "STEPS_WITHOUT_AFTER_STEP", 3)
    step = step_of("automix")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            step(IMAGES, LABELS)
    with pytest.warns(RuntimeWarning, match=r"call policy\.after_step"):
        step(IMAGES, LABELS)
    with pytest.warns(RuntimeWarning, match=r"call policy\.set_progress"):
        step.policy.after_step(step.model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step.policy.after_step(step.model)


def test_the_weight_of_the_mask_loss_can_fall():
    policy = drawn("automix", mask_weight=0.2, mask_weight_end=0.0)
    policy.set_progress(0.5)
    assert policy.mask_weight_now() == pytest.approx(0.1)
    policy.set_progress(1.0)
    assert policy.mask_weight_now() == pytest.approx(0.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["automix", "samix"])
def test_compiled_half_precision_and_without_gradients(name):
    plain, compiled = step_of(name), step_of(name)
    compiled.model.compile(backend="eager")
    expected, got = (step(IMAGES, LABELS, generator=seeded(1)) for step in (plain, compiled))
    torch.testing.assert_close(got[0], expected[0])
    expected[0].backward()
    got[0].backward()
    wanted = gradients(plain)
    for key, value in gradients(compiled).items():
        torch.testing.assert_close(value, wanted[key], rtol=1e-3, atol=1e-5, msg=key)
    step = step_of(name)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = step(IMAGES, LABELS, generator=seeded(1))
    loss.backward()
    torch.testing.assert_close(loss, expected[0], rtol=0.03, atol=0)
    assert all(g.isfinite().all() for g in gradients(step).values())
    with torch.no_grad():
        loss, scalars = step_of(name)(IMAGES, LABELS, generator=seeded(1))
    torch.testing.assert_close(loss, expected[0].detach())
    assert not any(value.requires_grad for value in scalars.values())


def test_the_clean_head_takes_the_place_of_parameters_by_their_names(monkeypatch):
    # torch happens to find them under the names without the wrapper, too, but promises the present ones alone.
    swaps = []

    def call(module, swapped, arguments):
        swaps.append((set(swapped), {name for name, _ in module.named_parameters()}))
        return torch.func.functional_call(module, swapped, arguments)

    monkeypatch.setattr(clean, "functional_call", call)
    for model in (resnet(), torch.compile(resnet(), backend="eager")):
        with torch.compiler.set_stance("force_eager"):
            step_of("automix", model=model)(IMAGES, LABELS, generator=seeded(1))
        step_of("automix", model=resnet(), clean_head=False)(IMAGES, LABELS, generator=seeded(1))
    assert [len(given) for given, _ in swaps] == [2, 0, 2, 0]
    assert all(given <= known for given, known in swaps), swaps


def test_a_wrapped_compiled_model_uses_the_clean_head_too():
    plain = step_of("automix")
    model = torch.compile(resnet(), backend="eager")
    compiled = step_of("automix", model=model)
    assert compiled.policy.network.model is not model
    # What the wrapper hides is the matter here; graphs with hooks are that of test_step.py.
    with torch.compiler.set_stance("force_eager"):
        expected, got = (step(IMAGES, LABELS, generator=seeded(1))[1] for step in (plain, compiled))
    for name in ("clean_loss", "generator_loss", "loss"):
        torch.testing.assert_close(got[name], expected[name])


@pytest.mark.parametrize("name", NAMES)
def test_one_sample_and_a_policy_that_is_not_drawn_give_every_parameter_a_gradient(name):
    step = step_of(name)
    loss, _ = step(IMAGES[:1], LABELS[:1])
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in step.policy.parameters() if p.requires_grad)
    step = mixaug.MixStep(resnet(), mixaug.OneOf([mixaug.create(name), "cutmix"], [0.0, 1.0]), MixedCrossEntropy())
    step(IMAGES, LABELS)[0].backward()
    assert all(p.grad is not None and not p.grad.any() for p in step.policy.parameters() if p.requires_grad)
    step = mixaug.MixStep(resnet(), mixaug.OneOf([mixaug.create(name), "cutmix"], per="sample"), MixedCrossEntropy())
    with pytest.raises(ValueError, match="adds a loss for whole batches"):
        step(IMAGES, LABELS)


@pytest.mark.parametrize("name", NAMES)
def test_copies_and_states_are_whole(name):
    step = step_of(name)
    again = step_of(name)
    for parameter in again.parameters():
        parameter.data.zero_()
    again.load_state_dict(step.state_dict())
    expected, _ = copy.deepcopy(step)(IMAGES, LABELS, generator=seeded(1))
    for other in (again, pickle.loads(pickle.dumps(step))):
        assert torch.equal(other(IMAGES, LABELS, generator=seeded(1))[0], expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_mixer_is_trained_once_and_used_elsewhere(name, tmp_path):
    trained = step_of(name)
    trained.policy.save_mixer(tmp_path / "mixer.pt")
    # Other classes, other image size: neither belongs to the mixer.
    step = mixaug.MixStep(resnet(classes=7), mixaug.create(name, mixer=tmp_path / "mixer.pt"), MixedCrossEntropy())
    policy = step.policy.train()
    assert policy.frozen
    assert policy.mixer_parameters() == []
    assert not policy.block.training
    assert not policy.network.training
    for key, value in trained.policy.block.state_dict().items():
        assert torch.equal(policy.block.state_dict()[key], value)
    before = copy.deepcopy(policy.state_dict())
    images = torch.randn(6, 3, 24, 40, generator=seeded(1))
    loss, scalars = step(images, LABELS, generator=seeded(1))
    loss.backward()
    policy.after_step(step.model)
    assert {"clean_loss", "loss", "accuracy"} == scalars.keys()
    after = policy.state_dict()
    assert all(
        torch.equal(v, before[key]) if isinstance(v, torch.Tensor) else v == before[key] for key, v in after.items()
    )
    features = trained.policy.eval().network.features(images)
    own = policy.draw(images, LABELS, signals=step.model, generator=seeded(1))
    torch.testing.assert_close(own.features, features)
    # A checkpoint of a run holds the policy under a key of its own.
    torch.save({"policy": trained.policy.state_dict(), "epoch": 3}, tmp_path / "last.pt")
    other = mixaug.create(name, mixer=tmp_path / "last.pt")
    other.attach(resnet(classes=7))
    assert all(torch.equal(a, b) for a, b in zip(other.block.parameters(), policy.block.parameters(), strict=True))


def test_a_mixer_may_look_through_another_network_than_the_model(tmp_path):
    trained = step_of("samix")
    trained.policy.save_mixer(tmp_path / "mixer.pt")
    policy = mixaug.create("samix", mixer=tmp_path / "mixer.pt", encoder=resnet(classes=2))
    step = mixaug.MixStep(vit(), policy, MixedCrossEntropy())
    images = torch.randn(6, 3, 16, 24, generator=seeded(1))
    step(images, LABELS, generator=seeded(1))[0].backward()
    assert isinstance(policy.network.model, type(resnet()))
    with pytest.raises(ValueError, match=r"trained with stage='layer2'"):
        mixaug.create("samix", mixer=tmp_path / "mixer.pt").attach(vit())
    with pytest.raises(ValueError, match="beside that mixer, which stays frozen"):
        mixaug.create("samix", encoder=vit())


def test_a_mixer_that_does_not_fit_is_refused(tmp_path):
    step_of("automix").policy.save_mixer(tmp_path / "mixer.pt")
    policy = mixaug.create("automix", stage="layer1", mixer=tmp_path / "mixer.pt")
    with pytest.raises(ValueError, match=r"has stage='layer1', but .* was trained with stage='layer2'"):
        policy.attach(resnet())
    # A failed call leaves nothing behind that another would take for the trained mixer.
    with pytest.raises(ValueError, match="has stage='layer1'"):
        policy.attach(resnet())
    with pytest.raises(ValueError, match="another network: it lacks"):
        mixaug.create("automix", mixer=tmp_path / "mixer.pt").attach(models.create("cifar_resnet20", num_classes=5))
    with pytest.raises(ValueError, match="trained at a stage of another width"):
        mixaug.create("automix", mixer=tmp_path / "mixer.pt").attach(resnet(channels=(16, 48, 64)))
    with pytest.raises(ValueError, match=r"has lam_channel=False, but .* was trained with lam_channel=True"):
        mixaug.create("automix", lam_channel=False, mixer=tmp_path / "mixer.pt").attach(resnet())
    with pytest.raises(ValueError, match=r"has kind='AdAutoMix', but .* was trained with kind='AutoMix'"):
        mixaug.create("adautomix", mixer=tmp_path / "mixer.pt").attach(resnet())
    with pytest.raises(ValueError, match="has kind='SAMix'"):
        mixaug.create("samix", mixer=tmp_path / "mixer.pt").attach(resnet())
    step_of("samix").policy.save_mixer(tmp_path / "samix.pt")
    with pytest.raises(ValueError, match=r"has k=-1.0, but .* was trained with k=0.25"):
        mixaug.create("samix", k=-1, mixer=tmp_path / "samix.pt").attach(resnet())
    (tmp_path / "broken.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"cannot read .* as a mixer"):
        mixaug.create("automix", mixer=tmp_path / "broken.pt").attach(resnet())
    torch.save({"model": {}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="found no mixer in"):
        mixaug.create("automix", mixer=tmp_path / "other.pt").attach(resnet())
    with pytest.raises(FileNotFoundError):
        mixaug.create("automix", mixer=tmp_path / "none.pt").attach(resnet())
    with pytest.raises(ValueError, match="has no momentum network yet"):
        mixaug.create("automix").mixer_state()


def test_stages_and_features_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"stage 9 does not exist; the model has 4 stages: .*layer3"):
        mixaug.create("automix", stage=9).attach(resnet())
    with pytest.raises(ValueError, match=r"no module 'layer9'; its modules include .*layer3"):
        mixaug.create("automix", stage="layer9").attach(resnet())
    plain = nn.Sequential(nn.Flatten(), nn.Linear(768, 5))
    with pytest.raises(ValueError, match=r"does not tell its stages.*stage="):
        mixaug.create("automix", clean_head=False).attach(plain)
    with pytest.raises(ValueError, match=r"feature map of 1x1 from stage 'layer3'"):
        step_of("automix", stage=-1)(torch.randn(4, 3, 4, 4), LABELS[:4])
    policy = mixaug.create("automix", channels=8)
    with pytest.raises(ValueError, match=r"mixer for 8 channels, but the features of stage None have 6"):
        policy(IMAGES, LABELS, signals=mixaug.Signals(features=torch.rand(6, 6, 4, 4)))
    with pytest.raises(ValueError, match=r"no mixer yet: train through mixaug\.MixStep"):
        mixaug.create("automix")(IMAGES, LABELS, signals=mixaug.Signals(features=torch.rand(6, 6, 4, 4)))
    with pytest.raises(ValueError, match="no momentum network yet"):
        policy(IMAGES, LABELS, signals=resnet())
    with pytest.raises(ValueError, match="needs features"):
        policy(IMAGES, LABELS)
    policy = drawn("automix")
    with pytest.raises(TypeError, match=r"does not take images of torch\.uint8"):
        policy(IMAGES.byte(), LABELS, signals=resnet())
    with pytest.raises(ValueError, match="attached to another model already"):
        policy.attach(models.create("cifar_resnet20", num_classes=5))


@pytest.mark.parametrize(("options", "message"), [
    ({"clean_weight": -1.0}, "clean_weight as a number that is not negative"),
    ({"mask_weight": float("nan")}, "mask_weight"),
    ({"momentum": 1.5}, "momentum"),
    ({"frozen": "no"}, "frozen as True or False, got 'no'"),
    ({"stage": 1.5}, "stage as the name of a module or a number, got 1.5"),
    ({"scope": 0.1}, "scope as \\(low, high\\), 0 <= low <= high <= 1, got 0.1"),
    ({"scope": (0.5, 0.2)}, "scope as \\(low, high\\), 0 <= low <= high <= 1, got"),
    ({"generator_share": 0.0}, r"generator_share in \(0, 1\]"),
    ({"clean_share": 0.0}, r"clean_share in \(0, 1\]"),
    ({"generator_probability": 2.0}, "generator_probability"),
    ({"upsampling": "cubic"}, "upsampling 'nearest' or 'bilinear', got 'cubic'"),
    ({"mask_adjust": -0.1}, "mask_adjust"),
    ({"channels": 1}, "channels as an integer >= 2"),
    ({"alpha": 0.0}, "alpha"),
])  # fmt: skip
@pytest.mark.parametrize("name", NAMES)
def test_bad_options_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        mixaug.create(name, **options)


@pytest.mark.parametrize("name", NAMES)
def test_of_a_branch_that_is_done_nothing_is_kept_but_the_features(name):
    step = step_of(name)
    clean = mixaug.ModelSignals(step.model).of(IMAGES, LABELS)
    mixed = step.policy(IMAGES, LABELS, signals=clean, generator=seeded(1))
    saved, alive = [], []

    def keep(tensor):
        # A view shares its storage with what it is a view of: the object that autograd holds is what counts.
        held = tensor.detach()
        saved.append(tensor.numel())
        alive.append(weakref.ref(held))
        return held

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda held: held):
        terms = step.policy.early_loss(IMAGES, mixed, clean)
    assert sum(saved) > 100_000
    left = [held() for held in alive if held() is not None]
    assert sum(tensor.numel() for tensor in left) <= 16
    sum(terms.values()).backward()
    assert all(p.grad is not None for p in step.policy.block.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", [*NAMES, "adautomix"])
def test_a_step_of_another_precision(name, dtype):
    step = step_of(name).to(dtype)
    loss, _ = step(IMAGES.to(dtype), LABELS, generator=seeded(1))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.dtype == dtype for p in step.policy.block.parameters())


def test_a_loop_without_the_early_loss_is_told():
    policy, model = drawn("automix"), resnet()
    mixed = policy(IMAGES, LABELS, signals=model)
    with policy.tap(model, mixed) as seen:
        model(mixed.inputs)
    with pytest.warns(RuntimeWarning, match=r"learns from policy\.early_loss"):
        policy.auxiliary_loss(mixed, seen)


def test_channels_last_reaches_the_slow_copy_and_changes_nothing():
    plain, moved = step_of("automix"), step_of("automix").to(memory_format=torch.channels_last)
    weight = moved.policy.network.model.layer2[0].conv2.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    expected, got = (step(images, LABELS, generator=seeded(1))[0] for step, images in (
        (plain, IMAGES), (moved, IMAGES.to(memory_format=torch.channels_last))))  # fmt: skip
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_a_mixer_inside_other_policies_is_found_in_a_checkpoint(tmp_path):
    inner = mixaug.create("automix")
    outer = mixaug.Sometimes(inner, 0.5)
    outer.attach(resnet())
    torch.save({"policy": outer.state_dict()}, tmp_path / "last.pt")
    policy = mixaug.create("automix", mixer=tmp_path / "last.pt")
    policy.attach(resnet(classes=3))
    assert torch.equal(policy.block.query.weight, inner.block.query.weight)
    twice = mixaug.OneOf([mixaug.create("automix"), mixaug.create("automix")])
    twice.attach(resnet())
    torch.save({"policy": twice.state_dict()}, tmp_path / "two.pt")
    with pytest.raises(ValueError, match="found 2 mixers in"):
        mixaug.create("automix", mixer=tmp_path / "two.pt").attach(resnet())


class Whole(nn.Module):
    """A model all of which is run again during the backward pass."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def get_classifier(self):
        return self.model.get_classifier()

    def forward(self, images):
        return torch.utils.checkpoint.checkpoint(self.model, images, use_reentrant=False)


def test_a_checkpoint_around_the_classifier_changes_nothing():
    plain = step_of("automix", stage="layer2")
    again = step_of("automix", model=Whole(resnet()), stage="model.layer2", channels=32)
    again.policy.load_state_dict({**again.policy.state_dict(), **{
        name.replace("network.model.", "network.model.model."): value
        for name, value in plain.policy.state_dict().items() if name != "_extra_state"}})  # fmt: skip
    for step in (plain, again):
        step(IMAGES, LABELS, generator=seeded(1))[0].backward()
    wanted = {name: p.grad for name, p in plain.model.named_parameters()}
    for name, p in again.model.model.named_parameters():
        torch.testing.assert_close(p.grad, wanted[name], rtol=1e-4, atol=1e-6, msg=name)


class Tempered(nn.Module):
    """A loss with a parameter."""

    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(0.1))

    def forward(self, logits, mixed):
        return MixedCrossEntropy()(logits * self.log_scale.exp(), mixed)


@pytest.mark.parametrize(("name", "options"), [
    ("automix", {}), ("samix", {}), ("automix", {"clean_weight": 0.0}),
    ("adautomix", {}), ("adautomix", {"n_images": 2}),
], ids=str)  # fmt: skip
def test_a_parameter_of_the_loss_learns_from_every_term(name, options):
    step = step_of(name, objective=Tempered(), **options)
    step(IMAGES, LABELS, generator=seeded(1))[0].backward()
    scale, sides, eps = step.objective.log_scale, [], 1e-2
    for sign in (1, -1):
        with torch.no_grad():
            scale += sign * eps
            sides.append(float(step(IMAGES, LABELS, generator=seeded(1))[0]))
            scale -= sign * eps
    assert float(scale.grad) == pytest.approx((sides[0] - sides[1]) / (2 * eps), abs=2e-3)


def test_an_optimizer_that_does_not_know_the_mixer_is_noticed(monkeypatch):
    monkeypatch.setattr(loop, "STEPS_WITHOUT_CHANGE", 3)
    for known in (True, False):
        step = step_of("automix")
        step.policy.set_progress(0.1)
        optimizer = torch.optim.SGD((step if known else step.model).parameters(), 0.01)
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            for _ in range(5):
                step(IMAGES, LABELS)[0].backward()
                optimizer.step()
                step.zero_grad()
                step.policy.after_step(step.model)
        assert [w for w in found if "has not changed in 3 steps" in str(w.message)] if not known else not found


def test_what_is_frozen_in_the_model_is_frozen_in_the_copy():
    step = step_of("automix").train()
    step.model.bn1.eval() if hasattr(step.model, "bn1") else step.model.layer1.eval()
    twin = step.policy.network.model.bn1 if hasattr(step.model, "bn1") else step.policy.network.model.layer1
    before = {name: value.clone() for name, value in twin.state_dict().items()}
    step(IMAGES, LABELS, generator=seeded(1))
    assert not twin.training
    assert step.policy.network.model.layer3.training
    assert all(torch.equal(value, before[name]) for name, value in twin.state_dict().items())


def test_every_state_is_a_tensor_and_one_of_another_version_is_named():
    step = step_of("adautomix")
    assert all(isinstance(value, torch.Tensor) for value in step.state_dict().values())
    sizes = {name: value.shape for name, value in step.state_dict().items()}
    step.policy.steps = 123456
    assert {name: value.shape for name, value in step.state_dict().items()} == sizes
    with pytest.raises(ValueError, match="written by another version"):
        step.policy.set_extra_state(torch.tensor(3))


def test_half_precision_does_not_overflow_with_large_losses():
    # The factor that lifts small gradients must give way where the loss itself is large.
    parameter = nn.Parameter(torch.ones((), dtype=torch.float16))
    for size in (1e-4, 1.0, 1e3):
        handed = mixaug.signals.early_backward(parameter.float() * size, [parameter], 2.0**14)
        handed.backward()
        assert float(parameter.grad) == pytest.approx(size, rel=2e-3)
        parameter.grad = None


def test_classifiers_that_cannot_be_copied_have_a_way_out():
    model = resnet()
    torch.nn.utils.parametrizations.weight_norm(model.fc)
    with pytest.raises(ValueError, match="parametrized weights: clean_head=False"):
        mixaug.create("automix").attach(model)
    mixaug.MixStep(model, mixaug.create("automix", clean_head=False), MixedCrossEntropy())(IMAGES, LABELS)
    with pytest.raises(ValueError, match="clean_head=False lets"):
        mixaug.create("automix", stage="0", channels=4).attach(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()))


@pytest.mark.parametrize(
    "name",
    ["resnet10t", "efficientnet_b0", "vit_tiny_patch16_224", "convnext_atto", "regnetx_002", "mobilenetv3_small_050",
     "cifar_resnet8", "cifar_preact_resnet18", "swin_tiny_patch4_window7_224"],
)  # fmt: skip
def test_features_of_a_partial_pass_equal_those_of_a_whole_one(name):
    timm = pytest.importorskip("timm")
    side = {"swin_tiny_patch4_window7_224": 56}.get(name, 64)
    if name.startswith("cifar"):
        model = models.create(name, 3)
    else:
        model = timm.create_model(name, num_classes=3, **({"img_size": side} if "224" in name else {})).eval()
    stage = backbone.middle_stage(model)
    assert backbone.stage_number(model, stage) is not None
    network = MomentumNetwork(model.eval(), stage, backbone.stage_channels(model, stage))
    images = torch.rand(2, 3, side, side, generator=seeded(4))
    assert torch.equal(network.features(images), network.features_and_outputs(images)[0])


def test_a_model_without_stages_runs_to_its_end_for_its_features():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.rest = nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)

        def forward(self, x):
            return self.rest(self.body(x)).mean((2, 3))

    model, images = Plain(), torch.rand(2, 3, 8, 8, generator=seeded(5))
    # The module behind the stage works in place: what was recorded must not change with it.
    torch.testing.assert_close(MomentumNetwork(model, "body", 4).features(images), model.body(images).detach())
