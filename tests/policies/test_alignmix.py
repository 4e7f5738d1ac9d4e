"""AlignMixup beyond the contract: Sinkhorn, alignment in every layout, the coin, and the mix inside real models."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from scipy import stats
from torch._subclasses.fake_tensor import FakeTensorMode

import mixaug
import mixaug.models
from helpers import seeded
from mixaug import functional as F
from mixaug.losses import MixedCrossEntropy

PARTNER = torch.tensor([2, 0, 3, 1, 4])
LAM = torch.tensor([0.3, 0.9, 0.0, 1.0, 0.6])
DIRECTION = torch.tensor([0, 1, 1, 0, 1])
IMAGES = torch.randn(6, 3, 16, 16, generator=seeded(0))
LABELS = torch.arange(6) % 4
INSIDE = {"input_probability": 0.0}


def maps(*shape, seed=1, dtype=torch.float32, scale=0.3):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype) * scale


def slow_plan(cost, epsilon, iterations):
    """Sinkhorn's scaling of exp(-cost / epsilon), as in a textbook; one sample."""
    kernel = np.exp(-cost / epsilon)
    count = len(kernel)
    rows, columns = np.ones(count), np.ones(count)
    for _ in range(iterations):
        rows = (1 / count + 1e-8) / (kernel @ columns)
        columns = (1 / count + 1e-8) / (kernel.T @ rows)
    return rows[:, None] * kernel * columns


def slow_mix(features, reference, epsilon=0.1, iterations=20):
    """(B, r, C) by loops over the samples and their cells."""
    values = features.double().numpy()
    result = values.copy()
    for i, j in enumerate(PARTNER.tolist()):
        own, other, count = values[i], values[j], values.shape[1]
        cost = np.array([[((a - b) ** 2).sum() for b in other] for a in own])
        plan = slow_plan(cost, epsilon, iterations) * count
        lam = float(LAM[i].double())
        for cell in range(count):
            shares = plan[cell] if DIRECTION[i] == 0 else plan[:, cell]
            shares = shares if reference else shares / shares.sum()
            if DIRECTION[i] == 0:
                result[i, cell] = lam * own[cell] + (1 - lam) * shares @ other
            else:
                result[i, cell] = lam * shares @ own + (1 - lam) * other[cell]
    return torch.from_numpy(result)


def test_cost_is_the_squared_distance():
    cells, others = maps(3, 7, 5, scale=4.0) + 100, maps(3, 7, 5, seed=2, scale=4.0) + 100
    expected = (cells.double()[:, :, None] - others.double()[:, None]).square().sum(3)
    torch.testing.assert_close(F.alignment_cost(cells, others), expected.float(), rtol=1e-4, atol=1e-4)
    half = F.alignment_cost(cells.half() * 300, others.half() * 300)
    assert half.dtype == torch.float32
    assert half.isfinite().all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(F.alignment_cost(cells, others), F.alignment_cost(cells, others).float())
        assert F.alignment_cost(cells, others).dtype == torch.float32


@pytest.mark.parametrize("iterations", [1, 2, 30])
def test_sinkhorn_against_a_textbook(iterations):
    cost = torch.rand(3, 9, 9, generator=seeded(3), dtype=torch.float64)
    plan = F.sinkhorn_plan(cost, 0.1, iterations)
    for got, one in zip(plan, cost.numpy(), strict=True):
        np.testing.assert_allclose(got.numpy(), slow_plan(one, 0.1, iterations), rtol=1e-9)
    torch.testing.assert_close(plan.sum(1), torch.full((3, 9), 1 / 9 + 1e-8, dtype=torch.float64))


def test_sinkhorn_goes_to_the_optimal_transport():
    from scipy.optimize import linear_sum_assignment

    cost = torch.rand(2, 8, 8, generator=seeded(4), dtype=torch.float64)
    plan = F.sinkhorn_plan(cost, 2e-3, 3000)
    torch.testing.assert_close(plan.sum(2), torch.full((2, 8), 1 / 8, dtype=torch.float64), rtol=1e-3, atol=0)
    for got, one in zip(plan, cost.numpy(), strict=True):
        assert got.argmax(1).tolist() == linear_sum_assignment(one)[1].tolist()


