"""One function per data set; `mixaug.data.load` finds them by name."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mixaug.data import regression
from mixaug.data.framed_photos import framed_photos
from mixaug.data.images import classes_of, images_of, read_tiles
from mixaug.data.photos import photos
from mixaug.data.reading import (
    CIFAR_MEAN,
    CIFAR_STD,
    Root,
    Transform,
    channel_statistics,
    file_transforms,
    in_memory_set,
    read_lines,
    read_metadata,
    require_files,
    set_from_files,
    shortened,
    stratified_rows,
)
from mixaug.data.sets import ArrayData, DataSet, FileData, RegressionSet
from mixaug.data.splits import Classes, chosen_classes
from mixaug.labeling.object import OBJECT_MASK

# The test part of `digits` is drawn once, with this seed; the pool is what is left for training.
_DIGITS_TEST_SEED = 0


_DIGITS_TEST_SIZE = 797


def digits(
    train_size: int = 1000,
    split_seed: int = 0,
    transform: Transform = None,
    test_transform: Transform = None,
    image_size: int | None = None,
) -> DataSet:
    """scikit-learn's 1,797 handwritten digits: 1x8x8, values 0..16 brought to 0..255 and rounded.

    The source is the test part of UCI's optical recognition of handwritten digits. 797 images, drawn once by
    class share, are the test part of every split; the other 1,000 are the pool to train on. Writers are not
    told apart, so the same hand may occur in both parts.

    Args:
        train_size: training images, drawn from the pool by class share, 10..1000; 500 is the low-data split.
        split_seed: which draw from the pool, >= 0; the test part does not depend on it.

    `mean` and `std` are those of the training images. Metadata: "object_mask", (N, 8, 8) bool, where there is ink.
    """
    from sklearn.datasets import load_digits

    if isinstance(train_size, bool) or not isinstance(train_size, int):
        raise TypeError(f"data set 'digits' expected train_size to be an int, got {train_size!r}")
    if isinstance(split_seed, bool) or not isinstance(split_seed, int):
        raise TypeError(f"data set 'digits' expected split_seed to be an int, got {split_seed!r}")
    if split_seed < 0:
        raise ValueError(f"data set 'digits' expected split_seed >= 0, got {split_seed}")
    source = load_digits()
    images = torch.from_numpy(source.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(source.target).long()
    ink = images[:, 0] > 0

    test = stratified_rows(labels, _DIGITS_TEST_SIZE, torch.Generator().manual_seed(_DIGITS_TEST_SEED))
    in_pool = torch.ones(len(labels), dtype=torch.bool)
    in_pool[test] = False
    pool = torch.nonzero(in_pool).squeeze(1)
    if not 10 <= train_size <= len(pool):
        raise ValueError(f"data set 'digits' expected train_size in 10..{len(pool)}, got {train_size}")
    train = pool[stratified_rows(labels[pool], train_size, torch.Generator().manual_seed(split_seed))]

    mean, std = channel_statistics(images[train])
    return in_memory_set(
        "digits",
        ArrayData(images[train], labels[train], {OBJECT_MASK: ink[train]}),
        ArrayData(images[test], labels[test], {OBJECT_MASK: ink[test]}),
        mean,
        std,
        [str(name) for name in source.target_names],
        transform,
        test_transform,
        image_size,
        fitted=True,
    )


def _cifar(
    name: str,
    folder: str,
    files: list[str],
    root: Root,
    transform: Transform,
    test_transform: Transform,
    image_size: int | None,
) -> DataSet:
    from torchvision import datasets

    entries = [f"{folder}/{file}" for file in files]
    path = require_files(name, root, entries, "https://www.cs.toronto.edu/~kriz/cifar.html (the Python version)")
    loader = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    splits = []
    for train in (True, False):
        try:
            # These files are pickles; torchvision opens them only if their MD5 sums are the published ones.
            split = loader(str(path), train=train, download=False)
        except RuntimeError as error:
            raise ValueError(f"data set {name!r}: a file in {str(path / folder)!r} is not the published one") from error
        images = torch.from_numpy(split.data).permute(0, 3, 1, 2).contiguous()
        splits.append(ArrayData(images, torch.tensor(split.targets, dtype=torch.int64)))
    return in_memory_set(
        name,
        splits[0],
        splits[1],
        CIFAR_MEAN,
        CIFAR_STD,
        split.classes,
        transform,
        test_transform,
        image_size,
    )


def cifar10(
    root: Root, transform: Transform = None, test_transform: Transform = None, image_size: int | None = None
) -> DataSet:
    """CIFAR-10 (Krizhevsky 2009), 50,000 + 10,000 images of 3x32x32.

    Args:
        root: folder that holds `cifar-10-batches-py`, the unpacked Python version.
    """
    files = ["batches.meta", *(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]
    return _cifar("cifar10", "cifar-10-batches-py", files, root, transform, test_transform, image_size)


def cifar100(
    root: Root, transform: Transform = None, test_transform: Transform = None, image_size: int | None = None
) -> DataSet:
    """CIFAR-100 (Krizhevsky 2009) with its 100 fine labels, 50,000 + 10,000 images of 3x32x32.

    Args:
        root: folder that holds `cifar-100-python`, the unpacked Python version.
    """
    files = ["meta", "train", "test"]
    return _cifar("cifar100", "cifar-100-python", files, root, transform, test_transform, image_size)


_SHEETS_SOURCE = (
    "https://www.cs.toronto.edu/~kriz/cifar.html as CIFAR-100; the sheets are that set with the images of each class "
    "tiled row by row into one lossless WebP file per split"
)


_SHEET_COLUMNS = (
    "label",
    "name",
    "coarse_label",
    "coarse_name",
    "train_pixels_sha256",
    "test_pixels_sha256",
)


def image_sheets(
    root: Root,
    labels: str = "fine",
    classes: Classes = None,
    class_seed: int | None = None,
    verify: bool = False,
    transform: Transform = None,
    test_transform: Transform = None,
    image_size: int | None = None,
) -> DataSet:
    """CIFAR-100 as one image sheet per class and split.

    `train/<class>.webp` and `test/<class>.webp` hold the class's 32x32 images row by row; `classes.csv` has
    the fine and the coarse label and name of each class and the SHA-256 of each sheet's decoded RGB bytes.
    Samples come in the order of the fine labels, so a loader must shuffle them. Their metadata is "coarse_label".

    Args:
        root: the folder with `classes.csv`, `train` and `test`.
        labels: `"fine"` (100 classes) or `"coarse"` (20 superclasses).
        classes, class_seed: which of the chosen labels to keep, see `mixaug.data.splits`; no other sheet is read.
        verify: check the SHA-256 of every sheet that is read.
    """
    if labels not in ("fine", "coarse"):
        raise ValueError(f"data set 'image_sheets' expected labels to be 'fine' or 'coarse', got {labels!r}")
    path = require_files("image_sheets", root, ["classes.csv", "train/", "test/"], _SHEETS_SOURCE)
    with (path / "classes.csv").open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        absent = [column for column in _SHEET_COLUMNS if column not in (reader.fieldnames or ())]
        if absent:
            raise ValueError(f"{path / 'classes.csv'} lacks the column(s) {', '.join(absent)}")
        rows = sorted(reader, key=lambda row: int(row["label"]))
    id_column, name_column = ("label", "name") if labels == "fine" else ("coarse_label", "coarse_name")
    names = {int(row[id_column]): row[name_column] for row in rows}
    if sorted(names) != list(range(len(names))):
        raise ValueError(f"{path / 'classes.csv'}: the column {id_column!r} does not count from 0 without gaps")
    kept = chosen_classes("image_sheets", [names[index] for index in range(len(names))], classes, class_seed)
    new = {old: number for number, old in enumerate(kept)}
    rows = [row for row in rows if int(row[id_column]) in new]
    files = [f"{split}/{row['name']}.webp" for split in ("train", "test") for row in rows]
    require_files("image_sheets", path, files, _SHEETS_SOURCE)

    splits = []
    for split in ("train", "test"):
        sheets = [
            read_tiles(path / split / f"{row['name']}.webp", 32, row[f"{split}_pixels_sha256"] if verify else None)
            for row in rows
        ]
        counts = torch.tensor([len(sheet) for sheet in sheets])
        ids = torch.tensor([new[int(row[id_column])] for row in rows], dtype=torch.int64)
        coarse = torch.tensor([int(row["coarse_label"]) for row in rows], dtype=torch.int64)
        metadata = {"coarse_label": coarse.repeat_interleave(counts)}
        splits.append(ArrayData(torch.cat(sheets), ids.repeat_interleave(counts), metadata))
    class_names = [names[index] for index in kept]
    return in_memory_set(
        "image_sheets",
        splits[0],
        splits[1],
        CIFAR_MEAN,
        CIFAR_STD,
        class_names,
        transform,
        test_transform,
        image_size,
    )


def tiny_imagenet(
    root: Root, transform: Transform = None, test_transform: Transform = None, image_size: int | None = None
) -> DataSet:
    """Tiny-ImageNet: 200 classes, 100,000 training images of 3x64x64; the 10,000 validation images are the
    test part.

    Args:
        root: folder that holds `tiny-imagenet-200`, the unpacked archive. Labels count the WordNet ids in
            their order.
    """
    base = "tiny-imagenet-200"
    expected = [f"{base}/{entry}" for entry in ("wnids.txt", "train/", "val/images/", "val/val_annotations.txt")]
    source = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
    folder = require_files("tiny_imagenet", root, expected, source) / base
    train_fn, test_fn, sides = file_transforms(transform, test_transform, image_size, 64)

    ids = sorted(row[0] for row in read_lines(folder / "wnids.txt", 1))
    label_of = {wnid: label for label, wnid in enumerate(ids)}
    require_files("tiny_imagenet", root, [f"{base}/train/{wnid}/images/" for wnid in ids], source)
    train_paths: list[Path] = []
    train_labels: list[int] = []
    for wnid, label in label_of.items():
        images = sorted((folder / "train" / wnid / "images").glob("*.JPEG"))
        train_paths += images
        train_labels += [label] * len(images)
    if not train_paths:
        raise FileNotFoundError(f"data set 'tiny_imagenet': no *.JPEG under {str(folder / 'train')!r}; see {source}")

    annotations = folder / "val" / "val_annotations.txt"
    rows = read_lines(annotations, 3)
    strangers = sorted({row[1] for row in rows} - set(ids))
    if strangers:
        raise ValueError(f"{annotations} names classes that wnids.txt lacks: {shortened(strangers)}")
    require_files("tiny_imagenet", folder / "val" / "images", [row[0] for row in rows], source)
    test = FileData([folder / "val" / "images" / row[0] for row in rows], [label_of[row[1]] for row in rows], test_fn)

    words = dict(read_lines(folder / "words.txt", 2)) if (folder / "words.txt").is_file() else {}
    names = [words.get(wnid, wnid) for wnid in ids]
    return set_from_files("tiny_imagenet", FileData(train_paths, train_labels, train_fn), test, names, sides)


def imagefolder(
    root: Root,
    train_folder: str = "train",
    test_folder: str = "val",
    valid_folder: str | None = None,
    metadata: str | None = None,
    transform: Transform = None,
    test_transform: Transform = None,
    image_size: int | None = None,
    allow_empty: bool = False,
) -> DataSet:
    """Any set with one folder of images per class, such as ImageNet: `root/train/<class>/*`,
    `root/val/<class>/*`, at any depth below the class. Files and folders whose names begin with a dot, such as
    `.ipynb_checkpoints`, and those that file systems add are no part of it.

    Args:
        root: folder with all parts.
        train_folder, test_folder: their names.
        valid_folder: name of the folder with a validation part; None: the set has none of its own.
        metadata: name of a CSV table in `root` of what is known of each image, such as its domain: a column `path` with
            `train/<class>/<image>`, and columns of whole numbers, each a tensor that comes with the images by the
            column's name; None: nothing is known.
        allow_empty: whether a class may be without images in a part, where its folder must be none the less.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS

    folders = [folder for folder in (train_folder, test_folder, valid_folder) if folder is not None]
    layout = f"your own images, as {' and '.join(f'{folder}/<class>/<image>' for folder in folders)}"
    tables = [] if metadata is None else [metadata]
    path = require_files("imagefolder", root, [*(f"{folder}/" for folder in folders), *tables], None, holds=layout)
    train_fn, test_fn, sides = file_transforms(transform, test_transform, image_size, 224)
    if not isinstance(allow_empty, bool):
        raise TypeError(f"data set 'imagefolder' expected allow_empty to be true or false, got {allow_empty!r}")
    name = "imagefolder"
    classes = [classes_of(name, folder, path / folder) for folder in folders]
    for folder, other in zip(folders[1:], classes[1:], strict=True):
        if other != classes[0]:
            different = sorted(set(classes[0]) ^ set(other))
            raise ValueError(
                f"data set 'imagefolder': {train_folder} and {folder} in {str(path)!r} hold different classes; "
                f"in one of them only: {shortened(different)}"
            )
    found = [images_of(name, folder, path / folder, classes[0], IMG_EXTENSIONS, allow_empty) for folder in folders]
    files = [[str(file) for file in paths] for paths, _ in found]
    known = [{} for _ in found] if metadata is None else read_metadata(name, path / metadata, path, files)
    train, test, *valid = [
        FileData(files[number], targets, test_fn if number else train_fn, known[number])
        for number, (_, targets) in enumerate(found)
    ]
    return set_from_files(name, train, test, classes[0], sides, valid[0] if valid else None)


