"""AdAutoMix: block, blends and whole steps against twins, draws, both faults, alternation, passes, files."""

import copy
import io
import math
import weakref
from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy import stats
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.func import functional_call

import mixaug
from helpers import index_images, seeded
from mixaug import functional as F
from mixaug.data.loaders import digits
from mixaug.losses import MixedCrossEntropy
from mixaug.models import create as create_model
from mixaug.policies.adautomix import AdaptiveMask
from mixaug.policies.learned.clean import rows_of
from mixaug.signals import Signals

IMAGES = torch.randn(6, 3, 16, 24, generator=seeded(0))
LABELS = torch.tensor([0, 3, 1, 4, 2, 0])


class Net(nn.Module):
    """Batch norm before and behind the stage; runs as far as the stage when asked, by timm's conventions."""

    feature_info: ClassVar = [{"module": "stage", "num_chs": 8, "reduction": 2}]

    def __init__(self):
        super().__init__()
        self.stage = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.rest = nn.Sequential(nn.Conv2d(8, 10, 3, 2, 1), nn.BatchNorm2d(10), nn.ReLU())
        self.fc = nn.Linear(10, 5)

    def forward(self, x):
        return self.fc(self.rest(self.stage(x)).mean((2, 3)))

    def forward_intermediates(self, x, indices, stop_early, intermediates_only, output_fmt):
        assert (indices, stop_early, intermediates_only, output_fmt) == ([0], True, True, "NCHW")
        return [self.stage(x)]


class Given:
    """Shares that are known."""

    def __init__(self, *values):
        self.values = values

    def __repr__(self):
        # In names of tests, which every worker has to give alike.
        return f"Given{self.values}"

    def __call__(self, draws):
        self.values = (*self.values[1:], self.values[0])
        return torch.tensor([self.values[-1]], dtype=torch.float64)


def made(seed=1, **options):
    """A step around Net, and a block whose masks are far from even."""
    torch.manual_seed(seed)
    model = Net()
    policy = mixaug.create("adautomix", **{"stage": "stage", "momentum_end": None, **options})
    step = mixaug.MixStep(model, policy, MixedCrossEntropy(label_smoothing=0.1))
    with torch.no_grad():
        for p in policy.block.parameters():
            p.normal_(0, 1.5)
        for p in policy.network.model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return step


def mix(images, labels=None, seed=0, **options):
    policy = mixaug.create("adautomix", **{"channels": 8, **options})
    with torch.no_grad():
        for p in policy.block.parameters():
            p.normal_(0, 1.0, generator=seeded(7))
    features = torch.randn(len(images), 8, 4, 6, generator=seeded(9))
    return policy(images, labels, signals=Signals(features=features), generator=seeded(seed))


def slow_masks(block, features, sources, shares, size, upsampling):
    """Image by image and sample by sample, each map with its own channel of its share."""
    count, number = sources.shape
    shares = shares.expand(count, number)
    samples = []
    for b in range(count):
        queries, keys, values = [], [], []
        for i in range(number):
            own = features[sources[b, i]][None]
            if block.lam_channel:
                own = torch.cat([own, torch.ones_like(own[:, :1]) * shares[b, i]], 1)
            queries.append(block.query(own).relu().flatten(2))
            keys.append(block.key(own).relu().flatten(2))
            values.append(block.value(own).flatten())
        images = []
        for i in range(number):
            others = torch.stack([keys[j] for j in range(number) if j != i]).sum(0)
            scores = queries[i][0].T @ others[0] / math.sqrt(block.query.out_channels)
            attention = scores.softmax(1)
            cells = (attention @ values[i]).reshape(1, 1, *features.shape[2:])
            options = {} if upsampling == "nearest" else {"align_corners": False}
            images.append(nn.functional.interpolate(cells, size=size, mode=upsampling, **options)[0, 0])
        samples.append(torch.stack(images).softmax(0))
    return torch.stack(samples)


