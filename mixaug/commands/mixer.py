"""Show what the mixer of a run has learned: mixaug mixer runs/automix-... [more runs]

For several shares: the mean of its masks, how much they vary within an image, and the loss that the mixer learns from,
each beside a newly drawn mixer's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mixaug.commands import values
from mixaug.commands.arguments import STATUSES, status_of

__all__ = ["main", "parser"]

TRUST = "full name that the runs' configs may call beside those of mixaug; may be given several times"


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(
        "mixaug mixer",
        description=__doc__,
        epilog=STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("runs", type=values.text, nargs="+", help="run folders of automix or samix")
    made.add_argument("--samples", type=values.whole(2), default=200, help="test images")
    made.add_argument("--device", type=values.device, default="auto")
    made.add_argument("--seed", type=values.seed, default=0)
    made.add_argument("--trust", type=values.dotted_name, metavar="NAME", action="append", default=[], help=TRUST)
    return made


def main(arguments: Sequence[str]) -> int:
    """Print a table for each run."""
    chosen = parser().parse_args(list(arguments))
    from mixaug.engine.errors import CheckpointError
    from mixaug.engine.explained import on_one_line
    from mixaug.engine.mixers import mask_reports
    from mixaug.engine.pictures import open_run

    try:
        for folder in chosen.runs:
            run = open_run(folder, chosen.device, allow_targets=chosen.trust)
            trained = mask_reports(run, chosen.samples, seed=chosen.seed)
            fresh = mask_reports(run, chosen.samples, fresh=True, seed=chosen.seed)
            print(f"{folder}, epoch {run.epoch}\n")
            print("| lambda | mean own share (fresh) | variation within an image (fresh) | loss (fresh) |")
            print("|--:|--:|--:|--:|")
            for t, f in zip(trained, fresh, strict=True):
                print(
                    f"| {t.lam:g} | {t.mean:.3f} ({f.mean:.3f}) | {t.within:.4f} ({f.within:.4f}) | "
                    f"{t.loss:.3f} ({f.loss:.3f}) |"
                )
            print()
    except (ValueError, TypeError, OSError, CheckpointError) as error:
        print(f"error: {on_one_line(error)}", file=sys.stderr)
        return status_of(error, reads=True)
    return 0
