"""Co-Mixup: the cut against brute force, the sweeps against a twin that follows the sheet, parts, labels, the step."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import mixaug
from golden import GOLDEN
from helpers import index_images, seeded
from mixaug import functional as F
from mixaug.losses import MixedCrossEntropy
from mixaug.models import create as create_model
from mixaug.ops.potts import potts_energy, potts_labels
from mixaug.policies.comixup import _dirichlet
from mixaug.signals import ModelSignals, Signals


def saliency_of(count, size, seed=0):
    """A few bright spots on each image."""
    values = torch.rand(count, 1, 4, 4, generator=seeded(seed)) ** 4
    return nn.functional.interpolate(values, size=size, mode="nearest")[:, 0] + 1e-3


def mix(images, labels=None, seed=0, saliency=None, **options):
    given = saliency_of(len(images), tuple(images.shape[2:])) if saliency is None else saliency
    return mixaug.create("comixup", **options)(images, labels, signals=Signals(saliency=given), generator=seeded(seed))


def problems(count, grid, labels, seed, halves=0):
    """Costs like those of a sweep: sharp shares of saliency, and the halves of the first labels as labels."""
    costs = torch.rand(count, *grid, labels, generator=seeded(seed)) ** 3
    costs = -costs / costs.sum((1, 2), keepdim=True)
    distance = (1 - torch.eye(labels + halves)).repeat(count, 1, 1)
    for index, (a, b) in enumerate(itertools.islice([(0, 1), (0, 2), (1, 2)], halves)):
        costs = torch.cat([costs, (costs[..., [a]] + costs[..., [b]]) / 2 - 5e-4], 3)
        for member in (a, b):
            distance[:, labels + index, member] = distance[:, member, labels + index] = 0.25
    return costs, distance


def slow_energy(costs, distance, weight, labels):
    rows, columns = labels.shape
    total = 0.0
    for y, x in itertools.product(range(rows), range(columns)):
        total += costs[y, x, labels[y, x]].item()
        if y + 1 < rows:
            total += weight * distance[labels[y, x], labels[y + 1, x]].item()
        if x + 1 < columns:
            total += weight * distance[labels[y, x], labels[y, x + 1]].item()
    return total


def least_energy(costs, distance, weight):
    """Exact minimum over all labels, block after block: the cost of every labelling of the last row's width."""
    rows, columns, count = costs.shape
    front = None
    for y, x in itertools.product(range(rows), range(columns)):
        unary = costs[y, x]
        if y:
            # The oldest block of the front is the one above.
            front = (front.reshape(count, -1, 1) + weight * distance[:, None, :]).amin(0)
        elif front is not None:
            front = front.reshape(-1, 1).expand(-1, count)
        front = (unary if front is None else front.reshape(-1, count) + unary).reshape(-1, count)
        if x:
            # The block on the left is the last but one.
            front = front.reshape(-1, count, count) + weight * distance
        front = front.flatten()
    return front.min().item()


@pytest.mark.parametrize("grid", [(3, 3), (2, 4), (4, 2), (1, 7), (7, 1), (1, 1), (1, 9), (2, 5)], ids=str)
@pytest.mark.parametrize("halves", [0, 1])
def test_the_cut_against_brute_force(grid, halves):
    base = 2 if grid[0] * grid[1] == 10 else 3
    costs, distance = problems(3, grid, base, seed=1, halves=halves)
    count, weight = base + halves, 0.08
    found = potts_labels(costs, distance, weight)
    energy = potts_energy(costs, distance, weight, found)
    blocks = grid[0] * grid[1]
    every = torch.cartesian_prod(*[torch.arange(count)] * blocks).reshape(-1, *grid)
    for q in range(len(costs)):
        each = potts_energy(
            costs[q].expand(len(every), -1, -1, -1), distance[q].expand(len(every), -1, -1), weight, every
        )
        assert energy[q].item() == pytest.approx(slow_energy(costs[q], distance[q], weight, found[q]), abs=1e-5)
        # Up to four columns exact; in strips the optimum can be missed.
        assert energy[q].item() == pytest.approx(each.min().item(), abs=1e-5 if grid[1] <= 4 else 0.01)


