"""What a step costs, and runs that last as long as they may cost."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

import mixaug
from mixaug import Batch
from mixaug.engine import budget, build, run
from mixaug.engine.budget import settle, step_cost
from mixaug.engine.config import compose, config_hash, plain
from mixaug.engine.config_values import from_text, to_text
from mixaug.engine.errors import ConfigError
from mixaug.engine.identity import digest_of, identity_of
from mixaug.engine.lengths import epochs_at_equal_cost
from mixaug.engine.reading import read_config
from mixaug.engine.train import train
from mixaug.flops import Flops
from mixaug.leaderboard.collect import _read_config
from mixaug.losses import MixedCrossEntropy
from mixaug.objectives.cowa import mixture_confidence


def test_operations_of_a_convolution_and_its_gradients_by_hand():
    layer = nn.Conv2d(3, 5, 3, bias=False)
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    forward = 2 * 2 * 5 * 6 * 6 * 3 * 3 * 3
    with Flops() as flops:
        layer(images).sum().backward()
    assert flops.total == 3 * forward
    with Flops() as flops, torch.no_grad():
        layer(images)
    assert flops.total == forward


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["policy=cutmix"], 1.0),
        # The clean and the mixed batch, both with their backward passes; clean and three draws.
        (["policy=mixup", "objective=regmixup"], 2.0),
        (["policy=mixup", "objective=rankmixup"], 4.0),
        # A copy of the model is run without gradients beside it, as much as the forward third.
        (["policy=mixup", "objective=mixkd", "+networks.teacher._target_=mixaug.networks.Momentum"], None),
    ],
)
def test_cost_of_a_step(tiny, overrides, expected):
    cost = step_cost(tiny(*overrides))
    if expected is None:
        # The first layer needs no gradient of its input: forward is a little more than a third of the step.
        assert 1 + 1 / 3 < cost < 1.4
    else:
        assert cost == pytest.approx(expected)


#: Operations of a pass of the model without gradients over those of a plain step with as many samples, by hand: a
#: backward pass is twice a forward pass, but for the first layer, which needs no gradient of its input.
def forward_share(config, samples=8):
    data = build.load_data(config)
    model = build.build_model(config, data)
    images = data.train.images[:samples].float() / 255
    with Flops() as forward, torch.no_grad():
        model.eval()(images)
    with Flops() as plain:
        model.train()(images).sum().backward()
    return forward.total / plain.total


def test_looks_at_the_training_set_count_once_an_epoch(tiny):
    config = tiny("policy=mixup", "objective=cowa")
    data = build.load_data(config)
    told = torch.randn(100, 16), torch.randn(100, data.outputs).softmax(1)
    with Flops() as mixture:
        mixture_confidence(*told)
    with Flops() as plain:
        build.build_model(config, data)(data.train.images[:8].float()).sum().backward()
    # In an epoch all 100 samples are trained on, and looked at once; the mixture is made of all of them.
    expected = 1 + forward_share(config) + mixture.total / (100 * plain.total / 8)
    assert step_cost(config) == pytest.approx(expected, rel=1e-6)
    # Every second step: 100 samples are looked at for 2 * 25 that are trained on.
    expected = 1 + 2 * (expected - 1)
    assert step_cost(tiny("policy=mixup", "objective=cowa", "objective.refresh_every=2")) == pytest.approx(expected)


@pytest.mark.slow
def test_looks_at_the_validation_set_count_by_the_steps_between(tiny):
    options = ("policy=selmix", "data.valid_share=0.3", "data.train_size=100")
    rare, often = (step_cost(tiny(*options, f"policy.refresh_every={every}")) for every in (50, 1))
    # 30 samples are looked at before every step, or before every 50th one; the other 70 are an epoch of three steps.
    looks = 30 / (70 / 3) * forward_share(tiny(*options))
    assert often - 1 == pytest.approx(50 * (rare - 1))
    # What follows from a look are products of prototypes and classes, little beside the passes.
    assert looks < often - 1 < 1.02 * looks


def test_a_policy_that_chooses_costs_what_its_chances_say():
    batch = Batch(torch.rand(4, 3, 8, 8), torch.arange(4))

    def cost(policy, objective=None):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
        return budget._operations(mixaug.MixStep(model, policy, objective or MixedCrossEntropy()), batch)

    plain = cost(mixaug.create("none"))
    look = cost(mixaug.create("guidedmix")) - plain
    assert look > 0.5 * plain
    assert cost(mixaug.Sometimes("guidedmix", 0.3)) == pytest.approx(plain + 0.3 * look)
    inner = mixaug.Sometimes(mixaug.OneOf(["guidedmix", "none", "mixup"], [1, 2, 3]), 0.5)
    assert cost(inner) == pytest.approx(plain + look / 12)
    # Of three passes the first two run the replayed samples too, of which there are none before a first step.
    replayed = cost(mixaug.create("mixup"), mixaug.objectives.DualMix(size=100))
    assert replayed == pytest.approx(5 * plain)
    assert cost(mixaug.Sometimes("guidedmix", until=0.3)) == pytest.approx(plain + 0.3 * look)
    # Three draws of a batch choose one by one, and one pass serves all that look at the clean batch.
    rank = cost(mixaug.Sometimes("guidedmix", 0.3), mixaug.objectives.RankMixup())
    assert rank == pytest.approx(4 * plain + (1 - 0.7**3) * look)


def test_equal_cost_shortens_a_run_which_is_then_the_one_of_that_length(tiny):
    asked = tiny("policy=mixup", "objective=regmixup", "epochs=5", "budget=equal_cost")
    settled = settle(asked)
    assert (settled.epochs, plain(settled)["budget"]) == (2, {"rule": "equal_cost", "epochs": 5, "cost": 2.0})
    assert settle(settled) is settled
    assert config_hash(settled) == config_hash(tiny("policy=mixup", "objective=regmixup", "epochs=2"))
    assert settle(tiny("policy=mixup", "epochs=5", "budget=equal_cost")).epochs == 5
    kept = settle(tiny("policy=mixup", "objective=regmixup", "epochs=5", "budget=equal_epochs"))
    assert (kept.epochs, kept.budget.cost) == (5, 2.0)
    assert [epochs_at_equal_cost(30, cost) for cost in (1.0, 1.337, 4.0, 90.0)] == [30, 22, 8, 1]


def test_the_engine_settles_and_resumes_under_one_folder(tiny):
    config = tiny("policy=mixup", "objective=regmixup", "epochs=2", "budget=equal_cost")
    result = train(config)
    assert result["epochs"] == 1
    folder = run.run_folder(settle(config))
    stored = OmegaConf.load(folder / "config.yaml")
    assert (stored.epochs, stored.budget.epochs, stored.budget.cost) == (1, 2, 2.0)
    assert train(config) == result
    with pytest.raises(ConfigError, match="budget=equal_cost is to be put into effect first"):
        run.run_folder(config)


def test_keys_that_are_numbers_stay_numbers(tiny, tmp_path):
    values = "{_target_: mixaug.schedule.Steps, values: {0: 1.0, 0.5: 0.3}}"
    config = tiny("policy=mixup", f"policy.alpha={values}", "budget=equal_cost")
    assert settle(config).policy.alpha["values"] == {0: 1.0, 0.5: 0.3}
    told = {"b": [{2: None, 0.5: True, "2": [], "a": "1"}], "a": {}}
    assert from_text(to_text(told)) == told
    assert to_text({"x": {1: 0, "y": 1}}) == to_text({"x": {"y": 1, 1: 0}}) != to_text({"x": {"1": 0, "y": 1}})
    # A run's folder is read again, by whoever opens it and by leaderboards, which know its result by it.
    path = tmp_path / "config.yaml"
    path.write_text(OmegaConf.to_yaml(settle(config)))
    assert read_config(path)["policy"]["alpha"]["values"] == {0: 1.0, 0.5: 0.3}
    problems: list[str] = []
    read = _read_config(path, problems)
    assert not problems and read["policy"]["alpha"]["values"] == {"0": 1.0, "0.5": 0.3}
    assert digest_of(read) == digest_of(read_config(path))
    assert identity_of(read)["policy_options"] == identity_of(read_config(path))["policy_options"]


def test_a_step_that_fails_says_of_what(tiny):
    with pytest.raises(ConfigError, match="policy=lisa: the policy wants 'domain' of metadata"):
        step_cost(tiny("policy=lisa"))
    with pytest.raises(ConfigError, match=r"policy=tlalign with model=cifar_resnet8.*no global attention"):
        step_cost(tiny("policy=tlalign"))


def test_counting_leaves_no_trace_in_random_state(tiny):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    budget._step_cost.cache_clear()
    step_cost(tiny("policy=fmix"))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("wrong", ["budget=equal_passes", "budget={rule:equal_cost}", "budget=3"])
def test_wrong_budgets(wrong):
    with pytest.raises(ConfigError, match="budget must"):
        compose([wrong])
