"""TokenMix beyond the contract: masks against a loop, labels by content against sums, signals through a step."""

import math

import pytest
import torch

import mixaug
from helpers import seeded
from mixaug import functional as F
from mixaug import models
from mixaug.losses import MixedCrossEntropy
from mixaug.policies import tokenmix as module

LABELS = torch.tensor([0, 3, 1, 4, 2, 2])


def pictures(batch=6, size=(32, 32)):
    return torch.rand(batch, 3, *size, generator=seeded(0))


def vit(depth=2):
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.models.vision_transformer.VisionTransformer(
            img_size=32, patch_size=8, embed_dim=32, depth=depth, num_heads=2, num_classes=5
        )


def slow_blocks(units, target, rows, columns):
    """One mask as the authors' code makes it, from the same random numbers."""
    masked = [[0] * columns for _ in range(rows)]
    count = 0
    for proposals in units.tolist():
        for u_area, u_aspect, u_top, u_left in proposals:
            left_over = target - count
            if left_over <= 0:
                return torch.tensor(masked).bool()
            area = 1 + u_area * (left_over - 1)
            aspect = math.exp(math.log(0.3) + u_aspect * 2 * math.log(1 / 0.3))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height >= max(rows, 2) or width >= max(columns, 2):
                continue
            top, left = int(u_top * (rows - height + 1)), int(u_left * (columns - width + 1))
            cells = [(y, x) for y in range(top, top + height) for x in range(left, left + width) if not masked[y][x]]
            if 0 < len(cells) <= left_over:
                for y, x in cells:
                    masked[y][x] = 1
                count += len(cells)
                break
        else:
            return torch.tensor(masked).bool()
    return torch.tensor(masked).bool()


@pytest.mark.parametrize("grid", [(14, 14), (5, 7), (1, 9), (9, 1), (1, 1), (2, 2)], ids=str)
def test_blocks_against_slow_twin(grid):
    total = math.prod(grid)
    units = torch.rand(40, 30, 10, 4, dtype=torch.float64, generator=seeded(1))
    count = torch.randint(0, total + 1, (40,), generator=seeded(2))
    tokens = F.tokenmix_blocks(units, count, grid)
    assert tokens.shape == (40, 1, *grid)
    for row in range(40):
        assert torch.equal(tokens[row, 0], slow_blocks(units[row], int(count[row]), *grid))
    assert (tokens.flatten(1).sum(1) <= count).all()


def test_traced_and_read_freely_or_not_the_blocks_are_the_same(monkeypatch):
    units, count = torch.rand(8, 30, 10, 4, generator=seeded(3)), torch.arange(0, 160, 20)
    plain = F.tokenmix_blocks(units, count, (14, 14))
    traced = torch.compile(F.tokenmix_blocks, fullgraph=True, backend="eager")(units, count, (14, 14))
    assert torch.equal(traced, plain)
    monkeypatch.setattr(module, "reads_freely", lambda *tensors: False)
    assert torch.equal(F.tokenmix_blocks(units, count, (14, 14)), plain)


