"""PuzzleMix: both solvers against enumeration, moves against a loop, costs against a loop, both bodies, bad input."""

import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import mixaug
from helpers import index_images, seeded
from mixaug import functional as F
from mixaug import models
from mixaug.ops import gridcut
from mixaug.policies import puzzlemix as module
from mixaug.signals import Signals

PARTNER = torch.tensor([1, 2, 3, 0])


def smooth(*shape, seed=0):
    maps = torch.rand(shape, generator=seeded(seed)) ** 3
    return torch.nn.functional.avg_pool2d(maps.reshape(-1, 1, *shape[-2:]), 5, 1, 2).reshape(shape)


def problem(count, n, labels, seed=0):
    images = smooth(count, 3, 32, 32, seed=seed) * 2
    partner = torch.randperm(count, generator=seeded(seed))
    costs = F.puzzlemix_costs(images, partner, smooth(count, 32, 32, seed=seed + 1), block_num=n, std=1.0)
    lam = torch.rand(count, generator=seeded(seed + 2))
    return [x.double() for x in F.puzzlemix_energy(*costs, lam, n_labels=labels)]


@pytest.mark.parametrize("shape", [(2, 2), (2, 3), (3, 2), (1, 4)], ids=str)
@pytest.mark.parametrize("labels", [2, 3])
def test_cut_against_all_labellings(shape, labels):
    g = seeded(1)
    unary = torch.rand(5, *shape, labels, generator=g, dtype=torch.float64)
    down = torch.rand(5, shape[0] - 1, shape[1], generator=g, dtype=torch.float64)
    right = torch.rand(5, shape[0], shape[1] - 1, generator=g, dtype=torch.float64)
    every = itertools.product(range(labels), repeat=shape[0] * shape[1])
    energies = [
        gridcut.cut_energy(torch.tensor(one).reshape(1, *shape).expand(5, *shape), unary, down, right) for one in every
    ]
    least = torch.stack(energies).amin(0)
    for solver in (gridcut.grid_cut, gridcut.exact_grid_cut):
        found = gridcut.cut_energy(solver(unary, down, right), unary, down, right)
        torch.testing.assert_close(found, least, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("body", ["host", "device"])
@pytest.mark.parametrize(("n", "labels"), [(4, 3), (4, 4), (8, 2), (8, 3), (8, 4), (16, 2), (16, 3), (16, 4)])
def test_cut_within_one_percent_of_the_minimum(n, labels, body):
    costs = problem(24, n, labels, seed=3)
    exact = gridcut.cut_energy(gridcut.exact_grid_cut(*costs), *costs)
    gap = gridcut.cut_energy(gridcut.grid_cut(*costs, read=body == "host"), *costs) / exact - 1
    assert gap.min() > -1e-5
    assert gap.max() < (1e-5 if labels**n <= gridcut.MOST_STATES else 0.01)
    assert gap.mean() < 1e-3


def test_bound_of_the_chains_is_a_bound():
    costs = problem(16, 8, 3, seed=4)
    exact = gridcut.cut_energy(gridcut.exact_grid_cut(*costs), *costs)
    arrays = [cost.float().movedim(0, -1).contiguous().numpy() for cost in costs]
    chains = gridcut._Chains(gridcut.np, *arrays)
    last = None
    for _ in range(5):
        chains.ascend(1)
        _, energy, bound = (torch.as_tensor(value) for value in chains.labels())
        assert (bound <= exact + 1e-5).all()
        assert (energy >= exact - 1e-5).all()
        assert last is None or (bound >= last - 1e-5).all(), "every round raises the bound"
        last = bound


def slow_costs(images, partner, saliency, n, beta, gamma, cell):
    """The sheet's formulas, block by block."""
    count, side = images.shape[0], images.shape[2] // n
    own = torch.nn.functional.avg_pool2d(saliency[:, None], side)[:, 0]
    own = own / own.sum((1, 2), keepdim=True)
    keep_own, keep_partner = own[partner].clone(), own.clone()
    pooled = torch.nn.functional.avg_pool2d(images, cell)
    k = side // cell
    edges = torch.zeros(count, n - 1, n), torch.zeros(count, n, n - 1)
    weight = beta / (16 * n) * gamma
    for b, y, x, down in itertools.product(range(count), range(n), range(n), (True, False)):
        y2, x2 = (y + 1, x) if down else (y, x + 1)
        if max(y2, x2) == n:
            continue
        both = pooled[partner[b]], pooled[b]

        def d(p, q, both=both, y=y, x=x, down=down):
            if down:
                first = both[p][:, (y + 1) * k - 1, x * k : (x + 1) * k]
                second = both[q][:, (y + 1) * k, x * k : (x + 1) * k]
            else:
                first = both[p][:, y * k : (y + 1) * k, (x + 1) * k - 1]
                second = both[q][:, y * k : (y + 1) * k, (x + 1) * k]
            return weight * (first - second).abs().mean()

        keep_own[b, y, x] += (d(1, 0) + d(1, 1)) / 2
        keep_partner[b, y, x] += (d(0, 1) + d(0, 0)) / 2
        keep_own[b, y2, x2] += (d(0, 1) + d(1, 1)) / 2
        keep_partner[b, y2, x2] += (d(1, 0) + d(0, 0)) / 2
        edges[0 if down else 1][b, y, x] = (d(1, 0) + d(0, 1) - d(1, 1) - d(0, 0)) / 2
    return keep_own, keep_partner, *edges


@pytest.mark.parametrize(("n", "neigh"), [(2, 4), (4, 4), (8, 2), (2, 3)])
def test_costs_against_slow_twin(n, neigh):
    images, saliency = smooth(4, 3, 24, 24), smooth(4, 24, 24, seed=1)
    got = F.puzzlemix_costs(images, PARTNER, saliency, block_num=n, neigh_size=neigh, std=1.0)
    cell = module.largest_divisor(24 // n, neigh)
    for ours, theirs in zip(got, slow_costs(images, PARTNER, saliency, n, 1.2, 0.5, cell), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def slow_moves(saliency, visible, t_eps):
    """One map (t, u), cell by cell, as the sheet tells it."""
    rows, columns = saliency.shape
    cells = [(y, x) for y in range(rows) for x in range(columns)]
    span = max(rows - 1, 1), max(columns - 1, 1)
    cost = [[t_eps * (((y - v) / span[0]) ** 2 + ((x - u) / span[1]) ** 2)
             - float(saliency[y, x]) * bool(visible[v, u]) for v, u in cells] for y, x in cells]  # fmt: skip
    for _ in range(max(rows, columns)):
        wishes = [min(range(len(cells)), key=lambda j, c=c: (round(c[j], 9), j)) for c in cost]
        winner = {}
        for i, j in enumerate(wishes):
            if cost[i][j] < 0 and (j not in winner or cost[i][j] < cost[winner[j]][j] - 1e-12):
                winner[j] = i
        for i, j in enumerate(wishes):
            if winner.get(j) != i:
                cost[i][j] += 1
    return torch.tensor([winner.get(j, j) for j in range(len(cells))]).reshape(rows, columns)


@pytest.mark.parametrize("body", ["host", "device"])
@pytest.mark.parametrize("grid", [(2, 2), (4, 4), (8, 8), (3, 5), (1, 4)], ids=str)
def test_moves_against_slow_twin(grid, body, monkeypatch):
    if body == "device":
        monkeypatch.setattr("mixaug.ops.transport.reads_freely", lambda *tensors: False)
    g = seeded(5)
    saliency = torch.rand(6, *grid, generator=g) ** 6
    saliency = saliency / saliency.sum((1, 2), keepdim=True)
    visible = torch.rand(6, *grid, generator=g) < 0.4
    got = F.puzzlemix_moves(saliency, visible, t_eps=0.8)
    moved = 0
    for row in range(6):
        expected = slow_moves(saliency[row].double(), visible[row], 0.8)
        assert torch.equal(got[row][visible[row]], expected[visible[row]])
        moved += (expected != torch.arange(expected.numel()).reshape(grid)).sum()
        shown = got[row][visible[row]]
        assert len(shown.unique()) == len(shown), "no cell is shown twice"
    assert moved > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("halves", [0.1, 0.9])
def test_blend_against_slow_twin_in_both_bodies(dtype, layout, halves, monkeypatch):
    g = seeded(6)
    images = (torch.rand(4, 3, 16, 24, generator=g) * 255).to(dtype).contiguous(memory_format=layout)
    blocks = (torch.rand(4, 2, 2, generator=g) < 0.5).float()
    blocks[torch.rand(4, 2, 2, generator=g) < halves] = 0.5
    moves = torch.randint(16, (4, 4, 4), generator=g), torch.randint(16, (4, 4, 4), generator=g)
    host = F.puzzlemix_blend(images, PARTNER, blocks, moves)
    monkeypatch.setattr("mixaug.ops.cells.reads_freely", lambda *tensors: False)
    device = F.puzzlemix_blend(images, PARTNER, blocks, moves)
    for mixed in (host, device):
        assert mixed.dtype == dtype
        assert mixed.stride() == images.stride()
    for b, y, x in itertools.product(range(4), range(4), range(4)):

        def cell(image, k):
            return image[:, k // 4 * 4 : k // 4 * 4 + 4, k % 4 * 6 : k % 4 * 6 + 6].double()

        share = blocks[b, y // 2, x // 2].double()
        own, other = cell(images[b], int(moves[0][b, y, x])), cell(images[PARTNER[b]], int(moves[1][b, y, x]))
        expected = share * own + (1 - share) * other
        slack = {torch.uint8: 0.5, torch.bfloat16: 1.0}.get(dtype, 1e-4)
        for mixed in (host, device):
            got = mixed[b, :, y * 4 : y * 4 + 4, x * 6 : x * 6 + 6].double()
            assert (got - expected).abs().max() <= slack


def test_salient_halves_are_shown():
    saliency = torch.full((4, 32, 32), 1e-3)
    saliency[0::2, :, :16] = 1.0
    saliency[1::2, :, 16:] = 1.0
    images = index_images(4, 3, 32, 32)
    mixed, lam, mask, _ = F.puzzlemix(
        images, PARTNER, torch.tensor([0.5]), saliency, block_num=4, transport=False, mean=0, std=1
    )
    assert mask[0, 0, :, :16].min() == 1
    assert mask[0, 0, :, 16:].max() == 0
    assert lam.tolist() == [0.5] * 4
    assert torch.equal(mixed[0, :, :, :16], images[0, :, :, :16])


def test_hidden_salient_block_moves_into_sight():
    saliency = torch.full((1, 4, 4), 0.01)
    saliency[0, 0, 1] = 0.85
    visible = torch.zeros(1, 4, 4, dtype=torch.bool)
    visible[0, :, 2:] = True
    assert F.puzzlemix_moves(saliency, visible)[0, 0, 2] == 1


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), 1e-44, 1e38])
def test_dead_saliency_is_even(value):
    images = torch.rand(4, 3, 16, 16, generator=seeded(7))
    assert torch.allclose(F.pooled_saliency(torch.full((4, 16, 16), value), 4), torch.tensor(1 / 16))
    policy = mixaug.create("puzzlemix", block_nums=(4,))
    mixed = policy(images, signals=Signals(saliency=torch.full((4, 16, 16), value)), generator=seeded(8))
    assert mixed.inputs.isfinite().all()
    assert mixed.weights.isfinite().all()


@pytest.mark.parametrize("transport", [True, False])
@pytest.mark.parametrize("n_labels", [2, 3])
def test_plan_replays_and_weights_are_the_mask(transport, n_labels):
    images, saliency = smooth(6, 3, 16, 24), smooth(6, 16, 24, seed=1)
    policy = mixaug.create("puzzlemix", block_nums=(4,), transport=transport, n_labels=n_labels, t_size=2)
    mixed = policy(images, torch.arange(6), signals=Signals(saliency=saliency), generator=seeded(9))
    assert torch.equal(mixed.apply(images), mixed.inputs)
    torch.testing.assert_close(mixed.lam, mixed.mask.mean((1, 2, 3)))
    label_map = torch.arange(6)[:, None, None].expand(6, 16, 24).contiguous()
    shares = mixed.apply(label_map, num_classes=6)
    torch.testing.assert_close(shares.sum(1), torch.ones(6, 16, 24))
    torch.testing.assert_close(shares.mean((2, 3)), mixed.targets(6))
    if n_labels == 2:
        assert (mixed.apply(label_map)[:, None] == mixed.sources[:, :, None, None]).any(1).all()


def test_prior_moves_the_share():
    images, saliency = smooth(32, 3, 32, 32), smooth(32, 32, 32, seed=1)
    shares = []
    for ratio in (0.1, 0.5, 0.9):
        policy = mixaug.create("puzzlemix", block_nums=(4,), ratio=ratio, transport=False)
        shares.append(policy(images, signals=Signals(saliency=saliency), generator=seeded(1)).lam.mean().item())
    assert shares[0] < 0.35 < shares[1] < 0.65 < shares[2]


def test_every_block_count_that_fits_is_drawn():
    images, signals = torch.rand(2, 3, 24, 48), Signals(saliency=torch.rand(2, 24, 48))
    policy, generator = mixaug.create("puzzlemix"), seeded(10)
    counts = [policy(images, signals=signals, generator=generator).plan.blocks.shape[1] for _ in range(60)]
    assert set(counts) == {2, 4, 8}, "16 does not divide 24"
    assert min(counts.count(n) for n in (2, 4, 8)) > 8


@pytest.mark.parametrize("n", [2, 8])
def test_no_value_is_read_on_a_device(n):
    with FakeTensorMode():
        images = torch.empty(6, 3, 32, 48, device="cuda")
        signals = Signals(saliency=torch.empty(6, 32, 48, device="cuda"))
        mixed = mixaug.create("puzzlemix", block_nums=(n,))(images, signals=signals)
        assert mixed.inputs.device.type == "cuda"


def test_device_bodies_give_gradients_that_count_pixels():
    images = smooth(4, 3, 16, 16).requires_grad_()
    policy = mixaug.create("puzzlemix", block_nums=(4,))
    policy(images, signals=Signals(saliency=smooth(4, 16, 16, seed=2)), generator=seeded(3)).inputs.sum().backward()
    assert images.grad.sum().item() == pytest.approx(images.numel(), rel=1e-4)


@pytest.mark.parametrize("clean_weight", [0.0, 0.5])
def test_training_step_keeps_the_clean_loss_if_asked(clean_weight):
    torch.manual_seed(0)
    model = models.create("cifar_resnet8", num_classes=5)
    images, labels = torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 3])
    policy = mixaug.create("puzzlemix", clean_weight=clean_weight, block_nums=(4,))
    step = mixaug.MixStep(model, policy, mixaug.losses.MixedCrossEntropy())
    loss, scalars = step(images, labels, seeded(1))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert ("clean_loss" in scalars) == (clean_weight > 0)
    if clean_weight:
        reference = torch.nn.functional.cross_entropy(model(images), labels)
        assert scalars["clean_loss"].item() == pytest.approx(clean_weight * reference.item(), rel=1e-4)


