"""Pairings by class and group, in a batch and over a training set, and ratios that see the pair."""

import pytest
import torch
from scipy import stats

import mixaug
from helpers import seeded
from mixaug import Batch
from mixaug.draws import Draws
from mixaug.pairing import ClassPairs, Selective, WithinGroup
from mixaug.partners import TrainingSet

N = 60
LABELS = torch.tensor([0] * 30 + [1] * 18 + [2] * 12)
DOMAIN = (torch.arange(N) * 7 % 10 < 4).long() + 5
INPUTS = torch.arange(N).float()[:, None]
RELATIONS = ["same", "other", "any"]


def fits(relation, values, own, partner):
    same = values[own] == values[partner]
    return torch.ones_like(same) if relation == "any" else same if relation == "same" else ~same


@pytest.mark.parametrize("label", RELATIONS)
@pytest.mark.parametrize("group", RELATIONS)
@pytest.mark.parametrize("whole", [False, True])
def test_partners_are_uniform_among_all_that_fit(label, group, whole):
    pairing = Selective(label, ("domain", group))
    batch = Batch(INPUTS, LABELS, metadata={"domain": DOMAIN}, rows=torch.arange(N))
    counts, generator, repeats = torch.zeros(N, N), seeded(0), 100
    own, fitted = torch.arange(N), pairing.fit(LABELS, metadata={"domain": DOMAIN})
    for _ in range(repeats):
        draws = Draws(N, torch.device("cpu"), generator)
        if whole:
            partner = fitted.draw(batch, draws, own)
        else:
            partner = pairing(batch, draws)
        assert (fits(label, LABELS, own, partner) & fits(group, DOMAIN, own, partner)).all()
        counts[own, partner] += 1
    allowed = fits(label, LABELS, own[:, None], own) & fits(group, DOMAIN, own[:, None], own)
    # Over a training set whoever is not of their own class and group cannot be told from a twin, so rows are needed.
    if not whole or (label, group) in {("same", "same"), ("any", "any"), ("same", "any"), ("any", "same")}:
        allowed &= own[:, None] != own
    assert (counts[~allowed] == 0).all()
    expected = allowed.float() * repeats / allowed.sum(1, keepdim=True)
    large = expected > 0
    assert stats.chi2.sf(float(((counts - expected)[large] ** 2 / expected[large]).sum()), int(large.sum()) - N) > 1e-4


def test_a_sample_without_a_partner_stays_as_it_is():
    labels, domain = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 0, 0, 1])
    batch = Batch(torch.arange(4.0)[:, None], labels, metadata={"domain": domain})
    policy = mixaug.create("mixup", pairing=Selective("same", ("domain", "other")))
    mixed = policy(batch, generator=seeded(1))
    assert torch.equal(mixed.inputs, batch.inputs)
    torch.testing.assert_close(mixed.targets(3), torch.nn.functional.one_hot(labels, 3).float())
    # Of a whole training set too, and for a class that it does not have.
    source = TrainingSet(INPUTS, LABELS, metadata={"domain": DOMAIN})
    policy = mixaug.create("mixup", pairing=Selective("same", ("domain", "other")), partners=source)
    new = Batch(INPUTS[:2], torch.tensor([0, 7]), metadata={"domain": DOMAIN[:2]})
    mixed = policy(new, generator=seeded(2))
    assert mixed.partner.tolist() == [2, 1]
    assert torch.equal(mixed.inputs[1], INPUTS[1])


def test_dense_labels_count_by_their_largest_entry():
    labels = torch.tensor([[0.6, 0.4], [0.1, 0.9], [0.9, 0.1], [0.0, 1.0]])
    partner = Selective("same")(Batch(torch.zeros(4, 1), labels), Draws(4, torch.device("cpu"), seeded(6)))
    assert partner.tolist() == [2, 3, 0, 1]


def test_within_a_group_nobody_meets_themselves_but_the_lonely():
    group = torch.tensor([3, 3, 9, 9, 9, 4])
    partner = WithinGroup("image_id")(
        Batch(torch.zeros(6, 1), metadata={"image_id": group}), Draws(6, torch.device("cpu"), seeded(3))
    )
    assert torch.equal(group[partner], group)
    assert (partner != torch.arange(6)).tolist() == [True] * 5 + [False]


