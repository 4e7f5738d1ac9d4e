"""SelecMix: which pairs contradict, what is mixed of them, and what is said where nobody tells."""

import pytest
import torch
from torch import nn

import mixaug
from helpers import seeded
from mixaug import Batch, MixStep
from mixaug.draws import Draws
from mixaug.losses import MixedCrossEntropy
from mixaug.pairing import Contradicting, contradicting_partners

IMAGES = torch.rand(9, 3, 4, 4, generator=seeded(0))
#: Class 2 has a single sample, and that of row 8 differs from all others.
LABELS = torch.tensor([0, 1, 0, 1, 2, 0, 1, 0, 1])


def slow_partner(similarity, labels, kind):
    found = []
    for i, row in enumerate(similarity.tolist()):
        fits = [j for j in range(len(row)) if j != i and (labels[j] == labels[i]) == (kind == "same_label")]
        best = (min if kind == "same_label" else max)(fits, key=lambda j: row[j], default=i)
        found.append(best)
    return torch.tensor(found)


@pytest.mark.parametrize("kind", ["same_label", "other_label"])
def test_partners_are_those_of_a_plain_loop(kind):
    # All similarities are negative, where a masked one of zero would win.
    similarity = -torch.rand(9, 9, generator=seeded(1)) - 0.1
    assert torch.equal(contradicting_partners(similarity, LABELS, kind), slow_partner(similarity, LABELS, kind))
    assert torch.equal(contradicting_partners(similarity, torch.zeros(9).long(), "other_label"), torch.arange(9))


def test_a_coin_for_each_batch_decides_and_the_network_stays_as_it_was():
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 5), nn.BatchNorm1d(5), nn.Dropout(0.5))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    pairing, kinds = Contradicting(network), []
    rows = nn.functional.normalize(network.eval()(IMAGES), dim=1)
    network.train()
    expected = [contradicting_partners(rows @ rows.T, LABELS, kind) for kind in ("same_label", "other_label")]
    for seed in range(40):
        partner = pairing(Batch(IMAGES, LABELS), Draws(9, IMAGES.device, seeded(seed)))
        kinds.append([torch.equal(partner, one) for one in expected])
    assert all(sum(one) == 1 for one in kinds)
    assert 10 < sum(one[0] for one in kinds) < 30
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(part.training for part in network.modules())


def test_the_partner_has_the_larger_share_and_the_label():
    policy = mixaug.create("selecmix", network=nn.Flatten(), mode="same_label")
    mixed = policy(Batch(IMAGES, LABELS), generator=seeded(2))
    assert torch.equal(mixed.weights, torch.tensor([[0.0, 1.0]]).expand(9, 2))
    lam = mixed.plan.lam
    assert ((lam >= 0) & (lam <= 0.5)).all()
    assert lam.unique().numel() == 9
    torch.testing.assert_close(
        mixed.inputs, lam[:, None, None, None] * IMAGES + (1 - lam[:, None, None, None]) * IMAGES[mixed.partner]
    )
    # Who is alone in a class stays as it is, with its own label.
    assert mixed.partner[4] == 4
    torch.testing.assert_close(mixed.inputs[4], IMAGES[4])
    assert torch.equal(LABELS[mixed.partner], LABELS)


def test_a_known_bias_takes_the_place_of_a_network():
    background = torch.tensor([0, 0, 1, 1, 0, 1, 0, 0, 1])
    batch = Batch(IMAGES, LABELS, metadata={"background": background})
    same = mixaug.create("selecmix", group="background", mode="same_label")(batch, generator=seeded(3))
    other = mixaug.create("selecmix", group="background", mode="other_label")(batch, generator=seeded(3))
    has_one = LABELS != 2
    assert torch.equal(LABELS[same.partner], LABELS)
    assert (background[same.partner] != background)[has_one].all()
    assert (LABELS[other.partner] != LABELS).all()
    assert torch.equal(background[other.partner], background)
    kinds = {
        bool((LABELS[mixed.partner] == LABELS).all())
        for seed in range(12)
        for mixed in [mixaug.create("selecmix", group="background")(batch, generator=seeded(seed))]
    }
    assert kinds == {True, False}


def test_who_brings_the_network_is_said():
    policy = mixaug.create("selecmix")
    assert policy.wants_networks == ("biased",)
    with pytest.raises(ValueError, match=r"network 'biased' beside the model, which nobody brought: train through Mix"):
        policy(IMAGES, LABELS)
    with pytest.raises(ValueError, match=r"looks at the network 'biased' beside the model, there are \[\]"):
        MixStep(nn.Flatten(), policy, MixedCrossEntropy())
    with pytest.raises(ValueError, match=r"Contradicting expects its network to give \(9, D\), got \(9, 3, 4, 4\)"):
        mixaug.create("selecmix", network=nn.Identity())(IMAGES, LABELS)
    for options, message in (({"mode": "near"}, "mode"), ({"network": 3}, "network"), ({"group": 3}, "group")):
        with pytest.raises((TypeError, ValueError), match=f"selecmix expects {message}"):
            mixaug.create("selecmix", **options)
