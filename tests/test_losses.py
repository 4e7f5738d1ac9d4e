"""Mixed losses against torch and timm on dense targets, built here by the slowest route there is."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import mixaug
from helpers import seeded
from mixaug import losses
from mixaug.batch import MixedBatch
from mixaug.losses import (
    MixedBinaryCrossEntropy,
    MixedCrossEntropy,
    MixedLoss,
    mixed_accuracy,
    mixed_binary_cross_entropy,
    mixed_cross_entropy,
    mixed_loss,
)

# B, K, M: one sample, two classes, one source and many sources included.
SHAPES = [(1, 2, 1), (1, 5, 2), (7, 3, 2), (16, 10, 2), (5, 40, 4), (33, 11, 3)]


def case(
    shape: tuple[int, int, int],
    *,
    seed: int = 0,
    sums_to_one: bool = True,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, classes, terms = shape
    g = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, classes, generator=g, dtype=dtype)
    labels = torch.randint(classes, (batch,), generator=g)
    sources = torch.randint(batch, (batch, terms), generator=g)
    sources[:, 0] = torch.arange(batch)
    weights = torch.rand(batch, terms, generator=g)
    weights[::3] = 0
    weights[::3, 0] = 1  # an unmixed sample every third row
    if sums_to_one:
        weights = weights / weights.sum(1, keepdim=True)
    return logits.requires_grad_(), labels, sources, weights


def dense(labels: Tensor, sources: Tensor, weights: Tensor, classes: int, smoothing: float = 0.0) -> Tensor:
    """The slow twin: every source's smoothed target row, added up one at a time."""
    targets = torch.zeros(len(sources), classes, dtype=torch.float64)
    for row in range(len(sources)):
        for source, weight in zip(sources[row], weights[row], strict=True):
            label = labels[source]
            own = label.double() if label.ndim else F.one_hot(label, classes).double()
            targets[row] += weight.double() * (own * (1 - smoothing) + smoothing / classes)
    return targets


