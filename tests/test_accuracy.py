"""Accuracy counts what the loss counts: one output, answers, ignored classes, importance, every integer dtype."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mixaug
from helpers import INTEGERS, seeded
from mixaug import MixedBatch, MixStep
from mixaug.losses import (
    DecoupledCrossEntropy,
    MixedBinaryCrossEntropy,
    MixedCrossEntropy,
    MixedLoss,
    mixed_accuracy,
    mixed_binary_cross_entropy,
)
from mixaug.objectives import RegMixup


class Given(nn.Module):
    """A model that gives the same outputs whatever it sees."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = nn.Parameter(torch.as_tensor(outputs))

    def forward(self, inputs):
        # Passes of several batches in one get as many rows.
        return self.outputs.repeat(len(inputs) // len(self.outputs), 1)


def logged(outputs, labels, objective):
    step = MixStep(Given(outputs), mixaug.create("none"), objective)
    return step(torch.rand(len(labels), 2), labels)[1].get("accuracy")


ANSWERS = torch.tensor([[0.0], [1.0], [1.0], [0.0]])
RIGHT = 9 * (2 * ANSWERS - 1)
YES_OR_NO = [
    MixedBinaryCrossEntropy(),
    MixedBinaryCrossEntropy(multi_label=True),
    MixedBinaryCrossEntropy(label_smoothing=0.1),
    MixedBinaryCrossEntropy(target_threshold=0.2),
    MixedBinaryCrossEntropy(sum_classes=True, pos_weight=2.0),
    RegMixup(loss=MixedBinaryCrossEntropy()),
]


@pytest.mark.parametrize("objective", YES_OR_NO)
@pytest.mark.parametrize(("outputs", "accuracy"), [(RIGHT, 1.0), (-RIGHT, 0.0), (torch.full((4, 1), -9.0), 0.5)])
def test_one_output_is_right_or_wrong(objective, outputs, accuracy):
    assert logged(outputs, ANSWERS, objective) == accuracy
    assert mixed_accuracy(outputs, ANSWERS) == accuracy
    for dtype in INTEGERS:
        assert mixed_accuracy(outputs, ANSWERS[:, 0].to(dtype)) == accuracy


def test_one_output_and_an_own_loss_of_class_ids():
    def loss(outputs, labels):
        return F.binary_cross_entropy_with_logits(outputs[:, 0], labels.float(), reduction="none")

    for outputs, accuracy in ((RIGHT, 1.0), (-RIGHT, 0.0)):
        assert logged(outputs, ANSWERS[:, 0].long(), MixedLoss(loss)) == accuracy


def test_a_mixed_answer_counts_by_its_share():
    mixed = MixedBatch(
        None, torch.tensor([[1.0], [0.0]]), torch.tensor([[0, 1], [1, 0]]), torch.tensor([[0.7, 0.3]] * 2)
    )
    # Targets are 0.7 and 0.3, and both are answered with yes.
    torch.testing.assert_close(mixed_accuracy(torch.ones(2, 1), mixed), torch.tensor(0.5))
    torch.testing.assert_close(mixed_accuracy(torch.tensor([[1.0], [-1.0]]), mixed), torch.tensor(0.7))


@pytest.mark.parametrize("objective", [MixedBinaryCrossEntropy(), MixedBinaryCrossEntropy(multi_label=True)])
def test_multi_hot_rows_are_answers_of_each_class(objective):
    labels = torch.tensor([[1.0, 1, 0], [0, 1, 0], [0, 0, 0], [1, 1, 1]])
    right = 9 * (2 * labels - 1)
    right[0, 2] = 9.0
    torch.testing.assert_close(logged(right, labels, objective), torch.tensor(11 / 12))
    torch.testing.assert_close(logged(-right, labels, objective), torch.tensor(1 / 12))


def test_rows_that_share_a_label_out_count_the_likeliest_class():
    labels = F.one_hot(torch.tensor([0, 1, 2, 1]), 3)
    outputs = torch.eye(3)[[0, 1, 2, 0]] - 5
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert logged(outputs, labels.to(dtype), MixedBinaryCrossEntropy()) == 0.75
        assert logged(outputs, labels.to(dtype), MixedCrossEntropy()) == 0.75
    assert logged(outputs, labels.argmax(1), MixedBinaryCrossEntropy()) == 0.75
    assert logged(outputs, labels.argmax(1), DecoupledCrossEntropy()) == 0.75


@pytest.mark.parametrize("ignored", [3, 255, -100, -1])
def test_what_the_loss_ignores_is_not_counted(ignored):
    labels, outputs = torch.tensor([0, 1, ignored, 2]), 9 * torch.eye(4)
    for objective in (
        MixedCrossEntropy(ignore_index=ignored),
        MixedLoss(nn.CrossEntropyLoss(ignore_index=ignored, reduction="none")),
    ):
        torch.testing.assert_close(logged(outputs, labels, objective), torch.tensor(2 / 3))
    with pytest.raises(ValueError, match=r"class ids in \[0, 4\); got 255"):
        mixed_accuracy(outputs, torch.tensor([0, 1, 255, 2]))


def test_samples_count_by_their_importance():
    rows = torch.arange(3)[:, None]
    mixed = MixedBatch(None, torch.tensor([0, 1, 0]), rows, torch.ones(3, 1), importance=torch.tensor([1.0, 0.5, 0.0]))
    torch.testing.assert_close(mixed_accuracy(torch.eye(3)[[0, 0, 2]], mixed), torch.tensor(1 / 1.5))


def test_outputs_that_are_no_class_scores_log_no_accuracy():
    embedding = MixedLoss(lambda outputs, labels: outputs.square().mean(1))
    assert logged(torch.rand(4, 2), torch.tensor([0, 5, 7, 9]), embedding) is None
    assert logged(RIGHT, ANSWERS, MixedLoss(lambda outputs, labels: (outputs - labels).square().mean(1))) is None


def test_losses_over_classes_refuse_a_single_output():
    for labels in (ANSWERS, ANSWERS[:, 0].long()):
        with pytest.raises(ValueError, match="use MixedBinaryCrossEntropy"):
            logged(RIGHT, labels, MixedCrossEntropy())
    with pytest.raises(ValueError, match=r"labels\[:, None\]\.float\(\)"):
        logged(RIGHT, ANSWERS[:, 0].long(), MixedBinaryCrossEntropy())


def test_the_even_share_of_a_single_output_is_a_half():
    logits, rows, one = torch.tensor([[0.7], [-0.4]]), torch.arange(2)[:, None], torch.ones(2, 1)
    labels, smooth = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.1], [0.9]])
    got = mixed_binary_cross_entropy(logits, labels, rows, one, label_smoothing=0.2)
    torch.testing.assert_close(got, F.binary_cross_entropy_with_logits(logits, smooth))
    torch.testing.assert_close(MixedBatch(None, labels, rows, one).targets(1, 0.2), smooth)
    got = mixed_binary_cross_entropy(logits, labels, rows, one / 2, uniform=torch.full((2,), 0.5))
    torch.testing.assert_close(got, F.binary_cross_entropy_with_logits(logits, labels / 2 + 0.25))


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"target_threshold": 0.2}])
@pytest.mark.parametrize("dense", [False, True])
def test_pos_weight_is_that_of_torch(options, dense):
    generator = seeded(3)
    logits = torch.randn(6, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([1.0, 2.0, 0.5, 4.0, 0.1])
    ids = torch.randint(5, (6,), generator=generator)
    labels = F.one_hot(ids, 5).double() if dense else ids
    mixed = mixaug.create("mixup")(torch.rand(6, 1, 2, 2, generator=generator), labels, generator=generator)
    targets = mixed.targets(5, options.get("label_smoothing", 0.0)).double()
    if "target_threshold" in options:
        targets = (targets > options["target_threshold"]).double()
    for given in (weight, weight.tolist(), 3.0):
        factor = torch.as_tensor(given).double()
        expected = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=factor)
        got = MixedBinaryCrossEntropy(**options, pos_weight=given)(logits, mixed)
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(
            *(torch.autograd.grad(value, logits)[0] for value in (got, expected)), rtol=1e-6, atol=1e-7
        )


