"""The photographs that come with the package: what they are, and that they are those of CIFAR-100."""

from __future__ import annotations

import hashlib

import pytest
import torch

pytest.importorskip("PIL.Image")

import photos as tool
from mixaug.data import ArrayData, MappedData, load
from mixaug.data.photos import CLASSES


def test_parts_are_fixed_for_good():
    """Runs made months apart are compared, so the pixels must not move with whoever writes or reads the files."""
    photos = load("photos")
    assert photos.in_memory
    assert photos.image_size == (3, 32, 32)
    assert photos.class_names == CLASSES
    found = {}
    for part, samples in (("train", photos.train), ("valid", photos.valid), ("test", photos.test)):
        assert isinstance(samples, ArrayData)
        assert samples.labels.bincount().tolist() == [100 if part == "test" else 50] * 10
        found[part] = hashlib.sha256(samples.images.numpy().tobytes() + samples.labels.numpy().tobytes()).hexdigest()
    assert {part: value[:16] for part, value in found.items()} == {
        "train": "b54d3eaabbb94520",
        "valid": "6ead6263abb77e30",
        "test": "193ceb5b24306416",
    }


def test_options_of_all_sets_with_classes():
    photos = load("photos", classes=["bear", "apple"], per_class=5, split_seed=1, test_transform="uint8")
    assert photos.class_names == ("bear", "apple")
    assert photos.train.labels.tolist() == [1] * 5 + [0] * 5  # in the order of the file, where apples come first
    # Validation and test lose no sample, and both are read by the test part's transform.
    assert isinstance(photos.valid, MappedData)
    assert isinstance(photos.test, MappedData)
    assert photos.valid.transform is photos.test.transform
    assert (len(photos.valid), len(photos.test)) == (100, 200)
    with pytest.raises(ValueError, match=r"photos.*validation part of its own.*valid_share=0\.1"):
        load("photos", valid_share=0.1)


@pytest.mark.slow
def test_sheets_are_what_the_tool_makes_of_the_source(shared):
    source = shared / "data" / "cifar100_sheets"
    if not source.is_dir():
        pytest.skip(f"needs {source}")
    made, photos = tool.chosen(source), load("photos")
    for part, samples in (("train", photos.train), ("valid", photos.valid), ("test", photos.test)):
        assert torch.equal(made[part], samples.images), part
        # The sheet is read back as it was written: class by class.
        pixels = torch.from_numpy(tool.sheet(made[part]))
        assert torch.equal(pixels[32:64, :32].permute(2, 0, 1), samples.images[len(samples) // 10])
    every = torch.cat([made[part].flatten(1) for part in made]).double()
    apart = torch.cdist(every, every[:1000], compute_mode="donot_use_mm_for_euclid_dist") / 3072**0.5
    apart[torch.arange(1000), torch.arange(1000)] = torch.inf
    assert apart.min() >= tool.NEARLY  # nothing of training and validation nearly occurs twice, or in the test part
