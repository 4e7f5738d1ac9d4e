"""CowMix beyond the contract: smoothing against a loop over pixels, shares, sizes, and the loss."""

import math

import pytest
import torch

import mixaug
from helpers import seeded
from mixaug import functional as F
from mixaug.ops import parts


def slow_line(values, sigma, border):
    """One line smoothed pixel by pixel."""
    count = len(values)
    if border == "zero":
        return [
            sum(v * math.exp(-0.5 * ((p - q) / sigma) ** 2) for q, v in enumerate(values))
            / (sigma * math.sqrt(2 * math.pi))
            for p in range(count)
        ]
    reach = int(4 * sigma + 0.5)
    weights = {step: math.exp(-0.5 * (step / sigma) ** 2) for step in range(-reach, reach + 1)}
    total = sum(weights.values())
    mirrored = [*values, *values[::-1]]
    return [sum(w * mirrored[(p + step) % (2 * count)] for step, w in weights.items()) / total for p in range(count)]


@pytest.mark.parametrize("border", ["zero", "reflect"])
@pytest.mark.parametrize("size", [(9,), (5, 8), (1, 3, 4)], ids=str)
def test_smoothing_against_a_loop(size, border):
    noise = torch.randn(3, *size, generator=seeded(0), dtype=torch.float64)
    sigma = torch.tensor([0.5, 2.0, 9.0], dtype=torch.float64)
    expected = noise.clone()
    for row, width in enumerate(sigma.tolist()):
        for axis in range(len(size)):
            lines = expected[row].movedim(axis, -1)
            done = [slow_line(line, width, border) for line in lines.reshape(-1, size[axis]).tolist()]
            expected[row] = torch.tensor(done).reshape(lines.shape).movedim(-1, axis)
    got = F.cow_noise(noise, sigma, 9.0, border)
    torch.testing.assert_close(got.squeeze(1), expected, rtol=0, atol=1e-6)


def test_share_of_the_pixels_is_the_drawn_one_where_the_noise_is_normal():
    policy = mixaug.create("cowmix", sigma=(1.0, 1.5), border="reflect")
    plan = policy.draw(torch.zeros(60, 1, 64, 64), generator=seeded(1))
    assert plan.lam.min() >= 0.2 and plan.lam.max() <= 0.8
    assert (plan.area() - plan.lam).abs().max() < 0.06
    fixed = mixaug.create("cowmix", share=None, ratio=0.3, sigma=(1.0, 1.5), border="reflect")
    assert abs(fixed.draw(torch.zeros(60, 1, 64, 64), generator=seeded(2)).area().mean() - 0.3) < 0.01


def test_shares_of_all_and_nothing_are_exact():
    lam = torch.tensor([0.0, 1.0, 0.0, 1.0])
    smooth = torch.randn(4, 1, 5, 6, generator=seeded(3))
    smooth[2:] = 0.25
    assert F.cow_mask(smooth, lam).flatten(1).float().mean(1).tolist() == lam.tolist()


def edges(plan):
    """Share of the neighbours in a row of which one is own and the other not."""
    return (plan.mask[:, :, 1:] != plan.mask[:, :, :-1]).float().mean().item()


def test_patches_grow_with_sigma_and_their_edges_are_as_many_as_theory_says():
    images = torch.zeros(60, 1, 96, 96)
    found = {}
    for width in (2.0, 8.0):
        policy = mixaug.create("cowmix", share=(0.5, 0.5), sigma=(width, width), border="reflect")
        found[width] = edges(policy.draw(images, generator=seeded(4)))
        # White noise smoothed by sigma has the correlation r = exp(-1 / 4 sigma^2) between neighbours; the signs of
        # two normal values differ with the probability arccos(r) / pi. A threshold of the image's own mean and the
        # mirrored border move that a little.
        assert found[width] == pytest.approx(math.acos(math.exp(-1 / (4 * width**2))) / math.pi, rel=0.15)
    assert found[2.0] > 3 * found[8.0]


def test_loss_is_nothing_where_the_teacher_is_unsure_and_has_no_gradient_to_it():
    teacher = torch.tensor([[4.0, 0.0], [0.0, 0.0]], requires_grad=True)
    student = torch.zeros(2, 2, requires_grad=True)
    partner, lam = torch.tensor([1, 0]), torch.tensor([1.0, 1.0])
    sure = torch.tensor([4.0, 0.0]).softmax(0)
    expected = ((0.5 - sure) ** 2).sum() / 2 * 0.5
    loss = F.cowmix_consistency(student, teacher, partner, lam)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert teacher.grad is None and student.grad is not None
    assert F.cowmix_consistency(student, teacher, partner, lam, threshold=0.99) == 0


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"leave out alpha=0\.5"):
        mixaug.create("cowmix", alpha=0.5)
    with pytest.raises(ValueError, match="border 'zero' or 'reflect'"):
        mixaug.create("cowmix", border="wrap")
    with pytest.raises(ValueError, match=r"noise \(R, \*size\) and sigma \(R,\)"):
        F.cow_noise(torch.zeros(2, 4, 4), torch.ones(3))
    with pytest.raises(ValueError, match=r"logits and teacher_logits \(B, K\)"):
        F.cowmix_consistency(torch.zeros(2, 3), torch.zeros(2, 4), torch.tensor([1, 0]), torch.ones(2))


def test_a_ratio_of_one_s_own_may_give_one_share_for_all(monkeypatch):
    images, shares = torch.rand(6, 1, 16, 16, generator=seeded(0)), []
    policy = mixaug.create("cowmix", share=None, ratio=lambda draws: torch.full((1,), 0.4))
    for at_once in (2**40, 2 * 16 * 16 * 4):
        monkeypatch.setattr(parts, "BYTES_AT_ONCE", at_once)
        shares.append(policy(images, generator=seeded(1)).lam)
    assert shares[0].shape == (6,)
    assert torch.equal(*shares)
