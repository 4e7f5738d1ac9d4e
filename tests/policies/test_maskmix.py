"""MaskMix beyond the contract: counts of cells, both label shares."""

import math

import pytest
import torch

import mixaug
from helpers import seeded


@pytest.mark.parametrize("per", ["sample", "batch", "pair"])
def test_own_cells_are_rounded_up(per):
    plan = mixaug.create("maskmix", patch_size=4, per=per).draw(torch.zeros(40, 1, 16, 16), generator=seeded(0))
    cells = plan.mask[:, ::4, ::4].flatten(1).sum(1)
    assert cells.expand(40).tolist() == [math.ceil(16 * lam - 1e-4) for lam in plan.lam.expand(40).tolist()]


def test_per_batch_shares_the_count_and_not_the_cells():
    plan = mixaug.create("maskmix", patch_size=4, per="batch", ratio=0.5).draw(torch.zeros(20, 1, 16, 16))
    assert plan.lam.shape == (1,)
    assert plan.mask.flatten(1).sum(1).unique().numel() == 1
    assert len(plan.mask.flatten(1).unique(dim=0)) > 10


def test_mean_own_share_with_sixteen_cells():
    # ceil(16 U) / 16 has mean 17 / 32.
    lam = mixaug.create("maskmix")(torch.zeros(20_000, 1, 32, 32), generator=seeded(1)).lam.double()
    assert abs(lam.mean() - 17 / 32) < 4 * lam.std() / math.sqrt(len(lam))


def test_reference_labels_count_cells_and_the_default_counts_pixels():
    images = torch.zeros(30, 1, 18, 18)
    pixels = mixaug.create("maskmix", patch_size=4)(images, generator=seeded(2))
    cells = mixaug.create("maskmix", patch_size=4, reference_labels=True)(images, generator=seeded(2))
    assert torch.equal(pixels.mask, cells.mask)
    torch.testing.assert_close(pixels.lam, pixels.mask.mean((1, 2, 3)))
    torch.testing.assert_close(cells.lam, cells.mask[:, 0, ::4, ::4].flatten(1).mean(1))
    assert (pixels.lam - cells.lam).abs().max() > 0.01


@pytest.mark.parametrize(("side", "cell"), [(32, 8), (64, 16), (224, 64), (16, 4), (7, 2)])
def test_default_cell_follows_the_image(side, cell):
    mask = mixaug.create("maskmix", ratio=0.5)(torch.zeros(16, 1, side, side), generator=seeded(3)).mask
    changes = (mask.diff(dim=-1) != 0).any(0).any(0).any(0).nonzero().flatten() + 1
    assert math.gcd(*changes.tolist()) == cell


def test_bad_options():
    with pytest.raises(ValueError, match="cannot use labeling='ratio'"):
        mixaug.create("maskmix", reference_labels=True, labeling="ratio")
    with pytest.raises(ValueError, match="as an integer >= 1"):
        mixaug.create("maskmix", patch_size=-1)
