"""DeviceLoader on the CPU, where it must be the plain sequence of steps, and on CUDA, where it must equal that."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import mixaug
from mixaug.loading import DeviceLoader, MixCollate, Normalize
from mixaug.loading.samples import may_overwrite
from mixaug.plan import Plan
from mixaug.testing.surface import pretended_cuda

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def pairs(count: int = 26, size: int = 8) -> TensorDataset:
    images = torch.randint(256, (count, 3, size, size), generator=torch.Generator().manual_seed(0))
    return TensorDataset(images.to(torch.uint8), torch.arange(count) % 7)


def plain(**options) -> DataLoader:
    return DataLoader(pairs(), batch_size=4, **options)


def large() -> DataLoader:
    """Of images that are mixed one by one on a CPU."""
    return DataLoader(pairs(8, 80), batch_size=4)


def test_moves_and_normalises():
    loader = DeviceLoader(plain(), "cpu", mean=MEAN, std=STD)
    assert len(loader) == 7
    for (images, labels), (raw, raw_labels) in zip(loader, plain(), strict=True):
        assert torch.equal(images, Normalize(MEAN, STD)(raw))
        assert torch.equal(labels, raw_labels)


def test_without_options_batches_pass_through():
    for (images, labels), (raw, raw_labels) in zip(DeviceLoader(plain(), "cpu"), plain(), strict=True):
        assert images.dtype == torch.uint8
        assert torch.equal(images, raw) and torch.equal(labels, raw_labels)


def test_dtype_and_memory_format():
    loader = DeviceLoader(plain(), "cpu", mean=MEAN, dtype=torch.bfloat16, memory_format=torch.channels_last)
    images, _ = next(iter(loader))
    assert images.dtype == torch.bfloat16
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_mixes_what_it_normalised():
    policy = mixaug.create("mixup")
    g, h = (torch.Generator().manual_seed(3) for _ in range(2))
    loader = DeviceLoader(plain(), "cpu", policy, MEAN, STD, generator=g)
    for mixed, (raw, labels) in zip(loader, plain(), strict=True):
        expected = policy(Normalize(MEAN, STD)(raw), labels, generator=h)
        assert isinstance(mixed, mixaug.MixedBatch)
        assert torch.equal(mixed.inputs, expected.inputs)
        assert torch.equal(mixed.weights, expected.weights)
        assert torch.equal(mixed.labels, labels)


def test_seeded_mixing_depends_on_epoch_and_batch_alone():
    raw = list(plain())

    def lams(epoch: int, skip: int = 0) -> list[Tensor]:
        loader = DeviceLoader(raw[skip:], "cpu", mixaug.create("cutmix"), seed=3)
        loader.set_epoch(epoch, skip)
        return [mixed.lam for mixed in loader]

    state = torch.get_rng_state()
    first, again, later = lams(0), lams(0), lams(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(torch.cat(first), torch.cat(later))
    assert all(torch.equal(a, b) for a, b in zip(first[2:], lams(0, 2), strict=True))
    assert torch.equal(torch.get_rng_state(), state)


WAYS = {
    "normalised": (torch.uint8, {"mean": MEAN, "std": STD}),
    "normalised floats": (torch.float32, {"mean": MEAN}),
    "other dtype": (torch.float32, {"dtype": torch.float64}),
    "other layout": (torch.float32, {"memory_format": torch.channels_last}),
    "same dtype": (torch.float32, {"dtype": torch.float32}),
    "nothing": (torch.uint8, {}),
}


@pytest.mark.parametrize("way", WAYS)
def test_batches_of_the_caller_are_left_alone(way):
    dtype, form = WAYS[way]
    raw = [(images.to(dtype), labels, images[:, :1].clone()) for images, labels in large()]
    before = [[part.clone() for part in batch] for batch in raw]
    for options in ({}, {"keys": [2]}, {"partners": mixaug.partners.PreviousBatch()}):
        policy = mixaug.create("cutmix", **({"partners": options["partners"]} if "partners" in options else {}))
        keys = {"keys": options["keys"]} if "keys" in options else {}
        for _ in DeviceLoader(raw, "cpu", policy, image_key=0, label_key=1, **form, **keys):
            pass
    for batch, copies in zip(raw, before, strict=True):
        assert all(torch.equal(part, copy) for part, copy in zip(batch, copies, strict=True))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("batches", [large, plain], ids=["large", "small"])
def test_large_images_that_were_made_here_are_mixed_in_place(way, batches):
    dtype, form = WAYS[way]
    raw = [(images.to(dtype), labels) for images, labels in batches()]
    loader = DeviceLoader(raw, "cpu", mixaug.create("cutmix"), **form)
    made, plainly = [], loader.normalize

    def normalize(images):
        made.append(plainly(images))
        return made[-1]

    loader.normalize = normalize
    places = [mixed.inputs.data_ptr() == images.data_ptr() for mixed, images in zip(loader, made, strict=False)]
    assert places == [batches is large and way not in ("nothing", "same dtype")] * len(raw)


def test_batches_are_not_mixed_twice():
    for classes in (None, 7):
        loader = plain(collate_fn=MixCollate(mixaug.create("cutmix"), classes))
        with pytest.raises(ValueError, match="they come from a MixCollate: take one of the two policies"):
            DeviceLoader(loader, "cpu", mixaug.create("mixup"))
        assert len(list(DeviceLoader(loader, "cpu", mean=MEAN, std=STD))) == 7


def test_on_a_gpu_nothing_is_mixed_in_place():
    # A new tensor costs nothing there, and a result in place is one that is copied.
    with pretended_cuda():
        images = torch.empty(4, 3, 80, 80)
    assert not may_overwrite(mixaug.create("cutmix"), images)
    assert may_overwrite(mixaug.create("cutmix"), torch.rand(4, 3, 80, 80))


def test_images_that_record_a_gradient_are_mixed_into_a_new_tensor():
    images = torch.rand(4, 3, 80, 80, requires_grad=True)
    loader = DeviceLoader([(images, torch.arange(4))], "cpu", mixaug.create("mixup"), MEAN, STD, seed=0)
    (mixed,) = loader
    mixed.inputs.sum().backward()
    # Every image comes in with shares that sum to one, whoever shows it.
    torch.testing.assert_close(images.grad.sum(0), 4 / torch.tensor(STD)[:, None, None].expand(3, 80, 80))


class OutOfPlace(mixaug.Policy):
    """Of a package of its own, with a plan that writes nowhere."""

    writes_in_place = False
    not_offered = ("alpha", "ratio")

    def sample(self, batch, partner, draws):
        return Turned(partner=partner, lam=torch.ones(1), size=batch.size)


@dataclass(frozen=True)
class Turned(Plan):
    def mix(self, tensor, *, out=None, inplace=False):
        assert out is None and not inplace
        return tensor.flip(-1)


@pytest.mark.parametrize("around", [lambda policy: policy, mixaug.Sometimes, lambda policy: mixaug.OneOf([policy])])
def test_a_policy_that_writes_nowhere_is_not_asked_to(around):
    policy = around(OutOfPlace())
    (mixed, *_), ((raw, _), *_) = DeviceLoader(plain(), "cpu", policy, MEAN, STD), plain()
    assert torch.equal(mixed.inputs, Normalize(MEAN, STD)(raw).flip(-1))
    collated = MixCollate(policy, seed=0)([pairs()[i] for i in range(4)])
    assert torch.equal(collated.inputs, raw.flip(-1))


@pytest.mark.parametrize("name", ["fmix", "saliencymix", "deit", "resizemix", "patchmix"])
def test_what_is_mixed_in_place_is_what_a_new_tensor_holds(name):
    first, second = mixaug.create(name), mixaug.create(name)
    g, h = (torch.Generator().manual_seed(3) for _ in range(2))
    loader = DeviceLoader(large(), "cpu", first, MEAN, STD, generator=g)
    for mixed, (raw, labels) in zip(loader, large(), strict=True):
        expected = second(Normalize(MEAN, STD)(raw), labels, generator=h)
        assert torch.equal(mixed.inputs, expected.inputs)
        assert torch.equal(mixed.weights, expected.weights)


def test_mappings():
    raw = [{"pixel_values": images, "labels": labels, "name": "x"} for images, labels in plain()]
    keys = {"image_key": "pixel_values", "label_key": "labels"}
    batch = next(iter(DeviceLoader(raw, "cpu", mean=MEAN, std=STD, **keys)))
    assert torch.equal(batch["pixel_values"], Normalize(MEAN, STD)(raw[0]["pixel_values"]))
    assert batch["name"] == "x" and torch.equal(batch["labels"], raw[0]["labels"])
    mixed = next(iter(DeviceLoader(raw, "cpu", mixaug.create("cutmix"), mean=MEAN, **keys)))
    assert set(mixed.inputs) == {"pixel_values", "name"}
    assert torch.equal(mixed.labels, raw[0]["labels"])
    with pytest.raises(ValueError, match="image_key="):
        next(iter(DeviceLoader(raw, "cpu", mean=MEAN)))
    assert torch.equal(next(iter(DeviceLoader(raw, "cpu")))["labels"], raw[0]["labels"])


def test_images_alone():
    raw = [images for images, _ in plain()]
    mixed = next(iter(DeviceLoader(raw, "cpu", mixaug.create("cutmix"), MEAN, STD)))
    assert mixed.labels is None and mixed.inputs.dtype == torch.float32


def test_mixed_batches_of_a_collate_are_normalised_and_stay_mixed():
    collate = MixCollate(mixaug.create("cutmix"), seed=1)
    collate.set_epoch(0)
    expected = list(plain(collate_fn=collate))
    loader = DeviceLoader(plain(collate_fn=collate), "cpu", mean=MEAN, std=STD)
    loader.set_epoch(0)
    for mixed, raw in zip(loader, expected, strict=True):
        assert torch.equal(mixed.inputs, Normalize(MEAN, STD)(raw.inputs))
        assert torch.equal(mixed.weights, raw.weights) and torch.equal(mixed.sources, raw.sources)
        assert torch.equal(mixed.mask, raw.mask)
    with pytest.raises(ValueError, match="not twice"):
        next(iter(DeviceLoader(expected, "cpu", mixaug.create("mixup"))))
    untouched = next(iter(DeviceLoader(plain(collate_fn=collate), "cpu")))
    assert untouched.inputs.dtype == torch.uint8


def test_mixed_mappings_are_normalised_too():
    raw = mixaug.create("cutmix")({"pixel_values": pairs().tensors[0]}, pairs().tensors[1], keys=["pixel_values"])
    (mixed,) = DeviceLoader([raw], "cpu", mean=MEAN, std=STD, image_key="pixel_values")
    assert torch.equal(mixed.inputs["pixel_values"], Normalize(MEAN, STD)(raw.inputs["pixel_values"]))


def test_set_epoch_reaches_every_part_once():
    calls: list[tuple] = []

    class Part:
        def __init__(self, name: str) -> None:
            self.name = name

        def set_epoch(self, epoch: int) -> None:
            calls.append((self.name, epoch))

    class Loader(Part):
        sampler = Part("sampler")
        batch_sampler = Part("batch_sampler")
        dataset = Part("dataset")
        collate_fn = Part("collate_fn")

    Loader.batch_sampler.sampler = Loader.sampler
    DeviceLoader(Loader("loader"), "cpu").set_epoch(4)
    assert sorted(calls) == sorted(
        (name, 4) for name in ("loader", "sampler", "batch_sampler", "dataset", "collate_fn")
    )


def test_set_epoch_reshuffles_a_distributed_sampler():
    data = pairs()
    sampler = DistributedSampler(data, num_replicas=2, rank=0, seed=0)
    loader = DeviceLoader(DataLoader(data, 13, sampler=sampler), "cpu")
    orders = []
    for epoch in (0, 1, 0):
        loader.set_epoch(epoch)
        orders.append(torch.cat([labels for _, labels in loader]))
    assert torch.equal(orders[0], orders[2]) and not torch.equal(orders[0], orders[1])


def test_first_batch_reaches_the_collate_function():
    collate = MixCollate(mixaug.create("cutmix"), seed=1)
    loader = DeviceLoader(plain(collate_fn=collate), "cpu")
    loader.set_epoch(0)
    lams = [mixed.lam for mixed in loader]
    loader.set_epoch(0, first_batch=3)
    assert not torch.equal(next(iter(loader)).lam, lams[0])


def test_set_progress_reaches_policy_and_collate():
    inner, outer = (mixaug.Sometimes("cutmix", until=0.5) for _ in range(2))
    DeviceLoader(plain(collate_fn=MixCollate(inner)), "cpu").set_progress(0.7)
    DeviceLoader(plain(), "cpu", outer).set_progress(0.7)
    assert inner.active is False and outer.active is False


def failing(after: int):
    for index, batch in enumerate(plain()):
        if index == after:
            raise OSError("image 17 is truncated")
        yield batch


def test_an_exception_of_the_loader_comes_after_the_batches_before_it():
    seen = []
    with pytest.raises(OSError, match="image 17"):
        for batch in DeviceLoader(failing(3), "cpu", mean=MEAN):
            seen.append(batch)
    assert len(seen) == 3


def test_a_loader_without_length_says_so():
    with pytest.raises(TypeError, match="len"):
        len(DeviceLoader(failing(3), "cpu"))


def test_an_empty_loader_is_empty():
    assert list(DeviceLoader([], "cpu", mixaug.create("cutmix"))) == []


def test_bad_options():
    policy = mixaug.create("cutmix")
    with pytest.raises(TypeError, match=r"mixaug\.create"):
        DeviceLoader([], "cpu", "cutmix")
    with pytest.raises(ValueError, match="not both"):
        DeviceLoader([], "cpu", policy, generator=torch.Generator(), seed=1)
    with pytest.raises(ValueError, match="std expects positive"):
        DeviceLoader([], "cpu", std=0.0)
    with pytest.raises(TypeError, match="got int"):
        next(iter(DeviceLoader([(1, 2)], "cpu", mean=0.5)))
    with pytest.raises(TypeError, match="got str"):
        next(iter(DeviceLoader(["images"], "cpu", mean=0.5)))
    policy.needs = frozenset({"cam"})
    with pytest.raises(ValueError, match="cam of the model"):
        DeviceLoader([], "cpu", policy)


def test_repr():
    assert "mean=[0.5]" in repr(DeviceLoader([], "cpu", mean=0.5))


@pytest.mark.gpu
class TestCuda:
    @pytest.mark.parametrize("pin_memory", [False, True])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_equals_the_cpu(self, pin_memory, dtype):
        options = {"mean": MEAN, "std": STD, "dtype": dtype, "memory_format": torch.channels_last}
        cuda = DeviceLoader(plain(pin_memory=pin_memory), "cuda", **options)
        for (a, b), (c, d) in zip(cuda, DeviceLoader(plain(), "cpu", **options), strict=True):
            assert a.device.type == "cuda" and a.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(a.cpu(), c)
            assert torch.equal(b.cpu(), d)

    def test_batches_are_right_while_the_consumer_is_slow_and_memory_is_reused(self):
        """The consumer's stream lags far behind, so that memory handed on too early would be overwritten."""
        data = TensorDataset(
            torch.arange(64, dtype=torch.uint8).view(64, 1, 1, 1).expand(64, 3, 224, 224), torch.arange(64)
        )
        loader = DeviceLoader(DataLoader(data, 4, pin_memory=True), "cuda", dtype=torch.float32)
        sums, truth = [], []
        for images, labels in loader:
            torch.cuda._sleep(50_000_000)
            sums.append(images.mul(255).flatten(1).mean(1))
            truth.append(labels)
            del images, labels
        torch.testing.assert_close(torch.cat(sums), torch.cat(truth).float(), rtol=1e-5, atol=1e-4)

    def test_mixes_on_its_stream_reproducibly(self):
        runs = []
        for _ in range(2):
            loader = DeviceLoader(plain(pin_memory=True), "cuda", mixaug.create("cutmix"), MEAN, STD, seed=2)
            loader.set_epoch(0)
            runs.append([(mixed.inputs.cpu(), mixed.weights.cpu(), mixed.plan) for mixed in loader])
        for (images, weights, plan), (again, same_weights, _), (raw, _) in zip(*runs, plain(), strict=True):
            assert torch.equal(images, again) and torch.equal(weights, same_weights)
            expected = plan.map_tensors(lambda tensor: tensor.cpu()).mix(Normalize(MEAN, STD)(raw))
            torch.testing.assert_close(images, expected)

    def test_mixed_batches_cross_whole(self):
        collate = MixCollate(mixaug.create("cutmix"), seed=1)
        loader = plain(collate_fn=collate, num_workers=1, pin_memory=True)
        collate.set_epoch(0)
        expected = list(loader)
        assert expected[0].inputs.is_pinned() and expected[0].weights.is_pinned()
        cuda = DeviceLoader(loader, "cuda", mean=MEAN, std=STD)
        cuda.set_epoch(0)
        for mixed, raw in zip(cuda, expected, strict=True):
            assert {t.device.type for t in (mixed.inputs, mixed.labels, mixed.sources, mixed.mask)} == {"cuda"}
            torch.testing.assert_close(mixed.inputs.cpu(), Normalize(MEAN, STD)(raw.inputs))

    def test_batches_that_lie_on_the_device_already(self):
        raw = [(images.cuda(), labels.cuda()) for images, labels in plain()]
        for (images, _), (pixels, _) in zip(DeviceLoader(raw, "cuda", mean=MEAN, std=STD), raw, strict=True):
            assert torch.equal(images, Normalize(MEAN, STD)(pixels))

    def test_exception_after_the_batches_before_it(self):
        seen = []
        with pytest.raises(OSError, match="image 17"):
            for batch in DeviceLoader(failing(3), "cuda", mean=MEAN):
                seen.append(batch)
        assert len(seen) == 3

    def test_no_synchronisation(self):
        batches = iter(DeviceLoader(plain(pin_memory=True), "cuda", mixaug.create("mixup"), MEAN, STD))
        next(batches)  # constants cross to the device with the first batch
        torch.cuda.set_sync_debug_mode("error")
        try:
            assert sum(1 for _ in batches) == 6
        finally:
            torch.cuda.set_sync_debug_mode("default")
