"""Partners that lie near: draws against the matrix of the definition, in a batch and over a training set."""

import math
import resource

import pytest
import torch
from scipy import stats

import mixaug
from helpers import index_images, seeded
from mixaug.batch import Batch
from mixaug.draws import Draws
from mixaug.functional import label_kernel
from mixaug.ops.kernels import KernelSampler, as_points, draw_index, rule_of_thumb, total_variance
from mixaug.pairing import LabelKernel, Local, Nearest
from mixaug.pairing.nearest import nearest_rows

CPU = torch.device("cpu")
ROUNDS = 100

#: Label sets of every kind: name -> (labels, bandwidth).
LABELS = {
    "line": (torch.randn(12, generator=seeded(0)), 0.7),
    "column": (torch.randn(12, 1, generator=seeded(1), dtype=torch.float64), 0.5),
    "plane": (torch.randn(12, 2, generator=seeded(2)), 0.9),
    "eight": (torch.randn(12, 8, generator=seeded(3)), 2.0),
    "ties": (torch.tensor([0.0, 0, 0, 1, 1, 2, 2, 2, 2, 5]), 1.0),
    "tied plane": (torch.tensor([[0.0, 0], [0, 0], [1, 0], [1, 1], [1, 1], [3, 0]]), 1.0),
    "skewed": (torch.randn(12, generator=seeded(4)).exp() * 10, 4.0),
    "classes": (torch.tensor([0, 2, 2, 0, 1, 2, 7, 1]), 1.1),
    "soft": (torch.rand(9, 4, generator=seeded(5)).softmax(1), 0.1),
    "two": (torch.tensor([0.0, 1.0]), 1.0),
}
every_label_set = pytest.mark.parametrize("kind", LABELS)
#: Draws from these go the way of others: of ties on a line, of a plane with ties, of soft labels with several columns.
SEEN_IN_OTHERS = ("line", "column", "plane", "eight", "skewed")
each_kind_of_labels = pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow) if kind in SEEN_IN_OTHERS else kind for kind in LABELS]
)


@pytest.fixture(params=["rows", "strips"])
def body(request, monkeypatch):
    """Small sets are drawn from by whole rows of the kernel; tests of draws also run with the body for large ones."""
    if request.param == "strips":
        monkeypatch.setattr("mixaug.ops.kernels.SMALL", 0)


both_bodies = pytest.mark.usefixtures("body")


def slow_kernel(labels, bandwidth, kernel="gaussian", include_self=True):
    """The definition, by a loop: (N, N) float64."""
    rows = torch.nn.functional.one_hot(labels).double() if not labels.is_floating_point() else labels.double()
    rows = rows.reshape(len(rows), -1)
    weight = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for i in range(len(rows)):
        for j in range(len(rows)):
            distance = float((rows[i] - rows[j]).square().sum().sqrt())
            near = float(distance < bandwidth) if kernel == "tophat" else math.exp(-0.5 * (distance / bandwidth) ** 2)
            weight[i, j] = near if include_self or i != j else 0.0
        if weight[i].sum() == 0:
            weight[i, i] = 1.0
    return weight / weight.sum(1, keepdim=True)


def follows(counts, probabilities):
    """Chi-square over all rows together, columns of small expectation joined; nothing where nothing may be."""
    assert (counts[probabilities == 0] == 0).all()
    statistic, freedom = 0.0, 0
    for row, expected in zip(counts.double(), probabilities, strict=True):
        expected = expected * row.sum()
        large = expected >= 5
        got = torch.cat([row[large], row[~large].sum()[None]])
        wanted = torch.cat([expected[large], expected[~large].sum()[None]])
        got, wanted = got[wanted > 0.5], wanted[wanted > 0.5]
        statistic += float(((got - wanted).square() / wanted).sum())
        freedom += len(wanted) - 1
    return freedom == 0 or stats.chi2.sf(statistic, freedom) > 1e-4


