"""`MixedBatch`: targets and replay."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import mixaug
from helpers import seeded
from mixaug import MixedBatch
from mixaug.frozen import BriefRepr
from mixaug.partners.base import Partners
from mixaug.plan import Plan
from mixaug.preparation import Inspection

IMAGES = torch.rand(5, 3, 8, 10, generator=seeded(0))
LABELS = torch.tensor([0, 3, 1, 1, 2])


def mixed(name="mixup", labels=LABELS, images=IMAGES, **options):
    return mixaug.create(name, **options)(images, labels, generator=seeded(1))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_targets_smooth_every_source_like_torch(smoothing):
    batch, logits = mixed(), torch.randn(5, 4, generator=seeded(2), dtype=torch.float64)
    loss = F.cross_entropy(logits, batch.targets(4, smoothing).double(), reduction="none")
    own, other = (
        F.cross_entropy(logits, LABELS[batch.sources[:, m]], label_smoothing=smoothing, reduction="none")
        for m in (0, 1)
    )
    lam = batch.lam.double()
    torch.testing.assert_close(loss, lam * own + (1 - lam) * other, rtol=0, atol=1e-6)


def test_index_and_dense_labels_give_the_same_targets():
    dense = mixed(labels=F.one_hot(LABELS, 4).double())
    for smoothing in (0.0, 0.2):
        got = dense.targets(4, smoothing)
        assert got.dtype == torch.float64
        torch.testing.assert_close(got.float(), mixed().targets(4, smoothing))


def test_weights_that_do_not_sum_to_one_are_kept():
    batch = MixedBatch(IMAGES, LABELS, torch.tensor([[0, 1]] * 5), torch.tensor([[0.6, 0.7]] * 5))
    assert torch.allclose(batch.targets(4).sum(1), torch.full((5,), 1.3))
    assert torch.allclose(batch.targets(4, 0.1).sum(1), torch.full((5,), 1.3))


def test_same_class_pairs_add_up():
    batch = MixedBatch(IMAGES[:2], torch.tensor([1, 1]), torch.tensor([[0, 1], [1, 0]]), torch.full((2, 2), 0.5))
    assert batch.targets(3).tolist() == [[0, 1, 0]] * 2


def test_regression_labels_give_the_weighted_mean():
    for labels in (torch.rand(5, generator=seeded(3)), torch.rand(5, 2, generator=seeded(3))):
        batch = mixed(labels=labels)
        lam = batch.lam.reshape(-1, *([1] * (labels.ndim - 1)))
        torch.testing.assert_close(batch.targets(), lam * labels + (1 - lam) * labels[batch.partner])


def test_bad_targets():
    with pytest.raises(ValueError, match="no labels"):
        mixed(labels=None).targets(4)
    with pytest.raises(ValueError, match="needs num_classes"):
        mixed().targets()
    with pytest.raises(ValueError, match=r"class ids in \[0, 3\), got values from 0 to 3"):
        mixed().targets(3)
    with pytest.raises(ValueError, match="num_classes=7 does not fit"):
        mixed(labels=torch.rand(5, 4)).targets(7)
    with pytest.raises(ValueError, match=r"label_smoothing in \[0, 1\], got 1.5"):
        mixed().targets(4, 1.5)
    with pytest.raises(ValueError, match="label_smoothing needs class targets"):
        mixed(labels=torch.rand(5)).targets(label_smoothing=0.1)


def test_partner_is_for_pairs():
    three = MixedBatch(IMAGES, LABELS, torch.zeros(5, 3, dtype=torch.int64), torch.full((5, 3), 1 / 3))
    assert three.lam.shape == (5,)
    with pytest.raises(ValueError, match="3 sources each"):
        _ = three.partner


def test_cut_methods_copy_label_maps():
    batch = mixed("cutmix")
    label_map = torch.randint(0, 20, (5, 8, 10), generator=seeded(4))
    inside = batch.mask[:, 0] == 0
    expected = torch.where(inside, label_map[batch.partner], label_map)
    for dtype in (torch.int64, torch.uint8, torch.int32):
        got = batch.apply(label_map.to(dtype))
        assert got.dtype == dtype
        assert torch.equal(got.long(), expected)
    assert torch.equal(batch.apply(label_map == 3), expected == 3)
    shares = batch.apply(label_map, num_classes=20)
    assert torch.equal(shares, F.one_hot(expected, 20).movedim(-1, 1).float())


def test_blends_give_class_shares_of_label_maps():
    batch = mixed("mixup")
    label_map = torch.randint(0, 4, (5, 8, 10), generator=seeded(5))
    planes = F.one_hot(label_map, 4).movedim(-1, 1).float()
    lam = batch.lam[:, None, None, None]
    torch.testing.assert_close(batch.apply(label_map, 4), lam * planes + (1 - lam) * planes[batch.partner])
    with pytest.raises(TypeError, match=r"pass num_classes to MixedBatch.apply"):
        batch.apply(label_map)


def test_ignored_pixels_get_no_share():
    label_map = torch.full((5, 8, 10), 255)
    label_map[0] = 1
    shares = mixed("mixup").apply(label_map, num_classes=3)
    assert shares[:, [0, 2]].sum() == 0
    assert (shares.sum(1) <= 1).all()


def test_bad_replay():
    batch = mixed("cutmix")
    with pytest.raises(ValueError, match="expects 5 rows"):
        batch.apply(IMAGES[:3])
    with pytest.raises(ValueError, match=r"spatial size \(8, 10\)"):
        batch.apply(IMAGES[..., :4])
    with pytest.raises(TypeError, match="integer class ids"):
        batch.apply(IMAGES, num_classes=3)
    with pytest.raises(ValueError, match="no plan to replay"):
        MixedBatch(IMAGES, LABELS, batch.sources, batch.weights).apply(IMAGES)


def test_moves_as_a_whole():
    moved = mixed("cutmix").to("meta")
    assert moved.inputs.device.type == moved.weights.device.type == moved.plan.boxes.device.type == "meta"
    assert len(moved) == 5


def test_metadata_have_a_row_for_each_sample():
    images = torch.rand(3, 2)
    with pytest.raises(ValueError, match=r"metadata\['domain'\] with a row for each of its 3 samples, got"):
        mixaug.Batch(images, metadata={"domain": torch.arange(4)})
    with pytest.raises(TypeError, match=r"metadata\['domain'\] as a tensor, got list"):
        mixaug.Batch(images, metadata={"domain": [0, 1, 2]})
    assert mixaug.Batch({"a": images}, metadata={"domain": torch.arange(3)}).metadata["domain"].shape == (3,)


def test_extents_with_partners_from_outside_the_batch():
    """Rows behind the batch's own are those of the partners, with labels and without."""
    inputs, lengths = torch.rand(3, 1, 8), torch.tensor([2, 3, 8])
    other = mixaug.Batch(torch.rand(3, 1, 8), torch.tensor([1, 0, 1]), metadata={"length": torch.tensor([5, 1, 6])})
    partners = mixaug.partners.Stream("other")
    batch = mixaug.Batch(inputs, torch.tensor([0, 1, 0]), metadata={"length": lengths}, streams={"other": other})
    mixed = mixaug.create("mixup", partners=partners)(batch)
    assert mixed.extent(mixed.metadata["length"]).tolist() == [5, 3, 8]
    with pytest.raises(ValueError, match="6 rows, those of the labels and of partners from outside the batch"):
        mixed.extent(lengths)
    unlabelled = dataclasses.replace(mixed, labels=None)
    with pytest.raises(ValueError, match="expects a tensor of 6 rows"):
        unlabelled.extent(lengths)
    with pytest.raises(ValueError, match=r"extent_keys=\['length'\], entries of the batch, but partners of Mixup"):
        mixaug.MixStep(
            torch.nn.Linear(8, 2),
            mixaug.create("mixup", partners=partners),
            mixaug.losses.MixedCrossEntropy(),
            keys=["x"],
            extent_keys=["length"],
        )


