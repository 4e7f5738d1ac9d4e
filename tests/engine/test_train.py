"""The loop: exact resume, schedules, accumulation, averaged weights, hooks, faults."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import mixaug
from helpers import assert_same, interrupt, timeless
from mixaug.engine import build, checkpoint, run
from mixaug.engine import train as engine
from mixaug.engine.errors import CheckpointError, ConfigError, TrainingDiverged
from mixaug.engine.train import train

Tiny = Callable[..., DictConfig]

# Every moving part takes part at once: blended inputs, dropout, averaged weights, accumulation, clipping, augmentation.
EVERYTHING = (
    "policy=mixup",
    "+model.drop_rate=0.2",
    "ema.decay=0.9",
    "accumulate=2",
    "clip_grad_norm=1.0",
    "checkpoint_every_steps=2",
    "batch_size=10",
)


def lines(config: DictConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.run_folder(config) / "epochs.jsonl").read_text().splitlines()]


def last(config: DictConfig) -> dict[str, Any]:
    return checkpoint.load(run.run_folder(config) / "last.pt")


def test_a_run_leaves_the_folder_of_the_contract(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny("policy=cutmix")
    result = train(config)
    folder = run.run_folder(config)
    assert {path.name for path in folder.iterdir()} == {
        *("config.yaml", "environment.json", "epochs.jsonl"),
        *("last.pt", "previous.pt", "best.pt", "result.json"),
    }
    assert result == run.read_json(folder / "result.json")
    assert (result["status"], result["policy"], result["model"]) == ("finished", "cutmix", "cifar_resnet8")
    assert result["policy_options"]["alpha"] == 1.0
    assert result["data_options"]["train_size"] == 100
    assert result["test_samples"] == 797
    records = lines(config)
    assert [record["epoch"] for record in records] == [1, 2]
    assert result["top1_last"] == records[-1]["test_top1"]
    assert result["top1_best"] == max(record["test_top1"] for record in records)
    assert result["top1_median10"] == pytest.approx(sum(record["test_top1"] for record in records) / 2)
    assert set(records[0]) == {
        *("epoch", "train_loss", "train_accuracy", "lr", "test_top1", "test_top5", "test_nll", "test_ece"),
        *(f"test_{name}_recall" for name in ("mean", "min", "gmean", "hmean")),
        *("seconds", "samples_per_second", "step_ms", "peak_memory_mb"),
    }
    versions = run.read_json(folder / "environment.json")["versions"]
    assert versions["torch"] == torch.__version__.split("+")[0]
    assert "median of the last 10" in capsys.readouterr().out
    assert train(config) == result
    assert "skipped" in capsys.readouterr().out


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tiny: Tiny, tmp_path: Path) -> None:
    one, two = tiny("policy=mixup"), tiny("policy=mixup", root=tmp_path / "again")
    other = tiny("policy=mixup", "seed=1")
    for config in (one, two, other):
        train(config)
    assert_same(timeless(last(one)), timeless(last(two)))
    assert not torch.equal(last(one)["model"]["conv1.weight"], last(other)["model"]["conv1.weight"])


@pytest.mark.parametrize(
    # Between two checkpoints, at the end of an epoch, in the second; test_kill.py ends runs at other moments.
    "moments",
    [(10, 13), pytest.param((0, 1, 7), marks=pytest.mark.slow)],
    ids=str,
)
def test_an_interrupted_run_ends_bit_identical(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moments: tuple[int, ...]
) -> None:
    whole = tiny(*EVERYTHING, root=tmp_path / "whole")
    train(whole)
    for batches in moments:
        broken = tiny(*EVERYTHING, root=tmp_path / f"broken after {batches}")
        interrupted_and_finished(broken, monkeypatch, batches)
        assert_same(timeless(last(whole)), timeless(last(broken)))
        assert [record["epoch"] for record in lines(broken)] == [1, 2], f"interrupted after {batches} batches"


def interrupted_and_finished(broken: DictConfig, monkeypatch: pytest.MonkeyPatch, batches: int) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, after=batches)
        with pytest.raises(KeyboardInterrupt):
            train(broken)
    assert run.status(run.run_folder(broken)) == "unfinished"
    with (run.run_folder(broken) / "epochs.jsonl").open("a") as file:
        file.write('{"epoch": 7, "train_l')  # what a dying writer may leave
    train(broken)


def test_a_damaged_last_checkpoint_costs_an_epoch_and_nothing_else(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, other = tiny("epochs=3"), tiny("epochs=3", root=tmp_path / "other")
    train(config)
    train(other)
    folder = run.run_folder(other)
    (folder / "result.json").unlink()
    (folder / "last.pt").write_bytes(b"torn")
    capsys.readouterr()
    train(other)
    said = capsys.readouterr().out
    assert "falling back" in said
    assert "resumed at epoch 2" in said
    assert_same(timeless(last(config)), timeless(last(other)))


def test_a_run_killed_before_its_result_only_writes_the_result(tiny: Tiny) -> None:
    config = tiny()
    result = train(config)
    (run.run_folder(config) / "result.json").unlink()
    again = train(config)
    assert again == result


def test_a_checkpoint_of_another_config_is_refused(tiny: Tiny) -> None:
    one, two = tiny(), tiny("optimizer.lr=0.05")
    train(one)
    folder = run.run_folder(two)
    folder.mkdir()
    (folder / "last.pt").write_bytes((run.run_folder(one) / "last.pt").read_bytes())
    with pytest.raises(CheckpointError, match="belongs to config"):
        train(two)


def test_cosine_steps_once_an_epoch_as_published(tiny: Tiny) -> None:
    """lr(e) = min + (base - min) (1 + cos(pi e / E)) / 2 for e = 0 .. E - 1; the last epoch is not at the minimum."""
    epochs, base, low = 7, 0.1, 0.004
    config = tiny("schedule=cosine_epoch", f"epochs={epochs}", f"optimizer.lr={base}", f"schedule.min_lr={low}")
    train(config)
    expected = [low + 0.5 * (base - low) * (1 + math.cos(math.pi * e / epochs)) for e in range(epochs)]
    assert [record["lr"] for record in lines(config)] == pytest.approx(expected, rel=1e-12)


def test_cosine_per_step_warms_up_linearly_and_falls_within_an_epoch(tiny: Tiny) -> None:
    config = tiny("schedule=cosine_step", "epochs=10", "schedule.warmup_epochs=2", "schedule.warmup_lr=0.01")
    model = nn.Linear(2, 2)
    optimizer = build.build_optimizer(config, mixaug.MixStep(model, mixaug.create("none"), nn.MSELoss()))
    scheduler = build.build_scheduler(config, optimizer, updates_per_epoch=5)
    rates = [optimizer.param_groups[0]["lr"]]
    for update in range(1, 50):
        scheduler.step_update(update)
        rates.append(optimizer.param_groups[0]["lr"])
    warm = [0.01 + (0.1 - 0.01) * t / 10 for t in range(10)]
    cosine = [0.05 * (1 + math.cos(math.pi * t / 50)) for t in range(10, 50)]
    assert rates == pytest.approx(warm + cosine, rel=1e-9)


def test_accumulation_equals_the_larger_batch(tiny: Tiny) -> None:
    """A model without batch statistics: k batches of B, one step, is one batch of kB; the short last group too."""
    vit = ("model=timm", "model.name=vit_tiny_patch16_224", "+model.img_size=8", "+model.patch_size=4")
    vit += ("+model.embed_dim=24", "+model.depth=1", "+model.num_heads=2", "schedule=cosine_step")
    once = tiny(*vit, "batch_size=40", "data.train_size=100")
    often = tiny(*vit, "batch_size=10", "data.train_size=100", "accumulate=4")
    for config in (once, often):
        train(config)
    for name, value in last(once)["model"].items():
        torch.testing.assert_close(last(often)["model"][name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_averaged_weights_follow_their_formula_and_are_what_is_scored(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    from timm.utils import ModelEmaV3

    seen: list[Tensor] = []
    really = ModelEmaV3.update

    def update(self: ModelEmaV3, model: nn.Module, step: int | None = None) -> None:
        seen.append(model.conv1.weight.detach().clone())
        really(self, model, step)

    monkeypatch.setattr(ModelEmaV3, "update", update)
    config = tiny("ema.decay=0.75")
    result = train(config)
    # The first update copies: the random weights of the beginning are not averaged in.
    average = seen[0]
    for weight in seen[1:]:
        average = 0.75 * average + 0.25 * weight
    state = last(config)
    torch.testing.assert_close(state["ema"]["conv1.weight"], average, rtol=1e-5, atol=1e-7)
    from mixaug.engine.stored import evaluate_checkpoint

    folder = run.run_folder(config)
    assert evaluate_checkpoint(folder, device="cpu")["nll"] == pytest.approx(result["nll_last"], abs=1e-9)
    assert evaluate_checkpoint(folder, "model", "cpu")["nll"] != pytest.approx(result["nll_last"], abs=1e-6)


class Watching(mixaug.Policy):
    """A policy with a parameter and a memory, which notes the calls it gets."""

    spatial = None

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.fractions: list[float] = []

    def forward(self, images: Tensor, labels: Tensor | None = None, **keywords: Any) -> mixaug.MixedBatch:
        mixed = mixaug.create("none")(images, labels)
        return mixaug.MixedBatch(images * self.scale, labels, mixed.sources, mixed.weights, mixed.plan)

    def on_progress(self, fraction: float) -> None:
        self.fractions.append(fraction)

    def after_step(self, model: nn.Module) -> None:
        assert isinstance(model, nn.Module)
        assert not isinstance(model, mixaug.MixStep)
        self.steps += 1


def test_a_policy_learns_hears_of_progress_and_is_kept(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Watching()
    monkeypatch.setattr(build, "build_policy", lambda config: mixaug.OneOf([policy]))
    config = tiny()
    monkeypatch.setattr(mixaug.OneOf, "forward", lambda self, *a, **k: self.policies[0](*a, **k))
    train(config)
    state = last(config)
    assert policy.fractions == [step / 8 for step in range(8)]
    assert state["policy"]["policies.0.steps"] == 8
    assert state["policy"]["policies.0.scale"] != 1.0
    groups = state["optimizer"]["param_groups"]
    assert [len(group["params"]) for group in groups][-1] == 1
    assert groups[-1]["lr"] == groups[0]["lr"]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, bad: float) -> None:
    calls = [0]

    class Breaking(nn.Module):
        def forward(self, outputs: Tensor, mixed: mixaug.MixedBatch) -> Tensor:
            calls[0] += 1
            return outputs.sum() * (bad if calls[0] == 6 else 0.01)

    monkeypatch.setattr(build, "build_objective", lambda config: Breaking())
    config = tiny("policy=mixup", "log_every=1000")
    folder = run.run_folder(config)
    with pytest.raises(TrainingDiverged, match=r"step 6 with policy mixup.*last\.pt") as caught:
        train(config)
    assert caught.value.step == 6
    failure = run.read_json(folder / "failure.json")
    assert (failure["status"], failure["step"], failure["epoch"], failure["policy"]) == ("failed", 6, 2, "mixup")
    assert failure["last_good_checkpoint"] == str(folder / "last.pt")
    kept = checkpoint.load(folder / "last.pt")
    assert kept["epoch"] == 1
    assert all(v.isfinite().all() for v in kept["model"].values())


def test_a_model_that_gives_no_numbers_any_more_has_diverged(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last step of an epoch broke it: every loss was finite, and an NLL that left the rest out would be 0."""
    really = engine._train_epoch

    def train_epoch(training: Any) -> None:
        really(training)
        with torch.no_grad():
            next(training.state.step.model.parameters()).fill_(float("nan"))

    monkeypatch.setattr(engine, "_train_epoch", train_epoch)
    config = tiny("policy=mixup")
    with pytest.raises(TrainingDiverged, match="test_nll is inf after epoch 1, step 4: lower the learning rate"):
        train(config)
    folder = run.run_folder(config)
    assert run.read_json(folder / "failure.json")["step"] == 4
    assert not (folder / "result.json").exists() and not (folder / "best.pt").exists()


