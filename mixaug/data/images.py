"""Image files: all of a folder of classes, and one read as eight-bit RGB at whatever depth it is stored."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Names of folders that file systems and notebooks put beside the images; so are all that begin with a dot.
FOREIGN_FOLDERS = frozenset({"__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN"})
#: Modes of Pillow with a single channel of more than eight bits.
_DEEP = ("I", "F")
#: Formats that store at most 16 bits where Pillow reads 32, scaled to all of the 16.
_SIXTEEN_BITS = frozenset({"PNG", "PPM"})
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
_SAMPLE_FORMAT, _SIGNED = 339, 2


def read_rgb(path: str | Path) -> Any:
    """An image file as a PIL image of mode RGB.

    Greyscale of 16 bits (PNG, TIFF, PGM, JPEG 2000), and of 12 in a TIFF, is scaled to eight bits from the range of its
    type, 0 .. 2^bits - 1, and rounded. Colour of 16 bits keeps its upper eight. Transparency is dropped.

    Raises:
        OSError: the file cannot be read, is cut off or no image; names it.
        ValueError: values of 32 bits, of signed integers or of floating point, whose range nobody knows; names it.
    """
    from PIL import Image

    try:
        with Image.open(path) as file:
            file.load()
            is_deep = file.mode.startswith(_DEEP)
            if not is_deep and not _is_signed(file):
                # A palette with transparency is dropped in two steps: in one, Pillow warns of every such file.
                return (file.convert("RGBA") if file.mode == "P" else file).convert("RGB")
    except FileNotFoundError:
        raise
    except Image.DecompressionBombError as error:
        raise OSError(f"{str(path)!r} is refused as an image: {error}") from error
    except Exception as error:
        # Every decoder of Pillow has errors of its own for a file that is cut off: OSError, ValueError, struct.error.
        raise OSError(f"{str(path)!r} cannot be read as an image: {error}") from error
    return Image.fromarray(_eight_bits(file, path)).convert("RGB")


def _is_signed(file: Any) -> bool:
    """Whether a TIFF says that its values have a sign, which Pillow passes over where they have eight bits."""
    kinds = getattr(file, "tag_v2", {}).get(_SAMPLE_FORMAT, 1)
    return _SIGNED in (kinds if isinstance(kinds, tuple) else (kinds,))


def _eight_bits(file: Any, path: str | Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    tags = getattr(file, "tag_v2", {})
    if file.mode.startswith("I;16"):
        bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    elif file.mode == "I" and file.format in _SIXTEEN_BITS:
        bits = 16
    else:
        kind = "floating point" if file.mode == "F" else "signed or 32-bit integer"
        raise ValueError(
            f"{str(path)!r} holds {kind} values ({file.format}, mode {file.mode}), of which nobody says what is "
            "black and what is white: store the images with 8 or 16 unsigned bits"
        )
    values = np.asarray(file).astype(np.float64) * (255.0 / (2**bits - 1))
    # Pillow turns such images around where they have eight bits, not where they have more.
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = 255.0 - values
    return values.round().clip(0, 255).astype(np.uint8)


def read_tiles(path: str | Path, side: int, sha256: str | None = None) -> Tensor:
    """The square tiles of a sheet, row by row, as (N, 3, side, side) uint8.

    Args:
        path: an image file whose width and height are multiples of ``side``.
        side: of a tile, in pixels.
        sha256: what the SHA-256 of the decoded RGB bytes must be; None takes any.

    Raises:
        OSError: the file cannot be read, is cut off or no image; names it.
        ValueError: another SHA-256, or a size that is no multiple.
    """
    pixels = np.array(read_rgb(path))
    if sha256 is not None and hashlib.sha256(pixels.tobytes()).hexdigest() != sha256:
        raise ValueError(f"sheet {str(path)!r}: the decoded pixels do not have the SHA-256 that classes.csv states")
    height, width, _ = pixels.shape
    if height % side or width % side:
        raise ValueError(f"sheet {str(path)!r} is {width}x{height} pixels; expected multiples of {side}")
    tiles = torch.from_numpy(pixels).view(height // side, side, width // side, side, 3)
    return tiles.permute(0, 2, 4, 1, 3).reshape(-1, 3, side, side)


def classes_of(name: str, split: str, folder: Path) -> list[str]:
    """Names of the folders of a split that are classes, sorted; hidden ones and those of file systems are none.

    Raises:
        FileNotFoundError: there is none; names split and folder.
    """
    found = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and _is_own(entry.name))
    if not found:
        raise FileNotFoundError(f"data set {name!r}: no class folder in {split}, {str(folder)!r}")
    return found


def images_of(
    name: str, split: str, folder: Path, classes: Sequence[str], extensions: Sequence[str], allow_empty: bool
) -> tuple[list[Path], list[int]]:
    """Image files below the folders of the classes and their class ids, in torchvision's order.

    Raises:
        FileNotFoundError: classes without an image, unless ``allow_empty``; names split, folder and classes.
    """
    paths: list[Path] = []
    labels: list[int] = []
    empty = []
    for label, class_name in enumerate(classes):
        before = len(paths)
        for inner, _, files in sorted(os.walk(folder / class_name, followlinks=True)):
            if all(_is_own(part) for part in Path(inner).relative_to(folder).parts):
                own = [file for file in sorted(files) if _is_own(file) and file.lower().endswith(tuple(extensions))]
                paths += [Path(inner) / file for file in own]
        labels += [label] * (len(paths) - before)
        if len(paths) == before:
            empty.append(class_name)
    if (empty and not allow_empty) or not paths:
        listed = ", ".join(empty[:10])
        raise FileNotFoundError(
            f"data set {name!r}: no image of the class(es) {listed} in {split}, {str(folder)!r}; images are "
            f"files ending in {', '.join(extensions)}; allow_empty=true takes classes without images"
        )
    return paths, labels


def _is_own(name: str) -> bool:
    return not name.startswith(".") and name not in FOREIGN_FOLDERS
