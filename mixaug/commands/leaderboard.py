"""Turn run folders into a leaderboard: mixaug leaderboard runs/photos --out runs/photos/leaderboard

Reads every run folder below the given roots and writes leaderboard.md, leaderboard.csv and leaderboard.html; where runs
were evaluated (mixaug evaluate --suite), also evaluation.md, evaluation.csv and a picture for each family.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mixaug.commands import values
from mixaug.commands.arguments import STATUSES, status_of

__all__ = ["main", "parser"]

#: What `mixaug.leaderboard` knows, which is too heavy to import for a help page; a test holds both together.
STATISTICS = ("last", "best", "median10", "best10", "selected")
FORMATS = ("markdown", "csv", "html")


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(
        "mixaug leaderboard",
        description=__doc__,
        epilog=STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("roots", nargs="+", type=values.path, help="folders that hold run folders, at any depth")
    made.add_argument("--out", type=values.path, help="folder to write to (default: <first root>/leaderboard)")
    made.add_argument("--statistic", choices=STATISTICS, help="number of a run that counts (default: the protocol's)")
    made.add_argument("--confidence", type=float, default=0.95, help="coverage of the intervals (default: 0.95)")
    made.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS), help="default: all")
    made.add_argument("--hide-paths", action="store_true", help="leave folders out of the printed commands")
    own = "config files of your own, from which runs were made"
    made.add_argument("--config-dir", type=values.path, metavar="FOLDER", help=own)
    return made


def main(arguments: Sequence[str]) -> int:
    """Collect, aggregate, write."""
    chosen = parser().parse_args(list(arguments))
    from mixaug.engine.explained import on_one_line
    from mixaug.leaderboard import aggregate, collect, write
    from mixaug.leaderboard.evaluation_page import write_evaluations
    from mixaug.leaderboard.render import print_tables, terminal

    try:
        runs = collect(chosen.roots, config_dir=chosen.config_dir)
        if not runs:
            raise ValueError(f"no run folder below {', '.join(map(str, chosen.roots))}: give the root= of the runs")
        leaderboard = aggregate(
            runs,
            statistic=chosen.statistic,
            confidence=chosen.confidence,
            hide_paths=chosen.hide_paths,
        )
        out = chosen.out or chosen.roots[0] / "leaderboard"
        written = [*write(leaderboard, out, chosen.formats), *write_evaluations(leaderboard, out)]
    except (ValueError, OSError) as error:
        print(f"error: {on_one_line(error)}", file=sys.stderr)
        return status_of(error)
    print_tables(leaderboard, terminal())
    print("\n".join(f"wrote {path}" for path in written))
    return 0 if leaderboard.boards else 1
