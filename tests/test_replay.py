"""What else belongs to the images: label maps stay label maps, lengths and masks reach as far as the mixture."""

from functools import partial

import pytest
import torch

import mixaug
from helpers import INTEGERS, ours, seeded
from mixaug import DeviceLoader, MixCollate, MixedBatch, MixStep
from mixaug.losses import MixedCrossEntropy

FREE = [
    name
    for name in mixaug.list_policies()
    if not ((made := mixaug.create(name)).needs or made.wants_metadata or made.wants_networks)
]
CLASSES = torch.randint(0, 4, (6, 8, 8), generator=seeded(0)) * 30
IMAGES = {
    "float": torch.rand(6, 3, 8, 8, generator=seeded(1)),
    "uint8": torch.randint(256, (6, 3, 8, 8), generator=seeded(1)).to(torch.uint8),
}


def replayed(way, policy, images, labels, label_map):
    """The label map mixed along with the images, by one of the ways there are."""
    if way in ("apply", "policy.apply"):
        mixed = policy(images, labels, generator=seeded(2))
        return mixed.apply(label_map) if way == "apply" else policy.apply(label_map, mixed.plan)
    if way == "keys":
        entries = {"image": images, "map": label_map}
        return policy(entries, labels, keys=["image", "map"], generator=seeded(2)).inputs["map"]
    names = {"image_key": "image", "label_key": "label", "keys": ("map",)}
    if way == "DeviceLoader":
        batch = {"image": images, "map": label_map, "label": labels}
        return next(iter(DeviceLoader([batch], "cpu", policy, generator=seeded(2), **names))).inputs["map"]
    rows = zip(images, label_map, labels, strict=True)
    samples = [{"image": image, "map": one, "label": label} for image, one, label in rows]
    return MixCollate(policy, seed=0, **names)(samples).inputs["map"]


@pytest.mark.parametrize("way", ["apply", "policy.apply", "keys", "DeviceLoader", "MixCollate"])
@pytest.mark.parametrize("name", FREE)
def test_a_label_map_has_the_classes_that_it_had_or_is_refused(name, way):
    # 17 is no class of the map, and lies between two of them, so that a blend would make it.
    policy, labels = mixaug.create(name), torch.arange(6)
    kinds = list(IMAGES) if way == "apply" else ["uint8"]
    for images in (IMAGES[kind] for kind in kinds):
        for dtype in INTEGERS if way == "apply" else (torch.uint8, torch.uint16, torch.int64):
            for label_map in (CLASSES.to(dtype), CLASSES[:, None].to(dtype)):
                try:
                    got = replayed(way, policy, images, labels, label_map)
                except TypeError as error:
                    assert "for a label map pass num_classes" in str(error)
                    continue
                assert got.dtype == dtype
                assert set(got.long().unique().tolist()) <= set(CLASSES.unique().tolist())


def test_blends_refuse_and_cuts_copy_label_maps_of_bytes():
    label_map = CLASSES.to(torch.uint8)
    with pytest.raises(TypeError, match="a blend of integers has no meaning; for a label map pass num_classes"):
        mixaug.create("mixup")(IMAGES["uint8"], generator=seeded(1)).apply(label_map)
    cut = mixaug.create("cutmix")(IMAGES["uint8"], generator=seeded(1))
    expected = torch.where(cut.mask[:, 0] == 1, CLASSES, CLASSES[cut.partner])
    for dtype in INTEGERS:
        assert torch.equal(cut.apply(CLASSES.to(dtype)).long(), expected)
        shares = mixaug.create("mixup")(IMAGES["float"], generator=seeded(1)).apply(CLASSES.to(dtype), 300)
        assert shares.shape == (6, 300, 8, 8)
    out = torch.zeros_like(label_map)
    policy = mixaug.create("cutmix")
    assert policy.apply(label_map, cut.plan, out=out) is not None
    assert torch.equal(out.long(), expected)


def test_a_second_view_of_bytes_is_still_blended():
    mixed = mixaug.create("mixup")(IMAGES["uint8"], generator=seeded(1))
    assert torch.equal(mixed.apply(IMAGES["uint8"]), mixed.inputs)
    with pytest.raises(TypeError, match=r"union of masks of valid positions"):
        mixed.apply(CLASSES > 0)


LENGTHS = torch.tensor([50, 100, 30, 80])
RECORDINGS = (torch.arange(100) < LENGTHS[:, None]).float()[:, None]


#: Policies of series; these three want metadata, a network or a second view beside them.
BESIDE = ("lisa", "selecmix", "selfmix")
OF_SERIES = [
    name
    for name in ours(mixaug.list_policies(needs=()))
    if name not in BESIDE and 1 in (mixaug.create(name).spatial or (1,))
]


