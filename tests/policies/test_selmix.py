"""SelMix beyond the contract: gains by the definition, what is mixed, refreshing, sampling, state."""

import copy
import dataclasses
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mixaug
from helpers import seeded
from mixaug.functional import selmix_gains, selmix_pairs
from mixaug.losses import MixedCrossEntropy
from mixaug.ops.confusion import MEASURES, measure_gradient
from mixaug.preparation import Inspection

B, K, D = 12, 4, 6
LABELS = torch.arange(B) % K
INPUTS = torch.randn(B, 5, generator=seeded(0))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body, self.fc = nn.Linear(5, D), nn.Linear(D, K)

    def forward(self, inputs):
        return self.fc(self.body(inputs).tanh())


def inspection(split="valid", labels=None):
    labels = torch.arange(80) % K if labels is None else labels
    pooled = torch.randn(len(labels), D, generator=seeded(1)) + 2 * F.one_hot(labels, D)
    model = Network()
    outputs = model.fc(pooled).detach()
    return Inspection(split, outputs, pooled, labels, model.fc.weight.detach(), model.fc.bias.detach())


def attached(**options):
    policy = mixaug.create("selmix", **options)
    policy.attach(Network())
    return policy


def test_gains_by_the_definition():
    gradient = torch.randn(K, K, generator=seeded(2), dtype=torch.float64)
    z, weight = (torch.randn(K, D, generator=seeded(seed), dtype=torch.float64) for seed in (3, 4))
    bias = torch.randn(K, generator=seeded(5), dtype=torch.float64)
    gains = selmix_gains(gradient, z, weight, bias, 0.8)
    for i in range(K):
        for j in range(K):
            mixed = 0.8 * z[i] + 0.2 * z[j]
            scores = (weight @ mixed + bias).softmax(0)
            wanted = sum(
                gradient[q, c] * ((z[i] @ z[q] if c == i else 0.0) - scores[c] * (mixed @ z[q]))
                for q in range(K)
                for c in range(K)
            )
            torch.testing.assert_close(gains[i, j], wanted)


@pytest.mark.parametrize("measure", ["mean_recall", "gmean", "hmean"])
def test_the_gradient_is_that_of_the_measure(measure):
    scores = torch.randn(K, K, generator=seeded(6), dtype=torch.float64, requires_grad=True)
    confusion = scores.softmax(1) / K
    recall = K * confusion.diagonal()
    means = {"mean_recall": recall.mean(), "gmean": recall.prod() ** (1 / K), "hmean": K / (1 / recall).sum()}
    value = means[measure]
    (wanted,) = torch.autograd.grad(value, scores)
    gradient, _ = measure_gradient(measure, confusion.detach())
    torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("measure", MEASURES)
def test_a_class_that_is_never_recognised_blinds_no_measure(measure):
    confusion = torch.full((K, K), 0.01, dtype=torch.float64)
    confusion.fill_diagonal_(0.22)
    confusion[0] = torch.tensor([0.0, 0.25, 0.0, 0.0])
    gradient, _ = measure_gradient(measure, confusion)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


def test_pairs_without_a_gain_are_out_and_without_any_all_are_as_likely():
    gains = torch.tensor([[0.3, -1.0], [0.1, 0.0]], dtype=torch.float64)
    pairs = selmix_pairs(gains, 0.1, 0.0)
    wanted = torch.tensor([[3.0, 0.0], [1.0, 0.0]], dtype=torch.float64).exp() * torch.tensor([[1, 0], [1, 0]])
    torch.testing.assert_close(pairs, wanted / wanted.sum())
    torch.testing.assert_close(selmix_pairs(-gains.abs() - 1, 0.1), torch.full((2, 2), 0.25, dtype=torch.float64))


def test_what_the_classifier_takes_in_is_mixed_and_the_own_label_counts():
    model = Network()
    step = mixaug.MixStep(model, mixaug.create("selmix", factor=0.2), MixedCrossEntropy())
    loss, _ = step(INPUTS, LABELS, generator=seeded(7))
    mixed = step.policy(INPUTS, LABELS, signals=model, generator=seeded(7))
    lam = mixed.plan.lam[:, None]
    assert 0.2 <= float(lam.min()) < 0.5
    features = model.body(INPUTS).tanh()
    logits = model.fc(lam * features + (1 - lam) * features[mixed.plan.partner])
    torch.testing.assert_close(loss, F.cross_entropy(logits, LABELS))
    torch.testing.assert_close(mixed.targets(K), F.one_hot(LABELS, K).float())


@pytest.mark.parametrize("measure", MEASURES)
def test_a_refresh_changes_who_is_mixed_and_drawn(measure):
    policy, before = attached(measure=measure), attached(measure=measure).current_pairs()
    torch.testing.assert_close(before, torch.full((K, K), 1 / K**2))
    policy.on_refresh(inspection())
    pairs = policy.current_pairs()
    torch.testing.assert_close(pairs.sum(), torch.tensor(1.0))
    assert not torch.equal(pairs, before)
    weights = policy.sampling(LABELS)
    assert weights.shape == (B,)
    for label in range(K):
        torch.testing.assert_close(weights[label == LABELS].sum(), pairs[label].sum())


def test_the_weakest_class_is_drawn_most_for_the_worst_recall():
    policy, seen = attached(measure="min_recall"), inspection()
    # All are recognised but those of class 2, which are taken for class 0.
    outputs = F.one_hot(torch.where(seen.labels == 2, 0, seen.labels), K).float()
    policy.on_refresh(dataclasses.replace(seen, outputs=outputs))
    assert int(policy.current_pairs().sum(1).argmax()) == 2


def test_a_state_may_be_loaded_before_the_model_is_known():
    stored = {"pairs": torch.rand(4, 4, generator=seeded(0))}
    policy = mixaug.create("selmix")
    policy.load_state_dict(stored)
    assert torch.equal(policy.current_pairs(), stored["pairs"])
    policy.attach(nn.Sequential(nn.Flatten(), nn.Linear(8, 4)))
    assert torch.equal(policy.current_pairs(), stored["pairs"])
    other = mixaug.create("selmix")
    other.load_state_dict(stored)
    with pytest.raises(ValueError, match="attached to a model of 4 classes, this one has 3"):
        other.attach(nn.Sequential(nn.Flatten(), nn.Linear(8, 3)))


def test_pairs_are_saved_and_a_copy_has_its_own():
    policy = attached()
    policy.on_refresh(inspection())
    file = io.BytesIO()
    torch.save(policy.state_dict(), file)
    file.seek(0)
    twin = attached()
    twin.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(twin.pairing.matrix, policy.current_pairs())
    copied = copy.deepcopy(policy)
    copied.pairs.fill_(0.5)
    assert torch.equal(copied.pairing.matrix, torch.full((K, K), 0.5))
    assert not torch.equal(policy.pairing.matrix, copied.pairing.matrix)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: mixaug.create("selmix", measure="accuracy"), "measure"),
    (lambda: mixaug.create("selmix", factor=1.5), "factor"),
    (lambda: mixaug.create("selmix", refresh_every=0), "refresh_every"),
    (lambda: mixaug.create("selmix")(INPUTS, LABELS, signals=Network()), "does not know the classes yet"),
    (lambda: attached().on_refresh(inspection(labels=torch.arange(80) % 3)), r"valid set, there are none of \[3\]"),
])  # fmt: skip
def test_what_cannot_work_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
