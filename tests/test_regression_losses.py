"""Regression losses of mixed samples against loops, and their gradients."""

import pytest
import torch
from torch.nn import functional as F

import mixaug
from helpers import seeded
from mixaug.batch import MixedBatch
from mixaug.losses import MixedAbsoluteError, MixedHuber, MixedSquaredError, mixed_regression_loss

ERRORS = {
    "squared": (MixedSquaredError, lambda p, y: (p - y) ** 2),
    "absolute": (MixedAbsoluteError, lambda p, y: abs(p - y)),
    "huber": (MixedHuber, lambda p, y: 0.5 * (p - y) ** 2 if abs(p - y) <= 1 else abs(p - y) - 0.5),
}
every_error = pytest.mark.parametrize("kind", ERRORS)
#: B, D (None: vectors), M, rows of labels: the last one has the partners of `Pooled` behind the batch's own.
SHAPES = [(1, None, 1, 1), (7, None, 2, 7), (7, 1, 2, 7), (6, 3, 2, 6), (5, 4, 4, 5), (6, 2, 2, 12)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def case(shape, *, seed=0, dtype=torch.float64, sums_to_one=True):
    batch, columns, terms, rows = shape
    g = seeded(seed)
    tail = () if columns is None else (columns,)
    predictions = (2 * torch.randn((batch, *tail), generator=g, dtype=torch.float64)).to(dtype)
    labels = (2 * torch.randn((rows, *tail), generator=g, dtype=torch.float64)).to(dtype)
    sources = torch.randint(rows, (batch, terms), generator=g)
    sources[:, 0] = torch.arange(batch)
    weights = torch.rand(batch, terms, generator=g)
    weights[0], weights[0, 0] = 0, 1
    if sums_to_one:
        weights = weights / weights.sum(1, keepdim=True)
    return predictions, labels, sources, weights


def slow(error, against, predictions, labels, sources, weights):
    """(B, D) errors, one entry at a time."""
    predictions, labels = predictions.reshape(len(predictions), -1), labels.reshape(len(labels), -1)
    rows = []
    for i in range(len(predictions)):
        row = []
        for d in range(predictions.shape[1]):
            terms = [(float(w), float(labels[j, d])) for j, w in zip(sources[i], weights[i], strict=True)]
            p = float(predictions[i, d])
            if against == "target":
                row.append(error(p, sum(w * y for w, y in terms)))
            else:
                row.append(sum(w * error(p, y) for w, y in terms))
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


@every_error
@every_shape
@pytest.mark.parametrize("against", ["target", "sources"])
@pytest.mark.parametrize("sums_to_one", [True, False])
def test_against_a_loop(kind, shape, against, sums_to_one):
    made, error = ERRORS[kind]
    arguments = case(shape, sums_to_one=sums_to_one)
    predictions, labels, sources, weights = arguments
    mixed = MixedBatch(predictions, labels, sources, weights)
    expected = slow(error, against, *arguments)
    for reduction, wanted in [("none", expected.mean(1)), ("mean", expected.mean()), ("sum", expected.sum())]:
        got = made(against=against, reduction=reduction)(predictions, mixed)
        assert got.dtype == torch.float64
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)


@every_shape
def test_squared_error_has_the_same_gradient_either_way(shape):
    predictions, labels, sources, weights = case(shape)
    weights = weights.double() / weights.double().sum(1, keepdim=True)
    mixed = MixedBatch(predictions, labels, sources, weights)
    gradients, losses = [], []
    for against in ("target", "sources"):
        leaf = predictions.clone().requires_grad_()
        loss = MixedSquaredError(against, "sum")(leaf, mixed)
        loss.backward()
        gradients.append(leaf.grad)
        losses.append(loss.detach())
    torch.testing.assert_close(*gradients)
    # They differ by the spread of the labels around the mixed label.
    columns = labels.reshape(len(labels), -1)[sources]
    target = (weights[..., None] * columns).sum(1, keepdim=True)
    spread = (weights[..., None] * (columns - target).square()).sum()
    torch.testing.assert_close(losses[1] - losses[0], spread)


def test_the_others_pull_towards_the_nearer_label():
    # Labels 0 and 10, half and half: the mixed label is 5; beyond it the single labels pull on.
    labels, sources = torch.tensor([0.0, 10.0]), torch.tensor([[0, 1], [1, 0]])
    weights = torch.tensor([[0.7, 0.3], [0.7, 0.3]])
    for made in (MixedAbsoluteError, MixedHuber):
        found = []
        for against in ("target", "sources"):
            predictions = torch.tensor([2.0, 8.0], requires_grad=True)
            made(against=against, reduction="sum")(predictions, MixedBatch(None, labels, sources, weights)).backward()
            found.append(predictions.grad.tolist())
        # Targets 3 and 7: upwards to 3, down to 7; the sources: to the label of weight 0.7.
        assert found[0] == pytest.approx([-1.0, 1.0])
        assert found[1] == pytest.approx([0.4, -0.4])


@every_error
@pytest.mark.parametrize("against", ["target", "sources"])
def test_gradcheck(kind, against):
    predictions, labels, sources, weights = case((4, 3, 2, 8), seed=3)
    mixed = MixedBatch(None, labels, sources, weights.double())
    made = ERRORS[kind][0]
    assert torch.autograd.gradcheck(lambda p: made(against=against)(p, mixed), predictions.requires_grad_())