def test_pos_weight_that_does_not_fit_is_refused():
    for wrong in (0.0, -1.0, float("nan"), [1.0, 0.0], [[1.0]], []):
        with pytest.raises(ValueError, match="pos_weight as one positive number or one for each class"):
            MixedBinaryCrossEntropy(pos_weight=wrong)
    with pytest.raises(ValueError, match=r"pos_weight \(1,\) floating"):
        logged(RIGHT, ANSWERS, MixedBinaryCrossEntropy(pos_weight=[1.0, 2.0]))


@pytest.mark.parametrize("dtype", INTEGERS)
def test_losses_take_class_ids_of_every_integer_dtype(dtype):
    logits, ids = torch.randn(6, 5, generator=seeded(0)), torch.tensor([0, 4, 2, 2, 1, 3])
    images = torch.rand(6, 1, 2, 2, generator=seeded(1))
    for policy in ("mixup", "cmixup"):
        expected, mixed = (
            mixaug.create(policy)(images, labels, generator=seeded(2)) for labels in (ids, ids.to(dtype))
        )
        assert mixed.labels.dtype == dtype
        for loss in (
            *(MixedCrossEntropy(), MixedBinaryCrossEntropy(), MixedBinaryCrossEntropy(target_threshold=0.2)),
            *(DecoupledCrossEntropy(), MixedLoss(nn.MultiMarginLoss(reduction="none")), mixed_accuracy),
        ):
            assert torch.equal(loss(logits, mixed), loss(logits, expected))


