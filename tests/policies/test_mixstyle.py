"""MixStyle beyond the contract: statistics against a loop, coins and draws of every stage, domains in two halves."""

import pickle

import numpy as np
import pytest
import torch
from scipy import stats

import mixaug
import mixaug.models
from helpers import seeded
from mixaug import functional as F
from mixaug.batch import Batch
from mixaug.draws import Draws
from mixaug.losses import MixedCrossEntropy

IMAGES = torch.randn(6, 3, 16, 16, generator=seeded(0))
LABELS = torch.arange(6) % 4
PARTNER = torch.tensor([2, 0, 3, 1, 4])
LAM = torch.tensor([0.3, 0.9, 0.0, 1.0, 0.6])


def maps(*shape, seed=1, dtype=torch.float32):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype) * 2 + 1


def tiny():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return mixaug.models.create("cifar_resnet8", 4)


def test_statistics_against_a_loop():
    features = maps(5, 4, 3, 5, dtype=torch.float64)
    values = features.numpy()
    expected = values.copy()
    for i, j in enumerate(PARTNER.tolist()):
        for c in range(4):
            (m, s), (n, t) = (
                (x.mean(), np.sqrt(x.var(ddof=1) + 1e-6)) for x in (values[i, c], values[j, c])
            )  # fmt: skip
            lam = float(LAM[i])
            expected[i, c] = (values[i, c] - m) / s * (lam * s + (1 - lam) * t) + lam * m + (1 - lam) * n
    torch.testing.assert_close(F.mix_styles(features, PARTNER, LAM.double()), torch.from_numpy(expected))


def test_content_stays_and_statistics_are_the_blend():
    features = maps(5, 4, 6, 6)
    mixed = F.mix_styles(features, PARTNER, LAM)
    for moment in (torch.mean, torch.std):
        own, other = moment(features, (2, 3)), moment(features[PARTNER], (2, 3))
        torch.testing.assert_close(
            moment(mixed, (2, 3)), LAM[:, None] * own + (1 - LAM[:, None]) * other, rtol=1e-3, atol=1e-4
        )
    # A share of one changes no bit.
    assert torch.equal(mixed[3], features[3])
    # What remains is the own image up to scale and shift.
    correlation = torch.corrcoef(torch.stack([mixed[0, 0].flatten(), features[0, 0].flatten()]))[0, 1]
    assert correlation > 0.9999


def test_no_gradient_flows_through_the_statistics():
    features = maps(5, 4, 3, 5, dtype=torch.float64).requires_grad_()
    weights = maps(5, 4, 3, 5, seed=2, dtype=torch.float64)
    mixed = F.mix_styles(features, PARTNER, LAM.double())
    [got] = torch.autograd.grad((mixed * weights).sum(), features)
    deviation = (features.var((2, 3), keepdim=True) + 1e-6).sqrt().detach()
    lam = LAM.double()[:, None, None, None]
    torch.testing.assert_close(got, weights * (lam * deviation + (1 - lam) * deviation[PARTNER]) / deviation)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_dtype_and_layout_are_kept(layout):
    features = maps(5, 8, 3, 4).half().contiguous(memory_format=layout)
    mixed = F.mix_styles(features * 1000, PARTNER, LAM)
    assert (mixed.dtype, mixed.stride()) == (torch.float16, features.stride())
    expected = F.mix_styles((features * 1000).double(), PARTNER, LAM)
    torch.testing.assert_close(mixed.double(), expected, rtol=2e-3, atol=2)


def test_every_stage_has_its_own_coin_partners_and_share():
    policy, model, g = mixaug.create("mixstyle", probability=0.3), tiny(), seeded(3)
    plans = [policy.draw(IMAGES, LABELS, signals=model, generator=g) for _ in range(250)]
    active = np.array([[stage in plan.stages for stage in ("layer1", "layer2")] for plan in plans])
    for column in active.T:
        assert stats.binomtest(int(column.sum()), 250, 0.3).pvalue > 1e-4
    assert stats.binomtest(int(active.all(1).sum()), 250, 0.09).pvalue > 1e-4
    both = [plan for plan in plans if len(plan.stages) == 2]
    assert any(not torch.equal(*plan.partners) for plan in both)
    assert all(not torch.equal(*plan.shares) for plan in both)
    lams = torch.cat([plan.shares[0] for plan in plans if plan.stages])
    assert stats.kstest(lams[lams.gt(1e-6) & lams.lt(1 - 1e-6)].numpy(), _inner_beta).pvalue > 1e-4
    for plan in plans:
        assert plan.weights.tolist() == [[1.0, 0.0]] * 6


