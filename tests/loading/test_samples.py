"""Containers come back as they came; what cannot be mixed, or would do nothing, is said before anything happens."""

import collections
import dataclasses
import types

import pytest
import torch
from torch import Tensor

import mixaug
from helpers import seeded
from mixaug import DeviceLoader, MixCollate
from mixaug.loading import ResidentLoader

IMAGES, LABELS = torch.rand(4, 3, 8, 8, generator=seeded(0)), torch.arange(4)
CUTMIX = mixaug.create("cutmix")


class Feature(collections.UserDict):
    """A batch of a processor, as transformers has it: a mapping that is no dict, with attributes of its own."""

    def __init__(self, data=None, tensor_type=None):
        super().__init__(data)
        self.tensor_type = tensor_type


def mappings():
    data = {"pixel_values": IMAGES, "labels": LABELS, "id": LABELS + 10}
    default = collections.defaultdict(list)
    default.update(data)
    return [Feature(data, "pt"), collections.OrderedDict(data), default, types.MappingProxyType(data), dict(data)]


@pytest.mark.parametrize("batch", mappings(), ids=lambda batch: type(batch).__name__)
def test_mappings_come_back_in_their_own_type(batch):
    names = {"image_key": "pixel_values", "label_key": "labels"}
    as_it_is = {"collate": lambda samples: samples, **names}
    mixed = MixCollate(CUTMIX, **as_it_is)(batch)
    loaded = next(iter(DeviceLoader([batch], "cpu", CUTMIX, **names)))
    called = CUTMIX(batch, LABELS, keys=["pixel_values"])
    for got in (
        mixed.inputs,
        loaded.inputs,
        called.inputs,
        called.to("meta").inputs,
        MixCollate(CUTMIX, 4, **as_it_is)(batch),
        next(iter(DeviceLoader([batch], "cpu"))),
        next(iter(DeviceLoader([batch], "meta", dtype=torch.float16, image_key="pixel_values"))),
    ):
        assert type(got) is type(batch)
        assert got["pixel_values"].shape == IMAGES.shape
        assert getattr(got, "tensor_type", None) == getattr(batch, "tensor_type", None)
    assert "labels" not in mixed.inputs
    assert called.to("meta").inputs["id"].device.type == "meta"
    assert batch["pixel_values"] is IMAGES
    assert "labels" in batch


@pytest.mark.parametrize(
    "refused",
    [
        lambda: MixCollate(CUTMIX)([((image, image), 0) for image in IMAGES]),
        lambda: MixCollate(CUTMIX)([({"left": image}, 0) for image in IMAGES]),
        lambda: CUTMIX({"inputs": {"image": IMAGES}}, LABELS, keys=["inputs"]),
        lambda: CUTMIX([[IMAGES, IMAGES], LABELS], LABELS, keys=[0]),
        lambda: CUTMIX({"inputs": [IMAGES]}, LABELS, keys=["inputs"]),
        lambda: next(iter(DeviceLoader(zip([[IMAGES, LABELS]], [[IMAGES, LABELS]], strict=True), "cpu", CUTMIX))),
        lambda: mixaug.create("mixup").draw([IMAGES, IMAGES]),
    ],
)
def test_nested_inputs_are_refused(refused):
    with pytest.raises(TypeError, match="nested inputs are not supported"):
        refused()


def test_a_mixed_batch_moves_with_all_that_it_holds():
    mixed = dataclasses.replace(
        CUTMIX(IMAGES, LABELS),
        uniform=torch.zeros(4),
        importance=torch.ones(4),
        metadata={"domain": LABELS},
    )
    moved = next(iter(DeviceLoader([mixed], "meta")))
    every = [moved.inputs, moved.labels, moved.weights, moved.uniform, moved.importance, moved.metadata["domain"]]
    assert {tensor.device.type for tensor in every} == {"meta"}
    assert moved.plan.boxes.device.type == "meta"


class Important(mixaug.Policy):
    def forward(self, images: Tensor, labels=None, **options):
        return dataclasses.replace(CUTMIX(images, labels), importance=torch.ones(len(images)))