def test_sinkhorn_at_extreme_costs():
    random = torch.rand(2, 4, 4, generator=seeded(5))
    for cost in (torch.zeros(2, 4, 4), torch.full((2, 4, 4), 1e6), random * 1e3):
        plan = F.sinkhorn_plan(cost)
        torch.testing.assert_close(plan.sum(1), torch.full((2, 4), 0.25), rtol=1e-2, atol=0)
    # Exponents beyond what float32 resolves: still shares.
    plan = F.sinkhorn_plan(random * 1e6)
    assert plan.isfinite().all()
    assert (plan.sum(2) > 0).all()
    torch.testing.assert_close(F.sinkhorn_plan(torch.full((2, 4, 4), 7.0)), torch.full((2, 4, 4), 1 / 16))


@pytest.mark.parametrize("reference", [True, False])
@pytest.mark.parametrize("scale", [0.1, 0.8])
def test_mix_against_a_loop(reference, scale):
    tokens = maps(5, 6, 4, dtype=torch.float64, scale=scale)
    expected = slow_mix(tokens, reference)
    options = {"reference": reference}
    torch.testing.assert_close(F.alignmix(tokens, PARTNER, LAM, DIRECTION, **options), expected)
    grid = tokens.reshape(5, 2, 3, 4)
    last = F.alignmix(grid, PARTNER, LAM, DIRECTION, channels_last=True, **options)
    torch.testing.assert_close(last.flatten(1, 2), expected)
    first = F.alignmix(grid.permute(0, 3, 1, 2).contiguous(), PARTNER, LAM, DIRECTION, **options)
    torch.testing.assert_close(first.flatten(2).transpose(1, 2), expected)
    # Prefix tokens are blended where they are.
    prefix = maps(5, 2, 4, seed=6, dtype=torch.float64)
    both = F.alignmix(torch.cat([prefix, tokens], 1), PARTNER, LAM, DIRECTION, prefix=2, **options)
    torch.testing.assert_close(both[:, 2:], expected)
    lam = LAM.double()[:, None, None]
    torch.testing.assert_close(both[:, :2], lam * prefix + (1 - lam) * prefix[PARTNER])


def test_a_moved_object_is_found_again():
    # The partner is the own image, turned around: aligned to it, nothing is left to blend.
    own = torch.eye(9)[None].reshape(1, 9, 3, 3) * 3
    features = torch.cat([own, own.flip(2, 3)])
    swap, half = torch.tensor([1, 0]), torch.tensor([0.5])
    torch.testing.assert_close(F.alignmix(features, swap, half, torch.tensor([0])), features)
    torch.testing.assert_close(F.alignmix(features, swap, half, torch.tensor([1])), features.flip(2, 3))
    # Plain mixup sees double.
    assert not torch.allclose(F.mixup(features, swap, half), features, atol=0.5)


def test_aligned_features_keep_their_mass_unless_as_in_the_reference():
    features = maps(5, 40, 4, 4, scale=1.5) + 2
    zero = torch.zeros(1)
    direction = torch.tensor([0])
    ours = F.alignmix(features, PARTNER, zero, direction)
    low, high = features[PARTNER].amin((2, 3)), features[PARTNER].amax((2, 3))
    assert (ours >= low[:, :, None, None] - 1e-4).all()
    assert (ours <= high[:, :, None, None] + 1e-4).all()
    theirs = F.alignmix(features, PARTNER, zero, direction, reference=True)
    assert (theirs > high[:, :, None, None] + 0.5).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_dtype_and_layout_are_kept(dtype, layout):
    features = maps(5, 8, 3, 4).to(dtype).contiguous(memory_format=layout)
    mixed = F.alignmix(features, PARTNER, LAM, DIRECTION)
    assert (mixed.dtype, mixed.shape, mixed.stride()) == (dtype, features.shape, features.stride())
    expected = F.alignmix(features.double(), PARTNER, LAM, DIRECTION)
    torch.testing.assert_close(mixed.double(), expected, rtol=0, atol=2e-2 if dtype.itemsize == 2 else 1e-5)


