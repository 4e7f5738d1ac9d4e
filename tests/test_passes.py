"""What an objective asks for is drawn and run once, whoever asks; joined passes; networks beside the model."""

import copy

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import combine as tool
import mixaug
from helpers import ours, seeded
from mixaug import Batch, MixStep, Objective, Wants, losses, models, networks
from mixaug.losses import MixedCrossEntropy
from mixaug.objectives import CutMixPick, MixKD, MixOE, RankMixup, RegMixup, top_share
from mixaug.partners import Stream
from mixaug.passes import Passes

IMAGES = torch.randn(6, 3, 16, 16, generator=seeded(0))
LABELS = torch.tensor([0, 3, 1, 4, 2, 0])


def resnet(seed=0):
    torch.manual_seed(seed)
    return models.create("cifar_resnet8", num_classes=5)


def vit():
    torch.manual_seed(0)
    return VisionTransformer(img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=3, num_classes=5)


class Counted(nn.Module):
    """A small network with batch norm that counts its calls and the rows of each."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        self.fc = nn.Linear(6, 5)
        self.rows = []

    def forward(self, images):
        self.rows.append(len(images))
        return self.fc(self.body(images).mean((2, 3)))


class Asks(Objective):
    """Runs what a function of the passes says."""

    def __init__(self, ask, wants=None):
        super().__init__()
        self.ask = ask
        if wants is not None:
            self.wants = wants

    def forward(self, passes):
        return self.ask(passes)


def loss_of(outcome):
    return MixedCrossEntropy()(outcome.outputs, outcome.batch)


def test_what_is_asked_for_twice_is_drawn_and_run_once():
    kept = []

    def ask(passes):
        first = passes.run(passes.mixed)
        assert passes.mixed is passes.draw(index=1)
        assert passes.run(passes.mixed) is first
        other = passes.run(passes.draw(index=2))
        assert passes.clean is passes.clean
        clean, again = passes.run(passes.clean), passes.run(passes.clean)
        assert clean is again
        assert passes.run(passes.clean, grad=False) is not clean
        recorded = passes.run(passes.clean, reads=("pooled",))
        assert recorded is passes.run(passes.clean, reads=("pooled",))
        assert recorded.seen.pooled().shape == (6, 6)
        assert passes.run(passes.clean) is clean
        kept.extend([first, other])
        return loss_of(first) + loss_of(other) + loss_of(clean)

    model = Counted()
    step = MixStep(model, mixaug.create("mixup"), Asks(ask))
    step(IMAGES, LABELS, generator=seeded(1))
    assert model.rows == [6, 6, 6, 6, 6]
    assert not torch.equal(kept[0].batch.inputs, kept[1].batch.inputs)


def test_draws_come_in_the_order_of_their_numbers():
    def ask(order):
        def found(passes):
            drawn = {index: passes.draw(index=index) for index in order}
            seen.append([drawn[index].inputs for index in sorted(order)])
            return loss_of(passes.run(passes.mixed))

        return found

    seen = []
    for order in ((1, 2, 3), (3, 1, 2)):
        MixStep(Counted(), mixaug.create("cutmix"), Asks(ask(order)))(IMAGES, LABELS, generator=seeded(2))
    for one, other in zip(*seen, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("policy", ["mixup", "manifoldmix", "none"])
def test_a_joined_pass_equals_separate_ones_where_batch_norm_stands_still(policy):
    options = {"stages": ("layer1", "layer2")} if policy == "manifoldmix" else {}
    found = {}

    def ask(joined):
        def objective(passes):
            drawn = [passes.clean, passes.draw(index=1), passes.draw(index=2)]
            outcomes = passes.run(*drawn, joined=joined)
            found[joined] = [outcome.outputs.detach() for outcome in outcomes]
            return sum(map(loss_of, outcomes))

        return objective

    for joined in (False, True):
        step = MixStep(resnet(), mixaug.create(policy, **options), Asks(ask(joined))).eval()
        step(IMAGES, LABELS, generator=seeded(3))[0].backward()
        found["grad", joined] = step.model.fc.weight.grad.clone()
    for one, other in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["grad", True], found["grad", False], rtol=1e-4, atol=1e-5)
    if policy != "none":
        assert not torch.allclose(found[True][0], found[True][1])


def test_batch_norm_sees_all_of_a_joined_pass():
    joined, apart = (MixStep(Counted(), mixaug.create("none"), Asks(lambda passes: 0)) for _ in range(2))
    joined.objective.ask = lambda passes: sum(map(loss_of, passes.run(passes.clean, passes.mixed, joined=True)))
    apart.objective.ask = lambda passes: sum(map(loss_of, passes.run(passes.clean, passes.mixed)))
    joined(IMAGES, LABELS)
    apart(IMAGES, LABELS)
    assert joined.model.rows == [12]
    assert apart.model.rows == [6, 6]
    assert int(joined.model.body[1].num_batches_tracked) == 1
    assert int(apart.model.body[1].num_batches_tracked) == 2


def test_labels_after_the_pass_are_those_of_each_part():
    """TransMix reads the attention of its own rows of a joined pass."""
    found = {}

    def ask(joined):
        def objective(passes):
            outcomes = passes.run(passes.clean, passes.draw(index=1), passes.draw(index=2), joined=joined)
            found[joined] = [outcome.batch.weights.detach() for outcome in outcomes]
            return sum(map(loss_of, outcomes))

        return objective

    for joined in (False, True):
        MixStep(vit().eval(), mixaug.create("transmix"), Asks(ask(joined))).eval()(IMAGES, LABELS, generator=seeded(4))
    for one, other in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[True][1], found[True][2])


def test_a_policy_that_learns_from_several_draws_learns_from_their_mean():
    class Adds(mixaug.policies.Mixup):
        def early_loss(self, images, mixed, clean):
            return {"early": mixed.inputs.mean()}

        def auxiliary_loss(self, mixed, seen):
            return {"late": mixed.weights[:, 0].mean()}

    drawn = []

    def ask(passes):
        drawn.extend(passes.draw(index=index) for index in (1, 2))
        return sum(map(loss_of, passes.run(*drawn)))

    _, logs = MixStep(Counted(), Adds(), Asks(ask))(IMAGES, LABELS, generator=seeded(5))
    torch.testing.assert_close(logs["early"], torch.stack([one.inputs.mean() for one in drawn]).mean())
    torch.testing.assert_close(logs["late"], torch.stack([one.weights[:, 0].mean() for one in drawn]).mean())


@pytest.fixture(scope="module")
def cells():
    return tool.written(tool.PAGE.read_text(encoding="utf-8"))


def test_the_page_of_combinations_has_every_policy(cells):
    assert {policy for _, policy, _ in cells} == set(ours())
    for task, policy, _ in cells:
        assert {column for t, p, column in cells if (t, p) == (task, policy)} == set(tool.columns(task))


# Which labels a policy takes is seen by a training step of each.
@pytest.mark.slow
def test_the_page_of_combinations_has_every_policy_where_it_can_be_trained(cells):
    assert set(cells) == {
        (task, policy, column)
        for task in tool.OBJECTIVES
        for policy in tool.policies(task)
        for column in tool.columns(task)
    }


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_any_policy_under_any_objective(cells, task):
    """Whole steps with every objective of the task, against what the page says."""
    for policy in tool.policies(task):
        assert tool.cell(policy, "objectives", task) == cells[task, policy, "objectives"], policy
    whole = [cells[task, policy, "objectives"] == "all" for policy in tool.policies(task)]
    assert sum(whole) > len(whole) / 3


def test_every_policy_and_every_objective_in_some_pair(cells):
    """A seventh of the four hundred pairs of the test above: every policy, and every objective with several of them."""
    objectives = [name for name in tool.OBJECTIVES["classification"] if name != "mixoe"]
    policies = sorted(policy for task, policy, column in cells if (task, column) == ("classification", "objectives"))
    pairs = [(policy, objective) for policy in policies for objective in objectives][::7]
    assert len({policy for policy, _ in pairs}) == len(policies)
    assert {objective for _, objective in pairs} == set(objectives)
    refused = []
    for policy, objective in pairs:
        missing = cells["classification", policy, "objectives"].removeprefix("all but ").split(", ")
        assert bool(tool.why_not(policy, objective)) == (objective in missing), (policy, objective)
        refused += [objective] if objective in missing else []
    assert 2 < len(refused) < len(pairs) / 2


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_all_three_at_once(cells, task):
    """Whole steps of every policy, objective and source of partners that two pairs allow, against the page."""
    refused = tool.refused_at_once(task, cells)
    assert tool.all_three(task, cells, refused) in tool.PAGE.read_text(encoding="utf-8")


def test_few_of_all_three(cells):
    """A policy that mixes the inputs goes with all, one that mixes inside the model not with passes that are joined."""
    of_inputs = [one for one in tool.allowed_twice("classification", cells) if one[0] == "mixup"]
    assert len(of_inputs) == 8 * 6
    assert not any(tool.why_not(*one) for one in of_inputs[::7])
    refused = tool.why_not("manifoldmix", "rankmixup", "memory")
    assert "hands partners from outside on into the model" in refused
    assert "| [manifoldmix](policies/manifoldmix.md) | regmixup, rankmixup, augmix, pixmix |" in tool.PAGE.read_text()


def test_regmixup_by_hand():
    model = Counted()
    mixed = mixaug.create("mixup")(IMAGES, LABELS, generator=seeded(8))
    outputs = copy.deepcopy(model)(torch.cat([IMAGES, mixed.inputs]))
    expected = F.cross_entropy(outputs[:6], LABELS) + 0.5 * F.cross_entropy(outputs[6:], mixed.targets(5))
    loss, logs = MixStep(model, mixaug.create("mixup"), RegMixup(eta=0.5))(IMAGES, LABELS, generator=seeded(8))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(logs["clean"] + logs["mixed"], expected.detach())
    assert RegMixup(loss=losses.MixedSquaredError()).task == "regression"


def test_pairs_of_one_class_do_not_count_in_the_margin():
    policy = mixaug.create("mixup", ratio=0.6, pairing="reversed")
    # Samples 0 and 5 have one class and meet each other.
    mixed = policy(IMAGES, LABELS, generator=seeded(9))
    torch.testing.assert_close(top_share(mixed), torch.tensor([1.0, 0.6, 0.6, 0.6, 0.6, 1.0]))
    model = Counted()
    clean, blended = copy.deepcopy(model), mixed.inputs
    logits, others = clean(IMAGES), clean(blended)
    hinge = (others.amax(1) - logits.amax(1) + 2).clamp(min=0)
    objective = RankMixup("margin", weight=1.0)
    _, logs = MixStep(model, policy, objective)(IMAGES, LABELS, generator=seeded(9))
    torch.testing.assert_close(logs["rank"], hinge[1:5].sum().detach() / 6, rtol=1e-4, atol=1e-5)


def test_mixoe_by_hand():
    outliers = torch.randn(6, 3, 8, 8, generator=seeded(30))
    images = torch.randn(6, 3, 8, 8, generator=seeded(31))
    policy = mixaug.create("mixup", ratio=0.25, partners=Stream("outliers", label="uniform"))
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    step = MixStep(model, policy, MixOE(beta=2.0))
    loss, logs = step(mixaug.Batch(images, LABELS, streams={"outliers": mixaug.Batch(outliers)}))
    target = 0.25 * nn.functional.one_hot(LABELS, 5) + 0.75 / 5
    mixed = nn.functional.cross_entropy(model(0.25 * images + 0.75 * outliers), target)
    torch.testing.assert_close(logs["outliers"], 2 * mixed)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(model(images), LABELS) + 2 * mixed)
    for wrong in (mixaug.create("mixup"), mixaug.create("mixup", partners=Stream("outliers"))):
        with pytest.raises(ValueError, match="MixOE expects a policy whose partners are outliers"):
            MixStep(model, wrong, MixOE())
    with pytest.raises(ValueError, match=r"from the stream 'outliers', the batch has \[\]"):
        step(images, LABELS)


@pytest.mark.parametrize("score", ["student_entropy", "teacher_entropy", "divergence"])
def test_cutmixpick_learns_from_the_candidates_that_score_highest(score):
    torch.manual_seed(0)
    model, teacher = (nn.Sequential(nn.Flatten(), nn.Linear(192, 5)) for _ in range(2))
    images = torch.randn(6, 3, 8, 8, generator=seeded(32))
    objective = CutMixPick(score, draws=3, pick=7, temperature=2.0, mixed_labels=0.5)
    step = MixStep(model, mixaug.create("cutmix"), objective, networks={"teacher": networks.Frozen(teacher)})
    loss, logs = step(images, LABELS, generator=seeded(33))
    generator = seeded(33)
    drawn = [mixaug.create("cutmix")(images, LABELS, generator=generator) for _ in range(3)]
    pool, targets = torch.cat([one.inputs for one in drawn]), torch.cat([one.targets(5) for one in drawn])
    student, told = model(pool), teacher(pool)
    if score == "divergence":
        shares = (told / 2).softmax(1)
        scores = (shares * (shares.log() - (student / 2).log_softmax(1))).sum(1)
    else:
        scores = torch.distributions.Categorical(logits=student if score == "student_entropy" else told).entropy()
    rows = scores.argsort(descending=True)[:7]

    def divergence(student, teacher):
        shares = (teacher / 2).softmax(1)
        return 4 * (shares * (shares.log() - (student / 2).log_softmax(1))).sum(1).mean()

    torch.testing.assert_close(logs["picked"], divergence(student[rows], told[rows]))
    torch.testing.assert_close(logs["labels"], 0.5 * nn.functional.cross_entropy(student[rows], targets[rows]))
    torch.testing.assert_close(logs["clean"], divergence(model(images), teacher(images)))
    torch.testing.assert_close(loss, logs["picked"] + logs["labels"] + logs["clean"])
    step.policy = mixaug.create("manifoldmix", stages=["1"])
    with pytest.raises(ValueError, match="CutMixPick picks mixed inputs, but the policy mixes inside the model"):
        step(images, LABELS)


def test_a_frozen_network_stays_as_it_is(tmp_path):
    teacher = Counted().train()
    step = MixStep(Counted(), mixaug.create("mixup"), MixKD(), networks={"teacher": networks.Frozen(teacher, "a.pt")})
    before = copy.deepcopy(teacher.state_dict())
    step.train()
    loss, _ = step(IMAGES, LABELS)
    loss.backward()
    assert not teacher.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in teacher.parameters())
    assert not {id(p) for p in teacher.parameters()} & {id(p) for p in step.parameters()}
    state = step.state_dict()
    assert [name for name in state if name.startswith("networks")] == ["networks.teacher._extra_state"]
    torch.save(state, tmp_path / "step.pt")
    step.load_state_dict(torch.load(tmp_path / "step.pt", weights_only=True))
    with torch.no_grad():
        teacher.fc.bias.add_(1)
    with pytest.raises(ValueError, match=r"other weights \(from a\.pt"):
        step.load_state_dict(state)
    step.double()
    assert teacher.fc.weight.dtype == torch.float64


def test_a_slow_copy_follows_the_model():
    slow = networks.Momentum(0.75)

    def ask(passes):
        student = passes.run(passes.mixed)
        teacher = passes.run(passes.clean, network="slow", grad=False)
        assert not teacher.outputs.requires_grad
        return loss_of(student) + (student.outputs - teacher.outputs).square().mean()

    step = MixStep(Counted(), mixaug.create("mixup"), Asks(ask, Wants(networks=("slow",))), networks={"slow": slow})
    assert slow.copied is not None
    old = slow.copied.fc.weight.clone()
    assert torch.equal(old, step.model.fc.weight)
    step(IMAGES, LABELS)[0].backward()
    with torch.no_grad():
        step.model.fc.weight.add_(1)
    step.after_step()
    torch.testing.assert_close(slow.copied.fc.weight, old + 0.25)
    assert torch.equal(slow.copied.body[1].running_mean, step.model.body[1].running_mean)
    assert any(name.startswith("networks.slow.copied") for name in step.state_dict())


def test_an_auxiliary_network_is_trained_beside():
    def ask(passes):
        own, other = passes.run(passes.mixed), passes.run(passes.mixed, network="biased")
        return {"own": loss_of(own), "biased": loss_of(other)}

    biased = networks.Auxiliary(Counted())
    step = MixStep(
        Counted(), mixaug.create("mixup"), Asks(ask, Wants(networks=("biased",))), networks={"biased": biased}
    )
    loss, logs = step(IMAGES, LABELS)
    loss.backward()
    assert biased.network.fc.weight.grad is not None
    torch.testing.assert_close(logs["own"] + logs["biased"], logs["loss"])
    assert {"networks.biased.trained.fc.weight"} <= set(step.state_dict())


def test_what_is_missing_is_said_before_the_first_step():
    with pytest.raises(ValueError, match=r"wants 'teacher' of networks.*MixStep\(\.\.\., networks="):
        MixStep(Counted(), mixaug.create("mixup"), MixKD())
    with pytest.raises(TypeError, match=r"objective as a mixaug\.Objective or a loss"):
        MixStep(Counted(), mixaug.create("mixup"), 3)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda passes: passes.view("second"), r"'second' of views, which it does not name in its wants"),
        (lambda passes: passes.stream("outliers"), r"'outliers' of streams, which it does not name"),
        (lambda passes: passes.run(passes.clean, network="teacher"), r"'teacher' of networks, which it does not name"),
        (lambda passes: passes.metadata("domain"), r"'domain' of metadata, which it does not name"),
        (lambda passes: passes.draw("other"), "no policy 'other'"),
        (lambda passes: passes.draw(index=0), "from 1 on"),
        (lambda passes: passes.run(), "at least one batch"),
        (lambda passes: passes.run(passes.clean, mode="test"), "'train' or 'eval', got 'test'"),
    ],
)
def test_what_was_not_named_is_refused_at_the_first_step(ask, message):
    with pytest.raises(ValueError, match=message):
        MixStep(Counted(), mixaug.create("mixup"), Asks(ask))(IMAGES, LABELS)


def test_views_streams_and_metadata():
    def ask(passes):
        view, other = passes.run(passes.view("second")), passes.run(passes.stream("outliers"))
        assert torch.equal(view.batch.labels, LABELS)
        assert other.batch.labels is None
        weight = passes.metadata("confidence")
        return (weight * F.cross_entropy(view.outputs, LABELS, reduction="none")).mean() - other.outputs.mean()

    wants = Wants(views=("second",), streams=("outliers",), metadata=("confidence",))
    step = MixStep(Counted(), mixaug.create("mixup"), Asks(ask, wants))
    batch = Batch(
        IMAGES,
        LABELS,
        metadata={"confidence": torch.rand(6)},
        views={"second": IMAGES.flip(3)},
        streams={"outliers": Batch(torch.randn(4, 3, 16, 16))},
    )
    loss, _ = step(batch)
    assert loss.isfinite()
    with pytest.raises(ValueError, match=r"wants 'outliers' of streams, there are \[\]: pass step\(Batch"):
        step(Batch(IMAGES, LABELS, metadata=batch.metadata, views=batch.views))


class CountsOperators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_a_plain_loss_costs_no_operator_more_than_by_hand():
    model, policy, objective = Counted(), mixaug.create("mixup"), MixedCrossEntropy()
    step = MixStep(model, policy, objective)
    with CountsOperators() as ours:
        step(IMAGES, LABELS)
    with CountsOperators() as by_hand:
        mixed = policy(IMAGES, LABELS)
        outputs = model(mixed.inputs)
        objective(outputs, mixed).detach()
        losses.mixed_accuracy(outputs.detach(), mixed)
    assert ours.count <= by_hand.count


def test_evaluation_mode_of_one_pass_leaves_statistics_alone():
    def ask(passes):
        sharp = passes.run(passes.clean, mode="eval", grad=False)
        again = passes.run(passes.clean, mode="eval", grad=False)
        assert again is sharp
        return loss_of(passes.run(passes.mixed)) + 0 * sharp.outputs.sum()

    step = MixStep(Counted(), mixaug.create("mixup"), Asks(ask)).train()
    expected = copy.deepcopy(step.model).eval()(IMAGES)
    outputs = []
    step.objective.ask = lambda passes: (
        outputs.append(passes.run(passes.clean, mode="eval", grad=False).outputs) or ask(passes)
    )
    step(IMAGES, LABELS)
    torch.testing.assert_close(outputs[0], expected)
    assert int(step.model.body[1].num_batches_tracked) == 1
    assert step.model.body[1].training


def test_dictionaries_are_mixed_by_key():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.image, self.number = Counted(), nn.Linear(2, 5)

        def forward(self, batch):
            return self.image(batch["image"]) + self.number(batch["number"])

    step = MixStep(Two(), mixaug.create("mixup"), RegMixup(), keys=["image", "number"])
    loss, logs = step({"image": IMAGES, "number": torch.randn(6, 2)}, LABELS)
    loss.backward()
    assert step.model.number.weight.grad.abs().sum() > 0
    assert step.model.image.rows == [12]
    assert "accuracy" in logs


# Joined passes; a network beside the model is called as it is, and RankMixup only draws more often.
@pytest.mark.parametrize(
    "objective", ["regmixup", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mixkd", "rankmixup"))]
)
def test_several_passes_compile_into_one_graph(objective):
    torch.compiler.reset()
    beside = {"teacher": networks.Frozen(Counted())} if objective == "mixkd" else None
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 5))
    if beside:
        beside = {"teacher": networks.Frozen(nn.Sequential(nn.Flatten(), nn.Linear(768, 5)))}
    step = MixStep(model, mixaug.create("mixup"), tool.OBJECTIVES["classification"][objective](), networks=beside)
    # Whether it is one graph is Dynamo's matter, for which its eager backend is the quick one.
    traced = torch.compile(step, fullgraph=True, backend="eager")
    found = []
    for forward in (step, traced):
        torch.manual_seed(3)
        loss, _ = forward(IMAGES, LABELS)
        found.append(loss)
    torch.testing.assert_close(*found)
    found[1].backward()
    assert model[1].weight.grad.isfinite().all()


def test_passes_can_be_used_without_a_step_class():
    step = MixStep(Counted(), mixaug.create("mixup"), MixedCrossEntropy())
    passes = Passes(step, Batch(IMAGES, LABELS), seeded(10))
    outcome = passes.run(passes.mixed)
    assert outcome.outputs.shape == (6, 5)
    assert passes.shown is outcome


class Shown(nn.Module):
    """A small network whose parts are found, and which counts its passes by mode and gradient."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(6, 5)
        self.passes = []

    def forward(self, images):
        self.passes.append(("train" if self.training else "eval", torch.is_grad_enabled()))
        return self.fc(self.pool(self.body(images)))