def counted_above(outputs, targets, importance, topk):
    """Share of the classes above the threshold that are among the first ones, sample by sample."""
    hit = total = 0.0
    for row, target, factor in zip(outputs.tolist(), targets.tolist(), importance.tolist(), strict=True):
        best = sorted(range(len(row)), key=lambda k: -row[k])[:topk]
        hit += factor * sum(target[k] for k in best)
        total += factor * sum(target)
    return hit / total


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize(("threshold", "smoothing"), [(0.0, 0.0), (0.2, 0.0), (0.2, 0.5), (0.6, 0.0), (0.05, 0.3)])
def test_targets_above_a_threshold_count_as_the_loss_counts_them(dense, threshold, smoothing):
    generator = seeded(5)
    outputs = torch.randn(9, 4, generator=generator)
    ids = torch.randint(4, (9,), generator=generator)
    mixed = mixaug.create("mixup")(torch.rand(9, 1, 2, 2, generator=generator), ids, generator=generator)
    loss = MixedBinaryCrossEntropy(target_threshold=threshold, label_smoothing=smoothing)
    for uniform, importance in ((None, None), (torch.linspace(0, 0.5, 9), torch.linspace(0, 2, 9))):
        shares = mixed.targets(4, smoothing) + (0 if uniform is None else uniform[:, None] / 4)
        above = (shares > threshold).float()
        labels = F.one_hot(ids, 4).float() if dense else ids
        given = MixedBatch(None, labels, mixed.sources, mixed.weights, uniform=uniform, importance=importance)
        # What is expected is what the loss is zero for: outputs that say yes to just these classes.
        assert loss(100 * (2 * above - 1), given) < 1e-6
        for topk in (1, 2):
            expected = counted_above(outputs, above, torch.ones(9) if importance is None else importance, topk)
            options = {"target_threshold": threshold, "label_smoothing": smoothing}
            torch.testing.assert_close(mixed_accuracy(outputs, given, topk, **options), torch.tensor(expected))
    policy = mixaug.create("mixup")
    _, log = MixStep(Given(outputs), policy, loss)(torch.rand(9, 2), ids, generator=seeded(7))
    drawn = policy(torch.rand(9, 2), ids, generator=seeded(7)).targets(4, smoothing)
    expected = counted_above(outputs, (drawn > threshold).float(), torch.ones(9), 1)
    torch.testing.assert_close(log["accuracy"], torch.tensor(expected))


def test_answers_above_a_threshold_are_a_yes():
    mixed = MixedBatch(
        None, torch.tensor([[1.0, 1, 0], [0, 1, 1]]), torch.tensor([[0, 1], [1, 0]]), torch.tensor([[0.7, 0.3]] * 2)
    )
    # Targets are 0.7, 1, 0.3 and 0.3, 1, 0.7.
    outputs = torch.tensor([[1.0, 1, 1], [1, -1, -1]])
    for threshold, right in ((0.2, 4), (0.5, 2)):
        for multi_label in (True, None):
            got = mixed_accuracy(outputs, mixed, multi_label=multi_label, target_threshold=threshold)
            torch.testing.assert_close(got, torch.tensor(right / 6))


def test_a_threshold_that_is_none_is_refused():
    for options, told in (
        ({"target_threshold": 1.0}, r"target_threshold in \[0, 1\) or None, got 1.0"),
        ({"label_smoothing": 0.1}, "label_smoothing=0.1, which acts on a target_threshold alone"),
        ({"target_threshold": 0.1, "label_smoothing": 2}, "label_smoothing"),
    ):
        with pytest.raises(ValueError, match=told):
            mixed_accuracy(RIGHT, ANSWERS, **options)


def test_a_sample_without_any_label_counts_nothing_beside_a_threshold():
    logits, labels = torch.tensor([[2.0], [2.0], [-1.0]]), torch.tensor([1, -100, 0])
    for threshold in (None, 0.2):
        assert float(mixed_accuracy(logits, labels, target_threshold=threshold)) == 1.0
