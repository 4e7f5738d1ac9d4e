"""Data sets with classes by name: tiny folders of every published layout are written and really read."""

from __future__ import annotations

import csv
import hashlib
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

Image = pytest.importorskip("PIL.Image")
torchvision = pytest.importorskip("torchvision")

from mixaug import data  # noqa: E402
from mixaug.data import ArrayData, DataSet, FileData, MappedData, load, regression  # noqa: E402
from mixaug.data.reading import fault_of_sizes  # noqa: E402

CLASSES = [name for name in data.list_datasets() if name not in regression.LOADERS]
NEED_ROOT = [name for name in CLASSES if name not in ("digits", "framed_photos", "photos")]


def picture(index: int, height: int = 12, width: int = 10) -> np.ndarray:
    """An (H, W, 3) uint8 image that no other index has, and that JPEG keeps (flat)."""
    return np.full((height, width, 3), (40 * (index % 6), 30 * (index // 6), 200), dtype=np.uint8)


def save(path: Path, index: int, **size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(index, **size)).save(path, quality=95)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def shown(split: torch.utils.data.Dataset) -> list[tuple[int, int]]:
    """(index that `picture` was given, label) of every sample."""
    found = []
    for position in range(len(split)):
        image, label = split[position]
        assert type(label) is int
        assert image.mode == "RGB"
        red, green, _ = np.asarray(image, dtype=float).mean((0, 1))
        found.append((round(red / 40) + 6 * round(green / 30), label))
    return found


# --- names and options ------------------------------------------------------------------------------------------------


def test_names():
    from_files = ["cifar10", "cifar100", "tiny_imagenet", "imagefolder", "cub", "aircraft", "cars", "image_sheets"]
    assert sorted(["digits", "framed_photos", "photos", *from_files]) == CLASSES
    assert data.list_datasets() == sorted([*CLASSES, *regression.LOADERS])
    assert data.list_datasets("cifar*") == ["cifar10", "cifar100"]


def test_unknown_name_suggests_the_closest():
    with pytest.raises(ValueError, match=r"'cifar_100'.*cifar100"):
        load("cifar_100")
    with pytest.raises(ValueError, match=r"known names: aircraft"):
        load("qqqqqq")


@pytest.mark.parametrize("name", data.list_datasets())
def test_unknown_option_names_the_known_ones(name):
    known = "transform" if name in CLASSES else "s(caling|plit)"
    with pytest.raises(TypeError, match=rf"has no option 'colour'; .*[iI]ts options are .*{known}"):
        load(name, colour=1)


@pytest.mark.parametrize("name", NEED_ROOT)
def test_root_is_needed(name):
    for options in ({}, {"root": None}):
        with pytest.raises(TypeError, match=rf"{name}.*needs root=: \w+"):
            load(name, **options)


@pytest.mark.parametrize("name", NEED_ROOT)
def test_missing_folder_names_path_files_and_source(name, tmp_path):
    expected = {
        "aircraft": ["fgvc-aircraft-2013b/data/images_variant_trainval.txt", "robots.ox.ac.uk"],
        "cars": ["stanford_cars/devkit/cars_meta.mat", "ai.stanford.edu"],
        "cifar10": ["cifar-10-batches-py/data_batch_5", "cs.toronto.edu/~kriz"],
        "cifar100": ["cifar-100-python/train", "cs.toronto.edu/~kriz"],
        "cub": ["CUB_200_2011/train_test_split.txt", "vision.caltech.edu"],
        "image_sheets": ["classes.csv", "cs.toronto.edu/~kriz"],
        "imagefolder": ["train/, val/", "<class>/<image>"],
        "tiny_imagenet": ["tiny-imagenet-200/val/val_annotations.txt", "cs231n.stanford.edu"],
    }[name]
    for root, complaint in ((tmp_path / "absent", "does not exist"), (tmp_path, "lacks")):
        with pytest.raises(FileNotFoundError) as caught:
            load(name, root=root)
        for part in (str(root), complaint, *expected):
            assert part in str(caught.value)


# --- digits -----------------------------------------------------------------------------------------------------------


def test_digits_are_the_source_scaled_and_rounded():
    source = pytest.importorskip("sklearn.datasets").load_digits()
    digits = load("digits")
    assert digits.in_memory
    assert digits.image_size == (1, 8, 8)
    assert digits.num_classes == 10
    assert digits.class_names == tuple("0123456789")
    assert len(digits.train) == 1000
    assert len(digits.test) == 797

    def key(image: np.ndarray, label: int) -> tuple[bytes, int]:
        return image.astype(np.uint8).tobytes(), int(label)

    expected = sorted(
        key(np.array([[int(v * 255 / 16 + 0.5) for v in row] for row in image]), label)
        for image, label in zip(source.images, source.target, strict=True)
    )
    got = sorted(
        key(image.numpy()[0], label)
        for split in (digits.train, digits.test)
        for image, label in zip(split.images, split.labels.tolist(), strict=True)
    )
    assert got == expected  # nothing lost, nothing in both parts


def test_digits_split_is_fixed_for_good():
    """Leaderboards compare runs made months apart, so the split must not move with a library's version."""

    def fingerprint(split: ArrayData) -> str:
        return hashlib.sha256(split.images.numpy().tobytes() + split.labels.numpy().tobytes()).hexdigest()[:16]

    low, full, other = load("digits", train_size=500), load("digits"), load("digits", train_size=500, split_seed=1)
    assert fingerprint(low.test) == fingerprint(full.test) == fingerprint(other.test) == "2ec1fbff6039b5ce"
    assert fingerprint(low.train) == "425e41aeae53c26c"
    assert fingerprint(other.train) != fingerprint(low.train)


@pytest.mark.parametrize("size", [10, 99, 500, 1000])
def test_digits_classes_keep_their_shares(size):
    pool = load("digits").train.labels.bincount().double()
    counts = load("digits", train_size=size, split_seed=3).train.labels.bincount(minlength=10).double()
    assert counts.sum() == size
    assert ((counts - pool * size / 1000).abs() < 1).all()


def test_digits_training_and_test_images_are_apart_and_statistics_are_of_training():
    low = load("digits", train_size=500)
    scaled = low.train.images.numpy().astype(float) / 255
    assert low.mean == pytest.approx((scaled.mean(),))
    assert low.std == pytest.approx((scaled.std(),))
    pool = {image.numpy().tobytes() for image in load("digits").train.images}
    assert {image.numpy().tobytes() for image in low.train.images} <= pool


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"train_size": 9}, ValueError),
        ({"train_size": 1001}, ValueError),
        ({"train_size": 0.5}, TypeError),
        ({"split_seed": -1}, ValueError),
        ({"split_seed": "a"}, TypeError),
        ({"image_size": 16}, ValueError),
        ({"image_size": 0}, ValueError),
        ({"transform": 3, "test_transform": "uint8"}, TypeError),
        ({"transform": "cifar11_train", "test_transform": "uint8"}, ValueError),
    ],
)
def test_digits_options_are_checked(options, error):
    with pytest.raises(error):
        load("digits", **options)


