"""TdAttenMix beyond the contract: labels by what is attended, the floor, the network that is told the labels."""

import pytest
import torch
from torch import nn

import mixaug
from helpers import seeded
from mixaug import functional as F
from mixaug.losses import MixedCrossEntropy

LABELS = torch.tensor([0, 3, 1, 2, 2])


def maps(batch=5, grid=(6, 7)):
    return torch.rand(batch, *grid, generator=seeded(0))


def given(found):
    return mixaug.Signals(attention=found, outputs=torch.zeros(len(found), 4))


def test_floor_against_the_formula():
    found = torch.tensor([[[0.0, 1.0, 0.8], [0.5, torch.nan, 0.2]]])
    expected = torch.tensor([[[0.0, 0.3, 0.1], [0.0, 0.0, 0.0]]])
    torch.testing.assert_close(F.attention_above(found, 0.7), expected)
    assert (F.attention_above(torch.full((1, 2, 2), 3.0), 0.7) == 0).all()
    torch.testing.assert_close(F.attention_above(found + 1, 0.0)[0, 0], found[0, 0] + 1)


@pytest.mark.parametrize("per", ["sample", "batch"])
def test_labels_are_half_area_and_half_attention_of_both_images(per):
    found, images = maps(), torch.rand(5, 3, 12, 14, generator=seeded(1))
    policy = mixaug.create("tdattenmix", floor=None, per=per)
    for seed in range(4):
        mixed = policy(images, LABELS, signals=given(found), generator=seeded(seed))
        plan, partner = mixed.plan, mixed.partner
        for row in range(5):
            y, x = (plan.boxes[row, :2] // 2).tolist()
            from_y, from_x = (plan.corners[row] // 2).tolist()
            side = ((plan.boxes[row, 2] - plan.boxes[row, 0]) // 2).item()
            kept = found[row].sum() - found[row, y : y + side, x : x + side].sum()
            pasted = found[partner[row], from_y : from_y + side, from_x : from_x + side].sum()
            expected = 0.5 * (42 - side**2) / 42 + 0.5 * kept / (kept + pasted)
            torch.testing.assert_close(mixed.lam[row], expected)
            own = images[row].clone()
            own[:, 2 * y : 2 * (y + side), 2 * x : 2 * (x + side)] = images[
                partner[row], :, 2 * from_y : 2 * (from_y + side), 2 * from_x : 2 * (from_x + side)
            ]
            assert torch.equal(mixed.inputs[row], own)


def test_reference_gives_one_share_to_all_from_the_own_maps():
    found = maps()
    partner, region = torch.tensor([4, 3, 2, 1, 0]), torch.tensor([2])
    target = F.smmix_windows(found, region, largest=False)
    source = F.smmix_windows(found[partner], region, largest=True)
    share = F.attended_share(found, partner, target, source, region, reference=True)
    kept = sum(found[row].sum() - found[row, y : y + 2, x : x + 2].sum() for row, (y, x) in enumerate(target.tolist()))
    slipped = sum(found[row, y : y + 2, x : x + 2].sum() for row, (y, x) in enumerate(source.tolist()))
    torch.testing.assert_close(share, (kept / (kept + slipped)).expand(5))


def test_maps_of_nothing_leave_the_area():
    images = torch.rand(5, 3, 12, 14, generator=seeded(2))
    mixed = mixaug.create("tdattenmix")(images, LABELS, signals=given(torch.ones(5, 6, 7)), generator=seeded(3))
    torch.testing.assert_close(mixed.lam, mixed.mask.mean((1, 2, 3)))
    assert (mixed.plan.boxes[:, :2] == 0).all()


class Prompted(nn.Module):
    """Attention that lies in the row of cells that the label names."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.told = None

    def forward(self, images, labels):
        self.told = labels
        return self.weight * (torch.arange(4)[:, None] == labels[:, None, None]).float().expand(-1, 4, 4)


def test_a_network_is_told_the_labels_and_frozen():
    images, network = torch.rand(5, 3, 8, 8, generator=seeded(4)), Prompted().train()
    policy = mixaug.create("tdattenmix", network=network, minmax=(0.25, 0.25), fine_grained=0, consistency=0)
    assert policy.needs == frozenset()
    mixed = policy(images, LABELS, generator=seeded(5))
    assert torch.equal(network.told, LABELS)
    assert not network.training
    assert not network.weight.requires_grad
    assert not list(policy.parameters())
    # The row that the partner's label names is shown, over a cell that is not of the own row.
    assert torch.equal(mixed.plan.corners[:, 0] // 2, LABELS[mixed.partner])
    assert (mixed.plan.boxes[:, 0] // 2 != LABELS).all()
    torch.testing.assert_close(mixed.lam, torch.full((5,), 0.5 * 15 / 16 + 0.5 * 4 / 5))
    with pytest.raises(ValueError, match="tells its network the labels"):
        policy(images, generator=seeded(5))
    with pytest.raises(ValueError, match=r"give maps \(5, h, w\)"):
        mixaug.create("tdattenmix", network=Wrong(), fine_grained=0, consistency=0)(images, LABELS)
    both = mixaug.create("tdattenmix", network=Prompted())
    assert both.needs == frozenset({"outputs"})


class Wrong(nn.Module):
    def forward(self, images, labels):
        return torch.ones(2, 4, 4)


def test_consistency_is_with_the_shares_of_the_labels():
    images = torch.rand(5, 3, 16, 16, generator=seeded(6))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    policy = mixaug.create("tdattenmix", network=Prompted(), fine_grained=0)
    step = mixaug.MixStep(model, policy, MixedCrossEntropy())
    _, logs = step(images, LABELS, generator=seeded(7))
    mixed = policy(images, LABELS, signals=model, generator=seeded(7))
    assert (mixed.lam - mixed.plan.area()).abs().max() > 0.01
    expected = F.smmix_consistency(model(mixed.inputs), model(images), mixed.partner, mixed.lam)
    torch.testing.assert_close(logs["consistency"], expected.detach())


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"floor in \[0, 1\]"):
        mixaug.create("tdattenmix", floor=1.5)
    with pytest.raises(TypeError, match="no option 'labeling'"):
        mixaug.create("tdattenmix", labeling="area")
    with pytest.raises(ValueError, match=r"target and source \(B, 2\)"):
        zeros = torch.zeros(2, 3, dtype=torch.int64)
        F.attended_share(torch.ones(2, 4, 4), torch.tensor([1, 0]), zeros, zeros, torch.tensor([1]))
