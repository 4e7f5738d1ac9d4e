"""Chosen classes, samples of each and a validation part, in memory and from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mixaug import data
from mixaug.data import ArrayData, DataSet, FileData, MappedData, load, regression, with_splits
from mixaug.data.splits import labels_of

CLASSES = [name for name in data.list_datasets() if name not in regression.LOADERS]


def numbered(counts: dict[int, int], first: int = 0) -> ArrayData:
    """Images whose value is the number of the sample, so many of each class, classes taking turns."""
    labels = [label for turn in range(max(counts.values())) for label, count in counts.items() if turn < count]
    images = torch.arange(first, first + len(labels), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    place = torch.arange(first, first + len(labels))
    return ArrayData(images.contiguous(), torch.tensor(labels), {"place": place})


def whole(**changes: Any) -> DataSet:
    counts = {0: 20, 1: 10, 2: 40, 3: 8}
    names = tuple("abcd")
    parts = {"train": numbered(counts), "test": numbered(dict.fromkeys(counts, 3), first=100)}
    return DataSet(
        "own", **{**parts, **changes}, num_classes=4, mean=(0.5,), std=(0.5,), image_size=(1, 2, 2), class_names=names
    )


def ids(part: Any) -> list[int]:
    return [int(part[index][0].flatten()[0]) for index in range(len(part))]


def test_nothing_asked_for_is_nothing_done() -> None:
    before = whole()
    after = with_splits(before)
    assert after.train is before.train
    assert after.valid is None


def test_the_validation_part_is_a_stratified_share_of_the_training_part() -> None:
    before = whole()
    found = with_splits(before, valid_share=0.25)
    assert len(found.valid) == 20  # round(78 / 4)
    exact = torch.tensor([20, 10, 40, 8]) * (20 / 78)
    assert ((found.valid.labels.bincount() - exact).abs() < 1).all()
    assert sorted(ids(found.train) + ids(found.valid)) == ids(before.train)  # nothing lost, nothing twice
    assert found.test is before.test
    for part in (found.train, found.valid):
        assert part.metadata["place"].tolist() == ids(part)
        assert [before.train[index][1] for index in ids(part)] == part.labels.tolist()


def test_seeds_draw_and_draws_of_one_seed_agree() -> None:
    ways = {"valid_share": 0.25, "per_class": 3}
    one, again, other = (with_splits(whole(), split_seed=seed, **ways) for seed in (1, 1, 2))
    assert ids(one.valid) == ids(again.valid) != ids(other.valid)
    assert ids(one.train) == ids(again.train) != ids(other.train)
    # More of one seed contain fewer, and the validation part knows nothing of them.
    more = with_splits(whole(), split_seed=1, valid_share=0.25, per_class=5)
    assert set(ids(one.train)) < set(ids(more.train))
    assert ids(more.valid) == ids(one.valid)
    assert one.train.labels.bincount().tolist() == [3, 3, 3, 3]


def test_draws_are_uniform_over_the_samples_of_a_class() -> None:
    drawn = torch.zeros(78)
    for seed in range(400):
        drawn[ids(with_splits(whole(), per_class=4, split_seed=seed).train)] += 1
    expected = torch.tensor([4 / {0: 20, 1: 10, 2: 40, 3: 8}[int(label)] for label in whole().train.labels])
    spread = (400 * expected * (1 - expected)).sqrt()
    # Five standard errors, over 78 samples.
    assert ((drawn - 400 * expected).abs() < 5 * spread).all()


@pytest.mark.parametrize(
    ("classes", "seed", "kept"),
    [(2, None, [0, 1]), (["d", "b"], None, [3, 1]), ([2, "a"], None, [2, 0]), (4, 3, [0, 1, 2, 3])],
)
def test_classes_by_number_by_name_and_all(classes: Any, seed: int | None, kept: list[int]) -> None:
    before = whole(valid=numbered(dict.fromkeys(range(4), 2), first=150))
    found = with_splits(before, classes=classes, class_seed=seed)
    assert found.class_names == tuple("abcd"[label] for label in kept)
    assert found.num_classes == found.outputs == len(kept)
    for split in ("train", "valid", "test"):
        part, source = getattr(found, split), getattr(before, split)
        original = dict(zip(ids(source), source.labels.tolist(), strict=True))
        assert [kept[label] for label in part.labels] == [original[number] for number in ids(part)]
        assert len(part) == sum(label in kept for label in source.labels.tolist())


def test_classes_are_drawn_by_a_seed_of_their_own() -> None:
    drawn = [with_splits(whole(), classes=2, class_seed=seed).class_names for seed in range(200)]
    assert drawn[0] == with_splits(whole(), classes=2, class_seed=0, split_seed=5, per_class=2).class_names
    assert all(names == tuple(sorted(names)) for names in drawn)
    # Each of the four classes has chance 1/2: 100 of 200 draws, standard deviation 7.1.
    for name in "abcd":
        assert 70 < sum(name in names for names in drawn) < 130


def test_statistics_of_the_training_images_follow_the_choice() -> None:
    plain, found = load("digits"), load("digits", valid_share=0.2, per_class=10, classes=[3, 7])
    pixels = found.train.images.double() / 255
    assert found.mean == pytest.approx([float(pixels.mean())], abs=1e-12)
    assert found.std == pytest.approx([float(pixels.std(correction=0))], abs=1e-12)
    assert found.mean != plain.mean
    assert found.class_names == ("3", "7")
    three = load("digits", classes=[3])
    assert three.mean == pytest.approx([float((plain.train.images[plain.train.labels == 3].double() / 255).mean())])
    assert found.train.labels.bincount().tolist() == [10, 10]
    fixed = with_splits(whole(), per_class=2)
    assert (fixed.mean, fixed.std) == ((0.5,), (0.5,))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders train, val and held with 6, 2 and 3 images in each of three classes."""
    root, value = tmp_path_factory.mktemp("images"), 0
    for split, count in (("train", 6), ("val", 2), ("held", 3)):
        for name in ("x", "y", "z"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                Image.fromarray(np.full((4, 4, 3), value, dtype=np.uint8)).save(root / split / name / f"{number}.png")
                value += 1
    return root


def negative(image: Any) -> torch.Tensor:
    return 255 - torch.from_numpy(np.array(image)).permute(2, 0, 1)


def upright(image: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def test_a_validation_part_of_files_is_read_as_test_images_are(folder: Path) -> None:
    found = load(
        "imagefolder", root=folder, transform=negative, test_transform=upright, valid_share=0.5, classes=["z", "x"]
    )
    assert isinstance(found.valid, FileData)
    assert found.valid.transform is found.test.transform is upright
    assert found.train.transform is negative
    assert labels_of(found.valid).bincount().tolist() == labels_of(found.train).bincount().tolist() == [3, 3]
    assert sorted([255 - value for value in ids(found.train)] + ids(found.valid)) == [*range(6), *range(12, 18)]
    assert [found.class_names[label] for _, label in found.test] == ["x", "x", "z", "z"]


def test_a_validation_part_in_memory_has_the_transform_of_the_test_part() -> None:
    found = load("digits", transform="cifar10_train", test_transform="uint8", valid_share=0.1, image_size=8)
    assert isinstance(found.train, MappedData)
    assert isinstance(found.valid, MappedData)
    assert found.valid.transform is found.test.transform
    half = load("digits", transform=lambda image: image, valid_share=0.1)
    assert isinstance(half.valid, ArrayData)
    assert not half.in_memory


def test_a_set_may_bring_a_validation_part_of_its_own(folder: Path) -> None:
    found = load("imagefolder", root=folder, valid_folder="held", transform=negative, test_transform=upright)
    assert ids(found.valid) == list(range(24, 33))
    assert [label for _, label in found.valid] == [0] * 3 + [1] * 3 + [2] * 3
    with pytest.raises(ValueError, match=r"validation part of its own, and valid_share=0\.1 would take another"):
        load("imagefolder", root=folder, valid_folder="held", valid_share=0.1)
    with pytest.raises(FileNotFoundError, match="lacks elsewhere/"):
        load("imagefolder", root=folder, valid_folder="elsewhere")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"valid_share": 1.0}, ValueError, r"valid_share in \[0, 1\), got 1\.0"),
        ({"valid_share": "some"}, TypeError, "valid_share to be a number, got 'some'"),
        ({"valid_share": 0.001}, ValueError, "valid_share=0.001 of 78 training samples is none"),
        ({"valid_share": 0.99}, ValueError, "leaves no training sample of a, b, d"),
        ({"per_class": 9}, ValueError, "per_class=9, but there are 8 training samples of d"),
        ({"per_class": 0}, ValueError, "per_class >= 1, got 0"),
        ({"split_seed": -1}, ValueError, "split_seed >= 0, got -1"),
        ({"split_seed": "by_seed"}, ValueError, "resolved by the training engine"),
        ({"classes": 5}, ValueError, r"classes in 1\.\.4, got 5"),
        ({"classes": "a"}, TypeError, "classes to be a number, a list"),
        ({"classes": ["e"]}, ValueError, "no class, or several, of the name 'e'; it has a, b, c, d"),
        ({"classes": [0, "a"]}, ValueError, "each once"),
        ({"classes": [4]}, ValueError, r"by number in 0\.\.3, got 4"),
        ({"class_seed": 1}, ValueError, "class_seed=1 draws as many classes as classes= says, which is None"),
    ],
)
def test_what_cannot_be_is_said(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        with_splits(whole(), **options)


@pytest.mark.parametrize("name", CLASSES)
def test_every_set_with_classes_takes_the_options(name: str) -> None:
    """They reach the choice of parts, which refuses this share, or the search for files before it."""
    root = {} if name in ("digits", "framed_photos", "photos") else {"root": "/nowhere"}
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load(name, **root, valid_share=2.0, per_class=3, split_seed=1, classes=2, class_seed=0)
    assert "/nowhere" in str(caught.value) or "valid_share" in str(caught.value)


def test_what_is_known_of_files_comes_from_a_table(folder: Path) -> None:
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    domains = {path: 3 * number for number, path in enumerate(files)}
    table = folder / "known.csv"
    table.write_text("path,domain,site\n" + "".join(f"{path},{domain},{-domain}\n" for path, domain in domains.items()))
    found = load("imagefolder", root=folder, metadata="known.csv", valid_share=0.5, classes=["z", "x"])
    for part in (found.train, found.valid, found.test):
        expected = [domains[Path(path).relative_to(folder).as_posix()] for path in part.paths]
        assert part.metadata["domain"].tolist() == expected
        assert torch.equal(part.metadata["site"], -part.metadata["domain"])
    for content, message in (
        ("path,domain\n", r"lacks train/x/0\.png"),
        ("file,domain\n", "needs the column path and at least one more"),
        ("path,domain\n" + "".join(f"{path},cat\n" for path in files), "whole numbers beside each path.*'cat'"),
    ):
        table.write_text(content)
        with pytest.raises(ValueError, match=message):
            load("imagefolder", root=folder, metadata="known.csv")
    with pytest.raises(FileNotFoundError, match=r"lacks nowhere\.csv"):
        load("imagefolder", root=folder, metadata="nowhere.csv")


def test_metadata_have_a_row_for_each_sample() -> None:
    images, labels = torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"metadata\['domain'\] with a row for each of 3 samples, got shape \(2,\)"):
        ArrayData(images, labels, {"domain": torch.zeros(2)})
    with pytest.raises(TypeError, match=r"metadata\['domain'\] to be a tensor, got list"):
        FileData([Path("a")], [0], metadata={"domain": [1]})


