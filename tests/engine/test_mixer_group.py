"""The parameters of a learned mixer: an optimizer group of their own, with settings and a schedule of their own."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

import mixaug
from helpers import interrupt
from mixaug.engine import build, checkpoint, run
from mixaug.engine.config import compose, config_hash, mixer_settings
from mixaug.engine.errors import CheckpointError, ConfigError
from mixaug.engine.train import train
from mixaug.leaderboard.grid import expand

Tiny = Callable[..., DictConfig]


class Learned(mixaug.Policy):
    """Scales the images by a learned mixer and shifts them by a parameter that is none; one parameter is frozen."""

    spatial = None

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))
        self.scale = nn.Parameter(torch.ones(()))
        self.fixed = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, images: Tensor, labels: Tensor | None = None, **keywords: Any) -> mixaug.MixedBatch:
        mixed = mixaug.create("none")(images, labels)
        own = images * self.scale + self.shift
        return mixaug.MixedBatch(own, labels, mixed.sources, mixed.weights, mixed.plan)

    def mixer_parameters(self) -> list[nn.Parameter]:
        return [self.scale, self.fixed]


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run has the policy above."""
    monkeypatch.setattr(build, "build_policy", lambda config: Learned())


def step_of(policy: mixaug.Policy) -> mixaug.MixStep:
    return mixaug.MixStep(nn.Linear(2, 2), policy, nn.MSELoss())


def groups(config: DictConfig, policy: mixaug.Policy) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = build.build_optimizer(config, step_of(policy)).param_groups
    return found


def last(config: DictConfig) -> dict[str, Any]:
    return checkpoint.load(run.run_folder(config) / "last.pt")


def lines(config: DictConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.run_folder(config) / "epochs.jsonl").read_text().splitlines()]


def cosine(base: float, low: float, epochs: int) -> list[float]:
    return [low + 0.5 * (base - low) * (1 + math.cos(math.pi * e / epochs)) for e in range(epochs)]


def test_left_at_null_the_mixer_has_the_models_settings_in_a_group_of_its_own(tiny: Tiny) -> None:
    policy = Learned()
    *model, others, mixer = groups(tiny("optimizer.weight_decay=0.02"), policy)
    assert [id(p) for p in others["params"]] == [id(policy.shift)]
    assert [id(p) for p in mixer["params"]] == [id(policy.scale)]
    for key in ("lr", "momentum", "weight_decay", "nesterov", "dampening"):
        assert mixer[key] == others[key], key
    assert (mixer["lr"], mixer["momentum"], mixer["weight_decay"]) == (0.1, 0.9, 0.02)
    assert all("mixer" not in group for group in (*model, others))


def test_settings_reach_the_mixer_and_nothing_else(tiny: Tiny) -> None:
    set_ = ("mixer.lr=0.03", "mixer.momentum=0", "mixer.weight_decay=0")
    *rest, mixer = groups(tiny(*set_), Learned())
    assert (mixer["lr"], mixer["momentum"], mixer["weight_decay"]) == (0.03, 0, 0)
    assert [(g["lr"], g["momentum"]) for g in rest] == [(0.1, 0.9)] * len(rest)
    assert rest[-1]["weight_decay"] == 1e-4


@pytest.mark.parametrize(
    "wrap",
    [
        lambda policy: mixaug.OneOf([policy, "mixup"]),
        lambda policy: mixaug.Sometimes(policy, 0.5),
        lambda policy: mixaug.OneOf(["cutmix", mixaug.Sometimes(policy, 0.5)]),
        lambda policy: mixaug.OneOf([policy, policy]),
    ],
)
def test_mixers_are_found_in_policies_inside_and_taken_once(
    tiny: Tiny, wrap: Callable[[mixaug.Policy], mixaug.Policy]
) -> None:
    policy = Learned()
    found = groups(tiny("mixer.lr=0.03"), wrap(policy))
    assert [[id(p) for p in group["params"]] for group in found[-2:]] == [[id(policy.shift)], [id(policy.scale)]]


