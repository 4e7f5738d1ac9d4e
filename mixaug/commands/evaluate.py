"""Score a checkpoint on its test set: mixaug evaluate runs/<run> [--weights ema] [--device cpu]

Prints the numbers of the task as JSON: top-1, top-5, NLL and calibration error, or RMSE and others.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

__all__ = ["main", "parser"]


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(
        "mixaug evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("checkpoint", help="a checkpoint file, or a run folder for its newest one that can be read")
    made.add_argument("--weights", choices=("auto", "model", "ema"), default="auto")
    made.add_argument("--device", default="auto")
    made.add_argument(
        *("--trust",),
        metavar="NAME",
        action="append",
        default=[],
        help="full name that the run's config may call beside those of mixaug; may be given several times",
    )
    return made


def main(arguments: Sequence[str]) -> int:
    """Print the scores."""
    reader = parser()
    chosen = reader.parse_args(list(arguments))
    from mixaug.engine.errors import CheckpointError
    from mixaug.engine.stored import evaluate_checkpoint

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    try:
        scores = evaluate_checkpoint(chosen.checkpoint, chosen.weights, chosen.device, chosen.trust, say)
    except (CheckpointError, OSError, ValueError, TypeError) as error:
        say(f"{reader.prog}: {error}")
        return 1
    print(json.dumps(scores, indent=2))
    return 0