@pytest.mark.parametrize("name", OF_SERIES)
def test_nothing_is_heard_behind_the_extent_or_it_is_refused(name):
    policy = mixaug.create(name)
    refused = 0
    for seed in range(20):
        mixed = policy(RECORDINGS.repeat(2, 1, 1), torch.arange(8) % 4, generator=seeded(seed))
        heard = torch.where(mixed.inputs[:, 0] > 1e-6, torch.arange(100) + 1, 0).amax(1)
        lengths = LENGTHS.repeat(2)
        if policy.relocates and mixed.plan.mixes:
            with pytest.raises(ValueError, match="extent expects content that stays where its sample has it"):
                mixed.extent(lengths)
            refused += bool((heard > lengths[mixed.sources].amax(1)).any())
        else:
            assert (heard <= mixed.extent(lengths)).all()
    assert not policy.relocates or refused


@pytest.mark.parametrize("make", [mixaug.MixCollate, partial(mixaug.DeviceLoader, [], "cpu")])
def test_a_policy_that_moves_what_it_shows_is_refused_with_lengths_when_it_is_set_up(make):
    resizemix = mixaug.create("resizemix")
    for policy in (resizemix, mixaug.Sometimes(resizemix, 0.01), mixaug.OneOf(["mixup", resizemix])):
        with pytest.raises(ValueError, match=r"extent_keys=\['length'\], but ResizeMix moves what it shows"):
            make(policy, image_key="wave", label_key="label", extent_keys=["length"])


@pytest.mark.parametrize("name", ["mixup", "cutmix", "none", "deit", "cmixup"])
def test_lengths_and_masks_reach_as_far_as_the_longest_source(name):
    mixed = mixaug.create(name)(RECORDINGS, torch.arange(4), generator=seeded(3))
    for dtype in (*INTEGERS, torch.float32):
        got = mixed.extent(LENGTHS.to(dtype))
        assert got.dtype == dtype
        assert torch.equal(got.long(), LENGTHS[mixed.sources].amax(1))
    # Nothing is to be heard behind the extent, and a blend is heard up to it.
    last = (mixed.inputs[:, 0] > 0).int().cumsum(1).argmax(1) + 1
    assert (last <= mixed.extent(LENGTHS)).all()
    if name in ("mixup", "none", "cmixup"):
        assert torch.equal(last, mixed.extent(LENGTHS))
    valid = mixed.extent(RECORDINGS[:, 0] > 0)
    assert valid.dtype == torch.bool
    assert torch.equal(valid.sum(1), mixed.extent(LENGTHS))


def test_extents_travel_with_the_batch():
    policy = mixaug.create("mixup")
    tuples = MixCollate(policy, image_key=0, label_key=2, extent_keys=(1,), seed=0)
    recordings, lengths = (mixed := tuples(list(zip(RECORDINGS, LENGTHS, range(4), strict=True)))).inputs
    assert torch.equal(lengths, LENGTHS[mixed.sources].amax(1))
    assert recordings.shape == RECORDINGS.shape
    batch = {"wave": RECORDINGS, "length": LENGTHS, "valid": RECORDINGS[:, 0] > 0, "label": torch.arange(4)}
    names = {"image_key": "wave", "label_key": "label", "extent_keys": ["length", "valid"]}
    mixed = next(iter(DeviceLoader([batch], "cpu", policy, **names)))
    assert torch.equal(mixed.inputs["length"], LENGTHS[mixed.sources].amax(1))
    assert torch.equal(mixed.inputs["valid"].sum(1), mixed.inputs["length"])
    seen = []

    class Model(torch.nn.Linear):
        def forward(self, inputs):
            seen.append(inputs)
            return super().forward(inputs["wave"][:, 0])

    step = MixStep(Model(100, 4), policy, MixedCrossEntropy(), keys=["wave"], extent_keys=["length"])
    step({key: value for key, value in batch.items() if key != "label"}, batch["label"])
    assert torch.equal(seen[0]["length"], ((seen[0]["wave"][:, 0] > 0).sum(1)))
    assert torch.equal(seen[0]["valid"], batch["valid"])


def test_extents_that_do_not_fit_are_refused():
    mixed = mixaug.create("mixup")({"wave": RECORDINGS, "length": LENGTHS}, torch.arange(4), keys=["wave"])
    with pytest.raises(ValueError, match="extent expects a tensor of 4 rows"):
        mixed.extent(LENGTHS[:3])
    with pytest.raises(ValueError, match="keys names 'lengths', but the batch has"):
        mixed.with_extents(["lengths"])
    with pytest.raises(TypeError, match="extent_keys as a sequence of names"):
        MixCollate(mixaug.create("mixup"), image_key="wave", extent_keys="length")
    pooled = mixaug.Pooled("mixup", RECORDINGS, torch.arange(4))(
        {"wave": RECORDINGS, "length": LENGTHS}, torch.arange(4), keys=["wave"]
    )
    # The lengths of the partners are not known.
    with pytest.raises(ValueError, match="extent expects a tensor of 8 rows"):
        pooled.with_extents(["length"])
    assert isinstance(pooled, MixedBatch)
