"""Score a checkpoint on its test set: python tools/evaluate.py runs/<run> [--weights ema] [--device cpu]"""

import argparse
import json
import sys

from mixaug.engine.errors import CheckpointError
from mixaug.engine.stored import evaluate_checkpoint

TRUST = "full name that the run's config may call beside those of mixaug; may be given several times"


def main() -> None:
    """Print the numbers of the task as JSON: top-1, top-5, NLL and calibration error, or RMSE and others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="a checkpoint file, or a run folder for its newest one that can be read")
    parser.add_argument("--weights", choices=("auto", "model", "ema"), default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--trust", metavar="NAME", action="append", default=[], help=TRUST)
    arguments = parser.parse_args()

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    try:
        scores = evaluate_checkpoint(arguments.checkpoint, arguments.weights, arguments.device, arguments.trust, say)
    except (CheckpointError, OSError, ValueError, TypeError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    print(json.dumps(scores, indent=2))


if __name__ == "__main__":
    main()