def slow_blend(images, sources, masks):
    return torch.stack(
        [sum(m * images[s] for s, m in zip(sources[b], masks[b], strict=True)) for b in range(len(sources))]
    )


@pytest.mark.parametrize("number", [2, 3, 4])
@pytest.mark.parametrize("lam_channel", [False, True])
@pytest.mark.parametrize("upsampling", ["nearest", "bilinear"])
def test_masks_equal_the_slow_twin(number, lam_channel, upsampling):
    torch.manual_seed(0)
    block = AdaptiveMask(6, lam_channel)
    with torch.no_grad():
        for p in block.parameters():
            p.normal_()
    features = torch.randn(5, 6, 3, 4)
    sources = torch.randint(0, 5, (4, number))
    shares = torch.rand(4, number).softmax(1)
    masks = F.adautomix_masks(block(features, sources, shares), (6, 16), upsampling)
    expected = slow_masks(block, features, sources, shares, (6, 16), upsampling)
    torch.testing.assert_close(masks, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(masks.sum(1), torch.ones(4, 6, 16))
    assert masks.std() > 0.05
    shared = block(features, sources, shares[:1])
    torch.testing.assert_close(shared[0], block(features, sources, shares)[0])
    assert torch.allclose(shared, block(features, sources, shares), rtol=1e-3) != lam_channel


def test_blend_equals_the_slow_twin_in_every_dtype():
    sources = torch.tensor([[0, 3, 1], [1, 1, 2], [2, 0, 4], [3, 2, 2]])
    masks = torch.randn(4, 3, 6, 7, generator=seeded(1)).softmax(1)
    images = torch.rand(5, 2, 6, 7, generator=seeded(2))
    expected = slow_blend(images.double(), sources, masks.double())
    torch.testing.assert_close(F.adautomix(images, sources, masks), expected.float())
    torch.testing.assert_close(F.adautomix(images.double(), sources, masks), expected, rtol=1e-6, atol=1e-7)
    for dtype in (torch.float16, torch.bfloat16):
        own = slow_blend(images.to(dtype).float(), sources, masks).to(dtype)
        torch.testing.assert_close(F.adautomix(images.to(dtype), sources, masks), own, rtol=2**-7, atol=1e-3)
    eight = (images * 255).round().to(torch.uint8)
    off = F.adautomix(eight, sources, masks).float() - slow_blend(eight.double(), sources, masks.double())
    assert off.abs().max() <= 0.5 + 1e-4
    assert torch.equal(F.adautomix(torch.full_like(eight, 255), sources, masks), torch.full_like(eight[:4], 255))
    shares = torch.tensor([[0.5, 0.3, 0.2]])
    whole = shares[:, :, None, None].expand(4, 3, 6, 7)
    torch.testing.assert_close(F.adautomix(images, sources, shares), F.adautomix(images, sources, whole))
    with pytest.raises(TypeError, match=r"pass num_classes to MixedBatch\.apply"):
        F.adautomix(eight.long(), sources, masks)


def test_similarity_equals_the_slow_twin():
    outputs = torch.randn(3, 5, generator=seeded(1), requires_grad=True)
    clean, sources = torch.randn(4, 5, generator=seeded(2)), torch.tensor([[0, 1], [1, 3], [2, 2]])
    shares = torch.tensor([[0.2, 0.8], [0.5, 0.5], [1.0, 0.0]])
    expected = sum(
        shares[b, i] * outputs[b] @ clean[sources[b, i]] / outputs[b].norm() / clean[sources[b, i]].norm()
        for b in range(3)
        for i in range(2)
    )
    found = F.adautomix_similarity(outputs, clean, sources, shares)
    torch.testing.assert_close(found, expected / 3)
    (gradient,) = torch.autograd.grad(found, outputs)
    assert gradient.abs().sum() > 0
    zero = F.adautomix_similarity(torch.zeros(3, 5), clean, sources, shares)
    assert zero.item() == 0
    with pytest.raises(ValueError, match=r"compares outputs \(B, K\).*got \(3, 5, 2\); beta=1"):
        F.adautomix_similarity(torch.zeros(3, 5, 2), clean, sources, shares)


def twin(step, images, labels, plan):
    """The sheet's loss, all of it in one graph with one backward; and the networks with their running statistics."""
    policy, objective = copy.deepcopy(step.policy), step.objective
    model, slow = copy.deepcopy(step.model), policy.network.model
    number, count = plan.inputs.shape[1], rows_of(policy.generator_share, len(images))
    adversarial = policy.steps % 2 == 0

    def soft(outputs, sources, shares):
        shares = shares.expand(len(sources), number)
        logs = outputs.log_softmax(1)
        total = 0
        for b, i in np.ndindex(*sources.shape):
            target = torch.full((5,), 0.1 / 5)
            target[labels[sources[b, i]]] += 0.9
            total = total - shares[b, i] * (target * logs[b]).sum() / len(sources)
        return total

    with torch.no_grad():
        features = slow.stage(images)
        clean = slow.fc(slow.rest(features).mean((2, 3))) if adversarial else None
    size = tuple(images.shape[2:])
    masks = slow_masks(policy.block, features, plan.inputs, plan.shares, size, policy.upsampling).detach()
    own = plan.shares[:, :1].expand(len(images), 1)
    faulty = policy.reference and number > 2
    for b in range(len(images)):
        low, high = own[b] <= policy.min_lam, 1 - own[b] > policy.min_lam
        if low or (high if faulty else 1 - own[b] <= policy.min_lam):
            masks[b] = plan.shares.expand(len(images), number)[b][:, None, None]
    head = {f"fc.{name}": p for name, p in policy.clean_head.named_parameters()}
    one = objective(functional_call(model, head, (images,)), mixaug.batch.unmixed(images, labels))
    if number > 2:
        linear = slow_blend(images, plan.inputs, plan.shares.expand(len(images), number))
        one = (1 - policy.mixup_ratio) * one + policy.mixup_ratio * soft(model(linear), plan.inputs, plan.shares)
    sources, shares = plan.generator_inputs[:count], plan.generator_shares[:count]
    seen = slow_masks(policy.block, features, sources, shares, size, policy.upsampling)
    outputs = slow(slow_blend(images, sources, seen))
    learned = soft(outputs, sources, shares)
    if adversarial:
        cosines = nn.functional.cosine_similarity(outputs[:, None], clean[sources], dim=2)
        similarity = (shares.expand(count, number) * cosines).sum(1).mean()
        sign = 1 if policy.reference else -1
        learned = -policy.beta * learned + sign * (1 - policy.beta) * similarity
    blended = slow_blend(images, plan.inputs, masks)
    loss = policy.clean_weight * one + learned + soft(model(blended), plan.inputs, plan.shares)
    loss.backward()
    return loss.detach(), model, policy


@pytest.mark.parametrize("steps", [0, 1], ids=["adversarial", "cooperative"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reference": True},
        {"n_images": 2},
        {"n_images": 2, "reference": True, "per": "sample"},
        {"n_images": 4, "lam_channel": False, "per": "sample", "upsampling": "nearest"},
        {"generator_share": 0.5, "clean_weight": 0.7, "mixup_ratio": 0.2, "beta": 0.1},
        {"ratio": Given(0.02, 0.9, 0.6)},
    ],
    ids=str,
)
def test_a_step_equals_its_twin_of_one_graph(steps, options):
    step = made(**options)
    step.policy.steps = steps
    before, plans = copy.deepcopy(step), []
    hook = step.policy.register_forward_hook(lambda _, inputs, mixed: plans.append(mixed.plan))
    loss, _ = step(IMAGES, LABELS, generator=seeded(3))
    hook.remove()
    loss.backward()
    expected, model, policy = twin(before, IMAGES, LABELS, plans[0])
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in ((step.model, model), (step.policy, policy)):
        assert dict(ours.named_buffers()).keys() == dict(theirs.named_buffers()).keys()
        for (name, buffer), other in zip(ours.named_buffers(), theirs.buffers(), strict=True):
            torch.testing.assert_close(buffer, other, rtol=1e-4, atol=1e-6, msg=name)
        for (name, p), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert (p.grad is None) == (other.grad is None), name
            if p.grad is not None:
                scale = other.grad.abs().max().item()
                torch.testing.assert_close(p.grad, other.grad, rtol=1e-3, atol=1e-4 * scale + 1e-6, msg=name)
    gradients = {name: p.grad for name, p in step.policy.block.named_parameters()}
    assert gradients["query.weight"].abs().max() > 1e-4
    # The bias of the values is in the logits of all images alike.
    assert gradients["value.bias"].abs().max() < 1e-5


def test_every_branch_is_gone_before_the_next_begins():
    step = made()
    alive, refs = [], []

    def watch(module, inputs, outputs):
        alive.append(sum(ref() is not None for ref in refs))
        refs.extend([weakref.ref(inputs[0]), weakref.ref(outputs)])

    for module in (step.model.fc, step.policy.network.model.fc):
        module.register_forward_hook(watch)
    step(IMAGES, LABELS, generator=seeded(3))[0].backward()
    # The momentum network on the clean images, whose outputs stay; clean; its own mixture; plain blend; mixture.
    assert alive == [0, 1, 1, 1, 1]


def test_sources_are_the_sample_and_independent_permutations():
    policy, generator = mixaug.create("adautomix", channels=2), seeded(0)
    images, signals = torch.zeros(3, 1, 2, 2), Signals(features=torch.zeros(3, 2, 1, 2))
    found = [policy.draw(images, signals=signals, generator=generator).sources for _ in range(720)]
    assert all(torch.equal(sources[:, 0], torch.arange(3)) for sources in found)
    kinds = {}
    for sources in found:
        assert sorted(sources[:, 1].tolist()) == sorted(sources[:, 2].tolist()) == [0, 1, 2]
        key = tuple(sources[:, 1:].flatten().tolist())
        kinds[key] = kinds.get(key, 0) + 1
    assert len(kinds) == 36
    assert stats.chisquare(list(kinds.values())).pvalue > 1e-3


def test_mixtures_of_permutations_are_ours_in_another_order():
    # The reference permutes all images: its mixtures are these, with the batch in the order of the first permutation.
    index = torch.stack([torch.randperm(6, generator=seeded(s)) for s in range(3)])
    shares = torch.tensor([[0.5, 0.3, 0.2]])
    theirs = sum(share * IMAGES[rows] for share, rows in zip(shares[0], index, strict=True))
    ours = F.adautomix(IMAGES, index[:, index[0].argsort()].T, shares)
    torch.testing.assert_close(ours[index[0]], theirs)


def test_shares_are_normalised_draws_common_to_both_branches():
    images = torch.zeros(400, 1, 8, 12)
    plan = mix(images, per="sample").plan
    assert plan.shares.shape == (400, 3)
    assert plan.generator_shares is plan.shares
    torch.testing.assert_close(plan.shares.sum(1), torch.ones(400))
    expected = np.random.default_rng(0).random((100_000, 3))
    expected = (expected / expected.sum(1, keepdims=True))[:, 1]
    assert stats.ks_2samp(plan.shares[:, 1].numpy(), expected).pvalue > 1e-3
    once = mix(images).plan
    assert once.shares.shape == (1, 3)
    assert torch.equal(mix(images).weights, once.shares.expand(400, 3))
    assert not torch.equal(once.inputs, once.generator_inputs)
    two = mix(images, n_images=2).plan
    assert two.shares.shape == two.generator_shares.shape == (1, 2)
    assert not torch.equal(two.shares, two.generator_shares)
    assert torch.equal(two.weights, two.shares.expand(400, 2))


@pytest.mark.parametrize("value", [0.0, 0.4, 1.0])
def test_equal_shares_whatever_the_constant(value):
    plan = mix(IMAGES, ratio=value).plan
    torch.testing.assert_close(plan.shares, torch.full((1, 3), 1 / 3))
    assert plan.masks.isfinite().all()


@pytest.mark.parametrize(
    ("own", "reference", "plain"),
    [
        (0.02, False, True),
        (0.02, True, True),
        (0.5, False, False),
        (0.5, True, True),
        (0.96, False, False),
        (0.96, True, True),
        (0.98, False, True),
        (0.98, True, False),
    ],
)
def test_when_the_classifier_gets_a_plain_blend_of_three(own, reference, plain):
    rest = (1 - own) / 2
    mixed = mix(IMAGES, ratio=Given(own, rest, rest), reference=reference)
    blend = F.adautomix(IMAGES, mixed.sources, torch.tensor([[own, rest, rest]]))
    assert torch.allclose(mixed.inputs, blend, atol=1e-5) == plain


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize(("own", "plain"), [(0.0, True), (0.03, True), (0.5, False), (0.98, True), (1.0, True)])
def test_when_the_classifier_gets_a_plain_blend_of_two(own, plain, reference):
    mixed = mix(IMAGES, ratio=Given(own), reference=reference, n_images=2)
    blend = own * IMAGES + (1 - own) * IMAGES[mixed.partner]
    assert torch.allclose(mixed.inputs, blend, atol=1e-5) == plain
    assert mixed.lam.tolist() == pytest.approx([own] * 6)


def test_labels_by_area_follow_the_masks():
    by_area, drawn = (mix(IMAGES, LABELS, labeling=labeling) for labeling in ("area", "ratio"))
    torch.testing.assert_close(by_area.weights, by_area.plan.masks.mean((2, 3)))
    torch.testing.assert_close(by_area.weights[:, :1], by_area.mask.mean((2, 3)))
    torch.testing.assert_close(by_area.weights.sum(1), torch.ones(6))
    assert not torch.allclose(by_area.weights, drawn.weights, atol=1e-2)
    assert torch.equal(by_area.inputs, drawn.inputs)
    two = mix(IMAGES, LABELS, labeling="area", n_images=2)
    torch.testing.assert_close(two.lam, two.mask.mean((1, 2, 3)))


def test_a_pixel_is_the_masks_mean_of_its_sources():
    images = index_images(6, 3, 16, 24)
    mixed = mix(images)
    expected = (mixed.plan.masks * mixed.sources[:, :, None, None]).sum(1)
    torch.testing.assert_close(mixed.inputs[:, 0], expected)
    assert torch.equal(mixed.mask[:, 0], mixed.plan.masks[:, 0])


def test_the_block_turns_against_the_classifier_in_every_other_step():
    step = made()
    optimizer = torch.optim.SGD(step.parameters(), lr=0.01)
    signs = []
    for _ in range(4):
        loss, terms = step(IMAGES, LABELS, generator=seeded(5))
        signs.append(terms["generator_loss"].item() > 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step.policy.after_step(step.model)
    # beta L + (1 - beta) S is positive here, so an adversarial term is negative.
    assert signs == [False, True, False, True]
    assert step.policy.steps == 4


def test_the_alternation_goes_on_after_a_checkpoint():
    step = made()
    step.policy.after_step(step.model)
    buffer = io.BytesIO()
    torch.save(step.state_dict(), buffer)
    buffer.seek(0)
    resumed = made(seed=2)
    assert resumed.policy.adversarial
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    assert resumed.policy.steps == 1
    assert not resumed.policy.adversarial
    copied = copy.deepcopy(step)
    terms = [s(IMAGES, LABELS, generator=seeded(5))[1] for s in (step, resumed, copied)]
    for other in terms[1:]:
        for name, value in terms[0].items():
            assert torch.equal(value, other[name]), name


@pytest.mark.parametrize(
    ("options", "steps", "model_passes", "whole", "stages"),
    [
        ({}, 0, 3, 2, 2),
        ({}, 1, 3, 1, 2),
        ({"beta": 1.0}, 0, 3, 1, 2),
        ({"mixup_ratio": 0.0}, 0, 2, 2, 2),
        ({"n_images": 2}, 0, 2, 2, 2),
        ({"clean_weight": 0.0}, 0, 1, 2, 2),
        ({"generator_probability": 0.0}, 0, 3, 0, 1),
        ({"frozen": True}, 0, 3, 0, 1),
    ],
    ids=str,
)
def test_passes_of_a_step_and_gradients_for_every_parameter(options, steps, model_passes, whole, stages):
    step = made(**options)
    step.policy.steps = steps
    counts = {"model": 0, "whole": 0, "stages": 0}

    def count(name):
        return lambda *_: counts.update({name: counts[name] + 1})

    step.model.fc.register_forward_hook(count("model"))
    step.policy.network.model.fc.register_forward_hook(count("whole"))
    step.policy.network.model.stage.register_forward_hook(count("stages"))
    loss, terms = step(IMAGES, LABELS, generator=seeded(5))
    loss.backward()
    assert list(counts.values()) == [model_passes, whole, stages]
    assert ("generator_loss" in terms) == (whole > 0)
    assert all(p.grad is not None for p in step.parameters() if p.requires_grad)
    if whole == 0:
        assert all(p.grad is None or not p.grad.any() for p in step.policy.block.parameters())


def test_generator_probability_is_the_share_of_steps_that_teach():
    policy, generator = mixaug.create("adautomix", channels=2, generator_probability=0.3), seeded(0)
    images, signals = torch.zeros(4, 1, 2, 2), Signals(features=torch.zeros(4, 2, 1, 2))
    learns = sum(policy.draw(images, signals=signals, generator=generator).learns for _ in range(500))
    assert stats.binomtest(learns, 500, 0.3).pvalue > 1e-3


def test_a_mixer_is_saved_and_used_frozen(tmp_path):
    step = made()
    step.policy.save_mixer(tmp_path / "mixer.pt")
    frozen = made(seed=4, mixer=str(tmp_path / "mixer.pt"))
    frozen.policy.load_mixer(tmp_path / "mixer.pt")
    for p, other in zip(frozen.policy.block.parameters(), step.policy.block.parameters(), strict=True):
        assert torch.equal(p, other)
    loss, terms = frozen(IMAGES, LABELS, generator=seeded(5))
    loss.backward()
    assert "generator_loss" not in terms
    assert terms["linear_loss"] > 0
    assert frozen.policy.mixer_parameters() == []
    assert all(p.grad is None for p in frozen.policy.block.parameters())
    # A checkpoint of a run holds the counter beside the weights.
    torch.save({"policy": step.policy.state_dict()}, tmp_path / "last.pt")
    frozen.policy.load_mixer(tmp_path / "last.pt")


@pytest.mark.parametrize("number", [2, 3])
def test_it_trains_on_digits(number):
    data = digits(train_size=100)
    images = (torch.stack([data.train[i][0] for i in range(100)]).float() / 127.5 - 1).expand(-1, 3, -1, -1)
    labels = torch.tensor([int(data.train[i][1]) for i in range(100)])
    torch.manual_seed(0)
    model = create_model("cifar_resnet8", num_classes=10)
    policy = mixaug.create("adautomix", n_images=number, stage="layer2")
    step = mixaug.MixStep(model, policy, MixedCrossEntropy())
    optimizer = torch.optim.SGD(step.parameters(), lr=0.05, momentum=0.9)
    before = copy.deepcopy(dict(policy.block.named_parameters()))
    slow = copy.deepcopy(policy.network.model.state_dict())
    losses, generator = [], seeded(0)
    for number_of_step in range(10):
        policy.set_progress(number_of_step / 10)
        rows = torch.randperm(100, generator=generator)[:32]
        loss, terms = step(images[rows], labels[rows], generator=generator)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in step.parameters() if p.requires_grad)
        optimizer.step()
        policy.after_step(model)
        assert all(value.isfinite() for value in terms.values())
        losses.append(terms["clean_loss"].item())
    assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4])
    for name, p in policy.block.named_parameters():
        assert name == "value.bias" or not torch.equal(p, before[name]), name
    assert any(not torch.equal(value, slow[name]) for name, value in policy.network.model.state_dict().items())


