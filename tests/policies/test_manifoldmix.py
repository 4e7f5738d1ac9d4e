"""Manifold Mixup: the blend inside the model, hooks that leave no trace, and replays of the same mix."""

import copy

import pytest
import torch
from scipy import stats
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

import mixaug
import mixaug.models
from helpers import seeded
from mixaug.losses import MixedCrossEntropy, MixedSquaredError

IMAGES = torch.randn(6, 3, 8, 8, generator=seeded(0))
LABELS = torch.arange(6) % 4


class Small(nn.Module):
    """A residual network in outline: stem, layer1, layer2, head."""

    def __init__(self, checkpointing=None, fails=False):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.stem = nn.Conv2d(3, 4, 3, padding=1)
            self.layer1 = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
            self.layer2 = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2), nn.Tanh())
            self.head = nn.Linear(6, 4)
        self.checkpointing, self.fails = checkpointing, fails

    def stages(self, features):
        return self.layer2(self.layer1(features))

    def forward(self, images):
        features = self.stem(images)
        if self.checkpointing is None:
            features = self.stages(features)
        else:
            features = checkpoint(self.stages, features, use_reentrant=self.checkpointing == "reentrant")
        if self.fails:
            raise RuntimeError("out of memory")
        return self.head(features.mean((2, 3)))


def hooks_of(model):
    return [hook for module in model.modules() for hook in module._forward_hooks]


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def blended(values, mixed):
    lam = mixed.lam.reshape(-1, *[1] * (values.ndim - 1))
    return lam * values + (1 - lam) * values[mixed.partner]


@pytest.mark.parametrize("stage", ["stem", "layer1", "layer1.0", "layer2", "head"])
def test_against_a_forward_written_out(stage):
    model, policy = Small(), mixaug.create("manifoldmix", stages=[stage])
    mixed = policy(IMAGES, LABELS, signals=model, generator=seeded(1))
    assert torch.equal(mixed.inputs, IMAGES)
    with policy.tap(model, mixed):
        got = model(mixed.inputs)
    twin = Small()
    features = twin.stem(IMAGES)
    if stage == "stem":
        features = blended(features, mixed)
    if stage == "layer1.0":
        features = twin.layer1[2](twin.layer1[1](blended(twin.layer1[0](features), mixed)))
    else:
        features = twin.layer1(features)
    if stage == "layer1":
        features = blended(features, mixed)
    features = twin.layer2(features)
    if stage == "layer2":
        features = blended(features, mixed)
    logits = twin.head(features.mean((2, 3)))
    torch.testing.assert_close(got, blended(logits, mixed) if stage == "head" else logits)
    # Normalisation saw what the stages before the mix put out, and its statistics with it.
    torch.testing.assert_close(model.layer1[1].running_mean, twin.layer1[1].running_mean)


def test_the_input_stage_is_mixup():
    mixed = mixaug.create("manifoldmix", stages=["input"])(
        IMAGES, LABELS, signals=mixaug.Signals(), generator=seeded(2)
    )
    plain = mixaug.create("mixup", alpha=2.0, per="batch")(IMAGES, LABELS, generator=seeded(2))
    assert torch.equal(mixed.inputs, plain.inputs)
    assert torch.equal(mixed.sources, plain.sources)
    assert torch.equal(mixed.targets(4), plain.targets(4))
    assert mixed.plan.stages == ()


def test_the_stage_is_uniform_and_one_for_the_batch():
    policy, g, seen = mixaug.create("manifoldmix"), seeded(3), {}
    for _ in range(900):
        plan = policy.draw(IMAGES[:2], LABELS[:2], signals=mixaug.Signals(), generator=g)
        assert len(plan.stages) <= 1
        name = plan.stages[0] if plan.stages else "input"
        # Without the input stage the images stay as they are.
        if name != "input":
            assert torch.equal(policy.apply(IMAGES[:2], plan), IMAGES[:2])
        seen[name] = seen.get(name, 0) + 1
    assert set(seen) == {"input", "layer1", "layer2"}
    assert stats.chisquare(list(seen.values())).pvalue > 1e-4


def test_where_the_stage_is_not_read_all_are_hooked_and_one_mixes(monkeypatch):
    # What happens while torch.compile traces the draw, and on devices that are neither CPU nor CUDA.
    expected, states = {}, set()
    model = Small().eval()
    policy = mixaug.create("manifoldmix")
    for seed in range(8):
        mixed = policy(IMAGES, LABELS, signals=model, generator=seeded(seed))
        states.add(mixed.plan.stages)
        with policy.tap(model, mixed):
            expected[seed] = model(mixed.inputs)
    assert len(states) == 3
    monkeypatch.setattr("mixaug.plan.reads_freely", lambda *tensors: False)
    for seed, outputs in expected.items():
        mixed = policy(IMAGES, LABELS, signals=model, generator=seeded(seed))
        assert mixed.plan.stages == ("layer1", "layer2")
        with policy.tap(model, mixed):
            torch.testing.assert_close(model(mixed.inputs), outputs)