def same(ours: Tensor, reference: Tensor, logits: Tensor, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(ours, reference, rtol=tolerance, atol=tolerance)
    ours_grad, reference_grad = (
        torch.autograd.grad(loss.sum(), logits, retain_graph=True)[0] for loss in (ours, reference)
    )
    torch.testing.assert_close(ours_grad, reference_grad, rtol=tolerance, atol=tolerance)


def soft_labels(batch: int, classes: int, seed: int = 5) -> Tensor:
    return torch.rand(batch, classes, generator=torch.Generator().manual_seed(seed)).softmax(1)


class TestCrossEntropy:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
    @pytest.mark.parametrize("weighted", [False, True])
    @pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
    def test_equals_torch_on_dense_targets(self, shape, smoothing, weighted, reduction):
        logits, labels, sources, weights = case(shape)
        class_weight = torch.linspace(0.2, 3, shape[1], dtype=torch.float64) if weighted else None
        ours = mixed_cross_entropy(
            logits,
            labels,
            sources,
            weights,
            label_smoothing=smoothing,
            class_weight=class_weight,
            reduction=reduction,
        )
        targets = dense(labels, sources, weights, shape[1])
        reference = F.cross_entropy(
            logits, targets, weight=class_weight, label_smoothing=smoothing, reduction=reduction
        )
        same(ours, reference, logits)

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("weighted", [False, True])
    def test_dense_labels_equal_torch(self, shape, weighted):
        logits, _, sources, weights = case(shape)
        labels = soft_labels(shape[0], shape[1])
        class_weight = torch.linspace(0.2, 3, shape[1]) if weighted else None
        ours = mixed_cross_entropy(logits, labels, sources, weights, label_smoothing=0.1, class_weight=class_weight)
        targets = dense(labels, sources, weights, shape[1])
        weight = None if class_weight is None else class_weight.double()
        same(ours, F.cross_entropy(logits, targets, weight=weight, label_smoothing=0.1), logits)

    def test_one_hot_labels_equal_class_ids(self):
        logits, labels, sources, weights = case((16, 10, 2))
        ids = mixed_cross_entropy(logits, labels, sources, weights, label_smoothing=0.1)
        rows = F.one_hot(labels, 10).float()
        same(mixed_cross_entropy(logits, rows, sources, weights, label_smoothing=0.1), ids, logits)

    def test_rows_that_do_not_sum_to_one_are_smoothed_per_source(self):
        # SnapMix (arXiv:2012.04846): torch would spread eps / K once per row, whatever the row's weight.
        logits, labels, sources, weights = case((16, 10, 3), sums_to_one=False)
        ours = mixed_cross_entropy(logits, labels, sources, weights, label_smoothing=0.1)
        same(ours, F.cross_entropy(logits, dense(labels, sources, weights, 10, 0.1)), logits)

    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    @pytest.mark.parametrize("ignored", [0, 3])
    def test_unmixed_batch_equals_torch_on_class_ids(self, smoothing, ignored):
        logits, labels, _, _ = case((16, 10, 1))
        labels[:ignored] = -100
        ours = mixed_cross_entropy(
            logits, labels, torch.arange(16)[:, None], torch.ones(16, 1), label_smoothing=smoothing
        )
        same(ours, F.cross_entropy(logits, labels, label_smoothing=smoothing), logits)

    @pytest.mark.parametrize("reduction", ["none", "sum"])
    def test_unmixed_batch_with_class_weights_equals_torch_on_class_ids(self, reduction):
        # Under "mean" torch's two forms divide differently (by summed class weight, by B); we follow the
        # dense one.
        logits, labels, _, _ = case((16, 10, 1))
        labels[3] = 7
        options = {"label_smoothing": 0.2, "ignore_index": 7, "reduction": reduction}
        weight = torch.linspace(0.2, 3, 10, dtype=torch.float64)
        ours = mixed_cross_entropy(
            logits, labels, torch.arange(16)[:, None], torch.ones(16, 1), class_weight=weight, **options
        )
        same(ours, F.cross_entropy(logits, labels, weight=weight, **options), logits)

    @pytest.mark.parametrize("ignore_index", [-100, 3, 255])
    def test_ignored_sources_drop_out_with_their_weight(self, ignore_index):
        logits, labels, sources, weights = case((12, 5, 3))
        labels[labels == 3] = 0
        labels[::4] = ignore_index
        total, samples = torch.zeros((), dtype=torch.float64), 0.0
        for row in range(12):
            for source, weight in zip(sources[row], weights[row], strict=True):
                if labels[source] != ignore_index:
                    total = total + weight * F.cross_entropy(logits[row], labels[source], label_smoothing=0.1)
                    samples += float(weight / weights[row].sum())
        options = {"ignore_index": ignore_index, "label_smoothing": 0.1}
        same(mixed_cross_entropy(logits, labels, sources, weights, **options), total / samples, logits)
        same(mixed_cross_entropy(logits, labels, sources, weights, reduction="sum", **options), total, logits)

    def test_ignored_source_leaves_no_nan_where_class_zero_is_masked_out(self):
        logits, labels, sources, weights = case((6, 5, 2))
        labels = labels.clamp(min=1)
        labels[0] = -100
        masked = logits.detach().clone()
        masked[:, 0] = -torch.inf
        assert mixed_cross_entropy(masked, labels, sources, weights).isfinite()

    def test_mean_of_nothing_is_nan_as_in_torch(self):
        logits = torch.zeros(2, 3)
        labels = torch.full((2,), -100)
        args = (torch.arange(2)[:, None], torch.ones(2, 1))
        assert mixed_cross_entropy(logits, labels, *args).isnan() and F.cross_entropy(logits, labels).isnan()
        assert mixed_cross_entropy(logits, labels, *args, reduction="sum") == 0

    @pytest.mark.parametrize("policy", ["none", "mixup"])
    def test_what_docs_say_of_a_batch_without_labels_holds_for_every_loss(self, policy):
        logits = torch.randn(4, 3, generator=seeded(0))
        mixed = mixaug.create(policy)(torch.rand(4, 2), torch.full((4,), -100), generator=seeded(1))
        assert mixaug.losses.MixedCrossEntropy()(logits, mixed).isnan() and mixed_accuracy(logits, mixed).isnan()
        assert mixaug.losses.MixedCrossEntropy(label_smoothing=0.1)(logits, mixed).isnan()
        assert mixaug.losses.MixedCrossEntropy(reduction="sum")(logits, mixed) == 0
        assert mixaug.losses.MixedLoss(torch.nn.CrossEntropyLoss(reduction="none"))(logits, mixed) == 0
        for other in (mixaug.losses.MixedBinaryCrossEntropy(), mixaug.losses.DecoupledCrossEntropy()):
            with pytest.raises(ValueError, match=r"expected class ids in \[0, 3\).*got -100"):
                other(logits, mixed)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_computed_in_float32(self, dtype):
        logits, labels, sources, weights = case((16, 300, 2), dtype=torch.float32)
        logits = logits.detach().to(dtype).requires_grad_()
        options = {"label_smoothing": 0.1, "class_weight": torch.linspace(0.5, 2, 300)}
        ours = mixed_cross_entropy(logits, labels, sources, weights, **options)
        full = mixed_cross_entropy(logits.float(), labels, sources, weights, **options)
        assert ours.dtype == torch.float32
        assert torch.equal(ours, full)
        assert torch.autograd.grad(ours, logits)[0].dtype == dtype
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(mixed_cross_entropy(logits, labels, sources, weights, **options), full)

    def test_huge_logits_stay_finite(self):
        logits = torch.tensor([[1e4, -1e4, 0.0]])
        own, full = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1)
        assert mixed_cross_entropy(logits, torch.tensor([1]), own, full) == 2e4

    @pytest.mark.parametrize("labels", ["ids", "dense"])
    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    def test_gradcheck_in_logits_and_weights(self, labels, smoothing):
        logits, ids, sources, weights = case((5, 4, 3), sums_to_one=False)
        rows = ids if labels == "ids" else soft_labels(5, 4).double()
        if labels == "ids":
            rows[2] = -100
        class_weight = torch.linspace(0.2, 3, 4, dtype=torch.float64)

        def loss(x: Tensor, w: Tensor) -> Tensor:
            return mixed_cross_entropy(x, rows, sources, w, label_smoothing=smoothing, class_weight=class_weight)

        assert torch.autograd.gradcheck(loss, (logits, weights.double().requires_grad_()))

    def test_permuting_the_batch_permutes_the_loss(self):
        logits, labels, sources, weights = case((9, 6, 2))
        order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
        place = torch.argsort(order)
        straight = mixed_cross_entropy(logits, labels, sources, weights, reduction="none")
        moved = mixed_cross_entropy(
            logits[order], labels[order], place[sources[order]], weights[order], reduction="none"
        )
        torch.testing.assert_close(moved, straight[order])

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
    def test_any_integer_label_dtype(self, dtype):
        logits, labels, sources, weights = case((9, 6, 2))
        assert torch.equal(
            mixed_cross_entropy(logits, labels.to(dtype), sources, weights),
            mixed_cross_entropy(logits, labels, sources, weights),
        )

    @pytest.mark.slow
    def test_compiles_without_graph_break(self):
        logits, labels, sources, weights = case((9, 6, 2), dtype=torch.float32)
        compiled = torch.compile(mixed_cross_entropy, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(
            compiled(logits, labels, sources, weights, label_smoothing=0.1),
            mixed_cross_entropy(logits, labels, sources, weights, label_smoothing=0.1),
        )


class TestBinaryCrossEntropy:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    @pytest.mark.parametrize("threshold", [None, 0.0, 0.2, 0.55])
    @pytest.mark.parametrize("sum_classes", [False, True])
    def test_equals_dense_targets(self, shape, smoothing, threshold, sum_classes):
        logits, labels, sources, weights = case(shape, sums_to_one=False)
        ours = mixed_binary_cross_entropy(
            logits,
            labels,
            sources,
            weights,
            label_smoothing=smoothing,
            target_threshold=threshold,
            sum_classes=sum_classes,
        )
        targets = dense(labels, sources, weights, shape[1], smoothing)
        if threshold is not None:
            targets = (targets > threshold).double()
        elements = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        same(ours, elements.sum(1).mean() if sum_classes else elements.mean(), logits)

    @pytest.mark.parametrize("threshold", [None, 0.2, 0.5])
    @pytest.mark.parametrize("sum_classes", [False, True])
    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    def test_against_timm(self, threshold, sum_classes, smoothing):
        timm_loss = pytest.importorskip("timm.loss")
        timm_mixup = pytest.importorskip("timm.data.mixup")
        logits, labels, _, _ = case((16, 10, 2), dtype=torch.float32)
        labels[-3] = labels[2]  # a pair of one class: its two weights add up before the threshold
        lam = torch.rand(16, 1, generator=torch.Generator().manual_seed(3))
        reference = timm_loss.BinaryCrossEntropy(smoothing=0.0, target_threshold=threshold, sum_classes=sum_classes)(
            logits, timm_mixup.mixup_target(labels, 10, lam, smoothing)
        )
        ours = mixed_binary_cross_entropy(
            logits,
            labels,
            torch.stack([torch.arange(16), torch.arange(16).flip(0)], 1),
            torch.cat([lam, 1 - lam], 1),
            label_smoothing=smoothing,
            target_threshold=threshold,
            sum_classes=sum_classes,
        )
        same(ours, reference, logits)

    def test_a_pair_of_one_class_passes_the_threshold_together(self):
        logits = torch.tensor([[0.3, -1.2], [2.0, 0.1]])
        args = (torch.tensor([1, 1]), torch.tensor([[0, 1], [1, 0]]), torch.tensor([[0.5, 0.5], [0.5, 0.5]]))
        ours = mixed_binary_cross_entropy(logits, *args, target_threshold=0.8)
        targets = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
        torch.testing.assert_close(ours, F.binary_cross_entropy_with_logits(logits, targets))

    @pytest.mark.parametrize("threshold", [None, 0.3])
    @pytest.mark.parametrize("multi_label", [False, True])
    def test_dense_labels(self, threshold, multi_label):
        timm_mixup = pytest.importorskip("timm.data.mixup")
        logits, _, _, _ = case((8, 6, 2), dtype=torch.float32)
        labels = (torch.rand(8, 6, generator=torch.Generator().manual_seed(2)) > 0.6).float()
        lam = torch.rand(8, 1, generator=torch.Generator().manual_seed(3))
        sources = torch.stack([torch.arange(8), torch.arange(8).flip(0)], 1)
        weights = torch.cat([lam, 1 - lam], 1)
        if multi_label:
            targets = timm_mixup.mixup_target(labels, 6, lam, 0.1, multi_label=True)
        else:
            targets = dense(labels, sources, weights, 6, 0.1).float()
        if threshold is not None:
            targets = (targets > threshold).float()
        ours = mixed_binary_cross_entropy(
            logits,
            labels,
            sources,
            weights,
            label_smoothing=0.1,
            target_threshold=threshold,
            multi_label=multi_label,
        )
        same(ours, F.binary_cross_entropy_with_logits(logits, targets), logits)

    def test_reductions_agree(self):
        logits, labels, sources, weights = case((9, 6, 2))
        rows = mixed_binary_cross_entropy(logits, labels, sources, weights, reduction="none")
        assert rows.shape == (9,)
        total = mixed_binary_cross_entropy(logits, labels, sources, weights, reduction="sum")
        torch.testing.assert_close(total, rows.sum())
        torch.testing.assert_close(mixed_binary_cross_entropy(logits, labels, sources, weights), rows.mean())

    @pytest.mark.parametrize("threshold", [None, 0.2])
    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    def test_gradcheck(self, threshold, smoothing):
        logits, labels, sources, weights = case((5, 4, 3), sums_to_one=False)

        def loss(x: Tensor, w: Tensor) -> Tensor:
            return mixed_binary_cross_entropy(
                x, labels, sources, w, label_smoothing=smoothing, target_threshold=threshold
            )

        weights = weights.double().requires_grad_(threshold is None)
        assert torch.autograd.gradcheck(loss, (logits, weights))

    def test_large_logits_are_exact_in_float64(self):
        logits = torch.tensor([[-60.0, 25.0, 60.0]], dtype=torch.float64)
        args = (torch.tensor([0]), torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1))
        reference = F.binary_cross_entropy_with_logits(
            logits, torch.tensor([[1.0, 0, 0]], dtype=torch.float64), reduction="none"
        )
        assert mixed_binary_cross_entropy(logits, *args, sum_classes=True) == reference.sum()

    def test_half_precision_is_computed_in_float32(self):
        logits, labels, sources, weights = case((16, 300, 2), dtype=torch.float32)
        logits = logits.detach().to(torch.bfloat16)
        ours = mixed_binary_cross_entropy(logits, labels, sources, weights)
        assert ours.dtype == torch.float32
        assert torch.equal(ours, mixed_binary_cross_entropy(logits.float(), labels, sources, weights))

    @pytest.mark.slow
    @pytest.mark.parametrize("threshold", [None, 0.2])
    def test_compiles_without_graph_break(self, threshold):
        logits, labels, sources, weights = case((9, 6, 2), dtype=torch.float32)
        options = {"label_smoothing": 0.1, "target_threshold": threshold}
        compiled = torch.compile(mixed_binary_cross_entropy, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(
            compiled(logits, labels, sources, weights, **options),
            mixed_binary_cross_entropy(logits, labels, sources, weights, **options),
        )


def focal(logits: Tensor, labels: Tensor) -> Tensor:
    """Focal loss, arXiv:1708.02002, gamma = 2."""
    log_p = F.log_softmax(logits, 1).gather(1, labels[:, None])[:, 0]
    return -((1 - log_p.exp()) ** 2) * log_p


class TestMixedLoss:
    def test_cross_entropy_through_the_wrapper(self):
        logits, labels, sources, weights = case((16, 10, 3), sums_to_one=False)
        ours = mixed_loss(nn.CrossEntropyLoss(reduction="none"), logits, labels, sources, weights)
        same(ours, mixed_cross_entropy(logits, labels, sources, weights), logits)

    def test_focal_loss(self):
        logits, labels, sources, weights = case((7, 10, 2))
        reference = sum(
            weights[b, m] * focal(logits[b : b + 1], labels[sources[b, m]][None])[0] for b in range(7) for m in range(2)
        )
        same(mixed_loss(focal, logits, labels, sources, weights, reduction="sum"), reference, logits)

    def test_regression_labels(self):
        _, _, sources, weights = case((6, 2, 2))
        outputs, labels = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
        rows = mixed_loss(lambda x, y: (x - y).square().mean(1), outputs, labels, sources, weights, reduction="none")
        second = labels[sources[:, 1]]
        expected = weights[:, 0] * (outputs - labels).square().mean(1)
        expected = expected + weights[:, 1] * (outputs - second).square().mean(1)
        torch.testing.assert_close(rows, expected)

    @pytest.mark.parametrize(
        ("loss", "way_out"),
        [
            (nn.CrossEntropyLoss(), "reduction='none'"),
            (lambda x, y: 0.5, "reduction='none'"),
            (lambda x, y: x * 1.0, r"loss\(x, y\)\.mean\(1\)"),
        ],
    )
    def test_loss_that_is_not_per_sample_is_refused(self, loss, way_out):
        logits, labels, sources, weights = case((6, 4, 2))
        with pytest.raises(ValueError, match=rf"one loss per sample, shape \(6,\).*{way_out}"):
            mixed_loss(loss, logits, labels, sources, weights)


class TestModules:
    def mixed(self, shape: tuple[int, int, int]) -> tuple[Tensor, MixedBatch]:
        logits, labels, sources, weights = case(shape)
        return logits, MixedBatch(None, labels, sources, weights)

    def test_equal_their_functions(self):
        logits, mixed = self.mixed((16, 10, 2))
        args = (logits, mixed.labels, mixed.sources, mixed.weights)
        weight = torch.linspace(0.5, 2, 10)
        pairs = [
            (
                MixedCrossEntropy(0.1, weight, 3, "sum"),
                mixed_cross_entropy(*args, label_smoothing=0.1, class_weight=weight, ignore_index=3, reduction="sum"),
            ),
            (
                MixedBinaryCrossEntropy(0.1, 0.2, sum_classes=True),
                mixed_binary_cross_entropy(*args, label_smoothing=0.1, target_threshold=0.2, sum_classes=True),
            ),
            (MixedLoss(focal, "none"), mixed_loss(focal, *args, reduction="none")),
        ]
        for module, expected in pairs:
            assert torch.equal(module(logits, mixed), expected)
            assert repr(module)

    def test_class_weight_moves_with_the_module_and_is_saved(self):
        module = MixedCrossEntropy(class_weight=torch.ones(3)).double()
        assert module.class_weight.dtype == torch.float64
        assert "class_weight" in module.state_dict()

    @pytest.mark.parametrize("module", [MixedCrossEntropy(), MixedBinaryCrossEntropy(), MixedLoss(focal)])
    def test_missing_labels_and_plain_tensors_are_refused(self, module):
        logits, mixed = self.mixed((4, 3, 2))
        with pytest.raises(ValueError, match="needs labels"):
            module(logits, dataclasses.replace(mixed, labels=None))
        with pytest.raises(TypeError, match="expected a MixedBatch, got Tensor"):
            module(logits, torch.zeros(4, dtype=torch.long))

    @pytest.mark.parametrize(
        ("build", "message"),
        [
            (lambda: MixedCrossEntropy(label_smoothing=1.5), "label_smoothing"),
            (lambda: MixedCrossEntropy(reduction="avg"), "reduction"),
            (lambda: MixedBinaryCrossEntropy(target_threshold=1.0), "target_threshold"),
            (lambda: MixedLoss(focal, reduction="avg"), "reduction"),
        ],
    )
    def test_bad_options(self, build, message):
        with pytest.raises(ValueError, match=message):
            build()
        with pytest.raises(TypeError, match="callable"):
            MixedLoss(3)


class TestAccuracy:
    def test_equals_plain_accuracy_on_class_ids(self):
        logits, labels, _, _ = case((50, 7, 1))
        expected = (logits.argmax(1) == labels).float().mean()
        torch.testing.assert_close(mixed_accuracy(logits, labels), expected)

    @pytest.mark.parametrize("topk", [1, 2, 5, (1, 3), (5, 1), (1, 100)])
    def test_index_form_equals_dense_form_and_slow_twin(self, topk):
        logits, labels, sources, weights = case((20, 7, 3), sums_to_one=False)
        mixed = MixedBatch(None, labels, sources, weights)
        targets = dense(labels, sources, weights, 7)
        expected = []
        for k in (topk,) if isinstance(topk, int) else topk:
            best = [row.argsort(descending=True)[:k] for row in logits]
            hit = sum(float(t[b].sum()) for t, b in zip(targets, best, strict=True))
            expected.append(hit / float(targets.sum()))
        expected = torch.tensor(expected[0] if isinstance(topk, int) else expected)
        torch.testing.assert_close(mixed_accuracy(logits, mixed, topk), expected)
        torch.testing.assert_close(mixed_accuracy(logits, targets, topk), expected)

    def test_counts_lam_of_the_class_that_is_right(self):
        logits = torch.tensor([[0.0, 9.0, 1.0], [9.0, 0.0, 1.0]])
        mixed = MixedBatch(
            inputs=None,
            labels=torch.tensor([1, 2]),
            sources=torch.tensor([[0, 1], [1, 0]]),
            weights=torch.tensor([[0.7, 0.3], [0.7, 0.3]]),
        )
        torch.testing.assert_close(mixed_accuracy(logits, mixed), torch.tensor(0.35))
        torch.testing.assert_close(mixed_accuracy(logits, mixed, (1, 2, 3)), torch.tensor([0.35, 0.85, 1.0]))

    def test_ignored_labels_drop_out(self):
        logits, labels, _, _ = case((50, 7, 1))
        kept = mixed_accuracy(logits[10:], labels[10:])
        labels[:10] = -100
        torch.testing.assert_close(mixed_accuracy(logits, labels), kept)

    def test_carries_no_graph(self):
        logits, labels, _, _ = case((5, 7, 1))
        assert not mixed_accuracy(logits, labels).requires_grad

    def test_bad_topk(self):
        with pytest.raises(ValueError, match="topk >= 1"):
            mixed_accuracy(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), 0)


