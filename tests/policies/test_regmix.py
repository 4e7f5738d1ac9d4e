"""RegMix: limits per sample, their special cases, and the policy gradient that learns them."""

import pytest
import torch
from scipy import stats
from torch import nn

import mixaug
from helpers import seeded
from mixaug.pairing.nearest import limited_choice, nearest_rows
from mixaug.policies.regmix import CHOICES, LimitNetwork, learn_limits, policy_gradient_loss

INPUTS = torch.randn(16, 3, generator=seeded(0))
LABELS = torch.randn(16, 2, generator=seeded(1))


def constant(limit):
    return lambda inputs, labels: torch.full((len(inputs),), limit)


def linear(columns=1, outputs=1):
    return nn.Linear(columns, outputs)


def problem(count=40, seed=2):
    x = torch.randn(count, 3, generator=seeded(seed))
    return x, torch.stack([x[:, 0].sin(), x[:, 1] * x[:, 2]], 1)


def test_limits_of_zero_are_plain_training():
    mixed = mixaug.create("regmix", limits=constant(0), k_max=8)(INPUTS, LABELS, generator=seeded(3))
    assert torch.equal(mixed.inputs, INPUTS)
    torch.testing.assert_close(mixed.targets(), LABELS)
    model, losses = linear(3, 2), []
    for data, policy in [
        ("none", mixaug.create("none")),
        ("zero", mixaug.create("regmix", limits=constant(0), k_max=8)),
    ]:
        step = mixaug.MixStep(model, policy, mixaug.losses.MixedSquaredError())
        losses.append((data, float(step(INPUTS, LABELS, generator=seeded(4))[1]["loss"])))
    assert losses[0][1] == pytest.approx(losses[1][1], rel=1e-6)


@pytest.mark.parametrize("options", [{"k": 15}, {"limits": constant(15), "k_max": 15}], ids=["k", "limits"])
def test_the_largest_limit_is_mixup_without_the_self(options):
    policy, g, counts = mixaug.create("regmix", **options), seeded(5), torch.zeros(16, 16)
    for _ in range(600):
        counts[torch.arange(16), policy(INPUTS, LABELS, generator=g).partner] += 1
    assert (counts.diagonal() == 0).all()
    others = counts[~torch.eye(16, dtype=torch.bool)]
    assert stats.chisquare(others.numpy()).pvalue > 1e-4


def test_partners_lie_within_their_own_limit():
    limits = torch.tensor([0, 1, 2, 5]).repeat(4)
    order = torch.cdist(INPUTS.double(), INPUTS.double()).fill_diagonal_(-1).argsort(dim=1, stable=True)[:, 1:]
    policy, g = mixaug.create("regmix", limits=lambda inputs, labels: limits, k_max=5), seeded(6)
    seen = [set() for _ in range(16)]
    for _ in range(300):
        for row, partner in enumerate(policy(INPUTS, LABELS, generator=g).partner.tolist()):
            seen[row].add(partner)
    for row, limit in enumerate(limits.tolist()):
        assert seen[row] == (set(order[row, :limit].tolist()) or {row})


def test_on_a_line_with_two_neighbours_only_the_sides():
    line = torch.arange(9.0)[:, None]
    seen = set()
    for seed in range(60):
        partner = mixaug.create("regmix", k=2)(line, line, generator=seeded(seed)).partner
        seen |= set(zip(range(9), partner.tolist(), strict=True))
    inner = {(i, j) for i in range(1, 8) for j in (i - 1, i + 1)}
    assert seen == inner | {(0, 1), (0, 2), (8, 7), (8, 6)}


def test_partners_do_not_depend_on_the_labels():
    shuffled = LABELS[torch.randperm(16, generator=seeded(7))]
    for seed in range(10):
        pair = [mixaug.create("regmix", k=3)(INPUTS, labels, generator=seeded(seed)) for labels in (LABELS, shuffled)]
        assert torch.equal(pair[0].partner, pair[1].partner)
        assert torch.equal(pair[0].inputs, pair[1].inputs)


@pytest.mark.parametrize(("limit", "unit", "place"), [
    (0, 0.5, None), (1, 0.99, 0), (2, 0.0, 0), (2, 0.49, 0), (2, 0.5, 1), (3, 1 - 2**-53, 2), (99, 1 - 2**-53, 3),
])  # fmt: skip
def test_limited_choice(limit, unit, place):
    neighbours = torch.tensor([[7, 5, 3, 1]])
    got = limited_choice(neighbours, torch.tensor([limit]), torch.tensor([unit], dtype=torch.float64))
    assert got.tolist() == [-1 if place is None else neighbours[0, place].item()]