@pytest.mark.parametrize(("labels", "halves", "beta"), [(8, 3, 0.32), (8, 0, 0.32), (8, 3, 0.64), (11, 0, 0.2)])
def test_the_cut_is_near_exact_with_many_labels(labels, halves, beta):
    costs, distance = problems(12, (4, 4), labels, seed=2, halves=halves)
    energy = potts_energy(costs, distance, beta / 16, potts_labels(costs, distance, beta / 16))
    exact = torch.tensor([least_energy(c, d, beta / 16) for c, d in zip(costs, distance, strict=True)])
    gap = (energy - exact) / exact.abs()
    assert (gap > -1e-5).all()
    assert (gap < 0.01).all()
    assert (gap < 1e-5).float().mean() >= 0.9


@pytest.mark.parametrize("columns", [8, 9])
def test_strips_are_never_worse_than_the_best_single_change(columns):
    costs, distance = problems(4, (8, columns), 6, seed=3)
    weight = 0.01
    found = potts_labels(costs, distance, weight)
    energy = potts_energy(costs, distance, weight, found)
    for y, x, label in itertools.product(range(8), range(columns), range(6)):
        changed = found.clone()
        changed[:, y, x] = label
        assert (potts_energy(costs, distance, weight, changed) >= energy - 0.002).all()
    greedy = costs.argmin(3)
    assert (energy < potts_energy(costs, distance, weight, greedy) + 1e-6).all()
    exact = torch.tensor([least_energy(c[:, :4], d, weight) for c, d in zip(costs, distance, strict=True)])
    narrow = potts_labels(costs[:, :, :4], distance, weight)
    torch.testing.assert_close(potts_energy(costs[:, :, :4], distance, weight, narrow), exact, rtol=0.01, atol=0)


def objective(cost, z, beta, gamma, threshold=None, soft=False):
    """By loops: cost (m, h, w), z (outputs, m, h, w)."""
    m, h, w = cost.shape
    n = h * w
    total = (cost[None] * z).sum().item()
    for o in range(len(z)):
        for y, x in itertools.product(range(h), range(w)):
            if y + 1 < h:
                total += beta / n / 2 * (z[o, :, y, x] - z[o, :, y + 1, x]).square().sum().item()
            if x + 1 < w:
                total += beta / n / 2 * (z[o, :, y, x] - z[o, :, y, x + 1]).square().sum().item()
    for k in range(m):
        counts = [z[o, k].sum().item() for o in range(len(z))]
        for own in counts:
            elsewhere = sum(counts) - own
            if threshold is not None:
                over = elsewhere > threshold * n
                elsewhere = (elsewhere - threshold * n if soft else elsewhere) * over
            total += gamma / n * elsewhere * own
    return total


def brute_cut(unary, distance, weight):
    """(h, w, L) costs: the best of all labellings."""
    h, w, count = unary.shape
    every = torch.cartesian_prod(*[torch.arange(count)] * (h * w)).reshape(-1, h, w)
    energy = potts_energy(unary.expand(len(every), -1, -1, -1), distance.expand(len(every), -1, -1), weight, every)
    return every[energy.argmin()]