# --- CIFAR ------------------------------------------------------------------------------------------------------------


def cifar_folder(root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """The published layout with five images per file, and torchvision's list of MD5 sums to match."""
    cls = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    key = {"cifar10": "labels", "cifar100": "fine_labels"}[name]
    rng = np.random.default_rng(0)
    pixels = {}
    folder = root / cls.base_folder
    folder.mkdir()

    def dump(file: str, content: dict[str, object]) -> list[str]:
        raw = pickle.dumps(content)
        (folder / file).write_bytes(raw)
        return [file, hashlib.md5(raw).hexdigest()]

    lists: dict[str, list[list[str]]] = {"train_list": [], "test_list": []}
    for attribute, sums in lists.items():
        for number, (file, _) in enumerate(getattr(cls, attribute)):
            pixels[file] = rng.integers(0, 256, (5, 3072), dtype=np.uint8)
            sums.append(dump(file, {"data": pixels[file], key: [(number + k) % 3 for k in range(5)]}))
        monkeypatch.setattr(cls, attribute, sums)
    names_key = cls.meta["key"]
    file, md5 = dump(cls.meta["filename"], {names_key: ["cat", "dog", "emu"]})
    monkeypatch.setattr(cls, "meta", {"filename": file, "key": names_key, "md5": md5})
    return pixels


@pytest.mark.parametrize(
    ("name", "files", "test_file"),
    [
        ("cifar10", [f"data_batch_{k}" for k in range(1, 6)], "test_batch"),
        ("cifar100", ["train"], "test"),
    ],
)
def test_cifar_from_the_published_files(name, files, test_file, tmp_path, monkeypatch):
    pixels = cifar_folder(tmp_path, name, monkeypatch)
    cifar = load(name, root=tmp_path)
    assert cifar.in_memory
    assert cifar.image_size == (3, 32, 32)
    assert cifar.class_names == ("cat", "dog", "emu")
    assert cifar.mean == (0.4914, 0.4822, 0.4465)
    assert cifar.std == (0.2023, 0.1994, 0.201)
    expected = np.concatenate([pixels[file] for file in files]).reshape(-1, 3, 32, 32)
    assert np.array_equal(cifar.train.images.numpy(), expected)
    assert cifar.train.images.is_contiguous()
    assert np.array_equal(cifar.test.images.numpy(), pixels[test_file].reshape(-1, 3, 32, 32))
    assert cifar.train.labels.tolist() == [(number + k) % 3 for number in range(len(files)) for k in range(5)]


def test_altered_cifar_file_is_never_unpickled(tmp_path, monkeypatch):
    cifar_folder(tmp_path, "cifar10", monkeypatch)
    victim = tmp_path / "cifar-10-batches-py" / "data_batch_3"

    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    victim.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="not the published one"):
        load("cifar10", root=tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_one_missing_cifar_file_is_named(tmp_path, monkeypatch):
    cifar_folder(tmp_path, "cifar10", monkeypatch)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks cifar-10-batches-py/data_batch_3\. Expected"):
        load("cifar10", root=tmp_path)


# --- image sheets -----------------------------------------------------------------------------------------------------

SHEET_CLASSES = [("ant", 1, "insects"), ("bed", 0, "furniture"), ("bee", 1, "insects")]


@pytest.fixture
def sheets(tmp_path: Path) -> Path:
    """Three classes, 2x3 training tiles and 1x2 test tiles each; a tile's value names class, split and position."""
    with (tmp_path / "classes.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["label", "name", "coarse_label", "coarse_name", "train_pixels_sha256", "test_pixels_sha256"])
        for label, (name, coarse, coarse_name) in enumerate(SHEET_CLASSES):
            sums = []
            for split, rows, columns in (("train", 2, 3), ("test", 1, 2)):
                sheet = np.zeros((rows * 32, columns * 32, 3), dtype=np.uint8)
                for row in range(rows):
                    for column in range(columns):
                        value = 60 * label + 20 * (split == "test") + columns * row + column
                        tile = np.full((32, 32, 3), value, dtype=np.uint8)
                        tile[5, 7] = (1, 2, 3)  # a pixel that shows a swap of axes or channels
                        sheet[row * 32 : row * 32 + 32, column * 32 : column * 32 + 32] = tile
                (tmp_path / split).mkdir(exist_ok=True)
                Image.fromarray(sheet).save(tmp_path / split / f"{name}.webp", lossless=True)
                sums.append(hashlib.sha256(sheet.tobytes()).hexdigest())
            table.writerow([label, name, coarse, coarse_name, *sums])
    return tmp_path


def test_sheets_are_read_tile_by_tile_row_by_row(sheets):
    found = load("image_sheets", root=sheets, verify=True)
    assert found.in_memory
    assert found.image_size == (3, 32, 32)
    assert found.train.images.shape == (18, 3, 32, 32)
    assert found.train.images[:, 0, 0, 0].tolist() == [60 * label + k for label in range(3) for k in range(6)]
    assert found.test.images[:, 0, 0, 0].tolist() == [60 * label + 20 + k for label in range(3) for k in range(2)]
    assert found.train.images[:, :, 5, 7].tolist() == [[1, 2, 3]] * 18
    assert found.train.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert found.class_names == ("ant", "bed", "bee")


def test_sheets_with_coarse_labels_and_with_first_classes(sheets):
    coarse = load("image_sheets", root=sheets, labels="coarse")
    assert coarse.class_names == ("furniture", "insects")
    assert coarse.test.labels.tolist() == [1, 1, 0, 0, 1, 1]
    first = load("image_sheets", root=sheets, classes=2)
    assert first.class_names == ("ant", "bed")
    assert first.test.labels.tolist() == [0, 0, 1, 1]
    one = load("image_sheets", root=sheets, labels="coarse", classes=1)
    assert one.class_names == ("furniture",)
    assert one.test.images[:, 0, 0, 0].tolist() == [80, 81]
    (sheets / "train" / "bed.webp").unlink()  # sheets of other classes are not read
    listed = load("image_sheets", root=sheets, classes=["bee", "ant"], per_class=4)
    assert listed.class_names == ("bee", "ant")
    assert listed.test.images[:, 0, 0, 0].tolist() == [20, 21, 140, 141]
    assert listed.test.labels.tolist() == [1, 1, 0, 0]
    assert listed.test.metadata["coarse_label"].tolist() == [1, 1, 1, 1]
    assert listed.train.labels.bincount().tolist() == [4, 4]


def test_altered_sheet_is_noticed_only_when_asked(sheets):
    shutil.copy(sheets / "train" / "ant.webp", sheets / "train" / "bed.webp")
    load("image_sheets", root=sheets)
    with pytest.raises(ValueError, match=r"bed\.webp.*SHA-256"):
        load("image_sheets", root=sheets, verify=True)


def test_faults_of_sheets(sheets):
    for options, error, message in (
        ({"labels": "medium"}, ValueError, "'fine' or 'coarse'"),
        ({"classes": 4}, ValueError, r"1\.\.3"),
        ({"classes": 0}, ValueError, r"1\.\.3"),
        ({"classes": 2.0}, TypeError, "a number, a list of names or numbers, or None"),
    ):
        with pytest.raises(error, match=message):
            load("image_sheets", root=sheets, **options)
    Image.new("RGB", (40, 32)).save(sheets / "test" / "bee.webp")
    with pytest.raises(ValueError, match="40x32 pixels"):
        load("image_sheets", root=sheets)
    (sheets / "test" / "bee.webp").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks test/bee\.webp"):
        load("image_sheets", root=sheets)
    write(sheets / "classes.csv", "label,name\n0,ant\n")
    with pytest.raises(ValueError, match="lacks the column"):
        load("image_sheets", root=sheets)


def test_real_sheets(shared):
    """CIFAR-100: two coarse classes of five fine ones each, with every checksum."""
    root = shared / "data" / "cifar100_sheets"
    if not root.is_dir():
        pytest.skip(f"no {root}")
    found = load("image_sheets", root=root, labels="coarse", classes=2, verify=True)
    assert found.class_names == ("aquatic_mammals", "fish")
    assert found.train.labels.bincount().tolist() == [2500, 2500]
    assert found.test.labels.bincount().tolist() == [500, 500]
    # A tile cut one row or column off would show its neighbour's edge: real images are smoother inside than across.
    images = found.train.images.float()
    inside = (images[:-1, :, :, 31] - images[:-1, :, :, 30]).abs().mean()
    across = (images[1:, :, :, 0] - images[:-1, :, :, 31]).abs().mean()
    assert across > 3 * inside
    with Image.open(root / "train" / "aquarium_fish.webp") as sheet:
        tile = np.array(sheet.convert("RGB"))[32:64, 64:96]
    fish = load("image_sheets", root=root, classes=2).train.images[500 + 25 + 2]
    assert np.array_equal(fish.permute(1, 2, 0).numpy(), tile)


@pytest.mark.slow
def test_whole_real_sheets(shared):
    root = shared / "data" / "cifar100_sheets"
    if not root.is_dir():
        pytest.skip(f"no {root}")
    found = load("image_sheets", root=root, verify=True)
    assert found.train.images.shape == (50_000, 3, 32, 32)
    assert (found.train.labels.bincount() == 500).all()
    assert (found.test.labels.bincount() == 100).all()
    # The mean of CIFAR-100's training pixels is public knowledge.
    mean = found.train.images.double().mean((0, 2, 3)) / 255
    assert mean.tolist() == pytest.approx([0.5071, 0.4865, 0.4409], abs=1e-4)


# --- folders ----------------------------------------------------------------------------------------------------------


def test_imagefolder(tmp_path):
    for number, (split, name) in enumerate([("train", "b"), ("train", "a"), ("val", "a"), ("val", "b")]):
        save(tmp_path / split / name / "x.png", number)
    found = load("imagefolder", root=tmp_path)
    assert not found.in_memory
    assert found.class_names == ("a", "b")
    assert found.image_size == (3, 224, 224)
    assert found.mean == (0.485, 0.456, 0.406)
    assert shown(found.train) == [(1, 0), (0, 1)]
    assert shown(found.test) == [(2, 0), (3, 1)]
    save(tmp_path / "val" / "c" / "x.png", 0)
    with pytest.raises(ValueError, match=r"different classes.*: c"):
        load("imagefolder", root=tmp_path)


def test_imagefolder_with_other_folder_names(tmp_path):
    for split in ("fit", "check"):
        save(tmp_path / split / "a" / "x.png", 3)
    found = load("imagefolder", root=tmp_path, train_folder="fit", test_folder="check", image_size=96)
    assert found.image_size == (3, 96, 96)
    assert shown(found.test) == [(3, 0)]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    base = tmp_path / "tiny-imagenet-200"
    write(base / "wnids.txt", "n02\nn01\n")
    write(base / "words.txt", "n01\tgoldfish, Carassius auratus\nn02\tbullfrog\nn03\tunused\n")
    for number, wnid in enumerate(("n01", "n02")):
        for k in range(2):
            save(base / "train" / wnid / "images" / f"{wnid}_{k}.JPEG", 2 * number + k, height=64, width=64)
    for k in range(3):
        save(base / "val" / "images" / f"val_{k}.JPEG", 10 + k, height=64, width=64)
    rows = [(0, "n02"), (2, "n01"), (1, "n01")]
    write(base / "val" / "val_annotations.txt", "".join(f"val_{k}.JPEG\t{w}\t0\t0\t63\t63\n" for k, w in rows))
    return tmp_path


def test_tiny_imagenet(tiny):
    found = load("tiny_imagenet", root=tiny)
    assert found.image_size == (3, 64, 64)
    assert found.class_names == ("goldfish, Carassius auratus", "bullfrog")
    assert shown(found.train) == [(0, 0), (1, 0), (2, 1), (3, 1)]
    assert shown(found.test) == [(10, 1), (12, 0), (11, 0)]


def test_faults_of_tiny_imagenet(tiny):
    base = tiny / "tiny-imagenet-200"
    (base / "val" / "images" / "val_1.JPEG").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks val_1\.JPEG"):
        load("tiny_imagenet", root=tiny)
    write(base / "val" / "val_annotations.txt", "val_0.JPEG\tn09\t0\t0\t63\t63\n")
    with pytest.raises(ValueError, match=r"wnids\.txt lacks: n09"):
        load("tiny_imagenet", root=tiny)
    write(base / "val" / "val_annotations.txt", "val_0.JPEG\tn01\t0\t0\t63\t63\nval_2.JPEG\n")
    with pytest.raises(ValueError, match=r"val_annotations\.txt, line 2: expected 3 fields"):
        load("tiny_imagenet", root=tiny)
    shutil.rmtree(base / "train" / "n02")
    with pytest.raises(FileNotFoundError, match=r"lacks tiny-imagenet-200/train/n02/images/"):
        load("tiny_imagenet", root=tiny)


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    base = tmp_path / "CUB_200_2011"
    files = ["001.Crow/a.jpg", "002.Jay/b.jpg", "002.Jay/c.jpg", "001.Crow/d.jpg"]
    for number, file in enumerate(files):
        save(base / "images" / file, number)
    write(base / "images.txt", "".join(f"{k + 1} {file}\n" for k, file in enumerate(files)))
    write(base / "image_class_labels.txt", "1 1\n2 2\n3 2\n4 1\n")
    write(base / "train_test_split.txt", "1 1\n2 0\n3 1\n4 0\n")
    write(base / "classes.txt", "1 001.Crow\n2 002.Jay\n")
    return tmp_path


def test_cub(birds):
    found = load("cub", root=birds)
    assert found.class_names == ("001.Crow", "002.Jay")
    assert shown(found.train) == [(0, 0), (2, 1)]
    assert shown(found.test) == [(1, 1), (3, 0)]


def test_faults_of_cub(birds):
    base = birds / "CUB_200_2011"
    write(base / "train_test_split.txt", "1 1\n2 0\n3 1\n4 2\n")
    with pytest.raises(ValueError, match="other than 0 and 1"):
        load("cub", root=birds)
    write(base / "train_test_split.txt", "1 1\n2 0\n3 1\n")
    with pytest.raises(ValueError, match="list different image ids"):
        load("cub", root=birds)
    write(base / "train_test_split.txt", "1 1\n2 0\n3 1\n4 0\n")
    write(base / "image_class_labels.txt", "1 1\n2 2\n3 2\n4 3\n")
    with pytest.raises(ValueError, match=r"classes\.txt lacks: \['3'\]"):
        load("cub", root=birds)
    write(base / "image_class_labels.txt", "1 1\n2 2\n3 2\n4 1\n")
    (base / "images" / "002.Jay" / "c.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks 002\.Jay/c\.jpg"):
        load("cub", root=birds)


def test_aircraft(tmp_path):
    base = tmp_path / "fgvc-aircraft-2013b" / "data"
    for number in range(3):
        save(base / "images" / f"00{number}.jpg", number)
    for level, plural, names in (("variant", "variants", ["707-320", "A 380"]), ("family", "families", ["707", "A"])):
        write(base / f"{plural}.txt", "\n".join(names) + "\n")
        write(base / f"images_{level}_trainval.txt", f"000 {names[1]}\n002 {names[0]}\n")
        write(base / f"images_{level}_test.txt", f"001 {names[1]}\n")
    found = load("aircraft", root=tmp_path)
    assert found.class_names == ("707-320", "A 380")
    assert shown(found.train) == [(0, 1), (2, 0)]
    assert shown(found.test) == [(1, 1)]
    assert load("aircraft", root=tmp_path, annotation_level="family").class_names == ("707", "A")
    with pytest.raises(FileNotFoundError, match=r"images_variant_train\.txt, .*images_variant_val\.txt"):
        load("aircraft", root=tmp_path, own_valid=True)
    write(base / "images_variant_train.txt", f"002 {'707-320'}\n")
    write(base / "images_variant_val.txt", f"000 {'A 380'}\n")
    own = load("aircraft", root=tmp_path, own_valid=True)
    assert (shown(own.train), shown(own.valid), shown(own.test)) == ([(2, 0)], [(0, 1)], [(1, 1)])
    assert found.valid is None
    with pytest.raises(FileNotFoundError, match=r"manufacturers\.txt"):
        load("aircraft", root=tmp_path, annotation_level="manufacturer")
    with pytest.raises(ValueError, match="annotation_level"):
        load("aircraft", root=tmp_path, annotation_level="model")


def test_cars(tmp_path):
    sio = pytest.importorskip("scipy.io")
    base = tmp_path / "stanford_cars"
    (base / "devkit").mkdir(parents=True)

    def annotations(path: Path, rows: list[tuple[str, int]]) -> None:
        kind = [("class", object), ("fname", object)]
        sio.savemat(path, {"annotations": np.array([(np.uint8(label), name) for name, label in rows], dtype=kind)})

    for split, number in (("train", 0), ("train", 1), ("test", 2), ("test", 3)):
        save(base / f"cars_{split}" / f"0{number}.jpg", number)
    annotations(base / "devkit" / "cars_train_annos.mat", [("00.jpg", 196), ("01.jpg", 1)])
    annotations(base / "cars_test_annos_withlabels.mat", [("02.jpg", 2), ("03.jpg", 196)])
    names = np.array([f"Car {k}" for k in range(196)], dtype=object)
    sio.savemat(base / "devkit" / "cars_meta.mat", {"class_names": names})
    found = load("cars", root=tmp_path)
    assert found.num_classes == 196
    assert found.class_names[1] == "Car 1"
    assert shown(found.train) == [(0, 195), (1, 0)]
    assert shown(found.test) == [(2, 1), (3, 195)]


def test_grey_and_transparent_files_become_rgb(tmp_path):
    Image.new("L", (5, 4), 9).save(tmp_path / "grey.png")
    Image.new("RGBA", (5, 4), (9, 8, 7, 0)).save(tmp_path / "clear.png")
    split = FileData([tmp_path / "grey.png", tmp_path / "clear.png"], [0, 1])
    assert [split[k][0].getpixel((0, 0)) for k in range(2)] == [(9, 9, 9), (9, 8, 7)]
    with pytest.raises(ValueError, match="1 paths and 2 labels"):
        FileData([tmp_path / "grey.png"], [0, 1])


# --- transforms through load ------------------------------------------------------------------------------------------


def test_transforms_by_name_and_by_function(tiny, birds):
    found = load("tiny_imagenet", root=tiny, transform="tiny_imagenet_train", test_transform="uint8")
    assert found.image_size == (3, 64, 64)
    image, label = found.train[2]
    assert (image.dtype, image.shape, label) == (torch.uint8, (3, 64, 64), 1)
    found = load("cub", root=birds, transform="fine_grained_train", test_transform="fine_grained_test", image_size=56)
    assert found.image_size == (3, 56, 56)
    assert found.train[0][0].shape == found.test[0][0].shape == (3, 56, 56)
    found = load("cub", root=birds, test_transform=lambda image: image.size)
    assert found.test[0] == ((10, 12), 1)
    # The split without a transform gives tensors of the images as they are.
    assert found.train[0][0].dtype == torch.uint8
    assert found.train[0][0].shape == (3, 12, 10)
    half = load("tiny_imagenet", root=tiny, transform="tiny_imagenet_train")
    with Image.open(half.test.paths[1]) as file:
        assert np.array_equal(half.test[1][0].permute(1, 2, 0).numpy(), np.array(file))


def test_memory_sets_with_transforms_are_read_image_by_image():
    plain = load("digits", train_size=20)
    found = load("digits", train_size=20, transform="cifar_vit_train", test_transform="cifar_vit_test", image_size=24)
    assert not found.in_memory
    assert isinstance(found.train, MappedData)
    assert found.image_size == (1, 24, 24)
    assert found.train[3][0].shape == found.test[3][0].shape == (1, 24, 24)
    same = load("digits", train_size=20, transform="uint8", test_transform="uint8")
    assert same.image_size == (1, 8, 8)
    assert all(torch.equal(same.train[k][0], plain.train[k][0]) for k in range(20))
    half = load("digits", train_size=20, transform=lambda image: image + 1)
    assert not half.in_memory
    assert isinstance(half.test, ArrayData)
    assert torch.equal(half.train[0][0], plain.train[0][0] + 1)
    assert load("digits", transform="cifar_vit_train", test_transform="cifar_vit_test").image_size == (1, 224, 224)


# --- containers -------------------------------------------------------------------------------------------------------


def test_array_data_checks_and_indexes():
    images, labels = torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor([2, 0, 1])
    split = ArrayData(images, labels)
    assert len(split) == 3
    assert type(split[0][1]) is int
    assert repr(split) == "ArrayData(images=(3, 1, 2, 2), labels=(3,))"
    batch, targets = next(iter(torch.utils.data.DataLoader(split, batch_size=3)))
    assert torch.equal(batch, images)
    assert torch.equal(targets, labels)
    for bad, error in (
        ((images.float(), labels), TypeError),
        ((images, labels.int()), TypeError),
        ((images, labels[:2]), ValueError),
        ((images[0], labels), ValueError),
    ):
        with pytest.raises(error, match="ArrayData expected"):
            ArrayData(*bad)


def test_in_memory_needs_both_splits():
    array = ArrayData(torch.zeros(1, 1, 1, 1, dtype=torch.uint8), torch.tensor([0]))
    facts = (1, (0.0,), (1.0,), (1, 1, 1), ("only",))
    assert DataSet("x", array, array, *facts).in_memory
    assert not DataSet("x", array, FileData([], []), *facts).in_memory


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transform": "uint8", "image_size": 16}, "would keep; image_size=16 needs transform and test_transform to"),
        (
            {"transform": "cifar10_train", "image_size": 16},
            "8x8 images, which test_transform would keep; image_size=16",
        ),
        ({"transform": "uint8", "test_transform": "cifar_vit_test"}, "which transform would keep; 224 pixels, as the"),
        (
            {"transform": "cifar10_train", "test_transform": "cifar_vit_test"},
            "=cifar_vit_test images of 224 pixels and",
        ),
    ],
)
def test_images_in_memory_are_of_one_size_which_is_the_one_that_is_told(options, message):
    with pytest.raises(ValueError, match=message):
        load("digits", train_size=10, **options)
    # The size that images keep may be told all the same.
    same = load("digits", train_size=10, transform="uint8", image_size=8)
    assert same.image_size == (1, 8, 8) == tuple(same.train[0][0].shape) == tuple(same.test.images[0].shape)