def test_gradients_flow_through_both_maps_and_not_through_the_plan():
    features = maps(5, 6, 4, dtype=torch.float64).requires_grad_()
    plan = F.sinkhorn_plan(F.alignment_cost(features, features[PARTNER]))
    assert not plan.requires_grad

    def fixed(x):
        return F.alignmix(x, PARTNER, LAM, DIRECTION, plan=plan)

    assert torch.autograd.gradcheck(fixed, features)
    weights = maps(5, 6, 4, seed=7, dtype=torch.float64)
    [expected] = torch.autograd.grad((fixed(features) * weights).sum(), features)
    [got] = torch.autograd.grad((F.alignmix(features, PARTNER, LAM, DIRECTION) * weights).sum(), features)
    torch.testing.assert_close(got, expected)


def test_samples_do_not_depend_on_their_batch():
    features = maps(6, 8, 4, 4, scale=1.0)
    partner = torch.tensor([1, 0, 3, 2, 5, 4])
    whole = F.alignmix(features, partner, torch.tensor([0.4]), torch.tensor([1]))
    alone = F.alignmix(features[:2], partner[:2], torch.tensor([0.4]), torch.tensor([1]))
    torch.testing.assert_close(whole[:2], alone)


def tiny(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "vit":
            make = pytest.importorskip("timm").models.vision_transformer.VisionTransformer
            return make(
                img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=4, reg_tokens=2
            )  # fmt: skip
        if name == "swin":
            make = pytest.importorskip("timm").models.swin_transformer.SwinTransformer
            return make(img_size=16, patch_size=2, window_size=2, embed_dim=8, depths=(1, 1), num_heads=(1, 1),
                        num_classes=4, drop_path_rate=0.0)  # fmt: skip
        return mixaug.models.create(name, 4)


@pytest.mark.parametrize(("name", "stage"), [("cifar_resnet8", "layer3"), ("vit", "blocks.1"), ("swin", "layers.1")])
def test_a_training_step_written_out(name, stage):
    model = tiny(name)
    twin = copy.deepcopy(model)
    policy = mixaug.create("alignmix", **INSIDE)
    step = mixaug.MixStep(model, policy, MixedCrossEntropy())
    loss, _ = step(IMAGES, LABELS, generator=seeded(8))
    loss.backward()
    mixed = policy(IMAGES, LABELS, signals=twin, generator=seeded(8))
    assert mixed.plan.stages == policy.hidden_stages(mixaug.ModelSignals(twin)) == (stage,)
    assert torch.equal(mixed.inputs, IMAGES)
    lam, direction = mixed.plan.lam, mixed.plan.direction
    layout = {"vit": {"prefix": 3}, "swin": {"channels_last": True}}.get(name, {})

    def hook(module, inputs, output):
        return F.alignmix(output, mixed.partner, lam, direction, **layout)

    handle = twin.get_submodule(stage).register_forward_hook(hook)
    outputs = twin(IMAGES)
    handle.remove()
    each = [torch.nn.functional.cross_entropy(outputs, y) for y in (LABELS, LABELS[mixed.partner])]
    expected = lam[0] * each[0] + (1 - lam[0]) * each[1]
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for got, want in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-4, atol=1e-6)
    assert not [hook for module in model.modules() for hook in module._forward_hooks]


def test_checkpointing_replays_the_same_alignment():
    found = []
    for checkpointing in (False, True):
        model = tiny("cifar_resnet8").eval()
        model.set_grad_checkpointing(checkpointing)
        # timm's checkpointing calls the blocks of a stage one by one.
        policy = mixaug.create("alignmix", stage="layer3.0", per="sample", **INSIDE)
        loss, _ = mixaug.MixStep(model.train(), policy, MixedCrossEntropy())(IMAGES, LABELS, generator=seeded(9))
        loss.backward()
        found.append([parameter.grad for parameter in model.parameters()])
    for plain, replayed in zip(*found, strict=True):
        torch.testing.assert_close(replayed, plain)


def test_the_coin_the_direction_and_lam():
    model, policy, g = tiny("cifar_resnet8"), mixaug.create("alignmix"), seeded(10)
    plans = [policy.draw(IMAGES, LABELS, signals=model, generator=g) for _ in range(600)]
    inside = [plan for plan in plans if plan.stages]
    assert stats.binomtest(len(inside), 600, 0.5).pvalue > 1e-4
    assert stats.binomtest(sum(int(plan.direction) for plan in inside), len(inside), 0.5).pvalue > 1e-4
    lams = [float(plan.lam) for plan in plans]
    assert stats.kstest(lams, stats.beta(2, 2).cdf).pvalue > 1e-4
    each = mixaug.create("alignmix", per="sample", **INSIDE).draw(IMAGES, signals=model, generator=g)
    assert each.lam.shape == each.direction.shape == (6,)
    for plan in plans[:20]:
        # lam is the own weight in both directions.
        torch.testing.assert_close(plan.weights, torch.stack([plan.lam, 1 - plan.lam], 1).expand(6, 2))


