"""PatchMix beyond the contract: cells against a loop, exact shares."""

import math

import pytest
import torch

import mixaug
from helpers import index_images, seeded
from mixaug import functional as F


def slow_mix(images, partner, cells, sides):
    result = images.clone()
    for i, j in enumerate(partner.tolist()):
        for place in (
            torch.cartesian_prod(*[torch.arange(n) for n in images.shape[2:]]).reshape(-1, images.ndim - 2).tolist()
        ):
            cell = tuple(p // side for p, side in zip(place, sides, strict=True))
            if not cells[(i if len(cells) > 1 else 0, 0, *cell)]:
                result[(i, slice(None), *place)] = images[(j, slice(None), *place)]
    return result


@pytest.mark.parametrize(("size", "patch"), [((11,), 4), ((9, 14), 4), ((9, 14), (2, 5)), ((3, 5, 4), 2)], ids=str)
@pytest.mark.parametrize("rows", [3, 1])
def test_against_slow_twin(size, patch, rows):
    images = torch.rand(3, 2, *size, generator=seeded(0))
    sides = (patch,) * len(size) if isinstance(patch, int) else patch
    grid = [-(-pixels // side) for pixels, side in zip(size, sides, strict=True)]
    cells = torch.rand(rows, 1, *grid, generator=seeded(1)) < 0.5
    partner = torch.tensor([1, 2, 0])
    mixed, lam = F.patchmix(images, partner, cells, patch)
    expected = slow_mix(images, partner, cells, sides)
    assert torch.equal(mixed, expected)
    own = (expected == images)[:, 0].flatten(1).double().mean(1)
    torch.testing.assert_close(lam, own.float())


@pytest.mark.parametrize("total", [1, 4, 16, 25, 49])
def test_number_of_partner_patches_is_the_floor_of_their_share(total):
    # lam = k / total exactly, in both precisions, must give k own cells and not k + 1.
    for dtype in (torch.float32, torch.float64):
        lam = torch.arange(total + 1, dtype=dtype) / total
        own = F.random_cells(torch.rand(total + 1, total, generator=seeded(2)), lam)
        assert own.flatten(1).sum(1).tolist() == list(range(total + 1))
    lam = torch.rand(200, generator=seeded(3), dtype=torch.float64)
    own = F.random_cells(torch.rand(200, total, generator=seeded(4)), lam).flatten(1).sum(1)
    assert own.tolist() == [total - math.floor(total * (1 - share)) for share in lam.tolist()]


def test_patches_are_chosen_uniformly():
    own = F.random_cells(torch.rand(20_000, 3, 3, generator=seeded(5)), torch.full((20_000,), 4 / 9))
    share = own.double().mean(0).flatten()
    assert (share - 4 / 9).abs().max() < 4 * math.sqrt(4 / 9 * 5 / 9 / 20_000)


@pytest.mark.parametrize(("side", "patch"), [(32, 4), (64, 8), (224, 16), (7, 1), (28, 2)])
def test_default_patch_follows_the_image(side, patch):
    mask = mixaug.create("patchmix", ratio=0.5)(torch.zeros(8, 1, side, side), generator=seeded(6)).mask
    changes = (mask.diff(dim=-1) != 0).any(0).any(0).any(0).nonzero().flatten() + 1
    assert math.gcd(*changes.tolist()) == patch


def test_every_pixel_has_one_parent_and_lam_counts_them():
    images = index_images(8, 2, 10, 13)
    mixed = mixaug.create("patchmix", patch_size=4, pairing="derangement")(images, generator=seeded(7))
    own = mixed.inputs == images
    assert (own | (mixed.inputs == images[mixed.partner])).all()
    torch.testing.assert_close(own[:, 0].double().mean((1, 2)).float(), mixed.lam)


@pytest.mark.parametrize(("options", "message"), [
    ({"patch_size": 0}, "as an integer >= 1"),
    ({"patch_size": 2.5}, "as an integer >= 1"),
    ({"patch_size": ()}, "as an integer >= 1"),
    ({"patch_size": "4"}, "as an integer >= 1"),
])  # fmt: skip
def test_bad_options(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        mixaug.create("patchmix", **options)


def test_bad_patches():
    images, partner = torch.zeros(2, 1, 8, 8), torch.tensor([1, 0])
    with pytest.raises(TypeError, match=r"dtype torch\.bool"):
        F.patchmix(images, partner, torch.ones(2, 1, 2, 2), 4)
    with pytest.raises(ValueError, match=r"expects patches \(2, 1, 2, 2\)"):
        F.patchmix(images, partner, torch.ones(2, 1, 3, 3, dtype=torch.bool), 4)
    with pytest.raises(ValueError, match="2 patch sizes"):
        mixaug.create("patchmix", patch_size=(4, 4))(torch.zeros(2, 1, 8))