def test_the_policy_gradient_is_reinforce():
    # Two examples with two choices and a table of rewards: the mean over draws of the estimate is the gradient of the
    # expected reward, sum_a pi(a) r(a) grad log pi(a), in closed form pi_a (r_a - sum_b pi_b r_b) for a softmax.
    logits = torch.tensor([[0.3, -0.5], [-1.0, 0.2]], dtype=torch.float64, requires_grad=True)
    rewards = torch.tensor([[1.0, -0.5], [0.2, 2.0]], dtype=torch.float64)
    pi = logits.detach().softmax(1)
    closed = pi * (rewards - (pi * rewards).sum(1, keepdim=True))
    draws = torch.multinomial(pi, 40_000, replacement=True, generator=seeded(8))
    estimates = []
    for choice in (0, 1):
        log_pi = logits.log_softmax(1)[:, choice]
        (gradient,) = torch.autograd.grad(policy_gradient_loss(log_pi, rewards[:, choice]), logits)
        estimates.append(-gradient)
    # One shared reward, the sum of both examples', has the same mean: the other's part averages out.
    for shared in (False, True):
        if shared:
            total = torch.zeros_like(closed)
            square = torch.zeros_like(closed)
            for a in (0, 1):
                for b in (0, 1):
                    log_pi = logits.log_softmax(1).gather(1, torch.tensor([[a], [b]]))[:, 0]
                    reward = float(rewards[0, a] + rewards[1, b])
                    (gradient,) = torch.autograd.grad(policy_gradient_loss(log_pi, reward), logits)
                    weight = float(((draws[0] == a) & (draws[1] == b)).double().mean())
                    total, square = total - weight * gradient, square + weight * gradient.square()
            mean, spread = total, (square - total.square()).sqrt()
        else:
            share = torch.stack([(draws == choice).double().mean(1) for choice in (0, 1)])
            mean = sum(share[c][:, None] * estimates[c] for c in (0, 1))
            spread = sum(share[c][:, None] * (estimates[c] - mean).square() for c in (0, 1)).sqrt()
        assert ((mean - closed).abs() < 4 * spread / 40_000**0.5 + 1e-12).all()


def test_policy_gradient_loss_bonus_and_reward():
    log_pi = torch.tensor([-0.1, -2.0], requires_grad=True)
    reward = torch.tensor(3.0, requires_grad=True)
    loss = policy_gradient_loss(log_pi, reward, torch.tensor(0.5))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(3 * 2.1 - 0.5)
    assert log_pi.grad.tolist() == [-3.0, -3.0]
    assert reward.grad is None


def test_learning_limits_is_reproducible_and_global_randomness_stays_as_it_was():
    train, validation, found = problem(), problem(20, 3), []
    for start in (0, 1):
        torch.manual_seed(0)
        model = linear(3, 2)
        torch.manual_seed(start)
        state = torch.get_rng_state()
        network = learn_limits(model, train, validation, steps=40, batch_size=8, generator=seeded(9))
        assert torch.equal(torch.get_rng_state(), state)
        found.append(network.state_dict())
        assert not any(parameter.requires_grad for parameter in network.parameters())
        limits = network(*train)
        assert limits.dtype == torch.int64
        assert set(limits.tolist()) <= set(CHOICES)
    for key, value in found[0].items():
        assert torch.equal(found[1][key], value)
    other = learn_limits(linear(3, 2), train, validation, steps=40, batch_size=8, generator=seeded(10))
    assert any(not torch.equal(other.state_dict()[key], value) for key, value in found[0].items())


def test_learning_moves_towards_the_choice_that_is_rewarded(monkeypatch):
    # Validation loss falls exactly when many limits were 0: the network must learn to choose 0.
    train, drawn = problem(), []
    real = limited_choice

    def spy(neighbours, limits, unit):
        drawn.append(float((limits == 0).double().mean()))
        return real(neighbours, limits, unit)

    monkeypatch.setattr("mixaug.policies.regmix.limited_choice", spy)
    model = linear(3, 2)

    def loss(predictions, labels):
        return predictions.mean() * 0 + (0 if model.training else 1 - drawn[-1])

    network = learn_limits(model, train, problem(20, 3), choices=(0, 4), steps=300, loss=loss, generator=seeded(11))
    shares = network.logits(*train).softmax(1)[:, 0]
    assert shares.mean() > 0.9
    assert (network(*train) == 0).all()


def test_limits_capped_by_the_number_of_rows():
    network = learn_limits(linear(3, 2), problem(5), problem(4), steps=2, batch_size=5, generator=seeded(12))
    assert network.choices.tolist() == [0, 1, 2, 4]