@pytest.mark.parametrize("whole", [False, True])
def test_class_pairs_follow_the_matrix(whole):
    matrix = torch.tensor([[0.0, 0.75, 0.25], [0.2, 0.8, 0.0], [0.0, 0.0, 0.0]])
    pairing, counts, generator = ClassPairs(matrix), torch.zeros(3, 3), seeded(4)
    for _ in range(300):
        draws = Draws(N, torch.device("cpu"), generator)
        batch = Batch(INPUTS, LABELS)
        partner = pairing.fit(LABELS).draw(batch, draws) if whole else pairing(batch, draws)
        alone = torch.full_like(partner, -1) if whole else torch.arange(N)
        assert torch.equal(partner[LABELS == 2], alone[LABELS == 2])
        found = (partner >= 0) & (LABELS != 2)
        counts.index_put_((LABELS[found], LABELS[partner[found]]), torch.ones(int(found.sum())), accumulate=True)
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    # In a batch nobody meets themselves, which takes a little from the own class.
    torch.testing.assert_close(shares[:2], matrix[:2], atol=0.02, rtol=0)
    matrix[0] = torch.tensor([0.0, 0.0, 1.0])
    partner = pairing(Batch(INPUTS, LABELS), Draws(N, torch.device("cpu"), generator))
    assert (LABELS[partner[LABELS == 0]] == 2).all()


def test_nobody_counts_as_their_own_partner_when_classes_share():
    # The first sample has one partner of either class, and both are as likely.
    pairing, generator, found = ClassPairs(torch.full((2, 2), 0.5)), seeded(14), torch.zeros(3)
    batch = Batch(torch.zeros(3, 1), torch.tensor([0, 0, 1]))
    for _ in range(2000):
        found[pairing(batch, Draws(3, torch.device("cpu"), generator))[0]] += 1
    torch.testing.assert_close(found / 2000, torch.tensor([0.0, 0.5, 0.5]), atol=0.045, rtol=0)


def test_a_ratio_may_go_by_the_pair():
    def more_of_the_rare_class(draws):
        size = torch.bincount(draws.batch.labels)[draws.batch.labels].float()
        return 1 - size / (size + size[draws.partner])

    policy = mixaug.create("mixup", ratio=more_of_the_rare_class)
    mixed = policy(INPUTS, LABELS, generator=seeded(5))
    own, other = (torch.bincount(LABELS)[LABELS[mixed.sources[:, i]]].float() for i in (0, 1))
    torch.testing.assert_close(mixed.lam, other / (own + other))


@pytest.mark.parametrize(("call", "message"), [
    (lambda: Selective("some"), r"Selective expects label in \['same', 'other', 'any'\], got 'some'"),
    (lambda: Selective("any", "domain"), "Selective expects group as a name and a word"),
    (lambda: Selective("any", ("domain", "near")), r"group\[1\] for 'domain' in .*, got 'near'"),
    (lambda: ClassPairs([[1.0]]), "matrix as a floating tensor"),
    (lambda: ClassPairs(torch.ones(2, 3)), r"matrix \(K, K\), got \(2, 3\)"),
    (lambda: ClassPairs(torch.tensor([[-1.0]])), "finite and not negative"),
    (lambda: mixaug.create("mixup", pairing=Selective("same"))(INPUTS), "pass labels with the images"),
    (lambda: mixaug.create("mixup", pairing=WithinGroup("image"))(INPUTS), r"looks at 'image' of each sample"),
    (lambda: Selective("same").fit(LABELS).draw(Batch(INPUTS, LABELS), Draws(N, INPUTS.device)), "pass rows="),
    (
        lambda: mixaug.create("mixup", pairing=WithinGroup("image"), partners=TrainingSet(INPUTS, LABELS)),
        "metadata 'image' as integers",
    ),
])  # fmt: skip
def test_what_cannot_work_is_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_a_class_that_the_training_set_lacks():
    """All of the set is of another class; nothing of it is of the same one."""
    labels, domain = torch.tensor([0, 0, 1, 1, 4, 4]), torch.tensor([0, 1, 0, 1, 0, 1])
    batch = Batch(torch.rand(3, 2), torch.tensor([1, 2, 9]), metadata={"domain": torch.tensor([0, 0, 7])})
    rows = torch.tensor([2, 0, 0])

    def reached(label, group=None):
        fitted = Selective(label, group).fit(labels, metadata={"domain": domain})
        drawn = torch.stack([fitted.draw(batch, Draws(3, batch.device, seeded(s)), rows) for s in range(200)], 1)
        return [sorted(set(one.tolist())) for one in drawn]

    assert reached("other") == [[0, 1, 4, 5], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]]
    assert reached("same") == [[3], [-1], [-1]]
    assert reached("other", ("domain", "same")) == [[0, 4], [0, 2, 4], [-1]]
    assert reached("any", ("domain", "other")) == [[1, 3, 5], [1, 3, 5], [0, 1, 2, 3, 4, 5]]
