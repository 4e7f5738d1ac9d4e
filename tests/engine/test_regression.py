"""Regression runs on scikit-learn's diabetes: what counts, where partners come from, exact resume."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from helpers import interrupt
from mixaug.data import RegressionData, RegressionSet
from mixaug.engine import build, checkpoint, run
from mixaug.engine.batches import Batches
from mixaug.engine.config import compose
from mixaug.engine.distributed import World
from mixaug.engine.errors import ConfigError
from mixaug.engine.evaluate import predict
from mixaug.engine.stored import evaluate_checkpoint
from mixaug.engine.tasks import CLASSIFICATION, REGRESSION, task_of
from mixaug.engine.train import train
from mixaug.policies.pooled import Pooled

CPU = torch.device("cpu")
DIABETES = ("experiment=diabetes", "epochs=3", "device=cpu", "progress=false", "data.split=0")
ALONE = World(0, 1, CPU)

Tiny = Callable[..., DictConfig]


@pytest.fixture
def small(tmp_path: Path) -> Tiny:
    """`small("policy=cmixup", ...)`: three epochs on 242 patients."""

    def make(*overrides: str, root: Path | None = None) -> DictConfig:
        return compose([*DIABETES, f"root={root or tmp_path / 'runs'}", *overrides])

    return make


def test_a_run_reports_errors_of_the_epoch_with_the_lowest_validation_error(small: Tiny) -> None:
    config = small("policy=cmixup", "epochs=6")
    result = train(config)
    assert (result["task"], result["policy_options"]["pool"]) == ("regression", "all")
    history = checkpoint.load(run.run_folder(config) / "last.pt")["history"]
    chosen = min(range(6), key=lambda epoch: history[epoch]["valid_rmse"])
    assert result["selected_epoch"] == chosen + 1
    for name in ("rmse", "mae", "mape", "r2"):
        assert result[f"{name}_selected"] == history[chosen][f"test_{name}"]
        assert result[f"{name}_last"] == history[-1][f"test_{name}"]
    best = checkpoint.load(run.run_folder(config) / "best.pt")
    assert best["epoch"] in (chosen, chosen + 1)
    assert result["rmse_last"] < 100  # the labels have a standard deviation of 77 around a mean of 152


def test_the_numbers_are_those_of_the_model(small: Tiny) -> None:
    config = small("policy=none")
    result = train(config)
    data = build.load_data(config)
    model = build.build_model(config, data)
    model.load_state_dict(checkpoint.load(run.run_folder(config) / "last.pt")["model"])
    with torch.no_grad():
        off = model(data.test.inputs) - data.test.labels
    assert result["rmse_last"] == pytest.approx(off.square().mean().sqrt().item(), rel=1e-5)
    assert result["mape_last"] == pytest.approx(100 * (off / data.test.labels).abs().mean().item(), rel=1e-5)
    scores = evaluate_checkpoint(run.run_folder(config), device="cpu")
    assert (scores["rmse"], scores["samples"]) == (result["rmse_last"], 100)


def test_of_equal_epochs_the_later_counts_and_one_that_is_not_finite_never() -> None:
    rows = [(2.0, 1.0), (1.0, 5.0), (1.0, 7.0), (None, 0.1)]
    history = [{"valid_rmse": v, "test_rmse": t, "test_mae": t, "test_mape": None, "test_r2": 0.5} for v, t in rows]
    summary = REGRESSION.summary(history)
    assert (summary["selected_epoch"], summary["rmse_selected"], summary["rmse_last"]) == (3, 7.0, 0.1)
    assert summary["mape_selected"] is None


def test_the_worst_group_is_scored_where_there_are_groups() -> None:
    groups = torch.tensor([0, 0, 1, 1, 1])
    part = RegressionData(torch.zeros(5, 2), torch.tensor([[1.0], [1.0], [3.0], [3.0], [3.0]]), groups)
    data = RegressionSet("made", part, part, part, ("y",), ("a", "b"), "domain")
    config = compose([*DIABETES, "batch_size=5"])
    batches = Batches(config, data, ALONE)

    class Zero(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs[:, :1]

    scores = REGRESSION.scores(Zero(), batches, "float32")
    assert scores["test_worst_rmse"] == 3.0
    assert scores["test_rmse"] == pytest.approx(math.sqrt((2 * 1 + 3 * 9) / 5))
    assert task_of(data) is REGRESSION
    assert task_of(object()) is CLASSIFICATION


@pytest.mark.parametrize("policy", ["cmixup", "knn_mixup", "local_mixup", "mixup"])
def test_partners_come_from_the_whole_training_set(small: Tiny, policy: str) -> None:
    config = small(f"policy={policy}")
    batches = Batches(config, build.load_data(config), ALONE)
    pooled = build.with_pool(config, build.build_policy(config), batches)
    assert isinstance(pooled, Pooled)
    batch = next(batches.epoch(0))
    inputs, labels, rows = batch.inputs, batch.labels, batch.rows
    assert torch.equal(batches.data.train.inputs[rows], inputs)
    known = {"rows": rows} if pooled.needs_rows else {}
    mixed = pooled(inputs, labels, generator=torch.Generator().manual_seed(0), **known)
    assert mixed.labels.shape == (32, 1)
    partners = mixed.labels[16:]
    from_batch = (partners == labels.T).any(1)
    assert (partners == batches.data.train.labels.T).any(1).all()
    # A batch has 16 of 242 rows: near ones are hardly among them.
    assert from_batch.float().mean() < 0.7


# What is learned beforehand, and partners that are drawn anew for each batch; where a pair is mixed changes neither.
@pytest.mark.parametrize(
    "policy",
    [
        pytest.param(["policy=cmixup", "policy.stages=[layer1]"], marks=pytest.mark.slow),
        pytest.param(["policy=cmixup", "policy.include_self=false"], marks=pytest.mark.slow),
        ["policy=regmix", "policy.limits=learned", "policy.learning_steps=20"],
        ["policy=mixup", "pool=batch", "policy.pairing=label_kernel"],
    ],
    ids=["cmixup inside", "cmixup without the self", "regmix learned", "mixup from candidates"],
)
def test_an_interrupted_run_ends_as_one_that_was_not(
    small: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: list[str]
) -> None:
    whole, broken = small(*policy), small(*policy, "checkpoint_every_steps=2", root=tmp_path / "broken")
    train(whole)
    with monkeypatch.context() as patch:
        interrupt(patch, after=20)
        with pytest.raises(KeyboardInterrupt):
            train(broken)
    train(broken)
    one, two = (checkpoint.load(run.run_folder(config) / "last.pt") for config in (whole, broken))
    for part in ("model", "policy"):
        assert list(one[part]) == list(two[part])
        for name, value in one[part].items():
            assert torch.equal(two[part][name], value), name
    assert [r["valid_rmse"] for r in one["history"]] == [r["valid_rmse"] for r in two["history"]]


def test_learned_limits_are_in_the_checkpoint_and_not_in_the_optimizer(small: Tiny) -> None:
    config = small("policy=regmix", "policy.limits=learned", "policy.learning_steps=5")
    train(config)
    state = checkpoint.load(run.run_folder(config) / "last.pt")
    assert any("limits" in name for name in state["policy"])
    trained = sum(len(group["params"]) for group in state["optimizer"]["param_groups"])
    assert trained == len(state["model"])


def test_predictions_of_several_processes_stand_in_the_order_of_the_set(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.arange(7.0)[:, None]
    shares = [(values[rank::3] * 2, values[rank::3]) for rank in range(3)]
    monkeypatch.setattr("mixaug.engine.evaluate.gather_objects", lambda own, world: shares)
    predictions, labels = predict(nn.Identity(), [(values[:1], values[:1])], World(0, 3, CPU))
    assert torch.equal(labels, values)
    assert torch.equal(predictions, 2 * values)


def test_predict_refuses_outputs_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"gives \(4, 3\) for labels \(4, 1\)"):
        predict(nn.Identity(), [(torch.zeros(4, 3), torch.zeros(4, 1))], ALONE)
    with pytest.raises(ValueError, match="no samples"):
        predict(nn.Identity(), [], ALONE)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["objective=cross_entropy"], "objective=cross_entropy does not fit the regression data set diabetes"),
        (["protocol.figure=best"], "protocol.figure must be one of selected, last in regression"),
        (["augment.flip=true"], "act on images; diabetes has inputs"),
        (["channels_last=true"], "channels_last=true is for images"),
        (["policy=cmixup", "policy.bandwidth=0"], "bandwidth"),
        (["policy=cmixup", "policy.bandwidth=-1.5"], "bandwidth"),
        (["policy=knn_mixup", "policy.k=300"], "more than k=300 rows"),
        (["policy=mixup", "policy.pairing=reversed"], "can look into a training set"),
        (["policy=regmix", "policy.limits=learnt"], "limits"),
        (["data.split=-1"], "split"),
        (["model.hidden=0"], "hidden"),
        (["model=cifar_resnet8"], "model=cifar_resnet8 cannot take inputs (10,) of data=diabetes"),
        (["model=lstnet"], "model"),
        (["augment.mean=[0.5]"], "augment.mean and augment.std are for images; diabetes has inputs"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_written(small: Tiny, overrides: list[str], said: str) -> None:
    config = small(*overrides)
    with pytest.raises(ConfigError, match=re.escape(said)):
        train(config)
    assert not Path(config.root).exists()


def test_classes_take_no_error_of_numbers_and_no_figure_of_them(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match="objective=huber does not fit the classification data set digits"):
        train(tiny("objective=huber"))
    with pytest.raises(ConfigError, match=r"protocol\.figure must be one of last, best"):
        train(tiny("protocol.figure=selected"))
    with pytest.raises(ConfigError, match="pool must be one of null, all, batch"):
        tiny("pool=everything")


def test_a_classifier_may_take_partners_from_its_training_set_too(tiny: Tiny) -> None:
    config = tiny("policy=cutmix", "policy.pairing=label_kernel", "pool=all", "augment.crop_padding=0")
    result = train(config)
    assert result["policy_options"]["pool"] == "all"
    assert 0 <= result["top1_last"] <= 100


@pytest.mark.parametrize("cell", ["nan", "", "seven"])
def test_a_table_with_a_bad_target_is_refused(tmp_path: Path, cell: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text("a,b,y\n" + "".join(f"{k},{k * k},{cell if k == 11 else k}\n" for k in range(40)))
    overrides = ["data=table", f"data.root={path}", "data.target=y", "model=mlp", "objective=squared_error"]
    with pytest.raises(ConfigError, match="y"):
        train(compose([*overrides, "device=cpu", f"root={tmp_path / 'runs'}"]))
    assert not (tmp_path / "runs").exists()


def test_constant_labels_need_a_bandwidth_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("a,b,y\n" + "".join(f"{k},{k * k},5\n" for k in range(40)))
    table = ["data=table", f"data.root={path}", "data.target=y", "model=mlp", "objective=squared_error"]
    base = [*table, "policy=cmixup", "batch_size=8", "epochs=1", "device=cpu", "progress=false"]
    with pytest.raises(ConfigError, match="all labels are equal"):
        train(compose([*base, f"root={tmp_path / 'runs'}"]))
    with pytest.warns(UserWarning, match="this is plain mixup"):
        result = train(compose([*base, f"root={tmp_path / 'runs'}", "policy.bandwidth=1.0"]))
    assert result["r2_last"] is None  # there is nothing to explain


def test_images_do_not_fit_the_perceptron(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"model=mlp cannot take inputs \(1, 8, 8\) of data=digits"):
        train(tiny("model=mlp"))


def test_no_mixing_has_no_partners_to_draw_from_anywhere(small: Tiny) -> None:
    config = small("policy=none", "pool=all")
    batches = Batches(config, build.load_data(config), ALONE)
    policy = build.build_policy(config)
    assert build.with_pool(config, policy, batches) is policy
    result = train(config)
    assert "pool" not in result["policy_options"]
    assert result["prepare_seconds"] < result["train_seconds"]


def test_of_equal_epochs_the_best_weights_are_the_later(small: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixaug.engine.tasks.rmse", lambda predictions, labels: torch.tensor(1.0))
    config = small("policy=none")
    result = train(config)
    assert (result["selected_epoch"], result["rmse_selected"]) == (3, 1.0)
    best, last = (checkpoint.load(run.run_folder(config) / name)["model"] for name in ("best.pt", "last.pt"))
    assert all(torch.equal(best[name], last[name]) for name in last)


def test_limits_are_learned_for_the_loss_and_batch_of_the_run(small: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    import mixaug.policies.regmix as regmix

    really = regmix.learn_limits

    def learn(*arguments: Any, **options: Any) -> Any:
        seen.update(options)
        return really(*arguments, **options)

    monkeypatch.setattr(regmix, "learn_limits", learn)
    learned = ("policy=regmix", "policy.limits=learned", "policy.learning_steps=3")
    train(small(*learned, "objective=absolute_error", "batch_size=1000", "drop_last=false", "epochs=1"))
    assert seen["batch_size"] == 242
    assert seen["loss"](torch.tensor([[3.0], [1.0]]), torch.tensor([[1.0], [1.0]])) == 1.0