SHARED = {
    # SUMix compares with the clean batch in training mode, with gradient, as an objective's clean pass is.
    "sumix": ({}, [("train", True)] * 2),
    # Saliency is taken in evaluation mode, as the question without gradient is; the mixed pass is another one.
    "puzzlemix": ({"grad": False, "mode": "eval"}, [("eval", True), ("train", True)]),
    "attentivemix": ({"grad": False, "mode": "eval"}, [("eval", False), ("train", True)]),
    "mixup": ({}, [("train", True)] * 2),
}


@pytest.mark.parametrize("policy", SHARED)
@pytest.mark.parametrize("first", ["clean", "mixed"])
def test_a_clean_pass_serves_the_objective_and_the_signals(policy, first):
    how, expected = SHARED[policy]
    options = {"block_nums": (4,)} if policy == "puzzlemix" else {}
    kept = {}

    def ask(passes):
        if first == "mixed":
            kept["mixed"] = passes.run(passes.mixed)
        kept["clean"] = passes.run(passes.clean, **how)
        kept["mixed"] = passes.run(passes.mixed)
        return loss_of(kept["mixed"]) + (loss_of(kept["clean"]) if how == {} else 0)

    model = Shown()
    fresh = copy.deepcopy(model)
    step = MixStep(model, mixaug.create(policy, **options), Asks(ask))
    step(IMAGES, LABELS, generator=seeded(11))[0].backward()
    assert sorted(model.passes) == sorted(expected)
    if how:
        fresh.eval()
        assert not kept["clean"].outputs.requires_grad
        torch.testing.assert_close(kept["clean"].outputs, fresh(IMAGES).detach(), rtol=1e-4, atol=1e-5)
    elif first == "clean":
        loss = F.cross_entropy(fresh(IMAGES), LABELS)
        torch.testing.assert_close(loss_of(kept["clean"]), loss, rtol=1e-4, atol=1e-5)