def test_an_error_inside_a_run_is_recorded(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(config: DictConfig) -> nn.Module:
        class Objective(nn.Module):
            def forward(self, outputs: Tensor, mixed: mixaug.MixedBatch) -> Tensor:
                raise RuntimeError("out of paper")

        return Objective()

    monkeypatch.setattr(build, "build_objective", broken)
    config = tiny()
    with pytest.raises(RuntimeError, match="out of paper"):
        train(config)
    assert run.read_json(run.run_folder(config) / "failure.json")["reason"] == "RuntimeError: out of paper"


@pytest.mark.parametrize(
    ("overrides", "error", "named"),
    [
        (("policy=mixup", "policy.alpha=0"), ConfigError, "policy: .*alpha"),
        (("policy=mixup", "policy.per=image"), ConfigError, "policy: .*per"),
        (("model=timm", "model.name=resnet_18"), ConfigError, "model: .*closest names"),
        (("data.train_size=5",), ConfigError, "data: .*train_size"),
        (("objective.label_smoothing=2",), ConfigError, "objective: .*label_smoothing"),
        (("data=cifar10", "~data.train_size", "data.root=/nowhere"), FileNotFoundError, "/nowhere"),
        (("batch_size=200", "drop_last=true"), ConfigError, "batch_size=200"),
        (("data.transform=uint8",), ConfigError, r"data\.transform"),
        (("sync_batchnorm=true",), ConfigError, "sync_batchnorm"),
        (("world_size=2",), ConfigError, "world_size"),
    ],
)
def test_bad_values_are_errors_before_anything_is_created(
    tiny: Tiny, tmp_path: Path, overrides: tuple[str, ...], error: type[Exception], named: str
) -> None:
    if "data=cifar10" in overrides:
        from mixaug.engine.config import compose

        config = compose([f"root={tmp_path / 'runs'}", "device=cpu", "data=cifar10", "data.root=/nowhere"])
    else:
        config = tiny(*overrides)
    with pytest.raises(error, match=named):
        train(config)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "overrides",
    [
        # Half precision takes a CPU several times as long.
        ("precision=bfloat16", "epochs=1", "data.train_size=50"),
        ("precision=float16", "epochs=1", "data.train_size=50", "clip_grad_norm=1.0"),
        ("channels_last=true", "policy=cutmix"),
        ("objective=binary_cross_entropy", "policy=rsb"),
        ("optimizer=adamw", "schedule=cosine_step"),
        ("data.transform=uint8", "augment.crop_padding=0", "policy=mixup"),
        ("tensorboard=true",),
    ],
    ids=lambda o: o[0],
)
def test_other_ways_to_run(tiny: Tiny, overrides: tuple[str, ...]) -> None:
    config = tiny(*overrides)
    assert math.isfinite(train(config)["nll_last"])
    if "tensorboard=true" in overrides:
        assert list((run.run_folder(config) / "tensorboard").glob("events*"))


