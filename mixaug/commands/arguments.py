"""What the commands share: arguments that are no Hydra overrides, and what an exit status means."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

__all__ = ["CTRL_C", "FAILED", "OWN", "STATUSES", "WRONG", "split", "status_of", "status_of_all"]

#: Arguments that a command has beside the overrides of a run.
OWN: Mapping[str, tuple[str, ...]] = {
    "train": (),
    "benchmark": ("jobs", "statistic", "out", "launch"),
    "search": ("budget", "jobs", "out", "clock", "launch"),
}

#: Exit statuses beside 0 and `mixaug.engine.errors.EXIT_HELD`.
FAILED, WRONG, CTRL_C = 1, 2, 130

#: The exit statuses as the help pages tell them; docs/engine.md has the same rule.
STATUSES = """\
exit status:
  0    done
  1    begun and failed: a run, or one of several, or nothing was found
  2    cannot work as asked: the command line, a setting, or a file that it names; nothing was begun
  75   another process works on the same run or search
  130  stopped by Ctrl-C
"""


def split(command: str, given: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """A command's own arguments by name, and the overrides of runs.

    Args:
        command: one of ``OWN``.
        given: ``key=value`` words.

    Raises:
        ConfigError: a key that is neither, with the one that was probably meant. Keys with dots, and those that are
            like none of these, are left to Hydra, beside whose settings they are told.
    """
    from mixaug.engine.config import GROUPS, KNOWN_KEYS
    from mixaug.engine.errors import ConfigError

    of_runs = sorted({*GROUPS, *KNOWN_KEYS, "hydra"} - {"choices"})
    known = [*OWN[command], *of_runs, *(["search"] if command == "search" else [])]
    own: dict[str, Any] = {}
    overrides = []
    for word in given:
        key, equals, value = word.partition("=")
        plain = key.lstrip("+~")
        if key in OWN[command]:
            if not equals:
                raise ConfigError(f"cannot read {word!r}: expected {key}=value")
            if key == "out" and not value.strip():
                raise ConfigError(f"out: expected a folder, got {value!r}; the present one is .")
            own[key] = value
        elif plain.partition(".")[0] == "search" and "search" not in known:
            raise ConfigError(f"there is no setting {plain}; it is an argument of mixaug search")
        elif equals and plain.isidentifier() and plain not in known:
            meant = _meant(plain, known)
            if not meant and key == plain:
                # It may be the name of a section's setting, which is known where the sections are composed.
                overrides.append(word)
                continue
            raise ConfigError(f"there is no setting {plain}; {meant or 'mixaug train --cfg job prints all'}")
        elif plain in OWN[command] and plain not in KNOWN_KEYS:
            raise ConfigError(f"{word}: {plain} is no setting of a run; give {plain}=value")
        else:
            overrides.append(word)
    return own, overrides


def _meant(key: str, known: Sequence[str]) -> str:
    where = [f"mixaug {command}" for command, names in OWN.items() if key in names]
    if where:
        return f"it is an argument of {' and '.join(where)}"
    from mixaug.engine.elsewhere import ELSEWHERE
    from mixaug.near import near

    if key in ELSEWHERE:
        return ELSEWHERE[key]
    close = near(key, known)
    return f"did you mean {' or '.join(close)}?" if close else ""


def status_of(error: BaseException, *, reads: bool = False) -> int:
    """The exit status of a command that an error ended.

    An error of a value, or of a path that is not there or not of the kind, is one of what was asked for; all others,
    a full disk or a run whose own checkpoints are damaged say, are failures of what had begun.

    Args:
        error: what ended it.
        reads: the command opens runs that it is told of and trains none: a checkpoint that cannot be read, or does not
            serve, is a file that was named to it.
    """
    from mixaug.engine.errors import EXIT_HELD, CheckpointError, RunFolderError, RunHeld

    if isinstance(error, RunHeld):
        return EXIT_HELD
    if isinstance(error, RunFolderError):
        # A file where the folder of a run should be made is a wrong root=; else writing has failed.
        return WRONG if isinstance(error.__cause__, (FileExistsError, NotADirectoryError)) else FAILED
    wrong = (ValueError, TypeError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)
    return WRONG if isinstance(error, (*wrong, CheckpointError) if reads else wrong) else FAILED


def status_of_all(statuses: Collection[int], count: int) -> int:
    """The exit status of a command over several runs, from the statuses of those that failed.

    Where nothing could be begun for one and the same reason, the status says that; else one of several has failed.

    Args:
        statuses: of those that failed, other than 0.
        count: how many there were in all.
    """
    if not statuses:
        return 0
    reasons = set(statuses)
    return reasons.pop() if len(statuses) == count and len(reasons) == 1 else FAILED