def test_a_transformer_trains():
    torch.manual_seed(0)
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5)
    policy = mixaug.create("adautomix")
    step = mixaug.MixStep(model, policy, MixedCrossEntropy())
    loss, terms = step(torch.randn(6, 3, 32, 32, generator=seeded(1)), LABELS, generator=seeded(2))
    loss.backward()
    assert loss.isfinite()
    assert set(terms) >= {"clean_loss", "linear_loss", "generator_loss", "accuracy"}
    assert all(p.grad is not None for p in step.parameters() if p.requires_grad)


def test_one_of_several_and_dense_labels():
    torch.manual_seed(0)
    policy = mixaug.OneOf([mixaug.create("adautomix", stage="stage", momentum_end=None), "mixup"], [0.5, 0.5])
    step = mixaug.MixStep(Net(), policy, MixedCrossEntropy())
    dense = nn.functional.one_hot(LABELS, 5).float()
    seen = set()
    for seed in range(8):
        loss, terms = step(IMAGES, dense, generator=seeded(seed))
        loss.backward()
        assert loss.isfinite()
        seen.add("generator_loss" in terms)
        assert all(p.grad is not None for p in step.parameters() if p.requires_grad)
        policy.after_step(step.model)
        step.zero_grad()
    assert seen == {True, False}


