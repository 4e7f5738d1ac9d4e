"""Covered and moved cells against loops over pixels; the authors' numbers are in tests/golden."""

from itertools import pairwise

import pytest
import torch

from helpers import seeded
from mixaug.engine.evaluation import occlusion
from mixaug.engine.evaluation.draws import sample_order


def drawn(rows=6, columns=9, cell=3):
    images = torch.arange(4 * 2 * rows * columns, dtype=torch.float32).view(4, 2, rows, columns) + 1
    order = sample_order(torch.arange(4), (rows // cell) * (columns // cell), 0, "cells")
    return images, order


@pytest.mark.parametrize("share", [0, 0.25, 0.5, 1])
def test_cells_are_covered_as_a_loop_covers_them(share):
    images, order = drawn()
    dropped = occlusion.dropped_cells(order, share)
    assert dropped.sum(1).tolist() == [round(6 * share)] * 4
    other = -images
    for fill, value in ((0.0, torch.zeros_like(images)), (other, other), (7.0, torch.full_like(images, 7))):
        found = occlusion.occlude(images, dropped, 3, fill)
        for b in range(4):
            for y in range(6):
                for x in range(9):
                    covered = (y // 3) * 3 + x // 3 in order[b, : round(6 * share)].tolist()
                    expected = value if covered else images
                    assert torch.equal(found[b, :, y, x], expected[b, :, y, x])


def test_more_is_covered_with_a_larger_share_and_nothing_is_uncovered():
    order = drawn()[1]
    masks = [occlusion.dropped_cells(order, share) for share in (0, 0.2, 0.5, 0.9)]
    assert all((more | less).equal(more) for less, more in pairwise(masks))


def test_moved_cells_are_those_of_a_loop():
    images, order = drawn()
    found = occlusion.shuffle_patches(images, order, 3)
    for b in range(4):
        for place, cell in enumerate(order[b].tolist()):
            here, there = divmod(place, 3), divmod(cell, 3)
            got = found[b, :, here[0] * 3 : here[0] * 3 + 3, here[1] * 3 : here[1] * 3 + 3]
            assert torch.equal(got, images[b, :, there[0] * 3 : there[0] * 3 + 3, there[1] * 3 : there[1] * 3 + 3])
    still = torch.arange(6).expand(4, 6)
    assert torch.equal(occlusion.shuffle_patches(images, still, 3), images)


def test_area_under_a_curve():
    assert occlusion.area_under_curve([0, 0.5, 1], [80, 60, 0]) == pytest.approx(50)
    assert occlusion.area_under_curve([0, 0.1], [3, 3]) == pytest.approx(3)
    with pytest.raises(ValueError, match="ascending shares"):
        occlusion.area_under_curve([0, 0], [1, 2])


def test_wrong_input_is_named():
    images, order = drawn()
    with pytest.raises(ValueError, match=r"side divides images of \(6, 9\), got 2"):
        occlusion.occlude(images, torch.zeros(4, 6, dtype=torch.bool), 2)
    with pytest.raises(ValueError, match=r"dropped \(4, 6\) or \(1, 6\) bool, got \(4, 5\)"):
        occlusion.occlude(images, torch.zeros(4, 5, dtype=torch.bool), 3)
    with pytest.raises(ValueError, match=r"share in \[0, 1\], got 2"):
        occlusion.dropped_cells(order, 2)
    with pytest.raises(ValueError, match=r"order \(4, 6\) int64"):
        occlusion.shuffle_patches(images, torch.rand(4, 6, generator=seeded(0)), 3)
