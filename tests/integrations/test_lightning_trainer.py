"""`MixBatchMixin` in the real Trainer of Lightning."""

from __future__ import annotations

import copy
import dataclasses
import warnings

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import mixaug
from helpers import ours, seeded
from mixaug.integrations.lightning import MixBatchMixin
from mixaug.losses import MixedCrossEntropy

lightning = pytest.importorskip("lightning", reason="needs lightning")
lightning_utilities = pytest.importorskip("lightning_utilities", reason="needs lightning")

IMAGES, LABELS = torch.rand(10, 3, 8, 8, generator=seeded(0)), torch.randint(5, (10,), generator=seeded(1))


def loader(size=4, **options):
    return DataLoader(TensorDataset(IMAGES, LABELS), size, **options)


def trainer(**options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return lightning.Trainer(accelerator="cpu", enable_model_summary=False, **{"max_epochs": 1, **quiet, **options})


def network():
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 4, 3, 2, 1), torch.nn.ReLU(), torch.nn.Conv2d(4, 8, 3, padding=1), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 5))


class Classifier(MixBatchMixin, lightning.LightningModule):
    def __init__(self, **attributes):
        super().__init__()
        self.model, self.loss, self.seen = network(), MixedCrossEntropy(), []
        for name, value in attributes.items():
            setattr(self, name, value)

    def training_step(self, mixed, index):
        self.seen.append(mixed)
        loss = self.loss(self.model(mixed.inputs), mixed)
        self.log("loss", loss, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Stepped(MixBatchMixin, lightning.LightningModule):
    def __init__(self, policy):
        super().__init__()
        self.mix_step = mixaug.MixStep(network(), policy, MixedCrossEntropy())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-true", torch.bfloat16), ("64-true", torch.float64)])
@pytest.mark.parametrize("mixes_in_workers", [True, False])
def test_precisions_convert_the_images_alone(precision, dtype, mixes_in_workers):
    numbers = torch.full((10, 2), 1 / 3)
    data = TensorDataset(IMAGES, numbers)

    class Regressor(Classifier):
        def training_step(self, mixed, index):
            self.seen.append(mixed)
            return mixaug.losses.MixedSquaredError()(self.model(mixed.inputs)[:, :2], mixed)

    policy = mixaug.create("cutmix")
    if mixes_in_workers:
        # A plain module: the mixin is not needed for what a collate function has mixed.
        class Plain(lightning.LightningModule):
            __init__, training_step = Regressor.__init__, Regressor.training_step
            configure_optimizers = Regressor.configure_optimizers

        Plain.__init__ = lambda self: _plain_init(self, Plain)
        module, options = Plain(), {"collate_fn": mixaug.MixCollate(policy)}
    else:
        module, options = Regressor(mix_policy=policy), {}
    trainer(precision=precision).fit(module, DataLoader(data, 5, **options))
    for mixed in module.seen:
        assert type(mixed) is mixaug.MixedBatch
        assert mixed.inputs.dtype == dtype
        assert mixed.weights.dtype == mixed.plan.lam.dtype == torch.float32
        assert mixed.sources.dtype == torch.int64
        if mixes_in_workers:
            assert torch.equal(mixed.labels, numbers[:5])
        with pytest.raises(dataclasses.FrozenInstanceError):
            mixed.inputs = None


def _plain_init(module, kind):
    super(kind, module).__init__()
    module.model, module.seen = network(), []


def test_a_batch_that_is_not_mixed_yet_is_moved_and_converted():
    from lightning.fabric.plugins.precision.half import HalfPrecision
    from lightning.pytorch.utilities import move_data_to_device

    numbers = torch.full((4, 2), 1 / 3)
    other = mixaug.Batch(torch.rand(2, 3), numbers[:2])
    batch = mixaug.Batch(
        torch.rand(4, 3),
        numbers,
        metadata={"share": numbers},
        views={"second": torch.rand(4, 3)},
        streams={"outliers": other},
    )
    moved = move_data_to_device(batch, torch.device("meta"))
    assert type(moved) is mixaug.Batch and moved.labels.device.type == moved.streams["outliers"].inputs.device.type
    assert moved.labels.device.type == "meta"
    rounded = HalfPrecision("bf16-true").convert_input(batch)
    assert type(rounded) is mixaug.Batch
    inner = rounded.streams["outliers"]
    assert rounded.inputs.dtype == rounded.views["second"].dtype == inner.inputs.dtype == torch.bfloat16
    assert torch.equal(rounded.labels, numbers) and torch.equal(rounded.metadata["share"], numbers)
    assert torch.equal(inner.labels, numbers[:2])
    assert batch.inputs.dtype == torch.float32


# SelecMix chooses partners by a network beside the model, which only a step has.
@pytest.mark.parametrize("name", [n for n in ours() if not mixaug.describe(n).needs and n != "selecmix"])
def test_the_batch_of_every_policy_is_converted(name):
    inputs, labels = (IMAGES, LABELS.float()) if "mixup" in name and name != "mixup" else (IMAGES, LABELS)
    batch = mixaug.Batch(
        inputs, labels, metadata={name: torch.arange(len(labels)) % 2 for name in ("domain", "image_id")}
    )
    mixed = mixaug.create(name)(batch, generator=seeded(0))
    got = lightning_utilities.core.apply_func.apply_to_collection(
        mixed, torch.Tensor, lambda x: x.bfloat16() if x.is_floating_point() else x
    )
    assert torch.equal(got.inputs, mixed.inputs.bfloat16())
    assert got.plan == mixed.plan or type(got.plan) is type(mixed.plan)
    for field in ("labels", "sources", "weights"):
        assert torch.equal(getattr(got, field), getattr(mixed, field))
    torch.testing.assert_close(got.plan.mix(inputs), mixed.inputs)
    with pytest.raises(dataclasses.FrozenInstanceError):
        got.plan.lam = None
    deep = copy.deepcopy(mixed)
    assert deep.inputs is not mixed.inputs
    assert torch.equal(deep.weights, mixed.weights)


def test_an_epochs_mean_counts_samples():
    module = Classifier(mix_policy=mixaug.create("mixup", per="batch"))
    fit = trainer()
    fit.fit(module, loader())
    with torch.no_grad():
        assert [len(mixed) for mixed in module.seen] == [4, 4, 2]
    assert fit.callback_metrics["loss_epoch"].isfinite()
    expected = Counting()
    fit = trainer()
    fit.fit(expected, loader())
    torch.testing.assert_close(fit.callback_metrics["number_epoch"], torch.tensor((4 * 0 + 4 * 1 + 2 * 2) / 10))


class Counting(Classifier):
    def __init__(self):
        super().__init__(mix_policy=mixaug.create("cutmix"))

    def training_step(self, mixed, index):
        self.log("number", float(index), on_step=False, on_epoch=True)
        self.log("number_epoch", float(index), on_step=False, on_epoch=True)
        return super().training_step(mixed, index)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_policy_that_learns_is_told_of_every_optimizer_step(accumulate, monkeypatch):
    policy = mixaug.create("automix", stage="3", momentum=0.9)
    module, calls = Stepped(policy), []
    start = copy.deepcopy(policy.network.state_dict())
    block = [parameter.detach().clone() for parameter in policy.mixer_parameters()]
    after = policy.after_step
    monkeypatch.setattr(policy, "after_step", lambda model: (calls.append("after_step"), after(model)))
    monkeypatch.setattr(policy, "on_progress", lambda fraction: calls.append(fraction))
    fit = trainer(accumulate_grad_batches=accumulate, max_epochs=2)
    fit.fit(module, loader(5))
    assert (
        calls
        == {
            1: [0.0, "after_step", 0.25, "after_step", 0.5, "after_step", 0.75, "after_step"],
            2: [0.0, 0.0, "after_step", 0.5, 0.5, "after_step"],
        }[accumulate]
    )
    assert any(not torch.equal(old, new) for old, new in zip(block, policy.mixer_parameters(), strict=True))
    assert any(not torch.equal(start[name], value) for name, value in policy.network.state_dict().items())
    assert {"train_loss", "train_accuracy_epoch"} <= set(fit.callback_metrics)


def test_a_policy_that_looks_at_the_model_trains():
    module = Stepped(mixaug.create("puzzlemix"))
    before = [parameter.detach().clone() for parameter in module.parameters()]
    trainer().fit(module, loader(5))
    assert all(not torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True))