@pytest.mark.parametrize(
    ("refused", "error", "message"),
    [
        (lambda: DeviceLoader([], "cpu", seed=1), ValueError, "without a policy, so seed would do nothing"),
        (lambda: DeviceLoader([], "cpu", generator=seeded(0)), ValueError, "so generator would do nothing"),
        (lambda: DeviceLoader([], "cpu", keys=("a",)), ValueError, "so keys would do nothing"),
        (
            lambda: MixCollate(CUTMIX, label_key="y")(list(IMAGES)),
            ValueError,
            "label_key='y', but the batch is a tensor",
        ),
        (
            lambda: MixCollate(CUTMIX, image_key="x")(list(IMAGES)),
            ValueError,
            "image_key='x', but the batch is a tensor",
        ),
        (lambda: MixCollate(CUTMIX, keys=("x",))(list(IMAGES)), ValueError, "keys=.*but the batch is a tensor"),
        (lambda: MixCollate(CUTMIX, keys=(1,))(triples()), ValueError, "got 1 for two of image_key, label_key"),
        (lambda: MixCollate(CUTMIX, keys=(0,))(triples()), ValueError, "got 0 for two of image_key, label_key"),
        (lambda: MixCollate(CUTMIX, image_key="x", label_key="x"), ValueError, "got 'x' for two of image_key"),
        (lambda: MixCollate(CUTMIX, image_key="x", keys="view"), TypeError, "keys as a sequence of names"),
        (lambda: MixCollate(Important(), 4)(pairs()), ValueError, "cannot hand on the importance"),
        (lambda: MixCollate(CUTMIX)(pairs(labels="abcd")), TypeError, "labels as a tensor, got (tuple|list)"),
        (lambda: MixCollate(CUTMIX)(pairs(labels=[[0, 1]] * 4)), TypeError, "labels as a tensor, got list"),
        (lambda: MixCollate(CUTMIX)([(IMAGES[0], 0), (IMAGES[0, :, 1:], 0)]), ValueError, r"one size, got \(3, 8, 8\)"),
        (lambda: resident(padding_mode="reflect"), ValueError, "padding_mode='reflect' does nothing"),
        (lambda: resident(shuffle=False, reshuffle=False), ValueError, "reshuffle=False does nothing"),
    ],
)
def test_what_would_be_ignored_or_cannot_be_put_together_is_refused(refused, error, message):
    with pytest.raises(error, match=message):
        refused()


def pairs(labels=(0, 1, 2, 3)):
    return list(zip(IMAGES, labels, strict=True))


def triples():
    return list(zip(IMAGES, LABELS, IMAGES, strict=True))


def resident(**options):
    return ResidentLoader(torch.zeros(8, 3, 8, 8, dtype=torch.uint8), torch.arange(8), 4, **options)


def test_collate_functions_refuse_what_is_no_list_of_samples():
    for given in [(IMAGES[0], 3), (IMAGES, torch.arange(len(IMAGES))), IMAGES[0]]:
        with pytest.raises(TypeError, match=f"list of the samples of a batch, got {type(given).__name__}: a batch"):
            MixCollate(mixaug.create("mixup"))(given)


def test_pictures_are_told_apart_from_tensors():
    image = pytest.importorskip("PIL.Image")
    samples = [(image.new("RGB", (8, 8)), 0)] * 4
    with pytest.raises(
        TypeError, match="entry 0 of the samples as tensors, got PIL images: give the data set a transform"
    ):
        MixCollate(CUTMIX)(samples)
    with pytest.raises(TypeError, match="samples as tensors, got PIL images"):
        MixCollate(CUTMIX)([sample[0] for sample in samples])


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([(IMAGES[0], 0), None], "got None for sample 1 of a batch of 2: leave such samples out"),
        ([(IMAGES[0], 0), (IMAGES[1], None)], "entry 1 of the samples as tensors or numbers, got None in sample 1"),
        ([{"x": IMAGES[0], "y": None}] * 2, "entry 'y' of the samples as tensors or numbers, got None in sample 0"),
        ([(IMAGES[0], 0), (IMAGES[1],)], "samples with as many entries as the first, 2, got 1 in sample 1"),
    ],
)
def test_samples_that_lack_something_are_named(samples, message):
    with pytest.raises((TypeError, ValueError), match=message):
        MixCollate(CUTMIX)(samples)