def test_training_learns_digits(tiny: Tiny) -> None:
    """Chance is 10 %; a second of training must be far from it."""
    config = tiny("model=cifar_resnet8", "data.train_size=400", "epochs=6", "evaluate_every=6", "policy=none")
    assert train(config)["top1_last"] > 80


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["policy=manifoldmix", "policy.stages=[layer9]"], "the model has no module 'layer9'"),
        (["policy=snapmix", "model=timm", "model.name=mobilenetv3_small_050"], "its last feature map has 288"),
    ],
)
def test_a_model_that_lacks_what_a_policy_asks_is_refused_at_once(tiny: Tiny, overrides: list[str], said: str) -> None:
    config = tiny(*overrides)
    with pytest.raises(ConfigError, match=f"policy={config.choices.policy} with model=.*{said}"):
        train(config)
    assert not run.run_folder(config).exists()


def one_graph_each(monkeypatch: pytest.MonkeyPatch, backend: Any = None) -> list[str]:
    """Names of the policies that are compiled from now on: as one graph, so that a break of it is an error.

    With a backend policies alone are compiled, by that; else all is, as the engine asks.
    """
    really, names = torch.compile, []

    def whole(function: Any, **given: Any) -> Any:
        part = function.__self__
        if not isinstance(part, mixaug.Policy):
            return really(function, **given) if backend is None else function
        names.append(type(part).__name__)
        return really(function, fullgraph=True, **(given if backend is None else {"backend": backend}))

    monkeypatch.setattr(torch, "compile", whole)
    return names