def slow_shares(cost, A, start, beta, gamma, threshold, iterations, soft):
    """One part, sweep by sweep and output by output, every cut exact."""
    m, h, w = cost.shape
    n = h * w
    z = nn.functional.one_hot(start, m).permute(0, 3, 1, 2).float()
    add = torch.zeros(m, m)
    before = objective(cost, z, beta, gamma)
    for sweep in range(iterations):
        for o in range(m):
            u = sum(z[other].sum((1, 2)) for other in range(m) if other != o)
            a = A @ u
            over = (a > threshold * n).float()
            penalty = 2 * gamma / n * (over * (a - threshold * n) if soft else A @ (u * over))
            unary = (cost + (penalty + gamma / n * add[o])[:, None, None]).permute(1, 2, 0)
            vectors = [torch.eye(m)[k] for k in range(m)]
            used = z[o].sum((1, 2))
            members = []
            if sweep and (used > 0).sum() >= 2:
                top = used.argsort(descending=True, stable=True)[: min(3, int((used > 0).sum()))].tolist()
                for a_, b_ in itertools.combinations(top, 2):
                    unary = torch.cat([unary, (unary[..., [a_]] + unary[..., [b_]]) / 2 - 5e-4], 2)
                    vectors.append((vectors[a_] + vectors[b_]) / 2)
                    members.append((a_, b_))
            distance = 1 - torch.eye(len(vectors))
            for index, pair in enumerate(members):
                for k in pair:
                    distance[m + index, k] = distance[k, m + index] = 0.25
            labels = brute_cut(unary, distance, beta / n)
            solved = torch.stack(vectors)[labels].permute(2, 0, 1)
            tried = torch.cat([z[:o], solved[None], z[o + 1 :]])

            def merit(which):
                extra = sum((add[o_] * which[o_].sum((1, 2))).sum().item() for o_ in range(m))
                return objective(cost, which, beta, gamma, threshold, soft) + gamma / n * extra

            if not 0 < sweep == iterations - 1 or merit(tried) <= merit(z) + 1e-6:
                z = tried
        if sweep == iterations - 2:
            sets = [tuple((z[o].sum((1, 2)) > 0).nonzero().flatten().tolist()) for o in range(m)]
            for i, j in itertools.combinations(range(m), 2):
                if sets[i] == sets[j] and len(sets[i]) >= 2:
                    add[i, sets[i][0]] = 1.0
                    add[j, sets[j][1]] = 1.0
        now = objective(cost, z, beta, gamma)
        if abs(before - now) < 1e-6 * abs(now):
            break
        before = now
    return z


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_sweeps_against_the_slow_twin(count, iterations, soft):
    parts, compared, same = 12, 6, 0
    options = {"beta": 0.3, "gamma": 0.3, "threshold": 0.6, "iterations": iterations}
    g = seeded(10 * count + iterations)
    costs = torch.rand(parts, count, 2, 2, generator=g) ** 3
    costs = -costs / costs.sum((2, 3), keepdim=True)
    distance = torch.rand(parts, count, count, generator=g)
    compatibility = F.comixup_compatibility((distance + distance.transpose(1, 2)).triu(1), 0.01)
    start = torch.randint(0, count, (parts, count, 2, 2), generator=g)
    shares = F.comixup_shares(costs, compatibility, start, soft_penalty=soft, **options)
    for p in range(compared):
        twin = slow_shares(costs[p], compatibility[p], start[p], 0.3, 0.3, 0.6, iterations, soft)
        for limit, kind in ((None, False), (0.6, False), (0.6, True)):
            got = F.comixup_objective(costs[p], shares[p], 0.3, 0.3, limit, soft_penalty=kind)
            assert got.item() == pytest.approx(objective(costs[p], shares[p], 0.3, 0.3, limit, kind), abs=1e-4)
        same += torch.equal(shares[p], twin)
    # Where blocks are counted alike, which three inputs make the halves is a matter of order.
    assert same >= (compared if count <= 3 else compared - 2)


def test_parts_are_independent_and_a_smaller_part_is_as_if_alone():
    g = seeded(4)
    costs = -torch.rand(3, 5, 4, 4, generator=g) / 8
    eye = torch.eye(5).expand(3, 5, 5)
    start = torch.randint(0, 3, (3, 5, 4, 4), generator=g)
    valid = torch.ones(3, 5, dtype=torch.bool)
    valid[2, 3:] = False
    together = F.comixup_shares(costs, eye, start, valid=valid)
    alone = F.comixup_shares(costs[:1], eye[:1], start[:1])
    small = F.comixup_shares(costs[2:, :3], eye[2:, :3, :3], start[2:, :3])
    assert torch.equal(together[:1], alone)
    assert torch.equal(together[2:, :3, :3], small)
    assert (together[2, 3:] == 0).all()
    assert (together[2, :, 3:] == 0).all()
    assert torch.equal(together[:2].sum(2), torch.ones(2, 5, 4, 4))


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("comixup_*.npz")), ids=lambda path: path.stem)
def test_from_the_recorded_start_not_above_the_reference(path):
    with np.load(path) as arrays:
        given = {name: torch.from_numpy(arrays[name]) for name in arrays if arrays[name].ndim}
        plain = {name: arrays[name].item() for name in arrays if not arrays[name].ndim}
    cost = given["cost_with_prior"]
    options = {"beta": plain["beta"], "gamma": plain["gamma"], "threshold": plain["thres"]}
    shares = F.comixup_shares(
        cost[None],
        given["A"][None],
        given["init_labels"][None],
        iterations=plain["niter"],
        soft_penalty=plain["soft_threshold"],
        **options,
    )[0]
    reached = torch.stack([F.comixup_objective(cost, shares, *list(options.values())[:2], t) for t in (None, 0.83)])
    assert (reached <= given["obj_final"] + 0.01 * given["obj_final"].abs()).all()


