"""Data sets by name: `mixaug.data.load("cifar100", root="...")`.

Nothing is ever downloaded. Sets that fit in memory come as one uint8 tensor per split; the others are read
from files, through torchvision where it has a loader.
"""

from __future__ import annotations

import difflib
import fnmatch
import inspect
from collections.abc import Callable
from typing import Any

from mixaug.data.loaders import CIFAR_MEAN, CIFAR_STD, IMAGENET_MEAN, IMAGENET_STD, LOADERS
from mixaug.data.sets import ArrayData, DataSet, FileData, MappedData

__all__ = [
    "CIFAR_MEAN",
    "CIFAR_STD",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "ArrayData",
    "DataSet",
    "FileData",
    "MappedData",
    "list_datasets",
    "load",
]


def list_datasets(pattern: str = "*") -> list[str]:
    """Names that `load` knows and that match a shell-style pattern, sorted."""
    return sorted(fnmatch.filter(LOADERS, pattern))


def _root_line(loader: Callable[..., DataSet]) -> str:
    """What the loader's docstring says about `root`."""
    doc = inspect.getdoc(loader) or ""
    return doc.partition("root: ")[2].partition("\n")[0] or "the folder with the data"


def load(name: str, **options: Any) -> DataSet:
    """Loads a data set by name.

    | name | options beside the common ones | in memory |
    |---|---|---|
    | `digits` | `train_size`, `split_seed` | yes |
    | `cifar10`, `cifar100` | `root` | yes |
    | `image_sheets` | `root`, `labels`, `classes`, `verify` | yes |
    | `tiny_imagenet`, `cub`, `cars` | `root` | no |
    | `aircraft` | `root`, `annotation_level` | no |
    | `imagefolder` | `root`, `train_folder`, `test_folder` | no |

    Common options: `transform` and `test_transform`, each a callable or a name of `mixaug.data.transforms`, for
    the two splits, which are then read image by image; where only one is given, the other split gives its images
    as unchanged uint8 tensors, and where none is given, files give PIL images. `image_size` is the side in pixels
    that named transforms produce and that `DataSet.image_size` reports. Each loader in `mixaug.data.loaders`
    documents its own options.

    Raises:
        ValueError: unknown name (the closest are suggested), an option out of range, or files with unexpected
            content.
        TypeError: an option that this set does not have, or a missing `root`.
        FileNotFoundError: missing files; names the folder, what is expected in it, and where the set is
            published.
    """
    if name not in LOADERS:
        close = difflib.get_close_matches(str(name), LOADERS, n=3, cutoff=0.4)
        hint = f"closest names: {', '.join(close)}" if close else f"known names: {', '.join(list_datasets())}"
        raise ValueError(f"mixaug.data.load got the unknown data set {name!r}; {hint}")
    loader = LOADERS[name]
    known = list(inspect.signature(loader).parameters)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise TypeError(
            f"mixaug.data.load({name!r}) got the unknown option(s) {', '.join(unknown)}; known: {', '.join(known)}"
        )
    if "root" in known and options.get("root") is None:
        raise TypeError(f"mixaug.data.load({name!r}) needs root=: {_root_line(loader)}")
    return loader(**options)
