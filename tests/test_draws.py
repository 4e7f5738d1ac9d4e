"""Random numbers, pairings and ratios against theory."""

import math

import pytest
import torch
from scipy import stats

import mixaug
from helpers import seeded
from mixaug import pairing, ratio
from mixaug.batch import Batch
from mixaug.draws import Draws, as_default_stream, host_choices, mean_over_choices

ROWS = 20_000


def draws(per="sample", rows=ROWS, seed=0):
    return Draws(rows, torch.device("cpu"), seeded(seed), per)


@pytest.mark.parametrize(
    ("alpha", "beta"), [(0.1, 0.1), (0.2, 0.2), (0.2, 3), (0.5, 0.5), (1, 1), (8, 8), (20, 20), (2, 1)]
)
def test_beta_follows_the_distribution(alpha, beta):
    values = draws().beta(alpha, beta)
    assert values.shape == (ROWS,)
    assert stats.kstest(values.numpy(), stats.beta(alpha, beta).cdf).pvalue > 1e-4
    deviation = math.sqrt(alpha * beta / ((alpha + beta) ** 2 * (alpha + beta + 1)))
    assert abs(values.mean() - alpha / (alpha + beta)) < 4 * deviation / math.sqrt(ROWS)


def test_a_tiny_alpha_gives_zeros_and_ones_not_nan():
    values = draws().beta(1e-3, 1e-3)
    assert values.isfinite().all()
    assert ((values < 1e-6) | (values > 1 - 1e-6)).double().mean() > 0.95
    assert abs(values.mean() - 0.5) < 4 * 0.5 / math.sqrt(ROWS)


@pytest.mark.parametrize(("made", "expected"), [
    (ratio.Beta(0.5), stats.beta(0.5, 0.5)),
    (ratio.Beta(2, 5), stats.beta(2, 5)),
    (ratio.Uniform(0.2, 0.7), stats.uniform(0.2, 0.5)),
])  # fmt: skip
def test_ratios_follow_their_distributions(made, expected):
    assert stats.kstest(made(draws()).numpy(), expected.cdf).pvalue > 1e-4


def test_constant_ratio_takes_no_randomness():
    source = draws()
    state = source.generator.get_state()
    assert (ratio.Constant(0.3)(source) == 0.3).all()
    assert torch.equal(state, source.generator.get_state())


def test_rows_follow_per():
    for per, rows in [("sample", 6), ("batch", 1), ("pair", 6)]:
        assert draws(per, 6).uniform().shape == (rows,)
        assert ratio.Constant()(draws(per, 6)).shape == (rows,)
        assert draws(per, 6).normal((2, 3)).shape == (rows, 2, 3)
        assert draws(per, 6).integers(0, 4, per="sample").shape == (6,)


def test_both_members_of_a_pair_see_the_same_draw():
    source = draws("pair", 7)
    partner = pairing.Reversed()(Batch(torch.zeros(7, 1)), source)
    source.pair_with(partner)
    for values in (source.uniform(), source.beta(1, 1), source.integers(0, 1000), source.normal((3,))):
        assert torch.equal(values, values[partner])
        assert len(values.flatten(1).unique(dim=0) if values.ndim > 1 else values.unique()) == 4


# Partners by nearness are drawn with replacement: tests/test_neighbours.py.
@pytest.mark.parametrize("name", [n for n in pairing.NAMED if n not in ("label_kernel", "nearest", "local")])
@pytest.mark.parametrize("size", [2, 3, 8, 9])
def test_every_pairing_is_a_permutation_and_keeps_its_promise(name, size):
    made = pairing.make(name, "sample")
    for seed in range(20):
        partner = made(Batch(torch.zeros(size, 1)), draws(rows=size, seed=seed))
        assert torch.equal(partner.sort().values, torch.arange(size))
        if made.involution:
            assert torch.equal(partner[partner], torch.arange(size))
        if name == "derangement":
            assert (partner != torch.arange(size)).all()
            if size > 2:
                assert (partner[partner] != torch.arange(size)).all()


@pytest.mark.parametrize(("name", "outcomes"), [("permutation", 24), ("derangement", 6), ("random_pairs", 3)])
def test_random_pairings_are_uniform_over_their_kind(name, outcomes):
    # Four samples: 4! permutations, 3! single cycles, 3 perfect matchings.
    made, source, count = pairing.make(name, "sample"), draws(rows=4), 6000
    seen: dict[tuple[int, ...], int] = {}
    for _ in range(count):
        partner = tuple(made(Batch(torch.zeros(4, 1)), source).tolist())
        seen[partner] = seen.get(partner, 0) + 1
    assert len(seen) == outcomes
    assert stats.chisquare(list(seen.values())).pvalue > 1e-4


def test_pixels_are_uniform_over_the_image():
    centers = draws().pixels((3, 5))
    counts = torch.bincount(centers[:, 0] * 5 + centers[:, 1], minlength=15)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "1", None, True])
