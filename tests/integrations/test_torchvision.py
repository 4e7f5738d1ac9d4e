"""`MixTransform` where `v2.CutMix` and `v2.MixUp` stand."""

from __future__ import annotations

import re
from collections import UserDict

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset, default_collate

import mixaug
from helpers import seeded

pytest.importorskip("torchvision", reason="needs torchvision")

from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from mixaug.integrations.torchvision import MixTransform


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(6, 3, 8, 10, generator=seeded(0)), torch.randint(5, (6,), generator=seeded(1))


def test_against_torchvision_mixup(monkeypatch):
    images, labels = batch()
    theirs = v2.MixUp(num_classes=5)
    monkeypatch.setattr(theirs, "make_params", lambda flat_inputs: {"lam": 0.3})
    expected = theirs(images, labels)
    policy = mixaug.create("mixup", ratio=0.3, pairing="shift", per="batch")
    for got, wanted in zip(MixTransform(policy, 5)(images, labels), expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_generator_decides():
    images, labels = batch()
    policy = mixaug.create("cutmix")
    expected = policy(images, labels, generator=seeded(2))
    mixed, targets = MixTransform(policy, 5, 0.1, generator=seeded(2))(images, labels)
    assert torch.equal(mixed, expected.inputs)
    assert torch.equal(targets, expected.targets(5, label_smoothing=0.1))


def test_pair_and_two_arguments_are_the_same():
    images, labels = batch()
    first = MixTransform(mixaug.create("cutmix"), 5, generator=seeded(2))(images, labels)
    second = MixTransform(mixaug.create("cutmix"), 5, generator=seeded(2))([images, labels])
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_image_type_is_kept():
    images, labels = batch()
    mixed, targets = MixTransform(mixaug.create("cutmix"), 5)(tv_tensors.Image(images), labels)
    assert type(mixed) is tv_tensors.Image
    assert type(targets) is torch.Tensor


def test_inside_compose_and_random_choice():
    images, labels = batch()
    transforms = v2.Compose(
        [
            v2.RandomChoice([MixTransform(mixaug.create(name), 5) for name in ("mixup", "cutmix")]),
            v2.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    mixed, targets = transforms(images, labels)
    assert mixed.min() >= -1 and mixed.max() <= 1
    torch.testing.assert_close(targets.sum(1), torch.ones(6))


def test_in_workers_every_batch_differs():
    # Four equal batches: were a worker's or a batch's stream repeated, two of them would come out the same.
    images, labels = batch()
    dataset = TensorDataset(images.repeat(4, 1, 1, 1), labels.repeat(4))
    mix = MixTransform(mixaug.create("mixup"), 5)
    loader = DataLoader(dataset, 6, num_workers=2, collate_fn=Collate(mix), generator=seeded(3))
    means = [tuple(mixed.mean((1, 2, 3)).tolist()) for mixed, _ in loader]
    assert len(set(means)) == 4
    assert means == [tuple(mixed.mean((1, 2, 3)).tolist()) for mixed, _ in _again(loader)]


class Collate:
    def __init__(self, mix: MixTransform) -> None:
        self.mix = mix

    def __call__(self, samples: list) -> tuple[torch.Tensor, torch.Tensor]:
        return self.mix(*default_collate(samples))


def _again(loader: DataLoader) -> DataLoader:
    loader.generator.manual_seed(3)
    return loader


@pytest.mark.parametrize("inputs", [(torch.rand(2, 3, 4, 4),), (torch.rand(2, 3, 4, 4), [1, 2]), ()])
def test_other_inputs_are_refused(inputs):
    with pytest.raises(TypeError, match="MixTransform expected a batch, images"):
        MixTransform(mixaug.create("mixup"), 5)(*inputs)


def test_a_policy_that_needs_the_model_is_refused():
    with pytest.raises(ValueError, match=r"needs saliency from it; train through mixaug\.MixStep\(.*in the loop"):
        MixTransform(mixaug.create("puzzlemix"), 5)


SAMPLE = torch.zeros(3, 4, 4)


@pytest.mark.parametrize(
    ("inputs", "came"),
    [
        ((SAMPLE, 1), "(Tensor (3, 4, 4), int)"),
        ((SAMPLE, torch.tensor(1)), "(Tensor (3, 4, 4), Tensor ())"),
        ((SAMPLE, torch.tensor([1])), "(Tensor (3, 4, 4), Tensor (1,))"),
        ((SAMPLE, torch.eye(5)[1]), "(Tensor (3, 4, 4), Tensor (5,))"),
        ((tv_tensors.Image(SAMPLE), torch.tensor(1)), "(Image (3, 4, 4), Tensor ())"),
        ((Image.new("RGB", (4, 4)), torch.tensor([1])), "(Image, Tensor (1,))"),
        ((SAMPLE,), "(Tensor (3, 4, 4))"),
        (({"image": SAMPLE, "label": torch.tensor(1)},), "({'image': Tensor (3, 4, 4), 'label': Tensor ()})"),
        (([(SAMPLE, 1), (SAMPLE, 0)],), "(tuple, tuple)"),
    ],
)
def test_single_samples_are_told_where_the_transform_belongs(inputs, came):
    for policy in ("mixup", "cutmix"):
        with pytest.raises(TypeError, match=re.escape(f"got {came}; it stands behind default_collate")):
            MixTransform(mixaug.create(policy), 5)(*inputs)


def test_features_of_three_axes_are_a_batch():
    mixed, targets = MixTransform(mixaug.create("mixup"), 5)(torch.rand(6, 7, 2), torch.arange(6) % 5)
    assert (mixed.shape, targets.shape) == ((6, 7, 2), (6, 5))


def test_class_count_is_checked():
    with pytest.raises(ValueError, match="MixTransform expected `num_classes`"):
        MixTransform(mixaug.create("mixup"), -1)


def test_other_structures_against_torchvision(monkeypatch):
    images, labels = batch()
    policy = mixaug.create("mixup", ratio=0.3, pairing="shift", per="batch")
    names, mask = ["a"] * 6, tv_tensors.Mask(torch.zeros(6, 8, 10, dtype=torch.int64))
    cases = [
        ({"image": images, "label": labels, "name": names}, "default"),
        ({"image": tv_tensors.Image(images), "Labels": labels, "age": torch.rand(6, 1)}, "default"),
        ((images, {"label": labels, "name": names}), "default"),
        ((images, labels, names), lambda batch: batch[1]),
        ((labels, tv_tensors.Image(images), torch.rand(6, 2)), lambda batch: batch[0]),
        ({"x": {"image": images}, "y": labels}, lambda batch: batch["y"]),
    ]
    for given, getter in cases:
        theirs = v2.MixUp(num_classes=5, labels_getter=getter)
        monkeypatch.setattr(theirs, "make_params", lambda flat_inputs: {"lam": 0.3})
        got, expected = MixTransform(policy, 5, labels_getter=getter)(given), theirs(given)
        assert type(got) is type(expected)
        torch.testing.assert_close(*(flat(one) for one in (got, expected)))
    with pytest.raises(ValueError, match="masks"):
        v2.MixUp(num_classes=5, labels_getter=lambda batch: batch[1])(images, labels, mask)
    with pytest.raises(TypeError, match=r"holds Mask, which would no longer fit them: .* mixed\.apply\(mask"):
        MixTransform(policy, 5, labels_getter=lambda batch: batch[1])(images, labels, mask)
    with pytest.raises(TypeError, match="images as an ordinary dense tensor, got a tensor of layout sparse_coo"):
        MixTransform(policy, 5)(images.to_sparse(), labels)
    given = UserDict(image=images, label=labels, name=names)
    got, expected = MixTransform(policy, 5)(given), MixTransform(policy, 5)(dict(given))
    assert type(got) is UserDict
    assert got["name"] == names
    torch.testing.assert_close([got["image"], got["label"]], [expected["image"], expected["label"]])


def flat(value):
    """The tensors and names of a batch in their order."""
    if isinstance(value, dict):
        return [part for each in value.values() for part in flat(each)]
    if isinstance(value, (tuple, list)):
        return [part for each in value for part in flat(each)]
    return [value.as_subclass(torch.Tensor)] if isinstance(value, torch.Tensor) else []


def test_labels_or_images_that_are_not_found_are_named():
    images, labels = batch()
    mix = MixTransform(mixaug.create("mixup"), 5)
    with pytest.raises(TypeError, match=r"got \(\{'age': Tensor \(6,\), 'image': Tensor \(6, "):
        mix({"image": images, "age": labels})
    with pytest.raises(TypeError, match=r"found 2 of them; mark the one to mix as tv_tensors\.Image"):
        mix({"first": images, "second": images.clone(), "label": labels})
    with pytest.raises(TypeError, match="to return a tensor of the batch itself"):
        MixTransform(mixaug.create("mixup"), 5, labels_getter=lambda batch: batch["label"].clone())(
            {"image": images, "label": labels}
        )
    with pytest.raises(TypeError, match='as a function or "default", got 3'):
        MixTransform(mixaug.create("mixup"), 5, labels_getter=3)


def test_clips_are_mixed_in_their_layout():
    """A `Video` has its channels behind its frames, and says so by its type; of a tensor the layout is to be said."""
    images, labels = torch.rand(6, 5, 3, 8, 8, generator=seeded(0)), torch.arange(6) % 5
    policy = mixaug.create("cutmix")
    expected = policy(images, labels, layout="NTCHW", generator=seeded(2))
    for given, layout in ((tv_tensors.Video(images), None), (images, "NTCHW")):
        mix = MixTransform(policy, 5, layout=layout, generator=seeded(2))
        mixed, targets = mix(given, labels)
        assert type(mixed) is type(given)
        assert torch.equal(mixed.as_subclass(torch.Tensor), expected.inputs)
        assert torch.equal(targets, expected.targets(5))
    with pytest.raises(ValueError, match="looks like NTCHW; say layout="):
        MixTransform(policy, 5)(images, labels)
    with pytest.raises(ValueError, match="MixTransform expects layout"):
        MixTransform(policy, 5, layout="NTHWX")