def test_gradients_reach_both_halves_through_the_step():
    images = IMAGES.clone().requires_grad_()
    policy = mixaug.create("manifoldmix", stages=["layer2"], ratio=0.3, pairing="shift")
    model = Small().eval()
    mixed = policy(images, LABELS, signals=model)
    with policy.tap(model, mixed):
        model(mixed.inputs)[0].sum().backward()
    touched = images.grad.flatten(1).abs().sum(1)
    assert (touched[[0, 5]] > 0).all()
    assert (touched[1:5] == 0).all()


@pytest.mark.parametrize("name", ["manifoldmix", "cmixup"])
def test_through_mixstep_with_a_small_network(name):
    model = Small()
    labels = torch.randn(6, 4, generator=seeded(4))
    step = mixaug.MixStep(model, mixaug.create(name, stages=["layer1", "layer2"]), MixedSquaredError())
    loss, scalars = step(IMAGES, labels, generator=seeded(5))
    loss.backward()
    assert torch.equal(scalars["loss"], loss.detach())
    assert all(gradient.abs().sum() > 0 for key, gradient in gradients(model).items() if key != "layer1.0.bias")
    # By hand, with the same draws.
    twin = Small()
    mixed = step.policy(IMAGES, labels, signals=twin, generator=seeded(5))
    with step.policy.tap(twin, mixed):
        outputs = twin(mixed.inputs)
    torch.testing.assert_close(loss, (outputs - blended(labels, mixed)).square().mean())


def test_a_timm_network_with_the_default_stages():
    timm = pytest.importorskip("timm")
    model = timm.create_model("resnet10t", num_classes=4, in_chans=3)
    step = mixaug.MixStep(model, mixaug.create("manifoldmix"), MixedCrossEntropy())
    images = torch.randn(4, 3, 32, 32, generator=seeded(6))
    for seed in range(4):
        loss, _ = step(images, LABELS[:4], generator=seeded(seed))
        assert loss.isfinite()
    assert not hooks_of(model)


def tiny(name):
    if name == "vit":
        make = pytest.importorskip("timm").models.vision_transformer.VisionTransformer
        return make(img_size=16, patch_size=8, embed_dim=16, depth=4, num_heads=2, num_classes=4)
    if name == "swin":
        make = pytest.importorskip("timm").models.swin_transformer.SwinTransformer
        return make(
            img_size=16, patch_size=2, window_size=2, embed_dim=8, depths=(1, 1, 1), num_heads=(1, 1, 1), num_classes=4
        )
    return mixaug.models.create(name, 4)


@pytest.mark.parametrize(("name", "stages"), [
    ("vit", ("blocks.0", "blocks.1")),  # a quarter and half of the depth
    ("swin", ("layers.0", "layers.1")),
    ("cifar_wrn28_8", ("stages.0", "stages.1")),  # not its stem
    ("cifar_resnet8", ("layer1", "layer2")),
])  # fmt: skip
def test_the_default_stages_of_a_model(name, stages):
    with torch.device("meta"):
        model = tiny(name)
    assert mixaug.create("manifoldmix").eligible(model) == ("input", *stages)


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_transformers_train_with_the_default_stages(name):
    model, policy = tiny(name), mixaug.create("manifoldmix")
    step = mixaug.MixStep(model, policy, MixedCrossEntropy())
    images = torch.randn(4, 3, 16, 16, generator=seeded(6))
    drawn = set()
    for seed in range(8):
        drawn.add(policy.draw(images, signals=model, generator=seeded(seed)).stages)
        loss, _ = step(images, LABELS[:4], generator=seeded(seed))
        loss.backward()
    assert len(drawn) == 3
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert policy.hidden_stages(mixaug.ModelSignals(model)) == policy.eligible(model)[1:]
    assert not hooks_of(model)