FUNCTIONS = [
    mixed_cross_entropy,
    mixed_binary_cross_entropy,
    lambda x, y, s, w: mixed_loss(nn.CrossEntropyLoss(reduction="none"), x, y, s, w),
]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": torch.zeros(0, dtype=torch.long)}, ValueError, "logits of 4 samples"),
        ({"sources": torch.zeros(4, 0, dtype=torch.long)}, ValueError, "M >= 1"),
        ({"sources": torch.zeros(4, dtype=torch.long)}, ValueError, "sources of shape"),
        ({"sources": torch.zeros(4, 2, dtype=torch.int32)}, TypeError, "int64"),
        ({"sources": torch.full((4, 2), 4)}, ValueError, r"sources in \[0, 4\), got values from 4"),
        ({"sources": torch.full((4, 2), -1)}, ValueError, r"sources in \[0, 4\)"),
        ({"weights": torch.ones(4)}, ValueError, "shaped like sources"),
        ({"weights": torch.ones(4, 2, dtype=torch.long)}, TypeError, "floating weights"),
        (
            {"logits": torch.zeros(0, 5), "labels": torch.zeros(0, dtype=torch.long)},
            ValueError,
            "empty batch",
        ),
    ],
)
def test_bad_mixing_arguments(function, change, error, message):
    arguments = {
        "logits": torch.zeros(4, 5),
        "labels": torch.zeros(4, dtype=torch.long),
        "sources": torch.zeros(4, 2, dtype=torch.long),
        "weights": torch.full((4, 2), 0.5),
    }
    with pytest.raises(error, match=message):
        function(*(arguments | change).values())


