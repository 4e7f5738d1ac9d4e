"""`MixStep` with policies that look at the model: passes, labels after the pass, compiled models, processes."""

import dataclasses
import re

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import mixaug
import processes  # noqa: F401  the fork server imports torch once for all tests
from helpers import seeded
from mixaug import MixStep, OneOf, losses, models
from mixaug.labeling import Area
from mixaug.policies import CutMix, Mixup

IMAGES = torch.randn(6, 3, 32, 32, generator=seeded(0))
LABELS = torch.tensor([0, 3, 1, 4, 2, 0])


class HalfByAttention(Area):
    """A label after the pass: the share of the attention on the upper half of the mixed image."""

    needs = frozenset({"attention"})
    reads = frozenset({"attention"})

    def after(self, plan, mixed, seen):
        attention = seen.attention(tuple(mixed.inputs.shape[2:]))
        share = attention[:, : attention.shape[1] // 2].sum((1, 2)) / attention.sum((1, 2))
        return torch.stack([share, 1 - share], 1)


class Aware(Mixup):
    """Asks before, reads during, adds a loss after, and has a parameter."""

    needs = frozenset({"saliency", "outputs", "pooled"})
    reads = frozenset({"pooled"})

    def on_attach(self, signals):
        self.head = nn.Linear(signals.inner.fc.in_features, 5)

    def sample(self, batch, partner, draws):
        plan = super().sample(batch, partner, draws)
        share = batch.signals.saliency(mode="train", keep_loss=True).mean((1, 2))
        share = share / (share + share[partner])
        return dataclasses.replace(plan, lam=share)

    def auxiliary_loss(self, mixed, seen):
        clean = seen.clean.outputs().softmax(1)
        difference = (seen.outputs(grad=True).softmax(1) - clean).square().mean()
        head = self.head(seen.pooled(grad=True)).square().mean()
        return {"clean": seen.clean.clean_loss(), "difference": difference, "head": 0.1 * head}


def vit(depth=3):
    torch.manual_seed(0)
    return VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=depth, num_heads=3, num_classes=5)


def resnet():
    torch.manual_seed(0)
    return models.create("cifar_resnet8", num_classes=5)


class Small(nn.Module):
    """Two stages, for what is compiled: its tracing takes a fraction of a ResNet's."""

    def __init__(self):
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 5)

    def forward(self, images):
        return self.fc(self.pool(self.layer2(self.layer1(images))).flatten(1))


def small():
    torch.manual_seed(0)
    return Small()


def step_of(model, policy):
    torch.manual_seed(1)
    return MixStep(model, policy, losses.MixedCrossEntropy())


def gradients(step):
    return {name: p.grad.clone() for name, p in step.named_parameters() if p.grad is not None}


def test_labels_are_set_after_the_pass_and_before_the_loss():
    model, policy = vit(), CutMix(labeling=HalfByAttention())
    loss, _ = step_of(model, policy)(IMAGES, LABELS, generator=seeded(1))
    mixed = policy(IMAGES, LABELS, signals=model, generator=seeded(1))
    with policy.tap(model, mixed) as seen:
        logits = model(mixed.inputs)
    late = policy.relabel(mixed, seen)
    assert torch.equal(late.sources, mixed.sources)
    assert not torch.allclose(late.weights, mixed.weights)
    torch.testing.assert_close(loss, losses.MixedCrossEntropy()(logits, late))
    assert not torch.allclose(loss, losses.MixedCrossEntropy()(logits, mixed))


def test_terms_of_the_policy_join_the_loss_and_the_log():
    step = step_of(resnet(), Aware())
    loss, logs = step(IMAGES, LABELS, generator=seeded(1))
    assert {"clean", "difference", "head", "loss", "accuracy"} <= set(logs)
    assert not any(value.requires_grad for value in logs.values())
    torch.testing.assert_close(loss, logs["loss"])
    assert loss > logs["clean"] + logs["difference"] + logs["head"]
    loss.backward()
    assert all(p.grad is not None for p in step.parameters())