def test_files_that_stay_as_they_are_say_the_size_of_images(tmp_path):
    for part in ("train", "val"):
        save(tmp_path / part / "a" / "0.png", 0, height=12, width=10)
    found = load("imagefolder", root=tmp_path, transform="uint8")
    assert found.image_size == (3, 12, 10) == tuple(found.train[0][0].shape) == tuple(found.test[0][0].shape)
    for options in (
        {"transform": "uint8", "image_size": 16},
        {"transform": "cifar_vit_train", "image_size": 16},
        {"transform": "uint8", "test_transform": "imagenet_test"},
    ):
        option = "transform" if options["transform"] == "uint8" else "test_transform"
        # It is said where a model meets both parts; whoever reads one of them alone may have the other as it is.
        fault = fault_of_sizes(load("imagefolder", root=tmp_path, **options))
        assert re.search(rf": {option} keeps images as they are, and .*0.png is of 12x10 pixels", fault)
    assert fault_of_sizes(found) == ""
    save(tmp_path / "val" / "a" / "0.png", 0, height=10, width=10)
    for some in ({}, {"classes": ["a"]}):
        of_two = load("imagefolder", root=tmp_path, transform="uint8", **some)
        assert re.search(r"test_transform keeps images as they are, and .* are of 12x10", fault_of_sizes(of_two))
    assert load("imagefolder", root=tmp_path, test_transform="imagenet_test").image_size == (3, 224, 224)
    made = load(
        "imagefolder", root=tmp_path, transform="cifar_vit_train", test_transform="cifar_vit_test", image_size=16
    )
    assert made.image_size == (3, 16, 16) == tuple(made.train[0][0].shape) == tuple(made.test[0][0].shape)
    # Nothing is read before the size is asked for.
    (tmp_path / "train" / "a" / "0.png").write_bytes(b"")
    late = pickle.loads(pickle.dumps(load("imagefolder", root=tmp_path, transform="uint8", valid_share=0)))
    assert late.replaced(name="other").num_classes == 1
    with pytest.raises(OSError, match=r"0\.png"):
        _ = late.image_size
    with pytest.raises(AttributeError, match="nothing"):
        _ = late.nothing
