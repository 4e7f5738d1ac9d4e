"""A grid of runs and its leaderboard in one command.

    python tools/benchmark.py experiment=digits
    python tools/benchmark.py policy=none,mixup,cutmix model=cifar_resnet8 data=cifar10 data.root=/path seed=0,1,2

Any argument of tools/train.py may carry several values. Finished runs are skipped, interrupted ones continue, a failed
one is shown with its reason and does not stop the others. Besides, all optional:

    jobs=2              runs at a time (default: one per GPU, or one per core)
    statistic=last      or best, median10, best10; in regression selected (the usual one there), last
    out=folder          for the leaderboard (default: <root>/leaderboard)
    launch=fork         or command: a fresh `python tools/train.py` for each run

Exit code: 0, 1 if a run failed, 2 for arguments that cannot work, 130 after Ctrl-C.
"""

import sys

OWN = ("jobs", "statistic", "out", "launch")


def main(arguments: list[str]) -> int:
    """Run the grid that the arguments name."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0 if arguments else 2
    from mixaug.engine.errors import ConfigError
    from mixaug.leaderboard.benchmark import run_grid

    own = {key: value for key, _, value in (argument.partition("=") for argument in arguments) if key in OWN}
    try:
        return run_grid([argument for argument in arguments if argument.partition("=")[0] not in OWN], **own)
    except (ConfigError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