@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_bad_alpha_is_named(name, value):
    with pytest.raises((ValueError, TypeError), match=r"(CutMix|Mixup) expects alpha as a"):
        mixaug.create(name, alpha=value)


@pytest.mark.parametrize(("option", "value", "message"), [
    ("ratio", "gauss", "unknown ratio 'gauss'"),
    ("ratio", 1.5, r"share in \[0, 1\], got 1.5"),
    ("ratio", [0.5], "Mixup expects ratio as a name"),
    ("pairing", "farthest", "unknown pairing 'farthest'"),
    ("pairing", 3, "Mixup expects pairing as a name"),
    ("labeling", "size", "unknown labeling 'size'"),
    ("labeling", 3, "Mixup expects labeling as a name"),
    ("per", "epoch", r"expects per in \['sample', 'batch', 'pair'\], got 'epoch'"),
])  # fmt: skip
def test_bad_parts_are_named(option, value, message):
    with pytest.raises((ValueError, TypeError), match=message):
        mixaug.create("mixup", **{option: value})


def test_uniform_and_per_pair_check_their_arguments():
    with pytest.raises(ValueError, match="low <= high"):
        ratio.Uniform(0.8, 0.2)
    with pytest.raises(ValueError, match="is not mutual; use one of"):
        mixaug.create("cutmix", per="pair", pairing="shift")
    mixaug.create("cutmix", per="pair", pairing="reversed")


def test_a_generator_on_another_device_is_refused():
    with pytest.raises(ValueError, match=r"generator is on cpu; make it with torch.Generator\('meta'\)"):
        mixaug.create("mixup")(torch.zeros(2, 3, device="meta"), generator=seeded(0))


def test_a_choice_of_the_host_is_refused_while_a_graph_is_captured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    draws = Draws(4, torch.device("cuda"))
    with pytest.raises(RuntimeError, match=r"CUDA graph would repeat that choice.*host_choices"):
        draws.host_uniform()
    with host_choices(0.25, 0.5):
        assert draws.host_uniform() == 0.25
        assert draws.host_integer(4) == 2
        with pytest.raises(RuntimeError, match="give host_choices another number"):
            draws.host_uniform()
    with pytest.raises(RuntimeError, match="CUDA graph"):
        draws.host_uniform()


def test_choices_of_the_host_are_those_given(generator):
    draws = Draws(4, generator.device, generator)
    before = generator.get_state()
    with host_choices(0.5):
        with host_choices(0.125):
            assert draws.host_uniform() == 0.125
        assert draws.host_uniform() == 0.5
    assert torch.equal(generator.get_state(), before)
    with pytest.raises(ValueError, match=r"numbers in \[0, 1\), got 1"), host_choices(1):
        pass


def test_a_generator_stands_in_for_the_default_stream(device):
    given, twin = seeded(3, device), seeded(3, device)
    default = torch.default_generator if device.type == "cpu" else torch.cuda.default_generators[0]
    default.manual_seed(7)
    before = default.get_state()
    with as_default_stream(given):
        drawn = torch.rand(5, device=device), torch.randint(9, (3,), device=device)
    assert torch.equal(drawn[0], torch.rand(5, device=device, generator=twin))
    assert torch.equal(drawn[1], torch.randint(9, (3,), device=device, generator=twin))
    assert torch.equal(given.get_state(), twin.get_state())
    assert torch.equal(default.get_state(), before)
    with pytest.raises(OSError, match="broken"), as_default_stream(given):
        torch.rand(1, device=device)
        raise OSError("broken")
    assert torch.equal(default.get_state(), before)


def test_mean_over_choices_is_the_expectation_of_a_tree():
    def run():
        draws = Draws(2, torch.device("cpu"), torch.Generator().manual_seed(0))
        if draws.host_choice((0.2, 0.0, 0.8)) == 0:
            return 1.0, 10.0
        # The second choice is there behind one branch of the first alone.
        return 2.0 + draws.host_choice((0.25, 0.75)), 20.0

    assert mean_over_choices(run) == pytest.approx((0.2 * 1 + 0.8 * (0.25 * 2 + 0.75 * 3), 0.2 * 10 + 0.8 * 20))


def test_mean_over_too_many_choices_is_that_of_draws():
    draws = Draws(2, torch.device("cpu"), torch.Generator().manual_seed(0))
    (mean,) = mean_over_choices(lambda: [float(sum(draws.host_choice((0.3, 0.7)) for _ in range(20)))])
    assert abs(mean - 14) < 4 * (20 * 0.21 / 64) ** 0.5
    # Afterwards choices come from the generator again.
    assert len({draws.host_choice((0.5, 0.5)) for _ in range(20)}) == 2


def test_a_choice_takes_the_number_that_a_comparison_took():
    first, second = (Draws(2, torch.device("cpu"), torch.Generator().manual_seed(4)) for _ in range(2))
    chances = (0.1, 0.4, 0.5)
    for _ in range(50):
        unit = first.host_uniform()
        assert second.host_choice(chances) == (0 if unit < 0.1 else 1 if unit < 0.5 else 2)
