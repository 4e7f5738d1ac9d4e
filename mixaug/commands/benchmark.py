"""Train a grid of models and rank them: mixaug benchmark experiment=photos

    mixaug benchmark experiment=photos
    mixaug benchmark policy=none,mixup,cutmix model=cifar_resnet8 data=cifar10 data.root=/path seed=0,1,2

Any argument of `mixaug train` may carry several values; every combination is a run. Finished runs are skipped,
interrupted ones continue, a failed one is shown with its reason and does not stop the others. Besides, all optional:

    jobs=2              runs at a time (default: one per GPU, or one per core)
    statistic=last      or best, median10, best10; in regression selected, last (default: the protocol's figure)
    out=folder          for the leaderboard (default: <root>/leaderboard)
    launch=fork         or command: a fresh `mixaug train` for each run
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mixaug.commands import values
from mixaug.commands.arguments import STATUSES, split, status_of

__all__ = ["main", "parser"]


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(
        "mixaug benchmark",
        description=__doc__,
        epilog=STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("overrides", nargs="*", metavar="key=value", help="as described above")
    own = "config files of your own: FOLDER/policy/mine.yaml"
    made.add_argument("--config-dir", type=values.path, metavar="FOLDER", help=own)
    return made


def main(arguments: Sequence[str]) -> int:
    """Run the grid that the arguments name."""
    reader = parser()
    if not arguments:
        reader.print_help()
        return 2
    if {"-m", "--multirun"} & set(arguments):
        reader.error("several values are several runs anyway: leave out --multirun")
    chosen = reader.parse_intermixed_args(list(arguments))
    from mixaug.engine.errors import ConfigError
    from mixaug.engine.explained import on_one_line
    from mixaug.leaderboard.benchmark import run_grid

    try:
        own, overrides = split("benchmark", chosen.overrides)
        return run_grid(overrides, **own, config_dir=chosen.config_dir)
    except (ConfigError, ValueError, OSError) as error:
        print(f"error: {on_one_line(error)}", file=sys.stderr)
        return status_of(error)