def cub(
    root: Root, transform: Transform = None, test_transform: Transform = None, image_size: int | None = None
) -> DataSet:
    """CUB-200-2011 (Wah et al. 2011): 200 bird species, 5,994 + 5,794 images.

    Args:
        root: folder that holds `CUB_200_2011`, the unpacked archive.
    """
    base = "CUB_200_2011"
    tables = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
    source = "https://www.vision.caltech.edu/datasets/cub_200_2011/"
    folder = require_files("cub", root, [f"{base}/{entry}" for entry in (*tables, "images/")], source) / base
    train_fn, test_fn, sides = file_transforms(transform, test_transform, image_size, 224)

    paths = dict(read_lines(folder / "images.txt", 2))
    labels = dict(read_lines(folder / "image_class_labels.txt", 2))
    is_train = dict(read_lines(folder / "train_test_split.txt", 2))
    classes = dict(read_lines(folder / "classes.txt", 2))
    if not paths.keys() == labels.keys() == is_train.keys():
        raise ValueError(f"data set 'cub': {shortened(list(tables[:3]))} in {str(folder)!r} list different image ids")
    strangers = sorted(set(labels.values()) - set(classes))
    if strangers:
        raise ValueError(f"data set 'cub': image_class_labels.txt names classes that classes.txt lacks: {strangers}")
    if not set(is_train.values()) <= {"0", "1"}:
        raise ValueError("data set 'cub': train_test_split.txt holds something other than 0 and 1")
    require_files("cub", folder / "images", paths.values(), source)

    label_of = {class_id: label for label, class_id in enumerate(classes)}

    def part(flag: str, function: Callable[[Any], Any] | None) -> FileData:
        ids = [image_id for image_id in paths if is_train[image_id] == flag]
        return FileData([folder / "images" / paths[i] for i in ids], [label_of[labels[i]] for i in ids], function)

    return set_from_files("cub", part("1", train_fn), part("0", test_fn), classes.values(), sides)


