"""SmoothMix beyond the contract: the bump against its formula, labels the right way round."""

import math

import pytest
import torch

import mixaug
from helpers import seeded
from mixaug import functional as F
from mixaug.policies.smoothmix import smoothmix_mask


@pytest.mark.parametrize("size", [(9,), (8, 13), (3, 4, 5)], ids=str)
def test_mask_against_the_formula(size):
    centers = torch.rand(4, len(size), generator=seeded(0), dtype=torch.float64) * 6
    sigma = 1 + torch.rand(4, len(size), generator=seeded(1), dtype=torch.float64)
    mask, lam = smoothmix_mask(centers, sigma, size)
    for row in range(4):
        for place in torch.cartesian_prod(*[torch.arange(side) for side in size]).reshape(-1, len(size)).tolist():
            exponent = sum((p - c) ** 2 / (2 * s * s) for p, c, s in
                           zip(place, centers[row].tolist(), sigma[row].tolist(), strict=True))  # fmt: skip
            assert mask[(row, 0, *place)].item() == pytest.approx(1 - math.exp(-exponent), abs=1e-6)
    torch.testing.assert_close(lam, mask.flatten(1).mean(1))


def test_labels_follow_the_pixels():
    images = torch.zeros(6, 1, 16, 20)
    images[0] = 1
    mixed = mixaug.create("smoothmix", pairing="shift")(images, torch.arange(6), generator=seeded(2))
    # Sample 0 keeps as much of its ones as its own label weighs; sample 1 received the rest of its own.
    torch.testing.assert_close(mixed.inputs[0].mean(), mixed.lam[0])
    torch.testing.assert_close(mixed.inputs[1].mean(), 1 - mixed.lam[1])


def test_reference_labels_are_swapped_and_nothing_else():
    images = torch.rand(6, 1, 16, 16, generator=seeded(3))
    right = mixaug.create("smoothmix")(images, generator=seeded(4))
    swapped = mixaug.create("smoothmix", reference_labels=True)(images, generator=seeded(4))
    assert torch.equal(right.inputs, swapped.inputs)
    assert torch.equal(right.weights.flip(1), swapped.weights)


def line_mean(centre, sigma, side=32):
    return sum(math.exp(-((p - centre) ** 2) / (2 * sigma**2)) for p in range(side)) / side


def test_share_of_the_bump():
    share = 1 - mixaug.create("smoothmix")(torch.zeros(20_000, 1, 32, 32), generator=seeded(5)).lam.double()
    # Centres and sigma are independent uniforms: the mean over a fine grid of them.
    grid = [0.25 + (n + 0.5) / 400 for n in range(100)]
    expected = sum((sum(line_mean(c - 0.5, s * 32) for c in range(32)) / 32) ** 2 for s in grid) / len(grid)
    assert abs(share.mean() - expected) < 4 * share.std() / math.sqrt(len(share))
    assert share.min() > line_mean(-0.5, 8) ** 2
    assert share.max() < line_mean(15.5, 16) ** 2 + 1e-6


def test_bump_takes_the_shape_of_the_image():
    plan = mixaug.create("smoothmix").draw(torch.zeros(1000, 1, 20, 60), generator=seeded(6))
    bump = 1 - plan.mask
    inner = bump[:, 5:15, 20:40].flatten(1)
    assert inner.mean() > bump.mean()
    drop_y = (bump[:, 1:] / bump[:, :-1]).log().diff(dim=1).mean()
    drop_x = (bump[:, :, 1:] / bump[:, :, :-1]).log().diff(dim=2).mean()
    assert drop_y / drop_x == pytest.approx(9, rel=0.01)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"sigma as \(low, high\)"):
        mixaug.create("smoothmix", sigma=(0.5, 0.25))
    with pytest.raises(ValueError, match="cannot use labeling='ratio'"):
        mixaug.create("smoothmix", reference_labels=True, labeling="ratio")
    with pytest.raises(ValueError, match=r"centers and sigma \(R, 2\)"):
        F.smoothmix(torch.zeros(2, 1, 8, 8), torch.tensor([1, 0]), torch.zeros(2, 3), torch.ones(2, 3))
    with pytest.raises(ValueError, match="2 rows of centers or one"):
        F.smoothmix(torch.zeros(2, 1, 8, 8), torch.tensor([1, 0]), torch.zeros(3, 2), torch.ones(3, 2))
