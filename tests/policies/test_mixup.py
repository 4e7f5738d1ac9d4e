"""Mixup beyond the contract: the blend itself, rounding, midpoint."""

import pytest
import torch

import mixaug
from helpers import seeded
from mixaug import functional as F

PARTNER = torch.tensor([2, 0, 1, 3])


def slow_mixup(images, partner, lam):
    rows = [share * images[i].double() + (1 - share) * images[j].double() for i, (j, share) in
            enumerate(zip(partner.tolist(), lam.tolist(), strict=True))]  # fmt: skip
    return torch.stack(rows)


@pytest.mark.parametrize("shape", [(5,), (3, 7), (3, 7, 9), (2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_against_slow_twin(shape, dtype):
    images = torch.randn(4, *shape, generator=seeded(0)).to(dtype)
    lam = torch.tensor([0.0, 1.0, 0.3, 0.77], dtype=torch.float64)
    got = F.mixup(images, PARTNER, lam)
    assert got.dtype == dtype
    torch.testing.assert_close(got, slow_mixup(images, PARTNER, lam).to(dtype))
    assert torch.equal(got[0], images[2])
    assert torch.equal(got[1], images[1])


def test_uint8_is_rounded_half_to_even():
    images = torch.tensor([[0, 1, 3, 255], [1, 2, 4, 255]], dtype=torch.uint8)
    half = torch.tensor([0.5, 0.5])
    # 0.5 -> 0, 1.5 -> 2, 3.5 -> 4
    assert F.mixup(images, torch.tensor([1, 0]), half).tolist() == [[0, 2, 4, 255]] * 2


def test_half_precision_does_not_overflow():
    images = torch.tensor([[60000.0], [-60000.0]], dtype=torch.float16)
    assert F.mixup(images, torch.tensor([1, 0]), torch.tensor([0.5, 0.5])).tolist() == [[0.0], [0.0]]


def test_gradient():
    images = torch.randn(4, 2, 3, dtype=torch.float64, generator=seeded(1)).requires_grad_()
    lam = torch.tensor([0.1, 0.9, 0.5, 1.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: F.mixup(x, PARTNER, lam), images)


def test_midpoint_without_mutual_pairs():
    images = torch.randn(5, 3, 4, 4, generator=seeded(2))
    mixed = mixaug.create("mixup", ratio="midpoint", pairing="derangement")(images, generator=seeded(3))
    assert (mixed.lam == 0.5).all()
    assert mixed.inputs.flatten(1).unique(dim=0).shape[0] == 5
    torch.testing.assert_close(mixed.inputs, (images + images[mixed.partner]) / 2)


def test_per_batch_draws_one_lam_per_sample_many():
    images = torch.randn(8, 3, 4, 4)
    assert len(mixaug.create("mixup", per="batch")(images, generator=seeded(4)).lam.unique()) == 1
    assert len(mixaug.create("mixup")(images, generator=seeded(4)).lam.unique()) == 8


@pytest.mark.parametrize(("change", "message"), [
    ({"lam": torch.tensor([0.5, 1.5, 0, 0])}, r"lam in \[0, 1\]"),
    ({"lam": torch.tensor([0.5, float("nan"), 0, 0])}, r"lam in \[0, 1\]"),
    ({"lam": torch.tensor([0.5, 0.5])}, r"lam \(4,\) or \(1,\)"),
    ({"lam": torch.tensor([1, 0, 1, 0])}, "floating point"),
    ({"partner": torch.tensor([0, 1, 2, 4])}, r"partner in \[0, 4\), got 0 to 4"),
    ({"partner": torch.tensor([0, 1, 2])}, r"partner \(4,\) int64"),
    ({"partner": PARTNER.float()}, r"partner \(4,\) int64"),
    ({"images": torch.zeros(4, 3, dtype=torch.int64)}, "dtype"),
    ({"partner": [2, 0, 1, 3]}, r"partner as a torch.Tensor, got list"),
    ({"lam": 0.5}, r"lam as a torch.Tensor, got float"),
])  # fmt: skip
def test_bad_arguments(change, message):
    arguments = {"images": torch.zeros(4, 3), "partner": PARTNER, "lam": torch.full((4,), 0.5), **change}
    with pytest.raises((ValueError, TypeError), match=message):
        F.mixup(**arguments)


@pytest.mark.parametrize("per", ["sample", "pair", "batch"])
def test_lam_is_the_share_of_the_own_image_in_the_pixels(per):
    images = torch.rand(8, 3, 5, 7, generator=seeded(0))
    mixed = mixaug.create("mixup", alpha=0.4, per=per)(images, torch.arange(8), generator=seeded(1))
    lam = mixed.lam.view(-1, 1, 1, 1)
    expected = lam * images + (1 - lam) * images[mixed.partner]
    torch.testing.assert_close(mixed.inputs, expected)
    torch.testing.assert_close(mixed.plan.mix(images), expected)
    assert (mixed.lam - 0.5).abs().max() > 0.1