def aircraft(
    root: Root,
    annotation_level: str = "variant",
    own_valid: bool = False,
    transform: Transform = None,
    test_transform: Transform = None,
    image_size: int | None = None,
) -> DataSet:
    """FGVC-Aircraft (Maji et al. 2013, arXiv:1306.5151): 6,667 images to train and validate on, 3,333 to
    test.

    Args:
        root: folder that holds `fgvc-aircraft-2013b`, the unpacked archive.
        annotation_level: `"variant"` (100 classes), `"family"` (70) or `"manufacturer"` (30).
        own_valid: train on the published training part (3,334 images) and take the published validation part (3,333)
            for validation; published figures train on both.
    """
    from torchvision.datasets import FGVCAircraft

    plural = {"variant": "variants", "family": "families", "manufacturer": "manufacturers"}
    if annotation_level not in plural:
        raise ValueError(f"data set 'aircraft' expected annotation_level in {sorted(plural)}, got {annotation_level!r}")
    splits = ("train", "test", "val") if own_valid else ("trainval", "test")
    entries = [f"{plural[annotation_level]}.txt", "images/"]
    entries += [f"images_{annotation_level}_{split}.txt" for split in splits]
    path = require_files(
        "aircraft",
        root,
        [f"fgvc-aircraft-2013b/data/{entry}" for entry in entries],
        "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
    )
    train_fn, test_fn, sides = file_transforms(transform, test_transform, image_size, 224)
    found = [FGVCAircraft(str(path), split, annotation_level) for split in splits]
    train, test, *valid = [
        FileData(part._image_files, part._labels, train_fn if part is found[0] else test_fn) for part in found
    ]
    return set_from_files("aircraft", train, test, found[0].classes, sides, valid[0] if valid else None)