def test_two_mixers_share_one_group(tiny: Tiny) -> None:
    found = groups(tiny(), mixaug.OneOf([Learned(), Learned()]))
    assert [len(group["params"]) for group in found[-2:]] == [2, 2]


def test_frozen_and_borrowed_parameters_are_in_no_group_of_the_policys(tiny: Tiny) -> None:
    class Borrowing(Learned):
        def on_attach(self, signals: mixaug.ModelSignals) -> None:
            self.model = signals.inner

        def mixer_parameters(self) -> list[nn.Parameter]:
            return list(self.parameters())

    policy = Borrowing()
    step = step_of(policy)
    model = {id(p) for p in step.model.parameters()}
    found = build.build_optimizer(tiny(), step).param_groups
    assert [id(p) for group in found for p in group["params"]].count(id(policy.fixed)) == 0
    assert {id(p) for p in found[-1]["params"]} == {id(policy.shift), id(policy.scale)}
    assert {id(p) for group in found[:-1] for p in group["params"]} == model


def test_without_a_mixer_the_groups_are_those_of_the_model(tiny: Tiny) -> None:
    bare = build.build_optimizer(tiny(), step_of(mixaug.create("mixup"))).param_groups
    assert all("mixer" not in group for group in bare)
    assert sum(len(group["params"]) for group in bare) == 2


def test_a_step_of_sgd_takes_each_groups_own_rate_and_decay(tiny: Tiny) -> None:
    """One update by hand: p - lr (g + wd p); the clipping of the run scales all gradients by one factor."""
    config = tiny("mixer.lr=0.5", "mixer.weight_decay=0.2", "optimizer.weight_decay=0.01")
    policy = Learned()
    step = step_of(policy)
    optimizer = build.build_optimizer(config, step)
    for parameter in step.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, 0.3)
    optimizer.step()
    assert float(policy.scale.detach()) == pytest.approx(1 - 0.5 * (0.3 + 0.2 * 1))
    assert float(policy.shift.detach()) == pytest.approx(0 - 0.1 * 0.3)


def test_clipping_counts_the_gradients_of_all_groups(
    tiny: Tiny, learned: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[tuple[int, ...]]] = []
    norms: list[tuple[float, float]] = []
    really = nn.utils.clip_grad_norm_

    def clip(parameters: list[Tensor], most: float) -> Tensor:
        seen.append({tuple(p.shape) for p in parameters})
        every = [p.grad.clone() for p in parameters if p.grad is not None]
        norms.append((math.sqrt(sum(float(g.square().sum()) for g in every)), len(every)))
        total = really(parameters, most)
        assert float(total) == pytest.approx(norms[-1][0], rel=1e-4)
        return total

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", clip)
    config = tiny("epochs=1", "clip_grad_norm=0.001", "mixer.lr=0.3")
    train(config)
    count = sum(len(group["params"]) for group in last(config)["optimizer"]["param_groups"])
    assert [number for _, number in norms] == [count] * 4
    assert all(() in shapes for shapes in seen)  # both scalars of the policy
    # Clipped to 0.001, four steps cannot carry the mixer further than lr * 0.001 * (1 + 1.9 + ...).
    assert 0 < abs(float(last(config)["policy"]["scale"]) - 1) < 4 * 0.3 * 0.001 * 3.439 + 4 * 0.3 * 1e-4 * 3.439


def test_the_mixers_cosine_beside_the_models_as_automix_on_tiny_imagenet(tiny: Tiny, learned: None) -> None:
    """The network goes 0.2 -> 0.05, the block 0.1 -> 1e-3."""
    config = tiny(
        *("epochs=5", "optimizer.lr=0.2", "schedule.min_lr=0.05"), *("mixer.lr=0.1", "mixer.schedule.min_lr=0.001")
    )
    train(config)
    records = lines(config)
    assert [record["lr"] for record in records] == pytest.approx(cosine(0.2, 0.05, 5), rel=1e-12)
    assert [record["mixer_lr"] for record in records] == pytest.approx(cosine(0.1, 0.001, 5), rel=1e-12)