def test_only_the_drawn_member_of_a_choice_looks_at_the_model():
    model, calls = vit(), []
    step = step_of(model, OneOf([Mixup(), CutMix(labeling=HalfByAttention())], [0.5, 0.5]))
    seen = set()
    for seed in range(12):
        mixed = step.policy(IMAGES, LABELS, signals=model, generator=seeded(seed))
        with step.policy.tap(model, mixed) as passed:
            model(mixed.inputs)
        late = step.policy.relabel(mixed, passed)
        cut = mixed.mask is not None
        seen.add(cut)
        assert torch.equal(late.weights, mixed.weights) != cut
    assert seen == {True, False}
    model.register_forward_hook(lambda *_: calls.append(1))
    aware = OneOf([Mixup(), HelplessAware()], [1.0, 0.0])
    step_of(model, aware)(IMAGES, LABELS, generator=seeded(1))
    assert len(calls) == 1, "a policy that was not drawn costs no pass"


class HelplessAware(CutMix):
    needs = frozenset({"saliency"})

    def sample(self, batch, partner, draws):
        batch.signals.saliency()
        return super().sample(batch, partner, draws)


def test_a_choice_per_sample_relabels_its_own_samples():
    model = vit()
    policy = OneOf([Mixup(), CutMix(labeling=HalfByAttention())], [0.5, 0.5], per="sample")
    mixed = policy(IMAGES, LABELS, signals=model, generator=seeded(3))
    with policy.tap(model, mixed) as seen:
        model(mixed.inputs)
    late = policy.relabel(mixed, seen)
    cut = mixed.plan.choice == 1
    assert cut.any()
    assert not cut.all()
    assert torch.equal(late.weights[~cut], mixed.weights[~cut])
    assert not torch.isclose(late.weights[cut], mixed.weights[cut]).all(1).any()


@pytest.mark.parametrize("drawn", [0, 1])
def test_parameters_of_a_policy_that_was_not_drawn_have_a_gradient_of_zero(drawn):
    step = step_of(resnet(), OneOf([Aware(), Mixup()], [1 - drawn, drawn]))
    step(IMAGES, LABELS, generator=seeded(1))[0].backward()
    weight = step.policy.policies[0].head.weight
    assert bool(weight.grad.abs().sum() == 0) == bool(drawn)


def test_a_batch_of_one_is_left_alone():
    for policy, model in ((CutMix(labeling=HalfByAttention()), vit()), (HelplessAware(), resnet())):
        loss, _ = step_of(model, policy)(IMAGES[:1], LABELS[:1], generator=seeded(1))
        torch.testing.assert_close(loss, nn.functional.cross_entropy(model(IMAGES[:1]), LABELS[:1]))


def test_accumulated_gradients_are_those_of_the_sum():
    both, apart = step_of(resnet(), Aware()), step_of(resnet(), Aware())
    for step in (both, apart):
        step.model.eval()  # batch statistics would differ
    first = both(IMAGES, LABELS, generator=seeded(1))[0]
    second = both(IMAGES.flip(0), LABELS.flip(0), generator=seeded(2))[0]
    (first + second).backward()
    apart(IMAGES, LABELS, generator=seeded(1))[0].backward()
    apart(IMAGES.flip(0), LABELS.flip(0), generator=seeded(2))[0].backward()
    for name, got in gradients(apart).items():
        torch.testing.assert_close(got, gradients(both)[name], msg=name, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["labels", "hidden"])
def test_checkpointed_activations_change_nothing(kind):
    results = []
    for checkpointed in (False, True):
        model = vit()
        model.set_grad_checkpointing(checkpointed)
        policy = (
            CutMix(labeling=HalfByAttention())
            if kind == "labels"
            else mixaug.create("manifoldmix", stages=["blocks.2"])
        )
        step = step_of(model, policy)
        loss, _ = step(IMAGES, LABELS, generator=seeded(1))
        loss.backward()
        results.append((loss, gradients(step)))
    torch.testing.assert_close(results[0][0], results[1][0])
    for name, got in results[1][1].items():
        torch.testing.assert_close(got, results[0][1][name], msg=name, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("policy", [Aware, lambda: CutMix(labeling=HalfByAttention())], ids=["clean", "labels"])
def test_autocast(precision, policy):
    made = policy()
    step = step_of(resnet() if isinstance(made, Aware) else vit(), made)
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        loss, _ = step(IMAGES, LABELS, generator=seeded(1))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in step.parameters())


def compiled_in_place(model):
    model.compile(backend="aot_eager")
    return model


def traced_in_place(model):
    model.compile(backend="eager")
    return model


def traced_wrapped(model):
    return torch.compile(model, backend="eager")


