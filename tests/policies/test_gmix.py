"""GMix beyond the contract: the bump against its formula on any shape, and how much the border takes of it."""

import math

import pytest
import torch

import mixaug
from helpers import seeded
from mixaug import functional as F


@pytest.mark.parametrize("size", [(9,), (8, 13), (3, 4, 5)], ids=str)
def test_mask_against_the_formula(size):
    lam = torch.tensor([0.2, 0.5, 0.9, 0.45], dtype=torch.float64)
    centers = torch.stack([torch.randint(0, side, (4,), generator=seeded(0)) for side in size], 1)
    mask, mean = F.gmix_mask(lam, centers, size)
    for row, own in enumerate(lam.tolist()):
        width = (min(own, 1 - own) * math.prod(size)) ** (1 / len(size))
        for place in torch.cartesian_prod(*map(torch.arange, size)).reshape(-1, len(size)).tolist():
            distance = sum((p - c) ** 2 for p, c in zip(place, centers[row].tolist(), strict=True))
            bump = math.exp(-math.pi * distance / width**2)
            assert mask[(row, 0, *place)].item() == pytest.approx(bump if own < 0.5 else 1 - bump, abs=1e-6)
    torch.testing.assert_close(mean, mask.flatten(1).mean(1))


def test_the_bump_has_the_area_of_the_minor_share_and_the_border_cuts_it():
    lam = torch.tensor([0.1, 0.9, 0.1, 0.9])
    centers = torch.tensor([[48, 64], [48, 64], [0, 0], [95, 127]])
    mean = F.gmix_mask(lam, centers, (96, 128))[1]
    torch.testing.assert_close(mean[:2], lam[:2], rtol=0, atol=1e-3)
    # A corner keeps a quarter, and half of the lines through the centre.
    torch.testing.assert_close(mean[2:], torch.tensor([0.025, 0.975]), rtol=0, atol=2e-3)


def test_shares_of_nothing_have_no_bump():
    mask, mean = F.gmix_mask(torch.tensor([0.0, 1.0]), torch.tensor([[2, 3], [2, 3]]), (5, 6))
    assert mask.flatten(1).unique(dim=1).flatten().tolist() == [0.0, 1.0]
    assert mean.tolist() == [0.0, 1.0]


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"centers \(3, 2\)"):
        F.gmix_mask(torch.rand(3), torch.zeros(3, 3), (8, 8))
    with pytest.raises(ValueError, match=r"lam in \[0, 1\]"):
        F.gmix_mask(torch.tensor([1.5]), torch.zeros(1, 2), (8, 8))
    with pytest.raises(TypeError, match="no option 'cut'"):
        mixaug.create("gmix", cut=0.5)
