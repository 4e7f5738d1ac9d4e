"""GridMix beyond the contract: the lattice against a loop over pixels, and its statistics."""

import math

import pytest
import torch

import mixaug
from helpers import seeded
from mixaug import functional as F
from mixaug.policies.gridmix import gridmix_mask


def slow_mask(size, lam, n_holes, hole_aspect, area_ratio, aspect, u_y, u_x):
    height, width = size
    area = int(height * width * area_ratio)
    crop_w = int(math.sqrt(area / aspect))
    crop_h = min(max(int(crop_w * aspect), 1), height)
    crop_w = min(max(crop_w, 1), width)
    columns = max(min(n_holes, crop_w // 2), 1)
    cell_w = math.ceil(crop_w / columns)
    cell_h = max(int(cell_w * hole_aspect), 1)
    root = math.sqrt(1 - lam)
    hole_w = min(max(int(cell_w * root), 1), cell_w - 1)
    hole_h = min(max(int(cell_h * root), 1), cell_h - 1)
    y0, x0 = int((height - crop_h) * u_y), int((width - crop_w) * u_x)
    own = torch.ones(size, dtype=torch.bool)
    for y in range(y0, y0 + crop_h):
        for x in range(x0, x0 + crop_w):
            if (y - y0) % cell_h < hole_h and (x - x0) % cell_w < hole_w:
                own[y, x] = False
    return own


def draws(count, seed=0):
    generator = seeded(seed)
    unit = [torch.rand(count, generator=generator, dtype=torch.float64) for _ in range(6)]
    return {
        "lam": unit[0],
        "n_holes": torch.randint(1, 9, (count,), generator=generator),
        "hole_aspect": 0.5 + unit[1],
        "crop_area_ratio": 0.3 + 0.7 * unit[2],
        "crop_aspect_ratio": 0.5 + 1.5 * unit[3],
        "u_y": unit[4],
        "u_x": unit[5],
    }


@pytest.mark.parametrize("size", [(16, 16), (9, 21), (1, 7), (30, 4)], ids=str)
def test_against_slow_twin(size):
    drawn = draws(40)
    drawn["lam"][:2] = torch.tensor([0.0, 1.0])
    mask, share = gridmix_mask(drawn["lam"], size, **{k: v for k, v in drawn.items() if k != "lam"})
    for row in range(40):
        values = [v[row].item() for v in drawn.values()]
        expected = slow_mask(size, *values)
        assert torch.equal(mask[row, 0], expected), row
        assert share[row].item() == pytest.approx(expected.double().mean().item(), abs=1e-6)


def test_function_mixes_by_the_mask():
    images = torch.rand(6, 3, 12, 10, generator=seeded(1))
    drawn, partner = draws(6), torch.tensor([1, 2, 3, 4, 5, 0])
    mixed, lam = F.gridmix(images, partner, **drawn)
    mask, share = gridmix_mask(drawn.pop("lam"), (12, 10), **drawn)
    assert torch.equal(mixed, torch.where(mask, images, images[partner]))
    assert torch.equal(lam, share)


def test_mean_own_weight_at_32_pixels():
    # 0.735 in simulations of the reference with draws whose crop fits; clamped crops add holes the reference loses.
    lam = mixaug.create("gridmix")(torch.zeros(20_000, 1, 32, 32), generator=seeded(2)).lam.double()
    assert 0.68 < lam.mean() < 0.76


def test_no_share_is_ever_all_or_nothing():
    lam = mixaug.create("gridmix", ratio=1.0)(torch.zeros(500, 1, 32, 32), generator=seeded(3)).lam
    assert (lam < 1).all(), "every cell keeps a hole of one pixel"
    lam = mixaug.create("gridmix", ratio=0.0)(torch.zeros(500, 1, 32, 32), generator=seeded(3)).lam
    assert (lam > 0).all(), "a row and a column of every cell stay own"


@pytest.mark.parametrize(("options", "message"), [
    ({"n_holes": (0, 3)}, r"n_holes as \(low, high\), 1 <= low <= high"),
    ({"n_holes": (2.5, 3)}, "n_holes as whole numbers"),
    ({"crop_area": (0.5, 1.5)}, "crop_area as"),
    ({"crop_aspect": (2.0, 1.0)}, "crop_aspect as"),
    ({"hole_aspect": (0.0, 1.0)}, "hole_aspect as"),
])  # fmt: skip
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        mixaug.create("gridmix", **options)


def test_bad_draws():
    drawn = draws(4)
    with pytest.raises(ValueError, match=r"n_holes \(4,\) int64"):
        F.gridmix(torch.zeros(4, 1, 8, 8), torch.arange(4), **{**drawn, "n_holes": drawn["lam"]})
    with pytest.raises(ValueError, match=r"u_x \(4,\) floating point"):
        F.gridmix(torch.zeros(4, 1, 8, 8), torch.arange(4), **{**drawn, "u_x": drawn["u_x"][:2]})


@pytest.mark.parametrize("rows", [500, pytest.param(1500, marks=pytest.mark.slow)])
def test_mean_share_equals_that_of_the_slow_twin(rows):
    drawn = draws(rows, seed=5)
    drawn["n_holes"] = torch.randint(2, 7, (rows,), generator=seeded(6))
    drawn["hole_aspect"] = torch.ones(rows, dtype=torch.float64)
    drawn["crop_area_ratio"] = 0.5 + 0.5 * torch.rand(rows, generator=seeded(7), dtype=torch.float64)
    slow = [slow_mask((32, 32), *(v[row].item() for v in drawn.values())).double().mean() for row in range(rows)]
    expected = torch.stack(slow)
    lam = mixaug.create("gridmix")(torch.zeros(20_000, 1, 32, 32), generator=seeded(8)).lam.double()
    assert abs(lam.mean() - expected.mean()) < 4 * (expected.var() / rows + lam.var() / len(lam)).sqrt()


def test_a_crop_larger_than_the_image_neither_wraps_nor_vanishes():
    one = torch.ones(1, dtype=torch.float64)
    mask, _ = gridmix_mask(
        one / 2,
        (32, 32),
        n_holes=torch.tensor([2]),
        hole_aspect=one,
        crop_area_ratio=one,
        crop_aspect_ratio=2 * one,  # 44 rows and 22 columns
        u_y=0.9 * one,
        u_x=0 * one,
    )
    holes = ~mask[0, 0]
    assert holes[0].any()
    assert holes.any(0).nonzero().max() < 22