@pytest.mark.parametrize(
    ("kind", "wrap"),
    [
        # A graph of its own for the backward pass, where the model is mixed inside and where it is asked before.
        ("one_hidden", compiled_in_place),
        # What else differs is Dynamo's matter, and its eager backend is the quick one.
        *(("labels", traced_in_place), ("clean", traced_wrapped)),
        *(
            pytest.param(kind, wrap, marks=pytest.mark.slow)
            for kind, wrap in (
                *(("clean", compiled_in_place), ("labels", compiled_in_place), ("hidden", compiled_in_place)),
                ("hidden", traced_in_place),
                *(("labels", traced_wrapped), ("one_hidden", traced_wrapped), ("hidden", traced_wrapped)),
            )
        ),
    ],
)
def test_compiled_models_give_the_same(kind, wrap):
    torch.compiler.reset()
    make = {
        "labels": (lambda: vit(depth=1), lambda: CutMix(labeling=HalfByAttention())),
        "hidden": (small, lambda: mixaug.create("manifoldmix", stages=["input", "layer1", "layer2"])),
        "one_hidden": (small, lambda: mixaug.create("manifoldmix", stages=["layer1"])),
        "clean": (small, Aware),
    }[kind]
    plain = step_of(make[0](), make[1]())
    model = wrap(make[0]())
    quick = step_of(model, make[1]())
    for seed in range(4):
        results = []
        for step in (plain, quick):
            step.zero_grad()
            loss, _ = step(IMAGES, LABELS, generator=seeded(seed))
            loss.backward()
            results.append((loss.detach(), [p.grad for p in step.parameters() if p.grad is not None]))
        torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-4, atol=1e-5)
        assert len(results[0][1]) == len(results[1][1])
        for got, expected in zip(results[1][1], results[0][1], strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)
    # Outside of a pass the hooks that stayed do nothing.
    plain.eval(), quick.eval()
    with torch.no_grad():
        torch.testing.assert_close(quick.model(IMAGES), plain.model(IMAGES), rtol=1e-4, atol=1e-5)


# One that mixes outside, one inside; the slow suite has a third, which mixes elsewhere.
@pytest.mark.parametrize(
    "names",
    [("cutmix", "manifoldmix"), pytest.param(("cutmix", "manifoldmix", "alignmix"), marks=pytest.mark.slow)],
    ids=len,
)
def test_compiled_models_of_one_class_keep_their_own_hooks(names):
    torch.compiler.reset()
    steps = {}
    for name in names:
        compiled, plain = small(), small()
        compiled.compile(backend="eager")
        # What ran before the first step is no part of it.
        compiled(IMAGES)
        options = {"manifoldmix": {"stages": ["layer1"]}, "alignmix": {"input_probability": 0.0}}.get(name, {})
        made = [
            MixStep(model, mixaug.create(name, **options), losses.MixedCrossEntropy()) for model in (compiled, plain)
        ]
        steps[name] = made
        for step, expected in zip(*[[one(IMAGES, LABELS, generator=seeded(1))[0]] for one in made], strict=True):
            torch.testing.assert_close(step, expected)
    for compiled, plain in steps.values():
        got, expected = (step(IMAGES, LABELS, generator=seeded(2))[0] for step in (compiled, plain))
        torch.testing.assert_close(got, expected)


def test_hidden_mixing_is_refused_where_compiled_code_would_be_recomputed():
    model = vit()
    model.set_grad_checkpointing(True)
    step = MixStep(
        compiled_in_place(model), mixaug.create("manifoldmix", stages=["blocks.1"]), losses.MixedCrossEntropy()
    )
    with pytest.raises(ValueError, match="compiled and checkpoints its activations"):
        step(IMAGES, LABELS, generator=seeded(1))


def test_a_loss_for_whole_batches_is_no_choice_per_sample():
    step = step_of(resnet(), OneOf([Mixup(), Aware()], [0.5, 0.5], per="sample"))
    with pytest.raises(ValueError, match=r'Aware adds a loss for whole batches.*OneOf\(per="batch"\)'):
        step(IMAGES, LABELS, generator=seeded(1))


def test_what_is_read_must_be_named_among_the_needs():
    class Reader(Mixup):
        reads = frozenset({"attention"})

    with pytest.raises(ValueError, match=r"Reader reads \['attention'\] of the mixed pass, but its needs are empty"):
        Reader()