@pytest.mark.parametrize("grid", [(14, 14), (24, 24)])
def test_rounds_suffice(grid):
    units = torch.rand(800, 2 * module.ROUNDS, 10, 4, generator=seeded(4))
    count = F.tokenmix_count(torch.rand(800, generator=seeded(5)), math.prod(grid), math.prod(grid) // 14)
    cut = F.tokenmix_blocks(units[:, : module.ROUNDS], count, grid)
    assert (cut == F.tokenmix_blocks(units, count, grid)).flatten(1).all(1).float().mean() > 0.998


def test_random_mode_covers_the_count_and_the_mean_share_is_derived():
    policy = mixaug.create("tokenmix", mode="random", grid=14, labeling="area")
    plan = policy.draw(torch.zeros(20_000, 1, 14, 14), generator=seeded(6))
    count = F.tokenmix_count(plan.lam.double(), 196, 14)
    # lam is stored in float32: one token more or less where it lies on a border.
    assert ((~plan.mask).flatten(1).sum(1) - count).abs().max() <= 1
    area = plan.area().double()
    expected = 1 - sum(min(196, k + 14) for k in range(196)) / 196**2
    assert abs(area.mean() - expected) < 4 * area.std() / math.sqrt(len(area))
    frequency = (~plan.mask).float().mean(0)
    assert (frequency - (1 - expected)).abs().max() < 5 * 0.5 / math.sqrt(20_000)


def test_blocks_fall_short_as_often_as_published():
    policy = mixaug.create("tokenmix", grid=14, labeling="area")
    plan = policy.draw(torch.zeros(3000, 1, 14, 14), generator=seeded(7))
    covered = (~plan.mask).flatten(1).sum(1)
    target = F.tokenmix_count(plan.lam.double(), 196, 14)
    assert (covered <= target + 1).all()
    # 25 % at alpha 1, measured on the published code.
    assert 0.2 < (covered < target).float().mean() < 0.3


@pytest.mark.parametrize(
    ("options", "size", "grid"),
    [
        ({}, (224, 224), (14, 14)),
        ({}, (32, 32), (8, 8)),
        ({}, (7, 5), (7, 5)),
        ({}, (1, 1), (1, 1)),
        ({"patch_size": 16}, (7, 5), (1, 1)),
        ({"patch_size": (16, 8)}, (40, 40), (2, 5)),
        ({"grid": 14}, (7, 30), (7, 14)),
        ({"grid": (2, 3)}, (33, 8), (2, 3)),
    ],
)
def test_token_grid(options, size, grid):
    policy = mixaug.create("tokenmix", labeling="area", mode="random", ratio=0.4, minimum_tokens=1, **options)
    assert policy._grid(size) == grid
    plan = policy.draw(torch.zeros(3, 1, *size), generator=seeded(8))
    torch.testing.assert_close(plan.area(), plan.mask.float().mean((1, 2)))
    # Pixel (y, x) belongs to token (floor(y h / H), floor(x w / W)).
    rows, columns = (torch.arange(size[d]) * grid[d] // size[d] for d in range(2))
    token = rows[:, None] * grid[1] + columns
    for shown in plan.mask:
        assert all(shown[token == t].unique().numel() == 1 for t in range(math.prod(grid)))


def test_one_mask_for_the_batch():
    policy = mixaug.create("tokenmix", per="batch", labeling="area")
    assert policy.draw(pictures(), generator=seeded(9)).mask.shape[0] == 1


def test_content_against_slow_sums():
    maps = torch.rand(6, 8, 8, generator=seeded(10)) ** 3
    policy = mixaug.create("tokenmix")
    mixed = policy(pictures(), LABELS, signals=mixaug.Signals(attention=maps), generator=seeded(11))
    tokens = mixed.plan.mask[:, ::4, ::4]
    for row in range(6):
        own, other = maps[row] / maps[row].sum(), maps[mixed.partner[row]] / maps[mixed.partner[row]].sum()
        expected = [
            sum(float(own[y, x]) for y in range(8) for x in range(8) if tokens[row, y, x]),
            sum(float(other[y, x]) for y in range(8) for x in range(8) if not tokens[row, y, x]),
        ]
        torch.testing.assert_close(mixed.weights[row], torch.tensor(expected), rtol=0, atol=1e-5)
    assert (mixed.weights.sum(1) - 1).abs().max() > 0.05, "shares of two maps do not sum to 1"


def test_an_even_map_gives_the_area_and_a_peak_all_or_nothing():
    policy = mixaug.create("tokenmix", mode="random", pairing="shift")
    even = policy(pictures(), signals=mixaug.Signals(attention=torch.ones(6, 8, 8)), generator=seeded(12))
    torch.testing.assert_close(even.lam, even.plan.area(), rtol=0, atol=1e-5)
    torch.testing.assert_close(even.weights.sum(1), torch.ones(6))
    peak = torch.zeros(6, 8, 8)
    peak[:, 2, 5] = 3e38
    mixed = policy(pictures(), signals=mixaug.Signals(attention=peak), generator=seeded(12))
    shown = mixed.plan.mask[:, 8, 20].float()
    torch.testing.assert_close(mixed.weights, torch.stack([shown, 1 - shown], 1))


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), 1e-30, 3e38])
def test_maps_that_say_nothing_give_the_area(value):
    for source in ("attention", "cam"):
        signals = mixaug.Signals(**{source: torch.full((6, 8, 8), value)})
        mixed = mixaug.create("tokenmix", labels_from=source)(pictures(), signals=signals, generator=seeded(13))
        torch.testing.assert_close(mixed.lam, mixed.plan.area(), rtol=0, atol=1e-5)


def test_maps_of_another_size_are_averaged():
    maps = torch.rand(2, 3, 4, generator=seeded(14))
    large = F.content_map(maps, (9, 8))
    torch.testing.assert_close(large[:, 1::3, ::2], maps / maps.sum((1, 2), keepdim=True) / 6)
    small = F.content_map(large, (3, 4))
    torch.testing.assert_close(small, maps / maps.sum((1, 2), keepdim=True))
    assert F.content_map(maps.half(), (1, 1)).dtype == torch.float32


def test_area_labels_need_no_model():
    policy = mixaug.create("tokenmix", labeling="area")
    assert policy.needs == frozenset()
    assert mixaug.describe("tokenmix").needs == {"attention"}
    mixed = policy(pictures(), LABELS, generator=seeded(15))
    torch.testing.assert_close(mixed.lam, mixed.mask.mean((1, 2, 3)))