def test_what_would_switch_it_off_is_an_error():
    with pytest.raises(TypeError, match=r"names LightningModule before MixBatchMixin.*Late\(MixBatchMixin, Light"):

        class Late(lightning.LightningModule, MixBatchMixin):
            pass

    class Base(lightning.LightningModule):
        pass

    # It names the base that stands in the class, not the one of Lightning behind it.
    with pytest.raises(TypeError, match=r"Later names Base before MixBatchMixin.*class Later\(MixBatchMixin, Base\)"):

        class Later(Base, MixBatchMixin):
            pass

    class Own(Classifier):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch

    class Data(lightning.LightningDataModule):
        def train_dataloader(self):
            return loader()

        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch

    policy = mixaug.create("cutmix")
    for module, data in ((Own(mix_policy=policy), loader()), (Classifier(mix_policy=policy), Data())):
        with pytest.raises(RuntimeError, match="was not asked to mix: another on_after_batch_transfer"):
            trainer().fit(module, data)
    with pytest.raises(TypeError, match="needs one of mix_policy and mix_step"):
        trainer().fit(Classifier(), loader())
    with pytest.raises(ValueError, match="mixed twice"):
        trainer().fit(Classifier(mix_policy=policy), loader(collate_fn=mixaug.MixCollate(policy)))


