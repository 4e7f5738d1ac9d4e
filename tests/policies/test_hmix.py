"""HMix beyond the contract: its mask against a loop over pixels, and between mixup and CutMix."""

import math

import pytest
import torch

import mixaug
from helpers import index_images, seeded
from mixaug import functional as F


@pytest.mark.parametrize("cut", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("size", [(9, 13), (1, 1), (2, 7)], ids=str)
def test_mask_against_a_loop(size, cut):
    lam = torch.rand(12, generator=seeded(0), dtype=torch.float64)
    lam[:3] = torch.tensor([0.0, 0.5, 1.0])
    centers = torch.stack([torch.randint(0, side, (12,), generator=seeded(1)) for side in size], 1)
    mask = F.hmix_mask(lam, F.hmix_boxes(lam, centers, size, cut), size)
    for row in range(12):
        own, (cy, cx) = lam[row].item(), centers[row].tolist()
        half = [int(side * math.sqrt(1 - own) * math.sqrt(cut)) // 2 for side in size]
        inside = [
            [cy - half[0] <= y < cy + half[0] and cx - half[1] <= x < cx + half[1] for x in range(size[1])]
            for y in range(size[0])
        ]
        outside = 1 - sum(map(sum, inside)) / math.prod(size)
        weight = own / outside if outside else 0.0
        expected = torch.tensor([[0.0 if cell else weight for cell in line] for line in inside])
        torch.testing.assert_close(mask[row, 0], expected, rtol=0, atol=1e-6)
    covered = (mask == 0).all(3).all(2)[:, 0] & (lam > 0)
    torch.testing.assert_close(mask.mean((1, 2, 3))[~covered], lam.float()[~covered])


def test_a_box_over_everything_leaves_nothing_of_the_sample():
    # With lam 0 and a centred box of even sides nothing is left outside: 0 / 0.
    box = F.hmix_boxes(torch.zeros(1), torch.tensor([[4, 4]]), (8, 8), cut=1.0)
    assert box.tolist() == [[0, 0, 8, 8]]
    assert (F.hmix_mask(torch.zeros(1), box, (8, 8)) == 0).all()


def test_between_mixup_and_cutmix():
    images = index_images(6, 3, 16, 24)
    for seed in range(4):
        blended = mixaug.create("hmix", cut=0.0)(images, generator=seeded(seed))
        assert torch.equal(blended.mask, blended.lam[:, None, None, None].expand_as(blended.mask))
        pasted = mixaug.create("hmix", cut=1.0).draw(images, generator=seeded(seed))
        box = mixaug.create("cutmix").draw(images, generator=seeded(seed))
        assert torch.equal(pasted.mask == 0, ~box.own_mask())
        torch.testing.assert_close(pasted.mask.mean((1, 2)), pasted.lam)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"HMix expects cut in \[0, 1\], got 1.5"):
        mixaug.create("hmix", cut=1.5)
    with pytest.raises(ValueError, match=r"centers \(3, 2\) int64"):
        F.hmix_boxes(torch.rand(3), torch.zeros(2, 2, dtype=torch.int64), (8, 8))
    with pytest.raises(ValueError, match=r"lam \(2,\) or \(1,\)"):
        F.hmix(torch.zeros(2, 1, 8, 8), torch.tensor([1, 0]), torch.rand(3), torch.zeros(3, 4, dtype=torch.int64))
