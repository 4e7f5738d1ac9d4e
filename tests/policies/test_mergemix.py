"""MergeMix beyond the contract: merging against a loop, which tokens and groups stay, labels, and the ranking loss."""

import math

import pytest
import torch

import mixaug
from helpers import seeded
from mixaug import functional as F

IMAGES = torch.rand(5, 3, 12, 16, generator=seeded(0))
GIVEN = mixaug.Signals(
    attention=torch.rand(5, 3, 4, generator=seeded(1)), features=torch.randn(5, 6, 3, 4, generator=seeded(2))
)


def slow_matching(metric, count, class_token):
    """Places of one sample's tokens, from the list of all even tokens and the odd ones that they like best."""
    rows = metric / metric.norm(dim=1, keepdim=True)
    even, odd = list(range(0, len(rows), 2)), list(range(1, len(rows), 2))
    friends = {e: max(odd, key=lambda o: (rows[e] @ rows[o]).item()) for e in even}
    able = [e for e in even if not (class_token and e == 0)]
    goes = sorted(able, key=lambda e: -(rows[e] @ rows[friends[e]]).item())[:count]
    order = [e for e in even if e not in goes] + odd
    return [order.index(friends[t] if t in goes else t) for t in range(len(rows))]


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize(("tokens", "count"), [(9, 3), (10, 4), (3, 1), (2, 0), (7, 3)])
def test_matching_against_a_loop(tokens, count, class_token):
    metric = torch.randn(4, tokens, 5, generator=seeded(3))
    places = F.token_matching(metric, count, class_token=class_token)
    assert places.tolist() == [slow_matching(row, count, class_token) for row in metric]
    values = torch.rand(4, tokens, 2, generator=seeded(4))
    merged, sizes = F.merge_tokens(values, places, tokens - count)
    for row in range(4):
        for place in range(tokens - count):
            members = places[row] == place
            torch.testing.assert_close(merged[row, place], values[row, members].mean(0))
            assert sizes[row, place] == members.sum()


@pytest.mark.parametrize(
    ("share", "rounds", "left"), [(0.5, 4, 6), (0.9, 2, 4), (0.9, 4, 2), (0.0, 3, 12), (0.3, 1, 9)]
)
def test_rounds_merge_what_was_asked_as_far_as_they_can(share, rounds, left):
    tokens = torch.randn(3, 12, 4, generator=seeded(5))
    places, groups = F.merge_rounds(tokens, share, rounds)
    assert groups == left
    assert [row.unique().tolist() for row in places] == [list(range(left))] * 3


def test_tokens_that_look_alike_stay_together():
    # Twelve tokens of six kinds: two neighbours are alike, and merged they share their attention.
    kinds = torch.arange(12).reshape(3, 4) // 2
    features = torch.nn.functional.one_hot(kinds, 6).permute(2, 0, 1).float().expand(5, -1, -1, -1)
    signals = mixaug.Signals(attention=GIVEN.attention((12, 16)), features=features)
    for seed in range(3):
        policy = mixaug.create("mergemix", merged=0.5, rounds=1, count="groups", ratio=0.5)
        mixed = policy(IMAGES, torch.arange(5), signals=signals, generator=seeded(seed))
        cells = mixed.mask[:, 0, ::4, ::4]
        mean = torch.stack([GIVEN.attention((12, 16))[:, kinds == kind].mean(1) for kind in range(6)], 1)
        for row in range(5):
            own = {kind for kind in range(6) if cells[row][kinds == kind].any()}
            assert own == set(mean[row].topk(3).indices.tolist())
            assert all(cells[row][kinds == kind].all() for kind in own)


def test_without_merging_the_tokens_of_highest_attention_stay():
    policy = mixaug.create("mergemix", merged=0, ratio=0.4)
    assert policy.needs == frozenset({"attention"})
    mixed = policy(IMAGES, torch.arange(5), signals=GIVEN, generator=seeded(6))
    best = GIVEN.attention((12, 16)).flatten(1).topk(int(0.4 * 12)).indices
    assert torch.equal(mixed.mask[:, 0, ::4, ::4].flatten(1).nonzero()[:, 1].reshape(5, -1), best.sort(1).values)
    assert torch.equal(mixed.lam, torch.full((5,), 4 / 12))
    drawn = mixaug.create("mergemix", merged=0, ratio=0.4, labeling="ratio")
    torch.testing.assert_close(drawn(IMAGES, torch.arange(5), signals=GIVEN).lam, torch.full((5,), 0.4))


def test_scaled_labels_are_stretched_over_the_batch():
    policy = mixaug.create("mergemix", scaled_labels=True)
    mixed = policy(IMAGES, torch.arange(5), signals=GIVEN, generator=seeded(7))
    assert mixed.lam.min() == 0
    assert 0.99 < mixed.lam.max() <= 1
    normal, own = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([0.2, 0.4, 0.1])
    draw = [0.5 + 0.1, 0.5 - 0.4, 0.5 + 0.2]
    expected = [(value - 0.1) / (0.6 + 1e-5) for value in draw]
    torch.testing.assert_close(F.mergemix_shares(normal, own, 0.5), torch.tensor(expected))


def test_ranking_loss_against_a_loop():
    logits = torch.randn(2, 4, 3, generator=seeded(8), dtype=torch.float64)
    mixed = torch.randn(2, 4, 3, generator=seeded(9), dtype=torch.float64).requires_grad_()
    answer = torch.tensor([[-100, 2, 0, 1], [1, -100, -100, 2]])
    total = 0.0
    for row in range(2):
        sums = [
            sum(
                one[row, place - 1].log_softmax(0)[answer[row, place]]
                for place in range(1, 4)
                if answer[row, place] != -100
            )
            for one in (logits, mixed)
        ]
        total += math.log(1 + math.exp(-((sums[0] - sums[1]).item() / 4 - 0.7))) / 2
    loss = F.mergemix_ranking(logits.requires_grad_(), mixed, answer, 0.3)
    assert loss.item() == pytest.approx(total, abs=1e-12)
    loss.backward()
    assert mixed.grad is None and logits.grad is not None


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"cannot use labeling='ratio'"):
        mixaug.create("mergemix", scaled_labels=True, labeling="ratio")
    with pytest.raises(ValueError, match="count 'tokens' or 'groups'"):
        mixaug.create("mergemix", count="pixels")
    with pytest.raises(ValueError, match=r"count in \[0, 3\]"):
        F.token_matching(torch.rand(2, 7, 3), 4)
    with pytest.raises(ValueError, match=r"logits \(B, T, V\) and answer \(B, T\)"):
        F.answer_log_probability(torch.zeros(2, 3, 4), torch.zeros(2, 4, dtype=torch.int64))