def test_a_batch_prints_shapes_and_no_values() -> None:
    batch = mixaug.create("cutmix")(torch.rand(4, 3, 8, 8), torch.arange(4))
    assert repr(batch) == (
        "MixedBatch(inputs=float32 (4, 3, 8, 8), labels=int64 (4,), sources=int64 (4, 2), weights=float32 (4, 2), "
        "plan=Paste)"
    )
    assert repr(batch.plan).startswith("Paste(partner=int64 (4,), lam=float32 (4,), ")
    assert repr(batch.to("meta")).startswith("MixedBatch(inputs=float32 (4, 3, 8, 8) meta, labels=int64 (4,) meta, ")
    nested = dataclasses.replace(batch, inputs={"image": torch.zeros(4, 3), "length": [torch.zeros(4)]}, plan=None)
    assert repr(nested).startswith("MixedBatch(inputs={'image': float32 (4, 3), 'length': [float32 (4,)]}, labels=")
    assert repr(mixaug.Batch(torch.zeros(2, 3), torch.arange(2))) == "Batch(inputs=float32 (2, 3), labels=int64 (2,))"


def test_every_dataclass_that_holds_tensors_prints_none_of_their_values() -> None:
    kinds: list[type] = [Plan]
    for kind in kinds:
        kinds += kind.__subclasses__()
    # The decorator of dataclasses gives a class a text of its own where it finds none in it.
    for kind in (*kinds, mixaug.Batch, mixaug.MixedBatch, mixaug.Outcome, Partners, Inspection):
        assert kind.__repr__ is BriefRepr.__repr__, kind