def test_a_clean_pass_of_another_kind_is_a_pass_of_its_own():
    """Joined passes and those in the other mode see other batch statistics; what saliency used up has no graph."""
    for how, expected in (
        ({}, [("eval", True), ("train", True), ("train", True)]),
        ({"mode": "eval"}, [("eval", True), ("eval", True), ("train", True)]),
    ):
        model = Shown()
        ask = lambda passes, how=how: loss_of(passes.run(passes.mixed)) + loss_of(passes.run(passes.clean, **how))  # noqa: E731
        MixStep(model, mixaug.create("puzzlemix", block_nums=(4,)), Asks(ask))(IMAGES, LABELS)[0].backward()
        assert sorted(model.passes) == expected
        assert all(parameter.grad is not None for parameter in model.parameters())
    model = Shown()
    MixStep(model, mixaug.create("sumix"), RegMixup())(IMAGES, LABELS)[0].backward()
    assert model.passes == [("train", True)] * 2
    assert int(model.body[1].num_batches_tracked) == 2


def test_what_saliency_recorded_serves_readings_of_the_clean_pass():
    seen = []

    def ask(passes):
        mixed = passes.run(passes.mixed)
        seen.append(passes.run(passes.clean, grad=False, mode="eval", reads=("pooled",)).seen.pooled())
        return loss_of(mixed)

    model = Shown()
    MixStep(model, mixaug.create("attentivemix"), Asks(ask))(IMAGES, LABELS)
    model.eval()
    torch.testing.assert_close(seen[0], model.pool(model.body(IMAGES)), rtol=1e-4, atol=1e-5)


def test_a_network_that_is_trained_is_not_frozen_beside_itself():
    model = Counted()
    with pytest.raises(ValueError, match=r"networks\['teacher'\] frozen, but it shares parameters with"):
        MixStep(model, mixaug.create("mixup"), MixKD(), networks={"teacher": networks.Frozen(model)})
    # Two that hold one teacher: it answers in evaluation mode whoever put it into the other one.
    teacher = Counted()
    one, other = networks.Frozen(teacher), networks.Frozen(teacher)
    before = int(teacher.body[1].num_batches_tracked)
    teacher.train()
    assert torch.equal(one(IMAGES), other(IMAGES))
    assert int(teacher.body[1].num_batches_tracked) == before
    assert torch.equal(one.get_extra_state(), other.get_extra_state())
