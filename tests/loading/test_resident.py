"""The device-resident loader: order, shards, crops, and the place it resumes at."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mixaug.loading import ResidentLoader, crop_and_flip


def data(count: int = 50, size: tuple[int, int] = (6, 7)) -> tuple[Tensor, Tensor]:
    images = torch.randint(1, 256, (count, 3, *size), generator=torch.Generator().manual_seed(0))
    return images.to(torch.uint8), torch.arange(count)


AUGMENT = {"crop_padding": 2, "flip": True, "mean": (0.5, 0.4, 0.3), "std": 0.2, "seed": 3}


def same(ours: list[tuple[Tensor, Tensor]], other: list[tuple[Tensor, Tensor]]) -> bool:
    return len(ours) == len(other) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(ours, other, strict=True)
    )


def joined(batches: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


@pytest.mark.parametrize("drop_last", [False, True])
def test_every_sample_once_and_labels_stay_with_images(drop_last):
    images, labels = data()
    loader = ResidentLoader(images, labels, 8, drop_last=drop_last)
    batches = list(loader)
    assert len(batches) == len(loader) == (6 if drop_last else 7)
    seen_images, seen = joined(batches)
    assert len(seen.unique()) == len(seen) == (48 if drop_last else 50)
    assert torch.equal(seen_images, images[seen])
    assert seen_images.dtype == torch.uint8


def test_evaluation_keeps_order_and_augments_nothing():
    images, labels = data()
    loader = ResidentLoader(images, labels, 16, shuffle=False, mean=0.5, std=0.25)
    seen_images, seen = joined(list(loader))
    assert torch.equal(seen, labels)
    torch.testing.assert_close(seen_images, (images.float() / 255 - 0.5) / 0.25)
    assert same(list(loader), list(loader))


def test_epochs_differ_and_repeat_exactly():
    images, labels = data()
    first, second = (ResidentLoader(images, labels, 8, **AUGMENT) for _ in range(2))
    epochs = []
    for epoch in (0, 1, 5):
        for loader in (first, second):
            loader.set_epoch(epoch)
        epochs.append(list(first))
        assert same(epochs[-1], list(second))
    assert not torch.equal(epochs[0][0][1], epochs[1][0][1])
    assert not torch.equal(epochs[1][0][1], epochs[2][0][1])
    assert not same(epochs[0], list(ResidentLoader(images, labels, 8, **(AUGMENT | {"seed": 4}))))


def test_a_complete_pass_moves_on_by_itself():
    images, labels = data()
    loader = ResidentLoader(images, labels, 8, **AUGMENT)
    first = list(loader)
    assert loader.epoch == 1
    second = list(loader)
    loader.set_epoch(0)
    assert same(list(loader), first)
    loader.set_epoch(1)
    assert same(list(loader), second)
    assert not same(first, second)


def test_an_abandoned_pass_begins_anew():
    images, labels = data()
    loader = ResidentLoader(images, labels, 8, **AUGMENT)
    expected = next(iter(loader))
    again = next(iter(loader))
    assert torch.equal(expected[0], again[0]) and loader.epoch == 0


def test_the_global_random_state_is_left_alone():
    images, labels = data()
    before = torch.get_rng_state()
    list(ResidentLoader(images, labels, 8, **AUGMENT))
    assert torch.equal(before, torch.get_rng_state())


def test_order_does_not_depend_on_augmentation():
    images, labels = data()
    plain = ResidentLoader(images, labels, 8, seed=3)
    augmented = ResidentLoader(images, labels, 8, **AUGMENT)
    assert torch.equal(joined(list(plain))[1], joined(list(augmented))[1])


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_crops_are_windows_of_the_padded_image_uniform_over_offsets(mode):
    # Every pixel of the image names itself; each of the 2 x 9 windows must turn up about equally often.
    images = torch.arange(1, 37, dtype=torch.uint8).view(1, 1, 6, 6).expand(18_000, 1, 6, 6)
    loader = ResidentLoader(images, torch.zeros(18_000), 18_000, crop_padding=1, padding_mode=mode, flip=True, seed=0)
    crops, _ = next(iter(loader))
    offsets = torch.cartesian_prod(torch.arange(3), torch.arange(3)).repeat(2, 1)
    flips = torch.arange(18) >= 9
    windows = crop_and_flip(images[:1], torch.zeros(18, dtype=torch.long), offsets, flips, padding=1, padding_mode=mode)
    matches = (crops[:, None] == windows[None]).flatten(2).all(2)
    assert (matches.sum(1) == 1).all()
    counts = matches.sum(0).double()
    expected = 18_000 / 18
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 17 + 4 * (2 * 17) ** 0.5


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("drop_last", [False, True])
def test_ranks_together_are_one_process_with_the_larger_batch(world_size, drop_last):
    images, labels = data(52)
    options = AUGMENT | {"drop_last": drop_last}
    single = ResidentLoader(images, labels, 4 * world_size, **options)
    ranks = [
        ResidentLoader(images, labels, 4, rank=rank, world_size=world_size, **options) for rank in range(world_size)
    ]
    assert {len(loader) for loader in ranks} == {len(single)}
    for epoch in range(2):
        for whole, *parts in zip(single, *ranks, strict=True):
            got = joined(parts)
            count = len(whole[1]) - len(whole[1]) % world_size  # see the docstring on a rest when shuffling
            assert torch.equal(got[0], whole[0][:count]), epoch
            assert torch.equal(got[1], whole[1][:count])


def test_a_rest_smaller_than_the_world_is_left_out_when_shuffling_and_kept_in_evaluation():
    images, labels = data(13)
    train = [ResidentLoader(images, labels, 2, rank=r, world_size=3) for r in range(3)]
    assert [len(loader) for loader in train] == [2, 2, 2]
    test = [ResidentLoader(images, labels, 2, rank=r, world_size=3, shuffle=False) for r in range(3)]
    seen = torch.cat([joined(list(loader))[1] for loader in test])
    assert torch.equal(seen.sort().values, labels)


@pytest.mark.parametrize("stop", [0, 1, 3, 7])
def test_resuming_in_mid_epoch_goes_on_exactly(stop):
    images, labels = data()
    undisturbed = ResidentLoader(images, labels, 8, **AUGMENT)
    expected = [list(undisturbed) for _ in range(3)]

    loader = ResidentLoader(images, labels, 8, **AUGMENT)
    list(loader)
    running = iter(loader)
    for _ in range(stop):
        next(running)
    state = {key: int(value) for key, value in loader.state_dict().items()}
    assert (state["epoch"], state["position"]) == (1, stop)

    resumed = ResidentLoader(images, labels, 8, **AUGMENT)
    resumed.load_state_dict(state)
    resumed.set_epoch(1)  # as a training loop does that starts at the saved epoch
    assert same(list(resumed), expected[1][stop:])
    resumed.set_epoch(2)
    assert same(list(resumed), expected[2])


def test_a_state_of_another_loader_is_refused():
    images, labels = data()
    state = ResidentLoader(images, labels, 8, seed=1).state_dict()
    for options, name in (({"seed": 2}, "seed"), ({"batch_size": 4, "seed": 1}, "batch_size")):
        with pytest.raises(ValueError, match=name):
            ResidentLoader(images, labels, **({"batch_size": 8} | options)).load_state_dict(state)
    with pytest.raises(ValueError, match="expects a state with"):
        ResidentLoader(images, labels, 8).load_state_dict({"epoch": 1})
    with pytest.raises(ValueError, match="the state says 8"):
        ResidentLoader(images, labels, 8, seed=1).load_state_dict(state | {"position": 8})


def test_batches_are_copies():
    images, labels = data()
    before = images.clone()
    for batch, batch_labels in ResidentLoader(images, labels, 8, shuffle=False):
        batch.zero_()
        batch_labels.zero_()
    assert torch.equal(images, before) and labels[-1] == 49


def test_dtype_and_memory_format():
    images, labels = data()
    loader = ResidentLoader(images, labels, 8, mean=0.5, dtype=torch.bfloat16, memory_format=torch.channels_last)
    batch, _ = next(iter(loader))
    assert batch.dtype == torch.bfloat16
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert "50 images" in repr(loader)


def test_dense_labels():
    images, _ = data(10)
    rows = torch.rand(10, 4, generator=torch.Generator().manual_seed(0))
    seen_images, seen = joined(list(ResidentLoader(images, rows, 4)))
    assert torch.equal(seen, rows[[int((images == image).flatten(1).all(1).nonzero()[0]) for image in seen_images]])


def test_one_order_for_all_epochs_on_request():
    table, numbers = torch.rand(10, 3), torch.arange(10)
    kept, new = (ResidentLoader(table, numbers, 4, seed=3, reshuffle=flag) for flag in (False, True))
    orders = [[torch.cat([labels for _, labels in loader]).tolist() for _ in range(3)] for loader in (kept, new)]
    assert orders[0][0] == orders[0][1] == orders[0][2] == orders[1][0]
    assert orders[1][0] != orders[1][1]


def test_tables_and_series_go_the_same_way_as_images():
    table = torch.rand(10, 3, generator=torch.Generator().manual_seed(1))
    numbers = table.sum(1, keepdim=True)
    loader = ResidentLoader(table, numbers, 4, seed=3, with_rows=True)
    inputs, labels, rows = (torch.cat(parts) for parts in zip(*loader, strict=True))
    assert torch.equal(inputs, table[rows])
    assert torch.equal(labels, numbers[rows])
    assert sorted(rows.tolist()) == list(range(10))
    images = torch.randint(0, 256, (10, 3, 4, 4), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    order = [batch[2] for batch in ResidentLoader(images, numbers, 4, seed=3, with_rows=True, flip=True)]
    assert torch.equal(torch.cat(order), rows)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": torch.zeros(4, 1, 4, 4), "flip": True}, TypeError, "uint8"),
        ({"images": torch.zeros(4, 1, 4, 4), "crop_padding": 1}, TypeError, "uint8"),
        ({"images": torch.zeros(4, 5, dtype=torch.int64)}, TypeError, "uint8 or floating tensor, got torch.int64"),
        ({"images": [1, 2]}, TypeError, "uint8 or floating tensor, got list"),
        ({"images": torch.zeros(4, 4, 4, dtype=torch.uint8), "flip": True}, ValueError, r"\(N, C, H, W\)"),
        ({"images": torch.zeros(0, 4)}, ValueError, r"\(N, \.\.\.\)"),
        ({"labels": [0, 1, 2, 3]}, TypeError, "labels as a torch.Tensor, got list"),
        ({"labels": torch.zeros(3)}, ValueError, "4 images but labels"),
        ({"batch_size": 0}, ValueError, "batch_size >= 1"),
        ({"crop_padding": -1}, ValueError, "padding >= 0"),
        ({"crop_padding": 4, "padding_mode": "reflect"}, ValueError, "reflects at most"),
        ({"padding_mode": "edge"}, ValueError, "padding_mode one of"),
        ({"batch_size": 5, "drop_last": True}, ValueError, "no batch"),
        ({"rank": 2, "world_size": 2}, ValueError, "rank in"),
        ({"rank": 1}, ValueError, "together"),
    ],
)
def test_bad_arguments(change, error, message):
    arguments = {
        "images": torch.zeros(4, 1, 4, 4, dtype=torch.uint8),
        "labels": torch.zeros(4, dtype=torch.long),
        "batch_size": 2,
    }
    with pytest.raises(error, match=message):
        ResidentLoader(**(arguments | change))


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_cuda_gives_the_batches_of_the_cpu(mode):
    images, labels = data(500)
    options = AUGMENT | {"padding_mode": mode}
    cpu = ResidentLoader(images, labels, 64, **options)
    cuda = ResidentLoader(images, labels, 64, device="cuda", **options)
    for (a, b), (c, d) in zip(cpu, cuda, strict=True):
        assert c.device.type == "cuda"
        torch.testing.assert_close(c.cpu(), a, rtol=0, atol=1e-6)
        assert torch.equal(d.cpu(), b)


@pytest.mark.gpu
def test_cuda_batches_need_no_synchronisation():
    images, labels = data(500)
    batches = iter(ResidentLoader(images, labels, 64, device="cuda", **AUGMENT))
    next(batches)  # an epoch's draws cross to the device at its start
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert sum(1 for _ in batches) == 7
    finally:
        torch.cuda.set_sync_debug_mode("default")
