"""Work on some rows of a batch at a time gives the bits of work on all rows at once."""

import re

import pytest
import torch

import mixaug
from helpers import seeded
from mixaug.ops import parts
from mixaug.ops.parts import in_parts
from mixaug.pairing import Local, nearest


def counting(seen):
    def double(first, second):
        seen.append(len(first))
        return first * second[:, None]

    return double


@pytest.mark.parametrize(
    ("count", "bytes_per_row", "sizes"),
    [(7, 2**20, [2, 2, 2, 1]), (6, 2**20, [2, 2, 2]), (2, 2**20, [2]), (3, 2**40, [1, 1, 1]), (9, 0, [9]), (0, 8, [0])],
)
def test_every_row_is_worked_on_once_in_its_turn(count, bytes_per_row, sizes):
    first, second = torch.randn(count, 3), torch.arange(count, dtype=torch.float32)
    seen = []
    result = in_parts(counting(seen), first, second, bytes_per_row=bytes_per_row)
    assert seen == sizes
    assert torch.equal(result, first * second[:, None])


def test_what_records_a_gradient_or_is_many_is_worked_on_at_once():
    first, second = torch.randn(6, 3, requires_grad=True), torch.ones(6)
    seen = []
    in_parts(counting(seen), first, second, bytes_per_row=2**40).sum().backward()
    assert seen == [6]
    assert torch.equal(first.grad, torch.ones(6, 3))
    seen.clear()
    stacked = torch.vmap(lambda rows: in_parts(counting(seen), rows, second, bytes_per_row=2**40))(torch.ones(2, 6, 3))
    assert seen == [6]
    assert torch.equal(stacked, torch.ones(2, 6, 3))
    with torch.no_grad():
        in_parts(counting(seen), first, second, bytes_per_row=2**40)
    assert seen == [6, *[1] * 6]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fmix", {}),
        ("fmix", {"frequencies": 4}),
        ("fmix", {"spectrum": "reference"}),
        ("fmix", {"max_soft": 0.2}),
        ("fmix", {"sources": 3}),
        ("cowmix", {}),
        ("cowmix", {"border": "reflect"}),
        ("mixup", {"sources": 3}),
        ("dmixup", {}),
        ("dmixup", {"per": "batch"}),
    ],
)
def test_policies_give_the_same_bits_in_parts(name, options, monkeypatch):
    images, labels = torch.rand(7, 2, 24, 20, generator=seeded(1)), torch.arange(7)
    policy = mixaug.create(name, **{"per": "sample", **options})
    found = []
    for at_once in (2**40, 4 * 24 * 20 * 4):
        monkeypatch.setattr(parts, "BYTES_AT_ONCE", at_once)
        mixed = policy(images, labels, generator=seeded(3))
        found.append((mixed.inputs, mixed.weights, mixed.sources))
    assert all(torch.equal(whole, part) for whole, part in zip(*found, strict=True))


@pytest.mark.parametrize(("name", "options"), [("mixup", {"sources": 3}), ("dmixup", {})])
def test_axes_stay_in_their_order_whatever_the_number_of_parts(name, options, monkeypatch):
    images, labels = torch.rand(7, 3, 24, 20, generator=seeded(1)), torch.arange(7)
    last = images.contiguous(memory_format=torch.channels_last)
    monkeypatch.setattr(parts, "BYTES_AT_ONCE", 2 * images[0].nbytes)
    for given in (images, last, images.transpose(2, 3)):
        mixed = mixaug.create(name, **options)(given, labels, generator=seeded(3)).inputs
        assert mixed.stride() == given.stride()


@pytest.mark.parametrize("noise", [torch.tensor(1.0), torch.zeros(5, 1, 8, 4, 2)], ids=["a number", "a column short"])
def test_noise_of_another_shape_is_refused_as_it_came(noise, monkeypatch):
    monkeypatch.setattr(parts, "BYTES_AT_ONCE", 1)
    with pytest.raises(ValueError, match=rf"fourier_image expects noise .* got {re.escape(str(tuple(noise.shape)))} "):
        mixaug.functional.fourier_image(noise, (8, 8), decay=3.0)


def test_distances_of_a_batch_are_computed_once(monkeypatch):
    images = torch.rand(40, 1, 4, 4, generator=seeded(1))
    calls = []
    plain = nearest.squared_distances

    def counted(first, second):
        calls.append((len(first), len(second)))
        return plain(first, second)

    monkeypatch.setattr(nearest, "squared_distances", counted)
    pairing, points = Local("auto"), images.flatten(1).double()
    policy = mixaug.create("local_mixup")
    policy(images, torch.zeros(40))
    assert calls == [(40, 40)]
    assert pairing._radius(points, plain(points, points)) == pairing._radius(points)
    # A tenth of the pairs of others is nearer than the radius.
    distances = torch.pdist(points)
    assert (distances < pairing._radius(points)).sum() == round(0.1 * len(distances))
    # Of many rows only some say how far a tenth of the pairs is.
    monkeypatch.setattr(nearest, "ROWS_OF_RADIUS", 10)
    calls.clear()
    policy(images, torch.zeros(40))
    assert calls == [(40, 40), (10, 10)]