def test_costs_are_block_shares():
    saliency = torch.rand(3, 12, 20, generator=seeded(5))
    cost = F.comixup_costs(saliency, 4)
    for b, y, x in itertools.product(range(3), range(4), range(4)):
        share = saliency[b, 3 * y : 3 * y + 3, 5 * x : 5 * x + 5].sum() / saliency[b].sum()
        assert cost[b, y, x].item() == pytest.approx(-share.item(), abs=1e-6)
    assert F.comixup_costs(torch.rand(2, 1, 3), 4).shape == (2, 1, 3)


def test_distance_of_peaks():
    saliency = torch.zeros(3, 20, 30)
    saliency[0, 0:8, 0:8] = 1
    saliency[1, 5:13, 9:17] = 1
    saliency[2, 12:20, 22:30] = 1
    expected = torch.tensor([[0.0, 14, 34], [14, 0, 20], [34, 20, 0]])
    assert torch.equal(F.comixup_distance(saliency), expected)
    assert torch.equal(F.comixup_distance(torch.rand(2, 1, 1)), torch.zeros(2, 2))


def test_equal_peaks_leave_the_identity():
    assert torch.equal(F.comixup_compatibility(torch.zeros(4, 4), 0.5), torch.eye(4))
    some = F.comixup_compatibility(torch.tensor([[0.0, 3], [3, 0]]), 0.1)
    torch.testing.assert_close(some, torch.tensor([[0.9, 0.1], [0.1, 0.9]]))


@pytest.mark.parametrize("fill", [0.0, 1.0, float("nan"), float("inf"), -1.0, 1e38, 1e-42])
def test_degenerate_saliency(fill):
    images = index_images(6, 3, 16, 16)
    saliency = saliency_of(6, (16, 16))
    saliency[:3] = fill
    for given in (saliency, torch.full_like(saliency, fill)):
        assert F.comixup_costs(given, 4).isfinite().all()
        torch.testing.assert_close(F.comixup_costs(given, 4).sum((1, 2)), -torch.ones(6))
        mixed = mix(images, saliency=given)
        assert mixed.inputs.isfinite().all()
        torch.testing.assert_close(mixed.weights.sum(1), torch.ones(6))


