"""FMix beyond the contract: exact areas, both selections, the spectrum."""

import math

import numpy as np
import pytest
import torch

import mixaug
from helpers import seeded
from mixaug import functional as F
from mixaug.policies import fmix as module


def noise(rows, size, seed=0, **options):
    shape = module.fourier_noise_shape(size, **options)
    return torch.randn(rows, *shape, generator=seeded(seed), dtype=torch.float64)


def slow_largest(scores, count):
    mask = torch.zeros_like(scores, dtype=torch.bool)
    for row, k in enumerate(count.tolist()):
        order = sorted(range(scores.shape[1]), key=lambda place: (-scores[row, place].item(), place))
        mask[row, order[:k]] = True
    return mask


@pytest.mark.parametrize("select", [module._largest_by_sort, module._largest_by_partition])
@pytest.mark.parametrize("ties", [False, True])
def test_both_selections_equal_the_slow_twin(select, ties):
    scores = torch.rand(6, 40, generator=seeded(1))
    scores = (scores * 5).round() if ties else scores
    count = torch.tensor([0, 1, 13, 39, 40, 20])
    assert torch.equal(select(scores, count), slow_largest(scores, count))


@pytest.mark.parametrize("size", [(16, 16), (9, 14), (13, 7), (31,), (5, 6, 7)], ids=str)
@pytest.mark.parametrize("frequencies", [None, 3])
def test_area_is_the_drawn_count(size, frequencies):
    lam = torch.tensor([0.0, 1.0, 0.3, 0.5, 0.77, 0.999], dtype=torch.float64)
    pixels = math.prod(size)
    for round_up in (True, False):
        up = torch.full((6,), round_up)
        grain = noise(6, size, frequencies=frequencies)
        mask = F.fourier_mask(grain, lam, size, decay=3.0, round_up=up, frequencies=frequencies)
        assert mask.shape == (6, 1, *size)
        assert mask.dtype == torch.bool
        expected = [(math.ceil if round_up else math.floor)(share * pixels) for share in lam.tolist()]
        assert mask.flatten(1).sum(1).tolist() == expected


@pytest.mark.parametrize("size", [(12, 12), (8, 12), (9, 13), (15,), (4, 6, 5)], ids=str)
def test_image_equals_the_sum_of_waves(size):
    # The slow twin: one real wave for every frequency of the half spectrum.
    grain = noise(1, size, seed=2)
    got = module._grey("test", grain, size, 3.0, "isotropic", None)[0]
    coefficients = torch.view_as_complex(grain[0, 0])
    places = torch.meshgrid(*[torch.arange(side, dtype=torch.float64) for side in size], indexing="ij")
    expected = torch.zeros(size, dtype=torch.float64)
    for index in torch.cartesian_prod(*[torch.arange(n) for n in coefficients.shape]).reshape(-1, len(size)).tolist():
        waves = [n if n <= side // 2 and (d == len(size) - 1 or n <= (side - 1) // 2) else n - side
                 for d, (n, side) in enumerate(zip(index, size, strict=True))]  # fmt: skip
        frequency = math.sqrt(sum((n / side) ** 2 for n, side in zip(waves, size, strict=True)))
        amplitude = max(frequency, 1 / max(size)) ** -3.0
        alone = index[-1] == 0 or 2 * index[-1] == size[-1]
        angle = sum(2 * math.pi * n / side * place for n, side, place in zip(waves, size, places, strict=True))
        value = coefficients[tuple(index)]
        wave = value.real * angle.cos() - value.imag * angle.sin()
        expected += amplitude * wave * (math.sqrt(2) if alone else 2)
    expected /= math.prod(size)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())


@pytest.mark.parametrize("side", [32, 33])
def test_isotropic_blobs_have_no_direction_and_reference_ones_do(side):
    def energies(**options):
        grain = noise(400, (side, side), seed=3, **options)
        grey = module._grey("test", grain, (side, side), 1.0, options.get("spectrum", "isotropic"), None)
        return grey.diff(dim=1).square().mean((1, 2)), grey.diff(dim=2).square().mean((1, 2))

    down, across = energies()
    difference = (down - across) / (down + across)
    assert abs(difference.mean()) < 4 * difference.std() / math.sqrt(len(difference))
    down, across = energies(spectrum="reference")
    assert down.mean() > 2 * across.mean()


def test_few_frequencies_give_nearly_the_same_mask():
    size, lam, up = (64, 64), torch.full((8,), 0.5, dtype=torch.float64), torch.ones(8, dtype=torch.bool)
    full = noise(8, size, seed=4)
    k = 16
    rows = [*range(k), *range(64 - k + 1, 64)]
    few = full[:, :, rows, :k]
    whole = F.fourier_mask(full, lam, size, decay=3.0, round_up=up)
    cut = F.fourier_mask(few, lam, size, decay=3.0, round_up=up, frequencies=k)
    assert 0 < (whole != cut).double().mean() < 0.02
    every = F.fourier_mask(full, lam, size, decay=3.0, round_up=up, frequencies=1000)
    assert torch.equal(every, whole)


def test_ramp_keeps_the_area_and_spans_the_stated_ranks():
    size, lam = (20, 20), torch.tensor([0.5, 0.05], dtype=torch.float64)
    mask = F.fourier_mask(
        noise(2, size), lam, size, decay=3.0, round_up=torch.tensor([True, True]), max_soft=0.1
    ).flatten(1)
    torch.testing.assert_close(mask.double().mean(1), lam, rtol=0, atol=1e-6)
    # 40 ranks on each side of the threshold, the first of them still 1 and the last 0; 20 where lam allows no more.
    assert ((mask > 0) & (mask < 1)).sum(1).tolist() == [78, 38]