def test_what_would_leave_out_a_part_of_it_is_an_error():
    class Silent(Classifier):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch

        def on_train_batch_start(self, batch, batch_idx):
            pass

    class Unended(Stepped):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            pass

    class Ignoring(Stepped):
        def training_step(self, batch, index):
            return self.mix_step.model(batch[0]).sum()

    policy = mixaug.create("cutmix")
    for module, message in (
        (Silent(mix_policy=policy), "was not asked to mix"),
        (Unended(policy), r"call super\(\).on_train_batch_end"),
    ):
        with pytest.raises(RuntimeError, match=message):
            trainer().fit(module, loader())
    with pytest.warns(UserWarning, match="its training_step never called it in this epoch"):
        trainer().fit(Ignoring(policy), loader())

    class Added(Stepped):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            super().on_train_batch_end(outputs, batch, batch_idx)

        def training_step(self, batch, index):
            return self.mix_step(*batch)[0]

    class Counting(Classifier):  # nothing of the mixin is needed at the end of a batch that a policy mixed
        def on_train_batch_end(self, outputs, batch, batch_idx):
            pass

    class Choosy(Stepped):  # a plain batch and a skipped one among mixed ones
        def training_step(self, batch, index):
            if index == 0:
                return torch.nn.functional.cross_entropy(self.mix_step.model(batch[0]), batch[1])
            return self.mix_step(*batch)[0] if index == 1 else None

    module = Added(policy)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*mix_step")
        for fitted in (module, Counting(mix_policy=policy), Choosy(policy)):
            trainer().fit(fitted, loader(6))
    assert not module.mix_step._forward_pre_hooks  # else a copy of the step would hold the module
    assert not any(isinstance(value, DataLoader) for value in vars(module).values())  # or one of the module the data
    mixing = loader(collate_fn=mixaug.MixCollate(policy, 5))
    module = Stepped(policy)
    for loaders in (mixing, mixing, {"a": [mixing]}):  # and not the first time alone
        with pytest.raises(ValueError, match="mixes batches itself, but they come from a MixCollate"):
            trainer().fit(module, loaders)