def test_signals_of_another_model_are_refused():
    for wrong in ("x", [], 1, resnet()):
        with pytest.raises(TypeError, match=r"MixStep expects signals as mixaug\.ModelSignals, got"):
            MixStep(resnet(), Mixup(), losses.MixedCrossEntropy(), wrong)
        with pytest.raises(TypeError, match="MixStep expects networks as a mapping of names, got"):
            MixStep(resnet(), Mixup(), losses.MixedCrossEntropy(), networks=wrong)
    beside = nn.ModuleDict({"teacher": nn.Linear(3, 4)})
    assert set(MixStep(resnet(), Mixup(), losses.MixedCrossEntropy(), networks=beside).networks) == {"teacher"}
    with pytest.raises(ValueError, match="signals made of its own model"):
        MixStep(resnet(), Mixup(), losses.MixedCrossEntropy(), mixaug.ModelSignals(resnet()))
    model = resnet()
    step = MixStep(model, HelplessAware(), losses.MixedCrossEntropy(), mixaug.ModelSignals(model, features="layer2"))
    assert step.signals().last_map() == ("layer2", False)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x):
        return self.out(self.conv(x).mean((2, 3)))


class Inside(nn.Module):
    """A model whose parts are those of another one, which it does not tell."""

    def __init__(self):
        super().__init__()
        self.net = Net()

    def forward(self, x):
        return self.net(x)


class Telling(Inside):
    """It tells its classifier, and no more."""

    def get_classifier(self):
        return self.net.out


@pytest.mark.parametrize(
    ("model", "name", "missing", "there", "further"),
    [
        (Inside, "snapmix", 'classifier="head.fc"', 'classifier="net.out"', ', features="net.conv"'),
        (Telling, "attentivemix", 'features="layer4"', 'features="net.conv"', ""),
    ],
)
def test_the_way_out_of_a_part_that_is_not_found_leads_on(model, name, missing, there, further):
    model, policy, objective = model(), mixaug.create(name), losses.MixedCrossEntropy()
    with pytest.raises(ValueError, match=r"name (it|the module that puts it out), MixStep\(") as caught:
        MixStep(model, policy, objective)(IMAGES, LABELS)
    told = re.search(r"MixStep\(.*?\)\)", str(caught.value))[0]
    assert missing in told
    names = {"mixaug": mixaug, "MixStep": MixStep, "model": model, "policy": policy, "objective": objective}
    loss, _ = eval(told.replace(missing, there + further), names)(IMAGES, LABELS)
    assert loss.isfinite()


def test_a_step_around_something_else_than_a_model_is_refused():
    for wrong in (None, "resnet18", resnet):
        with pytest.raises(TypeError, match=r"MixStep expects model as a torch\.nn\.Module, got \w+$"):
            MixStep(wrong, Mixup(), losses.MixedCrossEntropy())
    with pytest.raises(TypeError, match=r"got ModelSignals; signals go beside their model: MixStep\(.*signals="):
        MixStep(mixaug.ModelSignals(resnet()), Mixup(), losses.MixedCrossEntropy())


KINDS = ("labels", "hidden", "clean", "mixer")


def _in_process(rank, address, folder):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    torch.set_num_threads(1)
    for kind in KINDS:
        step = _for_processes(kind)
        rows = slice(3 * rank, 3 * rank + 3)
        parallel = nn.parallel.DistributedDataParallel(step)
        loss, _ = parallel(IMAGES[rows], LABELS[rows], generator=seeded(rank))
        loss.backward()
        if rank == 0:
            torch.save(gradients(step), f"{folder}/{kind}.pt")
    dist.destroy_process_group()


def _for_processes(kind):
    if kind == "labels":
        return step_of(vit(), CutMix(labeling=HalfByAttention()))
    if kind == "hidden":
        return step_of(resnet(), mixaug.create("manifoldmix", stages=["layer1"]))
    if kind == "mixer":
        with torch.random.fork_rng():
            torch.manual_seed(3)
            return step_of(resnet(), mixaug.create("samix"))
    return step_of(resnet(), Aware())


def test_two_processes_average_the_gradients_of_one(tmp_path):
    arguments = (f"file://{tmp_path}/meeting", str(tmp_path))
    torch.multiprocessing.start_processes(_in_process, arguments, nprocs=2, start_method="forkserver")
    for kind in KINDS:
        got = torch.load(tmp_path / f"{kind}.pt", weights_only=True)
        expected = {}
        for rank in range(2):
            step = _for_processes(kind)
            rows = slice(3 * rank, 3 * rank + 3)
            step(IMAGES[rows], LABELS[rows], generator=seeded(rank))[0].backward()
            for name, gradient in gradients(step).items():
                expected[name] = expected.get(name, 0) + gradient / 2
        assert got.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-6)


