"""Squared distances of wide rows: a matrix product on a CPU, with the digits of the sum of squared differences."""

import numpy as np
import pytest
import torch

from helpers import seeded
from mixaug.ops import kernels
from mixaug.ops.kernels import squared_distances
from mixaug.pairing.nearest import nearest_rows


def slow(first, second):
    """The definition, in extended precision."""
    wide = [rows.numpy().astype(np.longdouble) for rows in (first, second)]
    found = [[float(((row - other) ** 2).sum()) for other in wide[1]] for row in wide[0]]
    return torch.tensor(found, dtype=torch.float64)


def images(count, width=192, seed=0):
    return torch.rand(count, width, generator=seeded(seed), dtype=torch.float64)


def near_images():
    rows = images(12)
    rows[3] = rows[2]
    rows[5] = rows[4] + 1e-9
    rows[7] = rows[6] * (1 + 1e-13)
    rows[8] = 0
    rows[9] = 0
    return rows


@pytest.fixture
def direct(monkeypatch):
    """Counts how often the differences of all pairs are formed."""
    calls, plain = [], torch.cdist
    monkeypatch.setattr(torch, "cdist", lambda *rows, **how: calls.append(1) or plain(*rows, **how))
    return calls


@pytest.mark.parametrize("rows", [images(9), near_images(), images(9) - 0.5], ids=["images", "near", "centred"])
@pytest.mark.parametrize("other", ["itself", "a copy", "others"])
def test_a_product_has_the_digits_of_the_definition(rows, other, direct):
    second = {"itself": rows, "a copy": rows.clone(), "others": images(8, seed=1)}[other]
    found, expected = squared_distances(rows, second), slow(rows, second)
    assert not direct
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=0)
    # Whether a row is another one is seen by a distance of 0.
    assert torch.equal(found == 0, expected == 0)
    if other == "itself":
        assert torch.equal(found, found.T)


def doubled(kind, seed):
    """Rows that are there twice, in any order, and of each the first that it equals."""
    rows = images(40, width=300 + seed, seed=seed)
    if kind == "black and white":
        # All of one norm, that of their number of white pixels.
        rows = (rows.argsort(1).argsort(1) < 150).double() * 0.1
    elif kind == "two zeros":
        rows[:, ::2] = 0.0
    rows = torch.cat([rows, -rows.neg()])[torch.randperm(80, generator=seeded(seed))]
    if kind == "two zeros":
        rows[::2] += 0.0
        rows[1::2][rows[1::2] == 0] = -0.0
    return rows, (rows[:, None] == rows[None]).all(-1).int().argmax(1)


@pytest.mark.parametrize("kind", ["images", "black and white", "two zeros"])
def test_equal_rows_are_equally_far(kind, direct):
    for seed in range(6):
        rows, first = doubled(kind, seed)
        others = images(9, width=rows.shape[1], seed=20 + seed)
        for anchors in (rows, rows.clone(), others):
            found = squared_distances(anchors, rows)
            assert torch.equal(found, found[:, first]), seed
        whole = squared_distances(rows, rows)
        assert torch.equal(whole, whole.T), seed
        torch.testing.assert_close(whole, slow(rows, rows), rtol=1e-11, atol=0)
    assert not direct


def test_of_equal_neighbours_the_earlier_comes_first():
    for seed in range(6):
        rows, first = doubled("images", seed)
        distances = slow(rows, rows)[:, first]
        distances.fill_diagonal_(-1.0)
        expected = distances.argsort(dim=1, stable=True)[:, 1:6]
        assert torch.equal(nearest_rows(rows, 5), expected), seed


def test_rows_of_one_norm_or_one_key_that_differ_are_not_taken_for_equal(monkeypatch):
    # Without factors that tell places apart, all these rows have one key.
    rows, first = doubled("black and white", 0)
    expected = squared_distances(rows, rows)
    monkeypatch.setattr(torch, "randint", lambda low, high, size, generator: torch.ones(size, dtype=torch.int64))
    found = squared_distances(rows, rows)
    assert torch.equal(found == 0, first == first[:, None])
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=0)


def test_without_the_second_look_near_rows_would_lose_their_digits(monkeypatch):
    rows = near_images()
    monkeypatch.setattr(kernels, "NEAR", 0.0)
    lost = (squared_distances(rows, rows.clone()) / slow(rows, rows.clone()) - 1).abs()
    assert lost[4, 5] > 1e-3


@pytest.mark.parametrize(
    "rows",
    [images(9) + 1e6, images(3).repeat(5, 1), images(9) * 1e160, images(9)[:, :8], images(9).float()],
    ids=["far from 0", "many doubled", "too large to square", "narrow", "recorded"],
)
def test_differences_are_formed_where_a_product_would_not_do(rows, direct):
    if rows.dtype == torch.float32:
        rows = rows.double().requires_grad_()
    found = squared_distances(rows, rows.clone())
    assert direct
    if rows.max() < 1e10:
        torch.testing.assert_close(found.detach(), slow(rows.detach(), rows.detach()), rtol=1e-11, atol=0)