@pytest.mark.parametrize("size", [(8, 8), (13, 18), (3, 20), (1, 1), (2, 1)], ids=str)
@pytest.mark.parametrize(("count", "part"), [(7, 3), (7, 20), (4, 2), (5, 4)])
def test_pixels_labels_and_masks_agree_in_uneven_parts(size, count, part):
    # Every image has its own bit: the value of a mixed pixel names the one or two images in it.
    images = (2.0 ** torch.arange(count)).reshape(-1, 1, 1, 1).expand(count, 1, *size)
    mixed = mix(images, torch.arange(count), part_size=part)
    width = min(part, count)
    assert mixed.sources.shape == (count, width)
    assert torch.equal(mixed.sources[:, 0], torch.arange(count))
    for b in range(count):
        members = range(b // width * width, min(b // width * width + width, count))
        others = [member for member in members if member != b]
        assert mixed.sources[b, 1 : 1 + len(others)].tolist() == others
        assert (mixed.sources[b, 1 + len(others) :] == b).all()
        assert (mixed.weights[b, 1 + len(others) :] == 0).all()
        shares = torch.zeros(count)
        for value in mixed.inputs[b].flatten().tolist():
            doubled = round(2 * value)
            single = [k for k in members if doubled == 2 ** (k + 1)]
            pair = [k for k in members if doubled & 2**k]
            for k in single or pair:
                shares[k] += 1 if single else 0.5
            assert len(single) == 1 or len(pair) == 2
        torch.testing.assert_close(mixed.targets(count)[b], shares / (size[0] * size[1]), rtol=0, atol=1e-6)
        own = mixed.mask[b].mean()
        torch.testing.assert_close(own, mixed.lam[b], rtol=0, atol=1e-6)


def test_a_part_of_one_stays_as_it_is():
    images = torch.rand(5, 3, 8, 8, generator=seeded(6))
    mixed = mix(images, part_size=4)
    assert torch.equal(mixed.inputs[4], images[4])
    assert mixed.weights[4].tolist() == [1.0, 0.0, 0.0, 0.0]


def test_pure_mixing_against_masks_and_bad_shapes():
    images = torch.rand(4, 3, 10, 14, generator=seeded(7), dtype=torch.float64)
    mixed = mix(images.float(), gamma=0.2)
    rows, columns = torch.arange(10) * 4 // 10, torch.arange(14) * 4 // 14
    shares = torch.zeros(4, 4, 4, 4)
    for b, y, x in itertools.product(range(4), range(4), range(4)):
        for row in (mixed.plan.first[b, y, x], mixed.plan.second[b, y, x]):
            shares[b, (mixed.sources[b] == row).nonzero()[0, 0], y, x] += 0.5
    got, weights = F.comixup(images, mixed.sources, shares)
    masks = shares[:, :, rows][:, :, :, columns]
    expected = (images[mixed.sources] * masks[:, :, None]).sum(1)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(weights, masks.mean((2, 3)))
    torch.testing.assert_close(weights, mixed.weights)
    for call, message in [
        (lambda: F.comixup(images, mixed.sources[:2], shares), r"sources \(4, M\) int64"),
        (lambda: F.comixup(images, mixed.sources, shares[:, :2]), "shares"),
        (lambda: F.comixup(images[..., :3, :], mixed.sources, shares), "one block per pixel"),
        (lambda: F.comixup_costs(torch.rand(2, 3, 4, 4), 4), r"\(B, H, W\)"),
        (lambda: F.comixup_costs(torch.rand(2, 4, 4), 0), "block_num >= 1"),
        (lambda: F.comixup_shares(torch.rand(1, 2, 2, 2), torch.eye(2), torch.zeros(1, 2, 2, 2).long()), "comixup_sh"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_outputs_show_more_saliency_than_chance_and_differ():
    saliency = saliency_of(20, (32, 32), seed=8)
    mixed = mix(index_images(20, 1, 32, 32), saliency=saliency, beta=0.1)
    cost = F.comixup_costs(saliency, 4)
    shown = (-cost[mixed.plan.first, torch.arange(4)[:, None], torch.arange(4)]).sum((1, 2))
    # A random block of a random image has a sixteenth of its image's saliency on average, an output 1.
    assert shown.mean() > 1.25
    used = dense(mixed) > 0
    assert used.sum(1).float().mean() > 1.5
    assert len({tuple(row) for row in used.tolist()}) >= 15


def test_overlap_is_what_gamma_prevents():
    # One image is by far the best in every block: without a penalty all outputs show it.
    saliency = torch.ones(6, 16, 16)
    images = index_images(6, 1, 16, 16)
    free = mix(images, saliency=saliency, gamma=0.0, eta=5.0)
    assert (free.inputs.flatten(1).std(1) == 0).all()
    assert len(free.inputs.flatten().unique()) == 1
    kept = mix(images, saliency=saliency, gamma=1.0, eta=5.0)
    assert len(kept.inputs.flatten().unique()) > 3


@pytest.mark.parametrize("concentration", [0.05, 2.0])
def test_the_prior_is_dirichlet(concentration):
    draws = mixaug.draws.Draws(4, torch.device("cpu"), seeded(9))
    valid = torch.tensor([[True] * 4, [True, True, True, False]]).repeat(1500, 1)
    drawn = _dirichlet(concentration, valid, draws)
    torch.testing.assert_close(drawn.sum(1), torch.ones(3000))
    assert (drawn[1::2, 3] == 0).all()
    for rows, count in ((drawn[::2], 4), (drawn[1::2], 3)):
        # To float32's resolution near 1, where small concentrations put much of their mass.
        law = stats.beta(concentration, (count - 1) * concentration)
        points = np.array([0.01, 0.1, 0.3, 0.6, 0.9, 0.99])
        seen = (rows[:, 1].numpy()[:, None] <= points).mean(0)
        np.testing.assert_allclose(seen, law.cdf(points), atol=0.045)


def test_block_num_is_drawn_among_those_that_fit():
    policy = mixaug.create("comixup", block_num=-1, iterations=1, part_size=2)
    images, saliency, g = torch.rand(2, 1, 9, 20), saliency_of(2, (9, 20)), seeded(11)
    seen = []
    for _ in range(45):
        plan = policy.draw(images, signals=Signals(saliency=saliency), generator=g)
        seen.append(tuple(plan.first.shape[1:]))
    assert set(seen) == {(2, 2), (4, 4), (8, 8)}
    assert min(seen.count(grid) for grid in set(seen)) >= 5
    tiny = policy.draw(images[..., :1, :1], signals=Signals(saliency=torch.rand(2, 1, 1)), generator=g)
    assert tiny.first.shape == (2, 1, 1)


def test_label_maps_are_copied_where_blocks_show_one_image_only():
    label_map = torch.arange(6)[:, None, None].expand(6, 12, 16).contiguous()
    images = index_images(6, 1, 12, 16)
    hard = mix(images, iterations=1)
    assert torch.equal(hard.apply(label_map), hard.inputs[:, 0].long())
    soft = mix(images, iterations=4)
    with pytest.raises(TypeError, match="num_classes"):
        soft.apply(label_map)
    shares = soft.apply(label_map, num_classes=6)
    torch.testing.assert_close((shares * torch.arange(6)[:, None, None]).sum(1), soft.inputs[:, 0])
    torch.testing.assert_close(shares.mean((2, 3)), dense(soft))


def dense(mixed):
    return torch.zeros(len(mixed), len(mixed)).scatter_add(1, mixed.sources, mixed.weights)


def test_bytes_are_rounded_and_a_hidden_nan_stays_hidden():
    images = torch.randint(0, 256, (6, 3, 12, 12), generator=seeded(12), dtype=torch.uint8)
    mixed = mix(images)
    floats = mixed.apply(images.float())
    assert torch.equal(mixed.inputs.float(), floats.round())
    wild = images.float()
    wild[0] = float("nan")
    hidden = (mixed.plan.first != 0) & (mixed.plan.second != 0)
    shows = mixed.apply(wild).isnan()[:, 0, ::3, ::3]
    assert torch.equal(shows, ~hidden)


def test_gradients_are_the_shares():
    images = torch.rand(5, 2, 8, 8, generator=seeded(13), dtype=torch.float64, requires_grad=True)
    mixed = mix(images)
    mixed.inputs.sum().backward()
    # Pixel by pixel, what an image gives to all outputs.
    given = torch.stack([mixed.apply((torch.arange(5) == k).double()[:, None, None, None].expand(5, 2, 8, 8)).sum(0)
                         for k in range(5)])  # fmt: skip
    torch.testing.assert_close(images.grad, given)


def small_model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return create_model("cifar_resnet8", num_classes=5)


def batch(count=6):
    return torch.randn(count, 3, 16, 16, generator=seeded(14)), torch.arange(count) % 5


@pytest.mark.parametrize("clean_weight", [1.0, 0.02, 0.0])
def test_one_step_is_the_mixed_loss_plus_the_clean_one(clean_weight):
    images, labels = batch()
    model, twin = small_model(), small_model()
    step = mixaug.MixStep(model, mixaug.create("comixup", clean_weight=clean_weight), MixedCrossEntropy())
    loss, scalars = step(images, labels, generator=seeded(15))
    loss.backward()
    assert ("clean_loss" in scalars) == (clean_weight > 0)

    twin.train(clean_weight > 0)
    inputs = images.clone().requires_grad_()
    clean = nn.functional.cross_entropy(twin(inputs), labels)
    (gradient,) = torch.autograd.grad(clean, inputs, retain_graph=True)
    saliency = gradient.square().mean(1).sqrt()
    policy = mixaug.create("comixup", clean_weight=clean_weight)
    mixed = policy(images, labels, signals=Signals(saliency=saliency), generator=seeded(15))
    twin.train()
    expected = MixedCrossEntropy()(twin(mixed.inputs), mixed) + clean_weight * clean
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for (name, got), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(got.grad, other.grad, rtol=1e-3, atol=1e-5, msg=name)
    for (name, got), other in zip(model.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(got, other, msg=name)


def test_a_batch_of_one_has_no_clean_loss():
    images, labels = batch(1)
    model = small_model().eval()
    loss, scalars = mixaug.MixStep(model, mixaug.create("comixup"), MixedCrossEntropy())(images, labels)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(model(images), labels))
    assert "clean_loss" not in scalars


def test_given_saliency_mixes_but_has_no_clean_loss():
    images, labels = batch()
    model, policy = small_model(), mixaug.create("comixup")
    given = Signals(saliency=saliency_of(6, (16, 16)))
    mixed = policy(images, labels, signals=given, generator=seeded(16))
    for clean in (given, None):
        with policy.tap(model, mixed, clean) as seen:
            model(mixed.inputs)
        with pytest.raises(ValueError, match="set clean_weight=0"):
            policy.auxiliary_loss(mixed, seen)
    assert mixaug.create("comixup", clean_weight=0).auxiliary_loss(mixed, seen) == {}


def test_a_model_as_signals_and_inside_oneof():
    images, labels = batch()
    model = small_model()
    direct = mixaug.create("comixup")(images, labels, signals=model, generator=seeded(17))
    again = mixaug.create("comixup")(images, labels, signals=ModelSignals(small_model()), generator=seeded(17))
    assert torch.equal(direct.inputs, again.inputs)
    step = mixaug.MixStep(model, mixaug.OneOf(["comixup", "cutmix"]), MixedCrossEntropy())
    seen = {tuple(sorted(step(images, labels, generator=seeded(s))[1])) for s in range(6)}
    assert seen == {("accuracy", "clean_loss", "loss"), ("accuracy", "loss")}
    both = mixaug.MixStep(model, mixaug.OneOf(["comixup", "cutmix"], per="sample"), MixedCrossEntropy())
    loss, _ = both(images, labels, generator=seeded(18))
    assert loss.isfinite()


def test_no_value_is_read_back_to_the_host():
    with FakeTensorMode():
        images = torch.empty(3, 3, 20, 24, device="cuda")
        for options in ({"iterations": 2}, {"soft_penalty": True, "part_size": 2, "iterations": 1, "block_num": 5}):
            policy = mixaug.create("comixup", **options)
            mixed = policy(images, signals=Signals(saliency=torch.empty(3, 20, 24, device="cuda")))
            assert mixed.inputs.device.type == mixed.weights.device.type == "cuda"
            assert mixed.mask.shape == (3, 1, 20, 24)


def test_compiles_as_one_graph_with_the_sweeps_as_one_operator():
    torch.compiler.reset()
    images, given = torch.rand(3, 3, 12, 18), Signals(saliency=saliency_of(3, (12, 18)))
    traced = torch.compile(mixaug.create("comixup"), fullgraph=True, backend="aot_eager")
    mixed = traced(images, torch.arange(3), signals=given)
    torch.testing.assert_close(mixed.plan.mix(images), mixed.inputs)
    torch.testing.assert_close(mixed.weights.sum(1), torch.ones(3))


@pytest.mark.parametrize(("options", "message"), [
    ({"block_num": 0}, "block_num"),
    ({"block_num": 2.5}, "block_num"),
    ({"part_size": 1}, "part_size as an integer >= 2"),
    ({"iterations": 0}, "iterations as an integer >= 1"),
    ({"beta": -0.1}, "beta as a number that is not negative"),
    ({"gamma": float("nan")}, "gamma"),
    ({"threshold": "x"}, "threshold"),
    ({"eta": float("inf")}, "eta"),
    ({"omega": 1.5}, r"omega in \[0, 1\]"),
    ({"dirichlet": 0}, "dirichlet as a positive"),
    ({"clean_weight": -1}, "clean_weight"),
])  # fmt: skip
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        mixaug.create("comixup", **options)


def test_saliency_of_another_size_and_no_saliency_are_named():
    images = torch.rand(4, 3, 8, 8)
    policy = mixaug.create("comixup")
    with pytest.raises(ValueError, match=r"saliency \(4, 8, 8\), a value per pixel, got \(4, 7, 8\)"):
        policy(images, signals=Signals(saliency=torch.rand(4, 7, 8)))
    with pytest.raises(ValueError, match="needs saliency of the model"):
        policy(images)
    with pytest.raises(ValueError, match="which these Signals lack"):
        policy(images, signals=Signals(cam=torch.rand(4, 8, 8)))
