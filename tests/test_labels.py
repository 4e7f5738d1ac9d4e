"""Labels and tensors as users have them: every integer dtype, half precision, and forms whose error leads on."""

import pytest
import torch
from torch.nn import functional as F

import mixaug
from helpers import INTEGERS, seeded
from mixaug import MixCollate, MixedBatch
from mixaug.losses import MixedBinaryCrossEntropy, MixedCrossEntropy

pytest.importorskip("timm")
pytest.importorskip("torchvision")

from mixaug.integrations.timm import MixupFn
from mixaug.integrations.torchvision import MixTransform

IMAGES = torch.rand(8, 3, 8, 8, generator=seeded(0))


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("classes", [5, 128, 256, 300, 512, 1000, 65536])
def test_the_number_of_classes_may_exceed_the_labels_dtype(dtype, classes):
    largest = min(classes - 1, torch.iinfo(dtype).max)
    ids = torch.tensor([0, 1, 2, 3, largest, largest - 1, largest // 2, largest])
    labels, policy = ids.to(dtype), mixaug.create("none")
    for targets in (
        policy(IMAGES, labels).targets(classes),
        MixupFn(policy, classes)(IMAGES, labels)[1],
        MixTransform(policy, classes)(IMAGES, labels)[1],
        MixCollate(policy, classes)(list(zip(IMAGES, labels, strict=True)))[1],
    ):
        assert torch.equal(targets.argmax(1), ids)
        assert targets.sum() == 8


def test_ids_out_of_range_are_refused_in_small_dtypes_too():
    for dtype in INTEGERS:
        with pytest.raises(ValueError, match=r"class ids in \[0, 50\), got values from 100 to 100"):
            mixaug.create("none")(IMAGES, torch.full((8,), 100).to(dtype)).targets(50)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dense_targets_are_float32_at_least(dtype):
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    one_hot = F.one_hot(torch.arange(8) % 5, 5).to(dtype)
    mixed = mixaug.create("mixup")(IMAGES, one_hot, generator=seeded(1))
    index = mixaug.create("mixup")(IMAGES, torch.arange(8) % 5, generator=seeded(1)).targets(5)
    for targets in (mixed.targets(5), MixupFn(mixaug.create("mixup"), 5, generator=seeded(1))(IMAGES, one_hot)[1]):
        assert targets.dtype == expected
        torch.testing.assert_close(targets.float(), index)
    assert mixaug.create("mixup")(IMAGES, torch.rand(8).to(dtype)).targets().dtype == expected


@pytest.mark.parametrize(
    ("labels", "advice", "follow", "loss"),
    [
        (torch.arange(8)[:, None] % 5, "labels.squeeze(1)", lambda labels: labels.squeeze(1), MixedCrossEntropy()),
        (torch.arange(8)[:, None] % 2, "labels.float()", lambda labels: labels.float(), MixedBinaryCrossEntropy()),
        (torch.arange(8)[:, None] > 3, "labels.float()", lambda labels: labels.float(), MixedBinaryCrossEntropy()),
        (
            torch.eye(5)[torch.arange(8) % 5].long(),
            "labels.float()",
            lambda labels: labels.float(),
            MixedCrossEntropy(),
        ),
        (
            torch.ones(8, 5, dtype=torch.bool),
            "labels.float()",
            lambda labels: labels.float(),
            MixedBinaryCrossEntropy(),
        ),
        (torch.arange(8) > 3, "labels.long()", lambda labels: labels.long(), MixedCrossEntropy()),
        (torch.arange(8) > 3, "labels[:, None].float()", lambda y: y[:, None].float(), MixedBinaryCrossEntropy()),
        (torch.eye(5)[:, None][torch.arange(8) % 5], "labels.squeeze(1)", lambda y: y.squeeze(1), MixedCrossEntropy()),
    ],
)
def test_the_advice_for_labels_of_another_form_leads_on(labels, advice, follow, loss):
    made = MixedBatch(IMAGES, labels, torch.arange(8)[:, None], torch.ones(8, 1))
    logits = torch.randn(8, 1 if follow(labels).shape[1:] == (1,) else 5, generator=seeded(0))
    for refused in (
        lambda: mixaug.create("cutmix")(IMAGES, labels),
        lambda: made.targets(5),
        lambda: MixedBinaryCrossEntropy()(torch.zeros(8, 5), made),
    ):
        with pytest.raises((TypeError, ValueError)) as caught:
            refused()
        assert advice in str(caught.value)
    assert loss(logits, mixaug.create("cutmix")(IMAGES, follow(labels))).isfinite()


def test_class_ids_that_came_as_floats_are_told_by_their_dtype():
    ids = torch.arange(8) % 5
    labels, policy = ids.float(), mixaug.create("mixup")
    mixed = policy(IMAGES, labels)
    for refused in (
        lambda: mixed.targets(5),
        lambda: MixupFn(policy, 5)(IMAGES, labels),
        lambda: MixTransform(policy, 5)(IMAGES, labels),
        lambda: MixCollate(policy, 5)(list(zip(IMAGES, labels, strict=True))),
    ):
        with pytest.raises(TypeError, match=r"float labels of shape \(8,\) are numbers, .*float32.*labels\.long\(\)"):
            refused()
    with pytest.raises(TypeError, match=r"integer class ids .* got torch\.float32: labels\.long\(\)"):
        MixedCrossEntropy()(torch.zeros(8, 5), mixed)
    assert policy(IMAGES, labels.long()).targets(5).shape == (8, 5)
    # Without a number of classes they are what they look like, numbers to be predicted.
    assert mixed.targets().shape == (8,)


def test_the_label_of_one_sample_is_told_as_such():
    with pytest.raises(ValueError, match=r"got shape \(\) of torch.int64, the label of one sample: mix batches"):
        mixaug.create("cutmix")(IMAGES[0], torch.tensor(3))


def odd_tensors():
    ragged = [torch.rand(3, 8), torch.rand(3, 9)]
    yield "nested", torch.nested.nested_tensor(ragged)
    yield "jagged", torch.nested.nested_tensor([part.t() for part in ragged], layout=torch.jagged)
    yield "sparse", IMAGES.to_sparse()
    yield "csr", torch.rand(8, 8).to_sparse_csr()
    yield "mkldnn", IMAGES.to_mkldnn() if torch.backends.mkldnn.is_available() else IMAGES.to_sparse()


@pytest.mark.parametrize(("kind", "tensor"), list(odd_tensors()))
def test_nested_and_sparse_tensors_are_refused_by_name(kind, tensor):
    mixup, cutmix = mixaug.create("mixup"), mixaug.create("cutmix")
    labels = torch.arange(8)
    for refused in (
        lambda: mixup(tensor),
        lambda: cutmix(tensor),
        lambda: mixaug.create("none")(tensor),
        lambda: cutmix({"image": IMAGES, "more": tensor}, keys=["image", "more"]),
        lambda: mixup(IMAGES, tensor),
        lambda: mixup(IMAGES).apply(tensor),
        lambda: mixup(IMAGES).extent(tensor),
        lambda: next(iter(mixaug.DeviceLoader([(tensor, labels)], "cpu", mean=0.5, std=0.5))),
        lambda: mixaug.functional.mixup(tensor, labels, torch.rand(8)),
        lambda: MixedCrossEntropy()(tensor, mixup(IMAGES, labels)),
        lambda: MixedBatch(IMAGES, tensor, torch.arange(8)[:, None], torch.ones(8, 1)).targets(5),
    ):
        with pytest.raises(TypeError, match=r"as an ordinary dense tensor, got a (nested tensor|tensor of layout)"):
            refused()
