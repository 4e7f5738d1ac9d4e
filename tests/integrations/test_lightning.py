"""`MixBatchMixin`, with a stand-in for LightningModule and with Lightning itself where installed."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import mixaug
from helpers import seeded
from mixaug.integrations.lightning import MixBatchMixin


class StandIn:
    """The part of LightningModule that the mixin meets."""

    @property
    def trainer(self):
        return self._trainer

    @trainer.setter
    def trainer(self, trainer):
        self._trainer = trainer

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch


class Classifier(MixBatchMixin, StandIn):
    def __init__(self, policy, *, training=True, step=0, steps=10):
        self.mix_policy = policy
        self.trainer = SimpleNamespace(training=training, global_step=step, estimated_stepping_batches=steps)


def batch():
    return torch.rand(6, 3, 8, 10, generator=seeded(0)), torch.randint(5, (6,), generator=seeded(1))


def test_training_batch_is_mixed():
    images, labels = batch()
    mixed = Classifier(mixaug.create("cutmix")).on_after_batch_transfer((images, labels), 0)
    assert isinstance(mixed, mixaug.MixedBatch)
    assert torch.equal(mixed.labels, labels)
    assert torch.equal(mixed.inputs, mixed.plan.mix(images))
    assert not torch.equal(mixed.inputs, images)


def test_validation_batch_is_left_alone():
    given = batch()
    assert Classifier(mixaug.create("cutmix"), training=False).on_after_batch_transfer(given, 0) is given


@pytest.mark.parametrize(("step", "is_mixed"), [(4, True), (5, False), (12, False)])
def test_progress_of_training_reaches_the_policy(step, is_mixed):
    images, labels = batch()
    policy = mixaug.Sometimes(mixaug.create("mixup"), until=0.5)
    mixed = Classifier(policy, step=step).on_after_batch_transfer((images, labels), 0)
    assert torch.equal(mixed.inputs, images) != is_mixed


def test_endless_training_has_no_progress():
    mixed = Classifier(mixaug.create("mixup"), steps=float("inf")).on_after_batch_transfer(batch(), 0)
    assert len(mixed) == 6


def test_other_batches_are_refused_with_the_way_out():
    with pytest.raises(TypeError, match=r"got dict; override split_batch\(\)"):
        Classifier(mixaug.create("mixup")).on_after_batch_transfer({"image": batch()[0]}, 0)


def test_policy_that_needs_the_model_is_refused():
    policy = mixaug.create("mixup")
    policy.needs = frozenset({"attention"})
    with pytest.raises(ValueError, match=r"needs attention from it; set mix_step = mixaug\.MixStep\(.* of mix_p"):
        Classifier(policy).on_after_batch_transfer(batch(), 0)


def test_trains_under_lightning(tmp_path):
    lightning = pytest.importorskip("lightning", reason="needs lightning")

    class Module(MixBatchMixin, lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(240, 5))
            self.mix_policy = mixaug.Sometimes(mixaug.create("cutmix"), until=0.5)
            self.loss = mixaug.losses.MixedCrossEntropy()
            self.lams, self.validated = [], 0

        def training_step(self, mixed, index):
            self.lams.append(mixed.lam)
            loss = self.loss(self.model(mixed.inputs), mixed)
            self.log("loss", loss)
            return loss

        def validation_step(self, batch, index):
            _, labels = batch
            self.validated += len(labels)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    lightning.seed_everything(0)
    loader = DataLoader(TensorDataset(*batch()), batch_size=3)
    module = Module()
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader, loader)
    assert [bool((lam < 1).any()) for lam in module.lams] == [True, True, False, False]
    assert module.validated >= 12


@pytest.mark.parametrize(("policy", "told"), [("mixup", True), (None, False)])
@pytest.mark.filterwarnings("ignore")
def test_a_module_inside_another_one_says_that_it_mixes_nothing(policy, told, tmp_path):
    lightning = pytest.importorskip("lightning", reason="needs lightning")

    class Inner(MixBatchMixin, lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 2)
            if policy is not None:
                self.mix_policy = mixaug.create(policy)

        def forward(self, rows):
            return self.layer(rows)

    class Outer(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.inner = Inner()

        def training_step(self, batch, index):
            return self.inner(batch[0]).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(max_steps=1, accelerator="cpu", default_root_dir=tmp_path, **quiet)
    loader = DataLoader(TensorDataset(torch.rand(4, 3), torch.zeros(4)), batch_size=4)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        trainer.fit(Outer(), loader)
    found = [w for w in seen if "Inner is a part of Outer, which is what is trained" in str(w.message)]
    assert bool(found) == told


def test_clips_are_mixed_in_the_layout_that_is_said():
    clips, labels = torch.rand(6, 5, 3, 8, 8, generator=seeded(0)), torch.arange(6) % 5
    module = Classifier(mixaug.create("cutmix"))
    with pytest.raises(ValueError, match="looks like NTCHW; say layout="):
        module.on_after_batch_transfer((clips, labels), 0)
    module.mix_layout = "NTCHW"
    torch.manual_seed(0)
    mixed = module.on_after_batch_transfer((clips, labels), 0)
    torch.manual_seed(0)
    assert torch.equal(mixed.inputs, module.mix_policy(clips, labels, layout="NTCHW").inputs)
    assert not torch.equal(mixed.inputs, clips)
    module.mix_layout = "clips"
    with pytest.raises(ValueError, match=r"Classifier\.mix_layout expects layout"):
        module.on_after_batch_transfer((clips, labels), 0)


def test_a_layout_beside_a_step_is_refused():
    module = Classifier(None)
    module.mix_step = mixaug.MixStep(torch.nn.Flatten(), mixaug.create("none"), mixaug.losses.MixedCrossEntropy())
    module.mix_layout = "NHWC"
    with pytest.raises(ValueError, match=r"mix_layout is for a mix_policy: give the step its own"):
        module.on_after_batch_transfer(batch(), 0)