def test_learned_limits_in_the_policy():
    train = problem()
    network = LimitNetwork(*train, choices=(0, 2, 6), generator=seeded(13))
    policy = mixaug.create("regmix", limits=network)
    assert policy.pairing.k_max == 6
    assert "limits.layers.0.weight" in policy.state_dict()
    limits = network(*train)
    order = nearest_rows(train[0], 6)
    assert len(limits.unique()) > 1
    pooled = mixaug.Pooled(policy, *train)
    for seed in range(10):
        partner = policy(*train, generator=seeded(seed)).partner
        rows = pooled(*train, generator=seeded(seed)).plan.pool_rows
        for row, limit in enumerate(limits.tolist()):
            near = order[row, :limit].tolist() or [row]
            assert partner[row].item() in near
            assert limit == 0 or rows[row].item() in near


def test_the_most_probable_limit_smaller_of_equals():
    network = LimitNetwork(*problem(), choices=(0, 3, 9))
    for parameter in network.parameters():
        parameter.data.zero_()
    assert (network(*problem()) == 0).all()
    network.layers[2].bias.data[1] = 1.0
    assert (network(*problem()) == 3).all()


def test_constant_columns_do_not_divide_by_zero():
    x, y = problem()
    network = LimitNetwork(torch.cat([x, torch.ones(len(x), 1)], 1), y)
    assert network.logits(torch.cat([x, torch.ones(len(x), 1)], 1), y).isfinite().all()


X, Y = problem(10)


@pytest.mark.parametrize(("change", "message"), [
    ({"train": (X, Y[:9])}, "train as equally many inputs and labels, at least 2, got 10 and 9"),
    ({"validation": (X[:1], Y[:1])}, "validation as equally many"),
    ({"train": (X, torch.where(Y > 0, torch.nan, Y))}, "the train labels hold NaN"),
    ({"validation": (X, torch.where(Y > 0, torch.nan, Y))}, "the validation labels hold NaN"),
    ({"train": (torch.where(X > 0, torch.nan, X), Y)}, "row 0 of rows holds NaN"),
    ({"train": (X, torch.arange(10)), "validation": (X, torch.arange(10))}, "expects float labels, got torch.int64"),
    ({"validation": (X, Y[:, 0])}, r"expects validation like train, got inputs \(10, 3\) and labels \(10,\)"),
    ({"by": "x"}, "by 'labels' or 'inputs', got 'x'"),
    ({"choices": (0, 99)}, r"at least two choices below the number of rows, 10, got \(0, 99\)"),
    ({"train": (X, Y[:, 0]), "validation": (X, Y[:, 0])}, r"shaped like the labels, \(4,\), got \(4, 2\)"),
    ({"steps": 0}, "steps >= 1"),
    ({"batch_size": 11}, r"batch_size in \[1, 10\], got 5, 11"),
    ({"momentum": 1.0}, r"momentum in \[0, 1\)"),
    ({"choices": (1, 2)}, "limits that rise from 0"),
    ({"choices": (0, 4, 2)}, "limits that rise from 0"),
    ({"alpha": 0}, "expects alpha as a"),
    ({"learning_rate": 1e30}, "validation loss became (nan|inf); lower learning_rate"),
])  # fmt: skip
def test_what_cannot_be_learned_is_named(change, message):
    arguments = {"train": (X, Y), "validation": (X, Y), "steps": 5, "batch_size": 4, **change}
    with pytest.raises(ValueError, match=message):
        learn_limits(linear(3, 2), generator=seeded(14), **arguments)


@pytest.mark.parametrize(("limits", "message"), [
    (lambda x, y: torch.ones(3, dtype=torch.int64), r"limits \(16,\) int64 from its function, got \(3,\) torch.int64"),
    (lambda x, y: torch.ones(16), r"got \(16,\) torch.float32"),
    (lambda x, y: [1] * 16, "got list"),
    (lambda x, y: torch.full((16,), -1), "limits >= 0 from its function, got -1"),
])  # fmt: skip
def test_limits_of_another_form_are_named(limits, message):
    with pytest.raises(ValueError, match=message):
        mixaug.create("regmix", limits=limits, k_max=4)(INPUTS, LABELS)


def test_bad_options_are_named():
    with pytest.raises(ValueError, match=r"k_max >= 1 for limits that are a function, got None"):
        mixaug.create("regmix", limits=constant(1))
    with pytest.raises(ValueError, match="k as an integer >= 1"):
        mixaug.create("regmix", k=0)
    with pytest.raises(ValueError, match=r"needs labels|pairs by labels"):
        mixaug.create("regmix", limits=constant(1), k_max=2)(INPUTS)


def test_learned_limits_are_shown_by_their_name():
    shown = "RegMix(k_max=32, pairing=Nearest(k=RegMix._learned, by='inputs'))"
    assert repr(mixaug.create("regmix", limits="learned")) == shown
