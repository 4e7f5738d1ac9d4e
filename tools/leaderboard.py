"""Run folders to a leaderboard: python tools/leaderboard.py runs/digits --out runs/digits/leaderboard

Reads every run folder below the given roots and writes leaderboard.md, leaderboard.csv and leaderboard.html; where runs
were evaluated (tools/evaluate.py --suite), also evaluation.md, evaluation.csv and a picture for each family.
"""

import argparse
import sys
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Collect, aggregate, write."""
    from mixaug.leaderboard import FORMATS, STATISTICS, aggregate, collect, write
    from mixaug.leaderboard.evaluation_page import write_evaluations
    from mixaug.leaderboard.render import print_tables, terminal

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("roots", nargs="+", type=Path, help="folders that hold run folders, at any depth")
    parser.add_argument("--out", type=Path, help="folder to write to (default: <first root>/leaderboard)")
    parser.add_argument("--statistic", choices=list(STATISTICS), help="number of a run that counts")
    parser.add_argument("--confidence", type=float, default=0.95, help="coverage of the intervals")
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS))
    parser.add_argument("--hide-paths", action="store_true", help="leave folders out of the printed commands")
    chosen = parser.parse_args(arguments)
    try:
        leaderboard = aggregate(
            collect(chosen.roots),
            statistic=chosen.statistic,
            confidence=chosen.confidence,
            hide_paths=chosen.hide_paths,
        )
        out = chosen.out or chosen.roots[0] / "leaderboard"
        written = [*write(leaderboard, out, chosen.formats), *write_evaluations(leaderboard, out)]
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print_tables(leaderboard, terminal())
    print("\n".join(f"wrote {path}" for path in written))
    return 0 if leaderboard.boards else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