def test_content_labels_for_other_policies():
    maps = torch.rand(6, 16, 16, generator=seeded(16))
    signals = mixaug.Signals(cam=maps, attention=maps)
    cut = mixaug.create("cutmix", labeling=module.Content("cam"))
    assert cut.needs == {"cam"}
    mixed = cut(pictures(), LABELS, signals=signals, generator=seeded(17))
    cam = signals.cam((32, 32))
    own = (cam * mixed.mask[:, 0]).sum((1, 2))
    other = (cam[mixed.partner] * (1 - mixed.mask[:, 0])).sum((1, 2))
    torch.testing.assert_close(mixed.weights, torch.stack([own, other], 1), rtol=0, atol=1e-5)
    blend = mixaug.create("mixup").draw(pictures(), LABELS, generator=seeded(18))
    batch = mixaug.Batch(pictures(), LABELS, signals)
    torch.testing.assert_close(mixaug.labeling.Content()(blend, batch)[:, 0], blend.lam.expand(len(LABELS)))
    # Where the partner's pixels move, its map moves along.
    peaks = torch.zeros(6, 4, 4)
    peaks[:, 3, 3] = 1
    moved = mixaug.Signals(attention=peaks, outputs=torch.zeros(6, 5))
    policy = mixaug.create("smmix", labeling="content", minmax=(0.25, 0.25))
    mixed = policy(pictures(), LABELS, signals=moved, generator=seeded(19))
    assert mixed.weights.tolist() == [[1.0, 1.0]] * 6


def test_content_targets_against_a_loop():
    weights, sources = (
        torch.rand(6, 2, generator=seeded(20)),
        torch.stack([torch.arange(6), torch.arange(6).flip(0)], 1),
    )
    got = F.content_targets(weights, LABELS, sources, 5, 0.1)
    for row in range(6):
        expected = [0.1 / 5] * 5
        for source, weight in zip(sources[row].tolist(), weights[row].tolist(), strict=True):
            expected[int(LABELS[source])] += weight - 0.05
        torch.testing.assert_close(got[row], torch.tensor(expected))
    torch.testing.assert_close(got.sum(1), weights.sum(1))


@pytest.mark.parametrize("source", ["attention", "cam"])
@pytest.mark.parametrize("backbone", ["vit", "cifar_resnet8"])
def test_a_training_step(source, backbone):
    model = vit() if backbone == "vit" else models.create(backbone, num_classes=5)
    calls = []
    model.register_forward_pre_hook(lambda module, inputs: calls.append((module.training, torch.is_grad_enabled())))
    policy = mixaug.create("tokenmix", labels_from=source)
    step = mixaug.MixStep(model, policy, MixedCrossEntropy())
    loss, _ = step(pictures(), LABELS, generator=seeded(21))
    loss.backward()
    assert calls == [(False, False), (True, True)]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in step.parameters())
    # The same weights from the same signals, given.
    clean = mixaug.ModelSignals(model).of(pictures(), LABELS)
    found = clean.attention((32, 32)) if source == "attention" else clean.cam((32, 32))
    given = policy(pictures(), LABELS, signals=mixaug.Signals(**{source: found}), generator=seeded(21))
    asked = policy(pictures(), LABELS, signals=model, generator=seeded(21))
    torch.testing.assert_close(given.weights, asked.weights, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "square"}, "mode 'block' or 'random', got 'square'"),
        ({"labels_from": "saliency"}, "'attention' or 'cam', got 'saliency'"),
        ({"patch_size": 0}, "patch_size as an integer >= 1"),
        ({"grid": -3}, "as an integer >= 1"),
        ({"grid": 4, "patch_size": 4}, "not both"),
        ({"minimum_tokens": -1}, "minimum_tokens as an integer >= 0, got -1"),
        ({"minimum_tokens": 1.5}, "minimum_tokens as an integer >= 0, got 1.5"),
        ({"labeling": "weight"}, "unknown labeling"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        mixaug.create("tokenmix", **options)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"needs attention of the model: train through mixaug.MixStep"):
        mixaug.create("tokenmix")(pictures())
    with pytest.raises(ValueError, match=r"lack: pass Signals\(attention=...\)"):
        mixaug.create("tokenmix")(pictures(), signals=mixaug.Signals(cam=torch.rand(6, 4, 4)))
    with pytest.raises(ValueError, match=r"patch_size as one number or one for each of 2 axes, got \(1, 2, 3\)"):
        mixaug.create("tokenmix", patch_size=(1, 2, 3), labeling="area")
    with pytest.raises(ValueError, match=r"tokens \(B, 1, h, w\) bool"):
        F.tokenmix(pictures(), torch.arange(6), torch.zeros(6, 1, 4, 4))
    with pytest.raises(ValueError, match=r"6 rows of tokens, or one for all, got 2"):
        F.tokenmix(pictures(), torch.arange(6), torch.zeros(2, 1, 4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"units \(R, N, K, 4\)"):
        F.tokenmix_blocks(torch.rand(2, 3, 4), torch.tensor([1, 2]), (2, 2))
    with pytest.raises(ValueError, match=r"attempts \(R, N, 4\)"):
        F.tokenmix_replay(torch.rand(2, 4), torch.tensor([1, 2]), (2, 2))
    with pytest.raises(ValueError, match="own_mask of that size"):
        F.content_shares(torch.rand(2, 3, 3), torch.rand(2, 3, 3), torch.ones(2, 4, 3))