def test_the_label_is_the_drawn_share_and_the_pixels_are_next_to_it():
    images = torch.zeros(500, 1, 8, 8)
    plan = mixaug.create("fmix").draw(images, generator=seeded(5))
    assert torch.equal(plan.weights[:, 0], plan.lam)
    assert (plan.area() - plan.lam).abs().max() < 1 / 64
    # Rounding up and down, half and half, has no bias.
    surplus = (plan.area() - plan.lam).double() * 64
    assert abs(surplus.mean()) < 4 * surplus.std() / math.sqrt(500)
    torch.testing.assert_close(plan.area(), plan.mask.flatten(1).float().mean(1))


def test_bad_arguments():
    lam, up = torch.full((2,), 0.5), torch.ones(2, dtype=torch.bool)
    good = noise(2, (8, 8))
    with pytest.raises(ValueError, match="expects decay as a positive"):
        F.fourier_mask(good, lam, (8, 8), decay=0, round_up=up)
    with pytest.raises(ValueError, match=r"noise \(R, 1, 8, 6, 2\)"):
        F.fourier_mask(good, lam, (8, 10), decay=3, round_up=up)
    with pytest.raises(ValueError, match=r"max_soft in \[0, 0.5\], got 0.7"):
        mixaug.create("fmix", max_soft=0.7)
    with pytest.raises(ValueError, match="expects spectrum"):
        mixaug.create("fmix", spectrum="white")
    with pytest.raises(ValueError, match="frequencies as an integer >= 1"):
        mixaug.create("fmix", frequencies=0)
    with pytest.raises(ValueError, match="leave frequencies at None"):
        mixaug.create("fmix", spectrum="reference", frequencies=4)
    with pytest.raises(ValueError, match="use 'isotropic'"):
        mixaug.create("fmix", spectrum="reference")(torch.zeros(2, 3, 9))
    with pytest.raises(ValueError, match="expects mask"):
        F.fmix(torch.zeros(2, 3, 8, 8), torch.tensor([1, 0]), torch.zeros(2, 8, 8))


@pytest.mark.parametrize("size", [(16, 16), (21, 13), (2, 9), (8, 40), (40, 8)], ids=str)
def test_reference_image_against_numpy(size):
    # Rows 0 and 1 of the noise as real and imaginary part, odd widths with one column more.
    height, width = size
    grain = noise(2, size, seed=7, spectrum="reference")
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[: width // 2 + 1 + width % 2]
    scale = 1 / np.maximum(np.sqrt(fy**2 + fx**2), 1 / max(size)) ** 3.0
    values = grain.numpy() * scale[None, None, :, :, None]
    expected = np.fft.irfftn(values[:, 0, 0] + 1j * values[:, 0, 1], s=size, axes=(1, 2))
    expected -= expected.min((1, 2), keepdims=True)
    expected /= expected.max((1, 2), keepdims=True)
    got = F.fourier_image(grain, size, decay=3.0, spectrum="reference")
    np.testing.assert_allclose(got.squeeze(1).numpy(), expected, atol=1e-9)
    assert torch.equal(got, F.fourier_image(grain[:, :, :2], size, decay=3.0, spectrum="reference"))


@pytest.mark.parametrize("size", [(32, 48), (31, 24), (16, 12, 10), (30,)], ids=str)
def test_few_frequencies_are_the_lowest_of_the_full_spectrum(size):
    k = 4
    low = noise(2, size, seed=8, frequencies=k)
    full = torch.zeros(2, *module.fourier_noise_shape(size), dtype=torch.float64)
    leading = [torch.tensor([*range(k), *range(-k + 1, 0)]) % side for side in size[:-1]]
    full[(slice(None), 0, *torch.meshgrid(*leading, torch.arange(k), indexing="ij"))] = low[:, 0]
    got = F.fourier_image(low, size, decay=3.0, frequencies=k)
    torch.testing.assert_close(got, F.fourier_image(full, size, decay=3.0), rtol=0, atol=1e-9)


@pytest.mark.parametrize("spectrum", ["isotropic", "reference"])
@pytest.mark.parametrize("size", [(20, 28), (17, 13), (2, 2)], ids=str)
def test_ramp_against_slow_twin(size, spectrum):
    lam = torch.tensor([0.0, 1.0, 0.5, 0.003, 0.77, 0.2, 0.9], dtype=torch.float64)
    up = torch.tensor([True, False, True, False, True, False, True])
    grain, total = noise(7, size, seed=9, spectrum=spectrum), math.prod(size)
    got = F.fourier_mask(grain, lam, size, decay=3.0, round_up=up, max_soft=0.3, spectrum=spectrum).flatten(1)
    order = module._grey("test", grain, size, 3.0, spectrum, None).flatten(1).argsort(1, descending=True)
    for row, share in enumerate(lam.tolist()):
        own = math.ceil(share * total) if up[row] else math.floor(share * total)
        half = int(total * min(0.3, share, 1 - share))
        expected = torch.zeros(total, dtype=torch.float64)
        expected[order[row, :own]] = 1
        expected[order[row, own - half : own + half]] = torch.from_numpy(np.linspace(1, 0, 2 * half))
        torch.testing.assert_close(got[row].double(), expected, rtol=0, atol=1e-6)