@pytest.mark.parametrize("function", [mixed_cross_entropy, mixed_binary_cross_entropy])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": torch.tensor([0, 5, 0, 0])}, ValueError, r"class ids in \[0, 5\).*got 5 at row 1"),
        ({"labels": torch.tensor([0, 0, 0, -1])}, ValueError, "got -1 at row 3"),
        ({"labels": torch.zeros(4)}, TypeError, "integer class ids"),
        ({"labels": torch.zeros(4, 5, dtype=torch.long)}, TypeError, r"rows as labels\.float\(\)"),
        ({"labels": torch.zeros(4, 6)}, ValueError, "logits of 5 classes, but dense labels of 6"),
        ({"labels": torch.zeros(4, 5, 1)}, ValueError, r"labels\.squeeze\(2\)"),
        ({"logits": torch.zeros(4, 5, dtype=torch.long)}, TypeError, "floating logits"),
        ({"logits": torch.zeros(4)}, ValueError, "logits of shape"),
    ],
)
def test_bad_labels(function, change, error, message):
    arguments = {
        "logits": torch.zeros(4, 5),
        "labels": torch.zeros(4, dtype=torch.long),
        "sources": torch.zeros(4, 2, dtype=torch.long),
        "weights": torch.full((4, 2), 0.5),
    }
    with pytest.raises(error, match=message):
        function(*(arguments | change).values())


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (mixed_cross_entropy, {"label_smoothing": -0.1}, "label_smoothing"),
        (mixed_cross_entropy, {"reduction": "batchmean"}, "reduction"),
        (mixed_cross_entropy, {"class_weight": torch.ones(4)}, "class_weight"),
        (mixed_binary_cross_entropy, {"target_threshold": 1.0}, "target_threshold"),
        (mixed_binary_cross_entropy, {"target_threshold": -0.1}, "target_threshold"),
        (mixed_binary_cross_entropy, {"multi_label": True}, "multi_label"),
    ],
)
def test_bad_options(function, options, message):
    with pytest.raises(ValueError, match=message):
        function(
            torch.zeros(2, 5),
            torch.tensor([0, 1]),
            torch.tensor([[0, 1], [1, 0]]),
            torch.ones(2, 2),
            **options,
        )