class Terms(Mixup):
    """Needs nothing of the model, and acts at every moment of a step."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))

    def early_loss(self, images, mixed, clean):
        return {"early": 0.25 * images.mean() + 2.0}

    def relabel(self, mixed, seen):
        return dataclasses.replace(mixed, weights=mixed.weights.flip(1))

    def auxiliary_loss(self, mixed, seen):
        return {"late": self.weight * mixed.lam.mean()}


def test_a_policy_without_needs_acts_at_every_moment_too():
    model, policy = resnet(), Terms()
    step = step_of(model, policy)
    loss, logs = step(IMAGES, LABELS, generator=seeded(1))
    mixed = policy(IMAGES, LABELS, generator=seeded(1))
    logits = model(mixed.inputs)
    late = dataclasses.replace(mixed, weights=mixed.weights.flip(1))
    plain = losses.MixedCrossEntropy()(logits, late)
    early, added = 0.25 * IMAGES.mean() + 2.0, 0.5 * late.lam.mean()
    torch.testing.assert_close(loss, plain + early + added)
    torch.testing.assert_close(logs["early"], early)
    torch.testing.assert_close(logs["late"], added.detach())
    loss.backward()
    torch.testing.assert_close(policy.weight.grad, late.lam.mean())


class Operators(TorchDispatchMode):
    """Names of all operators that are run."""

    def __enter__(self):
        self.names = []
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["mixup", "cutmix", "fmix"])
def test_a_plain_policy_costs_a_step_no_operator(name):
    model, policy, objective = resnet(), mixaug.create(name), losses.MixedCrossEntropy()
    step = MixStep(model, policy, objective)
    with Operators() as used:
        step(IMAGES, LABELS, generator=seeded(1))
    with Operators() as least:
        mixed = policy(IMAGES, LABELS, generator=seeded(1))
        outputs = model(mixed.inputs)
        loss = objective(outputs, mixed)
        loss.detach()
        with torch.no_grad():
            losses.mixed_accuracy(outputs.detach(), mixed)
    assert used.names == least.names


class Plain(nn.Module):
    """A model without any module inside."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3 * 8 * 8, 5))

    def forward(self, images):
        return images.flatten(1) @ self.weight


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (lambda: mixaug.create("alignmix"), "stage"),
        (lambda: mixaug.create("manifoldmix"), "no stages in Plain"),
        (lambda: mixaug.create("alignmix", stage="layer9"), "'layer9'"),
        (lambda: mixaug.create("manifoldmix", stages=["input", "layer9"]), "'layer9'"),
        (lambda: mixaug.create("manifoldmix", stages=["input", 7]), "stage"),
        (lambda: mixaug.create("cmixup", stages=["input", "layer9"]), "'layer9'"),
        (lambda: mixaug.OneOf(["mixup", "alignmix"]), "stage"),
        (lambda: mixaug.Sometimes("manifoldmix", 0.5), "no stages in Plain"),
        (lambda: mixaug.Pooled("manifoldmix", torch.rand(4, 3, 8, 8), torch.arange(4)), "no stages in Plain"),
    ],
)
def test_a_stage_that_is_not_there_is_found_when_the_step_is_made(policy, message):
    with pytest.raises(ValueError, match=message):
        MixStep(Plain(), policy(), losses.MixedCrossEntropy())


def test_a_policy_that_never_mixes_inside_asks_for_no_stage():
    step = MixStep(Plain(), mixaug.create("alignmix", input_probability=1.0), losses.MixedCrossEntropy())
    assert step(torch.rand(4, 3, 8, 8), torch.arange(4))[0].isfinite()


def test_a_batch_brings_its_own_labels_and_rows():
    step = MixStep(Plain(), mixaug.create("mixup"), losses.MixedCrossEntropy())
    batch = mixaug.Batch(torch.rand(4, 3, 8, 8), torch.arange(4))
    for beside in ({"labels": torch.arange(4)}, {"rows": torch.arange(4)}):
        with pytest.raises(ValueError, match="put them into the Batch"):
            step(batch, **beside)