def cars(
    root: Root, transform: Transform = None, test_transform: Transform = None, image_size: int | None = None
) -> DataSet:
    """Stanford Cars (Krause et al. 2013): 196 models, 8,144 + 8,041 images. Reading its tables needs SciPy.

    Args:
        root: folder that holds `stanford_cars`, with the two image folders, the devkit and the labelled test
            table in it.
    """
    from torchvision.datasets import StanfordCars

    base = "stanford_cars"
    entries = ["devkit/cars_meta.mat", "devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat"]
    path = require_files(
        "cars",
        root,
        [f"{base}/{entry}" for entry in (*entries, "cars_train/", "cars_test/")],
        "https://ai.stanford.edu/~jkrause/cars/car_dataset.html (its links are dead; copies circulate)",
    )
    train_fn, test_fn, sides = file_transforms(transform, test_transform, image_size, 224)
    train, test = (StanfordCars(str(path), split) for split in ("train", "test"))

    def part(cars: Any, function: Callable[[Any], Any] | None) -> FileData:
        # SciPy decides the type of the labels in the tables; the interface promises plain ints.
        return FileData([file for file, _ in cars._samples], [int(label) for _, label in cars._samples], function)

    return set_from_files("cars", part(train, train_fn), part(test, test_fn), train.classes, sides)


LOADERS: dict[str, Callable[..., DataSet | RegressionSet]] = {
    "aircraft": aircraft,
    "cars": cars,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "cub": cub,
    "digits": digits,
    "framed_photos": framed_photos,
    "image_sheets": image_sheets,
    "imagefolder": imagefolder,
    "photos": photos,
    "tiny_imagenet": tiny_imagenet,
    **regression.LOADERS,
}
