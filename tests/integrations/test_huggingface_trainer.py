"""`MixTrainerMixin` in the real Trainer: its own losses when nothing is mixed, and policies that look at the model."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

import mixaug
from helpers import seeded
from mixaug.integrations._trainer_losses import check_loss_of_forward
from mixaug.integrations.huggingface import STATE_FILE, MixedLossFunction, MixTrainerMixin
from mixaug.losses import MixedCrossEntropy

transformers = pytest.importorskip("transformers", reason="needs transformers")
pytest.importorskip("accelerate", reason="the Trainer needs accelerate")


class MixTrainer(MixTrainerMixin, transformers.Trainer):
    pass


def vit(classes, problem_type=None):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTConfig(
        **sizes,
        image_size=16,
        patch_size=4,
        num_labels=classes,
        problem_type=problem_type,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.ViTForImageClassification(config)


def resnet(classes):
    """Takes `num_items_in_batch`, and does not hand it on to its loss function."""
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[8], depths=[1], num_labels=classes, layer_type="basic"
    )
    return transformers.ResNetForImageClassification(config)


def convnext(classes):
    """Does not take `num_items_in_batch`: the Trainer divides its loss by the number of parts."""
    torch.manual_seed(0)
    config = transformers.ConvNextConfig(num_stages=1, hidden_sizes=[8], depths=[1], num_labels=classes)
    return transformers.ConvNextForImageClassification(config)


class Convolutions(torch.nn.Module):
    def __init__(self):
        super().__init__()
        layers = [torch.nn.Conv2d(3, 4, 3, 2, 1), torch.nn.ReLU(), torch.nn.Conv2d(4, 8, 3, 2, 1), torch.nn.ReLU()]
        self.features, self.fc = torch.nn.Sequential(*layers), torch.nn.Linear(8, 5)

    def forward(self, pixel_values, labels=None):
        return {"logits": self.fc(self.features(pixel_values).mean((2, 3)))}


def arguments(folder, **options):
    given = {
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 8,
        "max_steps": 2,
        "learning_rate": 0.1,
        "optim": "sgd",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "remove_unused_columns": False,
    }
    return transformers.TrainingArguments(output_dir=str(folder), **{**given, **options})


IMAGES = torch.rand(8, 3, 16, 16, generator=seeded(0))
IDS = torch.randint(5, (8,), generator=seeded(1))


def samples(labels, key="labels"):
    return [{"pixel_values": image, key: label} for image, label in zip(IMAGES, labels, strict=True)]


def losses(trainer):
    """Losses of the training steps and of the evaluation afterwards."""
    trainer.train()
    trained = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return torch.tensor([*trained, trainer.evaluate()["eval_loss"]])


def trained_losses(kind, folder, model, labels, *, options=None, **more):
    data = samples(labels)
    return losses(kind(model, arguments(folder, **(options or {})), train_dataset=data, eval_dataset=data, **more))


@pytest.mark.parametrize(
    ("problem_type", "classes", "labels"),
    [
        ("single_label_classification", 5, IDS),
        (None, 5, IDS),
        ("multi_label_classification", 5, (torch.rand(8, 5, generator=seeded(2)) > 0.5).float()),
        ("regression", 3, torch.randn(8, 3, generator=seeded(2))),
        ("regression", 1, torch.randn(8, generator=seeded(2))),
        (None, 1, torch.randn(8, generator=seeded(2))),
    ],
)
def test_nothing_mixed_is_the_trainers_own_loss(tmp_path, problem_type, classes, labels):
    theirs = trained_losses(transformers.Trainer, tmp_path, vit(classes, problem_type), labels)
    ours = trained_losses(MixTrainer, tmp_path, vit(classes, problem_type), labels, policy=mixaug.create("none"))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


HOT = (torch.rand(8, 5, generator=seeded(2)) > 0.5).float()


@pytest.mark.parametrize(
    ("make", "labels", "by_a_step"),
    [
        (lambda: vit(5), IDS, False),
        (lambda: vit(5), HOT, False),
        (lambda: vit(5, "multi_label_classification"), HOT, True),
        (lambda: vit(3, "regression"), torch.randn(8, 3, generator=seeded(2)), False),
        (lambda: resnet(5), IDS, True),
        (lambda: convnext(5), IDS, True),
    ],
    ids=["ids", "rows", "several labels", "numbers", "not handed on", "not taken"],
)
def test_accumulated_steps_are_the_trainers_own(tmp_path, make, labels, by_a_step):
    """Two whole parts and one of two samples: a mean over parts and one over samples differ."""
    options = {"gradient_accumulation_steps": 3, "max_steps": 1, "per_device_train_batch_size": 3}
    models = make(), make()
    theirs = trained_losses(transformers.Trainer, tmp_path, models[0], labels, options=options)
    policy = mixaug.create("none")
    if by_a_step:
        policy.needs = frozenset({"logits"})  # goes through MixStep, and asks the model for nothing that is used
    ours = trained_losses(MixTrainer, tmp_path, models[1], labels, options=options, policy=policy)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for one, two in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


def test_rows_of_shares_give_what_class_ids_give(tmp_path):
    policy, problem_type = mixaug.create("none"), "single_label_classification"
    options = {"options": {"gradient_accumulation_steps": 2, "max_steps": 1, "learning_rate": 0.0}, "policy": policy}
    ids = trained_losses(MixTrainer, tmp_path, vit(5, problem_type), IDS, **options)
    rows = trained_losses(MixTrainer, tmp_path, vit(5, problem_type), F.one_hot(IDS, 5).float(), **options)
    with torch.no_grad():
        expected = F.cross_entropy(vit(5)(IMAGES).logits, IDS)
    torch.testing.assert_close(ids, expected.expand(2), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rows, ids)


def test_a_mean_over_all_samples_can_be_had(tmp_path):
    labels, model = HOT, vit(5, "multi_label_classification")
    options = {"gradient_accumulation_steps": 3, "max_steps": 1, "learning_rate": 0.0, "per_device_train_batch_size": 3}
    loss = MixedLossFunction(problem_type="multi_label_classification")
    more = {"policy": mixaug.create("none"), "compute_loss_func": loss}
    got = trained_losses(MixTrainer, tmp_path, model, labels, options=options, **more)
    with torch.no_grad():
        expected = F.binary_cross_entropy_with_logits(model(IMAGES).logits, labels)
    torch.testing.assert_close(got, expected.expand(2), rtol=1e-4, atol=1e-4)


def test_rows_without_a_problem_type(tmp_path):
    """Of a model with a loss of its own they are what Transformers takes them for; others need rows of shares."""
    shares, policy = F.one_hot(IDS, 5).float(), mixaug.create("none")
    options = {"max_steps": 1, "learning_rate": 0.0, "per_device_train_batch_size": 8}
    with pytest.warns(UserWarning, match=r"rows of labels \(8, 5\) that sum to 1 .*problem_type is not set"):
        ours = trained_losses(MixTrainer, tmp_path, vit(5), shares, options=options, policy=policy)
    torch.testing.assert_close(ours, trained_losses(transformers.Trainer, tmp_path, vit(5), shares, options=options))
    got = trained_losses(MixTrainer, tmp_path, Convolutions(), shares, options=options, policy=policy)
    assert got[1] == pytest.approx(math.log(5), abs=0.2)
    with pytest.raises(ValueError, match=r"no shares of classes.*problem_type"):
        trained_losses(MixTrainer, tmp_path, Convolutions(), HOT, policy=policy)
    with pytest.raises(ValueError, match=r"labels \(4,\) of torch.float32 are neither class ids"):
        trained_losses(MixTrainer, tmp_path, vit(5), IDS.float(), policy=policy)


def test_mixed_rows_are_the_models_own_loss_of_mixed_targets(tmp_path):
    labels = (torch.rand(8, 5, generator=seeded(2)) > 0.5).float()
    policy = mixaug.create("mixup", ratio=0.3, pairing="reversed")
    model = vit(5, "multi_label_classification")
    options = {
        "max_steps": 1,
        "learning_rate": 0.0,
        "per_device_train_batch_size": 8,
        "train_sampling_strategy": "sequential",
    }
    got = trained_losses(MixTrainer, tmp_path, model, labels, options=options, policy=policy)[0]
    with torch.no_grad():
        outputs = model(0.3 * IMAGES + 0.7 * IMAGES.flip(0), labels=0.3 * labels + 0.7 * labels.flip(0))
    torch.testing.assert_close(got, outputs.loss, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.5])
@pytest.mark.parametrize("name", ["none", "puzzlemix"])
def test_own_loss_function_gets_dense_targets(tmp_path, smoothing, name):
    seen = []

    def own(outputs, labels, num_items_in_batch=None):
        seen.append((labels.shape, labels.dtype))
        return F.cross_entropy(outputs["logits"], labels)

    def run(**more):
        torch.manual_seed(0)
        options = {"max_steps": 1, "learning_rate": 0.0, "per_device_train_batch_size": 8}
        more = {**more, "label_smoothing": smoothing}
        return trained_losses(MixTrainer, tmp_path, vit(5), IDS, options=options, policy=mixaug.create(name), **more)

    torch.testing.assert_close(run(compute_loss_func=own), run(), rtol=1e-4, atol=1e-4)
    assert ((8, 5), torch.float32) in seen
    assert (((8,), torch.int64) in seen) == (smoothing == 0)


def test_labels_of_another_name(tmp_path):
    class Renamed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = vit(5)

        def forward(self, pixel_values, target=None):
            return {"logits": self.inner(pixel_values).logits}

    data = samples(F.one_hot(IDS, 5).float(), "target")
    options = {"label_names": ["target"], "gradient_accumulation_steps": 2, "max_steps": 1, "learning_rate": 0.0}
    trainer = MixTrainer(
        Renamed(), arguments(tmp_path, **options), train_dataset=data, eval_dataset=data, policy=mixaug.create("none")
    )
    with torch.no_grad():
        expected = F.cross_entropy(vit(5)(IMAGES).logits, IDS)
    torch.testing.assert_close(losses(trainer), expected.expand(2), rtol=1e-4, atol=1e-4)


def test_another_loss_inside_the_forward_of_a_model_is_found(tmp_path):
    class Smoothed(Convolutions):
        def forward(self, pixel_values, labels=None):
            logits = super().forward(pixel_values)["logits"]
            loss = None if labels is None else F.cross_entropy(logits, labels, label_smoothing=smoothing)
            return {"loss": loss, "logits": logits}

    def trained(**more):
        torch.manual_seed(0)
        return trained_losses(MixTrainer, tmp_path, Smoothed(), IDS, policy=mixaug.create("none"), **more)

    smoothing = 0.3
    refused = MixTrainer(Smoothed(), arguments(tmp_path), train_dataset=samples(IDS), policy=mixaug.create("none"))
    for _ in range(2):  # and not the first time alone
        with pytest.raises(ValueError, match=r"Smoothed computes a loss of its own, .* compute_loss_func="):
            refused.train()
    assert len(trained(compute_loss_func=MixedLossFunction())) == 3
    assert len(trained(label_smoothing=0.3)) == 3  # the same loss, asked for
    smoothing = 0.0
    torch.manual_seed(0)
    theirs = trained_losses(transformers.Trainer, tmp_path, Smoothed(), IDS)
    torch.testing.assert_close(trained(), theirs, rtol=1e-5, atol=1e-5)


def test_a_look_at_the_loss_of_a_model_leaves_it_as_it_was(tmp_path):
    class Counting(Convolutions):
        def __init__(self):
            super().__init__()
            self.register_buffer("passes", torch.zeros(()))

        def forward(self, pixel_values, labels=None):
            self.passes += 1
            logits = super().forward(pixel_values)["logits"]
            noise = torch.rand(())  # drawn in evaluation, too
            return {"loss": None if labels is None else F.cross_entropy(logits, labels), "logits": logits + 0 * noise}

    model = Counting()
    trainer = MixTrainer(model, arguments(tmp_path), train_dataset=samples(IDS), policy=mixaug.create("none"))
    inputs = {"pixel_values": torch.rand(4, 3, 32, 32), "labels": torch.arange(4)}
    state = torch.get_rng_state()
    check_loss_of_forward("MixTrainer", model, inputs, "labels", trainer.mix_loss)
    assert model.passes == 0
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training


def test_a_collator_that_mixes_is_refused(tmp_path):
    policy = mixaug.create("cutmix")
    with pytest.raises(ValueError, match="MixTrainer mixes batches itself, but they come from a MixCollate"):
        MixTrainer(vit(5), arguments(tmp_path), data_collator=mixaug.MixCollate(policy, 5), policy=policy)


def test_a_policy_that_looks_at_the_model_trains_through_a_step(tmp_path, monkeypatch):
    model, calls = vit(5), []
    # SUMix has a layer of its own that learns; at this size its gradients are tiny, so weight decay shows the group.
    policy = mixaug.create("sumix")
    monkeypatch.setattr(policy, "after_step", lambda model: calls.append("after_step"))
    monkeypatch.setattr(policy, "on_progress", lambda fraction: calls.append(fraction))
    options = {"max_steps": 2, "gradient_accumulation_steps": 2, "weight_decay": 0.1}
    trainer = MixTrainer(model, arguments(tmp_path, **options), train_dataset=samples(IDS), policy=policy)
    before = [parameter.detach().clone() for parameter in policy.parameters()]
    trainer.train()
    assert calls == [0.0, 0.0, "after_step", 0.5, 0.5, "after_step"]
    grouped = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in policy.parameters()} <= grouped
    assert any(not torch.equal(old, new) for old, new in zip(before, policy.parameters(), strict=True))


def test_loss_of_a_step_is_that_of_the_step_alone(tmp_path):
    options = {"max_steps": 1, "learning_rate": 0.0, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    got = trained_losses(
        MixTrainer,
        tmp_path,
        vit(5),
        IDS,
        options=options,
        policy=mixaug.create("none"),
        objective=mixaug.objectives.RegMixup(),
    )
    with torch.no_grad():
        # Nothing is mixed, so RegMixup is twice the clean loss.
        expected = F.cross_entropy(vit(5)(IMAGES).logits, IDS)
    torch.testing.assert_close(got, torch.stack([2 * expected, expected]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: mixaug.create("automix"), id="that looks at the model"),
        pytest.param(lambda: mixaug.create("mixup", partners=mixaug.partners.Memory(8)), id="that does not"),
    ],
)
def test_state_of_the_policy_is_saved_and_resumed(tmp_path, make):
    def trainer(steps):
        torch.manual_seed(0)
        # Transformers itself does not take up the weights of its ViT from a checkpoint that a Trainer wrote.
        model = Convolutions()
        policy = make()
        more = {"save_strategy": "steps", "save_steps": 1, "max_steps": steps, "lr_scheduler_type": "constant"}
        return MixTrainer(model, arguments(tmp_path, **more), train_dataset=samples(IDS), policy=policy)

    whole = trainer(2)
    whole.train()
    kept = torch.load(tmp_path / "checkpoint-1" / STATE_FILE, weights_only=True)
    resumed = trainer(2)
    assert set(kept) == set(resumed.mix_policy.state_dict())
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    for part in ("mix_policy", "model"):
        states = [getattr(one, part).state_dict() for one in (whole, resumed)]
        for name, value in states[0].items():
            torch.testing.assert_close(states[1][name], value)


def test_what_cannot_work_is_refused_when_the_trainer_is_made(tmp_path):
    policy = mixaug.create("puzzlemix")
    with pytest.raises(ValueError, match="label_smoothing needs classes"):
        MixTrainer(vit(1), arguments(tmp_path), policy=mixaug.create("mixup"), label_smoothing=0.1)
    with pytest.raises(ValueError, match="not both"):
        MixTrainer(vit(5), arguments(tmp_path), policy=policy, objective=MixedCrossEntropy(), label_smoothing=0.1)
    with pytest.raises(ValueError, match="pass model=, not model_init="):
        MixTrainer(args=arguments(tmp_path), model_init=lambda: vit(5), policy=policy)
    other = vit(5)
    other.loss_function = lambda *given, **more: torch.zeros(())
    with pytest.raises(ValueError, match="ViTForImageClassification has <lambda>: pass compute_loss_func= or"):
        MixTrainer(other, arguments(tmp_path), policy=mixaug.create("mixup"))
    trainer = MixTrainer(vit(5), arguments(tmp_path), policy=policy)
    trainer.state = SimpleNamespace(max_steps=1, global_step=0)
    with pytest.raises(ValueError, match=r"the batch has \['age'\] too"):
        trainer.compute_loss(trainer.model.train(), {"pixel_values": IMAGES, "labels": IDS, "age": IDS})
    with pytest.raises(ValueError, match="which the Trainer has wrapped in DataParallel"):
        trainer.compute_loss(torch.nn.DataParallel(trainer.model), {"pixel_values": IMAGES, "labels": IDS})


def test_a_step_of_the_trainer_knows_the_layout(tmp_path):
    class Clips(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(6 * 3 * 8 * 8, 5)

        def forward(self, pixel_values, labels=None):
            return {"logits": self.fc(pixel_values.flatten(1))}

    data = [{"pixel_values": torch.rand(6, 3, 8, 8), "labels": index % 5} for index in range(4)]
    options = {"train_dataset": data, "policy": mixaug.create("cutmix"), "objective": MixedCrossEntropy()}
    with pytest.raises(ValueError, match="looks like NTCHW; say layout="):
        MixTrainer(Clips(), arguments(tmp_path, max_steps=1), **options).train()
    MixTrainer(Clips(), arguments(tmp_path, max_steps=1), layout="NTCHW", **options).train()