def test_parts_of_ones_own_are_left_alone_or_refused() -> None:
    own = whole(train=[(torch.zeros(1, 2, 2, dtype=torch.uint8), 0)])
    assert with_splits(own) is own
    with pytest.raises(TypeError, match="parts that are ArrayData, MappedData or FileData, got list"):
        with_splits(own, per_class=1)


def test_a_long_tail_of_classes() -> None:
    """As the formula of arXiv:1901.05555 says, over the classes that are kept and after validation is taken out."""
    balanced = {"train": numbered(dict.fromkeys(range(4), 40)), "test": numbered(dict.fromkeys(range(4), 3), first=200)}
    found = with_splits(whole(**balanced), imbalance=8)
    assert found.train.labels.bincount().tolist() == [40, 20, 10, 5]
    assert found.test.labels.bincount().tolist() == [3, 3, 3, 3]
    small = with_splits(whole(**balanced), imbalance=100, per_class=30, valid_share=0.25)
    assert small.train.labels.bincount().tolist() == [30, 6, 1, 1]  # 30, 6.46, 1.39, 0.3
    assert small.valid.labels.bincount().tolist() == [10, 10, 10, 10]
    assert torch.equal(small.train.metadata["place"], torch.tensor(ids(small.train)))
    # The least frequent class says how many the first one has; a tail of one class has no end.
    assert with_splits(whole(), imbalance=2).train.labels.bincount().tolist() == [8, 6, 5, 4]
    assert with_splits(whole(), imbalance=2, classes=1).train.labels.bincount().tolist() == [20]
    for wrong in (0.5, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="imbalance >= 1"):
            with_splits(whole(), imbalance=wrong)
    with pytest.raises(TypeError, match="imbalance to be a number or None"):
        with_splits(whole(), imbalance="long")