def test_a_compiled_policy_goes_on_bit_identical(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ("policy=mixup", "policy.per=sample", "data.train_size=50", "checkpoint_every_steps=1")
    plain, broken = (tiny(*settings, f"compile={way}", root=tmp_path / way) for way in ("false", "true"))
    train(plain)
    counter = CompileCounterWithBackend("eager")
    compiled = one_graph_each(monkeypatch, counter)
    interrupted_and_finished(broken, monkeypatch, 3)
    # Each beginning compiles anew, and its graph serves every step.
    assert (compiled, counter.frame_count) == (["Mixup"] * 2, 2)
    # The slow suite has a compiled run that nothing interrupted.
    assert_same(timeless(last(broken)), {**timeless(last(plain)), "config_hash": last(broken)["config_hash"]})


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixup", "cutmix"])
def test_a_compiled_run_goes_on_bit_identical(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    # The last batch of an epoch is smaller: from then on, the whole run has graphs for any size.
    settings = (
        f"policy={policy}",
        "policy.per=sample",
        "compile=true",
        "data.train_size=90",
        "checkpoint_every_steps=1",
    )
    compiled = one_graph_each(monkeypatch)
    whole = tiny(*settings, root=tmp_path / "whole")
    train(whole)
    for batches in (4, 5):
        broken = tiny(*settings, root=tmp_path / f"broken after {batches}")
        interrupted_and_finished(broken, monkeypatch, batches)
        assert_same(timeless(last(whole)), timeless(last(broken)))
    assert len(compiled) == 5


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["cutmix", "manifoldmix", "transmix"])
def test_compiled_training_gives_the_same_run(tiny: Tiny, policy: str) -> None:
    plain, compiled = tiny(f"policy={policy}"), tiny(f"policy={policy}", "compile=true")
    train(plain)
    train(compiled)
    assert last(compiled)["model"].keys() == last(plain)["model"].keys()
    assert lines(compiled)[0]["train_loss"] == pytest.approx(lines(plain)[0]["train_loss"], rel=1e-2)
    if policy == "cutmix":
        # The policy is compiled too, and draws what it draws eagerly: a run goes on from there as if never interrupted.
        assert torch.equal(last(compiled)["streams"]["mixing"], last(plain)["streams"]["mixing"])
