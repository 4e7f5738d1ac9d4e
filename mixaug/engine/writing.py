"""Open files for writing in a folder that anybody may have made: what is written never lands outside of it.

A link in such a folder can lead to any file of the user's. Reading through it is bounded by `mixaug.engine.reading`;
writing through it would destroy that file.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import BinaryIO

__all__ = ["appended", "fresh", "own_descriptor", "place"]


def fresh(path: Path) -> BinaryIO:
    """A new empty file at this place, open for writing; a file or link that has the name is removed, not followed.

    Raises:
        OSError: it cannot be made, a folder has the name, or another process made it in the same moment.
    """
    path.unlink(missing_ok=True)
    return open(path, "xb")


def place(path: Path, content: str | bytes) -> None:
    """Write a whole file beside its place, then rename it; two processes that do this at once do not meet.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with fresh(beside) as file:
            file.write(content.encode() if isinstance(content, str) else content)
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


def appended(path: Path) -> BinaryIO:
    """The file at this place, made if need be, open for writing at its end.

    Raises:
        OSError: it cannot be written, or is a link or no ordinary file.
    """
    return os.fdopen(own_descriptor(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab")


def own_descriptor(path: Path, flags: int) -> int:
    """Open as ``os.open`` does, but no link and nothing else than an ordinary file.

    Raises:
        OSError: as ``os.open``, or with a text that says what the name belongs to.
    """
    if path.is_symlink():
        raise OSError(None, "it is a link, which no run makes")
    if path.exists() and not path.is_file():
        raise OSError(None, "it is not an ordinary file")
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0), 0o644)
