"""Class activation on an object against loops over pixels, and in cases whose answer is known."""

import numpy as np
import pytest
import torch

from helpers import seeded
from mixaug.engine.evaluation.activation import activation_on, half_regions, halves


def test_share_and_peak_pixel_by_pixel():
    generator = seeded(0)
    maps = torch.rand(6, 4, 5, generator=generator)
    region = torch.rand(6, 4, 5, generator=generator) < 0.4
    share, peak = activation_on(maps, region)
    for row in range(6):
        places = [(y, x) for y in range(4) for x in range(5)]
        inside = sum(float(maps[row, y, x]) for y, x in places if region[row, y, x])
        assert float(share[row]) == pytest.approx(inside / float(maps[row].double().sum()))
        best = max(places, key=lambda place: float(maps[row][place]))
        assert float(peak[row]) == float(region[row][best])


def test_a_map_that_says_nothing_counts_as_even_and_equal_peaks_share():
    region = torch.zeros(3, 2, 4)
    region[:, :, :1] = 1
    maps = torch.stack([torch.full((2, 4), torch.nan), torch.zeros(2, 4), torch.tensor([[2.0, 2, 0, 0]] * 2)])
    share, peak = activation_on(maps, region)
    assert share.tolist() == [0.25, 0.25, 0.5]
    assert peak.tolist() == [0.25, 0.25, 0.5]


def test_halves_stay_in_their_places():
    images, others = torch.zeros(2, 1, 2, 5), torch.ones(2, 1, 2, 5)
    made = halves(images, others, torch.tensor([True, False]))
    assert made[0, 0].tolist() == [[0, 0, 1, 1, 1]] * 2
    assert made[1, 0].tolist() == [[1, 1, 0, 0, 0]] * 2
    regions = half_regions(torch.tensor([True, False]), 2, 5)
    assert torch.equal(made[:, 0] == 0, regions)


def test_what_cannot_be_is_refused():
    maps = torch.rand(2, 3, 3)
    with pytest.raises(ValueError, match=r"region of that shape, got \(2, 3, 3\) torch.float32 and \(2, 3, 4\)"):
        activation_on(maps, torch.ones(2, 3, 4))
    with pytest.raises(ValueError, match=r"region in \[0, 1\], got values from 2 to 2"):
        activation_on(maps, torch.full((2, 3, 3), 2.0))
    with pytest.raises(ValueError, match=r"maps >= 0, got values down to -1"):
        activation_on(torch.full((2, 3, 3), -1.0), maps)
    with pytest.raises(ValueError, match=r"at least two pixels wide, got \(1, 1, 4, 1\)"):
        halves(torch.ones(1, 1, 4, 1), torch.ones(1, 1, 4, 1), torch.tensor([True]))


def test_maps_of_no_known_place_have_the_share_of_their_region():
    maps = torch.from_numpy(np.random.default_rng(0).random((4000, 6, 6)))
    on_left = torch.arange(4000) % 2 == 0
    share, peak = activation_on(maps, half_regions(on_left, 6, 6))
    assert float(share.mean()) == pytest.approx(0.5, abs=4 * float(share.std()) / 4000**0.5)
    assert float(peak.mean()) == pytest.approx(0.5, abs=4 * 0.5 / 4000**0.5)
