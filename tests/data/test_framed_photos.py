"""Photographs with a frame that tells the class in training alone."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("PIL.Image")

from mixaug.data import load
from mixaug.data.framed_photos import ANIMALS, COLOURS
from mixaug.data.photos import CLASSES


def test_the_frame_goes_with_the_class_in_training_and_with_nothing_elsewhere():
    framed, photos = load("framed_photos"), load("photos")
    assert framed.class_names == ("animal", "thing")
    assert framed.image_size == (3, 32, 32)
    for split, counts in (("train", [237, 13, 13, 237]), ("valid", [125] * 4), ("test", [250] * 4)):
        part, source = getattr(framed, split), getattr(photos, split)
        domain, group = part.metadata["domain"], part.metadata["group"]
        is_animal = torch.tensor([CLASSES[label] in ANIMALS for label in source.labels])
        assert torch.equal(part.labels, (~is_animal).long())
        assert torch.equal(group, 2 * part.labels + domain)
        assert group.bincount().tolist() == counts
        if split != "train":
            # Each colour surrounds half of the images of each photographed thing.
            assert all(domain[source.labels == label].float().mean() == 0.5 for label in range(10))
        colours = torch.tensor(COLOURS, dtype=torch.uint8)[domain][:, :, None]
        for edge in (part.images[:, :, 0], part.images[:, :, :, 1], part.images[:, :, -1], part.images[:, :, :, -2]):
            assert (edge == colours).all()
        assert torch.equal(part.images[:, :, 2:-2, 2:-2], source.images[:, :, 2:-2, 2:-2])


def test_options_change_what_they_say():
    usual, other = load("framed_photos"), load("framed_photos", split_seed=1, correlation=0.8, frame=5)
    assert other.train.metadata["group"].bincount().tolist() == [200, 50, 50, 200]
    assert not torch.equal(other.test.metadata["domain"], usual.test.metadata["domain"])
    assert torch.equal(other.test.images[:, :, 5:-5, 5:-5], usual.test.images[:, :, 5:-5, 5:-5])
    assert not torch.equal(other.test.images[:, :, 4, 5:-5], usual.test.images[:, :, 4, 5:-5])
    few = load("framed_photos", per_class=100)
    assert len(few.train.metadata["group"]) == 200
    for wrong, message in (
        ({"correlation": 0.4}, r"correlation in \[0\.5, 1\), got 0\.4"),
        ({"frame": 16}, r"frame in 1\.\.15, got 16"),
        ({"split_seed": -1}, "split_seed >= 0, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            load("framed_photos", **wrong)