def _inner_beta(values):
    law = stats.beta(0.1, 0.1)
    low, high = law.cdf(1e-6), law.cdf(1 - 1e-6)
    return (law.cdf(values) - low) / (high - low)


@pytest.mark.parametrize("read", [True, False], ids=["read", "not read"])
def test_a_training_step_written_out(read, monkeypatch):
    # Where coins are not read, as while torch.compile traces, every stage is hooked and some change nothing.
    if not read:
        monkeypatch.setattr("mixaug.policies.mixstyle.reads_freely", lambda *tensors: False)
    policy, seen = mixaug.create("mixstyle"), set()
    for seed in range(6):
        model, twin = tiny(), tiny()
        loss, _ = mixaug.MixStep(model, policy, MixedCrossEntropy())(IMAGES, LABELS, generator=seeded(seed))
        plan = policy.draw(IMAGES, LABELS, signals=twin, generator=seeded(seed))
        drawn = plan.stages if read else tuple(
            name for name, on in zip(plan.eligible, plan.active.tolist(), strict=True) if on
        )  # fmt: skip
        seen.add(drawn)

        def hook(index, plan=plan):
            return lambda module, inputs, output: F.mix_styles(output, plan.partners[index], plan.shares[index])

        for name in drawn:
            twin.get_submodule(name).register_forward_hook(hook(plan.eligible.index(name)))
        torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(twin(IMAGES), LABELS))
    assert len(seen) > 2


def test_a_plan_with_several_stages_travels():
    plan = mixaug.create("mixstyle", probability=1.0).draw(IMAGES, signals=tiny(), generator=seeded(4))
    again, features = pickle.loads(pickle.dumps(plan)).map_tensors(torch.clone), maps(6, 5, 4, 4)
    for stage in ("layer1", "layer2"):
        assert torch.equal(again.mix_hidden(stage, features), plan.mix_hidden(stage, features))
    with pytest.raises(ValueError, match=r"mixes behind \['layer1', 'layer2'\], and not behind one stage alone"):
        plan.drawn_stage  # noqa: B018


@pytest.mark.parametrize("count", [2, 6, 7])
def test_halves_mix_across_and_repeat_nobody(count):
    pairing, g, half = mixaug.pairing.make("halves", "sample"), seeded(5), count // 2
    batch = Batch(torch.zeros(count, 1))
    seen = torch.zeros(count, count)
    for _ in range(300):
        partner = pairing(batch, Draws(count, torch.device("cpu"), g))
        assert (partner[:half] >= half).all()
        assert sorted(partner.tolist()) == list(range(count))
        # In an odd batch one of the larger half meets itself.
        alone = partner == torch.arange(count)
        assert alone.sum() == count % 2
        assert (partner[half:][~alone[half:]] < half).all()
        seen[torch.arange(count), partner] += 1
    for row, start, stop in ((0, half, count), (half, 0, half)):
        # Everyone of the other half is as likely.
        assert stop - start == 1 or stats.chisquare(seen[row, start:stop].numpy()).pvalue > 1e-4
    assert pairing(Batch(torch.zeros(1, 1)), Draws(1, torch.device("cpu"), g)).tolist() == [0]


def test_a_mixture_across_domains_takes_the_other_ones_style():
    # Two domains that differ in brightness, in the two halves of the batch.
    features = maps(6, 4, 5, 5) + 50 * (torch.arange(6) >= 3)[:, None, None, None]
    policy = mixaug.create("mixstyle", probability=1.0, pairing="halves", ratio=0.0, stages=["layer1"])
    mixed = policy.draw(IMAGES, signals=tiny(), generator=seeded(6)).mix_hidden("layer1", features)
    assert ((mixed.mean((1, 2, 3)) > 25) == (torch.arange(6) < 3)).all()


@pytest.mark.parametrize(("options", "message"), [
    ({"probability": 1.5}, r"probability in \[0, 1\], got 1.5"),
    ({"epsilon": 0}, "epsilon as a positive"),
    ({"stages": ["input", "layer1"]}, "got 'input' among them: it acts inside"),
    ({"stages": "layer1"}, "stages as a sequence of module names"),
])  # fmt: skip
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        mixaug.create("mixstyle", **options)


def test_a_single_position_is_refused():
    with pytest.raises(ValueError, match=r"features \(5, 4, 1, 1\) would be those of a single value"):
        F.mix_styles(maps(5, 4, 1, 1), PARTNER, LAM)