def in_batch(pairing, labels, inputs=None, rounds=ROUNDS, seed=0):
    """How often each row drew each row, (N, N)."""
    count = len(labels)
    batch, draws = Batch(torch.zeros(count, 1) if inputs is None else inputs, labels), Draws(count, CPU, seeded(seed))
    partners = torch.stack([pairing(batch, draws) for _ in range(rounds)])
    return torch.nn.functional.one_hot(partners, count).sum(0)


def over_set(pairing, labels, inputs=None, rounds=10 * ROUNDS, seed=0, rows=None):
    """The same for a pairing that was fitted, in one large batch."""
    count = len(labels)
    fitted = pairing.fit(labels, inputs)
    anchors = torch.arange(count).repeat(rounds)
    batch = Batch(torch.zeros(len(anchors), 1) if inputs is None else inputs[anchors], labels[anchors])
    partners = fitted.draw(batch, Draws(len(anchors), CPU, seeded(seed)), None if rows is None else rows[anchors])
    return torch.nn.functional.one_hot(partners.reshape(rounds, count), count).sum(0)


# --- the matrix ---------------------------------------------------------------------------------------------------


@every_label_set
@pytest.mark.parametrize("kernel", ["gaussian", "tophat"])
@pytest.mark.parametrize("include_self", [True, False])
def test_the_matrix_is_the_definition(kind, kernel, include_self):
    labels, bandwidth = LABELS[kind]
    got = label_kernel(labels, bandwidth, kernel=kernel, include_self=include_self)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, slow_kernel(labels, bandwidth, kernel, include_self))


