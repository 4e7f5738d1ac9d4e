"""`MixTrainerMixin`, with a stand-in for the Trainer and with transformers itself where installed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

import mixaug
from helpers import seeded
from mixaug.integrations.huggingface import MixedLossFunction, MixTrainerMixin


class StandIn:
    """The part of transformers.Trainer that the mixin meets."""

    def __init__(self, args=None, compute_loss_func=None):
        self.args = args
        self.compute_loss_func = compute_loss_func
        self.state = SimpleNamespace(global_step=0, max_steps=10)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        self.seen = (inputs["pixel_values"], labels)
        outputs = model(**inputs)
        loss = self.compute_loss_func(outputs, labels, num_items_in_batch=num_items_in_batch)
        return (loss, outputs) if return_outputs else loss


class MixTrainer(MixTrainerMixin, StandIn):
    pass


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(240, 5)

    def forward(self, pixel_values):
        return {"logits": self.linear(pixel_values.flatten(1))}


def batch(size=6):
    images = torch.rand(size, 3, 8, 10, generator=seeded(0))
    return {"pixel_values": images, "labels": torch.randint(5, (size,), generator=seeded(1))}


def test_the_order_of_the_bases_is_checked_when_the_class_is_made():
    def trainer(name, *bases):
        return type(name, bases, {})

    # A stand-in counts as the library's by where it says that it was defined.
    library = type("Trainer", (StandIn,), {"__module__": "transformers.trainer"})
    own = trainer("OwnTrainer", library)
    for base in (library, own):
        name = base.__name__
        with pytest.raises(TypeError, match=rf"T names {name} before .* nothing: class T\(MixTrainerMixin, {name}\)"):
            trainer("T", base, MixTrainerMixin)
        made = trainer("T", MixTrainerMixin, base)
        assert made(policy=mixaug.create("cutmix")).mix_policy is not None
        # So is a class of such a class, also beside a mixin of somebody's own.
        trainer("Further", type("Logging", (), {}), made)
        # A class of the library that takes nothing of the mixin's place, such as a callback, may stand before it.
        callback = type("TrainerCallback", (), {"__module__": "transformers.trainer_callback", "on_log": print})
        trainer("Itself", callback, MixTrainerMixin, base)


def test_the_mixin_alone_is_no_trainer():
    with pytest.raises(TypeError, match=r"^MixTrainerMixin is no Trainer by itself: class MixTrainer\(Mix"):
        MixTrainerMixin(policy=mixaug.create("cutmix"))
    with pytest.raises(TypeError, match=r"^Lost has no Trainer behind MixTrainerMixin: class Lost\(MixTrainerMixin, "):
        type("Lost", (MixTrainerMixin,), {})(policy=mixaug.create("cutmix"))


def test_training_batch_is_mixed_and_its_loss_is_the_mixed_one():
    torch.manual_seed(0)
    model, inputs = Model(), batch()
    trainer = MixTrainer(policy=mixaug.create("cutmix"), label_smoothing=0.1)
    loss, outputs = trainer.compute_loss(model, dict(inputs), return_outputs=True)
    images, mixed = trainer.seen
    assert torch.equal(images, mixed.plan.mix(inputs["pixel_values"]))
    assert not torch.equal(images, inputs["pixel_values"])
    torch.testing.assert_close(loss, F.cross_entropy(outputs["logits"], mixed.targets(5, label_smoothing=0.1)))


def test_evaluation_is_left_alone():
    model, inputs = Model().eval(), batch()
    trainer = MixTrainer(policy=mixaug.create("cutmix"), label_smoothing=0.1)
    loss = trainer.compute_loss(model, dict(inputs))
    assert trainer.seen[0] is inputs["pixel_values"]
    logits = model(inputs["pixel_values"])["logits"]
    torch.testing.assert_close(loss, F.cross_entropy(logits, inputs["labels"], label_smoothing=0.1))


def test_accumulated_batches_of_unequal_size_sum_to_the_mean_over_samples():
    function = MixedLossFunction()
    logits = torch.randn(7, 5, generator=seeded(2))
    labels = torch.randint(5, (7,), generator=seeded(3))
    parts = [
        function({"logits": logits[rows]}, labels[rows], num_items_in_batch=torch.tensor(7))
        for rows in (slice(0, 5), slice(5, 7))
    ]
    torch.testing.assert_close(sum(parts), F.cross_entropy(logits, labels))


@pytest.mark.parametrize(("step", "is_mixed"), [(4, True), (5, False)])
def test_progress_of_training_reaches_the_policy(step, is_mixed):
    inputs = batch()
    trainer = MixTrainer(policy=mixaug.Sometimes(mixaug.create("mixup"), until=0.5))
    trainer.state.global_step = step
    trainer.compute_loss(Model(), dict(inputs))
    assert torch.equal(trainer.seen[0], inputs["pixel_values"]) != is_mixed


def test_missing_images_are_named():
    trainer = MixTrainer(policy=mixaug.create("mixup"))
    with pytest.raises(KeyError, match=r"no 'pixel_values' in the training batch, only .*image_key"):
        trainer.compute_loss(Model(), {"image": torch.rand(2, 3, 4, 4), "labels": torch.tensor([0, 1])})


def test_two_ways_of_smoothing_are_refused():
    with pytest.raises(ValueError, match=r"pass label_smoothing=0\.1"):
        MixTrainer(SimpleNamespace(label_smoothing_factor=0.1), policy=mixaug.create("mixup"))


def test_bad_policy_is_named():
    with pytest.raises(TypeError, match=r"MixTrainer expected `policy` to be a mixaug\.Policy, got str"):
        MixTrainer(policy="cutmix")


def test_missing_labels_are_named():
    with pytest.raises(ValueError, match='batch without labels; give it an entry "labels"'):
        MixedLossFunction()({"logits": torch.zeros(2, 5)}, None)


def test_tuple_outputs_have_the_logits_first():
    logits, labels = torch.randn(4, 5, generator=seeded(2)), torch.arange(4)
    assert torch.equal(MixedLossFunction()((logits, None), labels), MixedLossFunction()({"logits": logits}, labels))


def test_trains_under_transformers(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    pytest.importorskip("accelerate", reason="the Trainer needs accelerate")

    class RealTrainer(MixTrainerMixin, transformers.Trainer):
        pass

    torch.manual_seed(0)
    inputs = batch(10)
    samples = [dict(zip(inputs, sample, strict=True)) for sample in zip(*inputs.values(), strict=True)]
    seen = []

    class Recording(Model):
        def forward(self, pixel_values, labels=None):
            seen.append((self.training, pixel_values.detach().clone()))
            return super().forward(pixel_values)

    def arguments(folder, **options):
        return transformers.TrainingArguments(
            output_dir=str(tmp_path / folder),
            per_device_train_batch_size=4,
            per_device_eval_batch_size=10,
            gradient_accumulation_steps=3,
            num_train_epochs=1,
            learning_rate=0.1,
            optim="sgd",
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            logging_steps=1,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            **options,
        )

    # With nothing mixed, three accumulated batches of 4, 4 and 2 samples are one step on all ten.
    model = Recording()
    expected = Model()
    expected.load_state_dict(model.state_dict())
    F.cross_entropy(expected(inputs["pixel_values"])["logits"], inputs["labels"]).backward()
    RealTrainer(model, arguments("none"), train_dataset=samples, policy=mixaug.create("none")).train()
    for got, start in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(got.detach(), start.detach() - 0.1 * start.grad)

    seen.clear()
    trainer = RealTrainer(
        model,
        arguments("mixup", eval_strategy="epoch"),
        train_dataset=samples,
        eval_dataset=samples,
        policy=mixaug.create("mixup", ratio="midpoint", pairing="derangement"),
    )
    trainer.train()
    originals = {tuple(image.flatten().tolist()) for image in inputs["pixel_values"]}
    for training, images in seen:
        assert any(tuple(image.flatten().tolist()) in originals for image in images) != training
    assert {training for training, _ in seen} == {True, False}


def test_clips_are_mixed_in_the_layout_that_is_said():
    """Video models take (B, T, C, H, W)."""
    clips, labels = torch.rand(6, 5, 4, 6, 2, generator=seeded(0)), torch.arange(6) % 5
    model = Model()
    torch.manual_seed(0)
    expected = mixaug.create("cutmix")(clips, labels, layout="NTCHW")
    wanted = F.cross_entropy(model(expected.inputs)["logits"], expected.targets(5))
    torch.manual_seed(0)
    trainer = MixTrainer(policy=mixaug.create("cutmix"), layout="NTCHW")
    torch.testing.assert_close(trainer.compute_loss(model, {"pixel_values": clips, "labels": labels}), wanted)
    assert torch.equal(trainer.seen[0], expected.inputs)
    with pytest.raises(ValueError, match="MixTrainer expects layout"):
        MixTrainer(policy=mixaug.create("cutmix"), layout="clips")
