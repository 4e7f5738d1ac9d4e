"""`MixupFn` against timm's own target arithmetic and its contract with timm's training loop."""

from __future__ import annotations

import unittest
import warnings

import numpy as np
import pytest
import timm.loss
import torch
from timm.data import create_loader
from timm.optim import create_optimizer_v2
from torch import nn
from torch.nn import functional as F

import mixaug
from helpers import seeded
from mixaug.integrations.timm import FastCollateMix, MixTask, MixupFn


def batch(size: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(size, 3, 8, 10, generator=seeded(0)), torch.randint(5, (size,), generator=seeded(1))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixes_as_the_policy_does(smoothing):
    images, labels = batch()
    policy = mixaug.create("cutmix")
    expected = policy(images, labels, generator=seeded(2))
    mixed, targets = MixupFn(policy, 5, smoothing, generator=seeded(2))(images, labels)
    assert torch.equal(mixed, expected.inputs)
    assert torch.equal(targets, expected.targets(5, label_smoothing=smoothing))
    assert not torch.equal(mixed, images)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_against_timm(smoothing):
    images, labels = batch()
    policy = mixaug.create("mixup", ratio=0.3, pairing="reversed", per="batch")
    mixed, targets = MixupFn(policy, 5, smoothing)(images, labels)
    torch.testing.assert_close(mixed, 0.3 * images + 0.7 * images.flip(0))
    torch.testing.assert_close(targets, timm.data.mixup.mixup_target(labels, 5, 0.3, smoothing))


def test_disabled_gives_unmixed_images_and_timms_dense_targets():
    images, labels = batch()
    mixup_fn = MixupFn(mixaug.create("mixup"), 5, 0.1)
    assert mixup_fn.mixup_enabled
    mixup_fn.mixup_enabled = False
    mixed, targets = mixup_fn(images, labels)
    assert torch.equal(mixed, images)
    torch.testing.assert_close(targets, timm.data.mixup.mixup_target(labels, 5, 1.0, 0.1))


def test_soft_target_loss_equals_the_index_loss():
    images, labels = batch()
    policy = mixaug.create("mixup")
    logits = torch.randn(6, 5, generator=seeded(3))
    _, targets = MixupFn(policy, 5, 0.1, generator=seeded(2))(images, labels)
    index_loss = mixaug.losses.MixedCrossEntropy(label_smoothing=0.1)
    expected = index_loss(logits, policy(images, labels, generator=seeded(2)))
    torch.testing.assert_close(timm.loss.SoftTargetCrossEntropy()(logits, targets), expected)


def test_images_of_the_caller_stay_and_odd_batches_work():
    images, labels = batch(5)
    before = images.clone()
    mixed, targets = MixupFn(mixaug.create("mixup"), 5)(images, labels)
    assert torch.equal(images, before)
    assert mixed.shape == images.shape
    assert targets.shape == (5, 5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("cutmix", 5), TypeError, "mixaug.Policy, got str: 'cutmix'"),
        ((None, 0), ValueError, "`num_classes` to be a positive int, got 0"),
        ((None, 5.0), ValueError, "`num_classes` to be a positive int, got 5.0"),
        ((None, 5, 1.5), ValueError, r"label_smoothing in \[0, 1\], got 1.5"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    policy, *rest = arguments
    with pytest.raises(error, match=message):
        MixupFn(policy or mixaug.create("mixup"), *rest)


def test_policy_that_needs_the_model_is_refused():
    policy = mixaug.create("mixup")
    policy.needs = frozenset({"saliency"})
    for refuses in (lambda: MixupFn(policy, 5), lambda: FastCollateMix(policy, 5)):
        with pytest.raises(ValueError, match=r"needs saliency from it; train the task MixTask\(mixaug\.MixStep\("):
            refuses()


class Images(torch.utils.data.Dataset):
    """Sixteen images of one grey value each, so that a pixel names its parent."""

    transform = None

    def __len__(self):
        return 16

    def __getitem__(self, index):
        image = np.full((3, 8, 8), index * 10, np.uint8)
        return (image if self.transform is None else self.transform(image)), index % 5


def loader_of(collate, **options):
    quick = {"batch_size": 8, "input_size": (3, 8, 8), "is_training": True, "device": torch.device("cpu")}
    return create_loader(Images(), **quick, collate_fn=collate, mean=(0.0,) * 3, std=(1.0,) * 3, **options)


def mixed_rows(loader):
    """Share of the targets in an epoch that name more than one class."""
    targets = torch.cat([target for _, target in loader])
    return float(((targets > 0).sum(1) > 1).float().mean())


@pytest.mark.parametrize("workers", [0, 2])
def test_timms_loader_mixes_and_stops_where_it_is_told(workers):
    torch.manual_seed(0)
    policy = mixaug.create("mixup", ratio=0.3, pairing="derangement")
    loader = loader_of(FastCollateMix(policy, 5), num_workers=workers, persistent_workers=workers > 0)
    # create_loader sets a transform of its own for PIL images.
    loader.dataset.transform = None
    assert loader.mixup_enabled
    assert mixed_rows(loader) > 0.5
    loader.mixup_enabled = False
    assert not loader.mixup_enabled
    assert mixed_rows(loader) == 0


@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_collate_mixes_as_the_policy_does(kind):
    samples = [(np.full((3, 4, 4), 40 * index, np.uint8), index) for index in range(5)]
    if kind == "tensor":
        samples = [(torch.from_numpy(image), label) for image, label in samples]
    images, targets = FastCollateMix(mixaug.create("mixup", ratio=0.25, pairing="reversed"), 5, 0.1)(samples)
    own, other = torch.arange(5) * 40.0, torch.arange(5).flip(0) * 40.0
    assert images.dtype == torch.uint8
    assert torch.equal(images, (0.25 * own + 0.75 * other).to(torch.uint8)[:, None, None, None].expand(5, 3, 4, 4))
    torch.testing.assert_close(targets, timm.data.mixup.mixup_target(torch.arange(5), 5, 0.25, 0.1))


def test_collate_refuses_what_it_cannot_mix():
    with pytest.raises(TypeError, match=r"uint8 images, got torch.float32; MixCollate takes others"):
        FastCollateMix(mixaug.create("mixup"), 5)([(torch.zeros(3, 4, 4), 1)] * 2)
    with pytest.raises(TypeError, match="arrays or tensors, got str"):
        FastCollateMix(mixaug.create("mixup"), 5)([("a", 1)] * 2)
    with pytest.raises(ValueError, match="FastCollateMix mixes before the model runs, but PuzzleMix needs saliency"):
        FastCollateMix(mixaug.create("puzzlemix"), 5)


@pytest.mark.parametrize("layer_decay", [None, 0.5])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet10t"])
def test_an_optimizer_of_the_step_treats_the_model_as_it_would_alone(name, layer_decay):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=5)
    options = {"opt": "adamw", "lr": 0.1, "weight_decay": 0.05, "layer_decay": layer_decay}

    def settings(module):
        groups = create_optimizer_v2(module, **options).param_groups
        names = {id(parameter): key.removeprefix("model.") for key, parameter in module.named_parameters()}
        return {names[id(p)]: (g["weight_decay"], g.get("lr_scale")) for g in groups for p in g["params"]}

    step = mixaug.MixStep(model, mixaug.create("cutmix"), mixaug.losses.MixedCrossEntropy())
    assert settings(step) == settings(model)
    if layer_decay is not None:
        assert len({scale for _, scale in settings(step).values()}) > 3
    # A step around a model that says nothing of layers says nothing of them either.
    assert not hasattr(mixaug.MixStep(nn.Linear(2, 2), step.policy, step.objective), "group_matcher")


class Counting(nn.Module):
    """A cross-entropy with a parameter of its own, which is told of every optimizer step."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.told = 0

    def forward(self, outputs: torch.Tensor, mixed: mixaug.MixedBatch) -> torch.Tensor:
        return mixaug.losses.MixedCrossEntropy()(self.scale * outputs, mixed)

    def after_step(self, step: mixaug.MixStep) -> None:
        self.told += 1


class Net(nn.Sequential):
    """torch 2.11 compiles no bare container in place: its `forward` counts as torch's own."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images)


def task_of(policy: mixaug.Policy | str, **options: object) -> MixTask:
    policy = mixaug.create(policy) if isinstance(policy, str) else policy
    torch.manual_seed(0)
    model = Net(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    return MixTask(mixaug.MixStep(model, policy, Counting()), **options)


def trained(task: MixTask, steps: int, first: int = 1) -> list[float]:
    """The losses of so many steps, as timm's script makes them, numbered from the first on."""
    optimizer = create_optimizer_v2(task.get_trainable_module(), opt="sgd", lr=0.1)
    task.get_trainable_module().train()
    losses = []
    for number in range(first, first + steps):
        result = task(*batch())
        result["loss"].backward()
        nn.utils.clip_grad_norm_(task.get_clip_parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        task.update_ema(step=number)
        losses.append(result["loss"].item())
    return losses


def test_a_task_trains_as_the_step_does_and_tells_it_of_every_update():
    task, alone = task_of("puzzlemix"), task_of("puzzlemix").trainable_module
    torch.manual_seed(3)
    loss, logs = alone(*batch())
    torch.manual_seed(3)
    result = task(*batch())
    assert torch.equal(result["loss"], loss) and torch.equal(result["accuracy"], logs["accuracy"])
    assert len(set(trained(task, 3))) == 3
    step = task.get_trainable_module()
    assert step.objective.told == 3
    # What the objective has of its own is in the optimizer and was trained along.
    assert step.objective.scale != 1
    assert task.get_eval_model() is step.model and task.get_eval_model(step) is step.model
    every = list(step.parameters())
    assert [id(p) for p in task.get_clip_parameters()] == [id(p) for p in every]
    head = {id(p) for p in step.model[-1].parameters()}
    assert [id(p) for p in task.get_clip_parameters(exclude_head=True)] == [id(p) for p in every if id(p) not in head]


def test_a_task_says_once_that_targets_were_mixed_before():
    images, labels = batch()
    rows = F.one_hot(labels, 5).float()
    task = task_of("mixup")
    with pytest.warns(
        UserWarning, match=r"got targets \(\d+, 5\) as floating rows, which is what timm's own mixing makes"
    ):
        task(images, rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task(images, rows)
        # Rows that are the data's own, and class ids, are nothing to speak of.
        task_of("mixup", soft_targets=True)(images, rows)
        task_of("mixup")(images, labels)
        # A single column holds numbers to predict; timm mixes rows of classes.
        model = Net(nn.Flatten(), nn.Linear(images[0].numel(), 1))
        numbers = mixaug.MixStep(model, mixaug.create("mixup"), mixaug.losses.MixedSquaredError())
        MixTask(numbers)(images.float(), rows[:, :1])
    # What is no tensor is refused by whoever knows what was expected.
    with pytest.raises(ValueError, match="needs labels"):
        task_of("mixup")(images, None)


def test_a_task_tells_the_policy_how_much_of_training_is_done():
    task = task_of(mixaug.create("mixup", alpha=mixaug.schedule.Linear(1, 3)), total_updates=4)
    policy = task.get_trainable_module().policy
    alphas = [policy.alpha]
    for number in (1, 2, 3, 4, 5):
        task.update_ema(step=number)
        alphas.append(policy.alpha)
    assert alphas == [1, 1.5, 2, 2.5, 3, 3]


def test_a_checkpoint_of_the_task_holds_the_model_and_what_stands_beside_it():
    task, other = task_of("recursivemix", total_updates=4), task_of("recursivemix", total_updates=4)
    trained(task, 2)
    stored = task.get_checkpoint_state()
    step = task.get_trainable_module()
    assert list(stored["state_dict"]) == list(step.model.state_dict())
    other.load_checkpoint_state(stored["state_dict"], stored["task_state"])
    again = other.get_trainable_module()
    kept, taken = step.state_dict(), again.state_dict()
    beside = [name for name in kept if not name.startswith("model.")]
    assert "objective.scale" in beside and any(name.startswith("policy.") for name in beside)
    for name, value in kept.items():
        torch.testing.assert_close(taken[name], value, rtol=0, atol=0)
    other.total_updates = 2
    other.update_ema()
    assert other.get_task_state()["updates"] == 3
    # A checkpoint of the model alone, such as a pretrained one, leaves the rest as it is.
    scheduled, resumed = (
        task_of(mixaug.create("mixup", alpha=mixaug.schedule.Linear(1, 3)), total_updates=4) for _ in range(2)
    )
    trained(scheduled, 2)
    stored = scheduled.get_checkpoint_state()
    resumed.load_checkpoint_state(stored["state_dict"], stored["task_state"])
    assert resumed.get_trainable_module().policy.alpha == 2
    third = task_of("recursivemix")
    third.load_checkpoint_state(stored["state_dict"])
    assert third.get_trainable_module().objective.scale == 1


def test_a_moving_average_is_of_the_model_alone():
    task = task_of("cutmix")
    task.setup_ema(decay=0.75)
    # The first update of timm's average is a copy.
    trained(task, 1)
    before = [p.detach().clone() for p in task.get_eval_model().parameters()]
    trained(task, 1, first=2)
    after = list(task.get_eval_model().parameters())
    mean = list(task.get_eval_model(ema=True).parameters())
    for old, new, average in zip(before, after, mean, strict=True):
        torch.testing.assert_close(average, 0.75 * old + 0.25 * new)
    stored = task.get_checkpoint_state(ema=True)
    assert list(stored) == ["state_dict_ema"]
    assert list(stored["state_dict_ema"]) == list(task.get_eval_model().state_dict())


def test_a_compiled_task_validates_by_the_same_model():
    task, eager = task_of("mixup"), task_of("mixup")
    model, graphs = task.get_eval_model(), []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    assert task.compile(backend=backend) is model and task.get_eval_model() is model
    torch.manual_seed(1)
    expected = eager(*batch())["loss"]
    torch.manual_seed(1)
    assert torch.equal(task(*batch())["loss"], expected)
    assert len(graphs) == 1


def test_several_processes_share_the_step(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        task, alone = task_of("mixup"), task_of("mixup")
        model = task.get_eval_model()
        assert task.prepare_distributed() is task
        wrapped = task.get_trainable_module()
        assert isinstance(wrapped, nn.parallel.DistributedDataParallel) and wrapped.module.model is model
        torch.manual_seed(5)
        losses = trained(task, 2)
        torch.manual_seed(5)
        assert losses == trained(alone, 2)
        assert wrapped.module.objective.told == 2 and task.get_eval_model() is model
        assert list(task.get_checkpoint_state()["task_state"]["step"]) == ["objective.scale"]
        with task.no_sync():
            assert not wrapped.require_backward_grad_sync
    finally:
        torch.distributed.destroy_process_group()


def test_a_task_moves_the_step_where_it_is_told():
    weights = mixaug.losses.MixedCrossEntropy(class_weight=torch.ones(5))
    task = MixTask(mixaug.MixStep(nn.Linear(2, 5), mixaug.create("none"), weights), device=torch.device("meta"))
    assert {t.device.type for t in (*task.parameters(), *task.buffers())} == {"meta"}


def test_a_task_takes_up_no_state_of_another_one():
    task = task_of("recursivemix")
    stored, before = task.get_checkpoint_state(), [p.clone() for p in task.parameters()]
    weights = {name: value + 1 for name, value in stored["state_dict"].items()}
    for state, words in (
        ({"projection": {}}, r"of another task, whose state has \['projection'\]"),
        (task_of("mixup").get_task_state(), "another policy, objective or networks: it alone has .*the step alone"),
    ):
        with pytest.raises(ValueError, match=words):
            task.load_checkpoint_state(weights, state)
    assert all(torch.equal(now, then) for now, then in zip(task.parameters(), before, strict=True))


def test_a_task_says_what_it_trains():
    with unittest.TestCase().assertLogs(level="INFO") as told:
        task_of("cutmix")
        task_of("mixup", verbose=False)
    assert [record.getMessage() for record in told.records] == ["MixTask: policy=CutMix, objective=Counting"]


def test_a_task_of_an_older_timm_says_which_one_it_needs(monkeypatch):
    monkeypatch.delattr("timm.task.TrainingTask.get_trainable_module")
    with pytest.raises(ImportError, match=r"MixTask needs timm 1\.0\.27 or later"):
        task_of("mixup")


def test_a_task_refuses_what_it_cannot_train():
    with pytest.raises(TypeError, match=r"MixTask expects a mixaug\.MixStep, got Linear"):
        MixTask(nn.Linear(2, 2))
    for wrong in (0, -1, 2.5, float("inf"), "4", True, [3]):
        with pytest.raises(ValueError, match="expects total_updates as a positive whole number"):
            task_of("mixup", total_updates=wrong)


def test_clips_are_mixed_in_the_layout_that_is_said():
    clips, labels = torch.rand(6, 5, 3, 8, 8, generator=seeded(0)), torch.arange(6) % 5
    policy = mixaug.create("cutmix")
    expected = policy(clips, labels, layout="NTCHW", generator=seeded(2))
    mixed, targets = MixupFn(policy, 5, generator=seeded(2), layout="NTCHW")(clips, labels)
    assert torch.equal(mixed, expected.inputs)
    assert torch.equal(targets, expected.targets(5))
    with pytest.raises(ValueError, match="MixupFn expects layout"):
        MixupFn(policy, 5, layout="channels last")


@pytest.mark.parametrize("smoothing", ["0.1", True, float("nan"), None, 1.5])
def test_smoothing_that_is_no_share_is_refused(smoothing):
    with pytest.raises(ValueError, match=r"MixupFn expects label_smoothing in \[0, 1\], got"):
        MixupFn(mixaug.create("mixup"), 5, smoothing)


def test_what_is_no_generator_is_refused():
    mixup_fn = MixupFn(mixaug.create("mixup"), 5, generator="cpu")
    with pytest.raises(TypeError, match=r"Mixup expects generator as a torch\.Generator, got 'cpu'"):
        mixup_fn(torch.rand(2, 3, 8, 8), torch.arange(2))
