"""Data sets by name: `mixaug.data.load("cifar100", root="...")`.

Nothing is ever downloaded. Sets of images that fit in memory come as one uint8 tensor per split; the others are read
from files, through torchvision where it has a loader. Sets with real-valued labels have three splits, each a pair of
tensors.
"""

from __future__ import annotations

import difflib
import fnmatch
import inspect
from collections.abc import Callable
from typing import Any

from mixaug.data import regression
from mixaug.data.loaders import LOADERS
from mixaug.data.reading import CIFAR_MEAN, CIFAR_STD, IMAGENET_MEAN, IMAGENET_STD
from mixaug.data.sets import ArrayData, DataSet, FileData, MappedData, RegressionData, RegressionSet
from mixaug.data.splits import SPLIT_OPTIONS, with_splits
from mixaug.options import unknown_option

__all__ = [
    "CIFAR_MEAN",
    "CIFAR_STD",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "SPLIT_OPTIONS",
    "ArrayData",
    "DataSet",
    "FileData",
    "MappedData",
    "RegressionData",
    "RegressionSet",
    "list_datasets",
    "load",
    "options_of_set",
    "with_splits",
]


def list_datasets(pattern: str = "*") -> list[str]:
    """Names that `load` knows and that match a shell-style pattern, sorted."""
    return sorted(fnmatch.filter(LOADERS, pattern))


def _root_line(loader: Callable[..., DataSet | RegressionSet]) -> str:
    """What the loader's docstring says about `root`."""
    doc = inspect.getdoc(loader) or ""
    return doc.partition("root: ")[2].partition("\n")[0] or "the folder with the data"


def options_of_set(name: str) -> list[str]:
    """Names of the options that :func:`load` takes for a data set.

    Raises:
        ValueError: unknown name (the closest are suggested).
    """
    if name not in LOADERS:
        close = difflib.get_close_matches(str(name), LOADERS, n=3, cutoff=0.4)
        hint = f"closest names: {', '.join(close)}" if close else f"known names: {', '.join(list_datasets())}"
        raise ValueError(f"there is no data set {name!r}; {hint}")
    own = list(inspect.signature(LOADERS[name]).parameters)
    splits = () if LOADERS[name] in regression.LOADERS.values() else SPLIT_OPTIONS
    return [*own, *(option for option in splits if option not in own)]


def load(name: str, **options: Any) -> DataSet | RegressionSet:
    """Loads a data set by name.

    Sets with classes come as a `DataSet`:

    | name | options beside the common ones | in memory |
    |---|---|---|
    | `digits` | `train_size`, `split_seed` | yes |
    | `photos` | none, it has a validation part | yes |
    | `framed_photos` | `correlation`, `frame`, `split_seed`, it has a validation part | yes |
    | `cifar10`, `cifar100` | `root` | yes |
    | `image_sheets` | `root`, `labels`, `verify` | yes |
    | `tiny_imagenet`, `cub`, `cars` | `root` | no |
    | `aircraft` | `root`, `annotation_level`, `own_valid` | no |
    | `imagefolder` | `root`, `train_folder`, `test_folder`, `valid_folder`, `metadata`, `allow_empty` | no |

    Common options: `transform` and `test_transform`, each a callable or a name of `mixaug.data.transforms`, for
    the two splits, which are then read image by image; where only one is given, the other split gives its images
    as unchanged uint8 tensors, and where none is given, files give PIL images. `image_size` is the side in pixels
    that named transforms produce and that `DataSet.image_size` reports. Where
    nothing tells it, the first file that a split keeps as it is says its size, once `image_size` is read. Images that
    are kept must have that size where a model meets them: arrays are looked at here, files when a run begins.
    `classes`, `class_seed`, `per_class`, `valid_share`, `imbalance` and `split_seed` choose classes, samples of each
    and a validation part: see `mixaug.data.splits`. Each loader in `mixaug.data.loaders` documents its own options.

    Sets with real-valued labels come as a `RegressionSet`, in memory:

    | name | inputs | options beside `scaling` and `fit_on` |
    |---|---|---|
    | `airfoil`, `no2` | (5,), (7,) | `root`, `split` |
    | `diabetes` | (10,) | `split` |
    | `communities_crime`, `skillcraft` | (122,), (17,) | `root` |
    | `exchange_rate` | (8, window) | `root`, `window`, `horizon` |
    | `table` | (F,) | `root`, `target`, `inputs`, `group`, `valid_share`, `test_share`, `split`, `missing` |
    | `rcf_mnist` | (3, 28, 28) uint8 | `root`, `split`, `spurious_ratio`, `test_colour`; not those two |

    `scaling` is that of the inputs, and `fit_on` the rows whose statistics it uses: see `mixaug.data.regression`.

    Raises:
        ValueError: unknown name (the closest are suggested), an option out of range, or files with unexpected
            content.
        TypeError: an option that this set does not have, or a missing `root` or `target`.
        FileNotFoundError: missing files; names the folder, what is expected in it, and where the set is
            published.
    """
    known = options_of_set(name)
    loader = LOADERS[name]
    own = list(inspect.signature(loader).parameters)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise TypeError(unknown_option(f"data set {name!r}", unknown[0], known))
    if "root" in known and options.get("root") is None:
        raise TypeError(f"data set {name!r} needs root=: {_root_line(loader)}")
    loaded = loader(**{option: value for option, value in options.items() if option in own})
    # A loader that chooses classes by itself has chosen them; the seed of the split is for both.
    done = {"classes", "class_seed"} & set(own)
    rest = {option: options[option] for option in SPLIT_OPTIONS if option in options and option not in done}
    return with_splits(loaded, **rest) if isinstance(loaded, DataSet) else loaded