def test_stages_by_number_are_timms():
    model = mixaug.models.create("cifar_resnet8", 4)
    assert mixaug.create("manifoldmix", stages=[0, 1, -1, "input"]).eligible(model) == (
        "act1", "layer1", "layer3", "input",
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"each stage once, but stages=\[3, -1\] are \['layer3', 'layer3'\]"):
        mixaug.create("manifoldmix", stages=[3, -1]).draw(IMAGES, signals=model)
    with pytest.raises(ValueError, match="stage 4 does not exist"):
        mixaug.create("manifoldmix", stages=[4]).draw(IMAGES, signals=model)
    with pytest.raises(ValueError, match="counts stage 1 on a model"):
        mixaug.create("manifoldmix", stages=[1]).draw(IMAGES, signals=mixaug.Signals())
    with pytest.raises(ValueError, match=r"no stages in Sequential: name modules of it, such as stages=\['0'\]"):
        mixaug.create("manifoldmix").draw(IMAGES, signals=nn.Sequential(nn.Flatten()))


def test_on_a_gpu_the_drawn_stage_alone_is_hooked():
    with FakeTensorMode():
        images = torch.empty(6, 3, 8, 8, device="cuda")
        plan = mixaug.create("manifoldmix").draw(images, signals=mixaug.Signals())
    assert len(plan.eligible) == 1