def test_torch_is_told_what_goes_in_the_place_of_a_batch() -> None:
    batch = mixaug.create("mixup")(torch.rand(4, 3, 8, 8), torch.arange(4))
    wrong = {
        "cross_entropy": lambda: torch.nn.CrossEntropyLoss()(torch.rand(4, 5), batch),
        "conv2d": lambda: torch.nn.Conv2d(3, 1, 1)(batch),
        "stack": lambda: torch.stack([batch]),
    }
    for name, call in wrong.items():
        with pytest.raises(TypeError, match=rf"torch's {name} expects tensors and got a MixedBatch: .*CrossEntropy"):
            call()
    with pytest.raises(TypeError, match=r"torch's linear expects tensors and got a Batch: its tensors are \.inputs"):
        torch.nn.Linear(3, 1)(mixaug.Batch(torch.zeros(2, 3)))
    # Modules that call a method of their input, and whoever unpacks a batch, do not come to a function of torch.
    for call in (lambda: torch.nn.Flatten()(batch), lambda: torch.nn.BatchNorm2d(3)(batch)):
        with pytest.raises(AttributeError, match=r"a MixedBatch is no tensor and has no .*: mixed\.inputs goes into"):
            call()
    with pytest.raises(TypeError, match=r"a MixedBatch is neither indexed nor unpacked: mixed\.inputs goes into"):
        _, _ = batch
    with pytest.raises(TypeError, match=r"a Batch is neither indexed nor unpacked: its tensors are"):
        mixaug.Batch(torch.zeros(2, 3))[0]
    with pytest.raises(AttributeError, match=r"no tensor and has no 'device': that of its inputs is \.inputs\.device"):
        _ = batch.device
    assert not isinstance(batch, Iterable) and not hasattr(batch, "flatten")
    with pytest.raises(AttributeError, match=r"'MixedBatch' object has no attribute 'image'"):
        _ = batch.image
    with pytest.raises(AttributeError, match=r"'list' object has no attribute 'shape'"):
        _ = mixaug.Batch([torch.zeros(2, 3)]).size  # type: ignore[arg-type]
    for call in (
        lambda: batch.to(torch.float16),
        lambda: batch.to(dtype=torch.float16),
        lambda: batch.to("cpu", torch.half),
    ):
        with pytest.raises(
            TypeError, match=r"MixedBatch\.to expects a device alone, got torch\.float16: labels and their"
        ):
            call()
    for call in (batch.to, lambda: batch.to(torch.zeros(1))):
        with pytest.raises(TypeError, match=r"MixedBatch\.to expects a device alone, got (None|a tensor)"):
            call()
    for name, way in {
        "cuda": r"move it by \.to\('cuda'\)",
        "half": "labels and their weights are never rounded",
    }.items():
        with pytest.raises(AttributeError, match=rf"has no '{name}': {way}"):
            getattr(batch, name)
    # What only compares goes on.
    assert (torch.zeros(4) == batch) is False and batch not in [torch.zeros(4)]