def test_perturbation_stays_small_and_inside():
    torch.manual_seed(0)
    model = models.create("cifar_resnet8", num_classes=5)
    images, labels = torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 3])
    policy = mixaug.create("puzzlemix", adv_p=1.0, mean=0, std=1, block_nums=(2,))
    plan = policy.draw(images, labels, signals=model, generator=seeded(2))
    (noise,) = plan.noise
    assert plan.noisy == (True, True)
    assert 0 < noise.abs().max() <= 10 / 255 + 1e-6
    mixed = plan.mix(images)
    assert (mixed >= 0).all()
    assert (mixed <= 1).all()
    assert (mixed - F.puzzlemix_blend(images, plan.partner, plan.blocks, plan.moves)).abs().max() <= 10 / 255 + 1e-6
    with pytest.raises(ValueError, match="signals=model"):
        policy(images, labels, signals=Signals(saliency=torch.rand(4, 16, 16)))


def test_noise_on_one_side_alone():
    images, noise = torch.rand(4, 3, 8, 8, generator=seeded(1)), torch.full((4, 3, 8, 8), 0.1)
    blocks = torch.zeros(4, 2, 2)
    blocks[:, 0] = 1
    mixed = module._blend_noisy(images, PARTNER, blocks, None, noise, (True, False), ((0.0,), (1.0,)))
    torch.testing.assert_close(mixed[:, :, :4], (images + 0.1).clamp(0, 1)[:, :, :4])
    assert torch.equal(mixed[:, :, 4:], images[PARTNER][:, :, 4:])