@pytest.mark.parametrize("delta", [0.1, 1.0, 25.0])
def test_huber_against_torch(delta):
    predictions, labels, sources, weights = case((6, 2, 2, 6), seed=4)
    mixed = MixedBatch(None, labels, sources, weights)
    expected = F.huber_loss(predictions, mixed.targets(), delta=delta)
    torch.testing.assert_close(MixedHuber(delta)(predictions, mixed), expected, rtol=1e-6, atol=1e-6)
    assert repr(MixedHuber(0.5, "sources", "sum")) == "MixedHuber(delta=0.5, against='sources', reduction='sum')"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("label_dtype", [torch.float32, torch.float64])
@every_error
def test_dtypes(kind, dtype, label_dtype):
    predictions, labels, sources, weights = case((6, 2, 2, 6), seed=5)
    predictions = predictions.to(dtype)
    mixed = MixedBatch(None, labels.to(label_dtype), sources, weights)
    made, error = ERRORS[kind]
    got = made(reduction="none")(predictions, mixed)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = slow(error, "target", predictions, labels, sources, weights).mean(1)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


def test_half_precision_does_not_overflow():
    predictions = torch.tensor([300.0, -300.0], dtype=torch.float16)
    mixed = MixedBatch(None, torch.tensor([-300.0, 300.0]), torch.tensor([[0], [1]]), torch.ones(2, 1))
    assert float(MixedSquaredError()(predictions, mixed)) == 600.0**2


@pytest.mark.parametrize("against", ["target", "sources"])
def test_labels_of_pooled_batches(against):
    inputs, labels = torch.randn(30, 4, generator=seeded(6)), torch.randn(30, 2, generator=seeded(7))
    for both in (False, True):
        mixed = mixaug.Pooled("cmixup", inputs, labels, both=both)(inputs[:5], labels[:5], generator=seeded(8))
        assert len(mixed.labels) == 10
        predictions = torch.randn(len(mixed), 2, generator=seeded(9))
        got = MixedSquaredError(against)(predictions, mixed)
        expected = slow(lambda p, y: (p - y) ** 2, against, predictions, mixed.labels, mixed.sources, mixed.weights)
        torch.testing.assert_close(got.double(), expected.mean(), rtol=1e-5, atol=1e-5)
    assert float(MixedSquaredError()(mixed.targets(), mixed)) < 1e-12


def test_vectors_and_single_columns_are_the_same():
    predictions, labels, sources, weights = case((7, None, 2, 7))
    expected = MixedSquaredError()(predictions, MixedBatch(None, labels, sources, weights))
    for p, y in [(predictions[:, None], labels), (predictions, labels[:, None])]:
        assert MixedSquaredError()(p, MixedBatch(None, y, sources, weights)) == expected


def test_through_mixstep_nothing_is_scored_as_classes():
    model = torch.nn.Linear(4, 2)
    images, labels = torch.randn(6, 4, generator=seeded(10)), torch.randn(6, 2, generator=seeded(11))
    _, scalars = mixaug.MixStep(model, mixaug.create("mixup"), MixedHuber())(images, labels, generator=seeded(12))
    assert set(scalars) == {"loss"}


P, Y, S, W = case((4, 2, 2, 4))


@pytest.mark.parametrize(("change", "message"), [
    ({"predictions": P.long()}, "floating predictions"),
    ({"predictions": P[:, :, None]}, r"predictions \(B,\) or \(B, D\), got \(4, 2, 1\)"),
    ({"predictions": P[:, 0]}, r"got predictions \(4,\) for labels \(4, 2\); the model needs one output per label"),
    ({"predictions": P[:, :1]}, r"got predictions \(4, 1\) for labels \(4, 2\)"),
    ({"predictions": P[:0]}, "empty batch"),
    ({"labels": Y.long()}, "expected floating labels, got torch.int64"),
    ({"labels": Y[:3]}, r"sources in \[0, 3\), got values from 0 to 3"),
    ({"labels": Y[:0]}, "4 samples, but labels of shape"),
    ({"sources": S[:3]}, r"sources of shape \(4, M\)"),
    ({"sources": S.float()}, "sources of dtype int64"),
    ({"sources": S + 4}, r"sources in \[0, 4\)"),
    ({"weights": W[:, :1]}, "weights shaped like sources"),
    ({"weights": W.long()}, "floating weights"),
    ({"against": "mean"}, "against 'target' or 'sources', got 'mean'"),
    ({"reduction": "max"}, "expects reduction in"),
])  # fmt: skip
def test_bad_arguments(change, message):
    arguments = {"predictions": P, "labels": Y, "sources": S, "weights": W, **change}
    with pytest.raises((ValueError, TypeError), match=message):
        mixed_regression_loss(lambda p, y: (p - y).square(), **arguments)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: MixedSquaredError("labels"), "MixedSquaredError expects against"),
    (lambda: MixedAbsoluteError(reduction="max"), "MixedAbsoluteError expects reduction"),
    (lambda: MixedHuber(0), "delta as a positive finite number, got 0"),
    (lambda: MixedHuber(float("nan")), "delta as a positive finite number, got nan"),
    (lambda: MixedSquaredError()(P, Y), "expected a MixedBatch, got Tensor"),
    (lambda: MixedSquaredError()(P, MixedBatch(None, None, S, W)), "needs labels"),
    (lambda: mixaug.losses.MixedRegressionLoss()(P, MixedBatch(None, Y, S, W)), "does not define error"),
])  # fmt: skip
def test_bad_objectives(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