def test_parts_that_do_not_fit_are_told_where_a_batch_is_made() -> None:
    batch = mixaug.create("mixup")(torch.rand(4, 3), torch.arange(4))
    wrong: dict[str, dict[str, Any]] = {
        r"labels as at least 4 rows, one for each sample, got \(3,\) torch.int64": {"labels": torch.arange(3)},
        r"labels as a tensor with a row .*, got \(0,\)": {"labels": torch.arange(0), "plan": None},
        r"labels as a tensor with a row .*, got list": {"labels": [0, 1, 2, 3]},
        r"sources as an int64 tensor \(B, M\), got \(4,\) torch.int64": {"sources": torch.arange(4)},
        r"sources as an int64 tensor \(B, M\), got \(4, 2\) torch.float32": {"sources": batch.weights},
        r"weights as a floating tensor like sources, \(4, 2\), got \(4, 1\)": {"weights": batch.weights[:, :1]},
        r"weights as a floating tensor like sources, \(4, 2\), got \(4, 2\) torch.int64": {"weights": batch.sources},
        r"inputs as 4 rows, one for each of sources, got \(3, 3\)": {"inputs": batch.inputs[:3]},
        r"uniform as a tensor \(4,\), got \(4, 1\)": {"uniform": torch.zeros(4, 1)},
        r"importance as a tensor \(4,\), got float": {"importance": 1.0},
    }
    for told, parts in wrong.items():
        with pytest.raises((ValueError, TypeError), match=f"MixedBatch expects {told}"):
            dataclasses.replace(batch, **parts)
    few = dataclasses.replace(batch, labels=torch.arange(3), plan=None)
    with pytest.raises(ValueError, match=r"targets expects sources in \[0, 3\), the rows of labels, got .* 0 to 3"):
        few.targets(4)
    # Several mixtures of one sample are more than there are labels.
    assert len(batch.rows_of(torch.tensor([0, 1, 2, 3, 0, 1]))) == 6


def test_what_is_mixed_already_is_not_mixed_again() -> None:
    mixed = mixaug.create("mixup")(torch.rand(4, 3), torch.arange(4))
    step = mixaug.MixStep(torch.nn.Linear(3, 4), mixaug.create("mixup"), mixaug.losses.MixedCrossEntropy())
    for mix in (mixaug.create("cutmix"), mixaug.create("puzzlemix").draw, mixaug.OneOf(["mixup"]), step):
        with pytest.raises(ValueError, match="got a MixedBatch to mix, which is mixed already"):
            mix(mixed)


def test_a_batch_that_is_not_mixed_yet_moves_with_all_its_tensors() -> None:
    extra = mixaug.Batch(torch.rand(2, 3), torch.arange(2))
    batch = mixaug.Batch(
        torch.rand(4, 3),
        torch.arange(4),
        rows=torch.arange(4) + 10,
        metadata={"length": torch.arange(4)},
        views={"second": torch.rand(4, 3)},
        streams={"outliers": extra},
    )
    moved = batch.to("meta")
    tensors = [moved.inputs, moved.labels, moved.rows, moved.metadata["length"], moved.views["second"]]
    tensors += [moved.streams["outliers"].inputs, moved.streams["outliers"].labels]
    assert all(tensor is not None and tensor.device.type == "meta" for tensor in tensors)
    assert batch.inputs.device.type == "cpu"
    doubled = batch.map_tensors(lambda tensor: tensor * 2)
    assert torch.equal(doubled.streams["outliers"].inputs, extra.inputs * 2)
    assert doubled.rows is not None and torch.equal(doubled.rows, torch.tensor([20, 22, 24, 26]))


@dataclasses.dataclass(frozen=True)
class Captioned(mixaug.Batch):
    caption: str = ""


def test_a_batch_that_moves_stays_what_it_is() -> None:
    moved = Captioned(torch.rand(2, 3), [0, 1], caption="two").to("meta")  # type: ignore[arg-type]
    assert type(moved) is Captioned and moved.caption == "two" and moved.labels == [0, 1]
    seen = mixaug.Batch(torch.rand(4, 3), signals=mixaug.Signals(outputs=torch.rand(4, 2)))
    with pytest.raises(ValueError, match="a Batch with signals stays as it is"):
        seen.to("meta")