def test_the_input_branch_is_mixup():
    policy = mixaug.create("alignmix", input_probability=1.0)
    assert policy.hidden_stages(mixaug.ModelSignals(tiny("cifar_resnet8"))) == ()
    mixed = policy(IMAGES, LABELS, signals=mixaug.Signals(), generator=seeded(11))
    plain = mixaug.create("mixup", alpha=2.0, per="batch")(IMAGES, LABELS, generator=seeded(11))
    assert torch.equal(mixed.inputs, plain.inputs)
    assert torch.equal(mixed.targets(4), plain.targets(4))


def test_options_reach_the_plan():
    policy = mixaug.create("alignmix", stage=1, epsilon=0.5, iterations=3, reference=True, **INSIDE)
    plan = policy.draw(IMAGES, signals=tiny("cifar_resnet8"))
    assert plan.stages == ("layer1",)
    features = maps(6, 5, 3, 3)
    expected = F.alignmix(
        features, plan.partner, plan.lam, plan.direction, epsilon=0.5, iterations=3, reference=True
    )  # fmt: skip
    assert torch.equal(plan.mix_hidden("layer1", features), expected)
    again = pickle.loads(pickle.dumps(plan))
    assert torch.equal(again.mix_hidden("layer1", features), expected)


def test_without_a_model_the_stage_must_be_named():
    given = mixaug.Signals()
    plan = mixaug.create("alignmix", **INSIDE).draw(IMAGES, signals=given)
    assert torch.equal(plan.mix(IMAGES), IMAGES)
    with pytest.raises(ValueError, match=r"after stage -1 of a model, but was drawn without one: pass signals=model"):
        plan.stages  # noqa: B018
    named = mixaug.create("alignmix", stage="layer3", **INSIDE)
    model = tiny("cifar_resnet8")
    mixed = named(IMAGES, LABELS, signals=given, generator=seeded(12))
    with named.tap(model.eval(), mixed):
        outputs = model(mixed.inputs)
    assert not torch.allclose(outputs, model(IMAGES))
    with pytest.raises(ValueError, match="which tokens are no image tokens"):
        mixed.plan.mix_hidden("layer3", maps(6, 5, 4))
    with pytest.raises(ValueError, match="no module 'layer9'"):
        mixaug.create("alignmix", stage="layer9", **INSIDE).draw(IMAGES, signals=model)
    with pytest.raises(ValueError, match="stage 7 does not exist"):
        mixaug.create("alignmix", stage=7, **INSIDE).draw(IMAGES, signals=model)


def test_batches_of_one_and_two():
    model = tiny("cifar_resnet8").eval()
    step = mixaug.MixStep(model, mixaug.create("alignmix", **INSIDE), MixedCrossEntropy())
    loss, _ = step(IMAGES[:1], LABELS[:1])
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(model(IMAGES[:1]), LABELS[:1]))
    assert step(IMAGES[:2], LABELS[:2])[0].isfinite()
    # One sample is no problem for the function either.
    one = maps(1, 4, 2, 2)
    assert F.alignmix(one, torch.tensor([0]), torch.tensor([0.5]), torch.tensor([0])).shape == one.shape


def test_pooled_partners_meet_inside_the_model():
    rows = torch.randn(20, 3, 16, 16, generator=seeded(13))
    policy = mixaug.Pooled(mixaug.create("alignmix", **INSIDE), rows, torch.arange(20) % 4)
    step = mixaug.MixStep(tiny("cifar_resnet8"), policy, MixedCrossEntropy())
    loss, _ = step(IMAGES, LABELS, generator=seeded(14))
    loss.backward()
    assert loss.isfinite()