def test_ignore_index_is_excused_from_the_range_check_only_where_it_exists():
    args = (torch.tensor([0, -100]), torch.tensor([[0, 1], [1, 0]]), torch.full((2, 2), 0.5))
    assert mixed_cross_entropy(torch.zeros(2, 5), *args).isfinite()
    with pytest.raises(ValueError, match="got -100 at row 1"):
        mixed_binary_cross_entropy(torch.zeros(2, 5), *args)


def test_no_dense_target_is_built(monkeypatch):
    """Class ids must never meet a (B, K) target: one_hot, scatter and row mixing are out of bounds."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a dense target was built")

    monkeypatch.setattr(losses.cross_entropy, "mix_rows", refuse)
    monkeypatch.setattr(losses.binary_cross_entropy, "mix_rows", refuse)
    monkeypatch.setattr(F, "one_hot", refuse)
    monkeypatch.setattr(Tensor, "scatter_", refuse)
    logits, labels, sources, weights = case((6, 4, 2))
    mixed_cross_entropy(logits, labels, sources, weights, label_smoothing=0.1)
    mixed_binary_cross_entropy(logits, labels, sources, weights, label_smoothing=0.1, target_threshold=0.2)


@pytest.mark.gpu
def test_cuda_equals_cpu_and_reads_nothing_back():
    logits, labels, sources, weights = case((64, 100, 2), dtype=torch.float32)
    options = {"label_smoothing": 0.1}
    cpu = [
        mixed_cross_entropy(logits, labels, sources, weights, **options),
        mixed_binary_cross_entropy(logits, labels, sources, weights, target_threshold=0.2, **options),
        mixed_accuracy(logits, MixedBatch(None, labels, sources, weights)),
    ]
    moved = [tensor.detach().cuda() for tensor in (logits, labels, sources, weights)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        cuda = [
            mixed_cross_entropy(*moved, **options),
            mixed_binary_cross_entropy(*moved, target_threshold=0.2, **options),
            mixed_accuracy(moved[0], MixedBatch(None, *moved[1:])),
        ]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for ours, expected in zip(cuda, cpu, strict=True):
        torch.testing.assert_close(ours.cpu(), expected.detach(), rtol=1e-5, atol=1e-6)


def test_logits_of_an_ignored_sample_do_not_matter_to_smoothing():
    logits = torch.randn(3, 5, generator=seeded(0))
    logits[0] = float("nan")
    labels = torch.tensor([-100, 1, 2])
    loss = mixed_cross_entropy(logits, labels, torch.arange(3)[:, None], torch.ones(3, 1), label_smoothing=0.1)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1))


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64], ids=str)
def test_wide_unsigned_class_ids(dtype):
    logits, labels = torch.randn(3, 5, generator=seeded(0)), torch.tensor([0, 4, 2])
    sources, weights = torch.tensor([[0, 1], [1, 2], [2, 0]]), torch.full((3, 2), 0.5)
    expected = mixed_cross_entropy(logits, labels, sources, weights)
    assert mixed_cross_entropy(logits, labels.to(dtype), sources, weights) == expected
    with pytest.raises(ValueError, match="got 5 at row 1"):
        mixed_cross_entropy(logits, torch.tensor([0, 5, 2]).to(dtype), sources, weights)


WRONG_OPTIONS = [
    (MixedCrossEntropy, "class_weight", value) for value in ("x", 2.0, {}, [], [1.0, -1.0], [0.0, 0.0], [1.0, math.nan])
]
WRONG_OPTIONS += [(MixedCrossEntropy, "class_weight", torch.ones(2, 2)), (MixedCrossEntropy, "class_weight", [True])]
WRONG_OPTIONS += [(MixedCrossEntropy, "ignore_index", value) for value in ("x", 1.5, math.nan, True, [1])]
HALF = torch.tensor([1.0, 0.0], dtype=torch.half)
WRONG_OPTIONS += [
    (MixedBinaryCrossEntropy, "pos_weight", value) for value in ("x", HALF, 0, -1.0, {}, [[1.0]], math.inf)
]
WRONG_OPTIONS += [(MixedBinaryCrossEntropy, "target_threshold", value) for value in ("x", [0.2], 1.0, True, math.nan)]
WRONG_OPTIONS += [(MixedBinaryCrossEntropy, name, "no") for name in ("multi_label", "sum_classes")]


@pytest.mark.parametrize(("kind", "option", "value"), WRONG_OPTIONS)
def test_a_wrong_option_is_named_when_the_loss_is_made(kind, option, value):
    with pytest.raises(ValueError, match=rf"{kind.__name__} expects {option} "):
        kind(**{option: value})


def test_factors_of_classes_come_as_numbers_too():
    numbers = MixedCrossEntropy(class_weight=[1, 0, 2.5])
    assert torch.equal(numbers.class_weight, torch.tensor([1.0, 0.0, 2.5]))
    logits, labels = torch.randn(4, 3, generator=seeded(0)), torch.tensor([0, 1, 2, 2])
    mixed = mixaug.create("mixup")(torch.rand(4, 2), labels, generator=seeded(1))
    expected = F.cross_entropy(logits, mixed.targets(3), weight=torch.tensor([1.0, 0.0, 2.5]))
    torch.testing.assert_close(numbers(logits, mixed), expected)


def test_factors_without_values_are_taken_as_they_are():
    with torch.device("meta"):
        assert MixedCrossEntropy(class_weight=torch.ones(3)).class_weight.is_meta
    with FakeTensorMode():
        assert MixedBinaryCrossEntropy(pos_weight=torch.ones(3)).pos_weight.shape == (3,)
    with pytest.raises(TypeError, match=r"class_weight as an ordinary dense tensor, got .*; pass \.to_dense\(\)"):
        MixedCrossEntropy(class_weight=torch.ones(3).to_sparse())


def test_a_misspelt_option_of_a_loss_is_answered_with_the_one_that_was_meant():
    with pytest.raises(TypeError, match="MixedCrossEntropy has no option 'weight'; did you mean 'class_weight'"):
        MixedCrossEntropy(weight=torch.ones(3))
    with pytest.raises(TypeError, match="MixedHuber has no option 'detla'; did you mean 'delta'"):
        losses.MixedHuber(detla=2.0)


def test_a_class_to_ignore_goes_with_class_ids_alone():
    mixed = mixaug.create("mixup")(torch.rand(4, 2), torch.eye(4), generator=seeded(1))
    logits = torch.randn(4, 4, generator=seeded(0))
    with pytest.raises(ValueError, match=r"ignore_index=2 and dense labels \(4, 4\), which have no class to ignore"):
        MixedCrossEntropy(ignore_index=2)(logits, mixed)
    torch.testing.assert_close(MixedCrossEntropy(ignore_index=None)(logits, mixed), MixedCrossEntropy()(logits, mixed))