def test_a_batch_of_one_stays_as_it_is():
    step = made()
    loss, terms = step.eval()(IMAGES[:1], LABELS[:1])
    loss.backward()
    assert terms["not_mixed"] == 0
    assert all(p.grad is not None for p in step.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_images": 1}, "n_images as an integer >= 2, got 1"),
        ({"n_images": 2.0}, r"n_images as an integer >= 2, got 2\.0"),
        ({"n_images": True}, "n_images as an integer >= 2, got True"),
        ({"upsampling": "bicubic"}, "upsampling 'nearest' or 'bilinear', got 'bicubic'"),
        ({"beta": 1.5}, r"beta in \[0, 1\], got 1\.5"),
        ({"mixup_ratio": 1}, r"mixup_ratio in \[0, 1\), got 1"),
        ({"mixup_ratio": -0.1}, "mixup_ratio"),
        ({"min_lam": -1.0}, "min_lam as a number that is not negative"),
        ({"labeling": "attention"}, "labeling 'ratio' or 'area' for 3 images, got 'attention'; n_images=2 takes any"),
        ({"clean_weight": float("nan")}, "clean_weight"),
        ({"alpha": 0.0}, "alpha"),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        mixaug.create("adautomix", **options)


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="AdAutoMix needs features of the model"):
        mixaug.create("adautomix")(IMAGES)
    with pytest.raises(ValueError, match=r"AdAutoMix has no mixer yet.*channels="):
        mixaug.create("adautomix")(IMAGES, signals=Signals(features=torch.randn(6, 8, 4, 6)))
    policy = mixaug.create("adautomix", channels=8)
    with pytest.raises(ValueError, match=r"no mask can be made: name an earlier stage"):
        policy(IMAGES, signals=Signals(features=torch.randn(6, 8, 1, 1)))
    with pytest.raises(ValueError, match="a mixer for 8 channels, but the features of stage None have 4"):
        policy(IMAGES, signals=Signals(features=torch.randn(6, 4, 4, 6)))
    mixed = policy(IMAGES, LABELS, signals=Signals(features=torch.randn(6, 8, 4, 6)))
    with pytest.raises(ValueError, match=r"train through mixaug\.MixStep"):
        policy.early_loss(IMAGES, mixed, Signals(features=torch.randn(6, 8, 4, 6)))
    assert mixaug.create("adautomix", labeling="attention", n_images=2).n_images == 2