@pytest.mark.parametrize("per", ["batch", "sample"])
def test_no_value_is_read_back_to_the_host(per):
    with FakeTensorMode():
        images = torch.empty(6, 3, 16, 16, device="cuda")
        plan = mixaug.create("alignmix", per=per, stage="layer3", **INSIDE).draw(images, signals=mixaug.Signals())
        assert plan.mix_hidden("layer3", torch.empty(6, 8, 4, 4, device="cuda")).device.type == "cuda"
        mixaug.create("alignmix").draw(images, signals=mixaug.Signals())


@pytest.mark.parametrize(("options", "message"), [
    ({"input_probability": 1.5}, r"input_probability in \[0, 1\], got 1.5"),
    ({"stage": 1.0}, "stage as the name of a module or a number, got 1.0"),
    ({"stage": True}, "stage as the name of a module or"),
    ({"stage": ""}, "stage as the name of a module or"),
    ({"epsilon": 0.0}, "epsilon as a positive finite number, got 0.0"),
    ({"epsilon": math.inf}, "epsilon as a positive"),
    ({"iterations": 0}, "iterations as an integer >= 1, got 0"),
    ({"iterations": 2.5}, "iterations as an integer >= 1, got 2.5"),
    ({"alpha": 0}, "expects alpha as a"),
])  # fmt: skip
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        mixaug.create("alignmix", **options)


def test_bad_tensors_are_named():
    features = maps(5, 4, 2, 2)
    with pytest.raises(ValueError, match=r"two times \(B, r, C\), got \(5, 4, 2, 2\)"):
        F.alignment_cost(features, features)
    with pytest.raises(ValueError, match=r"cost \(B, r, s\), got \(4, 4\)"):
        F.sinkhorn_plan(torch.zeros(4, 4))
    with pytest.raises(ValueError, match=r"more than 3 tokens \(B, N, C\), got \(5, 3, 2\)"):
        F.alignmix(maps(5, 3, 2), PARTNER, LAM, DIRECTION, prefix=3)
    with pytest.raises(ValueError, match=r"or more than 0 tokens .* got \(5, 4\)"):
        F.alignmix(maps(5, 4), PARTNER, LAM, DIRECTION)
    with pytest.raises(ValueError, match=r"expects direction \(5,\) or \(1,\) int64"):
        F.alignmix(features, PARTNER, LAM, DIRECTION.bool())
    with pytest.raises(ValueError, match=r"expects plan \(5, 4, 4\), got \(5, 3, 3\)"):
        F.alignmix(features, PARTNER, LAM, DIRECTION, plan=torch.zeros(5, 3, 3))
    with pytest.raises(TypeError, match=r"floating point features, got torch\.int64"):
        F.alignmix(features.long(), PARTNER, LAM, DIRECTION)
    with pytest.raises(ValueError, match="alignmix expects partner in"):
        F.alignmix(features, PARTNER + 1, LAM, DIRECTION)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e3, 1e5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_both_bodies_of_sinkhorn_agree(scale, dtype, monkeypatch):
    # Costs of up to a million times epsilon, whose exponentials underflow.
    cost = torch.rand(3, 20, 24, generator=seeded(31), dtype=dtype) ** 4 * scale
    fast = F.sinkhorn_plan(cost, 0.1, 20)
    monkeypatch.setattr("mixaug.policies.alignmix.reads_freely", lambda *tensors: False)
    slow = F.sinkhorn_plan(cost, 0.1, 20)
    assert fast.dtype == slow.dtype == dtype
    # The exponents are as large as the costs in units of epsilon; what they round to, the shares are off by.
    error = 20 * torch.finfo(dtype).eps * max(1.0, scale / 0.1)
    assert (fast - slow).abs().max() <= error * slow.max()


def test_more_cells_than_can_be_aligned_are_refused():
    plan = mixaug.create("alignmix", stage="layer3", input_probability=0).draw(
        torch.rand(2, 3, 8, 8), signals=mixaug.Signals(), generator=seeded(1)
    )
    assert plan.mix_hidden("layer3", torch.rand(2, 2, 1, 64)).shape == (2, 2, 1, 64)
    with pytest.raises(ValueError, match=r"at most 2048 cells.*'layer3' are \(2, 2, 1, 2049\), 2049 cells: name"):
        plan.mix_hidden("layer3", torch.rand(2, 2, 1, 2049))
