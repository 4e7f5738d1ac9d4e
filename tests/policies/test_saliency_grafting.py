"""Saliency Grafting beyond the contract: the chances of cells, their frequency, and labels by what is seen."""

import math

import pytest
import torch

import mixaug
import mixaug.models
from helpers import seeded
from mixaug import functional as F
from mixaug.losses import MixedCrossEntropy

SALIENCY = torch.rand(5, 8, 12, generator=seeded(0)) ** 3


def slow_chances(saliency, lam, grid, temperature, threshold):
    rows, columns = saliency.shape[0] // grid[0], saliency.shape[1] // grid[1]
    cells = [
        saliency[r * rows : (r + 1) * rows, c * columns : (c + 1) * columns].mean().item()
        for r in range(grid[0])
        for c in range(grid[1])
    ]
    mean = sum(cells) / len(cells)
    powers = [math.exp(cell / mean / temperature) for cell in cells]
    likely = [power / sum(powers) * len(cells) for power in powers]
    return torch.tensor([(1 - lam) * min(1, one / threshold) for one in likely]).reshape(grid)


@pytest.mark.parametrize(("temperature", "threshold"), [(1.0, 1.0), (0.3, 2.0), (5.0, 0.5)])
def test_chances_against_a_loop(temperature, threshold):
    lam = torch.tensor([0.0, 1.0, 0.3, 0.5, 0.9])
    got = F.graft_chances(SALIENCY, lam, (4, 3), temperature, threshold)
    for row, own in enumerate(lam.tolist()):
        expected = slow_chances(SALIENCY[row], own, (4, 3), temperature, threshold)
        torch.testing.assert_close(got[row], expected, rtol=0, atol=1e-5)


def test_the_scale_of_saliency_does_not_matter_and_maps_of_nothing_are_even():
    lam = torch.full((1,), 0.25)
    plain = F.graft_chances(SALIENCY, lam, (4, 3))
    for scale in (1e-30, 1e30):
        torch.testing.assert_close(F.graft_chances(SALIENCY * scale, lam, (4, 3)), plain, rtol=1e-4, atol=0)
    nothing = torch.stack([torch.zeros(8, 12), torch.full((8, 12), torch.nan), torch.full((8, 12), -1.0)])
    assert (F.graft_chances(nothing, lam, (4, 3)) == 0.75).all()


def test_cells_of_the_partner_are_grafted_as_often_as_their_chance():
    count = 3000
    saliency = SALIENCY[:2].repeat(count // 2, 1, 1)
    policy = mixaug.create("saliency_grafting", grid=(4, 3), ratio=0.2, pairing="shift")
    plan = policy.draw(torch.zeros(count, 1, 8, 12), signals=mixaug.Signals(saliency=saliency), generator=seeded(1))
    # Sample 0's partner has the map of sample 1, and so on in turns.
    grafted = 1 - plan.mask[::2, ::2, ::4].float().mean(0)
    expected = F.graft_chances(SALIENCY[1:2], torch.tensor([0.2]), (4, 3))[0]
    error = (expected * (1 - expected) / (count // 2)).sqrt().clamp(min=1e-3)
    assert ((grafted - expected).abs() < 4 * error).all()


@pytest.mark.parametrize("name", ["saliency_grafting", "cutmix", "smoothmix", "cowmix"])
def test_labels_weigh_what_is_seen_of_each_saliency(name):
    images = torch.rand(5, 3, 8, 12, generator=seeded(2))
    policy = mixaug.create(name, labeling="saliency", pairing="shift")
    mixed = policy(images, torch.arange(5), signals=mixaug.Signals(saliency=7 * SALIENCY), generator=seeded(3))
    mask, partner = mixed.mask[:, 0], mixed.partner
    shown = mixed.plan.mix(SALIENCY)
    for row in range(5):
        own = (SALIENCY[row] * mask[row]).sum()
        other = shown[row].sum() - own
        own, other = own / SALIENCY[row].sum(), other / SALIENCY[partner[row]].sum()
        torch.testing.assert_close(mixed.weights[row], torch.stack([own, other]) / (own + other))
    assert (mixed.lam - mask.mean((1, 2))).abs().max() > 0.01


def test_labels_fall_back_to_the_area():
    images, flat = torch.rand(4, 3, 8, 8, generator=seeded(4)), torch.zeros(4, 8, 8)
    mixed = mixaug.create("cutmix", labeling="saliency")(
        images, torch.arange(4), signals=mixaug.Signals(saliency=flat), generator=seeded(5)
    )
    torch.testing.assert_close(mixed.lam, mixed.mask.mean((1, 2, 3)))
    # The one salient pixel of each image lies in a corner that the other image covers.
    saliency = flat.clone()
    saliency[:, 0, 0] = 1.0
    plan = mixaug.plan.MaskBlend(
        partner=torch.tensor([1, 0, 3, 2]), lam=torch.ones(4), size=(8, 8), mask=torch.ones(4, 8, 8) * 0.0
    )
    batch = mixaug.Batch(images, signals=mixaug.Signals(saliency=saliency))
    assert mixaug.labeling.VisibleSaliency()(plan, batch)[:, 0].tolist() == [0.0] * 4
    # A plan without a mask shows the same share of every pixel.
    plan = mixaug.plan.Blend(partner=torch.tensor([1, 0, 3, 2]), lam=torch.full((4,), 0.3))
    torch.testing.assert_close(mixaug.labeling.VisibleSaliency()(plan, batch)[:, 0], torch.full((4,), 0.3))


@pytest.mark.parametrize("clean_weight", [0.0, 0.7])
def test_cells_and_labels_take_their_saliency_from_one_pass(clean_weight):
    model = mixaug.models.create("cifar_resnet8", num_classes=4)
    passes = []
    model.register_forward_hook(lambda module, *_: passes.append(module.training))
    step = mixaug.MixStep(
        model, mixaug.create("saliency_grafting", grid=4, clean_weight=clean_weight), MixedCrossEntropy()
    )
    step.train()
    _, logs = step(torch.rand(4, 3, 16, 16, generator=seeded(7)), torch.arange(4), generator=seeded(8))
    assert passes == [clean_weight > 0, True]
    assert ("clean_loss" in logs) == (clean_weight > 0)


def test_bad_arguments():
    with pytest.raises(ValueError, match="temperature as a positive finite number"):
        mixaug.create("saliency_grafting", temperature=0)
    with pytest.raises(ValueError, match="number or"):
        mixaug.create("saliency_grafting", grid=(2, 2, 2))
    with pytest.raises(ValueError, match=r"saliency \(2, 8, 8\), a value per pixel"):
        mixaug.create("cutmix", labeling="saliency")(
            torch.rand(2, 3, 8, 8), torch.arange(2), signals=mixaug.Signals(saliency=torch.rand(2, 4, 4))
        )
