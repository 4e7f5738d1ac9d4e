"""The command ``mixaug``: ``mixaug train policy=cutmix``, ``mixaug --help``; ``python -m mixaug`` is the same."""

from __future__ import annotations

import difflib
import importlib
import os
import shlex
import sys
from collections.abc import Sequence

from mixaug._version import __version__
from mixaug.commands import COMMANDS
from mixaug.commands.arguments import CTRL_C, STATUSES, WRONG

__all__ = ["main", "overview", "summary"]

#: Packages that only the ``train`` extra brings.
EXTRA = ("hydra", "matplotlib", "omegaconf", "PIL", "rich", "scipy", "sklearn", "timm", "torchmetrics", "torchvision")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: the command line without the program's name; None takes that of the process.

    Returns:
        The command's exit status, see `mixaug.commands.arguments.STATUSES`; 141 where the reader of a pipe has left.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _run(given)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of a pipe, `mixaug policies | head`, has seen enough; Python would complain at its end once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return code


def _run(given: list[str]) -> int:
    if not given or given[0] in ("-h", "--help"):
        print(overview())
        return 0 if given else WRONG
    if given[0] in ("-V", "--version"):
        print(f"mixaug {__version__}")
        return 0
    name, *rest = given
    if name not in COMMANDS:
        setting = _is_setting(name)
        close = [] if setting else difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"the commands are {', '.join(COMMANDS)}"
        if setting:
            hint = f"a setting stands behind its command, mixaug train {shlex.join(given)}; {hint}"
        print(f"mixaug: unknown command {name!r}; {hint}", file=sys.stderr)
        return WRONG
    try:
        code: int = importlib.import_module(f"mixaug.commands.{name}").main(rest)
    except KeyboardInterrupt:
        print(f"mixaug {name}: stopped by Ctrl-C", file=sys.stderr)
        return CTRL_C
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        print(f"mixaug {name} needs {error.name}: pip install 'mixaug[train]'", file=sys.stderr)
        return WRONG
    return code


def _is_setting(word: str) -> bool:
    """Whether a word is an override of a setting that runs have, such as ``policy=cutmix`` or ``+data.root=x``."""
    key, equals, _ = word.lstrip("+~").partition("=")
    if not equals:
        return False
    try:
        from mixaug.engine.config import GROUPS, KNOWN_KEYS
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        # Settings are those of the train extra, which is not installed.
        return False
    return key.partition(".")[0] in {*GROUPS, *KNOWN_KEYS}


def overview() -> str:
    """What ``mixaug --help`` shows."""
    width = max(map(len, COMMANDS)) + 2
    rows = [f"  {name.ljust(width)}{summary(name)}" for name in COMMANDS]
    return "\n".join(
        [
            "usage: mixaug COMMAND ...",
            "",
            "More than forty published ways to mix training samples: train with them, compare them, look at them.",
            "",
            *rows,
            "",
            "`mixaug COMMAND --help` says more.",
            "",
            STATUSES.rstrip(),
        ]
    )


def summary(name: str) -> str:
    """What a command does: the first line of its module's documentation."""
    doc = importlib.import_module(f"mixaug.commands.{name}").__doc__ or ""
    return doc.split("\n", 1)[0].partition(":")[0].rstrip(".")


if __name__ == "__main__":
    sys.exit(main())