def test_the_matrix_at_its_limits():
    labels = torch.tensor([1.0, 2.0, 4.0])
    # The reference's densities overflow here; P must be the identity.
    assert torch.equal(label_kernel(labels, 1e-200), torch.eye(3, dtype=torch.float64))
    many = torch.randn(5, 300, generator=seeded(6))
    assert torch.equal(label_kernel(many, 1e-3), torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(label_kernel(labels, 1e9), torch.full((3, 3), 1 / 3, dtype=torch.float64))
    # At the radius exactly, a row is outside.
    assert label_kernel(labels, 1.0, kernel="tophat").tolist() == torch.eye(3).tolist()
    assert label_kernel(torch.full((4,), 7.0), 0.1).tolist() == [[0.25] * 4] * 4
    assert label_kernel(torch.tensor([3.0]), 1.0, include_self=False).tolist() == [[1.0]]


@every_label_set
def test_standardised_units_are_multiples_of_the_spread(kind):
    labels, _ = LABELS[kind]
    dense = labels if labels.is_floating_point() else torch.nn.functional.one_hot(labels).double()
    spread = float(dense.double().reshape(len(labels), -1).var(0, correction=0).sum().sqrt())
    got = label_kernel(labels, 0.8, units="standardised")
    torch.testing.assert_close(got, label_kernel(labels, 0.8 * spread))
    if labels.is_floating_point():
        # Free of the labels' scale and origin.
        torch.testing.assert_close(label_kernel(labels.double() * 1000 + 5, 0.8, units="standardised"), got)


def test_the_rule_of_thumb(shared):
    import numpy as np

    path = shared / "data" / "airfoil" / "airfoil_self_noise.dat"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    labels = torch.from_numpy(np.loadtxt(path)[:, 5])
    # The paper's bandwidth on Airfoil is 1.75.
    assert float(rule_of_thumb(as_points(labels[:1003]))) == pytest.approx(1.8, abs=0.05)
    for rows, dims in [(50, 1), (200, 3)]:
        points = torch.randn(rows, dims, generator=seeded(7), dtype=torch.float64)
        s = points.var(0, correction=0).mean().sqrt()
        expected = float(s) * (4 / (dims + 2) / rows) ** (1 / (dims + 4))
        assert float(rule_of_thumb(points)) == pytest.approx(expected)
    classes = torch.tensor([0, 2, 2, 5])
    one_hot = torch.nn.functional.one_hot(classes).double()
    assert float(total_variance(classes)) == pytest.approx(float(one_hot.var(0, correction=0).sum()))


# --- draws follow it ----------------------------------------------------------------------------------------------


@both_bodies
@each_kind_of_labels
@pytest.mark.parametrize("kernel", ["gaussian", "tophat"])
@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.filterwarnings("ignore:LabelKernel")
def test_label_kernel_draws_follow_the_matrix(kind, kernel, include_self):
    labels, bandwidth = LABELS[kind]
    pairing = LabelKernel(bandwidth, kernel=kernel, include_self=include_self)
    expected = slow_kernel(labels, bandwidth, kernel, include_self)
    assert follows(in_batch(pairing, labels), expected)
    assert follows(over_set(pairing, labels, rows=torch.arange(len(labels))), expected)


@both_bodies
def test_the_check_of_frequencies_can_fail():
    labels, bandwidth = LABELS["line"]
    for counts, off in [
        (in_batch(LabelKernel(bandwidth), labels, rounds=500), 1.3),
        (over_set(LabelKernel(bandwidth), labels, rounds=5000), 1.08),
    ]:
        assert follows(counts, slow_kernel(labels, bandwidth))
        assert not follows(counts, slow_kernel(labels, bandwidth * off))


@both_bodies
@pytest.mark.parametrize("units", ["raw", "standardised"])
def test_units_and_rule_in_batch_and_over_a_set(units):
    labels = torch.randn(15, generator=seeded(8)) * 30 + 100
    for pairing, width in [
        (LabelKernel(0.5, units="standardised"), 0.5 * float(labels.double().std(correction=0))),
        (LabelKernel("auto", units=units), float(rule_of_thumb(as_points(labels)))),
    ]:
        expected = slow_kernel(labels, width)
        assert follows(in_batch(pairing, labels), expected)
        assert follows(over_set(pairing, labels), expected)


@both_bodies
@each_kind_of_labels
@pytest.mark.parametrize("include_self", [True, False])
def test_local_by_labels_is_the_tophat(kind, include_self):
    labels, radius = LABELS[kind]
    expected = slow_kernel(labels, radius, "tophat", include_self)
    pairing = Local(radius, by="labels", include_self=include_self)
    assert follows(in_batch(pairing, labels), expected)
    assert follows(over_set(pairing, labels, rows=torch.arange(len(labels))), expected)


def slow_nearest(points, k):
    """P of a uniform choice among the k nearest others, ties to the earlier row."""
    points = points if points.is_floating_point() else torch.nn.functional.one_hot(points)
    points = points.double().reshape(len(points), -1)
    result = torch.zeros(len(points), len(points), dtype=torch.float64)
    for i in range(len(points)):
        order = sorted((float((points[i] - points[j]).square().sum()), j) for j in range(len(points)) if j != i)
        result[i, [j for _, j in order[:k]]] = 1 / k
    return result


@every_label_set
@pytest.mark.parametrize("by", ["labels", "inputs"])
def test_nearest_is_uniform_among_the_k_nearest(kind, by):
    labels, _ = LABELS[kind]
    k = min(4, len(labels) - 1)
    inputs = torch.randn(len(labels), 2, 3, generator=seeded(9))
    expected = slow_nearest(labels if by == "labels" else inputs, k)
    pairing = Nearest(k, by=by)
    assert follows(in_batch(pairing, labels, inputs), expected)
    counts = over_set(pairing, labels, inputs, rows=torch.arange(len(labels)))
    if by == "labels" and kind == "ties":
        # By one-dimensional distance ties go to either: the distances are what must agree.
        distance = (labels[:, None] - labels).abs()
        for row in range(len(labels)):
            reached = distance[row][counts[row] > 0]
            assert len(reached) == k
            assert reached.sort().values.tolist() == distance[row][expected[row] > 0].sort().values.tolist()
    else:
        assert follows(counts, expected)


def test_without_rows_a_row_at_no_distance_is_taken_for_the_sample():
    labels = torch.tensor([0.0, 1.0, 2.5, 4.5])
    for points in (labels, torch.stack([labels, labels], 1)):
        fitted = Nearest(1, by="labels").fit(points)
        batch = Batch(torch.zeros(4, 1), points)
        assert fitted.draw(batch, Draws(4, CPU, seeded(0))).tolist() == [1, 0, 1, 2]
        new = Batch(torch.zeros(2, 1), points[:2] + 0.1)
        assert fitted.draw(new, Draws(2, CPU, seeded(0))).tolist() == [0, 1]


@pytest.mark.parametrize("dims", [1, 2, 5])
@pytest.mark.parametrize("count", [1, 3, 19])
def test_nearest_rows_against_a_loop(dims, count):
    for seed, grid in [(10, False), (11, True)]:
        rows = torch.randn(20, dims, generator=seeded(seed))
        rows = (rows * 2).round() if grid else rows
        expected = []
        for i in range(20):
            others = [j for j in range(20) if j != i]
            expected.append(sorted(others, key=lambda j, i=i: (float((rows[i] - rows[j]).square().sum()), j))[:count])
        assert nearest_rows(rows, count).tolist() == expected


def test_nearest_rows_in_blocks(monkeypatch):
    rows = torch.randn(50, 3, generator=seeded(12))
    whole = nearest_rows(rows, 7)
    fitted = Nearest(7).fit(torch.zeros(50), rows)
    batch = Batch(rows, torch.zeros(50))
    drawn = fitted.draw(batch, Draws(50, CPU, seeded(1)), torch.arange(50))
    monkeypatch.setattr("mixaug.pairing.nearest.CHUNK", 170)
    assert torch.equal(nearest_rows(rows, 7), whole)
    assert torch.equal(fitted.draw(batch, Draws(50, CPU, seeded(1)), torch.arange(50)), drawn)


def test_one_dimensional_neighbours_agree_with_the_general_search():
    for seed in range(5):
        labels = (torch.randn(60, generator=seeded(seed)) * 5).round() / 5
        fitted = Nearest(6, by="labels").fit(labels)
        got = fitted._neighbours(as_points(labels), torch.arange(60))
        assert (got != torch.arange(60)[:, None]).all()
        assert all(len(set(row)) == 6 for row in got.tolist())
        distance = (labels[:, None] - labels[got]).abs()
        expected = (labels[:, None] - labels[nearest_rows(labels, 6)]).abs()
        torch.testing.assert_close(distance, expected)


# --- the sampler --------------------------------------------------------------------------------------------------


def sampled(sampler, query, count, seed=0):
    drawn = sampler.draw(query.expand(count, *query.shape[1:]), seeded(seed))
    return torch.bincount(drawn, minlength=len(sampler))[None]


@both_bodies
@pytest.mark.parametrize(
    # No row is near, some are, all are.
    "bandwidth",
    [0.001, *(pytest.param(wide, marks=pytest.mark.slow) for wide in (0.05, 5.0)), 0.6, 100.0],
)
@pytest.mark.parametrize("dims", [1, 2, 8])
@pytest.mark.parametrize("kernel", ["gaussian", "tophat"])
def test_sampler_against_exact_rows(dims, bandwidth, kernel):
    points = torch.randn(300, dims, generator=seeded(13), dtype=torch.float64).exp()
    points[100:110] = points[100]
    sampler, expected = KernelSampler(points, bandwidth, kernel), label_kernel(points, bandwidth, kernel=kernel)
    # Rows in the middle and at the ends, and one of ten equal ones.
    for row in (0, 100, int(points[:, 0].argmax()), int(points[:, 0].argmin())):
        assert follows(sampled(sampler, points[row : row + 1], 6_000, row + 1), expected[row : row + 1])


@both_bodies
@pytest.mark.parametrize("chunk", [1 << 23, 700])
def test_sampler_with_the_row_computed_in_full(chunk, monkeypatch):
    # Spread over eight columns, narrow kernel: proposals fail nearly always.
    monkeypatch.setattr("mixaug.ops.kernels.CHUNK", chunk)
    points = torch.randn(200, 8, generator=seeded(14), dtype=torch.float64)
    calls = []
    sampler = KernelSampler(points, 0.7, "gaussian")
    real = sampler._draw_in_full
    monkeypatch.setattr(sampler, "_draw_in_full", lambda *a: (calls.append(len(a[0])), real(*a))[1])
    expected = label_kernel(points, 0.7)
    rows = torch.tensor([3, 50, 199]).repeat(3000)
    drawn = sampler.draw(points[rows], seeded(15))
    assert sum(calls) > 0
    counts = torch.stack([torch.bincount(drawn[rows == row], minlength=200) for row in (3, 50, 199)])
    assert follows(counts, expected[[3, 50, 199]])


@both_bodies
@pytest.mark.parametrize("dims", [1, 3])
@pytest.mark.parametrize("kernel", ["gaussian", "tophat"])
def test_queries_that_are_not_of_the_set(dims, kernel):
    points = torch.zeros(40, dims, dtype=torch.float64)
    points[:, 0] = torch.cat([torch.linspace(0, 1, 30), torch.linspace(3, 9, 10)])
    sampler = KernelSampler(points, 0.4, kernel)
    for place in (-0.2, 0.511, 1.2, 2.1, 2.75, 3.3, 9.2):
        query = torch.zeros(1, dims, dtype=torch.float64)
        query[0, 0] = place
        distance = (points - query).norm(dim=1)
        if kernel == "tophat":
            near = (distance < 0.4).double()
            expected = near / near.sum() if near.sum() else (distance == distance.min()).double()
        else:
            expected = torch.softmax(-0.5 * (distance / 0.4).square(), 0)
        assert follows(sampled(sampler, query, 4000), expected[None])


@both_bodies
@pytest.mark.parametrize("dims", [1, 3])
@pytest.mark.parametrize("kernel", ["gaussian", "tophat"])
def test_a_query_far_from_all_takes_its_nearest_row(dims, kernel):
    points = torch.arange(10.0, dtype=torch.float64)[:, None].repeat(1, dims) * 100
    sampler = KernelSampler(points, 0.5, kernel)
    query = torch.full((50, dims), 130.0, dtype=torch.float64)
    assert (sampler.draw(query, seeded(0)) == 1).all()
    assert (sampler.draw(query + 50, seeded(0)) == 2).all()
    assert (sampler.draw(query + 1e6, seeded(0)) == 9).all()
    assert (sampler.draw(query - 1e6, seeded(0)) == 0).all()


@both_bodies
@pytest.mark.parametrize(("kernel", "bandwidth"), [("gaussian", 1.0), ("gaussian", 0.01), ("tophat", 1.0)])
def test_a_class_that_the_set_does_not_have(kernel, bandwidth):
    sampler = KernelSampler(torch.tensor([4, 1, 1, 4, 2, 2]), bandwidth, kernel)
    for label in (0, 3, 9):
        counts = sampled(sampler, torch.tensor([label]), 3000)
        assert follows(counts, torch.full((1, 6), 1 / 6, dtype=torch.float64))


@both_bodies
def test_leaving_out_rows():
    points = torch.tensor([[0.0], [0.0], [1.0], [50.0]], dtype=torch.float64)
    sampler = KernelSampler(points, 0.3, "tophat")
    for seed in range(10):
        # The twin, nobody else; a sample without company keeps itself.
        assert sampler.draw(points, seeded(seed), torch.arange(4)).tolist() == [1, 0, 2, 3]
    gaussian = KernelSampler(points, 0.3, "gaussian")
    for seed in range(10):
        drawn = gaussian.draw(points, seeded(seed), torch.arange(4)).tolist()
        # The only other of weight, however small it is.
        assert drawn[0] == 1
        assert drawn[3] == 2


@both_bodies
def test_the_class_sampler_and_its_extremes():
    classes = torch.tensor([3] * 5 + [1] * 3 + [8])
    for bandwidth in (0.02, 0.7, 1e6):
        sampler, expected = KernelSampler(classes, bandwidth, "gaussian"), slow_kernel(classes, bandwidth)
        for row in (0, 6, 8):
            assert follows(sampled(sampler, classes[row : row + 1], 5000), expected[row : row + 1])


@both_bodies
def test_float32_labels_are_told_apart_as_float64():
    # Neighbouring float32 numbers near 1e6 lie 1/16 apart: a product form of distances would not see it.
    labels = torch.tensor([1e6, 1e6 + 0.0625, 1e6 + 0.125, 1e6 + 10])
    expected = slow_kernel(labels, 0.08)
    torch.testing.assert_close(label_kernel(labels, 0.08), expected)
    pairs = torch.stack([labels, labels], 1)
    torch.testing.assert_close(label_kernel(pairs, 0.1), slow_kernel(pairs, 0.1))
    pairing = LabelKernel(0.08)
    assert follows(over_set(pairing, labels), expected)
    assert follows(over_set(LabelKernel(0.1), pairs), slow_kernel(pairs, 0.1))


def test_draw_index_takes_the_column_of_the_level():
    weights = torch.tensor([[0.0, 1.0, 0.0, 3.0, 0.0]])
    units = torch.tensor([[0.0, 0.2499, 0.25, 0.9, 1 - 2**-53]], dtype=torch.float64)
    assert draw_index(weights, units).tolist() == [[1, 1, 3, 3, 3]]
    # Rounded up to 1 the level is the whole sum: still a column with weight.
    assert draw_index(weights, torch.ones(1)).tolist() == [3]


@both_bodies
@pytest.mark.parametrize("dims", [1, 4])
@pytest.mark.parametrize("count", [60_000, pytest.param(200_000, marks=pytest.mark.slow)])
def test_no_matrix_over_a_large_set(dims, count):
    labels = torch.randn(count, dims, generator=seeded(16))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fitted = LabelKernel(0.01 if dims == 1 else 0.4).fit(labels)
    batch = Batch(torch.zeros(64, 1), labels[:64])
    drawn = fitted.draw(batch, Draws(64, CPU, seeded(17)))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    # N x N bytes would be 3.6 GB, or 40.
    assert grown < 1_500_000
    distance = (labels[:64] - labels[drawn]).norm(dim=1)
    assert distance.max() < (0.07 if dims == 1 else 0.4 * 7)
    assert (drawn != torch.arange(64)).double().mean() > 0.5


# --- options, errors, warnings ------------------------------------------------------------------------------------


@both_bodies
@pytest.mark.parametrize("made", [LabelKernel, Local, Nearest])
def test_draws_come_from_the_generator_alone(made):
    pairing = made() if made is LabelKernel else made(by="labels")
    labels = torch.randn(30, generator=seeded(18))
    batch = Batch(torch.zeros(30, 1), labels)
    fitted = pairing.fit(labels)
    state = torch.get_rng_state()
    rows = torch.arange(30)
    for draw in (pairing, lambda batch, draws: fitted.draw(batch, draws, rows)):
        first, again, other = (draw(batch, Draws(30, CPU, seeded(seed))) for seed in (5, 5, 6))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert first.dtype == torch.int64
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("bandwidth", [0, -1, float("nan"), float("inf"), True, None, "wide"])
def test_bad_bandwidths_are_named(bandwidth):
    for call in (lambda: LabelKernel(bandwidth), lambda: label_kernel(torch.randn(3), bandwidth)):
        with pytest.raises((ValueError, TypeError), match="expects bandwidth as a"):
            call()


@pytest.mark.parametrize(("call", "message"), [
    (lambda: LabelKernel(kernel="epanechnikov"), "LabelKernel expects kernel 'gaussian' or"),
    (lambda: LabelKernel(units="std"), "LabelKernel expects units 'raw' or 'standardised', got 'std'"),
    (lambda: label_kernel(torch.randn(3), 1.0, kernel="box"), "label_kernel expects kernel 'gaussian' or"),
    (lambda: label_kernel(torch.randn(0), 1.0), "at least one row of labels"),
    (lambda: label_kernel([0.0, 1.0], 1.0), "labels as a torch.Tensor, got list"),
    (lambda: label_kernel(torch.tensor([0.0, float("nan")]), 1.0), "row 1 of labels holds NaN"),
    (lambda: label_kernel(torch.full((3,), 2.0), 1.0, units="standardised"), "all labels are equal"),
    (lambda: LabelKernel().fit(torch.full((9, 2), 2.0)), "all labels are equal.*give a raw bandwidth"),
    (lambda: LabelKernel(2.0, units="standardised").fit(torch.zeros(4, dtype=torch.int64)), "all labels are equal"),
    (lambda: LabelKernel().fit(torch.tensor([[0.0, 1], [0, float("inf")]])), "row 1 of labels holds NaN, infinity"),
    (lambda: Local(0), "Local expects radius as a"),
    (lambda: Local(by="both"), "Local expects by"),
    (lambda: Local().fit(torch.randn(5)), r'Local\(by="inputs"\) needs the inputs of the training set'),
    (lambda: Nearest(0), "Nearest expects k as an integer >= 1"),
    (lambda: Nearest(5).fit(torch.randn(5), torch.randn(5, 2)), "more than k=5 rows to find neighbours in, got 5"),
    (lambda: Nearest(2).fit(torch.randn(5)), r'Nearest\(by="inputs"\) needs the inputs'),
    (lambda: nearest_rows(torch.randn(4, 2), 4), "more than count=4 >= 1 rows, got 4"),
    (lambda: nearest_rows(torch.randn(4, 2), 0), "count=0"),
    (lambda: nearest_rows(torch.full((4, 2), float("nan")), 2), "row 0 of rows holds NaN"),
    (lambda: LabelKernel().fit(torch.randn(5, 1).double() * 1e200), "or a number beyond 1e\\+150"),
    (lambda: LabelKernel().fit(torch.zeros(5, dtype=torch.bool)), "floating or integer, got torch.bool"),
])  # fmt: skip
def test_errors_name_what_came(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_a_fitted_pairing_knows_its_columns_and_its_rows():
    draws = Draws(3, CPU, seeded(0))
    fitted = LabelKernel(1.0).fit(torch.randn(9, 2, generator=seeded(1)))
    with pytest.raises(ValueError, match=r"fitted to labels with 2 columns \(torch.float64\), got 1"):
        fitted.draw(Batch(torch.zeros(3, 1), torch.zeros(3)), draws)
    with pytest.raises(ValueError, match="pairs by labels: pass labels"):
        fitted.draw(Batch(torch.zeros(3, 1)), draws)
    strict = LabelKernel(1.0, include_self=False).fit(torch.randn(9, generator=seeded(1)))
    with pytest.raises(ValueError, match="pass rows=, or use include_self=True"):
        strict.draw(Batch(torch.zeros(3, 1), torch.zeros(3)), draws)


@both_bodies
def test_constant_labels_with_a_raw_bandwidth_make_any_row_a_partner():
    counts = over_set(LabelKernel(1.0, include_self=True), torch.full((2,), 3.0))
    assert follows(counts, torch.full((2, 2), 0.5, dtype=torch.float64))


@pytest.mark.filterwarnings("error")
def test_a_batch_of_equal_labels_pairs_uniformly_without_a_warning():
    # A short last batch of one class or one value is nobody's mistake.
    for labels in (torch.full((6,), 3.5), torch.full((6,), 2)):
        counts = in_batch(LabelKernel(), labels)
        assert follows(counts, torch.full((6, 6), 1 / 6, dtype=torch.float64))


def test_warnings_of_a_kernel_that_does_nothing():
    labels = torch.randn(50, generator=seeded(19))
    batch, draws = Batch(torch.zeros(50, 1), labels), Draws(50, CPU, seeded(0))
    for bandwidth, message in [(100.0, "is so wide .* plain mixup"), (1e-7, "paired with themselves .*almost nothing")]:
        pairing = LabelKernel(bandwidth)
        with pytest.warns(UserWarning, match=message + ".*") as caught:
            pairing(batch, draws)
            # Once, not for every batch.
            pairing(batch, draws)
        assert len(caught) == 1
        assert f"bandwidth {bandwidth:.4g}" in str(caught[0].message)
        with pytest.warns(UserWarning, match="in this data set"):
            LabelKernel(bandwidth).fit(labels)


@pytest.mark.filterwarnings("error")
def test_no_warning_of_a_kernel_that_does_something():
    labels = torch.randn(50, generator=seeded(20))
    batch, draws = Batch(torch.zeros(50, 1), labels), Draws(50, CPU, seeded(0))
    for pairing in (LabelKernel(), LabelKernel(0.3), LabelKernel(1e-7, include_self=False)):
        pairing(batch, draws)
        pairing.fit(labels)
    # Each of many classes twice: half of the partners are the sample itself.
    LabelKernel(0.1)(Batch(torch.zeros(50, 1), torch.arange(50) // 2), draws)


def test_the_warning_on_communities_and_crime_is_the_documented_one():
    # Labels in [0, 1] with the settings' bandwidth of 4: uniform within 0.2%.
    labels = torch.rand(300, generator=seeded(21))
    with pytest.warns(UserWarning, match=r"total variation of 0\.00"):
        LabelKernel(4.0).fit(labels)


@pytest.mark.parametrize("form", ["regression", "soft", "classes"])
@pytest.mark.parametrize("name", ["cutmix", "mixup", "resizemix"])
def test_any_policy_takes_the_pairing_for_any_labels(form, name):
    images = index_images(8, 3, 16, 16)
    labels = {
        "regression": torch.tensor([0.0, 10, 0, 10, 20, 20, 30, 30]),
        "soft": torch.eye(4)[torch.tensor([0, 1, 0, 1, 2, 2, 3, 3])],
        "classes": torch.tensor([0, 1, 0, 1, 2, 2, 3, 3]),
    }[form]
    twins = {0: {0, 2}, 1: {1, 3}, 2: {0, 2}, 3: {1, 3}, 4: {4, 5}, 5: {4, 5}, 6: {6, 7}, 7: {6, 7}}
    policy = mixaug.create(name, pairing=LabelKernel(0.05))
    for seed in range(10):
        mixed = policy(images, labels, generator=seeded(seed))
        assert all(j in twins[i] for i, j in enumerate(mixed.partner.tolist()))
    named = mixaug.create(name, pairing="label_kernel")
    assert named(images, labels, generator=seeded(0)).inputs.shape == images.shape
    assert isinstance(named.pairing, LabelKernel)
    with pytest.raises(ValueError, match="pairs by labels"):
        named(images)


def test_neighbours_of_a_known_row_are_searched_once(monkeypatch):
    points = torch.randn(60, 4, generator=seeded(40))
    labels = torch.zeros(60, 1)
    fitted, fresh = (Nearest(5).fit(labels, points) for _ in range(2))
    rows = torch.tensor([7, 3, 7, 59])
    batch = Batch(points[rows], labels[rows], None)

    def draw(which, known):
        return which.draw(batch, Draws(4, torch.device("cpu"), seeded(41)), known)

    first = draw(fitted, rows)
    assert torch.equal(first, draw(fresh, None))  # no row is doubled, so the sample itself is known by its distance 0
    monkeypatch.setattr("mixaug.pairing.nearest.squared_distances", None)
    assert torch.equal(draw(fitted, rows), first)


@both_bodies
def test_rows_as_wide_as_images_need_no_covariance():
    images = torch.randn(40, 3 * 96 * 96, generator=seeded(60))
    fitted = Local("auto").fit(torch.zeros(40, 1), images)
    drawn = fitted.draw(Batch(images[:4], None, None), Draws(4, torch.device("cpu"), seeded(61)))
    assert ((drawn >= 0) & (drawn < 40)).all()
