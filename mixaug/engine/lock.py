"""One process at a time holds a run folder.

The lock is the operating system's, on an open file, so it ends with the process that holds it, ``kill -9`` included,
and nobody has to judge whether a leftover file still means something. The file's content only says who holds it. It is
removed when a run ends by itself.

A library such as filelock would do the locking, but its locks are inherited by forked children: workers of a loader
that outlive a killed run for some seconds would keep the folder from the command that continues it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType

from mixaug.engine.errors import EXIT_HELD, RunFolderError, RunHeld
from mixaug.engine.writing import own_descriptor

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None  # type: ignore[assignment]

__all__ = ["EXIT_HELD", "Holder", "RunLock", "check", "holder"]

NAME = ".lock"

#: Seconds to wait for a lock: whoever looks for the holder has it for a moment, and a holder that ends needs one.
PATIENCE = 1.0


@dataclass(frozen=True)
class Holder:
    """Who holds a run folder.

    Attributes:
        pid, host: the process; pid 0 where it has not yet said so.
        since: ISO 8601 time at which it took the folder.
    """

    pid: int
    host: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}" if self.pid else "another process"


class RunLock:
    """Holds a run folder from `take` to the end of a ``with`` block.

    Args:
        folder: the run folder; created when it is taken.
        say: called with what a user should know about the file system's locks.
    """

    def __init__(self, folder: Path, say: Callable[[str], None] = print) -> None:
        self.folder, self.path, self.say = folder, folder / NAME, say
        self._descriptor: int | None = None
        self._unlockable = False

    def __enter__(self) -> RunLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    @property
    def held(self) -> bool:
        """Whether this object holds the folder."""
        return self._descriptor is not None

    def take(self) -> None:
        """Hold the folder from now on; nothing happens if it is held already.

        Raises:
            RunHeld: another process holds it.
            RunFolderError: the folder cannot be created or written.
        """
        if self.held:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = self._locked()
            try:
                before = _read_holder(descriptor)
                self._sign(descriptor)
            except BaseException:
                self._drop(descriptor)
                raise
        except OSError as error:
            if isinstance(error, RunHeld):
                raise
            raise RunFolderError(f"cannot write {self.path}: {error.strerror or error}") from error
        self._descriptor = descriptor
        _HELD[descriptor] = self.folder
        if self._unlockable:
            self.say(f"{self.folder} lies on a file system without locks: nothing keeps a second process out of it")
        elif before is not None and before.host != socket.gethostname():
            self.say(
                f"{self.folder} was held by {before}, which ended without letting go of it; should it still run there, "
                "this file system does not lock across hosts: end one of both"
            )

    def release(self) -> None:
        """Let go of the folder and remove the lock's file."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            _HELD.pop(descriptor, None)
            self._drop(descriptor)

    def _locked(self) -> int:
        """A descriptor of the lock's file with the lock on it."""
        deadline = time.monotonic() + PATIENCE
        while True:
            descriptor = own_descriptor(self.path, os.O_RDWR | os.O_CREAT)
            try:
                taken = self._try(descriptor)
                # A holder that ended in between has removed the file that is now locked here.
                if taken and _is_at(descriptor, self.path):
                    return descriptor
                who = _read_holder(descriptor)
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
            if not taken and time.monotonic() >= deadline:
                raise RunHeld(
                    f"{self.folder} is held by {who or 'another process'}; one process at a time works on a run "
                    "folder: wait for it or end it, then give the same command again"
                )
            time.sleep(0.02)

    def _try(self, descriptor: int) -> bool:
        try:
            return _lock(descriptor)
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise
            self._unlockable = True
            return True

    def _sign(self, descriptor: int) -> None:
        who = Holder(os.getpid(), socket.gethostname(), datetime.now().astimezone().isoformat(timespec="seconds"))
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, (json.dumps(asdict(who)) + "\n").encode())
        os.fsync(descriptor)

    def _drop(self, descriptor: int) -> None:
        # The file is removed before the lock ends: whoever takes the name then makes a file of its own.
        try:
            # A file that cannot be removed is no lock either.
            with contextlib.suppress(OSError):
                if _is_at(descriptor, self.path):
                    self.path.unlink()
        finally:
            os.close(descriptor)


def check(folder: Path) -> None:
    """Make sure that a folder is still the one that this process took, if it did.

    Raises:
        RunFolderError: the folder or its lock was removed or replaced, so that another process may have taken it.
    """
    own = [descriptor for descriptor, held in _HELD.items() if held == folder]
    if own and not any(_is_at(descriptor, folder / NAME) for descriptor in own):
        raise RunFolderError(
            f"cannot write {folder}: its file {NAME} was removed while the run was working, so another process may "
            "have taken the folder"
        )


def holder(folder: Path) -> Holder | None:
    """Who holds a run folder now; None if nobody does, there is none, or its file system has no locks."""
    try:
        descriptor = own_descriptor(folder / NAME, os.O_RDWR)
    except OSError:
        return None
    try:
        if _lock(descriptor, shared=True):
            return None
        return _read_holder(descriptor) or Holder(0, "", "")
    except OSError:
        return None
    finally:
        os.close(descriptor)


#: Error numbers of a file system without locks: no such call, not for this kind of file, no lock service.
_WITHOUT_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOLCK)


def _lock(descriptor: int, *, shared: bool = False) -> bool:
    """Try to lock an open file; False where another process has it."""
    if fcntl is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        # Some file systems answer EACCES where others answer EWOULDBLOCK.
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _read_holder(descriptor: int) -> Holder | None:
    """What the last holder wrote; None where it is nothing, or not whole."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        entry = json.loads(os.read(descriptor, 4096))
        return Holder(int(entry["pid"]), str(entry["host"]), str(entry["since"]))
    except (ValueError, KeyError, TypeError):
        return None


_HELD: dict[int, Path] = {}
"""Folders that this process holds, by the descriptors of their locks."""


def _let_go_in_child() -> None:
    """Close what a forked child inherits: the lock ends when its last copy is closed, and is the parent's alone."""
    for descriptor in _HELD:
        os.close(descriptor)
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)