def test_one_schedule_serves_both_where_the_mixer_has_none(tiny: Tiny, learned: None) -> None:
    config = tiny("epochs=3", "mixer.lr=0.03", "schedule.min_lr=0.002", "tensorboard=true")
    train(config)
    assert [record["mixer_lr"] for record in lines(config)] == pytest.approx(cosine(0.03, 0.002, 3), rel=1e-12)


def test_a_run_without_a_mixer_has_no_rate_of_one(tiny: Tiny) -> None:
    config = tiny("epochs=1")
    train(config)
    assert "mixer_lr" not in lines(config)[0]


def test_per_update_schedules_keep_apart_with_their_own_warm_up(tiny: Tiny) -> None:
    config = tiny(
        *("schedule=cosine_step", "epochs=10", "mixer.lr=0.2", "mixer.schedule.min_lr=0.02"),
        *("mixer.schedule.warmup_epochs=2", "mixer.schedule.warmup_lr=0.01"),
    )
    optimizer = build.build_optimizer(config, step_of(Learned()))
    scheduler = build.build_scheduler(config, optimizer, updates_per_epoch=5)
    model, mixer = [], []
    for update in range(50):
        if update:
            scheduler.step_update(update)
            scheduler.step(update // 5, 1.0)  # the epoch means nothing to a schedule that goes by updates
        model.append([group["lr"] for group in optimizer.param_groups[:-1]])
        mixer.append(optimizer.param_groups[-1]["lr"])
    warm = [0.01 + (0.2 - 0.01) * t / 10 for t in range(10)]
    assert mixer == pytest.approx(warm + cosine(0.2, 0.02, 50)[10:], rel=1e-9)
    for rates, expected in zip(model, cosine(0.1, 0.0, 50), strict=True):
        assert rates == pytest.approx([expected] * len(rates), rel=1e-9)


def test_a_constant_rate_of_the_mixer_beside_the_models_cosine(tiny: Tiny, learned: None) -> None:
    config = tiny("epochs=3", "mixer.schedule.sched=constant")
    train(config)
    assert [record["mixer_lr"] for record in lines(config)] == [0.1] * 3
    assert lines(config)[-1]["lr"] < 0.1


@pytest.mark.parametrize(
    ("batches", "own"),
    [
        # A schedule that steps once an epoch has no other state than one of updates, and one for both is the run's own.
        pytest.param(1, ("mixer.lr=0.05", "mixer.momentum=0.5", "mixer.schedule.min_lr=0.01"), marks=pytest.mark.slow),
        (
            3,
            (
                "schedule=cosine_step",
                "mixer.lr=0.05",
                "mixer.schedule.warmup_epochs=1",
                "mixer.schedule.warmup_lr=0.01",
            ),
        ),
        (2, ("optimizer=adamw", "mixer.lr=0.002", "mixer.weight_decay=0", "mixer.schedule.min_lr=1e-4")),
        pytest.param(1, ("mixer.lr=0.05",), marks=pytest.mark.slow),
    ],
    ids=["epochs", "updates", "adamw", "one schedule"],
)
def test_an_interrupted_run_ends_bit_identical(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, learned: None, batches: int, own: tuple[str, ...]
) -> None:
    shared = (*own, "epochs=2", "batch_size=50", "clip_grad_norm=1.0")
    whole = tiny(*shared, root=tmp_path / "whole")
    broken = tiny(*shared, f"checkpoint_every_steps={batches}", root=tmp_path / "broken")
    train(whole)
    with monkeypatch.context() as patch:
        interrupt(patch, after=batches)
        with pytest.raises(KeyboardInterrupt):
            train(broken)
    train(broken)
    one, two = last(whole), last(broken)
    for part in ("model", "policy"):
        for name, value in one[part].items():
            assert torch.equal(two[part][name], value), f"{part}.{name}"
    assert two["scheduler"] == one["scheduler"]
    assert two["optimizer"]["param_groups"] == one["optimizer"]["param_groups"]
    for number, kept in one["optimizer"]["state"].items():
        for name, value in kept.items():
            assert torch.equal(two["optimizer"]["state"][number][name], value) if value is not None else True
    rates = ("lr", "mixer_lr", "train_loss")
    assert [[r[k] for k in rates] for r in lines(broken)] == [[r[k] for k in rates] for r in lines(whole)]


def test_a_checkpoint_that_lacks_the_mixers_part_says_so(tiny: Tiny, learned: None) -> None:
    config = tiny("epochs=2", "mixer.schedule.min_lr=0.01")
    train(config)
    folder = run.run_folder(config)
    (folder / "result.json").unlink()
    damages: dict[str, Callable[[dict[str, Any]], Any]] = {
        "its schedule is not one of model and mixer": lambda state: state.update(scheduler=state["scheduler"]["model"]),
        "its optimizer is not of these parameters": lambda state: state["optimizer"]["param_groups"].pop(),
        "it has no scheduler": lambda state: state.pop("scheduler"),
    }
    whole = last(config)
    for said, damage in damages.items():
        state = copy.deepcopy(whole)
        damage(state)
        checkpoint.save(folder / "last.pt", state)
        with pytest.raises(CheckpointError, match=f"another version of mixaug: {said}.*remove the run's folder"):
            train(config)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (("mixer.lr=0",), r"mixer\.lr"),
        (("mixer.lr=fast",), r"mixer\.lr"),
        (("mixer.momentum=1",), r"mixer\.momentum"),
        (("mixer.momentum=-0.1",), r"mixer\.momentum"),
        (("mixer.weight_decay=-1",), r"mixer\.weight_decay"),
        (("mixer.schedule.min_lr=-1",), r"mixer\.schedule\.min_lr"),
        (("mixer.schedule.warmup_epochs=-1",), r"mixer\.schedule\.warmup_epochs"),
        (("mixer.schedule.warmup_epochs=1.5",), r"mixer\.schedule\.warmup_epochs"),
        (("mixer.schedule.warmup_lr=nan",), r"mixer\.schedule\.warmup_lr"),
        (("mixer.schedule.sched=plateau",), r"mixer\.schedule\.sched"),
        (("mixer.rate=1",), "rate"),
        (("+mixer.rate=1",), "mixer must have the keys lr"),
        (("+mixer.schedule.cycle_limit=1",), r"mixer\.schedule must have the keys sched"),
        (("mixer=null",), "mixer must have the keys"),
        (("mixer.schedule=0.1",), r"mixer\.schedule must have the keys"),
        (("mixer.lr=0.01", "schedule.min_lr=0.05"), r"rise from 0\.01 to 0\.05: mixer\.lr=0\.01"),
        (("mixer.schedule.min_lr=0.2",), r"rise from 0\.1 to 0\.2.*mixer\.schedule\.min_lr=0\.2"),
        (("schedule=constant", "mixer.schedule.min_lr=0.01"), r"mixer\.schedule\.min_lr=0\.01 does nothing"),
        (
            ("mixer.schedule.sched=constant", "mixer.schedule.min_lr=0.01"),
            r"mixer\.schedule\.min_lr=0\.01 does nothing",
        ),
        (("schedule.sched=none", "mixer.schedule.warmup_epochs=1"), r"warmup_epochs=1 does nothing"),
    ],
)
def test_bad_values_name_their_key(overrides: tuple[str, ...], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        compose(overrides)


def test_a_low_rate_is_fine_where_nothing_rises() -> None:
    # With a constant schedule it is a protocol's rules that set the least rate, for the schedule of the protocol.
    constant = ("policy=automix", "protocol=openmixup_cifar", "data=cifar100", "data.root=x", "schedule=constant")
    assert compose([*constant, "mixer.lr=0.01"]).schedule.min_lr == 0.05
    compose(["mixer.lr=0.01", "mixer.schedule.min_lr=0.01", "schedule.min_lr=0.05"])


@pytest.mark.parametrize(
    ("policy", "overrides", "said"),
    [
        (None, ("mixer.lr=0.01", "policy=mixup"), r"mixer\.lr=0\.01: policy=mixup has no learned mixer to train"),
        (None, ("mixer.schedule.min_lr=0.001",), r"mixer\.schedule\.min_lr=0\.001: policy=none has no learned mixer"),
        ("frozen", ("mixer.weight_decay=0.0",), r"mixer\.weight_decay=0\.0: .*no learned mixer to train"),
    ],
)
def test_settings_without_use_are_errors_before_anything_is_created(
    tiny: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    policy: str | None,
    overrides: tuple[str, ...],
    said: str,
) -> None:
    if policy is not None:
        monkeypatch.setattr(build, "build_policy", lambda config: Learned().requires_grad_(policy == "learned"))
    with pytest.raises(ConfigError, match=said):
        train(tiny(*overrides))
    assert not (tmp_path / "runs").exists()


def test_settings_name_another_run_and_nulls_do_not() -> None:
    plain = compose([])
    same = config_hash(plain)
    assert config_hash(compose(["mixer.schedule=null"])) == same
    rates = [config_hash(compose([f"mixer.{s}"])) for s in ("lr=0.01", "lr=0.1", "momentum=0", "schedule.min_lr=0.01")]
    assert len({same, *rates}) == 5
    assert mixer_settings(compose(["mixer.lr=0.01", "mixer.schedule={min_lr:0.001}"])) == {
        "mixer.lr": 0.01,
        "mixer.schedule.min_lr": 0.001,
    }
    # Configs of earlier versions have no mixer.
    older = copy.deepcopy(plain)
    older._set_flag("readonly", False)
    del older["mixer"]
    assert config_hash(older) == same


def test_a_sweep_over_the_mixers_rate_is_a_grid_of_runs(tmp_path: Path) -> None:
    cells = expand([f"root={tmp_path}", "mixer.lr=0.01,0.1", "mixer.schedule.min_lr=0.001", "seed=0,1"])
    assert [cell.label for cell in cells] == [f"mixer.lr={lr} seed={seed}" for seed in (0, 1) for lr in (0.01, 0.1)]
    assert len({cell.folder for cell in cells}) == 4


def test_the_result_tells_the_settings_as_options_of_the_policy(tiny: Tiny, learned: None) -> None:
    result = train(tiny("epochs=1", "mixer.lr=0.02", "mixer.momentum=0"))
    assert result["policy_options"] == {"mixer.lr": 0.02, "mixer.momentum": 0}


# AdAutoMix keeps what the others keep, block and slow copy, and its alternation.
@pytest.mark.parametrize(
    "name", ["adautomix", *(pytest.param(name, marks=pytest.mark.slow) for name in ("automix", "samix"))]
)
def test_policies_that_learn_to_mix_resume_exactly(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    """Block, slow copy, their buffers and the alternation go on as if nothing had happened."""
    settings = [f"policy={name}", "+model.output_stride=2", "mixer.lr=0.05"]
    settings += ["mixer.schedule.min_lr=0.01", "checkpoint_every_steps=1", "policy.momentum=0.5", "data.train_size=75"]
    whole, broken = (tiny(*settings, root=tmp_path / which) for which in ("whole", "broken"))
    train(whole)
    with monkeypatch.context() as patch:
        interrupt(patch, after=4)
        with pytest.raises(KeyboardInterrupt):
            train(broken)
    train(broken)
    first, second = (checkpoint.load(run.run_folder(config) / "last.pt") for config in (whole, broken))
    assert {"network.model.fc.weight", "clean_head.weight"} <= first["policy"].keys()
    terms = [
        [{k: v for k, v in record.items() if k.startswith("train_")} for record in c["history"]]
        for c in (first, second)
    ]
    assert terms[0] == terms[1]
    assert {"train_loss", "train_accuracy", "train_clean_loss", "train_generator_loss"} <= terms[0][0].keys()
    for part in ("model", "policy"):
        assert first[part].keys() == second[part].keys()
        for key, value in first[part].items():
            other = second[part][key]
            assert torch.equal(value, other) if isinstance(value, Tensor) else value == other
    assert not torch.equal(first["policy"]["network.model.fc.weight"], first["model"]["fc.weight"])
    mixers = [group for group in first["optimizer"]["param_groups"] if group.get("mixer")]
    assert [group["lr"] for group in mixers] == pytest.approx([0.01])