def test_bad_input():
    images, saliency = torch.rand(4, 3, 16, 16), torch.rand(4, 16, 16)
    signals = Signals(saliency=saliency)
    with pytest.raises(ValueError, match=r"size \(15, 9\); \[1, 3\] do"):
        mixaug.create("puzzlemix")(images[..., :15, :9], signals=Signals(saliency=saliency[:, :15, :9]))
    with pytest.raises(ValueError, match="needs saliency"):
        mixaug.create("puzzlemix")(images)
    with pytest.raises(ValueError, match=r"expects saliency \(4, 16, 16\)"):
        mixaug.create("puzzlemix")(images, signals=Signals(saliency=saliency[:, :8]))
    with pytest.raises(ValueError, match="block_num must divide 16"):
        F.puzzlemix(images, PARTNER, torch.tensor([0.5]), saliency, block_num=3)
    policy = mixaug.create("puzzlemix", clean_weight=1.0)
    mixed = policy(images, signals=signals)
    with (
        policy.tap(models.create("cifar_resnet8", num_classes=3), mixed, signals) as seen,
        pytest.raises(ValueError, match="comes with a saliency taken from a model"),
    ):
        policy.auxiliary_loss(mixed, seen)
    for options, message in (
        ({"n_labels": 1}, "n_labels as an integer >= 2"),
        ({"block_nums": ()}, "block_nums as an integer >= 1"),
        ({"gamma": -1.0}, "gamma as a number that is not negative"),
        ({"t_size": 0}, "t_size as an integer >= 1"),
        ({"adv_p": 0.1}, "pass mean and std"),
        ({"clean_weight": float("nan")}, "clean_weight"),
    ):
        with pytest.raises(ValueError, match=message):
            mixaug.create("puzzlemix", **options)
    with pytest.raises(ValueError, match="edges_v"):
        gridcut.grid_cut(torch.rand(1, 2, 2, 3), torch.rand(1, 2, 2), torch.rand(1, 2, 1))