@pytest.mark.gpu
def test_on_a_gpu_every_stage_is_drawn_without_waiting():
    policy, generator, seen = mixaug.create("manifoldmix"), seeded(3, "cuda"), {}
    images = torch.randn(6, 3, 8, 8, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(600):
            [name] = policy.draw(images, signals=mixaug.Signals(), generator=generator).eligible
            seen[name] = seen.get(name, 0) + 1
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert set(seen) == {"input", "layer1", "layer2"}
    assert stats.chisquare(list(seen.values())).pvalue > 1e-4


@pytest.mark.parametrize("stage", ["layer1", "layer1.2", "layer2"])
@pytest.mark.parametrize("kind", ["reentrant", "saved_tensors"])
def test_activation_checkpointing_replays_the_same_mix(kind, stage):
    found = []
    for checkpointing in (None, kind):
        model = Small(checkpointing)
        step = mixaug.MixStep(model, mixaug.create("manifoldmix", stages=[stage]), MixedCrossEntropy())
        for seed in (7, 8):
            loss, _ = step(IMAGES, LABELS, generator=seeded(seed))
            loss.backward()
            assert not hooks_of(model)
        found.append(gradients(model))
    for key, gradient in found[0].items():
        torch.testing.assert_close(found[1][key], gradient)


def test_checkpointing_with_the_backward_pass_inside_the_tap():
    found = []
    for checkpointing in (None, "saved_tensors"):
        model, policy = Small(checkpointing), mixaug.create("manifoldmix", stages=["layer1"])
        mixed = policy(IMAGES, LABELS, signals=model, generator=seeded(9))
        with policy.tap(model, mixed):
            model(mixed.inputs).square().sum().backward()
        assert not hooks_of(model)
        found.append(gradients(model))
    for key, gradient in found[0].items():
        torch.testing.assert_close(found[1][key], gradient)


def test_one_backward_through_two_mixed_passes():
    for checkpointing in (None, "saved_tensors"):
        model = Small(checkpointing)
        step = mixaug.MixStep(model, mixaug.create("manifoldmix", stages=["layer1"]), MixedCrossEntropy())
        total = sum(step(IMAGES, LABELS, generator=seeded(seed))[0] for seed in (1, 2))
        if checkpointing is None:
            total.backward()
        else:
            with pytest.raises(RuntimeError, match=r"call backward\(\) for each loss"):
                total.backward()


def test_hooks_leave_no_trace():
    model, policy = Small(), mixaug.create("manifoldmix", stages=["layer1"])
    model.eval()
    clean = model(IMAGES)
    mixed = policy(IMAGES, LABELS, signals=model, generator=seeded(10))
    with policy.tap(model, mixed):
        assert hooks_of(model)
        outputs = model(mixed.inputs)
    outputs.sum().backward()
    assert not hooks_of(model)
    assert torch.equal(model(IMAGES), clean)
    assert not torch.equal(outputs, clean)


def test_hooks_leave_no_trace_after_an_error():
    model = Small(fails=True)
    step = mixaug.MixStep(model, mixaug.create("manifoldmix", stages=["layer1", "layer2"]), MixedCrossEntropy())
    for seed in range(3):
        with pytest.raises(RuntimeError, match="out of memory"):
            step(IMAGES, LABELS, generator=seeded(seed))
        assert not hooks_of(model)


def test_a_module_that_is_not_there_or_not_called():
    policy, model = mixaug.create("manifoldmix", stages=["stem", "layer9"], pairing="shift"), Small()
    for seed in range(8):
        mixed = policy(IMAGES, LABELS, signals=model, generator=seeded(seed))
        if mixed.plan.stages == ("layer9",):
            with pytest.raises(ValueError, match=r"output of module 'layer9', which the model does not have.*'layer1'"):
                policy.tap(model, mixed).__enter__()
            break
    else:
        pytest.fail("layer9 was never drawn")
    assert not hooks_of(model)

    class Straight(Small):
        def stages(self, features):
            return self.layer2(features)

    step = mixaug.MixStep(Straight(), mixaug.create("manifoldmix", stages=["layer1"]), MixedCrossEntropy())
    with pytest.raises(ValueError, match="module 'layer1', but the model ran without calling it, so nothing was mixed"):
        step(IMAGES, LABELS)
    assert not hooks_of(step)


def test_a_stage_whose_blocks_are_called_one_by_one():
    class Blockwise(Small):
        def stages(self, features):
            for block in (*self.layer1, *self.layer2):
                features = block(features)
            return features

    losses = []
    for model in (Small(), Blockwise()):
        step = mixaug.MixStep(model, mixaug.create("manifoldmix", stages=["layer1"]), MixedCrossEntropy())
        losses.append(step(IMAGES, LABELS, generator=seeded(0))[0])
    assert torch.equal(*losses)


def test_outputs_that_are_tuples_and_dicts():
    class Two(nn.Module):
        def forward(self, x):
            return x, {"square": x.square(), "name": "two"}

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.two = Two()

        def forward(self, x):
            first, rest = self.two(x)
            assert rest["name"] == "two"
            return torch.cat([first, rest["square"]], 1)

    model, policy = Whole(), mixaug.create("manifoldmix", stages=["two"])
    x = torch.randn(6, 5, generator=seeded(11))
    mixed = policy(x, LABELS, signals=model, generator=seeded(12))
    with policy.tap(model, mixed):
        got = model(mixed.inputs)
    torch.testing.assert_close(got, torch.cat([blended(x, mixed), blended(x.square(), mixed)], 1))


def test_memory_format_of_features_is_kept():
    seen = []

    class Look(nn.Module):
        def forward(self, x):
            seen.append(x.is_contiguous(memory_format=torch.channels_last))
            return x

    model = nn.Sequential(nn.Conv2d(3, 4, 3), Look()).to(memory_format=torch.channels_last)
    policy = mixaug.create("manifoldmix", stages=["0"])
    mixed = policy(IMAGES.to(memory_format=torch.channels_last), LABELS, signals=model, generator=seeded(13))
    with policy.tap(model, mixed):
        model(mixed.inputs)
    assert seen == [True]


def test_the_policy_does_not_touch_evaluation_nor_hold_on_to_the_model():
    model = Small()
    step = mixaug.MixStep(model, mixaug.create("manifoldmix", stages=["layer1"]), MixedCrossEntropy())
    step(IMAGES, LABELS, generator=seeded(14))[0].backward()
    copied = copy.deepcopy(step)
    assert torch.equal(copied.model.eval()(IMAGES), model.eval()(IMAGES))


@pytest.mark.parametrize(("options", "message"), [
    ({"stages": "layer1"}, "sequence of module names, got 'layer1'"),
    ({"stages": ()}, "sequence of module names"),
    ({"stages": ("layer1", "")}, "each of stages as the name of a module"),
    ({"stages": 1}, "sequence of module names, got 1"),
    ({"stages": ("layer1", 2.0)}, "each of stages as"),
    ({"stages": (0, True)}, "each of stages as"),
    ({"stages": (1, 1)}, "each of stages once"),
    ({"stages": ("layer1", "layer1")}, "each of stages once"),
    ({"alpha": 0}, "expects alpha as a"),
])  # fmt: skip
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        mixaug.create("manifoldmix", **options)


def test_without_a_model_it_says_what_to_do():
    with pytest.raises(ValueError, match=r"needs hidden of the model: train through mixaug.MixStep"):
        mixaug.create("manifoldmix")(IMAGES, LABELS)


def test_a_module_that_does_not_put_the_batch_first_is_named():
    class Turned(torch.nn.Module):
        def forward(self, x):
            return x.T

    model = torch.nn.Sequential(Turned(), Turned())
    policy = mixaug.create("manifoldmix", stages=["0"])
    mixed = policy(torch.randn(4, 3), torch.randn(4, 1), signals=model, generator=seeded(0))
    with (
        policy.tap(model, mixed),
        pytest.raises(ValueError, match=r"'0' puts out \(3, 4\).*batch first, \(4, \.\.\.\)"),
    ):
        model(mixed.inputs)
